//! The whole picture: a line about the daemon, what is wrong with it, the page, and which keys there are.
//!
//! Invariants:
//! - Whatever the size of the terminal, what is wrong with the daemon comes first, and nothing is drawn outside.
//! - Nothing is asked and nothing is awaited here; the same record makes the same picture.

use std::time::Instant;

use raidd::api::Health;
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::Line;
use ratatui::widgets::Widget;

use super::panel::{self, Block, Format, SLOTS_WIDTH_MAX};
use super::record::{Record, Recorded};
use super::table::{Cell, Column, fit, shortened, width_of, wrapped};
use super::theme::Theme;
use super::view::{Page, View};
use crate::quantity::{brief, duration, latency, moment, size};
use crate::render::{printable, progress_in_short, slots};

/// Lines for what is wrong with the daemon; how old the rest is stands in one more.
const TROUBLE_LINES_MAX: usize = 4;
/// A page as high as that has sparklines of two lines.
const HIGH: u16 = 30;
/// Lines that are enough for a part of an array below the list.
const PANEL_LINES_MIN: u16 = 3;

const ARRAY_COLUMNS: [Column; 11] = [
    Column::text("  NAME", 0),
    Column::text("LEVEL", 8),
    Column::number("SIZE", 0, 6),
    Column::text("STATE", 9),
    Column::text("HEALTH", 0),
    Column::text("MEMBERS", 1),
    Column::text("SYNC", 2),
    Column::number("CLIENTS", 0, 7),
    Column::number("READ/s", 6, 3),
    Column::number("WRITE/s", 7, 4),
    Column::number("P99", 8, 5),
];

/// Draws all that is to be seen. `unix_now` is in seconds since 1970.
pub fn picture(
    frame: &mut Frame<'_>,
    record: &Record,
    view: &mut View,
    theme: Theme,
    now: Instant,
    unix_now: u64,
) {
    let mut sheet = Sheet { rest: frame.area(), buf: frame.buffer_mut() };
    let width = usize::from(sheet.rest.width);
    for line in trouble(record, now, width) {
        sheet.top(Line::styled(line, theme.bad()));
    }
    sheet.top(header(record, width, theme, unix_now));
    let keys = match (view.has_help(), view.page()) {
        (true, _) => all_keys(view),
        (false, Page::All) => "q: quit  Enter: only that  ?: keys".to_owned(),
        (false, Page::One) => "q: quit  ?: keys".to_owned(),
    };
    let keys = wrapped(&keys, width);
    let page = Rect { height: sheet.rest.height.saturating_sub(keys.len() as u16), ..sheet.rest };
    let mut body = Sheet { rest: page, buf: &mut *sheet.buf };
    let position = match (view.page(), record.arrays()) {
        (_, []) => {
            body.top(Line::raw("no arrays: raidctl create makes one, raidctl assemble starts one"));
            String::new()
        }
        (Page::All, _) => all(&mut body, record, view, theme),
        (Page::One, _) => one(&mut body, record, view, theme),
    };
    if record.age(now).is_some() {
        sheet.buf.set_style(page, theme.faint());
    }
    sheet.rest = Rect { y: page.bottom(), height: sheet.rest.height - page.height, ..sheet.rest };
    let last = keys.len().saturating_sub(1);
    for (number, keys) in keys.into_iter().enumerate() {
        let right = if number == last { position.as_str() } else { "" };
        sheet.top(both_ends(&keys, right, width).style(theme.faint()));
    }
}

/// What is still to be drawn on.
struct Sheet<'a> {
    rest: Rect,
    buf: &'a mut Buffer,
}

impl Sheet<'_> {
    /// The next line; where it was drawn, if there was room.
    fn top(&mut self, line: Line<'_>) -> Rect {
        let area = Rect { height: self.rest.height.min(1), ..self.rest };
        line.render(area, self.buf);
        self.rest.y += area.height;
        self.rest.height -= area.height;
        area
    }
}

/// Why there is nothing newer to be seen.
fn trouble(record: &Record, now: Instant, width: usize) -> Vec<String> {
    let Some(age) = record.age(now) else { return Vec::new() };
    let why = record.trouble().unwrap_or("raidd does not answer");
    let mut lines = wrapped(&printable(why), width);
    lines.truncate(TROUBLE_LINES_MAX);
    lines.push(shortened(&format!("what follows was seen {} ago", duration(age.as_secs())), width));
    lines
}

fn header(record: &Record, width: usize, theme: Theme, unix_now: u64) -> Line<'static> {
    let mut parts = Vec::new();
    parts.push(match record.daemon() {
        Some(daemon) => {
            let up = unix_now.saturating_sub(daemon.started_unix_ms / 1000);
            format!("raidd {}, up {}", printable(&daemon.version), duration(up))
        }
        None => "raidd".to_owned(),
    });
    let count = |health| record.arrays().iter().filter(|array| array.seen.status.health == health).count();
    parts.push(match record.arrays().len() {
        1 => "1 array".to_owned(),
        count => format!("{count} arrays"),
    });
    for health in [Health::Degraded, Health::Failed] {
        parts.extend((count(health) > 0).then(|| format!("{} {health}", count(health))));
    }
    if !record.busy().is_empty() {
        let busy: Vec<_> = record.busy().iter().map(|part| format!("{:.0}%", part * 100.0)).collect();
        parts.push(format!("reactors {} busy", busy.join(" ")));
    }
    both_ends(&parts.join(", "), &moment(unix_now), width).style(theme.heading())
}

/// A text on the left, and another on the right where there is room for both.
fn both_ends(left: &str, right: &str, width: usize) -> Line<'static> {
    let taken = width_of(left) + width_of(right);
    if right.is_empty() || taken + 2 > width {
        return Line::raw(shortened(left, width));
    }
    Line::raw(format!("{left}{}{right}", " ".repeat(width - taken)))
}

fn all_keys(view: &View) -> String {
    let pages = "q, Esc, Ctrl-C: quit  ?: fewer words  Ctrl-L: draw anew";
    match (view.page(), view.has_pages()) {
        (Page::All, _) => {
            format!("Up, Down, PgUp, PgDn, Home, End: choose an array  Enter, Tab: only that  {pages}")
        }
        (Page::One, true) => {
            format!("Up, Down, PgUp, PgDn, Home, End: scroll  Enter, Tab: all arrays  {pages}")
        }
        (Page::One, false) => format!("Up, Down, PgUp, PgDn, Home, End: scroll  {pages}"),
    }
}

/// The list of all arrays, and below it the chosen one.
fn all(sheet: &mut Sheet<'_>, record: &Record, view: &mut View, theme: Theme) -> String {
    let arrays = record.arrays();
    let chosen = view.chosen(&record.names());
    let rows: Vec<_> =
        arrays.iter().enumerate().map(|(index, array)| row(array, index == chosen, theme)).collect();
    let width = usize::from(sheet.rest.width);
    let (head, rows) = fit(&ARRAY_COLUMNS, &rows, width, theme.heading());
    sheet.top(head);
    let height = usize::from(sheet.rest.height);
    // At least a half is for the chosen one, unless that is too little to be of use.
    let half = if height > 2 * usize::from(PANEL_LINES_MIN) { height / 2 } else { height };
    let room = rows.len().min(half);
    let top = view.listed(rows.len(), room);
    for (index, line) in rows.into_iter().enumerate().skip(top).take(room) {
        let area = sheet.top(line);
        if index == chosen {
            sheet.buf.set_style(area, theme.inverse());
        }
    }
    if sheet.rest.height > PANEL_LINES_MIN {
        sheet.top(Line::styled("─".repeat(width), theme.faint()));
        let array = &arrays[chosen];
        blocks(sheet, &panel::of(array, format(record, sheet, theme)), 0);
    }
    if arrays.len() > room { format!("array {} of {}", chosen + 1, arrays.len()) } else { String::new() }
}

fn row(array: &Recorded, is_chosen: bool, theme: Theme) -> Vec<Cell> {
    let status = &array.seen.status;
    let marks = (if is_chosen { '>' } else { ' ' }, if status.warnings.is_empty() { ' ' } else { '!' });
    let none = || "-".to_owned();
    let rate = |bytes: Option<u64>| bytes.map_or_else(none, brief);
    let clients = array.clients;
    vec![
        format!("{}{}{}", marks.0, marks.1, printable(&status.name)).into(),
        printable(&status.level).into(),
        size(status.size_bytes).into(),
        status.state.to_string().into(),
        Cell::new(status.health.as_str(), theme.of_health(status.health)),
        shortened(&slots(&status.members), SLOTS_WIDTH_MAX).into(),
        progress_in_short(&status.sync).into(),
        status.connections.to_string().into(),
        rate(clients.map(|clients| clients.read_bytes_per_sec)).into(),
        rate(clients.map(|clients| clients.written_bytes_per_sec)).into(),
        clients.and_then(|clients| clients.p99_us).map_or_else(none, latency).into(),
    ]
}

/// The chosen array alone.
fn one(sheet: &mut Sheet<'_>, record: &Record, view: &mut View, theme: Theme) -> String {
    let names = record.names();
    let chosen = view.chosen(&names);
    if let Some(name) = view.missing(&names) {
        let text = format!("{} does not run, and is not known (any more, or yet)", printable(name));
        for line in wrapped(&text, usize::from(sheet.rest.width)) {
            sheet.top(Line::styled(line, theme.warning()));
        }
        return String::new();
    }
    let page = panel::of(&record.arrays()[chosen], format(record, sheet, theme));
    let lines = page.iter().map(Block::height).sum();
    let room = usize::from(sheet.rest.height);
    let top = view.scrolled(lines, room);
    blocks(sheet, &page, top);
    if lines > room { format!("lines {} to {} of {lines}", top + 1, top + room) } else { String::new() }
}

fn format(record: &Record, sheet: &Sheet<'_>, theme: Theme) -> Format {
    let chart_height = if sheet.rest.height >= HIGH { 2 } else { 1 };
    Format { width: usize::from(sheet.rest.width), chart_height, span: record.span(), theme }
}

/// Draws what fits of blocks, without their first `top` lines.
fn blocks(sheet: &mut Sheet<'_>, blocks: &[Block], top: usize) {
    let mut skip = top;
    for block in blocks {
        let height = block.height();
        if skip >= height {
            skip -= height;
            continue;
        }
        let whole = Rect::new(0, 0, sheet.rest.width, height as u16);
        let mut drawn = Buffer::empty(whole);
        block.render(whole, &mut drawn);
        for line in skip..height {
            let area = sheet.top(Line::default());
            if area.height == 0 {
                return;
            }
            for column in 0..area.width {
                sheet.buf[(area.x + column, area.y)] = drawn[(column, line as u16)].clone();
            }
        }
        skip = 0;
    }
}
