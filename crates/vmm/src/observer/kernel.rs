//! What the guest's kernel itself says of frames, where it is found: which are free, and who has one.
//!
//! What it gives up shows from outside when it is used again; by its own word it shows at once. Nothing rests on it.

use std::ops::Range;
use std::time::{Duration, Instant};

use insight::kernel::{FreeLists, Kernel, PageUser};
use memory::{Frame, ReadView};

/// From a look to the next one, at least so many times what it took.
const PER_LOOK: u32 = 100;
/// What the first one may take, and what each takes at least.
const LOOK: Duration = Duration::from_micros(100);
const LOOK_MIN: Duration = Duration::from_micros(10);
/// Between two attempts to find the kernel. Each looks at all of memory, and the next one waits half as long again.
const FIND: Duration = Duration::from_millis(100);
const FIND_MAX: Duration = Duration::from_secs(64);

/// See the module.
#[derive(Debug)]
pub(super) struct GuestKernel {
    view: ReadView,
    lists: Option<FreeLists>,
    next: Instant,
    /// A look, about.
    took: Duration,
    wait: Duration,
}

impl GuestKernel {
    pub(super) fn new(view: ReadView) -> Self {
        Self { view, lists: None, next: Instant::now() + FIND, took: LOOK, wait: FIND }
    }

    /// Who has `frame`, where the kernel says that.
    pub(super) fn user(&self, frame: Frame) -> Option<PageUser> {
        self.lists.as_ref()?.frames().user(frame)
    }

    /// Whether the kernel is known.
    pub(super) fn is_known(&self) -> bool {
        self.lists.is_some()
    }

    /// What is in its lists of free frames, if it is time to look; or looks for the kernel, where that is not known.
    pub(super) fn look(&mut self) -> Vec<Range<u32>> {
        let begun = Instant::now();
        if begun < self.next {
            return Vec::new();
        }
        let Some(lists) = &self.lists else {
            self.find(begun);
            return Vec::new();
        };
        let Ok(found) = lists.walk() else {
            // Another kernel runs.
            self.lists = None;
            return Vec::new();
        };
        // Who is interrupted looks slow, once.
        self.took = begun.elapsed().clamp(LOOK_MIN, self.took * 2);
        self.next = begun + self.took * PER_LOOK;
        found
    }

    fn find(&mut self, now: Instant) {
        self.lists = Kernel::find(&self.view).and_then(|kernel| kernel.free_lists()).ok();
        let known = self.lists.is_some();
        self.wait = if known { FIND } else { FIND_MAX.min(self.wait * 3 / 2) };
        self.next = if known { now } else { now + self.wait };
    }
}
