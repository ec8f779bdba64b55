//! The frame table against a model: random sequences of everything that can happen to a frame.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use memory::{
    Access, DeviceView, Discard, Epoch, FRAME_SIZE, Frame, FrameCounts, FrameState, Gpa,
    GuestMemory, ResolveError, Source, SourceError, SourceId,
};
use proptest::prelude::*;

const FRAMES: u32 = 24;

/// Gives each frame its number, unless it is told to fail.
#[derive(Default)]
struct Numbers {
    failing: AtomicBool,
    fetches: AtomicU32,
}

impl Source for Numbers {
    fn fetch(&self, frame: Frame, into: &mut [u8; FRAME_SIZE]) -> Result<(), SourceError> {
        self.fetches.fetch_add(1, Ordering::Relaxed);
        into.fill(0xee);
        if self.failing.load(Ordering::Relaxed) {
            return Err(SourceError::Unavailable("told to fail".into()));
        }
        into.fill(number(frame));
        Ok(())
    }
}

fn number(frame: Frame) -> u8 {
    frame.0 as u8 + 100
}

#[derive(Clone, Debug)]
enum Step {
    Resolve(u32, bool),
    Fill(u32, u8),
    DeviceRead(u32),
    Discard(Vec<u32>, bool),
    Deflate(Vec<u32>),
    MakeAbsent(Vec<u32>),
    Supply(Vec<u32>),
    SourceFails(bool),
    AdvanceEpoch,
    MarkCode(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let frame = 0..FRAMES;
    let frames = prop::collection::vec(0..FRAMES + 2, 0..12);
    let step = prop_oneof![
        4 => (frame.clone(), any::<bool>()).prop_map(|(f, w)| Step::Resolve(f, w)),
        4 => (frame.clone(), 1..100u8).prop_map(|(f, b)| Step::Fill(f, b)),
        3 => frame.clone().prop_map(Step::DeviceRead),
        3 => (frames.clone(), any::<bool>()).prop_map(|(f, b)| Step::Discard(f, b)),
        2 => frames.clone().prop_map(Step::Deflate),
        2 => frames.clone().prop_map(Step::MakeAbsent),
        2 => frames.prop_map(Step::Supply),
        1 => any::<bool>().prop_map(Step::SourceFails),
        2 => Just(Step::AdvanceEpoch),
        1 => frame.prop_map(Step::MarkCode),
    ];
    prop::collection::vec(step, 1..80)
}

/// What a frame is by the rules, told in the simplest way.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Expected {
    state: FrameState,
    /// Every byte of a frame is the same; absent frames get theirs from the source.
    byte: u8,
    accessed: u32,
    written: u32,
    code: bool,
}

struct Model {
    frames: Vec<Expected>,
    epoch: u32,
    failing: bool,
}

impl Model {
    fn new() -> Model {
        let state = FrameState::Untouched;
        let frame = Expected { state, byte: 0, accessed: 0, written: 0, code: false };
        Model { frames: vec![frame; FRAMES as usize], epoch: 1, failing: false }
    }

    fn access(&mut self, frame: u32, write: bool) -> bool {
        let epoch = self.epoch;
        let frame = Frame(frame);
        let expected = &mut self.frames[frame.index()];
        match expected.state {
            FrameState::Absent(_) if self.failing => return false,
            FrameState::Absent(_) => expected.byte = number(frame),
            _ => {}
        }
        expected.state = FrameState::Resident;
        expected.accessed = epoch;
        if write {
            expected.written = epoch;
        }
        true
    }

    fn discard(&mut self, frame: u32, target: FrameState) {
        let epoch = self.epoch;
        let Some(expected) = self.frames.get_mut(frame as usize) else { return };
        match expected.state {
            FrameState::Ballooned => {}
            FrameState::Untouched => expected.state = target,
            FrameState::Absent(_) => {
                *expected = Expected { state: target, byte: 0, written: epoch, ..*expected };
            }
            FrameState::Resident => {
                let (accessed, written, code) = (0, epoch, false);
                *expected = Expected { state: target, byte: 0, accessed, written, code };
            }
        }
    }

    fn counts(&self) -> FrameCounts {
        let mut counts = FrameCounts::default();
        for frame in &self.frames {
            match frame.state {
                FrameState::Untouched => counts.untouched += 1,
                FrameState::Resident => counts.resident += 1,
                FrameState::Ballooned => counts.ballooned += 1,
                FrameState::Absent(_) => counts.absent += 1,
            }
        }
        counts
    }
}

struct Rig {
    view: DeviceView,
    numbers: Arc<Numbers>,
    source: SourceId,
    model: Model,
}

impl Rig {
    fn new() -> Rig {
        let bytes = u64::from(FRAMES) * FRAME_SIZE as u64;
        let memory = Arc::new(GuestMemory::with_bytes(bytes).unwrap());
        let numbers = Arc::new(Numbers::default());
        let source = memory.add_source(numbers.clone()).unwrap();
        Rig { view: DeviceView::new(memory), numbers, source, model: Model::new() }
    }

    fn take(&mut self, step: &Step) {
        let memory = Arc::clone(self.view.memory());
        match *step {
            Step::Resolve(frame, write) => {
                let access = if write { Access::Write } else { Access::Read };
                let worked = memory.resolve(Frame(frame), access).is_ok();
                assert_eq!(worked, self.model.access(frame, write));
            }
            Step::Fill(frame, byte) => {
                let worked = self.view.write(gpa(frame), &[byte; FRAME_SIZE]).is_ok();
                assert_eq!(worked, self.model.access(frame, true));
                if worked {
                    self.model.frames[frame as usize].byte = byte;
                }
            }
            Step::DeviceRead(frame) => {
                let mut bytes = [0xdd; FRAME_SIZE];
                let worked = self.view.read(gpa(frame), &mut bytes).is_ok();
                assert_eq!(worked, self.model.access(frame, false));
                if worked {
                    assert_eq!(bytes, [self.model.frames[frame as usize].byte; FRAME_SIZE]);
                }
            }
            Step::Discard(ref frames, balloon) => self.discard(&memory, frames, balloon),
            Step::Deflate(ref frames) => {
                memory.return_from_balloon(frames.iter().copied().map(Frame));
                self.change(frames, FrameState::Ballooned, FrameState::Untouched);
            }
            Step::MakeAbsent(ref frames) => {
                memory
                    .make_absent(frames.iter().copied().map(Frame), self.source)
                    .expect("no engine refuses");
                let absent = FrameState::Absent(self.source);
                self.change(frames, FrameState::Untouched, absent);
                self.change(frames, FrameState::Ballooned, absent);
            }
            Step::Supply(ref frames) => self.supply(&memory, frames),
            Step::SourceFails(failing) => {
                self.numbers.failing.store(failing, Ordering::Relaxed);
                self.model.failing = failing;
            }
            Step::AdvanceEpoch => {
                self.model.epoch += 1;
                assert_eq!(memory.advance_epoch(), Epoch(self.model.epoch));
            }
            Step::MarkCode(frame) => {
                if self.model.frames[frame as usize].state == FrameState::Resident {
                    memory.mark_code(Frame(frame));
                    self.model.frames[frame as usize].code = true;
                }
            }
        }
    }

    fn supply(&mut self, memory: &GuestMemory, frames: &[u32]) {
        let contents: Vec<_> = frames.iter().map(|&f| [number(Frame(f)); FRAME_SIZE]).collect();
        let pages: Vec<_> = frames.iter().copied().map(Frame).zip(&contents).collect();
        let absent = FrameState::Absent(self.source);
        let before = memory.counts().absent;
        match memory.supply(self.source, &pages) {
            Ok(supplied) => {
                for &frame in frames {
                    let expected = &mut self.model.frames[frame as usize];
                    if expected.state == absent {
                        expected.state = FrameState::Resident;
                        expected.byte = number(Frame(frame));
                    }
                }
                assert_eq!(before - supplied, self.model.counts().absent);
            }
            Err(_) => assert!(frames.iter().any(|&frame| frame >= FRAMES)),
        }
    }

    fn discard(&mut self, memory: &GuestMemory, frames: &[u32], balloon: bool) {
        let (why, target) = if balloon {
            (Discard::Balloon, FrameState::Ballooned)
        } else {
            (Discard::Reported, FrameState::Untouched)
        };
        let report = memory.discard(frames.iter().copied().map(Frame), why).unwrap();
        assert_eq!(report.kept, 0);
        frames.iter().for_each(|&frame| self.model.discard(frame, target));
    }

    fn change(&mut self, frames: &[u32], from: FrameState, to: FrameState) {
        for &frame in frames {
            if let Some(frame) = self.model.frames.get_mut(frame as usize)
                && frame.state == from
            {
                frame.state = to;
            }
        }
    }

    fn compare(&self) {
        let memory = self.view.memory();
        for (index, expected) in self.model.frames.iter().enumerate() {
            let facts = memory.facts(Frame(index as u32)).unwrap();
            let seen = Expected {
                state: facts.state,
                byte: expected.byte,
                accessed: facts.accessed.0,
                written: facts.written.0,
                code: facts.code,
            };
            assert_eq!(seen, *expected, "frame {index}");
            assert_eq!(facts.pins, 0, "frame {index}");
        }
        assert_eq!(memory.counts(), self.model.counts());
        assert!(memory.backed_bytes().unwrap() <= memory.resident_bytes());
        self.compare_census();
    }

    fn compare_census(&self) {
        let memory = self.view.memory();
        for epoch in 1..=self.model.epoch {
            let expected: Vec<u32> = (0..FRAMES)
                .filter(|&frame| self.model.frames[frame as usize].accessed >= epoch)
                .collect();
            let seen: Vec<u32> = memory.accessed_since(Epoch(epoch)).map(|f| f.0).collect();
            assert_eq!(seen, expected);
            let ages = (self.model.epoch - epoch + 1) as usize;
            let by_age: u32 = memory.accesses_by_age(ages).iter().sum();
            assert_eq!(by_age as usize, expected.len());
            let written = memory.written_since(Epoch(epoch)).count();
            let expected = self.model.frames.iter().filter(|f| f.written >= epoch).count();
            assert_eq!(written, expected);
        }
    }
}

fn gpa(frame: u32) -> Gpa {
    Gpa(u64::from(frame) * FRAME_SIZE as u64)
}

proptest! {
    #[test]
    fn the_table_does_what_the_model_does(steps in steps()) {
        let mut rig = Rig::new();
        for step in &steps {
            rig.take(step);
            rig.compare();
        }
    }
}

#[test]
fn a_failed_fetch_leaves_the_frame_absent_and_a_retry_works() {
    let rig = Rig::new();
    let memory = rig.view.memory();
    assert_eq!(
        memory
            .make_absent([Frame(5), Frame(6), Frame(FRAMES)], rig.source)
            .expect("no engine refuses"),
        2
    );
    rig.numbers.failing.store(true, Ordering::Relaxed);
    let error = memory.resolve(Frame(5), Access::Read).unwrap_err();
    assert!(matches!(error, ResolveError::Source { frame: Frame(5), .. }));
    assert_eq!(error.to_string(), "frame 5: fetch: unavailable: told to fail");
    let facts = memory.facts(Frame(5)).unwrap();
    assert_eq!(facts.state, FrameState::Absent(rig.source));
    assert_eq!(facts.accessed, Epoch::NEVER);
    // A device access over both frames fails as a whole and leaves no pin on the first.
    rig.view.read(gpa(4), &mut [0; 2 * FRAME_SIZE]).unwrap_err();
    assert_eq!(memory.facts(Frame(4)).unwrap().pins, 0);
    assert_eq!(memory.backed_bytes().unwrap(), 0);

    rig.numbers.failing.store(false, Ordering::Relaxed);
    let mut bytes = [0; 2];
    rig.view.read(Gpa(gpa(6).0 - 1), &mut bytes).unwrap();
    assert_eq!(bytes, [number(Frame(5)), number(Frame(6))]);
    assert_eq!(rig.numbers.fetches.load(Ordering::Relaxed), 4);
}

/// A panic is a bug of the source; it must not leave threads waiting for ever.
#[test]
fn a_panicking_source_leaves_the_frame_absent() {
    struct Panics;
    impl Source for Panics {
        fn fetch(&self, _: Frame, _: &mut [u8; FRAME_SIZE]) -> Result<(), SourceError> {
            panic!("a source's bug");
        }
    }
    let memory = GuestMemory::with_bytes(1 << 20).unwrap();
    let source = memory.add_source(Arc::new(Panics)).unwrap();
    memory.make_absent([Frame(0)], source).expect("no engine refuses");
    let resolve = std::panic::AssertUnwindSafe(|| memory.resolve(Frame(0), Access::Read).is_ok());
    assert!(std::panic::catch_unwind(resolve).is_err());
    assert_eq!(memory.facts(Frame(0)).unwrap().state, FrameState::Absent(source));
}

#[test]
fn frames_past_the_end_are_errors() {
    let rig = Rig::new();
    let memory = rig.view.memory();
    for frame in [FRAMES, u32::MAX].map(Frame) {
        let error = memory.resolve(frame, Access::Read).unwrap_err();
        assert!(matches!(error, ResolveError::NoSuchFrame(_)));
        assert_eq!(memory.discard([frame], Discard::Balloon).unwrap().unknown, 1);
        assert_eq!(memory.return_from_balloon([frame]), 0);
        assert_eq!(memory.facts(frame), None);
    }
}
