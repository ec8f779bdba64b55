//! A snapshot that comes from another store: its files as they are, in a directory that is whole or absent.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use memory::FRAME_SIZE;

use super::place::Place;
use crate::codec::Compression;
use crate::error::SnapshotError;
use crate::host::{Host, Output, RealHost};
use crate::manifest::part;
use crate::map::Kind;
use crate::reader::Snapshot;
use crate::store::PartFile;

/// Bytes that are read at once.
const PIECE: u64 = 1 << 20;

impl Snapshot {
    /// Makes a copy in the directory `path`, which gets its name when all of it is there and checked. Ancestors are
    /// not copied. A snapshot that was at `path` is replaced; answers what is left of it, if it could not be removed.
    /// `told` hears how many bytes of memory have come.
    ///
    /// # Errors
    /// Something that is no snapshot has the name, it cannot be read, is not what was written, or the host refuses.
    /// Nothing is left behind, and what was there is there.
    pub fn copy(
        &self,
        path: &Path,
        told: impl FnMut(u64),
    ) -> Result<Option<PathBuf>, SnapshotError> {
        self.copy_on(path, Arc::new(RealHost), told)
    }

    pub(super) fn copy_on(
        &self,
        path: &Path,
        host: Arc<dyn Host>,
        mut told: impl FnMut(u64),
    ) -> Result<Option<PathBuf>, SnapshotError> {
        let place = Place::make(path, Arc::clone(&host))?;
        let copying = Copying { host: &*host, directory: place.directory(), from: self };
        copying.memory(&mut told)?;
        let chunks = self.manifest().parts.chunks.map(|_| part::CHUNKS);
        for name in [part::MACHINE, part::FRAMES, part::INDEX].into_iter().chain(chunks) {
            copying.whole(&PartFile::open(self.store(), name)?, name)?;
        }
        match PartFile::open(self.store(), part::WORKING_SET) {
            Ok(set) => copying.whole(&set, part::WORKING_SET)?,
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(error),
        }
        // The last one: without it, it is none.
        copying.whole(&PartFile::open(self.store(), part::MANIFEST)?, part::MANIFEST)?;
        let store = host.store(place.directory());
        let store = store.map_err(SnapshotError::host("open", place.directory().display()))?;
        let copy = Snapshot::open_beside(store, self.parent().cloned())?;
        copy.verify_own()?;
        if copy.checksum() != self.checksum() {
            let why = "another snapshot has taken its place: try again".into();
            return Err(SnapshotError::Refused { path: self.store().name(), why });
        }
        place.take()
    }
}

fn is_absent(error: &SnapshotError) -> bool {
    matches!(error, SnapshotError::Host { error, .. } if error.kind() == std::io::ErrorKind::NotFound)
}

struct Copying<'a> {
    host: &'a dyn Host,
    directory: &'a Path,
    from: &'a Snapshot,
}

impl Copying<'_> {
    /// All bytes of a part.
    fn whole(&self, part: &PartFile, name: &str) -> Result<(), SnapshotError> {
        let (output, path) = self.create(name)?;
        copy_range(part, &*output, &path, 0, part.bytes)?;
        output.sync().map_err(SnapshotError::host("sync", &path))
    }

    /// Of a plain image what is stored; the rest stays a hole.
    fn memory(&self, told: &mut dyn FnMut(u64)) -> Result<(), SnapshotError> {
        let image = PartFile::open(self.from.store(), part::MEMORY)?;
        let (output, path) = self.create(part::MEMORY)?;
        output.set_len(image.bytes).map_err(SnapshotError::host("set the length of", &path))?;
        let mut come = 0;
        let mut range = |first: u64, end: u64| {
            for at in (first..end).step_by(PIECE as usize) {
                let bytes = (end - at).min(PIECE);
                copy_range(&image, &*output, &path, at, at + bytes)?;
                come += bytes;
                told(come);
            }
            Ok::<(), SnapshotError>(())
        };
        if self.from.manifest().memory.compression == Compression::None {
            for run in self.from.runs().iter().filter(|run| run.kind == Kind::Stored) {
                let frames = u64::from(run.first.0)..u64::from(run.first.0) + u64::from(run.count);
                range(frames.start * FRAME_SIZE as u64, frames.end * FRAME_SIZE as u64)?;
            }
        } else {
            range(0, image.bytes)?;
        }
        output.sync().map_err(SnapshotError::host("sync", &path))
    }

    fn create(&self, name: &str) -> Result<(Box<dyn Output>, String), SnapshotError> {
        let path = self.directory.join(name);
        let name = path.display().to_string();
        let output = self.host.create(&path).map_err(SnapshotError::host("create", &name))?;
        Ok((output, name))
    }
}

fn copy_range(
    from: &PartFile,
    into: &dyn Output,
    path: &str,
    first: u64,
    end: u64,
) -> Result<(), SnapshotError> {
    let mut buffer = vec![0; PIECE.min(end.saturating_sub(first)) as usize];
    let mut at = first;
    while at < end {
        let piece = &mut buffer[..(end - at).min(PIECE) as usize];
        from.read(piece, at)?;
        into.write_all_at(piece, at).map_err(SnapshotError::host("write", path))?;
        at += piece.len() as u64;
    }
    Ok(())
}
