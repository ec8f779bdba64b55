//! Where the parts of a snapshot are read from.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::checksum::Running;
use crate::error::{SnapshotError, printable};
use crate::manifest::Part;

/// One part of a snapshot, read by position from any thread.
#[allow(clippy::len_without_is_empty, reason = "of a file, which may fail")]
pub trait ReadAt: Send + Sync {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Fills `into` from `offset` on.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] where it ends before that; what `into` holds is of no meaning then.
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()>;

    /// Its descriptor, if it is a file that can be mapped.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl ReadAt for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, into, offset)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

/// What holds the parts of one snapshot: a directory, or an object store.
pub trait Store: Send + Sync {
    /// For messages: a path.
    fn name(&self) -> String;

    /// The part `name`, one of those of docs/formats/snapshot.md.
    fn open(&self, name: &str) -> io::Result<Arc<dyn ReadAt>>;

    /// The store of the parent that the manifest calls `path`.
    fn parent(&self, path: &str) -> io::Result<Box<dyn Store>>;

    /// The directory, if it is one.
    fn directory(&self) -> Option<&Path> {
        None
    }
}

/// A snapshot's directory. It stays the one that was opened, whoever gets its name later.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    directory: OwnedFd,
}

impl Directory {
    /// The directory at `path`.
    ///
    /// # Errors
    /// There is none, or it may not be read.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Directory> {
        let path = path.into();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&path, flags, Mode::empty())?;
        Ok(Directory { path, directory })
    }
}

impl Store for Directory {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn ReadAt>> {
        // A pipe would block for ever, and a device has no length.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let file = File::from(rustix::fs::openat(&self.directory, name, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(Arc::new(file))
    }

    fn parent(&self, path: &str) -> io::Result<Box<dyn Store>> {
        // Relative to the folder that this directory is in.
        let whole = std::fs::canonicalize(&self.path)?;
        Ok(Box::new(Directory::open(whole.parent().unwrap_or(&whole).join(path))?))
    }

    fn directory(&self) -> Option<&Path> {
        Some(&self.path)
    }
}

/// Parts in memory, with those of the parent: what came from elsewhere, and tests.
#[derive(Clone, Debug, Default)]
pub struct InMemory {
    /// Each part's bytes, by its name.
    pub parts: BTreeMap<String, Arc<Vec<u8>>>,
    /// The parent, whatever path the manifest has for it.
    pub parent: Option<Arc<InMemory>>,
}

impl InMemory {
    /// Reads all files of the directory `path`.
    ///
    /// # Errors
    /// As for reading a file.
    pub fn read(path: &Path) -> io::Result<InMemory> {
        let mut parts = BTreeMap::new();
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            let bytes = std::fs::read(entry.path())?;
            parts.insert(entry.file_name().to_string_lossy().into_owned(), Arc::new(bytes));
        }
        Ok(InMemory { parts, parent: None })
    }
}

impl Store for InMemory {
    fn name(&self) -> String {
        "memory".into()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn ReadAt>> {
        let part = self.parts.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(Bytes(Arc::clone(part))))
    }

    fn parent(&self, _: &str) -> io::Result<Box<dyn Store>> {
        let parent = self.parent.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new((**parent).clone()))
    }
}

struct Bytes(Arc<Vec<u8>>);

impl ReadAt for Bytes {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset..));
        let from = from.and_then(|from| from.get(..into.len()));
        into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A part that has been opened, with what is known of it: reads past its end are errors that name it.
pub(crate) struct PartFile {
    pub(crate) path: String,
    pub(crate) file: Arc<dyn ReadAt>,
    /// As the manifest says, and as it was when it was opened.
    pub(crate) bytes: u64,
}

impl PartFile {
    pub(crate) fn open(store: &dyn Store, name: &str) -> Result<PartFile, SnapshotError> {
        let path = format!("{}/{name}", store.name());
        let file = store.open(name).map_err(SnapshotError::host("open", &path))?;
        let bytes = file.len().map_err(SnapshotError::host("look at", &path))?;
        Ok(PartFile { path, file, bytes })
    }

    /// Opens one that must have `bytes` bytes.
    pub(crate) fn open_sized(
        store: &dyn Store,
        name: &str,
        bytes: u64,
    ) -> Result<PartFile, SnapshotError> {
        let part = PartFile::open(store, name)?;
        if part.bytes != bytes {
            return Err(part.corrupt(part.bytes.min(bytes), "length", bytes, part.bytes));
        }
        Ok(part)
    }

    pub(crate) fn read(&self, into: &mut [u8], offset: u64) -> Result<(), SnapshotError> {
        self.file.read_exact_at(into, offset).map_err(|error| match error.kind() {
            // It was longer: whoever cut it short may put it back, as one does that copies another over it.
            io::ErrorKind::UnexpectedEof if self.has(offset, into.len()) => {
                let (length, opened) = (into.len(), self.bytes);
                let what = format!(
                    "offset {offset}, {length} bytes: it has become shorter: it had {opened} bytes"
                );
                SnapshotError::host("read", &self.path)(io::Error::new(error.kind(), what))
            }
            io::ErrorKind::UnexpectedEof => {
                // Not looked at now: a thread of a VM may not, by its filter of system calls.
                let found = self.bytes.saturating_sub(offset);
                self.corrupt(offset, "bytes", into.len(), found)
            }
            _ => SnapshotError::host("read", &self.path)(error),
        })
    }

    /// Whether it had these bytes when it was opened.
    fn has(&self, offset: u64, bytes: usize) -> bool {
        offset.checked_add(bytes as u64).is_some_and(|end| end <= self.bytes)
    }

    pub(crate) fn corrupt(
        &self,
        offset: u64,
        what: &'static str,
        expected: impl ToString,
        found: impl ToString,
    ) -> SnapshotError {
        let (expected, found) = (printable(expected), printable(found));
        SnapshotError::Corrupt { path: self.path.clone(), offset, what, expected, found }
    }

    /// Reads all of it in pieces of at most `piece` bytes, and compares its checksum at the end.
    pub(crate) fn check(
        &self,
        part: &Part,
        piece: usize,
        mut each: impl FnMut(u64, &[u8]) -> Result<(), SnapshotError>,
    ) -> Result<(), SnapshotError> {
        let mut running = Running::new();
        let mut buffer = vec![0; piece.min(self.bytes as usize)];
        let mut at = 0;
        while at < self.bytes {
            let left = usize::try_from(self.bytes - at).unwrap_or(usize::MAX);
            let buffer = &mut buffer[..piece.min(left)];
            self.read(buffer, at)?;
            running.add(buffer);
            each(at, buffer)?;
            at += buffer.len() as u64;
        }
        let found = running.checksum();
        if found == part.checksum {
            return Ok(());
        }
        Err(self.corrupt(0, "checksum of the file", part.checksum, found))
    }
}
