//! Guest RAM as the guest's page faults see it: the guest's own mapping of the file behind `GuestMemory`.
//!
//! The processor reaches guest memory through this mapping only, devices and loaders through another
//! one. So the page-table entries of this one are a record of what the guest itself accessed since they
//! were last removed:
//!
//! ```text
//!   begin of an epoch: remove the entries (MADV_DONTNEED; the pages stay in the file, KVM drops its own)
//!   guest accesses a frame: KVM faults it in by itself, without us
//!   end of the epoch: /proc/self/pagemap says which entries are there
//! ```
//! It costs a page fault inside the kernel for each frame of the working set and epoch, no privilege and
//! no exit. See docs/decisions/0005-kvm-memory.md for what else was weighed.
//!
//! While `GuestMemory` is anonymous there is one mapping for all, and no epochs: removing its entries would
//! remove the contents. What has a page shows then, not who accessed it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use engine::EngineError;
use memory::{FRAME_SIZE, Frame, FrameRange, GuestMemory};
use rustix::mm::{Advice, MprotectFlags};

use crate::error::host;

/// Frames looked at and zapped together, 64 MiB. An access can be missed in the time that one look takes,
/// some hundred microseconds; each zap interrupts every vCPU, so there should be few.
const PIECE: u32 = 16_384;

/// Bits of a pagemap entry: the page is mapped, or swapped out, which anonymous pages are from their only
/// mapping (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

/// The mapping that KVM's memory slots show: for no longer than the `GuestMemory` lives.
pub(crate) struct GuestRam {
    base: NonNull<u8>,
    frames: u32,
    pagemap: File,
}

// SAFETY: the address of a mapping that belongs to no thread.
unsafe impl Send for GuestRam {}
// SAFETY: the methods compute addresses or make system calls; nothing here dereferences.
unsafe impl Sync for GuestRam {}

impl GuestRam {
    pub(crate) fn of(memory: &GuestMemory) -> Result<Self, EngineError> {
        let pagemap = File::open("/proc/self/pagemap").map_err(host("open /proc/self/pagemap"))?;
        memory.set_guest_apart().map_err(host("map guest memory for KVM"))?;
        let frames = (memory.bytes() / FRAME_SIZE as u64) as u32;
        Ok(Self { base: memory.guest_base(), frames, pagemap })
    }

    /// Where the guest's view of `frame` is.
    pub(crate) fn address(&self, frame: Frame) -> u64 {
        assert!(frame.0 <= self.frames, "frame {frame} of {}", self.frames);
        self.base.as_ptr() as u64 + frame.index() as u64 * FRAME_SIZE as u64
    }

    /// The frame whose page has this host address.
    pub(crate) fn frame_at(&self, address: u64) -> Option<Frame> {
        let offset = address.checked_sub(self.base.as_ptr() as u64)? / FRAME_SIZE as u64;
        u32::try_from(offset).ok().filter(|&frame| frame < self.frames).map(Frame)
    }

    /// All frames.
    pub(crate) fn all(&self) -> FrameRange {
        FrameRange { first: Frame(0), count: self.frames }
    }

    /// Tells of each frame that the guest accessed since the last zap of it, piece by piece, and zaps the
    /// piece afterwards if `zap`, which anonymous memory must not be.
    pub(crate) fn accessed(&self, zap: bool, mut tell: impl FnMut(Frame)) -> std::io::Result<()> {
        self.pieces(PRESENT, |piece, frames| {
            frames.iter().for_each(|&frame| tell(frame));
            if zap && !frames.is_empty() { self.zap(piece) } else { Ok(()) }
        })
    }

    /// Tells of each frame of anonymous memory that has contents.
    pub(crate) fn filled(&self, mut tell: impl FnMut(Frame)) -> std::io::Result<()> {
        self.pieces(PRESENT | SWAPPED, |_, frames| {
            frames.iter().for_each(|&frame| tell(frame));
            Ok(())
        })
    }

    /// Calls `look` with each piece, and those of its frames whose entry has any of the bits.
    fn pieces(
        &self,
        bits: u64,
        mut look: impl FnMut(FrameRange, &[Frame]) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let mut entries = vec![0; PIECE.min(self.frames) as usize * 8];
        let mut frames = Vec::new();
        for first in (0..self.frames).step_by(PIECE as usize) {
            let piece = FrameRange { first: Frame(first), count: PIECE.min(self.frames - first) };
            let bytes = &mut entries[..piece.count as usize * 8];
            let page = self.address(piece.first) / FRAME_SIZE as u64;
            self.pagemap.read_exact_at(bytes, page * 8)?;
            let (entries, _) = bytes.as_chunks::<8>();
            let found = (first..).zip(entries);
            let found = found.filter(|(_, entry)| u64::from_ne_bytes(**entry) & bits != 0);
            frames.clear();
            frames.extend(found.map(|(frame, _)| Frame(frame)));
            look(piece, &frames)?;
        }
        Ok(())
    }

    /// Removes the page-table entries of a piece, ours and KVM's. The contents stay in the file.
    fn zap(&self, piece: FrameRange) -> std::io::Result<()> {
        let start = self.address(piece.first) as *mut std::ffi::c_void;
        let bytes = piece.count as usize * FRAME_SIZE;
        // SAFETY: the range is our own shared mapping of a memfd: its contents do not change.
        unsafe { rustix::mm::madvise(start, bytes, Advice::LinuxDontNeed) }?;
        Ok(())
    }

    /// Makes the guest's accesses to `frame` fail, or possible again.
    pub(crate) fn forbid(&self, frame: Frame, forbidden: bool) -> std::io::Result<()> {
        let access = if forbidden {
            MprotectFlags::empty()
        } else {
            MprotectFlags::READ | MprotectFlags::WRITE
        };
        let start = self.address(frame) as *mut std::ffi::c_void;
        // SAFETY: our own mapping, which no Rust code dereferences.
        unsafe { rustix::mm::mprotect(start, FRAME_SIZE, access) }?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use memory::{DeviceView, Gpa};

    use super::*;
    use crate::userfault::UserFaultHandler;

    fn accessed(ram: &GuestRam, zap: bool) -> Vec<u32> {
        let mut frames = Vec::new();
        ram.accessed(zap, |frame| frames.push(frame.0)).expect("pagemap");
        frames
    }

    /// What a guest's access does to the mapping.
    fn touch(ram: &GuestRam, frame: u32) -> u8 {
        let address = ram.address(Frame(frame)) as *mut u8;
        // SAFETY: inside the mapping, and nobody else uses it.
        unsafe {
            let value = address.read_volatile();
            address.write_volatile(value.wrapping_add(1));
            value
        }
    }

    #[test]
    fn accesses_show_until_they_are_zapped_and_contents_stay() {
        let memory = Arc::new(GuestMemory::with_bytes(8 << 20).expect("memory"));
        let ram = GuestRam::of(&memory).expect("guest RAM");
        let Some(_alone) = UserFaultHandler::open().filter(|faults| faults.cover(&ram).is_ok())
        else {
            eprintln!("NOT TESTED: no userfaultfd here: a page's neighbours are mapped with it");
            return;
        };
        DeviceView::new(Arc::clone(&memory)).write(Gpa(0x3000), &[7; 4096]).expect("written");
        assert!(accessed(&ram, false).is_empty(), "a device's access is not the guest's");
        for frame in [3, 5, 2047] {
            touch(&ram, frame);
        }
        assert_eq!(accessed(&ram, false), [3, 5, 2047]);
        assert_eq!(accessed(&ram, true), [3, 5, 2047]);
        assert!(accessed(&ram, false).is_empty());
        assert_eq!(touch(&ram, 3), 8);
        assert_eq!(accessed(&ram, true), [3]);
        assert_eq!(touch(&ram, 2047), 1);
    }

    #[test]
    fn anonymous_memory_shows_what_is_filled_and_once_moved_what_is_accessed() {
        let memory = Arc::new(GuestMemory::anonymous(8 << 20).expect("memory"));
        let ram = GuestRam::of(&memory).expect("guest RAM");
        let filled = || {
            let mut frames = Vec::new();
            ram.filled(|frame| frames.push(frame.0)).expect("pagemap");
            frames
        };
        assert!(filled().is_empty());
        touch(&ram, 5);
        // With its neighbours, where the host has large pages.
        assert!(filled().contains(&5) && !filled().contains(&2047));
        memory.move_to_file().expect("moved");
        let Some(_alone) = UserFaultHandler::open().filter(|faults| faults.cover(&ram).is_ok())
        else {
            eprintln!("NOT TESTED: no userfaultfd here: a page's neighbours are mapped with it");
            return;
        };
        assert!(accessed(&ram, true).is_empty());
        assert_eq!(touch(&ram, 5), 1);
        assert_eq!(accessed(&ram, true), [5]);
        assert!(accessed(&ram, false).is_empty());
        assert_eq!(touch(&ram, 5), 2);
    }

    #[test]
    fn addresses_and_frames_are_inverse() {
        let memory = GuestMemory::with_bytes(8 << 20).expect("memory");
        let ram = GuestRam::of(&memory).expect("guest RAM");
        assert_eq!(ram.frame_at(ram.address(Frame(77)) + 4095), Some(Frame(77)));
        assert_eq!(ram.frame_at(ram.address(Frame(0)) - 1), None);
        assert_eq!(ram.frame_at(ram.address(Frame(2047)) + 4096), None);
    }
}
