//! One VM by itself: what its memory was over time, how long it has been idle, its miss-ratio curve.

use api::{ClientError, FrameClass, HistoryPoint, IDLE_SECONDS, Picture};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Stylize;
use ratatui::text::{Line, Text};

use super::screen::bars;
use crate::curve::{plot, what};
use crate::explain::title;
use crate::text;

/// Of a part's name and its bytes.
const PART_WIDTH: usize = 22;
/// Of an idle age and its bytes.
const AGE_WIDTH: usize = 22;

pub(super) fn draw(
    frame: &mut Frame<'_>,
    name: &str,
    picture: Option<&Result<Picture, ClientError>>,
) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)])
            .areas(frame.area());
    let picture = match picture {
        Some(Ok(picture)) => Some(picture),
        Some(Err(error)) => {
            frame.render_widget(Line::from(error.to_string()).red(), body);
            None
        }
        None => None,
    };
    frame.render_widget(Line::from(summary(name, picture)).bold(), head);
    if let Some(picture) = picture {
        draw_picture(frame, body, picture);
    }
    frame.render_widget(Line::from("q quit   Esc all VMs").dim(), foot);
}

fn summary(name: &str, picture: Option<&Picture>) -> String {
    let Some(picture) = picture else { return format!("{name}  asking...") };
    let windows = picture.working_set;
    let cache = picture.cache.unwrap_or_default();
    format!(
        "{name}   memory {}   resident {}   working set 1s {}   inserts {:.1}/s   evictions {:.1}/s",
        text::bytes(picture.memory_bytes),
        text::bytes(picture.resident_bytes()),
        text::bytes_or_dash(windows.map(|windows| windows.window_1s_bytes)),
        cache.inserts_per_second,
        cache.evictions_per_second,
    )
}

fn draw_picture(frame: &mut Frame<'_>, area: Rect, picture: &Picture) {
    let lists = (picture.parts.len().max(IDLE_SECONDS.len() + 2) + 2) as u16;
    let [top, bottom] =
        Layout::vertical([Constraint::Length(lists), Constraint::Min(0)]).areas(area);
    let [left, right] =
        Layout::horizontal([Constraint::Percentage(60), Constraint::Percentage(40)]).areas(top);
    frame.render_widget(Text::from(parts(picture, left.width.into())), left);
    frame.render_widget(Text::from(ages(picture, right.width.into())), right);
    let mut lines = vec![Line::from(what(&picture.curve)).bold()];
    let plot = plot::lines(
        &picture.curve,
        bottom.width.into(),
        usize::from(bottom.height).saturating_sub(1),
    );
    let unknown = plot.is_empty().then(|| Line::from("nothing is known yet").dim());
    lines.extend(plot.into_iter().map(Line::from));
    lines.extend(unknown);
    frame.render_widget(Text::from(lines), bottom);
}

/// A line a part: how much, and how much there was.
fn parts(picture: &Picture, width: usize) -> Vec<Line<'static>> {
    let mut lines = vec![Line::from("Memory, and over time").bold()];
    for part in FrameClass::ALL.into_iter().filter(|part| picture.part(*part).bytes > 0) {
        let bytes = text::bytes(picture.part(part).bytes);
        let past =
            picture.history.iter().map(|point: &HistoryPoint| point.parts.get(&part).copied());
        let past: Vec<u64> = past.map(Option::unwrap_or_default).collect();
        let bars = bars(past.into_iter(), width.saturating_sub(PART_WIDTH + 1));
        lines.push(Line::from(vec![format!("{:<14}{bytes:>8} ", title(part)).into(), bars.cyan()]));
    }
    lines
}

/// Resident memory by how long ago it was accessed.
fn ages(picture: &Picture, width: usize) -> Vec<Line<'static>> {
    let mut lines = vec![Line::from("Idle for at most").bold()];
    let names = IDLE_SECONDS.iter().map(|&seconds| text::duration(seconds as f64));
    let names = names.chain(["longer".to_owned(), "not known".to_owned()]);
    let by_age = picture.by_idle_age();
    let figures: Vec<u64> = by_age.into_iter().chain([picture.age_unknown_bytes()]).collect();
    let largest = figures.iter().copied().max().unwrap_or(0).max(1);
    let room = width.saturating_sub(AGE_WIDTH) as f64;
    for (name, bytes) in names.zip(figures) {
        let bar = "█".repeat((bytes as f64 / largest as f64 * room) as usize);
        let head = format!("{name:>9} {:>8} ", text::bytes(bytes));
        lines.push(Line::from(vec![head.into(), bar.cyan()]));
    }
    lines
}

#[cfg(test)]
mod tests {
    use api::VmControl;
    use api::testing::FakeVm;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn drawn(picture: Option<&Result<Picture, ClientError>>, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("terminal");
        terminal.draw(|frame| draw(frame, "web", picture)).expect("draw");
        terminal.backend().to_string()
    }

    fn picture() -> Picture {
        let vm = FakeVm::new("web");
        vm.watch().expect("watch");
        vm.memory().expect("memory")
    }

    #[test]
    fn all_of_a_vm_is_on_one_screen() {
        let screen = drawn(Some(&Ok(picture())), 100, 40);
        for part in [
            "web   memory 256M   resident 100M   working set 1s 30M",
            "evictions 12.5/s",
            "file cache         40M ▁▁",
            "page tables         2M ",
            "2m00s      30M █",
            "longer        0",
            "which part of today's misses",
            "1.00 |",
            "Esc all VMs",
        ] {
            assert!(screen.contains(part), "{part}\n{screen}");
        }
    }

    #[test]
    fn any_size_can_be_drawn_with_or_without_figures() {
        let gone = Err(ClientError::Gone { name: "web".to_owned() });
        assert!(drawn(Some(&gone), 80, 10).contains("ended before it answered"));
        let known = Ok(picture());
        for (width, height) in [(1, 1), (3, 2), (20, 3), (40, 20), (300, 100)] {
            for picture in [None, Some(&gone), Some(&known), Some(&Ok(Picture::default()))] {
                drawn(picture, width, height);
            }
        }
    }
}
