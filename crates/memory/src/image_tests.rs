//! Memory over images against a model: bytes of frames, and who shares what with whom does not show.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{Access, DeviceView, Discard, Gpa, ReadView};

const FRAMES: u32 = 192;
const BYTES: u64 = FRAMES as u64 * FRAME_SIZE as u64;

fn file() -> OwnedFd {
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
    rustix::fs::memfd_create("test", flags).expect("a file")
}

/// A memory, and what its frames should show: each has the same byte everywhere.
struct Rig {
    memory: Arc<GuestMemory>,
    view: DeviceView,
    expected: Vec<u8>,
    ballooned: Vec<bool>,
}

impl Rig {
    fn of(memory: GuestMemory, expected: Vec<u8>, ballooned: Vec<bool>) -> Self {
        let memory = Arc::new(memory);
        Self { view: DeviceView::new(Arc::clone(&memory)), memory, expected, ballooned }
    }

    fn new(anonymous: bool) -> Self {
        let memory = match anonymous {
            true => GuestMemory::anonymous(BYTES),
            false => GuestMemory::with_bytes(BYTES),
        };
        let frames = FRAMES as usize;
        Self::of(memory.expect("memory"), vec![0; frames], vec![false; frames])
    }

    /// Over an image whose runs are elsewhere: in its own file at another place, or in another file.
    fn over_runs() -> Self {
        let (image, other) = (file(), file());
        let mut expected = vec![0; FRAMES as usize];
        for file in [&image, &other] {
            rustix::fs::ftruncate(file, BYTES).expect("its length");
        }
        let put = |file: &OwnedFd, frame: u32, byte: u8| {
            let at = u64::from(frame) * FRAME_SIZE as u64;
            rustix::io::pwrite(file, &[byte; FRAME_SIZE], at).expect("written");
        };
        for frame in 0..30 {
            put(&image, frame, 50 + frame as u8);
            expected[frame as usize] = 50 + frame as u8;
        }
        (0..FRAMES).for_each(|frame| put(&other, frame, frame as u8));
        let run = |first, count, file, from: u64| {
            let frames = FrameRange { first: Frame(first), count };
            ImageRun { frames, file, from: from * FRAME_SIZE as u64 }
        };
        let runs = vec![
            run(5, 3, Some(0), 100),
            run(40, 10, None, 3),
            run(50, 60, Some(0), 2),
            run(FRAMES - 1, 1, Some(0), 9),
        ];
        for run in &runs {
            for (frame, from) in run.frames.frames().zip(run.from as u32 / FRAME_SIZE as u32..) {
                expected[frame.index()] = if run.file.is_some() { from } else { 50 + from } as u8;
            }
        }
        let layout = RamLayout::new(BYTES).expect("a layout");
        let runs = ImageRuns { files: vec![other], runs };
        let memory = GuestMemory::over_runs(layout, image, 0, runs).expect("over it");
        Self::of(memory, expected, vec![false; FRAMES as usize])
    }

    fn write(&mut self, frame: u32, byte: u8) {
        self.view.write(gpa(frame), &[byte; FRAME_SIZE]).expect("written");
        self.expected[frame as usize] = byte;
        self.ballooned[frame as usize] = false;
    }

    /// By a device, a vCPU, or one who leaves no trace.
    fn read(&mut self, frame: u32, how: u8) {
        let mut bytes = [0xee; FRAME_SIZE];
        match how {
            0 => self.view.read(gpa(frame), &mut bytes).expect("read"),
            1 => {
                let view = ReadView::new(Arc::clone(&self.memory));
                view.read(gpa(frame), &mut bytes).expect("read");
            }
            _ => {
                let page = self.memory.resolve(Frame(frame), Access::Read).expect("resident");
                // SAFETY: a resident page, and nobody else here.
                unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(page.as_ptr(), FRAME_SIZE) };
            }
        }
        assert_eq!(bytes, [self.expected[frame as usize]; FRAME_SIZE], "frame {frame}, by {how}");
        if how != 1 {
            self.ballooned[frame as usize] = false;
        }
    }

    fn discard(&mut self, first: u32, count: u32, balloon: bool, pinned: Option<u32>) {
        let frames = first..(first + count).min(FRAMES);
        let held = pinned.map(|frame| self.view.slice(gpa(frame), 1, Access::Read).expect("a pin"));
        if let Some(frame) = pinned {
            self.ballooned[frame as usize] = false;
        }
        let why = if balloon { Discard::Balloon } else { Discard::Reported };
        let done = self.memory.discard(frames.clone().map(Frame), why).expect("given back");
        let kept = pinned.is_some_and(|frame| frames.contains(&frame));
        assert_eq!(done.kept, u32::from(kept));
        drop(held);
        for frame in frames.filter(|frame| pinned != Some(*frame)) {
            self.expected[frame as usize] = 0;
            self.ballooned[frame as usize] |= balloon;
        }
    }

    fn clone(&self) -> Self {
        let draft = self.memory.draft_image(file()).expect("a draft");
        let image = self.memory.become_image(draft).expect("an image");
        let layout = *self.memory.layout();
        let memory = GuestMemory::over_layers(layout, image.file, image.from, image.layer);
        let frames = FRAMES as usize;
        let clone = Self::of(memory.expect("over it"), self.expected.clone(), vec![false; frames]);
        let counts = clone.memory.counts();
        assert_eq!((counts.resident, counts.absent + counts.untouched), (0, FRAMES));
        clone
    }

    fn compare(&mut self) {
        for frame in 0..FRAMES {
            self.read(frame, 1);
            let state = self.memory.facts(Frame(frame)).expect("inside RAM").state;
            let ballooned = self.ballooned[frame as usize];
            assert_eq!(state == FrameState::Ballooned, ballooned, "frame {frame}: {state:?}");
        }
    }
}

fn gpa(frame: u32) -> Gpa {
    Gpa(u64::from(frame) * FRAME_SIZE as u64)
}

#[derive(Clone, Debug)]
enum Step {
    Write(u32, u8),
    Read(u32, u8),
    Discard(u32, u32, bool, Option<u32>),
    Clone,
    MoveToFile,
    End,
}

fn steps() -> impl Strategy<Value = (u8, Vec<(usize, Step)>)> {
    let frame = 0..FRAMES;
    let pinned = prop_oneof![3 => Just(None), 1 => frame.clone().prop_map(Some)];
    let step = prop_oneof![
        8 => (frame.clone(), any::<u8>()).prop_map(|(f, b)| Step::Write(f, b)),
        8 => (frame.clone(), 0..3u8).prop_map(|(f, how)| Step::Read(f, how)),
        4 => (frame, 1..50u32, any::<bool>(), pinned)
            .prop_map(|(f, n, b, p)| Step::Discard(f, n, b, p)),
        3 => Just(Step::Clone),
        1 => Just(Step::MoveToFile),
        1 => Just(Step::End),
    ];
    (0..3u8, prop::collection::vec((0..6usize, step), 1..60))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn clones_and_their_parents_show_what_each_wrote((first, steps) in steps()) {
        let mut rigs = vec![if first == 2 { Rig::over_runs() } else { Rig::new(first == 1) }];
        rigs.iter_mut().for_each(Rig::compare);
        for (who, step) in steps {
            let who = who % rigs.len();
            let room = rigs.len() < 6;
            let rig = &mut rigs[who];
            match step {
                Step::Write(frame, byte) => rig.write(frame, byte),
                Step::Read(frame, how) => rig.read(frame, how),
                Step::Discard(first, count, balloon, pinned) => {
                    rig.discard(first, count, balloon, pinned);
                }
                Step::Clone if room => {
                    let clone = rig.clone();
                    rigs.push(clone);
                }
                Step::MoveToFile => rig.memory.move_to_file().expect("moved"),
                Step::Clone => {}
                Step::End => {
                    if rigs.len() > 1 {
                        rigs.swap_remove(who);
                    }
                }
            }
            rigs.iter_mut().for_each(Rig::compare);
        }
    }
}

#[test]
fn host_addresses_stay_and_an_image_cannot_be_written() {
    let mut rig = Rig::new(false);
    rig.write(5, 7);
    let page = rig.memory.resolve(Frame(5), Access::Write).expect("resident").as_ptr();
    let draft = rig.memory.draft_image(file()).expect("a draft");
    let image = rig.memory.become_image(draft).expect("an image");
    assert_eq!(rig.memory.resolve(Frame(5), Access::Read).expect("resident").as_ptr(), page);
    // SAFETY: a resident page, and nobody else here.
    unsafe { page.write_volatile(8) };
    let file = File::from(image.file);
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5 * FRAME_SIZE as u64).expect("read");
    assert_eq!(byte, [7], "the image has what was");
    assert!(file.write_all_at(&[9], 0).is_err() && file.set_len(0).is_err(), "sealed");
    let mut bytes = [0; 2];
    rig.view.read(gpa(5), &mut bytes).expect("read");
    assert_eq!(bytes, [8, 7]);
}

#[test]
fn a_clone_costs_what_it_writes() {
    let mut rig = Rig::new(false);
    (0..FRAMES / 2).for_each(|frame| rig.write(frame, 3));
    let clone = rig.clone();
    assert_eq!(clone.memory.counts().absent, FRAMES / 2);
    assert_eq!(clone.memory.backed_bytes().expect("a file"), 0);
    assert_eq!(
        clone.memory.facts(Frame(1)).expect("inside").state,
        FrameState::Absent(SourceId::BASE)
    );
    clone.memory.note(Frame(1), Access::Read);
    assert_eq!(clone.memory.facts(Frame(1)).expect("inside").state, FrameState::Resident);
}

#[test]
fn what_cannot_be_an_image_is_refused() {
    let layout = RamLayout::new(BYTES).expect("a layout");
    let image = file();
    rustix::fs::ftruncate(&image, BYTES - 1).expect("its length");
    let over = |from| GuestMemory::over(layout, image.try_clone().expect("a clone"), from);
    let error = over(0).expect_err("short").to_string();
    assert_eq!(error, format!("image of {} bytes: {BYTES} are needed: is it whole?", BYTES - 1));
    assert!(matches!(over(7), Err(ImageError::Unaligned(7))));
    assert!(matches!(over(u64::MAX - 4095), Err(ImageError::Short { .. })));
    let rig = Rig::new(false);
    assert!(matches!(rig.memory.draft_image(image), Err(ImageError::NotEmpty(_))));
    let early = rig.memory.draft_image(file()).expect("a draft");
    rig.clone();
    let error = rig.memory.become_image(early).expect_err("of another time");
    assert!(matches!(error, ImageError::Overtaken), "{error}");
}

#[test]
fn runs_that_are_nowhere_are_refused() {
    let layout = RamLayout::new(BYTES).expect("a layout");
    let over = |runs: &[(u32, u32, Option<usize>, u64)]| {
        let image = file();
        rustix::fs::ftruncate(&image, BYTES).expect("its length");
        let other = file();
        rustix::fs::ftruncate(&other, 4 * FRAME_SIZE as u64).expect("its length");
        let run = |&(first, count, file, from): &(u32, u32, Option<usize>, u64)| ImageRun {
            frames: FrameRange { first: Frame(first), count },
            file,
            from,
        };
        let runs = ImageRuns { files: vec![other], runs: runs.iter().map(run).collect() };
        GuestMemory::over_runs(layout, image, 0, runs).map(drop)
    };
    let page = FRAME_SIZE as u64;
    over(&[(0, 4, Some(0), 0), (4, 1, None, BYTES - page)]).expect("good");
    for run in [(FRAMES - 1, 2, None, 0), (0, 0, None, 0), (u32::MAX, 2, None, 0)] {
        assert!(matches!(over(&[run]), Err(ImageError::Run { .. })), "{run:?}");
    }
    let twice = [(0, 2, None, 0), (1, 2, None, 0)];
    assert!(matches!(over(&twice), Err(ImageError::Run { first: 1, count: 2 })));
    assert!(matches!(over(&[(0, 1, None, 1)]), Err(ImageError::Unaligned(1))));
    let ends = [(0, 1, None, BYTES), (0, 2, Some(0), 3 * page), (0, 1, Some(1), 0)];
    for run in ends.into_iter().chain([(0, 1, Some(0), u64::MAX - 4095)]) {
        assert!(matches!(over(&[run]), Err(ImageError::Short { .. })), "{run:?}");
    }
}

/// There are so many mappings and no more: the guest keeps what is beyond, with its contents.
#[test]
fn scattered_frames_are_given_back_up_to_a_number() {
    let frames = 2 * (BLANKS_MAX as u32 + 8);
    let bytes = u64::from(frames) * FRAME_SIZE as u64;
    let layout = RamLayout::new(bytes).expect("a layout");
    let image = file();
    rustix::fs::ftruncate(&image, bytes).expect("its length");
    let contents = vec![5; bytes as usize];
    rustix::io::pwrite(&image, &contents, 0).expect("written");
    let memory = Arc::new(GuestMemory::over(layout, image, 0).expect("over it"));
    let every_other = |n: u32| (0..n).map(|n| Frame(2 * n));
    let done = memory.discard(every_other(BLANKS_MAX as u32), Discard::Reported).expect("given");
    assert_eq!(done.discarded, BLANKS_MAX as u32);
    memory.discard([Frame(frames - 2)], Discard::Reported).expect_err("no more");
    let byte = |frame: u32| {
        let mut byte = [9];
        DeviceView::new(Arc::clone(&memory)).read(gpa(frame), &mut byte).expect("read");
        byte[0]
    };
    assert_eq!((byte(0), byte(1), byte(frames - 2)), (0, 5, 5));
    // A neighbour needs no mapping of its own.
    memory.discard([Frame(1)], Discard::Reported).expect("joins two");
    assert_eq!((byte(0), byte(1), byte(2)), (0, 0, 0));
    memory.discard([Frame(frames - 2)], Discard::Reported).expect("one is free");
    assert_eq!(byte(frames - 2), 0);
}

#[test]
fn absent_frames_are_fetched_before() {
    struct Sevens;
    impl crate::Source for Sevens {
        fn fetch(&self, _: Frame, into: &mut [u8; FRAME_SIZE]) -> Result<(), crate::SourceError> {
            into.fill(7);
            Ok(())
        }
    }
    let mut rig = Rig::new(false);
    let source = rig.memory.add_source(Arc::new(Sevens)).expect("a source");
    rig.memory.make_absent([Frame(3), Frame(9)], source).expect("absent");
    (rig.expected[3], rig.expected[9]) = (7, 7);
    let mut clone = rig.clone();
    clone.compare();
    assert_eq!(clone.memory.counts().absent, 2);
    let source = clone.memory.add_source(Arc::new(Sevens)).expect("a source");
    clone.memory.make_absent([Frame(1)], source).expect_err("not over an image");
}

/// Nobody writes while it is frozen.
struct Nobody;

impl crate::Keep for Nobody {
    fn keep(&self, frame: Frame, _: &[u8; FRAME_SIZE]) {
        panic!("frame {frame} is written");
    }
}

/// A live save of a clone: what it has never looked at is in the image, and what it wrote is its own.
#[test]
fn frozen_memory_over_an_image_has_the_image_s_contents() {
    let mut parent = Rig::new(false);
    (0..40).for_each(|frame| parent.write(frame, 7));
    let mut clone = parent.clone();
    clone.write(3, 9);
    clone.write(100, 9);
    clone.read(5, 0);
    clone.discard(6, 1, false, None);
    let frozen = clone.memory.freeze(Box::new(Nobody)).expect("frozen");
    for frame in 0..FRAMES {
        let mut found = [0; FRAME_SIZE];
        let taken = frozen.take(Frame(frame), &mut found).expect("once");
        let expected = clone.expected[frame as usize];
        let what = if expected == 0 { crate::Taken::Zero } else { crate::Taken::Contents };
        assert_eq!(taken, what, "frame {frame}");
        assert!(expected == 0 || found == [expected; FRAME_SIZE], "frame {frame}");
    }
}
