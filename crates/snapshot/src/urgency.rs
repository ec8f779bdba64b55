//! Whether somebody waits for what a thread reads: a store that has much to do does that first.

use std::cell::Cell;

thread_local! {
    static AHEAD: Cell<bool> = const { Cell::new(false) };
}

/// From now on nobody waits for what this thread reads.
pub fn read_ahead() {
    AHEAD.set(true);
}

/// Whether this thread reads ahead of who will need it.
#[must_use]
pub fn is_ahead() -> bool {
    AHEAD.get()
}
