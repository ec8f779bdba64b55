//! Where on its disk each page of a file lies (Linux, Documentation/filesystems/fiemap.rst).

use super::facts;
use crate::sys::PAGE;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// `_IOWR('f', 11, struct fiemap)`.
const FS_IOC_FIEMAP: libc::Ioctl = 0xc020_660b_u32 as libc::Ioctl;
/// What is not on disk yet is written first.
const SYNC: u32 = 1;
const IS_LAST: u32 = 1;
/// Nowhere yet, not block by block, or in the inode.
const NO_PLACE: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 9;
const BATCH: usize = 64;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

#[repr(C)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    room: u32,
    reserved: u32,
    extents: [Extent; BATCH],
}

/// Of all files in a folder and in those below it, as far as they are on that device; a line each.
pub(super) fn of_folder(folder: &Path, device: u64, lines: &mut String) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.dev() == device && metadata.is_dir() {
            of_folder(&entry.path(), device, lines)?;
        } else if metadata.dev() == device && metadata.is_file() && metadata.len() > 0 {
            of_file(&entry.path(), lines)?;
        }
    }
    Ok(())
}

/// `extent DEVICE INODE TIME PAGE BLOCK COUNT`, in pages of 4 KiB.
pub(super) fn of_file(path: &Path, lines: &mut String) -> Result<()> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let (device, inode) = (facts::device(metadata.dev()), metadata.ino());
    let page = |bytes: u64| bytes / PAGE as u64;
    let mut at = 0;
    loop {
        let extents = batch(&file, at)?;
        let tsc = facts::tsc();
        for extent in extents.iter().filter(|extent| extent.flags & NO_PLACE == 0) {
            let (first, block) = (page(extent.logical), page(extent.physical));
            let count = extent.length.div_ceil(PAGE as u64);
            let _ = writeln!(lines, "extent {device} {inode} {tsc} {first} {block} {count}");
        }
        match extents.last() {
            Some(last) if last.flags & IS_LAST == 0 => at = last.logical + last.length,
            _ => return Ok(()),
        }
    }
}

fn batch(file: &File, start: u64) -> Result<Vec<Extent>> {
    let extents = [Extent::default(); BATCH];
    let (length, room) = (u64::MAX - start, BATCH as u32);
    let mut request = Request { start, length, flags: SYNC, mapped: 0, room, reserved: 0, extents };
    // SAFETY: a request with as much room behind it as it says.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut request) };
    if result != 0 {
        return Err(Error::last_os_error());
    }
    Ok(request.extents[..(request.mapped as usize).min(BATCH)].to_vec())
}
