//! A table that fits: what matters least is left out of a terminal that is too narrow, and at last the widest column is cut.

use ratatui::style::Style;
use ratatui::text::{Line, Span};

/// Between two columns.
const GAP: usize = 2;

/// A column of a table.
pub struct Column {
    /// Its heading.
    pub title: &'static str,
    /// Numbers stand to the right.
    pub is_number: bool,
    /// Its width at least, so that it does not wobble with what stands in it.
    pub width_min: usize,
    /// Which goes first where there is no room: the highest. 0 stays.
    pub dispensable: u8,
}

impl Column {
    /// A column of text.
    pub const fn text(title: &'static str, dispensable: u8) -> Column {
        Column { title, is_number: false, width_min: 0, dispensable }
    }

    /// A column of numbers.
    pub const fn number(title: &'static str, width_min: usize, dispensable: u8) -> Column {
        Column { title, is_number: true, width_min, dispensable }
    }
}

/// What stands in a place.
#[derive(Clone, Debug)]
pub struct Cell {
    /// The text.
    pub text: String,
    /// How it looks.
    pub style: Style,
}

impl Cell {
    /// Text in this style.
    pub fn new(text: impl Into<String>, style: Style) -> Cell {
        Cell { text: text.into(), style }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Cell {
        Cell::new(text, Style::new())
    }
}

/// The headings and the rows of a table, no wider than that. Every row has a cell for each column.
pub fn fit(
    columns: &[Column],
    rows: &[Vec<Cell>],
    width: usize,
    heading: Style,
) -> (Line<'static>, Vec<Line<'static>>) {
    let mut widths: Vec<usize> =
        columns.iter().map(|column| width_of(column.title).max(column.width_min)).collect();
    for row in rows {
        for (widest, cell) in widths.iter_mut().zip(row) {
            *widest = (*widest).max(width_of(&cell.text));
        }
    }
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    let taken = |shown: &[usize]| {
        shown.iter().map(|&index| widths[index]).sum::<usize>() + GAP * shown.len().saturating_sub(1)
    };
    while taken(&shown) > width {
        let worst = shown.iter().enumerate().max_by_key(|(_, index)| columns[**index].dispensable);
        match worst {
            Some((place, &index)) if columns[index].dispensable > 0 => _ = shown.remove(place),
            _ => break,
        }
    }
    let over = taken(&shown).saturating_sub(width);
    if let Some(&widest) = shown.iter().max_by_key(|index| widths[**index]) {
        widths[widest] = widths[widest].saturating_sub(over).max(1);
    }
    let line = |cells: &dyn Fn(usize) -> Cell| {
        let mut spans = Vec::with_capacity(2 * shown.len());
        for (place, &index) in shown.iter().enumerate() {
            let Cell { text, style } = cells(index);
            let text = shortened(&text, widths[index]);
            let pad = " ".repeat(widths[index].saturating_sub(width_of(&text)));
            let gap = if place + 1 < shown.len() { " ".repeat(GAP) } else { String::new() };
            if columns[index].is_number {
                spans.extend([Span::raw(pad), Span::styled(text, style), Span::raw(gap)]);
            } else {
                spans.extend([Span::styled(text, style), Span::raw(pad + &gap)]);
            }
        }
        Line::from(spans)
    };
    let head = line(&|index| Cell::new(columns[index].title, heading));
    (head, rows.iter().map(|row| line(&|index| row[index].clone())).collect())
}

/// Columns of the terminal that a text takes.
pub fn width_of(text: &str) -> usize {
    Span::raw(text).width()
}

/// A text no wider than that, with `…` where something is left out.
pub fn shortened(text: &str, width: usize) -> String {
    if width_of(text) <= width {
        return text.to_owned();
    }
    let mut short = String::new();
    for letter in text.chars() {
        let longer = format!("{short}{letter}");
        if width_of(&longer) + 1 > width {
            break;
        }
        short = longer;
    }
    if width > 0 {
        short.push('…');
    }
    short
}

/// A text as lines no wider than that, broken between words where that is possible.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        let longer = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
        if width_of(&longer) <= width {
            line = longer;
            continue;
        }
        if !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        }
        for letter in word.chars() {
            if width_of(&line) + width_of(letter.encode_utf8(&mut [0; 4])) > width && !line.is_empty() {
                lines.push(std::mem::take(&mut line));
            }
            line.push(letter);
        }
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 3] =
        [Column::text("NAME", 0), Column::number("SIZE", 0, 2), Column::text("STATE", 1)];

    fn shown(width: usize) -> Vec<String> {
        let cells = |words: [&str; 3]| words.map(|word| Cell::from(word.to_owned())).to_vec();
        let rows = [cells(["größe", "3 GiB", "ok"]), cells(["数据", "500 GiB", "bad"])];
        let (head, rows) = fit(&COLUMNS, &rows, width, Style::new());
        std::iter::once(head).chain(rows).map(|line| line.to_string()).collect()
    }

    #[test]
    fn a_table_fits() {
        assert_eq!(shown(80), ["NAME      SIZE  STATE", "größe    3 GiB  ok   ", "数据   500 GiB  bad  "]);
        assert_eq!(shown(21), shown(80));
        assert_eq!(shown(20), ["NAME   STATE", "größe  ok   ", "数据   bad  "]);
        assert_eq!(shown(11), ["NAME ", "größe", "数据 "]);
        assert_eq!(shown(4), ["NAME", "grö…", "数据"]);
        assert_eq!(shown(0).len(), 3);
    }

    #[test]
    fn texts_are_shortened_and_wrapped() {
        assert_eq!(shortened("abcdef", 6), "abcdef");
        assert_eq!(shortened("abcdef", 3), "ab…");
        assert_eq!(shortened("abcdef", 0), "");
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("/a/path/without/blanks", 8), ["/a/path/", "without/", "blanks"]);
        assert_eq!(wrapped("", 8), [""]);
        assert_eq!(wrapped("ab", 0), ["a", "b"]);
    }
}
