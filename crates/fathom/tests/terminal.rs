//! `fathom top` on a terminal: it shows, it leaves when told, and the terminal is as it was.

mod sandbox;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use sandbox::Sandbox;

/// Bounds a failure only: what is waited for comes in a moment.
const PATIENCE: Duration = Duration::from_secs(60);

/// Both sides of a pseudo-terminal.
struct Terminal {
    keyboard: File,
    side: OwnedFd,
    shown: Receiver<Vec<u8>>,
}

impl Terminal {
    fn new() -> Self {
        let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("terminal");
        grantpt(&main).and_then(|()| unlockpt(&main)).expect("grant");
        let name = ptsname(&main, Vec::new()).expect("name");
        let side = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("open");
        let size = Winsize { ws_row: 24, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&side, size).expect("size");
        let keyboard = File::from(main);
        let mut screen = keyboard.try_clone().expect("duplicate");
        let (sender, shown) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = screen.read(&mut bytes) {
                if sender.send(bytes[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { keyboard, side, shown }
    }

    fn run(&self, sandbox: &Sandbox, arguments: &[&str]) -> Child {
        let side = || Stdio::from(self.side.try_clone().expect("duplicate"));
        let mut command = sandbox.command(arguments);
        command.env("TERM", "xterm").stdin(side()).stdout(side()).stderr(side());
        command.spawn().expect("the program runs")
    }

    /// Returns when `text` was shown.
    fn wait_for(&self, text: &str) {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(text) {
            let seen_so_far = String::from_utf8_lossy(&seen).into_owned();
            seen.extend(self.shown.recv_timeout(PATIENCE).expect(&seen_so_far));
        }
    }

    fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.side).expect("settings").local_modes;
        modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
    }
}

/// Shows one VM, does `leave`, and looks at the terminal.
fn leave_top(leave: impl FnOnce(&mut Terminal, &Child)) -> ExitStatus {
    let sandbox = Sandbox::new();
    let (_vm, _server) = sandbox.fake_vm("web");
    let mut terminal = Terminal::new();
    assert!(terminal.is_cooked());
    let mut child = terminal.run(&sandbox, &["top"]);
    terminal.wait_for("translate");
    assert!(!terminal.is_cooked(), "keys come one by one");
    leave(&mut terminal, &child);
    let status = child.wait().expect("wait");
    assert!(terminal.is_cooked(), "the terminal is as it was");
    // The screen that was there before is shown again.
    terminal.wait_for("\x1b[?1049l");
    status
}

#[test]
fn q_leaves() {
    let status = leave_top(|terminal, _| terminal.keyboard.write_all(b"q").expect("type"));
    assert!(status.success());
}

#[test]
fn enter_shows_one_vm() {
    let status = leave_top(|terminal, _| {
        terminal.keyboard.write_all(b"\r").expect("type");
        // One word: what is the same as before, such as a space, is not drawn again.
        terminal.wait_for("anonymous");
        terminal.keyboard.write_all(b"\x1b").expect("type");
        terminal.wait_for("translate");
        terminal.keyboard.write_all(b"q").expect("type");
    });
    assert!(status.success());
}

#[test]
fn control_c_leaves() {
    let status = leave_top(|terminal, _| terminal.keyboard.write_all(b"\x03").expect("type"));
    assert!(status.success());
}

#[test]
fn signals_leave_in_order() {
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let status = leave_top(|_, child| {
            kill_process(Pid::from_child(child), signal).expect("kill");
        });
        assert!(status.success(), "{status}");
    }
}
