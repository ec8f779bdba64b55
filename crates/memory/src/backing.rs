//! From anonymous memory to a file, while the guest stands.

use std::ptr::NonNull;
use std::sync::{PoisonError, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use crate::guest_memory::GuestMemory;

/// How long a device may keep a frame pinned (for a read of a slow disk) before a move gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks whether a device has let go.
const PAUSE: Duration = Duration::from_micros(200);

/// Why memory could not be moved. It is as usable as before; another try may succeed.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// A device did not let go.
    #[error("move guest memory to a file: a device holds some of it for {} s", PATIENCE.as_secs())]
    Pinned,
    /// The engine watches the guest's writes to where memory is now.
    #[error("move guest memory to a file: it is being saved: try again when that is over")]
    Frozen,
    /// The host refused, most often for want of memory: it needs 2 MiB to spare.
    #[error("move guest memory to a file: {0}")]
    Host(#[from] std::io::Error),
}

impl GuestMemory {
    /// Whether RAM is private to one mapping: anonymous, or over an image. Then there is no other for devices, so an engine whose guests reach frames
    /// by themselves cannot tell their accesses from those of devices, nor wait for absent frames.
    pub fn is_anonymous(&self) -> bool {
        self.ram.is_anonymous()
    }

    /// Where such an engine lets its guest access RAM. Never changes.
    pub fn guest_base(&self) -> NonNull<u8> {
        self.ram.guest_base()
    }

    /// From now on nobody but the guest accesses RAM at [`GuestMemory::guest_base`]: for engines whose guests
    /// reach frames by themselves. Anonymous RAM comes to that when it moves to a file.
    ///
    /// # Errors
    /// The host has no address space for a second mapping.
    pub fn set_guest_apart(&self) -> std::io::Result<()> {
        Ok(self.ram.set_guest_apart()?)
    }

    /// Moves anonymous RAM to a file: accesses can be tracked and frames be absent from then on, and the
    /// host's pages are small. Devices wait for as long as copying takes, about half a second per GiB.
    ///
    /// No vCPU may run until it returns: what one writes meanwhile may be lost.
    ///
    /// # Errors
    /// See [`MoveError`]. A part may have moved, which makes no difference to anybody.
    pub fn move_to_file(&self) -> Result<(), MoveError> {
        let _no_discard = self.discarding.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_anonymous() {
            return Ok(());
        }
        if self.is_frozen() {
            return Err(MoveError::Frozen);
        }
        let observer = self.observer();
        // What the guest has touched by itself shows in its mapping, which is made anew.
        if let Some(observer) = &observer {
            observer.report();
        }
        let unpinned = self.wait_unpinned(PATIENCE).ok_or(MoveError::Pinned)?;
        self.ram.move_to_file()?;
        self.merging.forget();
        drop(unpinned);
        if let Some(observer) = observer {
            observer.moved_to_file();
        }
        Ok(())
    }

    /// Waits until no frame is pinned, and keeps it so while the guard lives; `None` after `patience`. A device may
    /// need a second pin before it drops its first one, so nothing is kept while this waits.
    pub(crate) fn wait_unpinned(&self, patience: Duration) -> Option<RwLockWriteGuard<'_, ()>> {
        let deadline = Instant::now() + patience;
        loop {
            let guard = self.pinning.write().unwrap_or_else(PoisonError::into_inner);
            if !self.table.any_pinned() {
                return Some(guard);
            }
            drop(guard);
            if Instant::now() >= deadline {
                return None;
            }
            thread::sleep(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::{Access, DeviceView, Discard, FRAME_SIZE, Frame, Gpa};

    fn anonymous() -> (Arc<GuestMemory>, DeviceView) {
        let memory = Arc::new(GuestMemory::anonymous(8 << 20).expect("memory"));
        let view = DeviceView::new(Arc::clone(&memory));
        (memory, view)
    }

    #[test]
    fn contents_move_and_the_guests_addresses_stay() {
        let (memory, view) = anonymous();
        view.write(Gpa(0x1ffff0), &[7; 32]).expect("written");
        let guest = memory.guest_base();
        assert_eq!(memory.backed_bytes().expect("a file"), 0);
        memory.move_to_file().expect("moved");
        assert!(!memory.is_anonymous());
        assert_eq!(memory.guest_base(), guest);
        // Two frames of the large pages that the host may have given.
        assert_eq!(memory.backed_bytes().expect("a file"), 2 * FRAME_SIZE as u64);
        let mut bytes = [0; 48];
        view.read(Gpa(0x1fffe8), &mut bytes).expect("read");
        assert_eq!(
            (&bytes[..8], &bytes[8..40], &bytes[40..]),
            (&[0; 8][..], &[7; 32][..], &[0; 8][..])
        );
        view.write(Gpa(0x30_0000), &[9]).expect("written");
        // SAFETY: inside the guest's mapping.
        assert_eq!(unsafe { guest.add(0x30_0000).read_volatile() }, 9);
        memory.move_to_file().expect("once is enough");
    }

    #[test]
    fn a_guest_set_apart_sees_the_same_bytes() {
        let memory = Arc::new(GuestMemory::with_bytes(8 << 20).expect("memory"));
        let view = DeviceView::new(Arc::clone(&memory));
        assert_eq!(memory.ram.at(0), memory.guest_base());
        memory.set_guest_apart().expect("address space");
        let others = memory.ram.at(0);
        memory.set_guest_apart().expect("once is enough");
        assert_eq!(memory.ram.at(0), others);
        assert_ne!(others, memory.guest_base());
        view.write(Gpa(0x3000), &[7; 8]).expect("written");
        let mut bytes = [0; 8];
        view.read(Gpa(0x3000), &mut bytes).expect("read");
        assert_eq!(bytes, [7; 8]);
        // SAFETY: inside the guest's mapping.
        assert_eq!(unsafe { memory.guest_base().add(0x3007).read_volatile() }, 7);
    }

    #[test]
    fn discarded_frames_read_as_zeros_before_and_after() {
        let (memory, view) = anonymous();
        let byte_after_discard = || {
            view.write(Gpa(0x5000), &[1; FRAME_SIZE]).expect("written");
            memory.discard([Frame(5)], Discard::Reported).expect("discarded");
            let mut byte = [2];
            view.read(Gpa(0x5fff), &mut byte).expect("read");
            byte[0]
        };
        assert_eq!(byte_after_discard(), 0);
        memory.move_to_file().expect("moved");
        assert_eq!(byte_after_discard(), 0);
    }

    /// Has seen the guest touch frame 7, and tells when asked.
    struct Engine(std::sync::Weak<GuestMemory>);

    impl crate::MappingObserver for Engine {
        fn revoke(&self, _: crate::Revocation<'_>) {}

        fn code_written(&self, _: Gpa, _: usize) {}

        fn report(&self) {
            let memory = self.0.upgrade().expect("in use");
            memory.note(Frame(7), Access::Read);
        }
    }

    #[test]
    fn what_the_guest_touched_by_itself_is_told_before_its_entries_go() {
        let (memory, _) = anonymous();
        memory.set_observer(Arc::new(Engine(Arc::downgrade(&memory))));
        assert_eq!(memory.counts().resident, 0);
        memory.move_to_file().expect("moved");
        assert_eq!(memory.counts().resident, 1);
    }

    /// Writes of devices while it moves are neither lost nor seen late.
    #[test]
    fn devices_go_on() {
        let (memory, view) = anonymous();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for device in 0..2 {
                let (view, stop) = (&view, &stop);
                scope.spawn(move || {
                    let mut round = 0u64;
                    while !stop.load(Ordering::Relaxed) {
                        let gpa = Gpa((device * 700 + round % 600) * FRAME_SIZE as u64);
                        round += 1;
                        view.write(gpa, &round.to_le_bytes()).expect("written");
                        let mut read = [0; 8];
                        view.read(gpa, &mut read).expect("read");
                        assert_eq!(u64::from_le_bytes(read), round);
                    }
                    assert!(round > 0);
                });
            }
            thread::sleep(Duration::from_millis(20));
            memory.move_to_file().expect("moved");
            thread::sleep(Duration::from_millis(20));
            stop.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn absent_frames_need_a_file() {
        let (memory, view) = anonymous();
        struct Nothing;
        impl crate::Source for Nothing {
            fn fetch(&self, _: Frame, _: &mut [u8; FRAME_SIZE]) -> Result<(), crate::SourceError> {
                Ok(())
            }
        }
        let source = memory.add_source(Arc::new(Nothing)).expect("a source");
        let error = memory.make_absent([Frame(1)], source).expect_err("anonymous");
        assert!(error.to_string().contains("anonymous"), "{error}");
        let pin = view.slice(Gpa(0), 1, Access::Read).expect("a pin");
        drop(pin);
        memory.move_to_file().expect("moved");
        assert_eq!(memory.make_absent([Frame(1)], source).expect("absent"), 1);
    }
}
