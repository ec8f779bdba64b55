//! The timer by which a host's side that vanished is looked for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// How often it is looked for.
const PERIOD: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
const NEVER: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// A timer that is off at first.
#[derive(Debug)]
pub(super) struct Retry(OwnedFd);

impl Retry {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// From now on it fires every second.
    pub(super) fn start(&self) {
        self.set(PERIOD);
    }

    pub(super) fn stop(&self) {
        self.set(NEVER);
    }

    fn set(&self, period: Timespec) {
        let setting = Itimerspec { it_interval: period, it_value: period };
        // A timer of our own with a good time: there is nothing to refuse.
        let _ = timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &setting);
    }
}

impl AsFd for Retry {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
