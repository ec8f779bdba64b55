//! Memory touched page by page, pass after pass, without a pause: what suffers most when an
//! engine must look up its translations anew.

use crate::report::emit;
use crate::sys::{Mapping, PAGE, clock};

/// Passes over so many MiB.
const PASSES: u64 = 2000;

pub(super) fn run(mib: u64) -> bool {
    let bytes = (mib.max(1) << 20) as usize;
    let Ok(memory) = Mapping::new(bytes, libc::PROT_READ | libc::PROT_WRITE) else {
        return false;
    };
    memory.small_pages_only();
    memory.touch_every_page(0);
    let start = clock(libc::CLOCK_MONOTONIC);
    (1..=PASSES).for_each(|pass| memory.touch_every_page(pass));
    let nanoseconds = (clock(libc::CLOCK_MONOTONIC) - start).max(1);
    let touches = PASSES * (bytes / PAGE) as u64;
    emit("sweep", &[("touches", touches.into()), ("nanoseconds", nanoseconds.into())]);
    true
}
