//! Events leave the kernel's buffers for a disk while they come.
//!
//! The disk is a row of chunks of 64 KiB: a page that says what follows, and 15 pages of that. The first of a
//! chunk's pages holds, all little-endian,
//!
//! ```text
//!  0  "FATHOMPC"
//!  8  u32  what follows: 1 pages of a processor's ring buffer, 2 text, 3 nothing: it was the last
//! 12  u32  which processor
//! 16  u32  how many bytes of the 15 pages
//! ```

use crate::patching::tracefs;
use crate::sys::{Mapping, PAGE};
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read, Result};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const MAGIC: &[u8; 8] = b"FATHOMPC";
const CHUNK: usize = 16 * PAGE;
const ROOM: usize = CHUNK - PAGE;
const EVENTS: u32 = 1;
const TEXT: u32 = 2;
const LAST: u32 = 3;
/// Short against the time in which a buffer fills.
const PAUSE: Duration = Duration::from_millis(25);

/// Reads all processors' buffers until it is told to end.
pub(super) struct Drain {
    end: Arc<AtomicBool>,
    thread: JoinHandle<Result<Writer>>,
}

impl Drain {
    pub(super) fn start(disk: &Path, cpus: u64) -> Result<Self> {
        let mut writer = Writer::open(disk)?;
        let mut rings = (0..cpus).map(open_ring).collect::<Result<Vec<_>>>()?;
        let end = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&end);
        let thread = std::thread::spawn(move || {
            loop {
                // Looked at first: what came before the end was told is read once more.
                let last = told.load(Ordering::Acquire);
                for (cpu, ring) in rings.iter_mut().enumerate() {
                    writer.ring(cpu as u32, ring)?;
                }
                if last {
                    return Ok(writer);
                }
                std::thread::sleep(PAUSE);
            }
        });
        Ok(Self { end, thread })
    }

    /// To be called when no more events come.
    pub(super) fn finish(self) -> Result<Writer> {
        self.end.store(true, Ordering::Release);
        self.thread.join().map_err(|_| Error::other("the thread that writes events is gone"))?
    }
}

fn open_ring(cpu: u64) -> Result<File> {
    let path = tracefs::path(&format!("per_cpu/cpu{cpu}/trace_pipe_raw"));
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// The disk, written past the page cache, so that it adds no pages to it.
pub(super) struct Writer {
    disk: File,
    at: u64,
    chunk: Mapping,
}

// SAFETY: the mapping is memory of the process, and only the writer uses it.
unsafe impl Send for Writer {}

impl Writer {
    fn open(disk: &Path) -> Result<Self> {
        crate::work::program::wait_for(disk);
        let open = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(disk);
        let disk = open.map_err(|error| Error::other(format!("{}: {error}", disk.display())))?;
        let chunk = Mapping::new(CHUNK, libc::PROT_READ | libc::PROT_WRITE)?;
        Ok(Self { disk, at: 0, chunk })
    }

    /// All that a ring buffer holds now: each read gives a page of it, whole or not.
    fn ring(&mut self, cpu: u32, ring: &mut File) -> Result<()> {
        let mut length = 0;
        loop {
            let page = &mut self.room()[length..length + PAGE];
            match ring.read(page) {
                Ok(0) => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Ok(got) => page[got..].fill(0),
                Err(error) => return Err(error),
            }
            length += PAGE;
            if length == ROOM {
                self.put(EVENTS, cpu, length)?;
                length = 0;
            }
        }
        if length > 0 { self.put(EVENTS, cpu, length) } else { Ok(()) }
    }

    /// The text, and that it was the last.
    pub(super) fn text(&mut self, text: &str) -> Result<()> {
        for part in text.as_bytes().chunks(ROOM) {
            self.room()[..part.len()].copy_from_slice(part);
            self.put(TEXT, 0, part.len())?;
        }
        self.put(LAST, 0, 0)?;
        self.disk.sync_all()
    }

    fn put(&mut self, kind: u32, cpu: u32, length: usize) -> Result<()> {
        let head = &mut self.bytes()[..20];
        head[..8].copy_from_slice(MAGIC);
        for (at, number) in [kind, cpu, length as u32].into_iter().enumerate() {
            head[8 + at * 4..12 + at * 4].copy_from_slice(&number.to_le_bytes());
        }
        let address = self.chunk.pointer().cast();
        // SAFETY: the whole mapping, which stays where it is; page-aligned as O_DIRECT wants it.
        let written =
            unsafe { libc::pwrite(self.disk.as_raw_fd(), address, CHUNK, self.at as i64) };
        match written {
            written if written == CHUNK as isize => self.at += CHUNK as u64,
            written if written < 0 => return Err(Error::last_os_error()),
            _ => return Err(Error::other("the disk for events is full")),
        }
        Ok(())
    }

    fn room(&mut self) -> &mut [u8] {
        &mut self.bytes()[PAGE..]
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: our own mapping of that length, readable and writable, to which no other reference is.
        unsafe { std::slice::from_raw_parts_mut(self.chunk.pointer(), CHUNK) }
    }
}
