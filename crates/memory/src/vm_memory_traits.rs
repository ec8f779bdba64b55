//! The view in the terms of the `vm-memory` crate.
//!
//! [`vm_memory::GuestMemory`] names the direction of each access when it asks for a slice, so the
//! view implements that trait itself: a slice resolves, records and pins its frames for as long as
//! it lives, which is what its bitmap type is for. [`vm_memory::GuestMemoryBackend`], the older
//! trait that boot loaders ask for, names no direction; [`LoaderView`] implements it and takes
//! every slice for a write, which is all that a loader does.

use std::iter::FusedIterator;
use std::sync::atomic::Ordering;

use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};
use vm_memory::guest_memory::{Error, GuestMemorySliceIterator, Result};
use vm_memory::{
    AtomicAccess, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestUsize,
    MemoryRegionAddress, Permissions, ReadVolatile, VolatileSlice, WriteVolatile,
};

use crate::address::{Access, Gpa};
use crate::guest_memory::{GuestMemory, ResolveError};
use crate::layout::RamRange;
use crate::pin::Pin;
use crate::view::DeviceView;

/// The part of a [`VolatileSlice`] that keeps its frames resident and records writes.
#[derive(Debug)]
pub struct SlicePin<'m>(Pin<'m>);

impl Clone for SlicePin<'_> {
    fn clone(&self) -> Self {
        SlicePin(self.0.tail(0))
    }
}

impl<'m> WithBitmapSlice<'_> for SlicePin<'m> {
    type S = SlicePin<'m>;
}

impl BitmapSlice for SlicePin<'_> {}

impl<'m> Bitmap for SlicePin<'m> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.0.wrote(offset, len);
    }

    /// Always false: what was written is in the frame table, by epoch.
    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> SlicePin<'m> {
        SlicePin(self.0.tail(offset))
    }
}

/// Names [`SlicePin`] as the bitmap of slices of guest memory. There is no bitmap of the memory as
/// a whole, so it has no values.
#[derive(Debug)]
pub enum FrameTracking {}

impl<'m> WithBitmapSlice<'m> for FrameTracking {
    type S = SlicePin<'m>;
}

impl Bitmap for FrameTracking {
    fn mark_dirty(&self, _offset: usize, _len: usize) {
        match *self {}
    }

    fn dirty_at(&self, _offset: usize) -> bool {
        match *self {}
    }

    fn slice_at(&self, _offset: usize) -> SlicePin<'_> {
        match *self {}
    }
}

/// A slice of RAM that resolves and pins; `offset .. offset + len` is inside RAM.
fn pinned(
    memory: &GuestMemory,
    offset: u64,
    len: usize,
    access: Access,
) -> Result<VolatileSlice<'_, SlicePin<'_>>> {
    let pin = Pin::new(memory, offset, len, access).map_err(host_error)?;
    let start = pin.as_ptr();
    // SAFETY: the pin holds `len` mapped bytes at `start` and lives as long as the slice, which
    // owns it. Everybody accesses guest memory by raw pointers.
    Ok(unsafe { VolatileSlice::with_bitmap(start, len, SlicePin(pin), None) })
}

fn host_error(error: ResolveError) -> Error {
    Error::IOError(std::io::Error::other(error))
}

impl vm_memory::GuestMemory for DeviceView {
    type PhysicalMemory = LoaderView;
    type Bitmap = FrameTracking;

    fn check_range(&self, addr: GuestAddress, count: usize, _access: Permissions) -> bool {
        self.contains(Gpa(addr.0), count)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, SlicePin<'a>>> {
        let access = if access.has_write() { Access::Write } else { Access::Read };
        Ok(Slices { memory: &self.memory, gpa: Gpa(addr.0), count, access })
    }
}

/// The slices of a range: one, and an error where RAM ends before the range does.
struct Slices<'m> {
    memory: &'m GuestMemory,
    gpa: Gpa,
    count: usize,
    access: Access,
}

impl<'m> Iterator for Slices<'m> {
    type Item = Result<VolatileSlice<'m, SlicePin<'m>>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.count == 0 {
            return None;
        }
        let item = self.step();
        if item.is_err() {
            self.count = 0;
        }
        Some(item)
    }
}

impl<'m> Slices<'m> {
    fn step(&mut self) -> Result<VolatileSlice<'m, SlicePin<'m>>> {
        let outside = Error::InvalidGuestAddress(GuestAddress(self.gpa.0));
        let offset = self.memory.layout.offset_of(self.gpa).ok_or(outside)?;
        let len = self.memory.layout.contiguous(self.gpa).min(self.count as u64);
        let slice = pinned(self.memory, offset, len as usize, self.access)?;
        self.count -= len as usize;
        // RAM ends far below 2^64 (RamLayout), so this cannot overflow.
        self.gpa = Gpa(self.gpa.0 + len);
        Ok(slice)
    }
}

impl FusedIterator for Slices<'_> {}

impl<'m> GuestMemorySliceIterator<'m, SlicePin<'m>> for Slices<'m> {}

/// Guest memory for boot loaders: a [`GuestMemoryBackend`] on which every access is a write.
#[derive(Debug)]
pub struct LoaderView {
    regions: Vec<LoaderRegion>,
}

/// One range of RAM in a [`LoaderView`].
#[derive(Debug)]
pub struct LoaderRegion {
    view: DeviceView,
    range: RamRange,
}

impl DeviceView {
    /// The same memory for code that asks for a [`GuestMemoryBackend`].
    /// Every access through it counts as a write.
    pub fn loader(&self) -> LoaderView {
        let region = |range| LoaderRegion { view: self.clone(), range };
        LoaderView { regions: self.memory.layout.ranges().map(region).collect() }
    }
}

impl GuestMemoryBackend for LoaderView {
    type R = LoaderRegion;

    fn iter(&self) -> impl Iterator<Item = &LoaderRegion> {
        self.regions.iter()
    }

    /// As the provided method, without touching the memory.
    fn check_range(&self, base: GuestAddress, len: usize) -> bool {
        self.regions[0].view.contains(Gpa(base.0), len)
    }
}

impl LoaderRegion {
    fn rest(&self, at: MemoryRegionAddress, len: usize) -> Result<VolatileSlice<'_, SlicePin<'_>>> {
        let rest = self.range.bytes.checked_sub(at.0).ok_or(Error::InvalidBackendAddress)?;
        self.get_slice(at, len.min(rest as usize))
    }
}

impl GuestMemoryRegion for LoaderRegion {
    type B = FrameTracking;

    fn len(&self) -> GuestUsize {
        self.range.bytes
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.range.start.0)
    }

    fn bitmap(&self) -> SlicePin<'_> {
        SlicePin(Pin::empty(&self.view.memory))
    }

    fn get_slice(
        &self,
        at: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, SlicePin<'_>>> {
        let end = at.0.checked_add(count as u64).ok_or(Error::InvalidBackendAddress)?;
        if end > self.range.bytes {
            return Err(Error::InvalidBackendAddress);
        }
        let memory = &self.view.memory;
        // An empty slice may begin at the end of the range, where no frame is.
        let offset = memory.layout.offset_of(Gpa(self.range.start.0 + at.0)).unwrap_or(0);
        pinned(memory, offset, count, Access::Write)
    }
}

/// Each method touches only its own bytes, unlike the provided implementation
/// ([`vm_memory::GuestMemoryRegionBytes`]), which would resolve the whole region.
impl Bytes<MemoryRegionAddress> for LoaderRegion {
    type E = Error;

    fn write(&self, buf: &[u8], at: MemoryRegionAddress) -> Result<usize> {
        Ok(self.rest(at, buf.len())?.write(buf, 0)?)
    }

    fn read(&self, buf: &mut [u8], at: MemoryRegionAddress) -> Result<usize> {
        Ok(self.rest(at, buf.len())?.read(buf, 0)?)
    }

    fn write_slice(&self, buf: &[u8], at: MemoryRegionAddress) -> Result<()> {
        Ok(self.get_slice(at, buf.len())?.write_slice(buf, 0)?)
    }

    fn read_slice(&self, buf: &mut [u8], at: MemoryRegionAddress) -> Result<()> {
        Ok(self.get_slice(at, buf.len())?.read_slice(buf, 0)?)
    }

    fn read_volatile_from<F: ReadVolatile>(
        &self,
        at: MemoryRegionAddress,
        src: &mut F,
        count: usize,
    ) -> Result<usize> {
        Ok(self.rest(at, count)?.read_volatile_from(0, src, count)?)
    }

    fn read_exact_volatile_from<F: ReadVolatile>(
        &self,
        at: MemoryRegionAddress,
        src: &mut F,
        count: usize,
    ) -> Result<()> {
        Ok(self.get_slice(at, count)?.read_exact_volatile_from(0, src, count)?)
    }

    fn write_volatile_to<F: WriteVolatile>(
        &self,
        at: MemoryRegionAddress,
        dst: &mut F,
        count: usize,
    ) -> Result<usize> {
        Ok(self.rest(at, count)?.write_volatile_to(0, dst, count)?)
    }

    fn write_all_volatile_to<F: WriteVolatile>(
        &self,
        at: MemoryRegionAddress,
        dst: &mut F,
        count: usize,
    ) -> Result<()> {
        Ok(self.get_slice(at, count)?.write_all_volatile_to(0, dst, count)?)
    }

    fn store<T: AtomicAccess>(
        &self,
        value: T,
        at: MemoryRegionAddress,
        order: Ordering,
    ) -> Result<()> {
        Ok(self.get_slice(at, size_of::<T>())?.store(value, 0, order)?)
    }

    fn load<T: AtomicAccess>(&self, at: MemoryRegionAddress, order: Ordering) -> Result<T> {
        Ok(self.get_slice(at, size_of::<T>())?.load(0, order)?)
    }
}
