//! All that is known of a guest's memory at one moment, for people and programs to look at.
//!
//! ```text
//!   frame table ----\
//!   CacheTracker ----+--> Survey (one pass over the frames) --> parts: what each byte is, how long unused
//!   EpochAges ------/                                           |
//!   Ghosts --> MemoryCurve;  Rates;  WorkingSetTracker -------> Picture
//! ```
//!
//! Parts are a partition: every frame is in exactly one, so that their sum is the guest's memory.

mod ages;
mod rates;
mod survey;

use std::collections::BTreeMap;

use memory::FRAME_SIZE;
use serde::{Deserialize, Serialize};

use crate::classes::FrameClass;
use crate::curve::MissRatioCurve;
use crate::estimate::Demand;
use crate::working_set::WorkingSetSample;

pub use ages::{EpochAges, IDLE_SECONDS};
pub use rates::Rates;
pub use survey::survey;

/// One part's figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PartFigures {
    /// All of it.
    pub bytes: u64,
    /// Of these, what the host has memory for.
    pub resident_bytes: u64,
    /// The resident by how long ago it was last accessed: at most each of [`IDLE_SECONDS`], and longer ago.
    pub by_idle_age: [u64; IDLE_SECONDS.len() + 1],
    /// Resident, and last accessed before anybody watched. With `by_idle_age` this is all that is resident.
    pub age_unknown_bytes: u64,
    /// What could be had again by keeping equal pages once; absent where nobody looked.
    pub shareable_bytes: Option<u64>,
}

impl PartFigures {
    /// Resident and not accessed for longer than `seconds`, which is taken up to the next of [`IDLE_SECONDS`].
    #[must_use]
    pub fn idle_bytes(&self, seconds: u64) -> u64 {
        let first = IDLE_SECONDS.partition_point(|&bound| bound < seconds) + 1;
        self.by_idle_age.get(first..).unwrap_or_default().iter().sum()
    }
}

/// Memory accessed in windows that end now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct WorkingSets {
    pub window_1s_bytes: u64,
    pub window_10s_bytes: u64,
    pub window_60s_bytes: u64,
}

impl From<WorkingSetSample> for WorkingSets {
    fn from(sample: WorkingSetSample) -> Self {
        Self {
            window_1s_bytes: sample.working_set_1s_bytes,
            window_10s_bytes: sample.working_set_10s_bytes,
            window_60s_bytes: sample.working_set_60s_bytes,
        }
    }
}

/// The page cache, as inferred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheFigures {
    /// In it now.
    pub cached_bytes: u64,
    /// Blocks of 4096 bytes that came, from the machine's start on.
    pub inserted: u64,
    /// Blocks that left and may be wanted again.
    pub evicted: u64,
    /// Blocks that left for good.
    pub dropped: u64,
    /// Of the last ten seconds.
    pub inserts_per_second: f64,
    /// Of the last ten seconds.
    pub evictions_per_second: f64,
    /// Bytes read from disks in the busiest second seen: about what the disk gives. 0: nothing was read.
    pub disk_read_peak_bytes_per_second: f64,
    /// Evicted blocks that were read again, and with some more memory would not have been.
    pub ghost_hits: u64,
    /// There is a swap area on a disk, into which the guest can put what programs have.
    pub has_swap: bool,
}

/// How much memory the VM would use well.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recommendation {
    /// So much.
    pub bytes: u64,
    /// How sure that is, from 0 to 1.
    pub confidence: f64,
    /// Why, in a few words.
    pub why: String,
}

impl From<Demand> for Recommendation {
    fn from(Demand { bytes, confidence, why }: Demand) -> Self {
        Self { bytes, confidence, why: why.words().to_owned() }
    }
}

/// A point of a [`MemoryCurve`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// With so much memory
    pub bytes: u64,
    /// this part of references misses, between 0 and 1.
    pub miss_ratio: f64,
}

/// What a miss ratio is a part of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CurveOf {
    /// Today's misses: 1 at the present allocation, and nothing is known of less memory.
    #[default]
    Misses,
    /// All references.
    References,
}

/// Miss ratios by the memory that the guest has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryCurve {
    /// What the guest has now: its memory without what the balloon holds.
    pub allocation_bytes: u64,
    /// What is counted.
    pub of: CurveOf,
    /// By rising size; empty before there was a reference.
    pub points: Vec<CurvePoint>,
    /// Absent where nothing is recommended.
    pub recommendation: Option<Recommendation>,
}

/// Points of a curve that are handed out.
const CURVE_POINTS: u64 = 128;

impl MemoryCurve {
    /// The curve of [`crate::Ghosts`]: what would be left of today's misses with more than `allocation_bytes`.
    #[must_use]
    pub fn above(allocation_bytes: u64, curve: Option<&MissRatioCurve>) -> Self {
        let points = curve.map(|curve| points(curve, allocation_bytes)).unwrap_or_default();
        Self { allocation_bytes, of: CurveOf::Misses, points, recommendation: None }
    }

    /// The curve of [`crate::splice`], from no memory on.
    #[must_use]
    pub fn whole(allocation_bytes: u64, curve: &MissRatioCurve) -> Self {
        let points = points(curve, 0);
        Self { allocation_bytes, of: CurveOf::References, points, recommendation: None }
    }
}

/// A few of the curve's, whose sizes begin at `from`.
fn points(curve: &MissRatioCurve, from: u64) -> Vec<CurvePoint> {
    let pages = curve.last_size();
    let step = pages.div_ceil(CURVE_POINTS).max(1);
    let sizes = (0..=pages.div_ceil(step)).map(|n| n * step);
    let point = |pages: u64| CurvePoint {
        bytes: from.saturating_add(pages * FRAME_SIZE as u64),
        miss_ratio: curve.miss_ratio(pages),
    };
    sizes.map(point).collect()
}

/// What was at one time. See [`Picture`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HistoryPoint {
    /// Since the machine's start.
    pub at_seconds: f64,
    /// Bytes of each part that there was.
    pub parts: BTreeMap<FrameClass, u64>,
    /// Accessed in the second before, if somebody watched.
    pub working_set_1s_bytes: Option<u64>,
    /// See [`CacheFigures`].
    pub inserts_per_second: f64,
    /// See [`CacheFigures`].
    pub evictions_per_second: f64,
}

/// See the module. Bytes are of guest memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Picture {
    /// When, since the machine's start.
    pub at_seconds: f64,
    /// All of the guest's memory: the sum of `parts`.
    pub memory_bytes: u64,
    /// What it is. Parts that are empty are left out.
    pub parts: BTreeMap<FrameClass, PartFigures>,
    /// Whether frames were classified: else all that is in use and no file cache is [`FrameClass::Unknown`].
    pub classified: bool,
    /// For how long accesses have been watched; absent while nobody asks.
    pub watched_seconds: Option<f64>,
    /// Absent while nobody asks, and until a second has passed.
    pub working_set: Option<WorkingSets>,
    /// Absent where disks are not listened to.
    pub cache: Option<CacheFigures>,
    /// Miss ratios with other sizes of memory.
    pub curve: MemoryCurve,
    /// The past, the oldest first: each second while watched, each ten seconds otherwise.
    pub history: Vec<HistoryPoint>,
    /// Events that came faster than they were taken in: then figures may be off.
    pub lost_events: u64,
}

impl Picture {
    /// The figures of one part.
    #[must_use]
    pub fn part(&self, part: FrameClass) -> PartFigures {
        self.parts.get(&part).copied().unwrap_or_default()
    }

    /// What the host has memory for.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.sum(|figures| figures.resident_bytes)
    }

    /// Resident and not accessed for longer than `seconds`; `None` where that was not watched for so long.
    #[must_use]
    pub fn idle_bytes(&self, seconds: u64) -> Option<u64> {
        let watched = self.watched_seconds?;
        // What was not accessed since watching began has been idle for at least so long.
        let unknown = if watched >= seconds as f64 { self.age_unknown_bytes() } else { 0 };
        let known = self.sum(|figures| figures.idle_bytes(seconds));
        (watched >= seconds as f64).then_some(known + unknown)
    }

    /// Resident, and last accessed before anybody watched.
    #[must_use]
    pub fn age_unknown_bytes(&self) -> u64 {
        self.sum(|figures| figures.age_unknown_bytes)
    }

    /// Resident by how long ago it was last accessed, see [`PartFigures::by_idle_age`].
    #[must_use]
    pub fn by_idle_age(&self) -> [u64; IDLE_SECONDS.len() + 1] {
        std::array::from_fn(|age| self.sum(|figures| figures.by_idle_age[age]))
    }

    /// What could be had again by keeping equal pages once.
    #[must_use]
    pub fn shareable_bytes(&self) -> Option<u64> {
        let mut known =
            self.parts.values().filter_map(|figures| figures.shareable_bytes).peekable();
        known.peek()?;
        Some(known.fold(0, u64::saturating_add))
    }

    /// The kernel's: page tables, text, the rest. `None` where frames were not classified.
    #[must_use]
    pub fn kernel_bytes(&self) -> Option<u64> {
        let kernel = [
            FrameClass::PageTable,
            FrameClass::KernelText,
            FrameClass::Kernel,
            FrameClass::DmaRing,
        ];
        self.classified.then(|| kernel.iter().map(|&part| self.part(part).bytes).sum())
    }

    /// Programs' own. `None` where frames were not classified.
    #[must_use]
    pub fn anonymous_bytes(&self) -> Option<u64> {
        self.classified.then(|| self.part(FrameClass::Anonymous).bytes)
    }

    /// What the guest's kernel cannot give to a balloon: its own memory, and its programs' where it has no swap area. `None` where
    /// frames were not classified.
    #[must_use]
    pub fn unreclaimable_bytes(&self) -> Option<u64> {
        let programs = if self.cache?.has_swap { Some(0) } else { self.anonymous_bytes() };
        Some(self.kernel_bytes()?.saturating_add(programs?))
    }

    fn sum(&self, of: impl Fn(&PartFigures) -> u64) -> u64 {
        self.parts.values().map(of).fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ghosts;
    use memory::DiskBlock;

    #[test]
    fn idle_is_what_was_not_accessed_for_longer() {
        let by_idle_age = [1, 2, 4, 8, 16, 32, 64, 128, 256];
        let figures = PartFigures { by_idle_age, age_unknown_bytes: 512, ..Default::default() };
        assert_eq!(figures.idle_bytes(300), 256);
        assert_eq!(figures.idle_bytes(60), 64 + 128 + 256);
        assert_eq!(figures.idle_bytes(1), 510);
        assert_eq!(figures.idle_bytes(301), 0);
        let picture = |watched_seconds| Picture {
            parts: BTreeMap::from([(FrameClass::Unknown, figures)]),
            watched_seconds,
            ..Picture::default()
        };
        assert_eq!(picture(None).idle_bytes(60), None);
        assert_eq!(picture(Some(59.0)).idle_bytes(60), None);
        assert_eq!(picture(Some(60.0)).idle_bytes(60), Some(448 + 512));
    }

    #[test]
    fn programs_memory_can_be_given_where_there_is_a_swap_area() {
        let part = |bytes| PartFigures { bytes, ..PartFigures::default() };
        let parts =
            [(FrameClass::Anonymous, 1), (FrameClass::Kernel, 2), (FrameClass::PageTable, 4)];
        let parts = parts.into_iter().chain([(FrameClass::FileCache, 8)]);
        let mut picture = Picture {
            parts: parts.map(|(class, bytes)| (class, part(bytes))).collect(),
            classified: true,
            ..Picture::default()
        };
        assert_eq!(picture.unreclaimable_bytes(), None, "what its disks are is not known");
        picture.cache = Some(CacheFigures::default());
        assert_eq!(picture.unreclaimable_bytes(), Some(7));
        picture.cache = Some(CacheFigures { has_swap: true, ..CacheFigures::default() });
        assert_eq!(picture.unreclaimable_bytes(), Some(6));
        picture.classified = false;
        assert_eq!(picture.unreclaimable_bytes(), None);
    }

    #[test]
    fn a_curve_of_ghosts_begins_at_the_allocation() {
        assert_eq!(MemoryCurve::above(8192, None).points, []);
        let mut ghosts = Ghosts::new(1000, 1000);
        let block = |block| DiskBlock { disk: 0, block };
        (0..600).for_each(|n| ghosts.evicted(block(n)));
        // At depth 99.
        ghosts.inserted(block(500));
        let curve = MemoryCurve::above(8192, ghosts.curve().as_ref());
        assert_eq!(curve.points[0], CurvePoint { bytes: 8192, miss_ratio: 1.0 });
        assert!(curve.points.len() <= CURVE_POINTS as usize + 2);
        let left = |pages: u64| {
            let enough = |point: &&CurvePoint| point.bytes >= 8192 + pages * 4096;
            curve.points.iter().find(enough).expect("a point").miss_ratio
        };
        assert_eq!((left(80), left(120)), (1.0, 0.0));
    }
}
