//! What happened, and how long each step took.

use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::quantity::size;

/// The steps of a demo.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    steps: Vec<Step>,
    bytes_compared: u64,
    bytes_different: u64,
}

#[derive(Debug, Serialize)]
struct Step {
    step: &'static str,
    seconds: f64,
    what: String,
}

impl Report {
    /// Notes a step.
    pub fn step(&mut self, step: &'static str, took: Duration, what: String) {
        self.steps.push(Step { step, seconds: took.as_secs_f64(), what });
    }

    /// Notes what the comparison found.
    pub fn compared(&mut self, bytes: u64, different: u64) {
        self.bytes_compared += bytes;
        self.bytes_different += different;
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING);
        table.set_header(["STEP", "TIME", "WHAT HAPPENED"]);
        for step in &self.steps {
            table.add_row([step.step.to_owned(), format!("{:.3} s", step.seconds), step.what.clone()]);
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut text: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        text.push_str(&match self.bytes_different {
            0 => format!("\nAll {} bytes are as they were written.\n", self.bytes_compared),
            count => format!("\n{count} of {} bytes DIFFER from what was written.\n", self.bytes_compared),
        });
        text
    }
}

/// A speed for people.
pub fn speed(bytes: u64, took: Duration) -> String {
    let per_second = bytes as f64 / took.as_secs_f64().max(1e-6);
    format!("{}/s", size(per_second as u64))
}

/// A request's time for people.
pub fn milliseconds(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        let mut report = Report::default();
        report.step("start raidd", Duration::from_millis(21), "in /tmp/x".to_owned());
        report.step(
            "write",
            Duration::from_millis(12_345),
            format!("192 MiB, {}", speed(3 << 20, Duration::from_secs(2))),
        );
        report.compared(4096, 0);
        assert_eq!(
            report.text(),
            "\
STEP             TIME  WHAT HAPPENED
start raidd   0.021 s  in /tmp/x
write        12.345 s  192 MiB, 1.50 MiB/s

All 4096 bytes are as they were written.
"
        );
        report.compared(4096, 3);
        assert!(report.text().ends_with("\n3 of 8192 bytes DIFFER from what was written.\n"));
    }
}
