//! What `top` draws.

use std::iter;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Row as TableRow, Table, TableState};

use super::history::{History, Row};
use crate::list::{state, waiting};
use crate::text;

pub(super) const HEADS: [&str; COLUMNS] = [
    "NAME", "STATE", "ENGINE", "VCPUS", "MEMORY", "RESIDENT", "BALLOON", "WS 1s", "WS 10s",
    "WS 60s", "CPU%", "CACHE", "FREE", "IDLE", "EVICT/s", "ANON", "KERNEL", "SHARE",
];
const WIDTHS: [u16; COLUMNS] = [16, 7, 9, 5, 6, 8, 7, 6, 6, 6, 6, 6, 6, 6, 7, 6, 6, 6];
const COLUMNS: usize = 18;
/// These are always there, the others while they fit.
const COLUMNS_MIN: usize = 11;
/// Of the sparkline.
const SPARK_MIN: u16 = 8;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// One line of the table, without the sparkline.
pub(super) fn cells(row: &Row) -> [String; COLUMNS] {
    let (vm, uses) = (&row.latest, &row.latest.memory_use);
    let evictions = uses.evictions_per_second.map(|rate| format!("{rate:.1}"));
    [
        vm.name.clone(),
        state(vm).to_owned(),
        vm.engine.clone(),
        vm.vcpus.to_string(),
        text::bytes(vm.configured_bytes),
        text::bytes(vm.resident_bytes),
        text::bytes(vm.ballooned_bytes),
        text::bytes_or_dash(vm.working_set.window_1s_bytes),
        text::bytes_or_dash(vm.working_set.window_10s_bytes),
        text::bytes_or_dash(vm.working_set.window_60s_bytes),
        format!("{:.1}", row.cpu_percent),
        text::bytes_or_dash(uses.cache_bytes),
        text::bytes_or_dash(uses.free_bytes),
        text::bytes_or_dash(uses.idle_bytes),
        evictions.unwrap_or_else(|| "-".to_owned()),
        text::bytes_or_dash(uses.anonymous_bytes),
        text::bytes_or_dash(uses.kernel_bytes),
        text::bytes_or_dash(uses.shareable_bytes),
    ]
}

/// How many columns, from the first on, fit beside a sparkline.
fn columns_in(width: u16) -> usize {
    let mut left = width.saturating_sub(SPARK_MIN);
    let fitting = WIDTHS.iter().take_while(|&&column| {
        let fits = column < left;
        left = left.saturating_sub(column + 1);
        fits
    });
    fitting.count().max(COLUMNS_MIN)
}

pub(super) fn draw(frame: &mut Frame<'_>, history: &History, selected: &mut TableState) {
    let of_host = Constraint::Length(u16::from(history.host.is_some()));
    let one = Constraint::Length(1);
    let [head, host, body, foot] =
        Layout::vertical([one, of_host, Constraint::Min(0), one]).areas(frame.area());
    frame.render_widget(Line::from(summary(history)).bold(), head);
    frame.render_widget(Line::from(history.host.as_deref().unwrap_or_default()), host);
    if history.rows().len() == 0 {
        frame.render_widget(Line::from("No VM is running.").centered(), body);
    } else {
        let columns = columns_in(body.width);
        let left: u16 = WIDTHS[..columns].iter().map(|width| width + 1).sum();
        let spark_width = usize::from(body.width.saturating_sub(left));
        frame.render_stateful_widget(table(history, columns, spark_width), body, selected);
    }
    let keys = Line::from("q quit   ↑ ↓ move   Enter one VM").dim();
    let waiting = || history.rows().find_map(|row| waiting(&row.latest));
    let line = history.complaints.first().cloned().or_else(waiting);
    frame.render_widget(line.map_or(keys, |line| line.red().into()), foot);
}

fn summary(history: &History) -> String {
    let vms = || history.rows().map(|row| &row.latest);
    let sum = |part: fn(&api::VmStatus) -> u64| text::bytes(vms().map(part).sum());
    format!(
        "fathom  {} running   configured {}   resident {}   ballooned {}   working set 1s {}",
        vms().len(),
        sum(|vm| vm.configured_bytes),
        sum(|vm| vm.resident_bytes),
        sum(|vm| vm.ballooned_bytes),
        sum(|vm| vm.working_set.window_1s_bytes.unwrap_or(0)),
    )
}

fn table(history: &History, columns: usize, spark_width: usize) -> Table<'static> {
    let heads = HEADS
        .into_iter()
        .take(columns)
        .enumerate()
        .map(|(column, head)| cell(column, head.to_owned()));
    let heads = heads.chain(iter::once(Cell::from("WORKING SET 1s")));
    let rows = history.rows().map(|row| {
        let cells = cells(row)
            .into_iter()
            .take(columns)
            .enumerate()
            .map(|(column, text)| cell(column, text));
        let spark = Cell::from(sparkline(row, spark_width)).cyan();
        TableRow::new(cells.chain(iter::once(spark)))
    });
    let widths = WIDTHS.into_iter().take(columns).map(Constraint::Length);
    let widths = widths.chain(iter::once(Constraint::Min(0)));
    Table::new(rows, widths)
        .header(TableRow::new(heads).style(Style::new().reversed()))
        .row_highlight_style(Style::new().bold())
}

fn cell(column: usize, text: String) -> Cell<'static> {
    let line = Line::from(text);
    Cell::from(if column < 3 { line } else { line.right_aligned() })
}

/// The latest working sets that fit.
fn sparkline(row: &Row, width: usize) -> String {
    bars(row.working_sets.iter().copied(), width)
}

/// The latest figures that fit, as bars against the largest of them.
pub(super) fn bars(figures: impl ExactSizeIterator<Item = u64> + Clone, width: usize) -> String {
    let skipped = figures.len().saturating_sub(width);
    let largest = figures.clone().skip(skipped).max().unwrap_or(0).max(1);
    figures.skip(skipped).map(|figure| bar(figure, largest)).collect()
}

/// `bytes <= largest`, `largest > 0`.
fn bar(bytes: u64, largest: u64) -> char {
    let steps = BARS.len() as u128 - 1;
    let step = u128::from(bytes) * steps / u128::from(largest);
    BARS[step.min(steps) as usize]
}

#[cfg(test)]
mod tests {
    use api::{ClientError, MemoryUse, VmStatus, WorkingSet};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn look(name: &str, used: u64) -> Result<VmStatus, ClientError> {
        Ok(VmStatus {
            name: name.to_owned(),
            engine: "translate".to_owned(),
            vcpus: 2,
            configured_bytes: 256 << 20,
            resident_bytes: 100 << 20,
            guest_cpu_percent: 12.34,
            memory_use: MemoryUse { evictions_per_second: Some(12.5), ..MemoryUse::default() },
            working_set: WorkingSet { window_1s_bytes: Some(used), ..WorkingSet::default() },
            ..VmStatus::default()
        })
    }

    fn drawn(history: &History, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("terminal");
        let mut selected = TableState::default();
        terminal.draw(|frame| draw(frame, history, &mut selected)).expect("draw");
        terminal.backend().to_string()
    }

    #[test]
    fn every_vm_has_a_line_with_its_figures() {
        let mut history = History::default();
        for used in [7 << 20, 1 << 20, 14 << 20] {
            history.add(&[look("db", 30 << 20), look("web", used)]);
        }
        let screen = drawn(&history, 130, 6);
        assert!(screen.contains("2 running   configured 512M   resident 200M"), "{screen}");
        let web = screen.lines().find(|line| line.contains("web")).expect("web");
        for part in ["running", "translate", "256M", "100M", "14M", " - ", "12.3", "▄▁█"] {
            assert!(web.contains(part), "{part}: {web}");
        }
    }

    #[test]
    fn the_host_has_a_line_while_a_daemon_runs() {
        let mut history = History::default();
        history.add(&[look("web", 1)]);
        let without = drawn(&history, 130, 6);
        assert!(without.lines().nth(1).expect("heads").contains("NAME"), "{without}");
        history.host = Some("host  1G of 2G free".to_owned());
        let screen = drawn(&history, 130, 6);
        let line = |number| screen.lines().nth(number).expect("a line");
        assert!(line(1).contains("host  1G of 2G free") && line(2).contains("NAME"), "{screen}");
        assert!(line(3).contains("web"), "{screen}");
    }

    #[test]
    fn a_vm_that_waits_says_for_what() {
        let mut history = History::default();
        let mut waiting = look("db", 1).expect("a status");
        waiting.state = api::RunState::Paused;
        waiting.waits_for = Some("waits for its snapshot: /snapshots/db: gone".to_owned());
        history.add(&[look("web", 1), Ok(waiting)]);
        let screen = drawn(&history, 130, 6);
        assert!(screen.contains("db: waits for its snapshot: /snapshots/db: gone"), "{screen}");
        let db = screen.lines().find(|line| line.contains("db ")).expect("db");
        assert!(db.contains("waiting") && !db.contains("paused"), "{db}");
    }

    #[test]
    fn columns_come_while_they_fit() {
        assert_eq!((columns_in(0), columns_in(100), columns_in(400)), (11, 11, COLUMNS));
        let mut history = History::default();
        history.add(&[look("web", 1)]);
        let screen = drawn(&history, 160, 5);
        assert!(screen.contains("EVICT/s") && screen.contains("12.5"), "{screen}");
        assert!(!drawn(&history, 110, 5).contains("EVICT/s"));
    }

    #[test]
    fn any_size_can_be_drawn() {
        let mut history = History::default();
        assert!(drawn(&history, 80, 5).contains("No VM is running."));
        let silent = ClientError::Silent { name: "dead".to_owned(), seconds: 2 };
        history.add(&[
            look("web", 0),
            look("a-name-that-is-longer-than-its-column", u64::MAX),
            Err(silent),
        ]);
        assert!(drawn(&history, 100, 5).contains("`dead` did not answer"));
        for (width, height) in [(1, 1), (3, 2), (20, 3), (500, 100)] {
            drawn(&history, width, height);
        }
    }
}
