//! What the guest's kernel itself says of its page cache: each page that came, went or moved, with its frame and
//! its block on a disk.
//!
//! [`record`] runs a load of the guest program in a guest and reads what the kernel told meanwhile:
//!
//! ```text
//! pages of the trace's ring buffers, text      Written
//!   events of each processor, by the text's Facts      ring
//!     steps: added, removed and why, moved               steps
//!       frame and block, with the file's extents           residents -> Truth
//! ```
//!
//! What is not told: the frames of what XFS keeps outside the page cache, its metadata and its log, of which the blocks are known
//! (`outside`); pages that were cached before
//! the load began and moved later. A page that was written to and not yet on disk is told when it is added,
//! with the block that it got later; one that never got a block has none.

mod chunks;
mod facts;
mod residents;
mod ring;
mod steps;

use super::super::place::Place;
use super::disks::Disks;
use crate::kit::Kit;
use crate::machine::Guest;
use anyhow::{Context, Result, bail};
use chunks::Written;
use facts::Facts;
pub(super) use facts::Moment;
use residents::Residents;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

const PAGE: usize = 4096;
/// The disk with the file system: the second.
const SCRATCH: u32 = 1;
/// A guest that takes longer hangs.
const LONGEST: Duration = Duration::from_secs(600);

/// 4 KiB of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Block {
    /// In the order in which the guest has its disks: 0 is vda.
    pub(super) disk: u32,
    pub(super) block: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The frame now holds the block.
    Insert,
    /// It does no more, and the block is still valid.
    Evict,
    /// It does no more, and the block is free or the swap area's to give.
    Drop,
    /// Another frame holds the block instead.
    Move { to: u64 },
}

/// What a block is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    File {
        disk: u32,
        inode: u64,
        page: u64,
    },
    /// The disk itself: what a file system keeps besides files.
    Metadata,
    Swap,
}

/// One page came, went or moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Truth {
    /// By the guest's time-stamp counter.
    pub(super) tsc: u64,
    pub(super) kind: Kind,
    pub(super) frame: u64,
    pub(super) owner: Owner,
    /// None if it never got to a disk.
    pub(super) block: Option<Block>,
}

/// What to run.
pub(super) struct Run<'a> {
    pub(super) place: &'a Place,
    pub(super) load: &'a str,
    /// With Debian's programs.
    pub(super) disk: &'a Path,
    pub(super) memory_mib: u64,
    pub(super) cpus: u64,
    /// For Fathom, besides what the guest needs.
    pub(super) options: &'a [String],
}

/// A load, from its begin to its end.
#[derive(Debug)]
pub(super) struct Recording {
    pub(super) begin: Moment,
    pub(super) end: Moment,
    /// In the order of their times.
    pub(super) events: Vec<Truth>,
    pub(super) file_system: String,
    /// Of /proc/vmstat, when it began and when it ended.
    pub(super) counters: BTreeMap<String, [u64; 2]>,
    /// Events that cannot be after those before them: 0 if nothing was missed.
    pub(super) contradictions: u64,
    /// Pages of what lies on no disk.
    pub(super) elsewhere: u64,
    /// Blocks that the file system keeps outside the page cache: those that XFS told of as buffers, and its log.
    pub(super) outside: HashSet<Block>,
    /// Frames that nobody had soon after the end, rising.
    pub(super) free: Vec<Range<u64>>,
}

pub(super) fn record(kit: &Kit, disks: &Disks, run: &Run<'_>) -> Result<Recording> {
    let trace = disks.fresh()?;
    let words = format!("quiet \"fathom.run=cache:{}\"", run.load);
    let guest = Guest::new(kit, &words)
        .initramfs(&disks.initramfs)
        .memory(run.memory_mib)
        .cpus(run.cpus)
        .disk(run.disk)
        .overlay(&disks.scratch, &disks.overlay)
        .writable_disk(&trace)
        .writable_disk(&disks.swap)
        .options(run.options);
    let events = guest.start(run.place.vmm())?.finish(run.place.patience(LONGEST))?;
    if let Some(event) = events.iter().find(|event| !event.text("error").is_empty()) {
        bail!("load {}: {}", run.load, event.text("error"));
    }
    if !events.iter().any(|event| event.is("cache")) {
        bail!("load {}: the guest has none such", run.load);
    }
    let mut recording = Recording::read(&trace).with_context(|| format!("load {}", run.load))?;
    let log = disks.xfs_log()?.into_iter().flatten();
    recording.outside.extend(log.map(|block| Block { disk: SCRATCH, block }));
    Ok(recording)
}

impl Recording {
    /// From the disk for events.
    pub(super) fn read(trace: &Path) -> Result<Self> {
        let written = Written::read(trace)?;
        Self::of(Facts::parse(&written.text)?, &written.rings)
    }

    fn of(facts: Facts, rings: &[Vec<u8>]) -> Result<Self> {
        if facts.lost > 0 {
            bail!("the kernel lost {} events", facts.lost);
        }
        if facts.begin.tsc >= facts.end.tsc {
            bail!("the load ended before it began: is the guest's clock right?");
        }
        let mut residents = Residents::new(&facts);
        for step in steps::of(&facts, rings)? {
            residents.step(step);
        }
        let Residents { events, contradictions, elsewhere, outside, .. } = residents;
        let Facts { begin, end, file_system, counters, free, .. } = facts;
        Ok(Self {
            begin,
            end,
            events,
            file_system,
            counters,
            contradictions,
            elsewhere,
            outside,
            free,
        })
    }

    /// Whether nobody had the frame soon after the end.
    pub(super) fn is_free(&self, frame: u64) -> bool {
        let before = self.free.partition_point(|free| free.start <= frame);
        before.checked_sub(1).is_some_and(|last| self.free[last].contains(&frame))
    }

    /// How much one of the kernel's counters rose.
    pub(super) fn rise(&self, counter: &str) -> i64 {
        let [before, after] = self.counters.get(counter).copied().unwrap_or_default();
        after.cast_signed() - before.cast_signed()
    }

    /// Events per second of the guest's time, of the counter that [`Truth::tsc`] is of.
    pub(super) fn tsc_hz(&self) -> f64 {
        let ticks = self.end.tsc - self.begin.tsc;
        ticks as f64 / self.seconds()
    }

    pub(super) fn seconds(&self) -> f64 {
        self.end.nanoseconds.saturating_sub(self.begin.nanoseconds) as f64 / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::tests::page;
    use steps::tests::{EVENTS, event};

    const DISK: u64 = 254 << 20 | 16;

    fn recording(more: &str) -> Result<Recording> {
        let text = format!(
            "{EVENTS}begin 100 1000\nend 500 201000\nlost 0\ndisk vdb {DISK}\nmount {DISK} ext4 /scratch\n\
             extent {DISK} 12 900 0 70 9\nvmstat begin pgpgin 5\nvmstat end pgpgin 9\n{more}"
        );
        let (add, delete) = (event(1, &[7, 12, 3, DISK]), event(2, &[7, 12, 3, DISK]));
        let probe = event(3, &[0, 1, 0x310]);
        let rings = [page(200, &[(0, &add), (50, &probe), (0, &delete)])];
        Recording::of(Facts::parse(&text)?, &rings)
    }

    #[test]
    fn a_recording_tells_frames_and_blocks() {
        let recording = recording("").unwrap();
        let owner = Owner::File { disk: 1, inode: 12, page: 3 };
        let truth = |tsc, kind| Truth {
            tsc,
            kind,
            frame: 7,
            owner,
            block: Some(Block { disk: 1, block: 73 }),
        };
        assert_eq!(recording.events, [truth(200, Kind::Insert), truth(250, Kind::Evict)]);
        assert_eq!((recording.rise("pgpgin"), recording.file_system.as_str()), (4, "ext4"));
        assert!((recording.tsc_hz() - 2e6).abs() < 1.0 && recording.contradictions == 0);
    }

    #[test]
    fn one_with_holes_is_none() {
        assert!(recording("lost 3\n").is_err());
        assert!(recording("end 99 0\n").is_err());
        assert!(Recording::of(Facts::parse("begin 1 1\nend 2 2\n").unwrap(), &[]).is_err());
    }
}
