//! What of a guest's memory other guests have, too: its frames in random order, and those switched that somebody else
//! knows of (docs/decisions/0016).
//!
//! The VM compares in full and switches (`memory::GuestMemory::share`); who has the same, and what is in the pool, is the matter of
//! the daemon that asks.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use insight::Fingerprint;
use memory::{FRAME_SIZE, Frame, FrameState, GuestMemory, Pool, ReadView, Switch, is_zero};

use crate::machine::Machine;

/// Frames looked at for one request at most.
const SCAN_MAX: u32 = 1 << 14;
/// Frames whose contents are given for one at most: the size of its outbox.
const GIVE_MAX: usize = 256;
/// Frames switched for one at most.
const SWITCH_MAX: usize = 1024;

/// What a VM is asked to do for sharing; all of it may be nothing.
#[derive(Debug, Default)]
pub struct ShareRequest {
    /// From now on frames are shared in this pool, and contents go to this file of 1 MiB.
    pub attach: Option<(OwnedFd, File)>,
    /// So many frames are to be looked at.
    pub scan: u32,
    /// Contents of these go to the file, in order.
    pub give: Vec<u32>,
    /// Frames, each with the slot that has its contents, as somebody believes.
    pub switch: Vec<(u32, u32)>,
    /// The host's kernel is to share frames (docs/decisions/0017): those that are worth it are marked for it, or, if false, none any
    /// more. Then there is no pool, and nothing else is done but `scan`.
    pub merge: Option<bool>,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShareReport {
    /// There is a pool; without, nothing was done.
    pub attached: bool,
    /// The memory is being saved or cloned: nothing was done.
    pub busy: bool,
    /// Frames that are worth it and the fingerprints of their contents, 0 for zeros alone.
    pub candidates: Vec<(u32, u64)>,
    /// Which were given.
    pub given: Vec<bool>,
    /// What became of each that was to be switched.
    pub switched: Vec<Switch>,
    /// Slots that were had and are not any more, each as often.
    pub released: Vec<u32>,
    /// Frames that are shared now.
    pub shared_frames: u32,
    /// Frames that are marked for the kernel.
    pub marked_frames: u32,
}

/// What a machine keeps for that.
#[derive(Default)]
pub(crate) struct Sharer(Mutex<Option<Attached>>);

struct Attached {
    outbox: File,
    /// How many frames have been looked at.
    looked: u64,
    /// What each frame had when it was looked at last; a part of its fingerprint.
    seen: Vec<u32>,
}

impl Sharer {
    fn lock(&self) -> MutexGuard<'_, Option<Attached>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does what is asked for.
///
/// # Errors
/// Not a pool, or nothing can be shared here; the host refuses.
pub(crate) fn share(machine: &Machine, request: ShareRequest) -> io::Result<ShareReport> {
    let Some(_turn) = machine.reclaim.try_hold() else {
        return Ok(ShareReport { attached: true, busy: true, ..ShareReport::default() });
    };
    let memory = &machine.memory;
    if let Some(wanted) = request.merge {
        return machine.merger.merge(memory, wanted, request.scan.min(SCAN_MAX));
    }
    let mut attached = machine.sharer.lock();
    if memory.is_frozen() {
        return Ok(ShareReport { attached: true, busy: true, ..ShareReport::default() });
    }
    if let Some((pool, outbox)) = request.attach {
        let had_sources = memory.has_sources();
        memory.attach_pool(Pool::open(pool).map_err(io::Error::other)?)?;
        if !had_sources {
            machine.watch_for_shortage().map_err(io::Error::other)?;
        }
        let seen = vec![0; memory.layout().frames() as usize];
        *attached = Some(Attached { outbox, looked: 0, seen });
    }
    let Some(state) = &mut *attached else { return Ok(ShareReport::default()) };
    let view = ReadView::new(memory.clone());
    let mut report = ShareReport { attached: true, ..ShareReport::default() };
    for pairs in request.switch[..request.switch.len().min(SWITCH_MAX)].chunks(SWITCH_MAX / 4) {
        let wanted: Vec<_> = pairs.iter().map(|&(frame, slot)| (Frame(frame), slot)).collect();
        report.switched.extend(memory.share(&wanted)?);
    }
    for (index, frame) in request.give.into_iter().take(GIVE_MAX).enumerate() {
        let contents = contents(memory, &view, Frame(frame));
        if let Some(contents) = &contents {
            state.outbox.write_all_at(contents, (index * FRAME_SIZE) as u64)?;
        }
        report.given.push(contents.is_some());
    }
    for _ in 0..request.scan.min(SCAN_MAX).min(memory.layout().frames()) {
        report.candidates.extend(state.look(memory, &view));
    }
    report.released = memory.released_slots();
    report.shared_frames = memory.shared();
    Ok(report)
}

/// Of a frame that is its guest's own; nothing of what a device holds, which is about to change.
pub(crate) fn contents(
    memory: &GuestMemory,
    view: &ReadView,
    frame: Frame,
) -> Option<[u8; FRAME_SIZE]> {
    let facts = memory.facts(frame)?;
    if facts.state != FrameState::Resident || facts.pins != 0 {
        return None;
    }
    let mut contents = [0; FRAME_SIZE];
    view.read(memory.gpa_of(frame)?, &mut contents).ok()?;
    Some(contents)
}

impl Attached {
    /// Looks at the next frame. It is worth it if a disk filled it, or if it is what it was the last time.
    fn look(&mut self, memory: &GuestMemory, view: &ReadView) -> Option<(u32, u64)> {
        let frame = nth(self.looked, memory.layout().frames());
        self.looked += 1;
        let contents = contents(memory, view, Frame(frame))?;
        let print = if is_zero(&contents) { 0 } else { Fingerprint::of(&contents).0.max(1) };
        let before = std::mem::replace(&mut self.seen[frame as usize], print as u32 | 1);
        let is_worth = before == print as u32 | 1 || memory.origin(Frame(frame)).is_some();
        is_worth.then_some((frame, print))
    }
}

/// The frame looked at as the `n`-th: each once in a round, in an order that has nothing to do with where they are.
pub(crate) fn nth(n: u64, frames: u32) -> u32 {
    // A step without a common divisor with the number of frames, near the golden section of it.
    let coprime = |step: &u64| divisor(*step, u64::from(frames)) == 1;
    let step = u64::from(frames) * 618 / 1000;
    let step = (step.max(1)..).find(coprime).unwrap_or(1);
    (n % u64::from(frames) * step % u64::from(frames)) as u32
}

fn divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_has_each_frame_once() {
        for frames in [1, 2, 7, 1024, 32 * 1024, 32 * 1024 + 5] {
            let mut seen = vec![false; frames as usize];
            for n in 1000..1000 + u64::from(frames) {
                let frame = nth(n, frames) as usize;
                assert!(!std::mem::replace(&mut seen[frame], true), "{frame} twice of {frames}");
            }
        }
    }
}
