//! Files read, written and deleted.

use super::Load;
use super::place::{BLOCK, Numbers, Place, fill_block, read_through};
use crate::sys::PAGE;
use std::fs::{self, File, OpenOptions};
use std::io::{Result, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub(super) const LOADS: [Load; 6] = [
    Load { name: "read", run: read },
    Load { name: "read-random", run: read_random },
    Load { name: "write", run: write },
    Load { name: "overwrite", run: overwrite },
    Load { name: "delete", run: delete },
    Load { name: "truncate", run: truncate },
];

/// Files of the loads that delete are so large.
const FILE_BLOCKS: u64 = 16;

/// More than fits, in order and twice over: what comes evicts what was read before.
fn read(place: &Place) -> Result<()> {
    let size = place.size_or(130);
    read_through(&place.big(), 0, size)?;
    read_through(&place.big(), 0, size)
}

/// Single pages in no order, of a file larger than memory.
fn read_random(place: &Place) -> Result<()> {
    place.fill()?;
    let file = File::open(place.big())?;
    no_readahead(&file);
    let pages = file.metadata()?.len() / PAGE as u64;
    let (mut numbers, mut page) = (Numbers::new(), [0; PAGE]);
    for _ in 0..place.size_or(40) / PAGE as u64 {
        file.read_exact_at(&mut page, numbers.below(pages) * PAGE as u64)?;
    }
    Ok(())
}

/// A new file, larger than memory.
fn write(place: &Place) -> Result<()> {
    write_file(&place.path("written"), place.size_or(120), 0)
}

/// Some bytes here and there in a file larger than memory: pages are read, changed and written.
fn overwrite(place: &Place) -> Result<()> {
    place.fill()?;
    let file = OpenOptions::new().read(true).write(true).open(place.big())?;
    no_readahead(&file);
    let pages = file.metadata()?.len() / PAGE as u64;
    let mut numbers = Numbers::new();
    for number in 0..place.size_or(25) / PAGE as u64 {
        let at = numbers.below(pages) * PAGE as u64 + 512;
        file.write_all_at(&number.to_le_bytes(), at)?;
    }
    file.sync_data()
}

/// Files written and deleted, time and again, and another read into the frames that were theirs: nothing that
/// is lost with a file was evicted.
fn delete(place: &Place) -> Result<()> {
    come_and_go(place, |path| fs::remove_file(path))
}

/// As with `delete`, but the files stay, without content.
fn truncate(place: &Place) -> Result<()> {
    come_and_go(place, |path| OpenOptions::new().write(true).open(path)?.set_len(0))
}

fn come_and_go(place: &Place, go: fn(&Path) -> Result<()>) -> Result<()> {
    const ROUNDS: u64 = 3;
    let size = place.size_or(45);
    for round in 0..ROUNDS {
        let file = |number: u64| place.path(&format!("file-{round}-{number}"));
        let count = size / (FILE_BLOCKS * BLOCK as u64);
        for number in 0..count {
            write_file(&file(number), FILE_BLOCKS * BLOCK as u64, round << 32 | number << 16)?;
        }
        for number in 0..count {
            place.remember(&file(number))?;
            go(&file(number))?;
        }
        read_through(&place.big(), round * size, size)?;
    }
    Ok(())
}

/// Durable when it returns. The blocks are numbered from `first`.
pub(super) fn write_file(path: &Path, bytes: u64, first: u64) -> Result<()> {
    let mut file = File::create(path)?;
    let mut block = vec![0; BLOCK];
    for number in 0..bytes / BLOCK as u64 {
        fill_block(&mut block, first + number);
        file.write_all(&block)?;
    }
    file.sync_all()
}

pub(super) fn no_readahead(file: &File) {
    // SAFETY: advice about an open file; touches no memory of ours.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
}
