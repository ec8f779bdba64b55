//! Locking that outlives a panic elsewhere.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex` even when another thread panicked while holding it: every device keeps its
/// registers valid after each step, so the value is still good, and a guest must not be able to
/// turn one failed thread into a failed machine.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
