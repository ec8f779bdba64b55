//! Files read and written past the cache: nothing comes into it, and what is overwritten leaves it.

use super::Load;
use super::place::{BLOCK, Place, fill_block, read_through};
use crate::sys::Mapping;
use std::fs::{File, OpenOptions};
use std::io::Result;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

pub(super) const LOADS: [Load; 2] =
    [Load { name: "direct-read", run: read }, Load { name: "direct-write", run: write }];

fn read(place: &Place) -> Result<()> {
    let (file, size) = (open(place)?, place.size_or(60));
    let mut memory = buffer()?;
    // A part of it is in the cache, and stays there.
    read_through(&place.big(), 0, size / 4)?;
    for _ in 0..2 {
        for at in (0..size).step_by(BLOCK) {
            file.read_exact_at(bytes(&mut memory), at)?;
        }
    }
    Ok(())
}

fn write(place: &Place) -> Result<()> {
    let (file, size) = (open(place)?, place.size_or(40));
    let mut memory = buffer()?;
    read_through(&place.big(), 0, size / 2)?;
    for at in (0..size).step_by(BLOCK) {
        fill_block(bytes(&mut memory), 1 << 40 | at);
        file.write_all_at(bytes(&mut memory), at)?;
    }
    read_through(&place.big(), 0, size)
}

fn open(place: &Place) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT).open(place.big())
}

/// Aligned as the disk wants it.
fn buffer() -> Result<Mapping> {
    let memory = Mapping::new(BLOCK, libc::PROT_READ | libc::PROT_WRITE)?;
    memory.touch_every_page(0);
    Ok(memory)
}

fn bytes(memory: &mut Mapping) -> &mut [u8] {
    // SAFETY: a readable and writable mapping of that length, borrowed for as long.
    unsafe { std::slice::from_raw_parts_mut(memory.pointer(), BLOCK) }
}
