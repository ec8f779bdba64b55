//! Frozen memory, with threads that write to the guest's mapping in the place of a guest.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use memory::{
    DeviceView, Discard, Frozen, Gpa, Keep, MappingObserver, ReadView, Revocation, Taken,
};

use super::*;

const FRAMES: u32 = 2048;

type Contents = [u8; FRAME_SIZE];

/// What the engine's observer does, without a VM.
struct Wired {
    faults: Arc<UserFaultHandler>,
    ram: Arc<GuestRam>,
    memory: Weak<GuestMemory>,
}

impl MappingObserver for Wired {
    fn revoke(&self, _: Revocation<'_>) {}

    fn code_written(&self, _: Gpa, _: usize) {}

    fn maps_by_itself(&self) -> bool {
        true
    }

    fn report(&self) {
        let memory = self.memory.upgrade().expect("in use");
        let note = |frame| memory.note(frame, Access::Read);
        let told = match memory.is_anonymous() {
            true => self.ram.filled(note),
            false => self.ram.accessed(false, note),
        };
        told.expect("pagemap");
    }

    fn write_protect(&self) -> Result<(), String> {
        self.faults.protect(&self.ram, &self.memory).map_err(|error| error.to_string())
    }

    fn unprotect(&self, frames: FrameRange) {
        self.faults.unprotect(&self.ram, &self.memory, frames);
    }
}

impl Drop for Wired {
    fn drop(&mut self) {
        self.faults.stop();
    }
}

struct Rig {
    memory: Arc<GuestMemory>,
    ram: Arc<GuestRam>,
    view: DeviceView,
    wired: Arc<Wired>,
}

/// `None`, and a word, where the host does not let us.
fn rig(memory: GuestMemory) -> Option<Rig> {
    let memory = Arc::new(memory);
    let faults = UserFaultHandler::open().filter(|faults| faults.kind == UserFaults::All);
    let Some(faults) = faults.map(Arc::new) else {
        eprintln!("NOT TESTED: no userfaultfd here for the kernel's faults");
        return None;
    };
    let ram = Arc::new(GuestRam::of(&memory).expect("guest RAM"));
    if !memory.is_anonymous() {
        faults.cover(&ram).expect("registered");
    }
    let wired = Wired { faults, ram: Arc::clone(&ram), memory: Arc::downgrade(&memory) };
    let wired = Arc::new(wired);
    memory.set_observer(Arc::clone(&wired) as Arc<dyn MappingObserver>);
    let view = DeviceView::new(Arc::clone(&memory));
    Some(Rig { memory, ram, view, wired })
}

impl Rig {
    /// A guest's write.
    fn guest_writes(&self, frame: u32, byte: u8) {
        let address = self.ram.address(Frame(frame)) as *mut u8;
        // SAFETY: inside the guest's mapping, to which nobody has a reference.
        unsafe { address.add(frame as usize % FRAME_SIZE).write_volatile(byte) };
    }

    fn all(&self) -> Vec<Contents> {
        let view = ReadView::new(Arc::clone(&self.memory));
        let read = |frame: u32| {
            let mut contents = [0; FRAME_SIZE];
            view.read(Gpa(u64::from(frame) << 12), &mut contents).expect("inside RAM");
            contents
        };
        (0..FRAMES).map(read).collect()
    }
}

#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<BTreeMap<u32, Contents>>>);

impl Keep for Shelf {
    fn keep(&self, frame: Frame, contents: &Contents) {
        assert!(self.0.lock().expect("no panic").insert(frame.0, *contents).is_none());
    }
}

fn take(frozen: &Frozen) -> Vec<Option<Contents>> {
    let mut found = Vec::new();
    for frame in 0..FRAMES {
        let mut contents = [0; FRAME_SIZE];
        found.push(match frozen.take(Frame(frame), &mut contents).expect("once") {
            Taken::Contents => Some(contents),
            Taken::Zero => Some([0; FRAME_SIZE]),
            Taken::Kept => None,
            Taken::Absent(_) => panic!("nothing is absent"),
        });
    }
    found
}

/// Freezes under guests and a device that write, and compares. `meanwhile`: takes while they do, else afterwards.
fn is_the_moments(rig: &Rig, meanwhile: bool) {
    for frame in (0..FRAMES).filter(|frame| frame % 5 < 2) {
        rig.guest_writes(frame, (frame % 251) as u8 + 1);
    }
    rig.view.write(Gpa(700 << 12), &[3; 100 * FRAME_SIZE]).expect("written");
    rig.memory.discard([Frame(5), Frame(6)], Discard::Balloon).expect("given back");
    rig.memory.catch_up();
    let expected = rig.all();
    let shelf = Shelf::default();
    let frozen = rig.memory.freeze(Box::new(shelf.clone())).expect("frozen");
    let stop = AtomicBool::new(false);
    let found = thread::scope(|scope| {
        let writers = [1u32, 2].map(|seed| {
            let stop = &stop;
            scope.spawn(move || {
                for step in 0..FRAMES * 2 {
                    if !stop.load(Ordering::Relaxed) {
                        rig.guest_writes((step * 613 + seed * 99) % FRAMES, 0xfe);
                    }
                }
            })
        });
        let device = scope.spawn(|| {
            for frame in (0..FRAMES).rev().step_by(3) {
                rig.view.write(Gpa(u64::from(frame) << 12), &[0xfd; 64]).expect("written");
            }
            rig.memory.discard((1000..1100).map(Frame), Discard::Reported).expect("given back");
        });
        let found = meanwhile.then(|| take(&frozen));
        for writer in writers.into_iter().chain([device]) {
            writer.join().expect("no panic");
        }
        stop.store(true, Ordering::Relaxed);
        found.unwrap_or_else(|| take(&frozen))
    });
    drop(frozen);
    let shelf = shelf.0.lock().expect("no panic");
    let wrong = (0..FRAMES).filter(|&frame| {
        let found = found[frame as usize].as_ref().or_else(|| shelf.get(&frame));
        found != Some(&expected[frame as usize])
    });
    assert_eq!(wrong.collect::<Vec<_>>(), [] as [u32; 0]);
    assert!(meanwhile || shelf.len() > FRAMES as usize / 4, "{} kept", shelf.len());
    // Nobody waits any more, and nothing is protected.
    (0..FRAMES).for_each(|frame| rig.guest_writes(frame, 7));
}

#[test]
fn memory_in_a_file_is_frozen_under_its_guest() {
    let memory = || GuestMemory::with_bytes(u64::from(FRAMES) << 12).expect("8 MiB");
    for meanwhile in [false, true] {
        let Some(rig) = rig(memory()) else { return };
        is_the_moments(&rig, meanwhile);
        is_the_moments(&rig, !meanwhile);
        drop(rig.wired);
    }
}

#[test]
fn anonymous_memory_is_frozen_under_its_guest() {
    for meanwhile in [false, true] {
        let memory = GuestMemory::anonymous(u64::from(FRAMES) << 12).expect("8 MiB");
        let Some(rig) = rig(memory) else { return };
        is_the_moments(&rig, meanwhile);
        assert!(rig.memory.is_anonymous());
        // It can be frozen again where it is, and in a file.
        is_the_moments(&rig, meanwhile);
        rig.memory.move_to_file().expect("moved");
        rig.wired.faults.cover(&rig.ram).expect("registered");
        is_the_moments(&rig, !meanwhile);
    }
}

/// Registered in pieces, a mapping is several areas of the kernel's.
#[test]
fn a_mapping_in_pieces_is_protected_as_a_whole() {
    let memory = GuestMemory::with_bytes(u64::from(FRAMES) << 12).expect("8 MiB");
    let Some(rig) = rig(memory) else { return };
    let ranges: Vec<FrameRange> = (10..FRAMES)
        .step_by(300)
        .map(|first| FrameRange { first: Frame(first), count: 7 })
        .collect();
    rig.wired.faults.watch(&rig.ram, &rig.wired.memory, &ranges).expect("watched");
    is_the_moments(&rig, false);
    is_the_moments(&rig, true);
}
