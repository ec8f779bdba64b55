//! Phases of known working sets.
//!
//! An idle phase, then one phase for each size given: every page of that much memory written
//! again and again. Then, after a moment of quiet, a file is read twice: from disk, and from
//! the page cache.
//!
//! Each phase says `begin`, `steady` once everything has been touched for the first time (what
//! came before is the kernel giving memory), and `end`. `bytes` is what the phase touches;
//! `kernel_bytes` what the kernel must touch along with it: the page tables that map it, or the
//! `struct page` of each page of the file.

use crate::report::emit;
use crate::request::Request;
use crate::sys::{Mapping, PAGE};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// Between two passes: short against any window, long enough not to starve others.
const PAUSE: Duration = Duration::from_millis(20);
const BUFFER: usize = 64 << 10;
/// `sizeof(struct page)` on x86-64.
const STRUCT_PAGE: u64 = 64;
/// Entries in a page table.
const TABLE_ENTRIES: u64 = 512;

/// Long enough for a window of 10 s to see a reading phase of 9 s, and nothing before it.
const SETTLE: Duration = Duration::from_secs(3);

pub(super) fn run(sizes_mib: &[u64], request: &Request) -> bool {
    quiet("idle", request.phase + SETTLE);
    let mut ok = true;
    for &mib in sizes_mib {
        ok &= touch(mib, request.phase);
    }
    quiet("settle", SETTLE);
    ok & read_twice(request)
}

fn quiet(name: &'static str, length: Duration) {
    let phase = Phase { name, bytes: 0, kernel_bytes: 0 };
    phase.says("begin");
    phase.says("steady");
    std::thread::sleep(length);
    phase.says("end");
}

fn touch(mib: u64, length: Duration) -> bool {
    let bytes = mib * MIB;
    let tables = bytes.div_ceil(PAGE as u64 * TABLE_ENTRIES) * PAGE as u64;
    let phase = Phase { name: "touch", bytes, kernel_bytes: tables };
    phase.says("begin");
    let Ok(memory) = Mapping::new(bytes as usize, libc::PROT_READ | libc::PROT_WRITE) else {
        return phase.failed("no address space");
    };
    memory.small_pages_only();
    memory.touch_every_page(0);
    phase.says("steady");
    let start = Instant::now();
    let mut passes = 0;
    while start.elapsed() < length {
        passes += 1;
        memory.touch_every_page(passes);
        std::thread::sleep(PAUSE);
    }
    phase.says("end");
    true
}

fn read_twice(request: &Request) -> bool {
    let (path, bytes) = match file_to_read(request.file_mib * MIB) {
        Ok(found) => found,
        Err(error) => {
            emit("phase", &[("name", "read".into()), ("error", error.to_string().as_str().into())]);
            return false;
        }
    };
    ["read", "reread"].into_iter().all(|name| read_once(name, path, bytes, request.phase))
}

/// A whole pass over the file, then quiet until the phase is over: a window as long as the
/// phase sees the file once.
fn read_once(name: &'static str, path: &Path, bytes: u64, length: Duration) -> bool {
    let phase = Phase { name, bytes, kernel_bytes: bytes / PAGE as u64 * STRUCT_PAGE };
    phase.says("begin");
    let start = Instant::now();
    match read_bytes(path, bytes) {
        Ok(()) => phase.says("steady"),
        Err(error) => return phase.failed(&error.to_string()),
    }
    std::thread::sleep(length.saturating_sub(start.elapsed()));
    phase.says("end");
    true
}

fn read_bytes(path: &Path, bytes: u64) -> std::io::Result<()> {
    let mut file = File::open(path)?.take(bytes);
    let mut buffer = vec![0; BUFFER];
    while file.limit() > 0 {
        if file.read(&mut buffer)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// The disk if there is one, else a file in memory; and how much of it to read.
fn file_to_read(bytes_asked: u64) -> std::io::Result<(&'static Path, u64)> {
    let disk = Path::new("/dev/vda");
    // Run by hand, a disk of that name is the host's own.
    let ours = std::process::id() == 1;
    if let (true, Ok(sectors)) = (ours, std::fs::read_to_string("/sys/class/block/vda/size")) {
        let disk_bytes = sectors.trim().parse::<u64>().unwrap_or(0) * 512;
        let whole_pages = disk_bytes.min(bytes_asked) / PAGE as u64 * PAGE as u64;
        return Ok((disk, whole_pages));
    }
    let path = Path::new("/tmp/fathom-phases");
    let mut file = File::create(path)?;
    let block = vec![0x5a; BUFFER];
    for _ in 0..bytes_asked / BUFFER as u64 {
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
