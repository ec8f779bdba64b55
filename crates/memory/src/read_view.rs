//! Guest memory to look at: reads that leave no trace in the frame table.

use std::sync::{Arc, PoisonError};

use crate::address::{FRAME_SIZE, Frame, Gpa};
use crate::guest_memory::GuestMemory;
use crate::layout::RamLayout;
use crate::table::Held;

/// Guest memory as an observer sees it: nothing is written, no access is recorded, and no frame
/// becomes resident because somebody looked.
///
/// A frame without contents (untouched, ballooned, being given back) reads as zeros, without a page
/// of the host. An absent one is an error: to fetch it would be to use it. While a read lasts, its
/// frame is held in place like a device's; a discard leaves it alone.
///
/// The guest runs meanwhile: what is read is no moment's picture, not even within eight bytes that
/// lie in two frames. On an engine whose guests reach frames by themselves, a frame of which the
/// table does not know yet reads as zeros: call [`GuestMemory::catch_up`] before.
#[derive(Clone, Debug)]
pub struct ReadView {
    memory: Arc<GuestMemory>,
}

/// Why guest memory could not be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Not all of it is RAM.
    #[error("{len} bytes at {gpa}: not inside guest memory")]
    OutsideRam {
        /// The first address.
        gpa: Gpa,
        /// How many bytes.
        len: usize,
    },
    /// Its contents are elsewhere.
    #[error("frame {0}: its contents have not been fetched")]
    Absent(Frame),
}

/// A frame that is shared and copied in turn is looked for so often: each time the guest must have been faster.
const ATTEMPTS: u32 = 100;

impl ReadView {
    /// A view of all of `memory`.
    pub fn new(memory: Arc<GuestMemory>) -> ReadView {
        ReadView { memory }
    }

    /// Where RAM lies in the physical address space.
    pub fn layout(&self) -> &RamLayout {
        self.memory.layout()
    }

    /// Reads from `gpa` on into `into`. After an error the contents of `into` are of no meaning.
    pub fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), ReadError> {
        let layout = self.memory.layout();
        let outside = ReadError::OutsideRam { gpa, len: into.len() };
        if layout.contiguous(gpa) < into.len() as u64 {
            return Err(outside);
        }
        let (mut at, mut rest) = (gpa.0, into);
        while !rest.is_empty() {
            let in_frame = (FRAME_SIZE - Gpa(at).frame_offset()).min(rest.len());
            let (part, later) = rest.split_at_mut(in_frame);
            self.read_frame(layout.frame_of(Gpa(at)).ok_or(outside)?, Gpa(at), part)?;
            // RAM ends far below 2^64 (RamLayout), so this cannot overflow.
            at += in_frame as u64;
            rest = later;
        }
        Ok(())
    }

    /// `into` is of `frame` from `gpa` on.
    fn read_frame(&self, frame: Frame, gpa: Gpa, into: &mut [u8]) -> Result<(), ReadError> {
        let _pinning = self.memory.pinning.read().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..ATTEMPTS {
            match self.memory.table.hold(frame) {
                Held::Zeros => into.fill(0),
                Held::Absent => {
                    let mut contents = [0; FRAME_SIZE];
                    if !self.memory.read_shared(frame, &mut contents) {
                        if self.memory.table.word(frame).is_elsewhere() {
                            break;
                        }
                        // Somebody has copied it meanwhile: it is the guest's own.
                        continue;
                    }
                    let from = gpa.frame_offset();
                    into.copy_from_slice(&contents[from..from + into.len()]);
                }
                Held::Page => {
                    let from =
                        self.memory.ram.page(frame).as_ptr().wrapping_add(gpa.frame_offset());
                    // SAFETY: the frame is mapped and held until `unpin` below, and `into` ends where
                    // it does; `into` is host memory, so they do not overlap.
                    unsafe { into.as_mut_ptr().copy_from_nonoverlapping(from, into.len()) };
                    self.memory.table.unpin(frame);
                }
            }
            return Ok(());
        }
        Err(ReadError::Absent(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, DeviceView, Discard, Epoch, FrameState, Source, SourceError};

    struct Nowhere;

    impl Source for Nowhere {
        fn fetch(&self, _: Frame, _: &mut [u8; FRAME_SIZE]) -> Result<(), SourceError> {
            Err(std::io::Error::other("nobody should ask").into())
        }
    }

    fn memory() -> Arc<GuestMemory> {
        Arc::new(GuestMemory::with_bytes(1 << 20).expect("memory"))
    }

    #[test]
    fn a_look_reads_across_frames_and_leaves_no_trace() {
        let memory = memory();
        DeviceView::new(Arc::clone(&memory)).write(Gpa(0x1ffe), b"abcd").expect("written");
        memory.advance_epoch();
        let before = (memory.facts(Frame(1)), memory.facts(Frame(2)), memory.counts());
        let mut bytes = [0xff; 6];
        ReadView::new(Arc::clone(&memory)).read(Gpa(0x1ffd), &mut bytes).expect("read");
        assert_eq!(&bytes, b"\0abcd\0");
        assert_eq!((memory.facts(Frame(1)), memory.facts(Frame(2)), memory.counts()), before);
    }

    #[test]
    fn what_has_no_contents_reads_as_zeros_and_stays_so() {
        let memory = memory();
        memory.resolve(Frame(3), Access::Write).expect("resident");
        memory.discard([Frame(3)], Discard::Balloon).expect("ballooned");
        let mut bytes = [1; 2 * FRAME_SIZE];
        ReadView::new(Arc::clone(&memory)).read(Gpa(0x3000), &mut bytes).expect("read");
        assert_eq!(bytes, [0; 2 * FRAME_SIZE]);
        let facts = |frame| memory.facts(frame).expect("facts");
        assert_eq!(facts(Frame(3)).state, FrameState::Ballooned);
        assert_eq!(facts(Frame(4)).state, FrameState::Untouched);
        assert_eq!(facts(Frame(4)).accessed, Epoch::NEVER);
    }

    #[test]
    fn absent_frames_and_what_is_no_ram_are_errors() {
        let memory = memory();
        let source = memory.add_source(Arc::new(Nowhere)).expect("a source");
        memory.make_absent([Frame(7)], source).expect("absent");
        let view = ReadView::new(memory);
        let mut bytes = [0; 8];
        assert_eq!(view.read(Gpa(0x7000), &mut bytes), Err(ReadError::Absent(Frame(7))));
        for gpa in [0x10_0000 - 7, 0x10_0000, u64::MAX - 3] {
            let outside = ReadError::OutsideRam { gpa: Gpa(gpa), len: 8 };
            assert_eq!(view.read(Gpa(gpa), &mut bytes), Err(outside));
        }
        assert_eq!(view.read(Gpa(0x10_0000 - 8), &mut bytes), Ok(()));
    }
}
