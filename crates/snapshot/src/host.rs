//! What a writer asks of the host, so that tests can refuse it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{CWD, FallocateFlags, RenameFlags};

use crate::store::{Directory, Store};

/// A file that is written.
pub(crate) trait Output: Send + Sync {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// What is beyond what was written is a hole, which reads as zeros.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Makes a hole, which reads as zeros.
    fn punch(&self, offset: u64, bytes: u64) -> io::Result<()>;
    /// Makes it durable.
    fn sync(&self) -> io::Result<()>;
}

/// A file system.
pub(crate) trait Host: Send + Sync {
    fn create_directory(&self, path: &Path) -> io::Result<()>;
    /// A new file.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>>;
    /// Makes durable which names are in a directory.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
    /// To read again what was written.
    fn store(&self, path: &Path) -> io::Result<Box<dyn Store>>;
    /// Another name of the same file.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Each gets the other's name, at once.
    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()>;
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    fn remove_directory(&self, path: &Path) -> io::Result<()>;
}

/// The real one. Guest memory is the user's alone, so are the files.
pub(crate) struct RealHost;

impl Output for File {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        File::set_len(self, bytes)
    }

    fn punch(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(self, how, offset, bytes)?)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }
}

impl Host for RealHost {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Box::new(file))
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn store(&self, path: &Path) -> io::Result<Box<dyn Store>> {
        Ok(Box::new(Directory::open(path)?))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::hard_link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        Ok(rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir(path)
    }
}
