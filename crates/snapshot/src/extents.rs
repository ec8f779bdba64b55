//! Frames whose contents are not at their place in `memory`: the part `extents`, and the files that it names.
//!
//! ```text
//!   memory      . 1 2 . . 5        own frames, each at its place; the rest are holes
//!   extents       0    3 4         runs of frames, each with a file and a place in it
//!                 |     \-----> shared-1, from frame 700 on: the memory of another snapshot, by another name of the file
//!                 \-----------> file 0 is `memory` itself: twice the same contents
//! ```

use memory::{FRAME_SIZE, Frame, FrameRange};

use crate::checksum::Checksum;
use crate::codec::Compression;
use crate::error::SnapshotError;
use crate::manifest::{FEATURE_EXTENTS, Manifest, part};
use crate::map::{FrameMap, Kind};
use crate::store::{PartFile, Store};

/// Runs of a snapshot, at most: each is a mapping of its own, of which a process may have 65,530
/// (`vm.max_map_count`), and cuts another in two.
pub(crate) const EXTENTS_MAX: usize = 8192;
/// Files of others, at most: whoever maps them has a descriptor of each.
pub(crate) const SHARED_MAX: usize = 64;
/// Bytes of a run in the file.
const EXTENT_BYTES: usize = 16;

/// Neighbouring frames whose contents are neighbours in a file, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Of the guest.
    pub frames: FrameRange,
    /// Where their contents are: 0 is the part `memory`, n is `shared-n`.
    pub file: u32,
    /// The first one's place there, in frames.
    pub at: u32,
}

impl Extent {
    /// As it is written.
    fn encode(&self) -> [u8; EXTENT_BYTES] {
        let mut bytes = [0; EXTENT_BYTES];
        let words = [self.frames.first.0, self.frames.count, self.file, self.at];
        for (place, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *place = word.to_le_bytes();
        }
        bytes
    }

    /// All of them, as they are written.
    #[must_use]
    pub fn encode_all(extents: &[Extent]) -> Vec<u8> {
        extents.iter().flat_map(Extent::encode).collect()
    }

    /// Reads what [`Extent::encode_all`] wrote. Whether they fit anything is not looked at; a rest that is too short
    /// for one is left out.
    #[must_use]
    pub fn decode_all(bytes: &[u8]) -> Vec<Extent> {
        let extent = |bytes: &[u8; EXTENT_BYTES]| {
            let word =
                |n: usize| u32::from_le_bytes(*bytes.as_chunks().0.get(n).unwrap_or(&[0; 4]));
            let frames = FrameRange { first: Frame(word(0)), count: word(1) };
            Extent { frames, file: word(2), at: word(3) }
        };
        bytes.as_chunks().0.iter().map(extent).collect()
    }
}

/// The extents of a snapshot, with their files; often none.
#[derive(Default)]
pub(crate) struct Extents {
    /// By rising frame.
    runs: Vec<Extent>,
    /// `shared-1` and so on.
    files: Vec<PartFile>,
}

/// A part of a run of frames that is in one place.
pub(crate) struct Segment<'a> {
    pub(crate) file: &'a PartFile,
    pub(crate) offset: u64,
    pub(crate) count: u32,
}

impl Extents {
    /// Opens and checks them all; contents are when they are read.
    pub(crate) fn open(
        store: &dyn Store,
        manifest: &Manifest,
        image: &PartFile,
        map: &FrameMap,
    ) -> Result<Extents, SnapshotError> {
        let parts = &manifest.parts;
        let needed = manifest.needs.iter().any(|feature| feature == FEATURE_EXTENTS);
        let manifest_part = |what, expected: &str, found: String| {
            let file = PartFile::open(store, part::MANIFEST)?;
            Err(file.corrupt(0, what, expected, found))
        };
        let Some(part) = &parts.extents else {
            return match needed || !parts.shared_bytes.is_empty() {
                true => manifest_part("part `extents`", "one", "none".into()),
                false => Ok(Extents::default()),
            };
        };
        if !needed {
            return manifest_part("needs", "extents", format!("{:?}", manifest.needs));
        }
        if manifest.parent.is_some() || manifest.memory.compression != Compression::None {
            let found = "a parent, or compression".into();
            return manifest_part("snapshot with extents", "a plain one without a parent", found);
        }
        if parts.shared_bytes.len() > SHARED_MAX {
            let (expected, found) = (format!("at most {SHARED_MAX}"), parts.shared_bytes.len());
            return manifest_part("shared files", &expected, found.to_string());
        }
        let mut files = Vec::with_capacity(parts.shared_bytes.len());
        for (number, bytes) in (1..).zip(&parts.shared_bytes) {
            files.push(PartFile::open_sized(store, &part::shared(number), *bytes)?);
        }
        let file = PartFile::open_sized(store, part::EXTENTS, part.bytes)?;
        let most = (EXTENTS_MAX * EXTENT_BYTES) as u64;
        if !file.bytes.is_multiple_of(EXTENT_BYTES as u64) || file.bytes > most {
            let expected = format!("a multiple of {EXTENT_BYTES}, at most {most}");
            return Err(file.corrupt(0, "length", expected, file.bytes));
        }
        let mut bytes = vec![0; file.bytes as usize];
        file.read(&mut bytes, 0)?;
        if Checksum::of(&bytes) != part.checksum {
            let found = Checksum::of(&bytes);
            return Err(file.corrupt(0, "checksum of the file", part.checksum, found));
        }
        let runs = Extent::decode_all(&bytes);
        let extents = Extents { runs, files };
        extents.check(&file, image, map)?;
        Ok(extents)
    }

    fn check(
        &self,
        file: &PartFile,
        image: &PartFile,
        map: &FrameMap,
    ) -> Result<(), SnapshotError> {
        let mut end = 0;
        for (number, run) in self.runs.iter().enumerate() {
            let wrong = |field: u64, what, expected: String, found: u32| {
                let offset = (number * EXTENT_BYTES) as u64 + field;
                Err(file.corrupt(offset, what, expected, found))
            };
            let (first, count) = (run.frames.first.0, run.frames.count);
            if first < end {
                return wrong(0, "first frame of an extent", format!("at least {end}"), first);
            }
            let most = map.frames().saturating_sub(first);
            if count == 0 || count > most {
                return wrong(4, "frames of an extent", format!("1 to {most}"), count);
            }
            let mut within = map.within(run.frames.first, count);
            if let Some(other) = within.find(|run| run.kind != Kind::Stored) {
                return wrong(0, "frames of an extent", "stored ones".into(), other.first.0);
            }
            let Some(part) = self.file(run.file, image) else {
                return wrong(8, "file", format!("at most {}", self.files.len()), run.file);
            };
            let frames = part.bytes / FRAME_SIZE as u64;
            if u64::from(run.at) + u64::from(count) > frames {
                let expected = format!("{count} frames before {frames}");
                return wrong(12, "place of an extent", expected, run.at);
            }
            end = first + count;
        }
        Ok(())
    }

    fn file<'a>(&'a self, number: u32, image: &'a PartFile) -> Option<&'a PartFile> {
        match number {
            0 => Some(image),
            _ => self.files.get(number as usize - 1),
        }
    }

    pub(crate) fn runs(&self) -> &[Extent] {
        &self.runs
    }

    pub(crate) fn files(&self) -> &[PartFile] {
        &self.files
    }

    /// Frames that are not at their place in `memory`.
    pub(crate) fn frames(&self) -> u32 {
        self.runs.iter().map(|run| run.frames.count).sum()
    }

    /// Where a frame's contents are: a file's number, and a place in it.
    pub(crate) fn place(&self, frame: Frame) -> (u32, u32) {
        match self.run_of(frame) {
            Some(run) => (run.file, run.at + (frame.0 - run.frames.first.0)),
            None => (0, frame.0),
        }
    }

    fn run_of(&self, frame: Frame) -> Option<&Extent> {
        let before = self.runs.partition_point(|run| run.frames.first <= frame).checked_sub(1)?;
        self.runs.get(before).filter(|run| frame.0 - run.frames.first.0 < run.frames.count)
    }

    /// The places of `frames`, which are stored, in pieces.
    pub(crate) fn segments<'a>(
        &'a self,
        frames: FrameRange,
        image: &'a PartFile,
    ) -> impl Iterator<Item = Segment<'a>> {
        let (mut next, end) = (frames.first.0, frames.first.0 + frames.count);
        std::iter::from_fn(move || {
            if next >= end {
                return None;
            }
            let after = self.runs.partition_point(|run| run.frames.first.0 <= next);
            let (number, at) = self.place(Frame(next));
            let until = match self.run_of(Frame(next)) {
                Some(run) => run.frames.first.0 + run.frames.count,
                None => self.runs.get(after).map_or(end, |run| run.frames.first.0),
            };
            let count = until.min(end) - next;
            next += count;
            // Numbers were checked when it was opened.
            let file = self.file(number, image).unwrap_or(image);
            Some(Segment { file, offset: u64::from(at) * FRAME_SIZE as u64, count })
        })
    }
}
