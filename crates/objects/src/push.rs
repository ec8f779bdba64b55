//! A snapshot that is put into a store: whole or absent there, too.

use std::path::Path as FilePath;
use std::sync::Arc;

use memory::FRAME_SIZE;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, WriteMultipart};
use snapshot::{Compression, Outline, PARTS, ReadAt, Snapshot};

use crate::error::ObjectsError;
use crate::layout::{self, MANIFEST, MEMORY};
use crate::location::Location;
use crate::serve::runtime;

/// Bytes of a part of an upload; smaller objects are put at once. S3 takes 10,000 parts: 80 GB.
const UPLOAD: usize = 8 << 20;
/// Of these, on their way at a time.
const UPLOADS: usize = 4;
/// Bytes read at once.
const PIECE: u64 = 1 << 20;

/// What was put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pushed {
    /// Bytes of all objects.
    pub bytes: u64,
}

/// Puts the snapshot in the directory `path` to `location`: its parts first and, when all are there, the manifest, by which
/// it is found. One that is there is replaced only if `replace`, by the put of the manifest; who still reads the old one
/// then finds its parts gone. `told` hears how many bytes have been put.
///
/// # Errors
/// It is not whole, its parent is not beside it in the store, something is there, or the store refuses. What was
/// put is removed as far as the store lets us, and what was there is there.
pub fn push(
    path: &FilePath,
    location: &Location,
    replace: bool,
    told: impl FnMut(u64),
) -> Result<Pushed, ObjectsError> {
    let snapshot = Snapshot::open(path)?;
    // What is damaged is not carried on.
    snapshot.verify()?;
    let outline = Outline::read(snapshot.store())?;
    if let Some(feature) = outline.manifest.needs.first() {
        let why = format!(
            "it has {feature}: contents in common with other substrates, which a store does not have: push the snapshot \
             that it was made of, or save a VM that was activated from it"
        );
        return Err(ObjectsError::Refused { url: path.display().to_string(), why });
    }
    let store = location.store()?;
    let runtime = runtime()?;
    let folder = layout::folder(location, outline.manifest.id);
    let mut pushing =
        Pushing { store: &*store, location, snapshot: &snapshot, outline, folder, told, bytes: 0 };
    runtime.block_on(async {
        let old = pushing.old(replace).await?;
        pushing.check_parent().await?;
        let put = pushing.put(replace).await;
        let id = pushing.outline.manifest.id;
        match &put {
            // Parts of the same snapshot that was there are its parts still.
            Err(_) if old != Some(id) => pushing.remove(&pushing.folder).await,
            Ok(_) if old.is_some_and(|old| old != id) => {
                let old = old.map(|old| layout::folder(location, old));
                pushing.remove(&old.unwrap_or_default()).await;
            }
            _ => {}
        }
        put
    })
}

struct Pushing<'a, T> {
    store: &'a dyn ObjectStore,
    location: &'a Location,
    snapshot: &'a Snapshot,
    outline: Outline,
    /// Of its parts, in the store.
    folder: Path,
    told: T,
    bytes: u64,
}

impl<T: FnMut(u64)> Pushing<'_, T> {
    fn refused(&self, why: impl Into<String>) -> ObjectsError {
        ObjectsError::Refused { url: self.location.to_string(), why: why.into() }
    }

    /// What is there.
    async fn old(&self, replace: bool) -> Result<Option<snapshot::Id>, ObjectsError> {
        let Some(bytes) = layout::manifest(self.store, self.location).await? else {
            return Ok(None);
        };
        if !replace {
            return Err(
                self.refused("a snapshot is there: name an address where none is, or --replace it")
            );
        }
        Ok(layout::parse(self.location, &bytes).ok().map(|old| old.id))
    }

    async fn check_parent(&self) -> Result<(), ObjectsError> {
        let Some(parent) = &self.outline.manifest.parent else { return Ok(()) };
        let beside = self.location.beside(layout::last_name(&parent.path))?;
        let found = layout::manifest(self.store, &beside).await?;
        let found = found.map(|bytes| layout::parse(&beside, &bytes)).transpose()?;
        match found {
            Some(found) if found.id == parent.id => Ok(()),
            Some(found) => Err(self.refused(format!(
                "its parent {beside} is snapshot {}, not {}: push the right one there",
                found.id, parent.id
            ))),
            None => {
                Err(self.refused(format!("its parent is not there: push it to {beside} first")))
            }
        }
    }

    async fn put(&mut self, replace: bool) -> Result<Pushed, ObjectsError> {
        for name in PARTS.into_iter().filter(|name| *name != MANIFEST) {
            let part = match self.snapshot.store().open(name) {
                // Some have no chunks, some no working set.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                part => part.map_err(|error| ObjectsError::Host("open a part", error))?,
            };
            let plain = self.outline.manifest.memory.compression == Compression::None;
            let ranges = if name == MEMORY && plain {
                let runs = self.outline.stored();
                let range = |at: u32| u64::from(at) * FRAME_SIZE as u64;
                runs.map(|run| (range(run.first.0), range(run.first.0 + run.count))).collect()
            } else {
                let bytes =
                    part.len().map_err(|error| ObjectsError::Host("look at a part", error))?;
                vec![(0, bytes)]
            };
            self.put_part(name, &part, &ranges).await?;
        }
        self.put_manifest(replace).await?;
        Ok(Pushed { bytes: self.bytes })
    }

    async fn put_manifest(&mut self, replace: bool) -> Result<(), ObjectsError> {
        let read = || {
            let part = self.snapshot.store().open(MANIFEST)?;
            let mut bytes = vec![0; part.len()? as usize];
            part.read_exact_at(&mut bytes, 0)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|error| ObjectsError::Host("read the manifest", error))?;
        let path = self.location.path().clone().join(MANIFEST);
        let mode = if replace { PutMode::Overwrite } else { PutMode::Create };
        self.add(bytes.len());
        match self.store.put_opts(&path, bytes.into(), mode.into()).await {
            Err(object_store::Error::AlreadyExists { .. }) => {
                Err(self.refused("a snapshot has come there meanwhile: name another address"))
            }
            put => {
                put.map_err(ObjectsError::store("write", format!("{}/{MANIFEST}", self.location)))?;
                Ok(())
            }
        }
    }

    /// The bytes of `ranges`, one after the other.
    async fn put_part(
        &mut self,
        name: &str,
        part: &Arc<dyn ReadAt>,
        ranges: &[(u64, u64)],
    ) -> Result<(), ObjectsError> {
        let path = self.folder.clone().join(name);
        let url = format!("{}/{name}", self.location);
        let write = || ObjectsError::store("write", &url);
        let all: u64 = ranges.iter().map(|(from, to)| to - from).sum();
        let small = all <= UPLOAD as u64;
        let mut whole = Vec::new();
        let mut upload = if small {
            None
        } else {
            let upload = self.store.put_multipart(&path).await.map_err(write())?;
            Some(WriteMultipart::new_with_chunk_size(upload, UPLOAD))
        };
        let mut piece = Vec::new();
        let pieces = ranges.iter().flat_map(|&(from, to)| {
            (from..to).step_by(PIECE as usize).map(move |at| (at, (to - at).min(PIECE)))
        });
        let mut done = Ok(());
        for (at, bytes) in pieces {
            piece.resize(bytes as usize, 0);
            done = part
                .read_exact_at(&mut piece, at)
                .map_err(|error| ObjectsError::Host("read a part", error));
            if let (Some(upload), Ok(())) = (&mut upload, &done) {
                done = upload.wait_for_capacity(UPLOADS).await.map_err(write());
                upload.write(&piece);
            } else {
                whole.extend_from_slice(&piece);
            }
            if done.is_err() {
                break;
            }
            self.add(piece.len());
        }
        match (upload, done) {
            (Some(upload), Ok(())) => drop(upload.finish().await.map_err(write())?),
            (Some(upload), Err(error)) => {
                // What is left of it, the store's own rules remove.
                let _ = upload.abort().await;
                return Err(error);
            }
            (None, done) => {
                done?;
                self.store.put(&path, whole.into()).await.map_err(write())?;
            }
        }
        Ok(())
    }

    fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        (self.told)(self.bytes);
    }

    /// What is in a folder of parts.
    async fn remove(&self, folder: &Path) {
        for name in PARTS.into_iter().filter(|name| *name != MANIFEST) {
            match self.store.delete(&folder.clone().join(name)).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => {
                    tracing::info!("{}: {folder}/{name} is left: {error}", self.location);
                }
            }
        }
    }
}
