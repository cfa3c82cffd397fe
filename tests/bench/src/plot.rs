//! The rows as bars: how far each ratio is above or below its target. An SVG that can be read on light and on dark.

use std::fmt::Write as _;

use crate::rows::{Row, Topic};

const ROW: f64 = 15.0;
const LABELS: f64 = 330.0;
const BARS: f64 = 420.0;
const VALUES: f64 = 130.0;
const TOP: f64 = 56.0;
/// Bars end at so many times the target, and at its reciprocal.
const REACH: f64 = 8.0;

const STYLE: &str = "text{font:11px sans-serif;fill:#24292f}.t{font-weight:600;font-size:13px}.r{text-anchor:end}\
    .g{stroke:#8c959f;stroke-opacity:.35}.one{stroke:#57606a;stroke-width:1.5}.met{fill:#1a7f37}.not{fill:#cf222e}\
    @media (prefers-color-scheme:dark){text{fill:#e6edf3}.one{stroke:#c9d1d9}.met{fill:#3fb950}.not{fill:#f85149}}";

/// Where a margin lies, between 0 and the width of the bars.
fn place(margin: f64) -> f64 {
    let share = margin.clamp(1.0 / REACH, REACH).ln() / REACH.ln();
    (share + 1.0) / 2.0 * BARS
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn label(row: &Row) -> String {
    let what = match row.topic {
        Topic::Mirror => " by quorum",
        Topic::Cpu => " CPU",
        _ => "",
    };
    escape(&format!("{}{what}, {}, {}", row.job, row.array, row.members))
}

/// One bar for each row that has a target.
pub fn svg(rows: &[Row]) -> String {
    let judged: Vec<_> = rows.iter().filter_map(|row| Some((row, row.target?))).collect();
    let (width, height) = (LABELS + BARS + VALUES, TOP + ROW * judged.len() as f64 + 10.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" role=\"img\">\n<title>Ratio by target</title>\n<style>{STYLE}</style>\n\
         <text class=\"t\" x=\"8\" y=\"20\">Ratio by target: right of the line is better (logarithmic)</text>\n"
    );
    let mut line = |text: String| writeln!(out, "{text}").unwrap_or_default();
    for (mark, name) in
        [(0.125, "1/8"), (0.25, "1/4"), (0.5, "1/2"), (1.0, "target"), (2.0, "2"), (4.0, "4"), (8.0, "8")]
    {
        let (x, class) = (LABELS + place(mark), if mark == 1.0 { "one" } else { "g" });
        line(format!(
            "<line class=\"{class}\" x1=\"{x:.1}\" y1=\"{}\" x2=\"{x:.1}\" y2=\"{}\"/>",
            TOP - 8.0,
            height - 8.0
        ));
        line(format!("<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{name}</text>", TOP - 14.0));
    }
    for (number, (row, target)) in judged.into_iter().enumerate() {
        let (y, ratio) = (TOP + ROW * number as f64, row.ratio());
        let (margin, class) = (target.margin(ratio), if target.is_met(ratio) { "met" } else { "not" });
        let (low, high) = (place(margin.min(1.0)), place(margin.max(1.0)));
        let (x, bar, text_y) = (LABELS + low, (high - low).max(1.0), y + ROW - 5.0);
        line(format!("<text class=\"r\" x=\"{}\" y=\"{text_y}\">{}</text>", LABELS - 8.0, label(row)));
        let rest = ROW - 4.0;
        line(format!(
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{}\" width=\"{bar:.1}\" height=\"{rest}\"/>",
            y + 1.0
        ));
        let bound = match target {
            crate::jobs::Target::AtLeast(bound) => format!("≥ {bound}"),
            crate::jobs::Target::AtMost(bound) => format!("≤ {bound}"),
        };
        line(format!("<text x=\"{}\" y=\"{text_y}\">{ratio:.2} ({bound})</text>", LABELS + BARS + 8.0));
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::Target;
    use crate::rows::Unit;

    #[test]
    fn the_target_lies_in_the_middle() {
        assert_eq!(place(1.0), BARS / 2.0);
        assert_eq!((place(1e-9), place(1e9)), (0.0, BARS));
        assert!((place(2.0) - BARS / 2.0 - (BARS / 2.0 - place(0.5))).abs() < 1e-9);
    }

    #[test]
    fn rows_with_a_target_have_a_bar() {
        let row = Row {
            topic: Topic::Cpu,
            job: "a<b".to_owned(),
            array: "raid6".to_owned(),
            members: "shm".to_owned(),
            unit: Unit::CpuPerGib,
            ours: 2.0,
            other: "qsd".to_owned(),
            theirs: 1.0,
            target: Some(Target::AtMost(1.0)),
            note: String::new(),
        };
        let text = svg(&[row.clone(), Row { target: None, ..row }]);
        assert_eq!(text.matches("<rect").count(), 1);
        assert!(text.contains("a&lt;b CPU, raid6, shm") && text.contains("class=\"not\""), "{text}");
        assert!(text.contains("2.00 (≤ 1)"), "{text}");
    }
}
