//! Which frames the host's kernel is to merge with others: KSM, steered (docs/decisions/0017).
//!
//! KSM reads all that is marked, again and again, at a pace that is the host's. So what is marked decides what it costs and how
//! soon it finds something: here the frames that are worth it, those that a disk has filled last before all others.
//!
//! ```text
//!   frames that a disk filled, newest first --+
//!   all others, as if at random --------------+--> worth it? --> of its unit, half are: marked
//!                                                                fewer than a quarter: the mark is taken back
//! ```
//! A frame is worth it if a disk has filled it and nobody has looked at it since, or if it is what it was when it was looked at last.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use insight::Fingerprint;
use memory::{Frame, GuestMemory, MERGE_UNIT, ReadView, is_zero};

use crate::share::{ShareReport, contents, nth};

/// A unit with so many frames that are worth it is marked, and stays so down to the other number.
const WORTH_MARKING: u8 = MERGE_UNIT as u8 / 2;
const WORTH_KEEPING: u8 = MERGE_UNIT as u8 / 4;
/// Units marked, and marks taken back, for one request at most: 16 MiB, five times a second.
const UNITS_AT_ONCE: usize = 256;

/// What a machine keeps for that.
#[derive(Default)]
pub(crate) struct Merger(Mutex<Option<Looks>>);

impl Merger {
    /// Goes on for so many frames, or takes all marks back.
    pub(crate) fn merge(
        &self,
        memory: &Arc<GuestMemory>,
        wanted: bool,
        scan: u32,
    ) -> io::Result<ShareReport> {
        let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut report = ShareReport { attached: true, ..ShareReport::default() };
        if !wanted {
            memory.unmark_all().map_err(io::Error::other)?;
            *looks = None;
            return Ok(report);
        }
        if memory.is_frozen() {
            return Ok(ShareReport { busy: true, ..report });
        }
        // Nobody looks at memory that cannot be marked.
        memory.mark_units(&[]).map_err(io::Error::other)?;
        let frames = memory.layout().frames();
        let looks = looks.get_or_insert_with(|| Looks::new(frames));
        let view = ReadView::new(Arc::clone(memory));
        let changes = looks.look(memory, &view, scan.min(frames));
        memory.unmark_units(&changes.unmark).map_err(io::Error::other)?;
        memory.mark_units(&changes.mark).map_err(io::Error::other)?;
        report.shared_frames = memory.merged_frames();
        report.marked_frames = memory.marked_frames();
        Ok(report)
    }
}

/// What is known of frames.
struct Looks {
    /// How many were looked at in turn.
    looked: u64,
    /// Reads of disks that are known of.
    fills: u64,
    /// What each frame had when it was looked at last: a part of its fingerprint, 0 if it is new.
    seen: Vec<u32>,
    /// Whether it is worth it.
    worth: Vec<bool>,
    /// Of how many frames of each unit that is so.
    units: Vec<u8>,
}

/// Units to be marked or not any more, in order of worth.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    mark: Vec<u32>,
    unmark: Vec<u32>,
}

impl Looks {
    fn new(frames: u32) -> Self {
        let units = frames.div_ceil(MERGE_UNIT) as usize;
        let frames = frames as usize;
        let (seen, worth, units) = (vec![0; frames], vec![false; frames], vec![0; units]);
        Self { looked: 0, fills: 0, seen, worth, units }
    }

    /// At frames that a disk has filled since the last time, and at `scan` of all.
    fn look(&mut self, memory: &GuestMemory, view: &ReadView, scan: u32) -> Changes {
        let frames = memory.layout().frames();
        if self.looked.is_multiple_of(u64::from(frames)) {
            // Where the guest reaches frames by itself, nobody has been told which it has.
            memory.catch_up();
        }
        let (fills, filled) = memory.filled_since(self.fills);
        self.fills = fills;
        let mut changes = Changes::default();
        for &Frame(frame) in &filled {
            self.seen[frame as usize] = 0;
        }
        for Frame(frame) in filled {
            self.look_at(memory, view, frame, &mut changes);
        }
        for _ in 0..scan {
            let frame = nth(self.looked, frames);
            self.looked += 1;
            self.look_at(memory, view, frame, &mut changes);
        }
        changes
    }

    fn look_at(&mut self, memory: &GuestMemory, view: &ReadView, frame: u32, to: &mut Changes) {
        let index = frame as usize;
        let before = self.seen[index];
        let now = contents(memory, view, Frame(frame)).map_or(0, |contents| {
            let print = if is_zero(&contents) { 0 } else { Fingerprint::of(&contents).0 };
            print as u32 | 1
        });
        self.seen[index] = now;
        let is_new = before == 0 && memory.origin(Frame(frame)).is_some();
        let is_worth = now != 0 && (before == now || is_new);
        let was_worth = std::mem::replace(&mut self.worth[index], is_worth);
        let unit = frame / MERGE_UNIT;
        let count = &mut self.units[unit as usize];
        *count = *count + u8::from(is_worth) - u8::from(was_worth);
        let (list, is_due) = match memory.is_unit_marked(unit) {
            false => (&mut to.mark, *count >= WORTH_MARKING),
            true => (&mut to.unmark, *count < WORTH_KEEPING),
        };
        if is_due && list.len() < UNITS_AT_ONCE && !list.contains(&unit) {
            list.push(unit);
        }
    }
}

#[cfg(test)]
mod tests {
    use memory::{DeviceView, DiskBlock, FRAME_SIZE, Gpa, MERGE_RUNS_MAX};

    use super::*;

    const FRAMES: u32 = 8192;

    fn memory() -> (Arc<GuestMemory>, DeviceView) {
        let bytes = u64::from(FRAMES) * FRAME_SIZE as u64;
        let memory = Arc::new(GuestMemory::anonymous(bytes).expect("memory"));
        let view = DeviceView::new(Arc::clone(&memory));
        (memory, view)
    }

    fn write(view: &DeviceView, frame: u32, value: u64) {
        let gpa = Gpa(u64::from(frame) * FRAME_SIZE as u64);
        view.write(gpa, &value.to_le_bytes()).expect("written");
    }

    fn fill(memory: &GuestMemory, view: &DeviceView, frame: u32, value: u64) {
        write(view, frame, value);
        memory.note_origin(Frame(frame), Some(DiskBlock { disk: 0, block: value }));
    }

    #[test]
    fn what_a_disk_filled_is_marked_at_once_and_the_newest_first() {
        let (memory, view) = memory();
        let read = ReadView::new(Arc::clone(&memory));
        let mut looks = Looks::new(FRAMES);
        assert_eq!(looks.look(&memory, &read, FRAMES), Changes::default());
        for unit in [3, 40, 7] {
            let first = unit * MERGE_UNIT;
            (first..first + 8)
                .for_each(|frame| fill(&memory, &view, frame, 1000 + u64::from(frame)));
        }
        // Half of it is too little.
        (800..807).for_each(|frame| fill(&memory, &view, frame, 5));
        let changes = looks.look(&memory, &read, 0);
        assert_eq!(changes, Changes { mark: vec![7, 40, 3], unmark: vec![] });
        // It asks until they are.
        assert_eq!(memory.mark_units(&[7, 40]).expect("marked"), 2);
        assert_eq!(looks.look(&memory, &read, FRAMES), Changes { mark: vec![3], unmark: vec![] });
    }

    #[test]
    fn what_stays_is_marked_at_the_second_look_and_what_is_written_not_any_more() {
        let (memory, view) = memory();
        let read = ReadView::new(Arc::clone(&memory));
        let mut looks = Looks::new(FRAMES);
        (32..64).for_each(|frame| write(&view, frame, u64::from(frame % 3)));
        assert_eq!(looks.look(&memory, &read, FRAMES), Changes::default());
        let mut changes = looks.look(&memory, &read, FRAMES);
        changes.mark.sort_unstable();
        assert_eq!(changes, Changes { mark: vec![2, 3], unmark: vec![] });
        memory.mark_units(&changes.mark).expect("marked");
        // Of one unit, 12 are written: 4 are what they were.
        (32..44).for_each(|frame| write(&view, frame, 1 << 40));
        assert_eq!(looks.look(&memory, &read, FRAMES), Changes::default());
        (32..45).for_each(|frame| write(&view, frame, 2 << 40));
        assert_eq!(looks.look(&memory, &read, FRAMES), Changes { mark: vec![], unmark: vec![2] });
        // A disk's, written since: its origin is a hint no more.
        fill(&memory, &view, 100, 1);
        looks.look(&memory, &read, 0);
        assert!(looks.worth[100]);
        write(&view, 100, 2);
        looks.look(&memory, &read, FRAMES);
        assert!(!looks.worth[100]);
    }

    #[test]
    fn so_many_at_once_and_no_more() {
        let (memory, view) = memory();
        let merger = Merger::default();
        (0..FRAMES).for_each(|frame| write(&view, frame, u64::from(frame % 5)));
        let mut marked = 0;
        for _ in 0..4 {
            let report = merger.merge(&memory, true, FRAMES).expect("marked");
            assert!(report.attached && !report.busy);
            assert!(report.marked_frames - marked <= UNITS_AT_ONCE as u32 * MERGE_UNIT);
            marked = report.marked_frames;
        }
        assert_eq!(marked, FRAMES);
        assert!(memory.is_unit_marked(0) && MERGE_RUNS_MAX > 0);
        let report = merger.merge(&memory, false, 0).expect("unmarked");
        assert_eq!((report.attached, report.marked_frames), (true, 0));
        assert_eq!(memory.marked_frames(), 0);
        memory.move_to_file().expect("moved");
        assert!(merger.merge(&memory, true, 1).is_err());
        assert!(merger.merge(&memory, false, 0).is_ok());
    }
}
