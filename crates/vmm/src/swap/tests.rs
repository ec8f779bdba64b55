use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use memory::{Access, DeviceView, Discard, Gpa, ResolveError};
use proptest::prelude::*;

use super::*;

const FRAMES: u32 = 64;
const STORE: u64 = 64 << 10;

struct Machine {
    memory: Arc<GuestMemory>,
    view: DeviceView,
    swap: Arc<Swap>,
}

fn machine(store: Option<File>, images: Images) -> Machine {
    let memory = GuestMemory::with_bytes(u64::from(FRAMES) * FRAME_SIZE as u64);
    let memory = Arc::new(memory.expect("memory"));
    let swap = Swap::register(&memory, Arc::new(images), store).expect("a source");
    Machine { view: DeviceView::new(Arc::clone(&memory)), memory, swap }
}

fn file() -> Option<File> {
    Some(tempfile::tempfile().expect("a file"))
}

fn gpa(frame: u32) -> Gpa {
    Gpa(u64::from(frame) * FRAME_SIZE as u64)
}

/// Contents of a kind: zeros, what compresses, what does not.
fn contents(seed: u8) -> [u8; FRAME_SIZE] {
    let mut state = u64::from(seed);
    std::array::from_fn(|index| match seed % 4 {
        0 => 0,
        1 => seed,
        2 => (index % 256) as u8 ^ seed,
        _ => {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        }
    })
}

impl Machine {
    fn write(&self, frame: u32, contents: &[u8; FRAME_SIZE]) {
        self.view.write(gpa(frame), contents).expect("written");
    }

    fn read(&self, frame: u32) -> [u8; FRAME_SIZE] {
        let mut bytes = [0; FRAME_SIZE];
        self.view.read(gpa(frame), &mut bytes).expect("read");
        bytes
    }

    fn take(&self, frames: impl IntoIterator<Item = u32>) -> u32 {
        self.swap.take(&self.memory, frames.into_iter().map(Frame)).expect("taken")
    }

    fn status(&self) -> ReclaimStatus {
        self.swap.status()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(u32, u8),
    Read(u32),
    Take(Vec<u32>),
    Give(u32, bool),
    Limit(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let frame = || 0..FRAMES;
    prop_oneof![
        4 => (frame(), any::<u8>()).prop_map(|(frame, seed)| Step::Write(frame, seed)),
        2 => frame().prop_map(Step::Read),
        4 => prop::collection::vec(frame(), 1..40).prop_map(Step::Take),
        1 => (frame(), any::<bool>()).prop_map(|(frame, balloon)| Step::Give(frame, balloon)),
        1 => (0u64..6).prop_map(|segments| Step::Limit(segments * STORE)),
    ]
}

proptest! {
    /// In whichever order frames are written, read, taken and given back, with whichever room in the store: contents are
    /// what was written last.
    #[test]
    fn contents_come_back(steps in prop::collection::vec(step(), 1..120)) {
        let machine = machine(file(), Images::default());
        let mut model = vec![[0; FRAME_SIZE]; FRAMES as usize];
        for step in steps {
            match step {
                Step::Write(frame, seed) => {
                    machine.write(frame, &contents(seed));
                    model[frame as usize] = contents(seed);
                }
                Step::Read(frame) => prop_assert!(machine.read(frame) == model[frame as usize]),
                Step::Take(frames) => drop(machine.take(frames)),
                Step::Give(frame, balloon) => {
                    let why = if balloon { Discard::Balloon } else { Discard::Reported };
                    machine.memory.discard([Frame(frame)], why).expect("given back");
                    model[frame as usize] = [0; FRAME_SIZE];
                }
                Step::Limit(bytes) => machine.swap.set_store_limit(bytes),
            }
        }
        for (frame, expected) in model.iter().enumerate() {
            prop_assert!(machine.read(frame as u32) == *expected, "frame {}", frame);
        }
    }
}

#[test]
fn what_is_unchanged_is_not_written_twice() {
    let machine = machine(file(), Images::default());
    for frame in 0..16 {
        machine.write(frame, &contents(7 + 4 * frame as u8));
    }
    let bytes = |frames: u64| frames * FRAME_SIZE as u64;
    assert_eq!(machine.take(0..16), 16);
    let status = machine.status();
    assert_eq!((status.written_bytes, status.slots, status.store_bytes), (bytes(16), 16, STORE));
    assert_eq!(machine.memory.backed_bytes().expect("asked"), 0);
    // Seven come along with the first of each eight.
    machine.read(0);
    machine.read(8);
    let status = machine.status();
    assert_eq!((status.returned_bytes, status.prefetched_bytes), (bytes(2), bytes(14)));
    assert_eq!(machine.memory.counts().resident, 16);
    machine.write(3, &contents(250));
    assert_eq!(machine.take(0..16), 16);
    let status = machine.status();
    assert_eq!((status.unchanged_bytes, status.written_bytes), (bytes(15), bytes(17)));
    assert_eq!((status.slots, status.taken_bytes), (16, bytes(32)));
    assert_eq!(machine.read(3), contents(250));
}

#[test]
fn without_a_store_only_zeros_go() {
    let machine = machine(None, Images::default());
    machine.write(1, &contents(0));
    machine.write(2, &contents(1));
    assert_eq!(machine.take(0..4), 1);
    let status = machine.status();
    assert_eq!((status.zero_bytes, status.store_limit_bytes), (FRAME_SIZE as u64, None));
    assert_eq!((machine.read(1), machine.read(2)), (contents(0), contents(1)));
}

#[test]
fn a_full_store_says_so_and_frames_stay() {
    let machine = machine(file(), Images::default());
    machine.swap.set_store_limit(STORE);
    for frame in 0..32 {
        machine.write(frame, &contents(3 + 4 * frame as u8));
    }
    assert_eq!(machine.take(0..32), 16);
    let status = machine.status();
    assert_eq!(status.problem.as_deref(), Some("the swap store is full: 65536 bytes"));
    assert_eq!((status.store_limit_bytes, status.store_bytes), (Some(STORE), STORE));
    // What is back makes room.
    assert_eq!(machine.read(0), contents(3));
    assert_eq!(machine.take(16..24), 8);
    assert_eq!(machine.status().problem, None);
    for frame in 0..32 {
        assert_eq!(machine.read(frame), contents(3 + 4 * frame as u8), "frame {frame}");
    }
}

#[test]
fn a_store_that_cannot_be_written_loses_nothing() {
    let full = OpenOptions::new().read(true).write(true).open("/dev/full").expect("it is there");
    let machine = machine(Some(full), Images::default());
    machine.write(1, &contents(1));
    machine.write(2, &contents(0));
    assert_eq!(machine.take(0..4), 1, "zeros need no store");
    let problem = machine.status().problem.expect("told");
    assert!(problem.starts_with("write the swap store: "), "{problem}");
    assert_eq!(machine.read(1), contents(1));
}

#[test]
fn a_store_that_cannot_be_read_is_waited_for_and_a_wrong_one_is_not() {
    let store = tempfile::tempfile().expect("a file");
    let machine = machine(Some(store.try_clone().expect("a file")), Images::default());
    machine.write(1, &contents(3));
    machine.write(20, &contents(7));
    assert_eq!(machine.take([1, 20]), 2);
    store.set_len(0).expect("cut short");
    let want = |frame| machine.memory.resolve(Frame(frame), Access::Read);
    assert!(want(1).is_err_and(|error| error.may_pass()));
    store.write_all_at(&contents(3), 0).expect("it is back");
    want(1).expect("and so is the frame");
    store.write_all_at(&contents(11), FRAME_SIZE as u64).expect("somebody else's");
    let error = want(20).expect_err("not what was written");
    assert!(matches!(error, ResolveError::Source { .. }) && !error.may_pass(), "{error}");
}

#[test]
fn what_an_image_has_is_dropped_and_read_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("image");
    std::fs::write(&path, [contents(3), contents(7)].as_flattened()).expect("written");
    let images = Images::that_can_be_read(&[Some(path.clone())]);
    let machine = machine(None, images);
    for (frame, block) in [(4, 0), (5, 1), (6, 1)] {
        machine.write(frame, &contents(if block == 0 { 3 } else { 7 }));
        machine.memory.note_origin(Frame(frame), Some(DiskBlock { disk: 0, block }));
    }
    // Not what was read any more.
    machine.write(6, &contents(8));
    machine.write(6, &contents(9));
    assert_eq!(machine.take(4..7), 2);
    assert_eq!(machine.status().disk_bytes, 2 * FRAME_SIZE as u64);
    assert_eq!((machine.read(4), machine.read(6)), (contents(3), contents(9)));
    // Somebody writes to it all the same: that is not what the guest had.
    assert_eq!(machine.take([4, 5]), 2);
    std::fs::write(&path, [contents(11), contents(7)].as_flattened()).expect("written");
    let error = machine.memory.resolve(Frame(4), Access::Read).expect_err("changed");
    assert!(!error.may_pass() && error.to_string().contains("its image was written"), "{error}");
    assert_eq!(machine.read(5), contents(7));
}
