//! What each frame is: the part `frames`.

use memory::{DiskBlock, Frame};

use crate::error::SnapshotError;
use crate::manifest::{Part, Totals};
use crate::store::PartFile;

/// Where a frame's contents are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// It is all zeros.
    Zero,
    /// In this snapshot's memory image.
    Stored,
    /// In the memory image of the parent, or of the parent's parent.
    Parent,
    /// Nowhere: the guest had no use for it. Reads as zeros.
    Free,
    /// Nowhere: it is in the balloon. Reads as zeros.
    Ballooned,
    /// On a disk, in this block.
    Disk(DiskBlock),
}

impl Kind {
    /// Whether there is something to fetch.
    pub fn has_contents(self) -> bool {
        matches!(self, Kind::Stored | Kind::Parent | Kind::Disk(_))
    }

    /// Whether the index has an entry for it.
    fn is_indexed(self) -> bool {
        matches!(self, Kind::Stored | Kind::Disk(_))
    }

    fn number(self) -> u32 {
        match self {
            Kind::Zero => 1,
            Kind::Stored => 2,
            Kind::Parent => 3,
            Kind::Free => 4,
            Kind::Ballooned => 5,
            Kind::Disk(_) => 6,
        }
    }

    /// The kind of the frame `count` frames further on in a run.
    fn advanced(self, count: u32) -> Kind {
        match self {
            Kind::Disk(DiskBlock { disk, block }) => {
                Kind::Disk(DiskBlock { disk, block: block + u64::from(count) })
            }
            same => same,
        }
    }
}

/// Neighbouring frames of one kind; on a disk, in neighbouring blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first of them.
    pub first: Frame,
    /// How many, at least one.
    pub count: u32,
    /// What they are; for a disk, the first one's block.
    pub kind: Kind,
}

/// Bytes of a run in the file.
pub(crate) const RUN_BYTES: usize = 24;
/// A block of a disk is below this.
pub(crate) const BLOCK_END: u64 = 1 << 51;
/// Runs that are read at once.
const RUNS_AT_ONCE: usize = 2730;

impl Run {
    fn encode(&self) -> [u8; RUN_BYTES] {
        let (disk, block) = match self.kind {
            Kind::Disk(DiskBlock { disk, block }) => (u32::from(disk), block),
            _ => (0, 0),
        };
        let mut bytes = [0; RUN_BYTES];
        let words = [self.first.0, self.count, self.kind.number(), disk];
        for (place, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *place = word.to_le_bytes();
        }
        bytes[16..].copy_from_slice(&block.to_le_bytes());
        bytes
    }

    /// What the bytes say; whether it fits the runs before it is not looked at.
    fn decode(bytes: &[u8; RUN_BYTES]) -> Result<Run, (&'static str, &'static str, u64)> {
        let word =
            |n: usize| u32::from_le_bytes(*bytes[..16].as_chunks().0.get(n).unwrap_or(&[0; 4]));
        let block = u64::from_le_bytes(*bytes[16..].as_chunks().0.first().unwrap_or(&[0; 8]));
        let (count, disk) = (word(1), word(3));
        let kind = match word(2) {
            1 => Kind::Zero,
            2 => Kind::Stored,
            3 => Kind::Parent,
            4 => Kind::Free,
            5 => Kind::Ballooned,
            6 => {
                let disk =
                    u8::try_from(disk).map_err(|_| ("disk", "below 256", u64::from(disk)))?;
                if block >= BLOCK_END - u64::from(count) {
                    return Err(("block", "below 2^51", block));
                }
                Kind::Disk(DiskBlock { disk, block })
            }
            other => return Err(("kind of a run", "1 to 6", u64::from(other))),
        };
        if !matches!(kind, Kind::Disk(_)) && (disk != 0 || block != 0) {
            return Err(("disk and block of a run without a disk", "0", block | u64::from(disk)));
        }
        Ok(Run { first: Frame(word(0)), count, kind })
    }
}

/// The kinds of all frames.
#[derive(Debug)]
pub(crate) struct FrameMap {
    /// By rising frame, without gaps.
    runs: Vec<Run>,
    /// Index entries before each run.
    ranks: Vec<u32>,
    /// How many frames are mapped.
    frames: u32,
    /// How many have an entry in the index.
    indexed: u32,
    totals: Totals,
}

impl FrameMap {
    pub(crate) fn new() -> Self {
        Self {
            runs: Vec::new(),
            ranks: Vec::new(),
            frames: 0,
            indexed: 0,
            totals: Totals::default(),
        }
    }

    /// Adds `count` frames at the end. The sum of all counts is at most 2^32 - 1.
    pub(crate) fn push(&mut self, kind: Kind, count: u32) {
        if let Some(last) =
            self.runs.last_mut().filter(|last| last.kind.advanced(last.count) == kind)
        {
            last.count += count;
        } else {
            self.runs.push(Run { first: Frame(self.frames), count, kind });
            self.ranks.push(self.indexed);
        }
        self.frames += count;
        if kind.is_indexed() {
            self.indexed += count;
        }
        let total = match kind {
            Kind::Zero => &mut self.totals.zero,
            Kind::Stored => &mut self.totals.stored,
            Kind::Parent => &mut self.totals.parent,
            Kind::Free => &mut self.totals.free,
            Kind::Ballooned => &mut self.totals.ballooned,
            Kind::Disk(_) => &mut self.totals.disk,
        };
        *total += count;
    }

    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
    }

    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    pub(crate) fn indexed(&self) -> u32 {
        self.indexed
    }

    pub(crate) fn frames(&self) -> u32 {
        self.frames
    }

    fn run_of(&self, frame: Frame) -> Option<usize> {
        if frame.0 >= self.frames {
            return None;
        }
        self.runs.partition_point(|run| run.first <= frame).checked_sub(1)
    }

    /// What `frame` is, and its place in the index if it has one there. `None` past the end.
    pub(crate) fn get(&self, frame: Frame) -> Option<(Kind, u32)> {
        let at = self.run_of(frame)?;
        let within = frame.0 - self.runs[at].first.0;
        Some((self.runs[at].kind.advanced(within), self.ranks[at] + within))
    }

    /// The run that `frame` is in.
    pub(crate) fn run(&self, frame: Frame) -> Option<Run> {
        self.run_of(frame).map(|at| self.runs[at])
    }

    /// The parts of runs that lie in `count` frames from `first` on, of which all exist.
    pub(crate) fn within(&self, first: Frame, count: u32) -> impl Iterator<Item = Run> {
        let start = self.run_of(first).unwrap_or(self.runs.len());
        let end = first.0 + count;
        self.runs[start..].iter().take_while(move |run| run.first.0 < end).map(move |run| {
            let skip = first.0.saturating_sub(run.first.0);
            let from = run.first.0 + skip;
            let count = (run.first.0 + run.count).min(end) - from;
            Run { first: Frame(from), count, kind: run.kind.advanced(skip) }
        })
    }

    /// The file's contents.
    pub(crate) fn encode(&self) -> Vec<u8> {
        self.runs.iter().flat_map(Run::encode).collect()
    }

    /// Reads the runs of `frames` frames. Takes no more memory than the file really has.
    pub(crate) fn read(
        file: &PartFile,
        part: &Part,
        frames: u32,
    ) -> Result<FrameMap, SnapshotError> {
        let most = u64::from(frames) * RUN_BYTES as u64;
        if !file.bytes.is_multiple_of(RUN_BYTES as u64) || file.bytes > most {
            let expected = format!("a multiple of {RUN_BYTES}, at most {most}");
            return Err(file.corrupt(0, "length", expected, file.bytes));
        }
        let mut map = FrameMap::new();
        file.check(part, RUNS_AT_ONCE * RUN_BYTES, |at, piece| {
            for (n, bytes) in piece.as_chunks().0.iter().enumerate() {
                map.add_read(file, at + (n * RUN_BYTES) as u64, bytes, frames)?;
            }
            Ok(())
        })?;
        if map.frames != frames {
            return Err(file.corrupt(file.bytes, "frames in all runs", frames, map.frames));
        }
        Ok(map)
    }

    fn add_read(
        &mut self,
        file: &PartFile,
        at: u64,
        bytes: &[u8; RUN_BYTES],
        frames: u32,
    ) -> Result<(), SnapshotError> {
        let run = Run::decode(bytes)
            .map_err(|(what, expected, found)| file.corrupt(at, what, expected, found))?;
        if run.first.0 != self.frames {
            return Err(file.corrupt(at, "first frame of a run", self.frames, run.first));
        }
        let left = frames - self.frames;
        if run.count == 0 || run.count > left {
            return Err(file.corrupt(at + 4, "frames in a run", format!("1 to {left}"), run.count));
        }
        self.push(run.kind, run.count);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(disk: u8, block: u64) -> Kind {
        Kind::Disk(DiskBlock { disk, block })
    }

    fn sample() -> FrameMap {
        let mut map = FrameMap::new();
        for (kind, count) in [
            (Kind::Stored, 3),
            (Kind::Stored, 2),
            (Kind::Zero, 4),
            (block(1, 100), 2),
            (block(1, 102), 1),
            (block(1, 104), 1),
            (Kind::Ballooned, 1),
            (Kind::Stored, 1),
        ] {
            map.push(kind, count);
        }
        map
    }

    #[test]
    fn neighbours_of_a_kind_are_one_run() {
        let map = sample();
        let runs: Vec<_> =
            map.runs().iter().map(|run| (run.first.0, run.count, run.kind)).collect();
        let expected = [
            (0, 5, Kind::Stored),
            (5, 4, Kind::Zero),
            (9, 3, block(1, 100)),
            (12, 1, block(1, 104)),
            (13, 1, Kind::Ballooned),
            (14, 1, Kind::Stored),
        ];
        assert_eq!(runs, expected);
        assert_eq!((map.indexed(), map.totals().disk, map.totals().stored), (10, 4, 6));
    }

    #[test]
    fn each_frame_is_found_with_its_place_in_the_index() {
        let map = sample();
        assert_eq!(map.get(Frame(4)), Some((Kind::Stored, 4)));
        assert_eq!(map.get(Frame(11)), Some((block(1, 102), 7)));
        assert_eq!(map.get(Frame(12)), Some((block(1, 104), 8)));
        assert_eq!(map.get(Frame(14)), Some((Kind::Stored, 9)));
        assert_eq!(map.get(Frame(13)).map(|(kind, _)| kind), Some(Kind::Ballooned));
        assert_eq!(map.get(Frame(15)), None);
        let cut: Vec<_> =
            map.within(Frame(8), 4).map(|run| (run.first.0, run.count, run.kind)).collect();
        assert_eq!(cut, [(8, 1, Kind::Zero), (9, 3, block(1, 100))]);
        let cut: Vec<_> =
            map.within(Frame(10), 1).map(|run| (run.first.0, run.count, run.kind)).collect();
        assert_eq!(cut, [(10, 1, block(1, 101))]);
    }

    #[test]
    fn a_run_is_itself_again() {
        for run in sample().runs() {
            assert_eq!(Run::decode(&run.encode()), Ok(*run));
        }
        let mut bytes = Run { first: Frame(0), count: 1, kind: Kind::Zero }.encode();
        bytes[8] = 7;
        assert!(Run::decode(&bytes).is_err());
        let far = Run { first: Frame(0), count: 2, kind: block(0, BLOCK_END - 2) };
        assert!(Run::decode(&far.encode()).is_err());
    }
}
