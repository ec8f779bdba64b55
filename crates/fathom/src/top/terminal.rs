//! The terminal while `top` has it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use api::{ClientError, SocketDirectory, VmStatus};
use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::DefaultTerminal;
use ratatui::widgets::TableState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::history::History;
use super::screen;
use crate::failure::Failure;
use crate::list::watch_all;

/// How long a key, a signal or an answer may wait.
const TICK: Duration = Duration::from_millis(100);

type Answers = Result<Vec<Result<VmStatus, ClientError>>, Failure>;

/// Until the user leaves, or a signal comes. The terminal is restored in either case, and by a panic.
pub(super) fn run(directory: SocketDirectory, interval: Duration) -> Result<(), Failure> {
    let leaving = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&leaving)).map_err(Failure::host)?;
    }
    let answers = ask_regularly(directory, interval).map_err(Failure::host)?;
    // This also arranges for a panic to restore the terminal before it prints.
    let mut terminal = ratatui::try_init()
        .map_err(|error| Failure::Host(format!("terminal: {error}: use --once")))?;
    let result = show(&mut terminal, &answers, &leaving);
    ratatui::restore();
    result
}

/// On a thread of its own, so that a VM that does not answer never makes the screen wait.
fn ask_regularly(directory: SocketDirectory, interval: Duration) -> io::Result<Receiver<Answers>> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().name("ask".to_owned()).spawn(move || {
        loop {
            let next = Instant::now() + interval;
            let answers = watch_all(&directory);
            let failed = answers.is_err();
            if sender.send(answers).is_err() || failed {
                return;
            }
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    })?;
    Ok(receiver)
}

fn show(
    terminal: &mut DefaultTerminal,
    answers: &Receiver<Answers>,
    leaving: &AtomicBool,
) -> Result<(), Failure> {
    let failure = |error: io::Error| Failure::Host(format!("terminal: {error}"));
    let mut history = History::default();
    let mut selected = TableState::default();
    while !leaving.load(Ordering::Relaxed) {
        for answers in answers.try_iter() {
            history.add(&answers?);
        }
        terminal.draw(|frame| screen::draw(frame, &history, &mut selected)).map_err(failure)?;
        if event::poll(TICK).map_err(failure)? {
            let event = event::read().map_err(failure)?;
            if let Event::Key(key) = event
                && pressed(key, &mut selected)
            {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// True: the user leaves.
fn pressed(key: KeyEvent, selected: &mut TableState) -> bool {
    if key.kind == KeyEventKind::Release {
        return false;
    }
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return true,
        KeyCode::Char('c') => return key.modifiers.contains(KeyModifiers::CONTROL),
        KeyCode::Up | KeyCode::Char('k') => selected.select_previous(),
        KeyCode::Down | KeyCode::Char('j') => selected.select_next(),
        _ => {}
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_leave_or_move() {
        let mut selected = TableState::default();
        let mut press = |code, modifiers| pressed(KeyEvent::new(code, modifiers), &mut selected);
        assert!(press(KeyCode::Char('q'), KeyModifiers::NONE));
        assert!(press(KeyCode::Esc, KeyModifiers::NONE));
        assert!(press(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert!(!press(KeyCode::Char('c'), KeyModifiers::NONE));
        assert!(!press(KeyCode::Down, KeyModifiers::NONE));
        assert_eq!(selected.selected(), Some(0));
    }
}
