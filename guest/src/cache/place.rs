//! Where a load works: a folder on the scratch disk, a size.

use crate::request::Request;
use crate::sys;
use crate::work::program::wait_for;
use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{Error, Read, Result};
use std::path::{Path, PathBuf};

pub(super) const MIB: u64 = 1 << 20;
pub(super) const FOLDER: &str = "/scratch";
pub(super) const BLOCK: usize = 64 << 10;
/// Modules that only some loads need, which whoever asks for those has put there.
const MODULES: &str = "/modules/apart";

pub(super) struct Place {
    pub(super) root: PathBuf,
    pub(super) swap: PathBuf,
    pub(super) trace: PathBuf,
    /// A program and its arguments, for the load that runs one.
    pub(super) words: Vec<String>,
    /// Of whose files it is told where they lie.
    pub(super) folders: RefCell<Vec<PathBuf>>,
    /// Of all memory that the kernel has to give.
    pub(super) memory: u64,
    asked: Option<u64>,
    /// Where files were that are no more.
    pub(super) gone: RefCell<String>,
}

impl Place {
    /// With nothing in the cache that can be out of it.
    pub(super) fn mount(request: &Request, mib: Option<u64>, words: Vec<String>) -> Result<Self> {
        wait_for(&request.scratch);
        fs::create_dir_all(FOLDER)?;
        let disk = request.scratch.to_string_lossy();
        sys::mount(&disk, FOLDER, "ext4", libc::MS_NOATIME).or_else(|_| {
            load_modules()?;
            sys::mount(&disk, FOLDER, "xfs", libc::MS_NOATIME)
        })?;
        sys::sync();
        fs::write("/proc/sys/vm/drop_caches", "3")?;
        let [root, swap, trace] =
            [&request.root, &request.swap, &request.trace].map(PathBuf::clone);
        let folders = RefCell::new(vec![FOLDER.into()]);
        let (memory, asked) = (memory()?, mib.map(|mib| mib * MIB));
        Ok(Self { root, swap, trace, words, folders, memory, asked, gone: RefCell::default() })
    }

    /// The size asked for, or else so much of memory; whole blocks.
    pub(super) fn size_or(&self, percent: u64) -> u64 {
        let size = self.asked.unwrap_or(self.memory / 100 * percent);
        size / BLOCK as u64 * BLOCK as u64
    }

    /// The file that is there beforehand.
    pub(super) fn big(&self) -> PathBuf {
        self.path("big")
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        Path::new(FOLDER).join(name)
    }

    /// Read the big file until memory is full of it.
    pub(super) fn fill(&self) -> Result<()> {
        let bytes = fs::metadata(self.big())?.len();
        read_through(&self.big(), 0, bytes.min(self.memory))
    }

    /// To be called before a file's blocks are freed, with all of it on disk.
    pub(super) fn remember(&self, path: &Path) -> Result<()> {
        super::extents::of_file(path, &mut self.gone.borrow_mut())
    }
}

/// In order, in blocks of 64 KiB; past the file's end there is nothing to read.
pub(super) fn read_through(path: &Path, from: u64, bytes: u64) -> Result<()> {
    let mut file = File::open(path)?;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(from))?;
    let mut file = file.take(bytes);
    let mut block = vec![0; BLOCK];
    while file.read(&mut block)? > 0 {}
    Ok(())
}

/// A block of which no two pages are alike, nor any two of different numbers.
pub(super) fn fill_block(block: &mut [u8], number: u64) {
    for (at, page) in block.chunks_mut(sys::PAGE).enumerate() {
        page.fill((number as u8).wrapping_mul(31).wrapping_add(at as u8));
        page[..8].copy_from_slice(&number.to_le_bytes());
        page[8..16].copy_from_slice(&(at as u64).to_le_bytes());
    }
}

/// Numbers without order, the same each time (Marsaglia, "Xorshift RNGs", 2003).
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}

fn memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| Error::other("/proc/meminfo has no MemTotal"))
}

fn load_modules() -> Result<()> {
    let names = fs::read_to_string(Path::new(MODULES).join("order"))?;
    for name in names.lines() {
        let file = File::open(Path::new(MODULES).join(name))?;
        match sys::load_module(&file) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
