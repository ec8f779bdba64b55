//! What was wrong or missed, counted by what the kernel says of the same block and frame before and after.

use super::score::{Fault, Scores};
use super::truth::{Block, Recording, Truth};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

/// Lines of a kind at most.
const MOST: usize = 12;

/// Each kind of fault with how often it was, the most frequent first, and one of them.
pub(super) fn counted(recording: &Recording, scores: &Scores) -> String {
    let told = Told::of(recording);
    let mut text = String::new();
    for (what, score) in [("insert", &scores.inserts), ("eviction", &scores.evictions)] {
        let mut kinds: BTreeMap<String, (u64, Fault)> = BTreeMap::new();
        for fault in &score.faults {
            let how = if fault.missed { "missed" } else { "wrong" };
            let kind = format!("{what} {how}: {}", told.around(fault));
            kinds.entry(kind).or_insert((0, *fault)).0 += 1;
        }
        let mut kinds: Vec<_> = kinds.into_iter().collect();
        kinds.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
        for (kind, (count, Fault { block, frame, at, .. })) in kinds.into_iter().take(MOST) {
            let at = at - told.seconds(recording.begin.tsc);
            let Block { disk, block } = block;
            let _ = writeln!(
                text,
                "  {count:>7} {kind} (disk {disk} block {block} frame {frame} at {at:.3} s)"
            );
        }
    }
    text
}

/// The kernel's events by frame and by block.
struct Told<'a> {
    hz: f64,
    frames: HashMap<u64, Vec<&'a Truth>>,
    blocks: HashMap<Block, Vec<&'a Truth>>,
}

impl<'a> Told<'a> {
    fn of(recording: &'a Recording) -> Self {
        let (mut frames, mut blocks) = (HashMap::<_, Vec<_>>::new(), HashMap::<_, Vec<_>>::new());
        for truth in &recording.events {
            frames.entry(truth.frame).or_default().push(truth);
            if let Some(block) = truth.block {
                blocks.entry(block).or_default().push(truth);
            }
        }
        Self { hz: recording.tsc_hz(), frames, blocks }
    }

    fn seconds(&self, tsc: u64) -> f64 {
        tsc as f64 / self.hz
    }

    fn around(&self, fault: &Fault) -> String {
        let of = |events: Option<&Vec<&Truth>>| {
            let events = events.map(Vec::as_slice).unwrap_or_default();
            // An event that was missed is the one before.
            let split = events.partition_point(|truth| self.seconds(truth.tsc) <= fault.at);
            let tell = |truth: Option<&&Truth>| truth.map(|truth| self.short(truth, fault));
            let (before, after) =
                (split.checked_sub(1).and_then(|at| events.get(at)), events.get(split));
            [tell(before), tell(after)].map(|told| told.unwrap_or_else(|| "-".to_owned()))
        };
        let [before, after] = of(self.frames.get(&fault.frame));
        let [block_before, block_after] = of(self.blocks.get(&fault.block));
        format!("frame {before} / {after}; block {block_before} / {block_after}")
    }

    /// Which kind of event, of what, and about how long away.
    fn short(&self, truth: &Truth, fault: &Fault) -> String {
        use super::truth::{Kind, Owner};
        let kind = match truth.kind {
            Kind::Insert => "insert",
            Kind::Evict => "evict",
            Kind::Drop => "drop",
            Kind::Move { to } if to == fault.frame => "move-in",
            Kind::Move { .. } => "move-out",
        };
        let owner = match truth.owner {
            Owner::File { .. } => "file",
            Owner::Metadata => "metadata",
            Owner::Swap => "swap",
        };
        let same = match (truth.block == Some(fault.block), truth.frame == fault.frame) {
            (true, true) => "",
            (true, false) => " elsewhere",
            (false, _) => " of another",
        };
        let away = match (self.seconds(truth.tsc) - fault.at).abs() * 1e3 {
            ..2.0 => "2",
            ..20.0 => "20",
            ..200.0 => "200",
            _ => "more",
        };
        format!("{owner} {kind}{same} <{away}ms")
    }
}
