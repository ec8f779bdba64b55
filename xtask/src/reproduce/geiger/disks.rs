//! The disks of a guest whose page cache is looked at: a file system with a file larger than memory, a swap area,
//! an empty disk for what its kernel tells. Made by an ordinary user, without mounting.

use super::super::folder;
use crate::command::{find_program, run};
use crate::kit::Kit;
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufWriter, Read as _, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

const MIB: u64 = 1 << 20;
const PAGE: usize = 4096;
/// Most of it is free.
const DISK_MIB: u64 = 1024;
const BIG_MIB: u64 = 256;
const SWAP_MIB: u64 = 256;
/// Sparse: what is not written costs nothing.
const TRACE_MIB: u64 = 2048;
/// So many folders with so many empty files each, for what the kernel keeps of each.
const FOLDERS: u32 = 40;
const FILES: u32 = 500;
/// Raise it when disks made before are no longer good.
const LAYOUT: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum FileSystem {
    Ext4,
    Xfs,
}

pub(super) struct Disks {
    pub(super) initramfs: PathBuf,
    /// Not to be written to: what a guest writes goes to `overlay`.
    pub(super) scratch: PathBuf,
    pub(super) overlay: PathBuf,
    pub(super) swap: PathBuf,
    trace: PathBuf,
}

impl Disks {
    /// Made unless they are there.
    pub(super) fn prepare(kit: &Kit, file_system: FileSystem) -> Result<Self> {
        let folder = folder()?.join("geiger");
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let name = format!("{file_system:?}-{LAYOUT}").to_lowercase();
        let scratch = folder.join(format!("{name}.img"));
        if !scratch.is_file() {
            eprintln!("making a disk with {name}");
            let content = tempfile::tempdir_in(&folder)?;
            fill(content.path())?;
            let new = folder.join("new.img");
            match file_system {
                FileSystem::Ext4 => make_ext4(content.path(), &new)?,
                FileSystem::Xfs => make_xfs(kit, content.path(), &new)?,
            }
            fs::rename(&new, &scratch).with_context(|| format!("replace {}", scratch.display()))?;
        }
        let initramfs = match file_system {
            FileSystem::Ext4 => kit.initramfs(),
            FileSystem::Xfs => kit.xfs_initramfs()?,
        };
        let [overlay, swap, trace] =
            ["overlay.cow", "swap.img", "trace.img"].map(|file| folder.join(file));
        Ok(Self { initramfs, scratch, overlay, swap, trace })
    }

    /// What a guest elsewhere must have; the others are made anew for each.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        vec![self.initramfs.clone(), self.scratch.clone()]
    }

    /// The blocks of the file system's log, where that is XFS.
    pub(super) fn xfs_log(&self) -> Result<Option<Range<u64>>> {
        let mut first = [0; 512];
        let read = File::open(&self.scratch).and_then(|mut disk| disk.read_exact(&mut first));
        read.with_context(|| format!("read {}", self.scratch.display()))?;
        Ok(xfs_log(&first))
    }

    /// As they are before a guest: nothing written, swapped or told. The disk for what it tells.
    pub(super) fn fresh(&self) -> Result<PathBuf> {
        for file in [&self.overlay, &self.swap, &self.trace] {
            match fs::remove_file(file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("delete {}", file.display()));
                }
                _ => {}
            }
        }
        sparse(&self.trace, TRACE_MIB)?;
        fs::write(&self.swap, swap_header(SWAP_MIB * MIB / PAGE as u64))
            .with_context(|| format!("write {}", self.swap.display()))?;
        sparse(&self.swap, SWAP_MIB)?;
        Ok(self.trace.clone())
    }
}

/// By the superblock (fs/xfs/libxfs/xfs_format.h, `struct xfs_dsb`): where a log begins is told by allocation group, and
/// by block in there. With blocks of another size nobody looks.
fn xfs_log(superblock: &[u8; 512]) -> Option<Range<u64>> {
    let number = |at: usize, len: usize| {
        superblock[at..at + len].iter().fold(0, |number: u64, &byte| number << 8 | u64::from(byte))
    };
    if superblock[..4] != *b"XFSB" || number(4, 4) != PAGE as u64 {
        return None;
    }
    let (start, group_blocks, blocks) = (number(48, 8), number(84, 4), number(96, 4));
    let bits = u32::try_from(number(124, 1)).ok().filter(|bits| *bits < u64::BITS)?;
    let group = (start >> bits).checked_mul(group_blocks)?;
    let first = group.checked_add(start & ((1 << bits) - 1))?;
    Some(first..first.checked_add(blocks)?).filter(|_| start != 0)
}

fn sparse(file: &Path, mib: u64) -> Result<()> {
    let open = File::options().create(true).write(true).truncate(false).open(file);
    let set = open.and_then(|open| open.set_len(mib * MIB));
    set.with_context(|| format!("make {}", file.display()))
}

/// What `swapon` looks for in the first page (include/linux/swap.h, `union swap_header`).
fn swap_header(pages: u64) -> Vec<u8> {
    const VERSION: u32 = 1;
    const MAGIC: &[u8] = b"SWAPSPACE2";
    let mut page = vec![0; PAGE];
    page[1024..1028].copy_from_slice(&VERSION.to_le_bytes());
    let last = u32::try_from(pages - 1).unwrap_or(u32::MAX);
    page[1028..1032].copy_from_slice(&last.to_le_bytes());
    page[PAGE - MAGIC.len()..].copy_from_slice(MAGIC);
    page
}

/// The file `big`, of whose pages no two are alike, and many empty ones.
fn fill(folder: &Path) -> Result<()> {
    let file = folder.join("big");
    let mut big =
        BufWriter::new(File::create(&file).with_context(|| format!("create {}", file.display()))?);
    let mut page = [0; PAGE];
    for number in 0..BIG_MIB * MIB / PAGE as u64 {
        // Not zeros, which would be a hole.
        page.fill((number * 31) as u8 | 1);
        page[..8].copy_from_slice(&number.to_le_bytes());
        big.write_all(&page)?;
    }
    big.flush()?;
    for number in 0..FOLDERS {
        let many = folder.join("many").join(number.to_string());
        fs::create_dir_all(&many)?;
        for number in 0..FILES {
            File::create(many.join(number.to_string()))?;
        }
    }
    Ok(())
}

fn make_ext4(content: &Path, image: &Path) -> Result<()> {
    let mke2fs = find_program("mke2fs").context("mke2fs is missing: apt-get install e2fsprogs")?;
    let inodes = (FOLDERS * (FILES + 1) * 2).to_string();
    // Nothing is left for the guest's kernel to do in the background.
    let options = "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0";
    let mut command = Command::new(mke2fs);
    command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-N", &inodes, "-E", options]);
    run(command.arg("-d").arg(content).arg(image).arg(format!("{DISK_MIB}M")))
}

fn make_xfs(kit: &Kit, content: &Path, image: &Path) -> Result<()> {
    let prototype = content.with_extension("prototype");
    fs::write(&prototype, xfs_prototype(content))
        .with_context(|| format!("write {}", prototype.display()))?;
    sparse(image, DISK_MIB)?;
    let mut mkfs = kit.mkfs_xfs()?;
    // A file from a prototype has to fit into one of the parts that a file system is divided into,
    // or mkfs.xfs writes the rest over what lies behind.
    let made = run(mkfs.args(["-q", "-f", "-d", "agcount=2", "-p"]).arg(&prototype).arg(image));
    fs::remove_file(&prototype)?;
    made
}

/// What is on the file system, as `mkfs.xfs -p` reads it: a folder's entries follow its line, and `$` ends them.
fn xfs_prototype(content: &Path) -> String {
    let mut text = String::from("unused\n0 0\nd--755 0 0\n");
    let _ = writeln!(text, "big ---644 0 0 {}", content.join("big").display());
    text += "many d--755 0 0\n";
    for folder in 0..FOLDERS {
        let _ = writeln!(text, "{folder} d--755 0 0");
        for file in 0..FILES {
            let _ = writeln!(text, "{file} ---644 0 0 /dev/null");
        }
        text += "$\n";
    }
    text + "$\n$\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_area_is_known_by_its_first_page() {
        let page = swap_header(256);
        assert_eq!(page.len(), PAGE);
        assert_eq!(
            (&page[PAGE - 10..], &page[1024..1032]),
            (b"SWAPSPACE2".as_slice(), [1, 0, 0, 0, 255, 0, 0, 0].as_slice())
        );
    }

    #[test]
    fn a_log_is_where_the_superblock_has_it() {
        let mut superblock = [0; 512];
        superblock[..8].copy_from_slice(b"XFSB\0\0\x10\0");
        // Block 6 of group 1; groups of 1000 blocks, which take 10 bits.
        superblock[48..56].copy_from_slice(&(1_u64 << 10 | 6).to_be_bytes());
        superblock[84..88].copy_from_slice(&1000_u32.to_be_bytes());
        superblock[96..100].copy_from_slice(&50_u32.to_be_bytes());
        superblock[124] = 10;
        assert_eq!(xfs_log(&superblock), Some(1006..1056));
        superblock[124] = 200;
        assert_eq!((xfs_log(&superblock), xfs_log(&[0; 512])), (None, None));
    }

    #[test]
    fn a_prototype_ends_each_folder() {
        let text = xfs_prototype(Path::new("/content"));
        assert!(text.contains("\nbig ---644 0 0 /content/big\n"));
        let begun = text.lines().filter(|line| line.contains("d--755")).count();
        assert_eq!(
            (begun, text.lines().filter(|line| *line == "$").count()),
            (FOLDERS as usize + 2, FOLDERS as usize + 2)
        );
    }
}
