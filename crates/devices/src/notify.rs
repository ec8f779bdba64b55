//! Eventfd notifications.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Wakes the thread that serves a queue or a device.
///
/// Signals merge: one wake-up may stand for many signals, so the receiver must look for all the
/// work there is. It is an eventfd so that KVM can signal it in the kernel (ioeventfd) and the I/O
/// thread can wait for it with epoll.
#[derive(Clone, Debug)]
pub struct Notifier(Arc<EventFd>);

impl Notifier {
    /// A notifier that nobody has signalled.
    ///
    /// # Errors
    /// The host is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?)))
    }

    /// Wakes the receiver. Any thread.
    pub fn signal(&self) {
        // The only failure is a full counter (EAGAIN), and a full counter already wakes.
        let _ = self.0.write(1);
    }

    /// Takes the pending signal; false if there was none.
    pub fn take(&self) -> bool {
        self.0.read().is_ok()
    }

    /// The eventfd itself, for KVM's ioeventfd.
    pub fn event_fd(&self) -> &EventFd {
        &self.0
    }
}

impl AsRawFd for Notifier {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_merge_and_are_taken_once() {
        let notifier = Notifier::new().unwrap();
        assert!(!notifier.take());
        let same = notifier.clone();
        same.signal();
        same.signal();
        assert!(notifier.take());
        assert!(!notifier.take());
    }
}
