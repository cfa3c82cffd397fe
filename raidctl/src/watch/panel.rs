//! All about one array, as blocks of lines that can be scrolled: what it is, its sync action with a bar, what is wrong and what to
//! do, sparklines of the last minutes, its members.

use std::time::Duration;

use raidd::api::{Member, MemberState, Spare, SyncAction};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{RenderDirection, Sparkline, Widget};

use super::record::{Recorded, Series};
use super::table::{Cell, Column, fit, shortened, width_of, wrapped};
use super::theme::Theme;
use crate::activity::{MemberWork, p99_us, per_second, together};
use crate::quantity::{brief, duration, latency, size};
use crate::render::{clients, in_sync, level, pace, part, percent, printable, slots};

/// The picture of the slots is cut after that: an array may have 1920.
pub const SLOTS_WIDTH_MAX: usize = 18;
/// Columns for the name of a sparkline.
const LABEL_WIDTH: usize = 7;
/// Columns for its numbers, where there is room.
const NUMBERS_WIDTH: usize = 24;
/// A sparkline narrower than that shows nothing.
const SPARKLINE_WIDTH_MIN: usize = 16;

const MEMBER_COLUMNS: [Column; 10] = [
    Column::text("SLOT", 0),
    Column::text("STATE", 0),
    Column::text("DEVICE", 0),
    Column::number("READ/s", 6, 3),
    Column::number("WRITE/s", 7, 4),
    Column::number("MEAN", 8, 6),
    Column::number("P99", 8, 5),
    Column::number("IN FLIGHT", 0, 7),
    Column::number("ERRORS", 0, 1),
    Column::number("CORRECTED", 0, 8),
];

/// A part of a page.
pub enum Block {
    /// A line.
    Line(Line<'static>),
    /// What was measured of late.
    Chart(Chart),
}

/// A sparkline with its name and numbers.
pub struct Chart {
    label: &'static str,
    columns: Vec<Option<u64>>,
    numbers: String,
    /// Columns for the sparkline.
    width: usize,
    height: u16,
    style: Style,
}

impl Block {
    /// Lines that it takes.
    pub fn height(&self) -> usize {
        match self {
            Block::Line(_) => 1,
            Block::Chart(chart) => usize::from(chart.height),
        }
    }
}

impl Widget for &Block {
    fn render(self, area: Rect, buf: &mut Buffer) {
        match self {
            Block::Line(line) => line.render(area, buf),
            Block::Chart(chart) => chart.render(area, buf),
        }
    }
}

impl Widget for &Chart {
    fn render(self, area: Rect, buf: &mut Buffer) {
        let bottom = Rect { y: area.bottom().saturating_sub(1), height: area.height.min(1), ..area };
        Span::raw(self.label).render(bottom, buf);
        let columns = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
        let graph =
            Rect { x: area.x.saturating_add(columns(LABEL_WIDTH)), width: columns(self.width), ..area };
        // Newest on the right, next to the numbers.
        Sparkline::default()
            .data(self.columns.iter().copied())
            .direction(RenderDirection::RightToLeft)
            .absent_value_symbol(" ")
            .style(self.style)
            .render(graph.intersection(area), buf);
        let numbers = Rect { x: graph.right().saturating_add(1), ..bottom };
        Span::raw(self.numbers.as_str()).render(numbers.intersection(bottom), buf);
    }
}

/// How a page is to be laid out.
#[derive(Clone, Copy)]
pub struct Format {
    /// Columns that there are.
    pub width: usize,
    /// Lines of a sparkline.
    pub chart_height: u16,
    /// What a sparkline spans.
    pub span: Duration,
    /// How things look.
    pub theme: Theme,
}

/// All about an array.
pub fn of(array: &Recorded, format: Format) -> Vec<Block> {
    let status = &array.seen.status;
    let theme = format.theme;
    let mut page = Page { blocks: Vec::new(), format };
    page.line([
        Span::styled(printable(&status.name), theme.heading()),
        Span::raw(format!("  {}, {}", size(status.size_bytes), level(status))),
    ]);
    page.line([
        Span::raw(shortened(&slots(&status.members), SLOTS_WIDTH_MAX) + " "),
        Span::styled(status.health.as_str(), theme.of_health(status.health)),
        Span::raw(format!(", {}, {}, {}", in_sync(status), status.state, clients(status.connections))),
    ]);
    page.sync(array);
    for warning in &status.warnings {
        page.text("! ", &printable(warning), theme.warning());
    }
    for disk in &array.seen.disks {
        page.text("  ", &printable(disk), Style::new());
    }
    for place in status.device.iter().chain(&status.nbd_uri) {
        page.text("", &printable(place), theme.faint());
    }
    page.charts(array);
    page.members(array);
    page.blocks
}

struct Page {
    blocks: Vec<Block>,
    format: Format,
}

impl Page {
    fn line(&mut self, spans: impl IntoIterator<Item = Span<'static>>) {
        self.blocks.push(Block::Line(spans.into_iter().collect()));
    }

    /// A text over as many lines as it takes, with `mark` before the first and room for it before the others.
    fn text(&mut self, mark: &'static str, text: &str, style: Style) {
        let room = self.format.width.saturating_sub(width_of(mark));
        for (number, line) in wrapped(text, room).into_iter().enumerate() {
            let before = if number == 0 { mark.to_owned() } else { " ".repeat(width_of(mark)) };
            self.line([Span::styled(before + &line, style)]);
        }
    }

    fn sync(&mut self, array: &Recorded) {
        let status = &array.seen.status;
        let sync = &status.sync;
        if sync.action == SyncAction::Idle {
            if sync.mismatches > 0 {
                let text = format!("{} sectors did not agree in the last check", sync.mismatches);
                self.text("", &text, self.format.theme.warning());
            }
            return;
        }
        let (before, after) = (format!("{} ", sync.action), format!(" {}", percent(sync)));
        let room = self.format.width.saturating_sub(width_of(&before) + width_of(&after));
        let filled = usize::try_from(part(sync, room as u64)).unwrap_or(room);
        self.line([
            Span::styled(before, self.format.theme.heading()),
            Span::styled("█".repeat(filled), self.format.theme.graph()),
            Span::styled("░".repeat(room.saturating_sub(filled)), self.format.theme.faint()),
            Span::raw(after),
        ]);
        let paused = if status.sync_paused { ", paused" } else { "" };
        self.text("  ", &(pace(sync) + paused), Style::new());
    }

    fn charts(&mut self, array: &Recorded) {
        self.line([]);
        let span = match self.format.span.as_secs() {
            seconds if seconds >= 60 && seconds.is_multiple_of(60) => format!("{} min", seconds / 60),
            seconds => duration(seconds),
        };
        let title = format!("clients, in the last {span}");
        self.text("", &title, self.format.theme.faint());
        let now = array.clients;
        let speed = |bytes: u64| brief(bytes) + "/s";
        self.chart("read", &array.reads, now.map(|now| now.read_bytes_per_sec), &speed);
        self.chart("write", &array.writes, now.map(|now| now.written_bytes_per_sec), &speed);
        if array.seen.stats.is_some() {
            self.chart("p99", &array.latencies, now.and_then(|now| now.p99_us), &latency);
        }
    }

    fn chart(
        &mut self,
        label: &'static str,
        series: &Series,
        now: Option<u64>,
        told: &dyn Fn(u64) -> String,
    ) {
        let Format { width, chart_height, theme, .. } = self.format;
        let room = width.saturating_sub(LABEL_WIDTH + 1);
        let current = now.map_or_else(|| "-".to_owned(), told);
        let peak = series.peak().map(|peak| format!(", peak {}", told(peak))).unwrap_or_default();
        let wide = room.saturating_sub(NUMBERS_WIDTH);
        let (numbers, width) = if wide >= SPARKLINE_WIDTH_MIN {
            (current + &peak, wide)
        } else {
            (current, room.saturating_sub(NUMBERS_WIDTH / 3))
        };
        self.blocks.push(Block::Chart(Chart {
            label,
            columns: series.columns(width),
            numbers,
            width,
            height: chart_height,
            style: theme.graph(),
        }));
    }

    fn members(&mut self, array: &Recorded) {
        self.line([]);
        let theme = self.format.theme;
        let status = &array.seen.status;
        let members = status.members.iter().map(|member| of_member(array, member, theme));
        let spares = status.spares.iter().map(|spare| of_spare(array, spare, theme));
        let rows: Vec<_> = members.chain(spares).collect();
        let (head, rows) = fit(&MEMBER_COLUMNS, &rows, self.format.width, theme.heading());
        self.blocks.extend(std::iter::once(head).chain(rows).map(Block::Line));
    }
}

fn of_member(array: &Recorded, member: &Member, theme: Theme) -> Vec<Cell> {
    let errors = member.read_errors + member.write_errors;
    let style = if errors > 0 { theme.warning() } else { Style::new() };
    let mut row = beginning(array, Some(member.slot), member.path.as_deref(), member.state, theme);
    row.push(Cell::new(errors.to_string(), style));
    row.push(member.corrected_errors.to_string().into());
    row
}

fn of_spare(array: &Recorded, spare: &Spare, theme: Theme) -> Vec<Cell> {
    let mut row = beginning(array, None, spare.path.as_deref(), spare.state, theme);
    row.extend([Cell::from("-".to_owned()), Cell::from("-".to_owned())]);
    row
}

/// What members and spares have in common.
fn beginning(
    array: &Recorded,
    slot: Option<u16>,
    path: Option<&str>,
    state: MemberState,
    theme: Theme,
) -> Vec<Cell> {
    let none = || "-".to_owned();
    let is_it = |work: &&MemberWork| path.is_some() && work.path.as_deref() == path;
    let activity = array.activity.as_ref();
    let found = activity.and_then(|done| Some((done.over, &done.members.iter().find(is_it)?.work)));
    let told = |tell: &dyn Fn(Duration, &crate::activity::Work) -> Option<String>| {
        Cell::from(found.and_then(|(over, work)| tell(over, work)).unwrap_or_else(none))
    };
    let rate = |bytes: u64, over| Some(brief(per_second(bytes, over) as u64));
    vec![
        slot.map_or_else(none, |slot| slot.to_string()).into(),
        Cell::new(state.as_str(), theme.of_member(state)),
        path.map_or_else(none, printable).into(),
        told(&|over, work| rate(work.reads.bytes, over)),
        told(&|over, work| rate(work.writes.bytes, over)),
        told(&|_, work| together(&work.reads, &work.writes).mean_us().map(latency)),
        told(&|_, work| p99_us(&together(&work.reads, &work.writes)).map(latency)),
        told(&|_, work| Some(work.in_flight.to_string())),
    ]
}
