//! Several file descriptors as one, for devices whose work comes from the host.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

/// Events taken from the kernel at a time.
const BATCH: usize = 16;

/// The descriptors of one device, in an epoll of their own.
///
/// A device's sockets come and go, but the I/O thread's loop is told of its subscribers' descriptors
/// once: so the loop watches this one, and the device keeps the others in it.
///
/// Every descriptor is watched edge-triggered, both ways: a change is told once. Whoever takes it
/// uses the descriptor until it says `EWOULDBLOCK`, or remembers that there is more.
///
/// Clones are the same set.
#[derive(Clone, Debug)]
pub struct Watch(Arc<OwnedFd>);

/// What became of a watched descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// As it was added.
    pub token: u64,
    /// There may be something to read: bytes, the end, or an error.
    pub readable: bool,
    /// There may be room to write, or an error.
    pub writable: bool,
    /// Both directions are over: the other end is closed.
    pub closed: bool,
}

impl Watch {
    /// An empty set.
    ///
    /// # Errors
    /// The host is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(epoll::create(CreateFlags::CLOEXEC)?)))
    }

    /// Watches `fd` until it is removed or closed. Its present state counts as a change.
    ///
    /// # Errors
    /// It is watched already, or of a kind that is always ready.
    pub fn add(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&*self.0, fd, EventData::new_u64(token), flags)?)
    }

    /// Watches `fd` no longer. It need not be watched.
    pub fn remove(&self, fd: impl AsFd) {
        // Fails only if it is not watched, which is what is wanted.
        let _ = epoll::delete(&*self.0, fd);
    }

    /// Calls `each` for every change since the last call. Collect them before acting on any: a
    /// descriptor that is removed meanwhile may still have a change behind it.
    pub fn take(&self, mut each: impl FnMut(Change)) {
        let mut events = [const { MaybeUninit::<Event>::uninit() }; BATCH];
        loop {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let taken = match epoll::wait(&*self.0, &mut events, Some(&now)) {
                Ok((taken, _)) => taken,
                Err(Errno::INTR) => continue,
                // It is our own epoll with room for events: nothing else can be wrong with it.
                Err(_) => return,
            };
            taken.iter().for_each(|event| each(Change::new(event)));
            // What stays behind would not be told again: the loop's own watch has its edge behind it.
            if taken.len() < BATCH {
                return;
            }
        }
    }
}

impl Change {
    fn new(event: &Event) -> Self {
        let flags = event.flags;
        let over = EventFlags::ERR | EventFlags::HUP | EventFlags::RDHUP;
        Self {
            token: event.data.u64(),
            readable: flags.intersects(EventFlags::IN | over),
            writable: flags.intersects(EventFlags::OUT | over),
            closed: flags.intersects(EventFlags::ERR | EventFlags::HUP),
        }
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn changes(watch: &Watch) -> Vec<Change> {
        let mut changes = Vec::new();
        watch.take(|change| changes.push(change));
        changes
    }

    #[test]
    fn a_change_is_told_once() {
        let watch = Watch::new().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        watch.add(&ours, 7).unwrap();
        let room = Change { token: 7, readable: false, writable: true, closed: false };
        assert_eq!(changes(&watch), [room]);
        assert_eq!(changes(&watch), []);
        theirs.write_all(b"x").unwrap();
        assert_eq!(changes(&watch).len(), 1);
        assert_eq!(changes(&watch), [], "though nobody has read it");
        theirs.write_all(b"x").unwrap();
        assert!(changes(&watch)[0].readable);
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let change = changes(&watch)[0];
        assert!(change.readable && !change.closed, "the end is something to read");
        drop(theirs);
        assert!(changes(&watch)[0].closed);
        watch.remove(&ours);
        watch.remove(&ours);
    }

    #[test]
    fn more_than_fit_are_told_too() {
        let watch = Watch::new().unwrap();
        let pairs: Vec<_> = (0..BATCH * 2 + 1).map(|_| UnixStream::pair().unwrap()).collect();
        for (token, (ours, _)) in (0..).zip(&pairs) {
            watch.add(ours, token).unwrap();
        }
        assert_eq!(changes(&watch).len(), pairs.len());
    }
}
