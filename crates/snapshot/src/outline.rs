//! What a snapshot is, without its contents: for who carries one from place to place.

use crate::checksum::Checksum;
use crate::error::SnapshotError;
use crate::manifest::{Manifest, part};
use crate::map::{FrameMap, Kind, Run};
use crate::store::{PartFile, Store};

/// The manifest, and what each frame is.
#[derive(Clone, Debug)]
pub struct Outline {
    /// What it is of.
    pub manifest: Manifest,
    /// The manifest's, by which a child knows it.
    pub checksum: Checksum,
    /// By rising frame, without gaps.
    pub runs: Vec<Run>,
}

impl Outline {
    /// Reads the parts `manifest` and `frames`, and nothing else.
    ///
    /// # Errors
    /// They cannot be read, or are not what they should be.
    pub fn read(store: &dyn Store) -> Result<Outline, SnapshotError> {
        let (manifest, checksum) = Manifest::read(store)?;
        let layout = manifest.layout(&store.name())?;
        let part = &manifest.parts.frames;
        let frames = PartFile::open_sized(store, part::FRAMES, part.bytes)?;
        let map = FrameMap::read(&frames, part, layout.frames())?;
        Ok(Outline { manifest, checksum, runs: map.runs().to_vec() })
    }

    /// The runs that are in the memory image.
    pub fn stored(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(|run| run.kind == Kind::Stored)
    }
}
