//! What comes with a frame that the guest needs: by number, or in the order of use (docs/decisions/0014). Counted, not
//! timed: the first touches of a guest are replayed against a snapshot of which nothing is in memory.

use super::beats;
use super::fathom::{self, Mode};
use super::guests::Subject;
use super::monitor::{Monitor, Place};
use anyhow::{Context, Result};
use insight::kernel::Kernel;
use memory::{DeviceView, DiskBlock, FRAME_SIZE, Frame, GuestMemory, ReadView};
use serde::Serialize;
use snapshot::{Batch, DiskBlocks, Kind, Snapshot};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Frames that come at once: as many as with one of a plain image, and as a chunk has.
const SIZES: [u32; 2] = [16, 64];

/// What a replay came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    demand: u64,
    brought: u64,
    /// Runs of neighbours in the image, of all that was brought.
    pieces: u64,
}

/// Of one guest.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Neighbours {
    guest: String,
    touched: usize,
    listed: usize,
    /// For each of [`SIZES`].
    by_number: Vec<Counts>,
    in_order: Vec<Counts>,
}

pub(super) fn head() -> String {
    "guest           touched  16 by number  16 in order  pieces  64 by number  64 in order\n"
        .to_owned()
}

impl Neighbours {
    pub(super) fn text(&self) -> String {
        let [number, order] = [&self.by_number, &self.in_order];
        let pieces = order[0].pieces as f64 / order[0].demand.max(1) as f64;
        format!(
            "{:14} {:8} {:13} {:12} {pieces:7.1} {:13} {:12}\n",
            self.guest,
            self.touched,
            number[0].demand,
            order[0].demand,
            number[1].demand,
            order[1].demand
        )
    }
}

/// Saves the guest at its work, watches what it touches after a restore, and replays that.
pub(super) fn count(place: &Place<'_>, subject: &Subject) -> Result<Neighbours> {
    let saved = Monitor::Fathom.save(place, subject)?;
    let twin = fathom::twin(saved.path())?;
    let known = twin.join("working-set");
    if known.exists() {
        fs::remove_file(&known)?;
    }
    let mut running = fathom::restore(place, &twin, Mode::Eager, true)?;
    beats::follow(&mut running, place.follow)?;
    fathom::end(place, &mut running)?;
    let disk = subject.disk(place.kit)?;
    let counted = replay(&subject.name(), &twin, disk.as_deref());
    Monitor::Fathom.forget(place, subject)?;
    counted
}

fn replay(guest: &str, path: &Path, disk: Option<&Path>) -> Result<Neighbours> {
    let mut snapshot = Snapshot::open(path)?;
    if let Some(disk) = disk {
        let file = File::open(disk).with_context(|| format!("open {}", disk.display()))?;
        snapshot.set_disks(Arc::new(Image(file)));
    }
    let set = snapshot.working_set()?.context("nothing was learnt of the restore")?;
    let order = order(&snapshot)?;
    let has = |frame: &Frame| snapshot.kind(*frame).is_some_and(Kind::has_contents);
    let order: Vec<Frame> = order.into_iter().filter(has).collect();
    let ranks: HashMap<Frame, usize> = order.iter().copied().zip(0..).collect();
    let number = |frame: Frame, size: u32| by_number(&snapshot, frame, size);
    let use_ = |frame: Frame, size: u32| match ranks.get(&frame) {
        Some(rank) => {
            let first = rank - rank % size as usize;
            order[first..order.len().min(first + size as usize)].to_vec()
        }
        None => by_number(&snapshot, frame, size),
    };
    let touched = set.frames();
    Ok(Neighbours {
        guest: guest.to_owned(),
        touched: touched.len(),
        listed: order.len(),
        by_number: SIZES.map(|size| brought(touched, |frame| number(frame, size))).to_vec(),
        in_order: SIZES.map(|size| brought(touched, |frame| use_(frame, size))).to_vec(),
    })
}

/// Those of the aligned `size` frames around `frame` that are in its run.
fn by_number(snapshot: &Snapshot, frame: Frame, size: u32) -> Vec<Frame> {
    let run = snapshot.runs().partition_point(|run| run.first <= frame).checked_sub(1);
    let Some(run) = run.map(|at| snapshot.runs()[at]) else { return Vec::new() };
    let first = frame.0 - frame.0 % size;
    let end = (first + size).min(run.first.0 + run.count);
    (first.max(run.first.0)..end).map(Frame).collect()
}

/// Each frame that is touched and not there is fetched with its `group`.
fn brought(touched: &[Frame], group: impl Fn(Frame) -> Vec<Frame>) -> Counts {
    let (mut there, mut counts) = (std::collections::HashSet::new(), Counts::default());
    for &frame in touched {
        if there.contains(&frame) {
            continue;
        }
        let mut new: Vec<Frame> =
            group(frame).into_iter().filter(|other| !there.contains(other)).collect();
        if !new.contains(&frame) {
            new.push(frame);
        }
        new.sort_unstable();
        counts.demand += 1;
        counts.brought += new.len() as u64;
        counts.pieces +=
            1 + new.windows(2).filter(|pair| pair[0].0 + 1 != pair[1].0).count() as u64;
        there.extend(new);
    }
    counts
}

/// By the guest's own tables, in memory that is filled from the snapshot.
fn order(snapshot: &Snapshot) -> Result<Vec<Frame>> {
    let memory = Arc::new(GuestMemory::with_bytes(snapshot.layout().bytes())?);
    let view = DeviceView::new(Arc::clone(&memory));
    let mut batch = Batch::new();
    for place in snapshot.places() {
        snapshot.read_place(place, &mut batch)?;
        for (frame, contents) in batch.iter() {
            let gpa = memory.gpa_of(frame).context("a frame of the guest")?;
            view.write(gpa, contents)?;
        }
    }
    Ok(Kernel::find(&ReadView::new(memory))?.together()?)
}

/// The one image that a guest has.
struct Image(File);

impl DiskBlocks for Image {
    fn read(&self, block: DiskBlock, into: &mut [u8; FRAME_SIZE]) -> io::Result<()> {
        self.0.read_exact_at(into, block.block * FRAME_SIZE as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_is_no_fault() {
        let touched = [5, 6, 20, 7, 21, 5].map(Frame);
        let pair = |frame: Frame| vec![Frame(frame.0 & !1), Frame(frame.0 | 1), Frame(100)];
        let counts = brought(&touched, pair);
        // 4 and 5 with 100, 6 and 7, 20 and 21.
        assert_eq!(counts, Counts { demand: 3, brought: 7, pieces: 4 });
        assert_eq!(brought(&touched, |_| Vec::new()).demand, 5);
    }
}
