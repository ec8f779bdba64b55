//! How a snapshot lies in a store: `NAME/manifest`, and its other parts in `NAME/ID/`, so that a name is given to another
//! snapshot by one put. A directory that was copied as it is has its parts beside the manifest.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;

use bytes::Bytes;
use memory::FRAME_SIZE;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use snapshot::{Compression, Id, InMemory, Manifest, Outline, PARTS};

use crate::blocks::{Object, ObjectId};
use crate::error::{Failure, ObjectsError};
use crate::location::Location;

pub(crate) const MANIFEST: &str = "manifest";
pub(crate) const FRAMES: &str = "frames";
pub(crate) const MEMORY: &str = "memory";
pub(crate) const WORKING_SET: &str = "working-set";
/// As the format has it.
const MANIFEST_MAX: u64 = 1 << 20;
/// More ancestors than any snapshot may have.
const GENERATIONS_MAX: usize = 33;

/// Where the parts of the snapshot `id` are.
pub(crate) fn folder(location: &Location, id: Id) -> Path {
    location.path().clone().join(id.to_string())
}

/// A snapshot, or an ancestor of it.
pub(crate) struct Generation {
    pub(crate) location: Location,
    pub(crate) id: Id,
    /// Where its parts are.
    pub(crate) folder: Path,
    /// By their place in [`PARTS`].
    pub(crate) parts: Vec<Option<Part>>,
}

/// How a part is read.
pub(crate) enum Part {
    /// It is here already.
    Here(Bytes),
    /// An object has its bytes.
    Object(Object),
    /// An object has those of them that are not in holes, one after the other.
    Packed(Packed),
}

pub(crate) struct Packed {
    pub(crate) object: Object,
    /// With its holes.
    pub(crate) bytes: u64,
    /// By rising place.
    pub(crate) runs: Vec<PackedRun>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PackedRun {
    /// In the part.
    pub(crate) at: u64,
    pub(crate) bytes: u64,
    /// In the object.
    pub(crate) packed_at: u64,
}

/// A piece of what is read of a packed part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Piece {
    Hole(u64),
    Packed { at: u64, bytes: u64 },
}

impl Packed {
    /// What `bytes` bytes from `offset` on are made of.
    pub(crate) fn pieces(&self, offset: u64, bytes: u64) -> Vec<Piece> {
        let end = offset + bytes;
        let first = self.runs.partition_point(|run| run.at + run.bytes <= offset);
        let (mut at, mut pieces) = (offset, Vec::new());
        for run in self.runs[first..].iter().take_while(|run| run.at < end) {
            if run.at > at {
                pieces.push(Piece::Hole(run.at - at));
                at = run.at;
            }
            let till = (run.at + run.bytes).min(end);
            pieces.push(Piece::Packed { at: run.packed_at + (at - run.at), bytes: till - at });
            at = till;
        }
        if at < end {
            pieces.push(Piece::Hole(end - at));
        }
        pieces
    }
}

/// The runs of a plain image that are stored, as they lie in its object.
pub(crate) fn packed_runs(outline: &Outline) -> Vec<PackedRun> {
    let mut packed_at = 0;
    let run = |run: &snapshot::Run| {
        let bytes = u64::from(run.count) * FRAME_SIZE as u64;
        let at = u64::from(run.first.0) * FRAME_SIZE as u64;
        packed_at += bytes;
        PackedRun { at, bytes, packed_at: packed_at - bytes }
    };
    outline.stored().map(run).collect()
}

impl Part {
    /// As long as the reader is to see it.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Here(bytes) => bytes.len() as u64,
            Self::Object(object) => object.bytes,
            Self::Packed(packed) => packed.bytes,
        }
    }
}

/// The manifest at `location`, as bytes; `None` where there is none.
pub(crate) async fn manifest(
    store: &dyn ObjectStore,
    location: &Location,
) -> Result<Option<Bytes>, ObjectsError> {
    let (path, url) = (location.path().clone().join(MANIFEST), format!("{location}/{MANIFEST}"));
    let found = match store.get(&path).await {
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        found => found.map_err(ObjectsError::store("read", &url))?,
    };
    if found.meta.size > MANIFEST_MAX {
        let why = format!("{} bytes, at most {MANIFEST_MAX}: no manifest", found.meta.size);
        return Err(ObjectsError::Refused { url, why });
    }
    Ok(Some(found.bytes().await.map_err(ObjectsError::store("read", &url))?))
}

/// What `bytes` say.
pub(crate) fn parse(location: &Location, bytes: &Bytes) -> Result<Manifest, ObjectsError> {
    let store = Named { name: location.to_string(), parts: InMemory::default() };
    let store = store.with(MANIFEST, bytes);
    Ok(Manifest::read(&store)?.0)
}

/// The snapshot at `location` and its ancestors, which lie beside it.
pub(crate) async fn generations(
    store: &dyn ObjectStore,
    location: &Location,
) -> Result<Vec<Generation>, ObjectsError> {
    let mut generations = Vec::new();
    let mut next = Some(location.clone());
    while let Some(location) = next
        && generations.len() < GENERATIONS_MAX
    {
        let (generation, parent) =
            Generation::find(store, &location, generations.len() as ObjectId).await?;
        next = parent.map(|name| location.beside(&name)).transpose()?;
        generations.push(generation);
    }
    Ok(generations)
}

impl Generation {
    async fn find(
        store: &dyn ObjectStore,
        location: &Location,
        number: ObjectId,
    ) -> Result<(Self, Option<String>), ObjectsError> {
        let missing = |name: &str| ObjectsError::Store {
            operation: "open",
            url: format!("{location}/{name}"),
            failure: Failure::new(ErrorKind::NotFound, "no such object: check the address"),
        };
        let bytes = manifest(store, location).await?.ok_or_else(|| missing(MANIFEST))?;
        let parsed = parse(location, &bytes)?;
        let own = folder(location, parsed.id);
        let (folder, frames) = match get(store, &own, FRAMES, location).await? {
            Some(frames) => (own, frames),
            None => {
                let flat = location.path().clone();
                let frames = get(store, &flat, FRAMES, location).await?;
                (flat, frames.ok_or_else(|| missing(FRAMES))?)
            }
        };
        let named = Named { name: location.to_string(), parts: InMemory::default() };
        let outline = Outline::read(&named.with(MANIFEST, &bytes).with(FRAMES, &frames))?;
        let is_own = folder != *location.path();
        let plain = parsed.memory.compression == Compression::None;
        let parts = PARTS.iter().enumerate().map(|(place, name)| {
            let object = |bytes| {
                let path = folder.clone().join(*name);
                Object { id: number * PARTS.len() as ObjectId + place as ObjectId, path, bytes }
            };
            let parts = &parsed.parts;
            Some(match *name {
                MANIFEST => Part::Here(bytes.clone()),
                FRAMES => Part::Here(frames.clone()),
                "machine" => Part::Object(object(parts.machine.bytes)),
                "index" => Part::Object(object(parts.index.bytes)),
                "chunks" => Part::Object(object(parts.chunks?.bytes)),
                MEMORY if is_own && plain => {
                    let runs = packed_runs(&outline);
                    let stored = runs.iter().map(|run| run.bytes).sum();
                    Part::Packed(Packed { object: object(stored), bytes: parts.memory_bytes, runs })
                }
                MEMORY => Part::Object(object(parts.memory_bytes)),
                _ => return None,
            })
        });
        let mut parts: Vec<Option<Part>> = parts.collect();
        if let Some(place) = PARTS.iter().position(|name| *name == WORKING_SET) {
            let path = folder.clone().join(WORKING_SET);
            let id = number * PARTS.len() as ObjectId + place as ObjectId;
            // An advice, and of a store that may not be listed it is refused where there is none.
            let found = store.head(&path).await.ok();
            parts[place] = found.map(|meta| Part::Object(Object { id, path, bytes: meta.size }));
        }
        let parent = parsed.parent.as_ref().map(|parent| last_name(&parent.path).to_owned());
        Ok((Self { location: location.clone(), id: parsed.id, folder, parts }, parent))
    }
}

/// Under which an ancestor lies in the child's folder.
pub(crate) fn last_name(path: &str) -> &str {
    path.trim_end_matches('/').rsplit_once('/').map_or(path, |(_, name)| name)
}

async fn get(
    store: &dyn ObjectStore,
    folder: &Path,
    name: &str,
    location: &Location,
) -> Result<Option<Bytes>, ObjectsError> {
    let refused = ObjectsError::store("read", format!("{location}/{name}"));
    match store.get(&folder.clone().join(name)).await {
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(refused(error)),
        Ok(found) => Ok(Some(found.bytes().await.map_err(refused)?)),
    }
}

/// Parts that are here, by the name that messages are to have.
struct Named {
    name: String,
    parts: InMemory,
}

impl Named {
    fn with(mut self, name: &str, bytes: &Bytes) -> Self {
        self.parts.parts = std::mem::take(&mut self.parts.parts)
            .into_iter()
            .chain([(name.to_owned(), Arc::new(bytes.to_vec()))])
            .collect::<BTreeMap<_, _>>();
        self
    }
}

impl snapshot::Store for Named {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn open(&self, name: &str) -> std::io::Result<Arc<dyn snapshot::ReadAt>> {
        self.parts.open(name)
    }

    fn parent(&self, path: &str) -> std::io::Result<Box<dyn snapshot::Store>> {
        self.parts.parent(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_part_is_what_it_was() {
        let runs = vec![
            PackedRun { at: 100, bytes: 50, packed_at: 0 },
            PackedRun { at: 150, bytes: 10, packed_at: 50 },
            PackedRun { at: 200, bytes: 5, packed_at: 60 },
        ];
        let object = Object { id: 0, path: Path::from("memory"), bytes: 65 };
        let packed = Packed { object, bytes: 300, runs: runs.clone() };
        let whole: Vec<Option<u64>> = (0..300u64)
            .map(|at| {
                let run = runs.iter().find(|run| (run.at..run.at + run.bytes).contains(&at));
                run.map(|run| run.packed_at + at - run.at)
            })
            .collect();
        for (offset, bytes) in
            [(0, 300), (100, 50), (149, 2), (120, 85), (205, 95), (10, 0), (0, 1)]
        {
            let mut read = Vec::new();
            for piece in packed.pieces(offset, bytes) {
                match piece {
                    Piece::Hole(bytes) => read.extend((0..bytes).map(|_| None)),
                    Piece::Packed { at, bytes } => read.extend((at..at + bytes).map(Some)),
                }
            }
            assert_eq!(read, whole[offset as usize..(offset + bytes) as usize]);
        }
    }

    #[test]
    fn ancestors_lie_beside_their_child() {
        assert_eq!(["hourly", "/a/b/hourly", "../hourly/"].map(last_name), ["hourly"; 3]);
    }
}
