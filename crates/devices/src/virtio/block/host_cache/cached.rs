//! A disk's storage with the cache before it.

use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use memory::DiskBlock;

use super::{BLOCK, HostCache, HostCachePolicy, Shared};
use crate::virtio::block::storage::Storage;
use crate::virtio::queue::GuestBuffer;

/// What goes through the VMM's memory goes in such pieces.
const PIECE: u64 = 256 << 10;
const LEN: u64 = BLOCK as u64;

/// See the module above for what holds at any time.
pub(in super::super) struct Cached {
    storage: Arc<Shared>,
    cache: Arc<HostCache>,
    disk: u8,
    /// Bytes of the disk: what is left of it behind its last whole block is never cached.
    len: u64,
}

impl Cached {
    /// `disk` of the VM, of `len` bytes.
    pub(in super::super) fn new(
        storage: Box<dyn Storage>,
        cache: &Arc<HostCache>,
        disk: u8,
        len: u64,
    ) -> Self {
        let storage = Arc::new(RwLock::new(storage));
        cache.add_source(disk, &storage);
        Self { storage, cache: Arc::clone(cache), disk, len }
    }

    fn storage(&self) -> RwLockReadGuard<'_, Box<dyn Storage>> {
        self.storage.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a change of `len` bytes from `offset` on: from now on the cache has none of it, and gets none of it until
    /// the answer is dropped.
    fn about_to_change(&self, offset: u64, len: u64) -> RwLockWriteGuard<'_, Box<dyn Storage>> {
        let storage = self.storage.write().unwrap_or_else(PoisonError::into_inner);
        self.cache.drop_range(self.disk, offset / LEN..(offset + len).div_ceil(LEN));
        storage
    }

    fn block(&self, block: u64) -> DiskBlock {
        DiskBlock { disk: self.disk, block }
    }

    /// Whether the block with `offset` was there, and is at the start of `to` now, from `offset` on.
    fn hit(&self, offset: u64, to: &GuestBuffer<'_>) -> io::Result<bool> {
        let block = self.block(offset / LEN);
        let mut state = self.cache.lock();
        let Some(bytes) = state.blocks.get(block) else {
            state.counts.misses += 1;
            let late = self.is_exclusive() && state.candidates.withdraw(block);
            state.counts.too_late += u64::from(late);
            return Ok(false);
        };
        let start = (offset % LEN) as usize;
        let copied = to.copy_from(&bytes[start..start + to.len() as usize]);
        state.counts.hits += 1;
        if self.is_exclusive() && to.len() == LEN {
            state.blocks.remove(block);
        } else {
            state.blocks.touch(block);
        }
        copied.map(|()| true)
    }

    fn is_exclusive(&self) -> bool {
        self.cache.policy == HostCachePolicy::Eviction
    }

    /// What the cache does not have.
    fn miss(&self, storage: &dyn Storage, offset: u64, to: &GuestBuffer<'_>) -> io::Result<()> {
        if self.is_exclusive() {
            return storage.read(offset, to);
        }
        for (done, len) in pieces(offset, to.len()) {
            let mut bytes = vec![0; len as usize];
            storage.read_host(offset + done, &mut bytes)?;
            self.insert(offset + done, &bytes);
            to.part(done, len)?.copy_from(&bytes)?;
        }
        Ok(())
    }

    /// Whole blocks of what was read, under the lock that it was read under.
    fn insert(&self, offset: u64, bytes: &[u8]) {
        let mut state = self.cache.lock();
        for (block, bytes) in self.whole_blocks(offset, bytes) {
            state.insert_read(block, bytes);
        }
    }

    /// `len` bytes from `offset` on have changed, whole blocks to those in `bytes`. The others leave the cache. The lock for
    /// writing is held.
    fn update(&self, offset: u64, len: u64, bytes: &[u8]) {
        let mut state = self.cache.lock();
        let mut known = self.whole_blocks(offset, bytes).peekable();
        for block in (offset / LEN..(offset + len).div_ceil(LEN)).map(|block| self.block(block)) {
            let replaced = match known.next_if(|(other, _)| *other == block) {
                Some((_, bytes)) => state.blocks.replace(block, bytes),
                None => false,
            };
            if !replaced {
                let dropped = state.blocks.remove(block);
                state.counts.dropped_by_writes += u64::from(dropped);
            }
        }
    }

    fn whole_blocks<'b>(
        &self,
        offset: u64,
        bytes: &'b [u8],
    ) -> impl Iterator<Item = (DiskBlock, &'b [u8; BLOCK])> {
        let skipped = (offset.next_multiple_of(LEN) - offset).min(bytes.len() as u64) as usize;
        let (first, disk) = (offset.div_ceil(LEN), self.disk);
        let blocks = bytes[skipped..].as_chunks().0.iter();
        blocks.zip(first..).map(move |(bytes, block)| (DiskBlock { disk, block }, bytes))
    }
}

/// Cut at multiples of [`PIECE`]: offsets from `offset`, and lengths.
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    cut(offset, len, PIECE)
}

fn cut(offset: u64, len: u64, unit: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let part = (unit - (offset + done) % unit).min(len - done);
        let piece = (done, part);
        done += part;
        (part > 0).then_some(piece)
    })
}

impl Storage for Cached {
    fn read(&self, offset: u64, to: &GuestBuffer<'_>) -> io::Result<()> {
        let storage = self.storage();
        let mut missing = 0..0;
        for (done, len) in cut(offset, to.len(), LEN) {
            let part = to.part(done, len)?;
            let is_whole = (offset + done) / LEN < self.len / LEN;
            if !is_whole || !self.hit(offset + done, &part)? {
                missing.end = done + len;
                continue;
            }
            if !missing.is_empty() {
                let part = to.part(missing.start, missing.end - missing.start)?;
                self.miss(&**storage, offset + missing.start, &part)?;
            }
            missing = done + len..done + len;
        }
        if missing.is_empty() {
            return Ok(());
        }
        let part = to.part(missing.start, missing.end - missing.start)?;
        self.miss(&**storage, offset + missing.start, &part)
    }

    fn read_host(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.storage().read_host(offset, to)
    }

    fn write(&mut self, offset: u64, from: &GuestBuffer<'_>) -> io::Result<()> {
        if self.is_exclusive() {
            return self.about_to_change(offset, from.len()).write(offset, from);
        }
        for (done, len) in pieces(offset, from.len()) {
            // Copied once: the guest may change it at any time.
            let bytes = from.part(done, len)?.to_vec()?;
            self.write_host(offset + done, &bytes)?;
        }
        Ok(())
    }

    fn write_host(&mut self, offset: u64, from: &[u8]) -> io::Result<()> {
        if self.is_exclusive() {
            return self.about_to_change(offset, from.len() as u64).write_host(offset, from);
        }
        let mut storage = self.storage.write().unwrap_or_else(PoisonError::into_inner);
        let written = storage.write_host(offset, from);
        let bytes = if written.is_ok() { from } else { &[] };
        self.update(offset, from.len() as u64, bytes);
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.storage.write().unwrap_or_else(PoisonError::into_inner).flush()
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.about_to_change(offset, len).discard(offset, len)
    }

    fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.about_to_change(offset, len).write_zeroes(offset, len, unmap)
    }
}
