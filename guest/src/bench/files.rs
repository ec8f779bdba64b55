//! Files in memory, and a disk.

use super::{Job, Workload, mix, mix_bytes, unsupported};
use std::fs::{File, OpenOptions};
use std::io::{Read, Result, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

pub(super) const WORKLOADS: [Workload; 3] = [
    Workload { name: "tmpfs", group: "files", amount: 400, cpus: 1, run: tmpfs },
    Workload { name: "disk-read", group: "files", amount: 32, cpus: 1, run: disk_read },
    Workload { name: "disk-write", group: "files", amount: 8, cpus: 1, run: disk_write },
];

const BLOCK: usize = 64 << 10;
const MIB: u64 = 1 << 20;
/// What is written lies from here on; what is read, before it.
const WRITTEN: u64 = 64 * MIB;

/// A file of 16 blocks of 4 KiB made, read and deleted. Amount: files.
fn tmpfs(job: &Job<'_>) -> Result<()> {
    let folder = tmpfs_folder()?;
    let path = folder.join(format!("fathom-bench-{}", std::process::id()));
    let mut block = vec![0x5a_u8; 4096];
    job.measure(|| {
        let mut checksum = 0;
        for n in 0..job.amount {
            let mut file =
                File::options().create(true).truncate(true).read(true).write(true).open(&path)?;
            for at in 0..16 {
                block[..8].copy_from_slice(&(n + at).to_le_bytes());
                file.write_all(&block)?;
            }
            file.seek(SeekFrom::Start(0))?;
            while file.read(&mut block)? > 0 {
                checksum = mix(checksum, u64::from(block[0]));
            }
            std::fs::remove_file(&path)?;
        }
        Ok(checksum)
    })
}

/// Where a tmpfs is mounted: `/tmp` in a guest, elsewhere mostly `/dev/shm`.
fn tmpfs_folder() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    let is_tmpfs = |folder: &str| {
        mounts.lines().any(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            words.get(1) == Some(&folder) && words.get(2) == Some(&"tmpfs")
        })
    };
    let found = ["/tmp", "/dev/shm", "/run"].into_iter().find(|folder| is_tmpfs(folder));
    found.map(PathBuf::from).ok_or_else(|| unsupported("no tmpfs at /tmp or /dev/shm"))
}

/// In order and in blocks of 64 KiB. A disk's pages are not in the guest's memory beforehand;
/// a file stands in for a disk where there is none, and is read from the host's memory, where
/// also a VMM finds the guest's disk. Amount: MiB, 64 at most.
fn disk_read(job: &Job<'_>) -> Result<()> {
    let file = disk(&job.request.scratch, false)?;
    let mut block = vec![0; BLOCK];
    job.measure(|| {
        let mut checksum = 0;
        for at in (0..(job.amount * MIB).min(WRITTEN)).step_by(BLOCK) {
            file.read_exact_at(&mut block, at)?;
            checksum = mix(checksum, mix_bytes(&block[..64]));
        }
        Ok(checksum)
    })
}

/// In order, in blocks of 64 KiB, and then made durable. Amount: MiB, 64 at most.
fn disk_write(job: &Job<'_>) -> Result<()> {
    let file = disk(&job.request.scratch, true)?;
    let mut block = vec![0_u8; BLOCK];
    job.measure(|| {
        let length = (job.amount * MIB).min(WRITTEN);
        for at in (0..length).step_by(BLOCK) {
            block.fill((at / BLOCK as u64) as u8);
            file.write_all_at(&block, WRITTEN + at)?;
        }
        file.sync_data()?;
        Ok(length)
    })
}

fn disk(path: &Path, write: bool) -> Result<File> {
    crate::work::program::wait_for(path);
    let open = OpenOptions::new().read(true).write(write).open(path);
    let file = open.map_err(|error| unsupported(format!("open {}: {error}", path.display())))?;
    if file.metadata()?.file_type().is_block_device() {
        forget_cached(&file);
    }
    Ok(file)
}

fn forget_cached(device: &File) {
    /// linux/fs.h: `_IO(0x12, 97)`.
    const BLKFLSBUF: libc::Ioctl = 0x1261;
    // SAFETY: takes no argument, and touches no memory of ours.
    unsafe { libc::ioctl(device.as_raw_fd(), BLKFLSBUF) };
}
