//! The file that shared frames are in: one process writes its slots, every other only reads them.
//!
//! ```text
//!   PoolWriter: one writable mapping, made before the seal
//!       |  memfd: no larger, no smaller, nobody else maps it to write (F_SEAL_FUTURE_WRITE)
//!       +---> Pool of VM 1, of VM 2, ...: mapped to read
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use crate::address::FRAME_SIZE;

/// Slots of a pool at most: 64 GiB. Those never written take no memory.
pub const POOL_SLOTS_MAX: u32 = 1 << 24;
/// Of a pool: has zeros, for as long as nobody writes them.
pub const ZERO_SLOT: u32 = 0;

/// Why there is no pool.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// Neither empty nor too large.
    #[error("a pool of {0} bytes: it has 1 to 16,777,216 slots of 4096")]
    Size(u64),
    /// Somebody could change what guests see, or make it vanish.
    #[error("a pool that others can write or cut: it has to be a sealed memfd")]
    NotSealed,
    /// The host refused.
    #[error("{0} a pool: {1}")]
    Host(&'static str, Errno),
}

/// Addresses of a file, until drop.
#[derive(Debug)]
struct Slots {
    start: NonNull<u8>,
    count: u32,
}

// SAFETY: the addresses are of a mapping that lives until drop and belongs to no thread.
unsafe impl Send for Slots {}
// SAFETY: as above; contents are copied by raw accesses only.
unsafe impl Sync for Slots {}

impl Slots {
    fn map(file: &OwnedFd, count: u32, access: ProtFlags) -> Result<Slots, Errno> {
        let bytes = count as usize * FRAME_SIZE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice changes no existing one.
        let start =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, access, flags, file, 0)? };
        let start = NonNull::new(start.cast::<u8>()).expect("the kernel maps nothing at 0");
        Ok(Slots { start, count })
    }

    /// Panics past the end: callers check numbers that come from elsewhere.
    fn at(&self, slot: u32) -> *mut u8 {
        assert!(slot < self.count, "slot {slot} of {}", self.count);
        // SAFETY: inside the mapping, by the line above.
        unsafe { self.start.add(slot as usize * FRAME_SIZE).as_ptr() }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        let bytes = self.count as usize * FRAME_SIZE;
        // SAFETY: `map` made exactly this mapping, whose addresses nobody else has.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), bytes) };
    }
}

/// A pool to write to: its owner's.
#[derive(Debug)]
pub struct PoolWriter {
    file: OwnedFd,
    slots: Slots,
}

impl PoolWriter {
    /// A pool of so many slots, all zeros. It takes address space, and memory for what is written.
    ///
    /// # Errors
    /// Too many or none; the host refuses.
    pub fn new(slots: u32) -> Result<PoolWriter, PoolError> {
        let bytes = u64::from(slots) * FRAME_SIZE as u64;
        if slots == 0 || slots > POOL_SLOTS_MAX {
            return Err(PoolError::Size(bytes));
        }
        let refused = |errno| PoolError::Host("make", errno);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("fathom-shared-frames", flags).map_err(refused)?;
        rustix::fs::ftruncate(&file, bytes).map_err(refused)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let slots = Slots::map(&file, slots, access).map_err(refused)?;
        let seals = wanted_seals() | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)
            .map_err(|errno| PoolError::Host("seal", errno))?;
        Ok(PoolWriter { file, slots })
    }

    /// For VMs.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn descriptor(&self) -> std::io::Result<OwnedFd> {
        self.file.try_clone()
    }

    /// Writes a slot that no guest has. Panics past the end.
    pub fn put(&mut self, slot: u32, contents: &[u8; FRAME_SIZE]) {
        // SAFETY: a slot of the mapping, and a buffer of its size.
        unsafe { self.slots.at(slot).copy_from_nonoverlapping(contents.as_ptr(), FRAME_SIZE) };
    }

    /// What it takes of the host, in bytes.
    ///
    /// # Errors
    /// The host does not say.
    pub fn backed_bytes(&self) -> std::io::Result<u64> {
        // st_blocks counts units of 512 bytes (inode(7)).
        Ok(rustix::fs::fstat(&self.file)?.st_blocks as u64 * 512)
    }
}

/// A pool to read from: a VM's.
#[derive(Debug)]
pub struct Pool {
    pub(crate) file: OwnedFd,
    slots: Slots,
}

impl Pool {
    /// Of a descriptor that [`PoolWriter::descriptor`] made in another process.
    ///
    /// # Errors
    /// It is not sealed as it has to be, not of a pool's size, or the host refuses.
    pub fn open(file: OwnedFd) -> Result<Pool, PoolError> {
        let bytes = rustix::fs::fstat(file.as_fd());
        let bytes = bytes.map_err(|errno| PoolError::Host("look at", errno))?.st_size as u64;
        let seals = rustix::fs::fcntl_get_seals(&file).map_err(|_| PoolError::NotSealed)?;
        if !seals.contains(wanted_seals()) {
            return Err(PoolError::NotSealed);
        }
        let slots = u32::try_from(bytes / FRAME_SIZE as u64).unwrap_or(u32::MAX);
        if slots == 0 || slots > POOL_SLOTS_MAX || !bytes.is_multiple_of(FRAME_SIZE as u64) {
            return Err(PoolError::Size(bytes));
        }
        let slots = Slots::map(&file, slots, ProtFlags::READ)
            .map_err(|errno| PoolError::Host("map", errno))?;
        Ok(Pool { file, slots })
    }

    /// How many slots it has.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots.count
    }

    /// Copies a slot. Panics past the end.
    pub(crate) fn copy(&self, slot: u32, into: &mut [u8; FRAME_SIZE]) {
        // SAFETY: a slot of the mapping, and a buffer of its size.
        unsafe { into.as_mut_ptr().copy_from_nonoverlapping(self.slots.at(slot), FRAME_SIZE) };
    }
}

/// Nobody maps it to write any more, and no page of it can go from under those who map it.
fn wanted_seals() -> SealFlags {
    SealFlags::GROW | SealFlags::SHRINK | SealFlags::FUTURE_WRITE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_writes() {
        let mut writer = PoolWriter::new(8).expect("a pool");
        let pool = Pool::open(writer.descriptor().expect("a descriptor")).expect("opened");
        writer.put(3, &[7; FRAME_SIZE]);
        let mut contents = [1; FRAME_SIZE];
        pool.copy(3, &mut contents);
        assert_eq!(contents, [7; FRAME_SIZE]);
        pool.copy(ZERO_SLOT, &mut contents);
        assert_eq!(contents, [0; FRAME_SIZE]);
        assert_eq!(pool.slots(), 8);
        let access = ProtFlags::READ | ProtFlags::WRITE;
        assert!(Slots::map(&pool.file, 8, access).is_err());
        assert!(rustix::io::pwrite(&pool.file, &[1], 0).is_err());
        assert!(rustix::fs::ftruncate(&pool.file, 0).is_err());
    }

    #[test]
    fn what_others_could_change_is_refused() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("open", flags).expect("a file");
        rustix::fs::ftruncate(&file, 8192).expect("a size");
        assert!(matches!(Pool::open(file), Err(PoolError::NotSealed)));
        let file = rustix::fs::memfd_create("odd", flags).expect("a file");
        rustix::fs::ftruncate(&file, 5000).expect("a size");
        rustix::fs::fcntl_add_seals(&file, wanted_seals()).expect("sealed");
        assert!(matches!(Pool::open(file), Err(PoolError::Size(5000))));
        assert!(matches!(PoolWriter::new(0), Err(PoolError::Size(0))));
        let (other, _) = std::os::unix::net::UnixStream::pair().expect("sockets");
        assert!(matches!(Pool::open(other.into()), Err(PoolError::NotSealed)));
    }
}
