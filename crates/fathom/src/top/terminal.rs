//! The terminal while `top` has it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use api::{ClientError, Picture, SocketDirectory, VmStatus};
use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::DefaultTerminal;
use ratatui::widgets::TableState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::history::History;
use super::{detail, host_line, screen};
use crate::failure::Failure;
use crate::list::watch_all;

/// How long a key, a signal or an answer may wait.
const TICK: Duration = Duration::from_millis(100);

/// What is known of one VM, or why nothing is.
type Detail = Option<Result<Picture, ClientError>>;
type Answers = Result<(Vec<Result<VmStatus, ClientError>>, Detail, Option<String>), Failure>;

/// The VM that is shown by itself.
type Shown = Arc<Mutex<Option<String>>>;

/// Until the user leaves, or a signal comes. The terminal is restored in either case, and by a panic.
pub(super) fn run(directory: SocketDirectory, interval: Duration) -> Result<(), Failure> {
    let leaving = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&leaving)).map_err(Failure::host)?;
    }
    let shown = Shown::default();
    let of_thread = Arc::clone(&shown);
    let answers = ask_regularly(directory, interval, of_thread).map_err(Failure::host)?;
    // This also arranges for a panic to restore the terminal before it prints.
    let mut terminal = ratatui::try_init()
        .map_err(|error| Failure::Host(format!("terminal: {error}: use --once")))?;
    let result = show(&mut terminal, &answers, &leaving, &shown);
    ratatui::restore();
    result
}

/// On a thread of its own, so that a VM that does not answer never makes the screen wait.
fn ask_regularly(
    directory: SocketDirectory,
    interval: Duration,
    shown: Shown,
) -> io::Result<Receiver<Answers>> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().name("ask".to_owned()).spawn(move || {
        loop {
            let next = Instant::now() + interval;
            let name = lock(&shown).clone();
            let detail = name.as_ref().map(|name| directory.client(name).memory());
            let host = host_line::of(&directory);
            let answers = watch_all(&directory).map(|answers| (answers, detail, host));
            let failed = answers.is_err();
            if sender.send(answers).is_err() || failed {
                return;
            }
            // Another VM is asked at once.
            while Instant::now() < next && *lock(&shown) == name {
                thread::sleep(next.saturating_duration_since(Instant::now()).min(TICK));
            }
        }
    })?;
    Ok(receiver)
}

fn show(
    terminal: &mut DefaultTerminal,
    answers: &Receiver<Answers>,
    leaving: &AtomicBool,
    shown: &Shown,
) -> Result<(), Failure> {
    let failure = |error: io::Error| Failure::Host(format!("terminal: {error}"));
    let mut history = History::default();
    let mut selected = TableState::default();
    let mut picture: Detail = None;
    while !leaving.load(Ordering::Relaxed) {
        for answers in answers.try_iter() {
            let (answers, detail, host) = answers?;
            history.add(&answers);
            history.host = host;
            picture = detail.or(picture);
        }
        let name = lock(shown).clone();
        let draw = |frame: &mut ratatui::Frame<'_>| match &name {
            Some(name) => detail::draw(frame, name, picture.as_ref()),
            None => screen::draw(frame, &history, &mut selected),
        };
        terminal.draw(draw).map_err(failure)?;
        if event::poll(TICK).map_err(failure)? {
            let event = event::read().map_err(failure)?;
            let Event::Key(key) = event else { continue };
            match pressed(key, &mut selected, name.is_some()) {
                Wish::Leave => return Ok(()),
                Wish::Stay => {}
                Wish::All => *lock(shown) = None,
                Wish::One => {
                    // What is there is of the one before.
                    picture = None;
                    *lock(shown) =
                        history.name(selected.selected().unwrap_or(0)).map(str::to_owned);
                }
            }
        }
    }
    Ok(())
}

fn lock(shown: &Shown) -> std::sync::MutexGuard<'_, Option<String>> {
    shown.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the user wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wish {
    Stay,
    Leave,
    /// The selected VM by itself.
    One,
    /// All of them.
    All,
}

/// `detail`: one VM is shown by itself.
fn pressed(key: KeyEvent, selected: &mut TableState, detail: bool) -> Wish {
    if key.kind == KeyEventKind::Release {
        return Wish::Stay;
    }
    match key.code {
        KeyCode::Char('q') => return Wish::Leave,
        KeyCode::Esc | KeyCode::Backspace if detail => return Wish::All,
        KeyCode::Esc => return Wish::Leave,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Wish::Leave,
        KeyCode::Enter if !detail => return Wish::One,
        KeyCode::Up | KeyCode::Char('k') => selected.select_previous(),
        KeyCode::Down | KeyCode::Char('j') => selected.select_next(),
        _ => {}
    }
    Wish::Stay
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_leave_or_move() {
        let mut selected = TableState::default();
        let mut press =
            |code, detail| pressed(KeyEvent::new(code, KeyModifiers::NONE), &mut selected, detail);
        assert_eq!(press(KeyCode::Char('q'), false), Wish::Leave);
        assert_eq!(press(KeyCode::Char('q'), true), Wish::Leave);
        assert_eq!(press(KeyCode::Esc, false), Wish::Leave);
        assert_eq!(press(KeyCode::Esc, true), Wish::All);
        assert_eq!(press(KeyCode::Char('c'), false), Wish::Stay);
        assert_eq!(press(KeyCode::Enter, false), Wish::One);
        assert_eq!(press(KeyCode::Down, false), Wish::Stay);
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(pressed(interrupt, &mut selected, true), Wish::Leave);
        assert_eq!(selected.selected(), Some(0));
    }
}
