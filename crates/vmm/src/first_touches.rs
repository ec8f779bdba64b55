//! In which order a guest first touches its frames.

use std::time::Duration;

use memory::{Epoch, Frame, GuestMemory};

/// Between two looks, at first. It doubles until [`SLOWEST`]: the order matters most where it is fastest.
const FASTEST: Duration = Duration::from_millis(5);
const SLOWEST: Duration = Duration::from_millis(320);

/// Frames that were touched from some epoch on. Those of one look are in the order of their numbers.
pub(crate) struct FirstTouches<'a> {
    memory: &'a GuestMemory,
    since: Epoch,
    unseen: Vec<Frame>,
    seen: Vec<Frame>,
}

impl<'a> FirstTouches<'a> {
    /// Of `frames`.
    pub(crate) fn of(
        memory: &'a GuestMemory,
        frames: impl Iterator<Item = Frame>,
        since: Epoch,
    ) -> Self {
        Self { memory, since, unseen: frames.collect(), seen: Vec::new() }
    }

    /// Notes what was touched since the look before. Frames that came ahead of the guest do not count.
    pub(crate) fn look(&mut self) {
        self.memory.catch_up();
        let (memory, since, seen) = (self.memory, self.since, &mut self.seen);
        self.unseen.retain(|&frame| {
            let touched = memory.facts(frame).is_some_and(|facts| facts.accessed >= since);
            if touched {
                seen.push(frame);
            }
            !touched
        });
    }

    /// In their order.
    pub(crate) fn seen(self) -> Vec<Frame> {
        self.seen
    }
}

/// How long to wait before each look.
pub(crate) fn pauses() -> impl Iterator<Item = Duration> {
    std::iter::successors(Some(FASTEST), |pause| Some((*pause * 2).min(SLOWEST)))
}

#[cfg(test)]
mod tests {
    use memory::{Access, FRAME_SIZE};

    use super::*;

    #[test]
    fn frames_come_in_the_order_of_their_first_touch() {
        let memory = GuestMemory::with_bytes(64 * FRAME_SIZE as u64).expect("memory");
        let touch = |frames: &[u32]| {
            for &frame in frames {
                memory.resolve(Frame(frame), Access::Read).expect("a page");
            }
        };
        touch(&[60]);
        let since = memory.advance_epoch();
        let mut touches = FirstTouches::of(&memory, (0..62).map(Frame), since);
        touch(&[40, 30]);
        touches.look();
        touch(&[30, 2, 63]);
        touches.look();
        touches.look();
        assert_eq!(touches.seen(), [30, 40, 2].map(Frame), "60 before, 63 not asked for");
    }

    #[test]
    fn looks_become_rare() {
        let pauses: Vec<u128> = pauses().take(9).map(|pause| pause.as_millis()).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 320, 320]);
    }
}
