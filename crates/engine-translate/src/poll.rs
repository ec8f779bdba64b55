//! How long a halted vCPU looks out for its wake-up before its thread sleeps.
//!
//! A thread that sleeps and is woken costs the waker a system call, and the vCPU some tens of microseconds, more
//! where the host is a guest itself: vCPUs that wait for each other or for a disk would do little else. So a vCPU
//! that was woken soon the last times looks for the next wake-up itself, and one that was not sleeps at once: an
//! idle guest takes no time of the host's.
//!
//! Where more threads want to run than there are processors, whoever looks out takes what another needs to get
//! there, and its own turn is over when it comes: there it is left for a while.

use std::time::Duration;

use crate::clock;

/// The first window, as long as it takes to wake a thread.
const START: Duration = Duration::from_micros(10);
/// A wake-up that comes later is not worth the wait: whoever waits this long may as well sleep.
const LONGEST: Duration = Duration::from_micros(200);
/// Who finds so much time gone between two looks has been without a processor.
const GAP: Duration = Duration::from_micros(50);
/// Waits to sleep through after that.
const REST: u32 = 200;

/// The window of one vCPU, which grows with each wake-up that comes within reach, and shrinks with each that does
/// not.
#[derive(Debug)]
pub(crate) struct Poll {
    window: u64,
    /// Waits to come that are slept through.
    rest: u32,
    start: u64,
    longest: u64,
}

/// More TSC ticks between two looks mean that others had the processor.
pub(crate) fn gap() -> u64 {
    clock::duration_to_ticks(GAP)
}

impl Poll {
    pub(crate) fn new() -> Self {
        Self::of(clock::duration_to_ticks(START), clock::duration_to_ticks(LONGEST))
    }

    fn of(start: u64, longest: u64) -> Self {
        Self { window: 0, rest: 0, start, longest }
    }

    /// TSC ticks to look out for before sleeping.
    pub(crate) fn window(&self) -> u64 {
        self.window
    }

    /// A wait took `ticks`, with the sleep if there was one; it was `disturbed` where others had the processor
    /// meanwhile.
    pub(crate) fn learn(&mut self, ticks: u64, disturbed: bool) {
        if disturbed {
            (self.window, self.rest) = (0, REST);
        } else if self.rest != 0 {
            self.rest -= 1;
        } else if ticks > self.longest {
            let shorter = self.window / 2;
            self.window = if shorter < self.start { 0 } else { shorter };
        } else if ticks > self.window {
            self.window = (self.window * 2).clamp(self.start, self.longest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The windows after each of `waits`.
    fn windows<const N: usize>(poll: &mut Poll, waits: [u64; N]) -> [u64; N] {
        waits.map(|wait| {
            poll.learn(wait, false);
            poll.window()
        })
    }

    #[test]
    fn it_grows_until_wake_ups_fall_into_it_and_no_further() {
        let mut poll = Poll::of(10, 200);
        assert_eq!(windows(&mut poll, [30, 30, 30, 30, 25]), [10, 20, 40, 40, 40]);
        assert_eq!(windows(&mut poll, [199, 199, 199, 199]), [80, 160, 200, 200]);
    }

    #[test]
    fn who_waits_long_ends_up_sleeping_at_once() {
        let mut poll = Poll::of(10, 200);
        windows(&mut poll, [30, 30, 30]);
        assert_eq!(windows(&mut poll, [5000, 5000, 5000, 5000]), [20, 10, 0, 0]);
        assert_eq!(windows(&mut poll, [201; 3]), [0; 3], "out of reach");
    }

    #[test]
    fn where_others_want_the_processor_it_is_left_for_a_while() {
        let mut poll = Poll::of(10, 200);
        windows(&mut poll, [30, 30, 30]);
        poll.learn(30, true);
        for _ in 0..REST {
            assert_eq!(poll.window(), 0);
            poll.learn(30, false);
        }
        assert_eq!(windows(&mut poll, [30, 30]), [10, 20]);
    }
}
