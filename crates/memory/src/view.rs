//! What devices get: guest memory on which every access keeps the frame table true.

use std::sync::Arc;

use crate::address::{Access, Gpa};
use crate::guest_memory::GuestMemory;
use crate::pin::{AccessError, Pin, PinnedSlice};

/// Guest memory as devices see it: by guest physical address, never by frame.
///
/// Each access resolves its frames (zero-filled, fetched, taken out of the balloon), records the
/// access, pins them while it lasts, and reports writes to decoded code to the engine. Addresses
/// outside RAM are errors, for the device to answer as its specification says.
///
/// Its own methods serve plain copies and file I/O. It implements [`vm_memory::GuestMemory`] too,
/// so a `&DeviceView` is what `virtio_queue::Queue` and [`vm_memory::Bytes`] take; code that asks
/// for a [`vm_memory::GuestMemoryBackend`] gets [`DeviceView::loader`].
#[derive(Clone, Debug)]
pub struct DeviceView {
    pub(crate) memory: Arc<GuestMemory>,
}

impl DeviceView {
    /// A view of all of `memory`.
    pub fn new(memory: Arc<GuestMemory>) -> DeviceView {
        DeviceView { memory }
    }

    /// Whether all of `gpa .. gpa + len` is RAM. Touches nothing.
    pub fn contains(&self, gpa: Gpa, len: usize) -> bool {
        self.offset_of(gpa, len).is_ok()
    }

    /// Reads guest memory from `gpa` on into `into`. Nothing is read if any of it is outside RAM.
    /// Not atomic; for indices that another CPU writes use [`vm_memory::Bytes::load`].
    pub fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), AccessError> {
        let slice = self.slice(gpa, into.len(), Access::Read)?;
        // SAFETY: the slice is `into.len()` mapped bytes, pinned until the end of the function;
        // `into` is host memory, so they do not overlap.
        unsafe { into.as_mut_ptr().copy_from_nonoverlapping(slice.as_ptr(), into.len()) };
        Ok(())
    }

    /// Writes `from` to guest memory from `gpa` on. Nothing is written if any of it is outside
    /// RAM. Not atomic; for indices that another CPU reads use [`vm_memory::Bytes::store`].
    pub fn write(&self, gpa: Gpa, from: &[u8]) -> Result<(), AccessError> {
        let slice = self.slice(gpa, from.len(), Access::Write)?;
        // SAFETY: as in `read`, the other way round.
        unsafe { slice.as_ptr().copy_from_nonoverlapping(from.as_ptr(), from.len()) };
        Ok(())
    }

    /// Holds `gpa .. gpa + len` in place for `access`, for [`crate::read_at`] and
    /// [`crate::write_at`].
    pub fn slice(
        &self,
        gpa: Gpa,
        len: usize,
        access: Access,
    ) -> Result<PinnedSlice<'_>, AccessError> {
        let offset = self.offset_of(gpa, len)?;
        Ok(PinnedSlice(Pin::new(&self.memory, offset, len, access)?))
    }

    /// The memory behind the view.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The place of a range in RAM seen as one array. An empty range is inside RAM anywhere.
    fn offset_of(&self, gpa: Gpa, len: usize) -> Result<u64, AccessError> {
        let layout = self.memory.layout();
        match layout.offset_of(gpa) {
            _ if len == 0 => Ok(0),
            Some(offset) if layout.contiguous(gpa) >= len as u64 => Ok(offset),
            _ => Err(AccessError::OutsideRam { gpa, len }),
        }
    }
}
