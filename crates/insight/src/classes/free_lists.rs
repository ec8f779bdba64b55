//! What the guest's kernel itself says is free, where it can be read.
//!
//! From outside, memory that a program let go of looks the same whether it is free or a file in memory keeps it, and what
//! the kernel let go of looks as it did. So where [`Kernel`] is found, its word decides about that, and about
//! nothing else; where it is not, nobody misses it. It is believed of frames that nothing has accessed since.

use memory::{Epoch, Frame, FrameFacts, ReadView};

use super::walker::last_entry;
use crate::kernel::{FreeFrames, Kernel};

/// Frames that are asked about together: no free block reaches from one such part into the next.
const PART: u32 = 1 << 15;
/// Parts asked about in one sweep: about 4 ms.
const PARTS: usize = 4;
/// Sweeps between two attempts to find the kernel, at most; each looks at all of memory.
const WAIT_MAX: u32 = 1024;

/// See the module. A bit a frame.
#[derive(Debug)]
pub(super) struct FreeLists {
    view: ReadView,
    kernel: Option<FreeFrames>,
    /// Sweeps before the next attempt, and between that and the one after it.
    wait: u32,
    wait_next: u32,
    parts: Vec<Part>,
    next: usize,
}

/// What was said of so many frames, and in which epoch.
#[derive(Clone, Debug)]
struct Part {
    asked: Epoch,
    free: Box<[u64]>,
}

impl FreeLists {
    pub(super) fn new(view: ReadView) -> Self {
        let parts = view.layout().frames().div_ceil(PART) as usize;
        let free = vec![0; PART.div_ceil(u64::BITS) as usize].into_boxed_slice();
        let part = Part { asked: Epoch::NEVER, free };
        Self { view, kernel: None, wait: 0, wait_next: 1, parts: vec![part; parts], next: 0 }
    }

    /// At the beginning of epoch `now`: asks about some frames. `entry` is the last of the roots in use, by which
    /// another kernel than the one that was found is known.
    pub(super) fn ask(&mut self, entry: Option<u64>, now: Epoch) {
        let Some(wanted) = entry else { return };
        if self.kernel.as_ref().is_none_or(|kernel| self.entry_of(kernel) != entry) {
            if self.kernel.take().is_some() {
                self.parts.iter_mut().for_each(|part| part.asked = Epoch::NEVER);
            }
            self.find(wanted);
        }
        let Some(kernel) = &self.kernel else { return };
        for _ in 0..PARTS.min(self.parts.len()) {
            let (first, parts) = (self.next as u32 * PART, self.parts.len());
            let part = &mut self.parts[self.next];
            self.next = (self.next + 1) % parts;
            part.asked = now;
            part.free.fill(0);
            for (n, free) in kernel.read(first..first.saturating_add(PART)).into_iter().enumerate()
            {
                part.free[n / 64] |= u64::from(free) << (n % 64);
            }
        }
    }

    /// The last entry of that kernel's own root.
    fn entry_of(&self, kernel: &FreeFrames) -> Option<u64> {
        last_entry(&self.view, self.view.layout().frame_of(kernel.root())?)
    }

    fn find(&mut self, entry: u64) {
        if self.wait > 0 {
            self.wait -= 1;
            return;
        }
        let found = Kernel::find(&self.view).and_then(|kernel| kernel.free_frames());
        self.kernel = found.ok().filter(|kernel| self.entry_of(kernel) == Some(entry));
        self.wait = self.wait_next;
        self.wait_next = if self.kernel.is_some() { 1 } else { (self.wait * 2).min(WAIT_MAX) };
    }

    /// Whether `frame` was in a list of free ones, and nothing has accessed it since.
    pub(super) fn has(&self, frame: Frame, facts: &FrameFacts) -> bool {
        let Some(part) = self.parts.get(frame.index() / PART as usize) else { return false };
        let n = frame.index() % PART as usize;
        // In the epoch in which it was asked, an access may have been before that or after it.
        facts.accessed < part.asked && part.free[n / 64] >> (n % 64) & 1 != 0
    }
}

#[cfg(test)]
mod tests {
    use memory::FrameState;

    use super::*;
    use crate::kernel::testing::{Like, PageWords, SmallGuest};

    #[test]
    fn the_kernels_word_is_believed_until_somebody_uses_the_frame() {
        let guest = SmallGuest::new(Like::Linux6_1);
        let buddy = PageWords { page_type: !0x80, private: 4, refcount: 0, ..PageWords::default() };
        guest.page(320, &buddy);
        let kernel = Kernel::find(&guest.view()).expect("a kernel");
        let mut lists = FreeLists::new(guest.view());
        let entry = lists.entry_of(&kernel.free_frames().expect("its free frames"));
        let facts = |accessed| FrameFacts {
            state: FrameState::Resident,
            code: false,
            pins: 0,
            accessed: Epoch(accessed),
            written: Epoch(1),
        };
        assert!(!lists.has(Frame(335), &facts(1)));
        lists.ask(None, Epoch(5));
        assert!(!lists.has(Frame(335), &facts(1)));
        lists.ask(entry, Epoch(5));
        assert!(lists.has(Frame(320), &facts(4)) && lists.has(Frame(335), &facts(1)));
        assert!(!lists.has(Frame(336), &facts(1)) && !lists.has(Frame(335), &facts(5)));
        assert!(!lists.has(Frame(u32::MAX), &facts(1)));
        // It is taken.
        guest.page(320, &PageWords::default());
        lists.ask(entry, Epoch(6));
        assert!(!lists.has(Frame(320), &facts(4)));
        // Another kernel runs: what this one says is nothing.
        guest.page(320, &buddy);
        lists.ask(entry, Epoch(7));
        assert!(lists.has(Frame(320), &facts(4)));
        lists.ask(entry.map(|entry| entry ^ 0x1000), Epoch(8));
        assert!(!lists.has(Frame(320), &facts(4)));
    }

    #[test]
    fn a_kernel_that_is_not_found_is_looked_for_less_and_less_often() {
        let guest = SmallGuest::new(Like::Linux6_1);
        let mut lists = FreeLists::new(guest.view());
        for epoch in 0..100 {
            lists.ask(Some(77), Epoch(epoch));
        }
        assert!(lists.kernel.is_none() && lists.wait_next > 1);
    }
}
