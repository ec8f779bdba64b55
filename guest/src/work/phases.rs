//! Phases of known working sets.
//!
//! An idle phase, then one phase for each size given: every page of that much memory written
//! again and again. The idle phase does the same with no memory at all, so it shows what the
//! kernel and this program touch besides. Then, after a moment of quiet, a file is read twice:
//! from disk, and from the page cache. Reading takes far more of the kernel than idling does (two
//! MiB of code, requests and the like), so before it a MiB elsewhere in the file is read twice
//! too, to show how much.
//!
//! Each phase says `begin`, `steady` once everything has been touched for the first time (what
//! came before is the kernel giving memory), and `end`. `bytes` is what the phase touches;
//! `kernel_bytes` what the kernel must touch along with it: the page tables that map it. What it
//! must touch for a page of the file, its `struct page`, depends on where the page lies, so that
//! is told after the last phase, in an event `file`.

use crate::report::emit;
use crate::request::Request;
use crate::sys::{Mapping, PAGE};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// Between two passes: short against any window, long enough not to starve others.
const PAUSE: Duration = Duration::from_millis(20);
const BUFFER: usize = 64 << 10;
/// `sizeof(struct page)` on x86-64.
const STRUCT_PAGE: u64 = 64;
/// Bytes that /proc/self/pagemap has for each page, and the bits of them that are the frame's
/// number (the kernel's Documentation/admin-guide/mm/pagemap.rst).
const PAGEMAP_ENTRY: u64 = 8;
const PAGEMAP_FRAME: u64 = (1 << 55) - 1;
/// Entries in a page table.
const TABLE_ENTRIES: u64 = 512;

/// What is read to see what reading takes.
const SAMPLE: u64 = MIB;
/// Until the kernel has reported the freed memory, and as much longer as a window of 10 s needs
/// to fit around a reading phase.
const SETTLE: Duration = Duration::from_secs(8);

pub(super) fn run(sizes_mib: &[u64], request: &Request) -> bool {
    let mut ok = touch("idle", 0, request.phase);
    for &mib in sizes_mib {
        ok &= touch("touch", mib, request.phase);
    }
    ok &= touch("settle", 0, SETTLE);
    ok & read_twice(request)
}

fn touch(name: &'static str, mib: u64, length: Duration) -> bool {
    let bytes = mib * MIB;
    let tables = bytes.div_ceil(PAGE as u64 * TABLE_ENTRIES) * PAGE as u64;
    let phase = Phase { name, bytes, kernel_bytes: tables };
    phase.says("begin");
    let Ok(memory) = memory_of(bytes) else {
        return phase.failed("no address space");
    };
    let pass = |number| memory.iter().for_each(|memory| memory.touch_every_page(number));
    pass(0);
    phase.says("steady");
    let start = Instant::now();
    let mut passes = 0;
    while start.elapsed() < length {
        passes += 1;
        pass(passes);
        std::thread::sleep(PAUSE);
    }
    phase.says("end");
    true
}

/// None for no bytes.
fn memory_of(bytes: u64) -> std::io::Result<Option<Mapping>> {
    if bytes == 0 {
        return Ok(None);
    }
    let memory = Mapping::new(bytes as usize, libc::PROT_READ | libc::PROT_WRITE)?;
    memory.small_pages_only();
    Ok(Some(memory))
}

fn read_twice(request: &Request) -> bool {
    read_file(request).unwrap_or_else(|error| {
        emit("phase", &[("name", "read".into()), ("error", error.to_string().as_str().into())]);
        false
    })
}

fn read_file(request: &Request) -> std::io::Result<bool> {
    let (path, bytes) = file_to_read(request.file_mib * MIB)?;
    // Open throughout: the last one to close a block device empties its page cache.
    let file = File::open(path)?;
    let sample_structs = SAMPLE / PAGE as u64 * STRUCT_PAGE;
    let sample = |name| Phase { name, bytes: SAMPLE, kernel_bytes: sample_structs };
    let whole = |name| Phase { name, bytes, kernel_bytes: 0 };
    let ok = read_once(&sample("sample"), &file, bytes, request.phase)
        && read_once(&sample("resample"), &file, bytes, request.phase)
        && read_once(&whole("read"), &file, 0, request.phase)
        && read_once(&whole("reread"), &file, 0, request.phase);
    emit("file", &[("bytes", bytes.into()), ("kernel_bytes", struct_pages(&file, bytes)?.into())]);
    Ok(ok)
}

/// A whole pass over the file, then quiet until the phase is over: a window as long as the
/// phase sees the file once.
fn read_once(phase: &Phase, file: &File, from: u64, length: Duration) -> bool {
    phase.says("begin");
    let start = Instant::now();
    match read_bytes(file, from, phase.bytes) {
        Ok(()) => phase.says("steady"),
        Err(error) => return phase.failed(&error.to_string()),
    }
    std::thread::sleep(length.saturating_sub(start.elapsed()));
    phase.says("end");
    true
}

/// Bytes of the pages on which the `struct page` of each page of the file lies.
fn struct_pages(file: &File, bytes: u64) -> std::io::Result<u64> {
    let memory = Mapping::shared(bytes as usize, libc::PROT_READ, file.as_raw_fd())?;
    let pages = bytes / PAGE as u64;
    memory.read_every_page();
    let pagemap = File::open("/proc/self/pagemap")?;
    let first = memory.pointer() as u64 / PAGE as u64;
    let mut found = BTreeSet::new();
    let mut entry = [0; PAGEMAP_ENTRY as usize];
    for page in first..first + pages {
        pagemap.read_exact_at(&mut entry, page * PAGEMAP_ENTRY)?;
        let frame = u64::from_le_bytes(entry) & PAGEMAP_FRAME;
        found.insert(frame * STRUCT_PAGE / PAGE as u64);
    }
    Ok(found.len() as u64 * PAGE as u64)
}

fn read_bytes(file: &File, from: u64, bytes: u64) -> std::io::Result<()> {
    let mut file = file;
    file.seek(SeekFrom::Start(from))?;
    let mut file = file.take(bytes);
    let mut buffer = vec![0; BUFFER];
    while file.limit() > 0 {
        if file.read(&mut buffer)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// The disk if there is one, else a file in memory; and how much of it to read. What follows
/// that is the sample.
fn file_to_read(bytes_asked: u64) -> std::io::Result<(&'static Path, u64)> {
    let disk = Path::new("/dev/vda");
    // Run by hand, a disk of that name is the host's own.
    let ours = std::process::id() == 1;
    if let (true, Ok(sectors)) = (ours, std::fs::read_to_string("/sys/class/block/vda/size")) {
        let disk_bytes = sectors.trim().parse::<u64>().unwrap_or(0) * 512;
        let room = disk_bytes.checked_sub(SAMPLE).ok_or(std::io::ErrorKind::StorageFull)?;
        let whole_pages = room.min(bytes_asked) / PAGE as u64 * PAGE as u64;
        return Ok((disk, whole_pages));
    }
    let path = Path::new("/tmp/fathom-phases");
    let mut file = File::create(path)?;
    let block = vec![0x5a; BUFFER];
    for _ in 0..(bytes_asked + SAMPLE) / BUFFER as u64 {
        file.write_all(&block)?;
    }
    Ok((path, bytes_asked / BUFFER as u64 * BUFFER as u64))
}

struct Phase {
    name: &'static str,
    bytes: u64,
    kernel_bytes: u64,
}

impl Phase {
    fn says(&self, state: &str) {
        emit(
            "phase",
            &[
                ("name", self.name.into()),
                ("mib", (self.bytes / MIB).into()),
                ("state", state.into()),
                ("bytes", self.bytes.into()),
                ("kernel_bytes", self.kernel_bytes.into()),
            ],
        );
    }

    fn failed(&self, why: &str) -> bool {
        emit("phase", &[("name", self.name.into()), ("error", why.into())]);
        false
    }
}
