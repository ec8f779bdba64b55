//! Memory that takes the frames of cached files, and files mapped into memory.

use super::Load;
use super::place::{BLOCK, Place, read_through};
use crate::sys::{Mapping, PAGE};
use std::ffi::CString;
use std::fs::OpenOptions;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;

pub(super) const LOADS: [Load; 6] = [
    Load { name: "anonymous", run: anonymous },
    Load { name: "copy-on-write", run: copy_on_write },
    Load { name: "map-resident", run: map_resident },
    Load { name: "map-read", run: map_read },
    Load { name: "map-write", run: map_write },
    Load { name: "swap", run: swap },
];

const READ: libc::c_int = libc::PROT_READ;
const WRITE: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

/// Memory is allocated while the cache fills all there is.
fn anonymous(place: &Place) -> Result<()> {
    const STEPS: usize = 4;
    place.fill()?;
    let step = place.size_or(60) as usize / STEPS;
    let mut held = Vec::new();
    for number in 0..STEPS {
        let memory = Mapping::new(step, WRITE)?;
        memory.small_pages_only();
        memory.touch_every_page(number as u64 + 1);
        held.push(memory);
    }
    drop(held);
    place.fill()
}

/// A child writes to what it shares with its parent while the cache fills all the rest.
fn copy_on_write(place: &Place) -> Result<()> {
    const ROUNDS: u64 = 2;
    let memory = Mapping::new(place.size_or(30) as usize, WRITE)?;
    memory.small_pages_only();
    memory.touch_every_page(1);
    for round in 0..ROUNDS {
        place.fill()?;
        in_child(|| memory.touch_every_page(round + 2))?;
    }
    Ok(())
}

/// What was read is mapped and looked at: no page comes or goes.
fn map_resident(place: &Place) -> Result<()> {
    let size = place.size_or(30);
    read_through(&place.big(), 0, size)?;
    for _ in 0..2 {
        map_big(place, size, READ)?.read_every_page();
    }
    Ok(())
}

/// A file larger than memory, by its mapping.
fn map_read(place: &Place) -> Result<()> {
    map_big(place, place.size_or(130), READ)?.read_every_page();
    Ok(())
}

/// The same written to, which dirties pages that nobody writes by a call.
fn map_write(place: &Place) -> Result<()> {
    let memory = map_big(place, place.size_or(70), WRITE)?;
    memory.touch_every_page(7);
    drop(memory);
    place.fill()
}

/// More than there is, written and read in turn, with a swap area.
fn swap(place: &Place) -> Result<()> {
    swap_on(place)?;
    let memory = Mapping::new(place.size_or(120) as usize, WRITE)?;
    memory.small_pages_only();
    memory.touch_every_page(3);
    memory.read_every_page();
    memory.touch_every_page(4);
    Ok(())
}

fn swap_on(place: &Place) -> Result<()> {
    crate::work::program::wait_for(&place.swap);
    let path = CString::new(place.swap.as_os_str().as_bytes())?;
    // SAFETY: a NUL-terminated string that outlives the call.
    let result = unsafe { libc::swapon(path.as_ptr(), 0) };
    if result != 0 {
        let error = Error::last_os_error();
        return Err(Error::other(format!("swapon {}: {error}", place.swap.display())));
    }
    Ok(())
}

fn map_big(place: &Place, size: u64, protection: libc::c_int) -> Result<Mapping> {
    let write = protection == WRITE;
    let file = OpenOptions::new().read(true).write(write).open(place.big())?;
    let size = size.min(file.metadata()?.len()) / BLOCK as u64 * BLOCK as u64;
    Mapping::shared((size as usize).max(PAGE), protection, file.as_raw_fd())
}

/// Wait until a copy of this process has done it.
fn in_child(work: impl FnOnce()) -> Result<()> {
    // SAFETY: the child touches memory and ends; it takes no lock that another thread may hold.
    let child = unsafe { libc::fork() };
    if child == 0 {
        work();
        // SAFETY: takes a number, and runs nothing of ours.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: `status` is where the call may write.
    let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
    match status {
        _ if child < 0 || ended != child => Err(Error::last_os_error()),
        0 => Ok(()),
        status => Err(Error::other(format!("the child ended with status {status:#x}"))),
    }
}
