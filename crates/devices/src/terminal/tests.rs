use std::os::fd::OwnedFd;
use std::sync::Arc;

use event_manager::{EventManager, SubscriberOps};
use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use super::*;
use crate::Notifier;

/// A pseudo-terminal: the side that a program sees, and the side that keeps it alive.
fn pty() -> (OwnedFd, OwnedFd) {
    let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&main).unwrap();
    unlockpt(&main).unwrap();
    let name = ptsname(&main, Vec::new()).unwrap();
    let side = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    (side, main)
}

fn is_raw(terminal: &OwnedFd) -> bool {
    let modes = tcgetattr(terminal).unwrap().local_modes;
    !modes.intersects(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
}

/// One test, because [`restore`] acts on every terminal of the process.
#[test]
fn a_terminal_is_restored_on_every_path() {
    let (side, _main) = pty();
    assert!(!is_raw(&side));
    let terminal = Terminal::raw(&side).unwrap().unwrap();
    assert!(is_raw(&side));
    drop(terminal);
    assert!(!is_raw(&side), "drop restores");

    let moved = side.try_clone().unwrap();
    let panicked = std::thread::spawn(move || {
        let _terminal = Terminal::raw(&moved).unwrap().unwrap();
        assert!(is_raw(&moved));
        std::panic::resume_unwind(Box::new("the VMM panics"));
    });
    assert!(panicked.join().is_err());
    assert!(!is_raw(&side), "a panic restores");

    let first = Terminal::raw(&side).unwrap();
    let second = Terminal::raw(&side).unwrap();
    restore();
    assert!(!is_raw(&side), "restoring by hand restores the settings from before both");
    restore();
    drop((first, second));
    assert!(!is_raw(&side));
}

#[test]
fn a_file_is_not_a_terminal() {
    let file = tempfile::tempfile().unwrap();
    assert!(Terminal::raw(&file).unwrap().is_none());
}

#[test]
fn a_signal_becomes_an_event() {
    let stopped = Notifier::new().unwrap();
    let signal = stopped.clone();
    let mut manager = EventManager::new().unwrap();
    let signals = ExitSignals::new(move || signal.signal()).unwrap();
    manager.add_subscriber(Arc::new(signals));
    assert_eq!(manager.run_with_timeout(0).unwrap(), 0);
    signal_hook::low_level::raise(signal_hook::consts::SIGHUP).unwrap();
    manager.run_with_timeout(1000).unwrap();
    assert!(stopped.take());
}
