//! Small guests of page tables and events, and any bytes as page tables.

use std::sync::Arc;
use std::time::Duration;

use memory::{
    Access, DeviceView, Discard, DiskBlock, Event, FRAME_SIZE, Frame, Gpa, GuestMemory, Inbox,
    ReadView, Stamped,
};
use proptest::prelude::*;

use super::*;
use crate::CacheTracker;

const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const USER: u64 = 4;
const LARGE: u64 = 0x80;
const NO_EXECUTE: u64 = 1 << 63;
const TABLE: u64 = PRESENT | WRITE | USER;

const FRAMES: u32 = 1024;

/// A guest whose tables are written by the test.
struct Rig {
    memory: Arc<GuestMemory>,
    view: DeviceView,
    classifier: Classifier,
    cache: CacheTracker,
    inbox: Inbox,
}

impl Rig {
    fn new() -> Self {
        let memory = Arc::new(GuestMemory::with_bytes(u64::from(FRAMES) << 12).expect("memory"));
        memory.listen(1 << 12);
        let contents = Box::new(ReadView::new(Arc::clone(&memory)));
        Self {
            view: DeviceView::new(Arc::clone(&memory)),
            classifier: Classifier::new(Arc::clone(&memory)),
            cache: CacheTracker::new(FRAMES, contents),
            inbox: Inbox::default(),
            memory,
        }
    }

    fn entry(&self, table: u32, number: usize, entry: u64) {
        let at = Gpa((u64::from(table) << 12) + number as u64 * 8);
        self.view.write(at, &entry.to_le_bytes()).expect("written");
    }

    /// A space with tables at `root` to `root + 3` that maps `frame` by these bits, and the kernel's at 500.
    fn space(&self, root: u32, frame: u32, bits: u64) {
        for (level, next) in (root..root + 3).zip(root + 1..) {
            self.entry(level, 0, u64::from(next) << 12 | TABLE);
        }
        self.entry(root + 3, 7, u64::from(frame) << 12 | bits);
        self.entry(root, 511, 500 << 12 | PRESENT | WRITE);
        self.tell(Event::AddressSpace { root: Frame(root), vcpu: 0 });
    }

    fn tell(&self, event: Event) {
        self.memory.events().expect("somebody listens").tell(event);
    }

    /// As a vCPU does.
    fn access(&self, frame: u32, access: Access, by_user: bool) {
        self.memory.resolve(Frame(frame), access).expect("resident");
        let events = self.memory.events().expect("somebody listens");
        events.note_owner(Frame(frame), access, false, by_user);
    }

    fn next_event(&mut self) -> Option<Stamped> {
        self.inbox.take(self.memory.events()?)
    }

    fn epoch(&mut self) {
        while let Some(stamped) = self.next_event() {
            self.classifier.tell(&stamped);
            self.cache.tell(stamped);
        }
        self.memory.advance_epoch();
        self.classifier.sweep(&self.cache);
    }

    fn class(&self, frame: u32) -> (FrameClass, Evidence) {
        self.classifier.class(Frame(frame), &self.cache)
    }
}

#[test]
fn names_are_those_of_json() {
    for (place, class) in FrameClass::ALL.into_iter().enumerate() {
        let json = serde_json::to_string(&class).expect("json");
        assert_eq!(json, format!("\"{}\"", class.name()));
        // Maps are in the order in which classes are shown, and tables by class have a place for each.
        assert_eq!(class as usize, place);
    }
}

#[test]
fn a_space_shows_its_tables_and_what_programs_map() {
    let mut rig = Rig::new();
    rig.space(10, 100, TABLE);
    rig.access(100, Access::Write, false);
    rig.access(101, Access::Write, false);
    rig.epoch();
    for table in 10..14 {
        assert_eq!(rig.class(table), (FrameClass::PageTable, Evidence::Walked));
    }
    assert_eq!(rig.class(100), (FrameClass::Anonymous, Evidence::Mapped));
    assert_eq!(rig.class(101), (FrameClass::Kernel, Evidence::KernelWrote));
    assert_eq!(rig.class(102), (FrameClass::Untouched, Evidence::Host));
    let processes: Vec<_> = rig.classifier.processes().collect();
    assert_eq!(processes.len(), 1);
    assert_eq!((processes[0].root, processes[0].frames, processes[0].tables), (10 << 12, 1, 4));
    // The program ends: its tables are somebody else's.
    rig.entry(10, 0, 0);
    for _ in 0..2 {
        rig.epoch();
    }
    assert_eq!(rig.classifier.processes().count(), 0);
    assert_eq!(rig.class(11).0, FrameClass::Kernel);
    let summary = rig.classifier.summary(&rig.cache);
    assert_eq!((summary.processes_created, summary.processes_gone), (1, 1));
    assert_eq!(summary.classes.iter().map(|class| class.frames).sum::<u64>(), u64::from(FRAMES));
}

#[test]
fn programs_of_which_nobody_tells_are_found_by_their_roots() {
    let mut rig = Rig::new();
    rig.classifier = Classifier::searching(Arc::clone(&rig.memory));
    for (root, frame) in [(10, 100), (20, 101), (30, 102)] {
        rig.space(root, frame, TABLE);
        rig.access(frame, Access::Write, false);
    }
    // One root is told; another was, of a program that has ended since: nothing is left in it for users.
    while rig.next_event().is_some() {}
    rig.tell(Event::AddressSpace { root: Frame(10), vcpu: 0 });
    rig.entry(30, 0, 0);
    // A program's own page that looks like a root.
    rig.entry(100, 511, 500 << 12 | PRESENT | WRITE);
    rig.entry(100, 0, 40 << 12 | TABLE);
    for _ in 0..3 {
        rig.epoch();
    }
    let mut roots: Vec<_> = rig.classifier.processes().map(|process| process.root >> 12).collect();
    roots.sort_unstable();
    assert_eq!(roots, [10, 20]);
    assert_eq!(rig.class(101), (FrameClass::Anonymous, Evidence::Mapped));
    assert_eq!(rig.class(100), (FrameClass::Anonymous, Evidence::Mapped));
    assert_eq!(rig.class(102), (FrameClass::Zero, Evidence::Contents));
    // The second ends.
    rig.entry(20, 0, 0);
    for _ in 0..2 {
        rig.epoch();
    }
    assert_eq!(rig.classifier.processes().count(), 1);
    assert_eq!(rig.classifier.summary(&rig.cache).processes_gone, 1);
}

#[test]
fn the_last_program_that_ran_may_be_gone() {
    for (number, entry) in [(511, 0), (511, 700 << 12 | PRESENT | WRITE)] {
        let mut rig = Rig::new();
        for (root, frame) in [(10, 100), (20, 101), (30, 102)] {
            rig.space(root, frame, TABLE);
            rig.access(frame, Access::Write, false);
        }
        // Its root has become something else before anybody looked.
        rig.entry(30, number, entry);
        for _ in 0..2 {
            rig.epoch();
            let mut roots: Vec<_> =
                rig.classifier.processes().map(|process| process.root >> 12).collect();
            roots.sort_unstable();
            assert_eq!(roots, [10, 20]);
        }
    }
}

#[test]
fn what_a_program_let_go_of_is_vacated_until_somebody_uses_it() {
    let mut rig = Rig::new();
    rig.space(10, 100, TABLE);
    rig.access(100, Access::Write, false);
    rig.access(100, Access::Write, true);
    for _ in 0..3 {
        rig.epoch();
    }
    rig.entry(13, 7, 0);
    rig.epoch();
    assert_eq!(rig.class(100), (FrameClass::Anonymous, Evidence::Vacated));
    for _ in 0..600 {
        rig.epoch();
    }
    assert_eq!(rig.class(100), (FrameClass::Anonymous, Evidence::Vacated));
    assert_eq!(
        rig.classifier.summary(&rig.cache).classes[FrameClass::Anonymous as usize].vacated,
        1
    );
    rig.access(100, Access::Write, false);
    assert_eq!(rig.class(100), (FrameClass::Kernel, Evidence::KernelWrote));
}

#[test]
fn what_two_spaces_write_is_not_vacated_by_one() {
    let mut rig = Rig::new();
    rig.space(10, 100, TABLE);
    rig.space(20, 100, TABLE);
    rig.access(100, Access::Write, true);
    for _ in 0..3 {
        rig.epoch();
    }
    assert_eq!(rig.class(100), (FrameClass::Anonymous, Evidence::MappedByMany));
    rig.entry(13, 7, 0);
    rig.entry(23, 7, 0);
    for _ in 0..3 {
        rig.epoch();
    }
    assert_eq!(rig.class(100), (FrameClass::Anonymous, Evidence::Used));
}

#[test]
fn devices_disks_and_the_balloon_say_what_is_theirs() {
    let mut rig = Rig::new();
    for frame in 1..6 {
        rig.access(frame, Access::Write, false);
    }
    rig.tell(Event::Ring { frame: Frame(1) });
    let from = DiskBlock { disk: 0, block: 77 };
    rig.tell(Event::Read { frame: Frame(2), from, changed: false });
    rig.memory.discard([Frame(3)], Discard::Balloon).expect("ballooned");
    rig.memory.discard([Frame(4)], Discard::Reported).expect("reported");
    for _ in 0..4 {
        rig.epoch();
    }
    assert_eq!(rig.class(1), (FrameClass::DmaRing, Evidence::Device));
    assert_eq!(rig.class(2), (FrameClass::FileCache, Evidence::Located));
    assert_eq!(rig.class(3), (FrameClass::Ballooned, Evidence::Reported));
    assert_eq!(rig.class(4), (FrameClass::Free, Evidence::Reported));
    assert_eq!(rig.class(5), (FrameClass::Zero, Evidence::Contents));
    // The kernel takes them.
    rig.access(4, Access::Write, false);
    rig.access(5, Access::Write, false);
    assert_eq!((rig.class(4).0, rig.class(5).0), (FrameClass::Kernel, FrameClass::Kernel));
}

#[test]
fn code_of_the_kernel_is_what_it_may_run_and_not_write() {
    let mut rig = Rig::new();
    rig.space(10, 100, TABLE);
    rig.entry(500, 511, 501 << 12 | PRESENT | WRITE);
    // 2 MiB of code, 2 MiB of data, and a page of code of a module.
    rig.entry(501, 0, 512 << 12 | PRESENT | LARGE);
    rig.entry(501, 1, PRESENT | WRITE | LARGE | NO_EXECUTE);
    rig.entry(501, 2, 502 << 12 | PRESENT | WRITE);
    rig.entry(502, 3, 300 << 12 | PRESENT);
    for frame in [300, 301, 512, 1023] {
        rig.access(frame, Access::Write, false);
        rig.view.write(Gpa(u64::from(frame) << 12), &[7]).expect("written");
    }
    rig.epoch();
    let text = (FrameClass::KernelText, Evidence::Executable);
    assert_eq!([rig.class(300), rig.class(512), rig.class(1023)], [text; 3]);
    assert_eq!([rig.class(500).0, rig.class(502).0], [FrameClass::PageTable; 2]);
    assert_eq!(rig.class(301).0, FrameClass::Kernel);
    rig.entry(502, 3, 0);
    rig.epoch();
    assert_eq!(rig.class(300).0, FrameClass::Kernel);
}

#[test]
fn equal_frames_can_be_shared() {
    let mut rig = Rig::new();
    for frame in 1..4_u64 {
        rig.view.write(Gpa(frame << 12), &[9; FRAME_SIZE]).expect("written");
    }
    // A round through all of memory, and one that is complete.
    for _ in 0..4 {
        rig.epoch();
    }
    let kernel = rig.classifier.summary(&rig.cache).classes[FrameClass::Kernel as usize];
    assert_eq!((kernel.frames, kernel.shareable), (3, 2));
    let prints: Vec<_> = rig.classifier.fingerprints().collect();
    assert_eq!(prints.len(), 1);
    assert_eq!((prints[0].1, prints[0].2), (Frame(1), 3));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is in memory where page tables are said to be: each sweep ends, every frame has one class, and no frame
    /// is called free that was not reported.
    #[test]
    fn any_page_tables_cost_bounded_work(
        entries in proptest::collection::vec((0..64_u32, 0..512_usize, 0..80_u64, any::<u64>()), 0..300),
        roots in proptest::collection::vec(any::<u32>().prop_map(|root| root % 80), 1..8),
    ) {
        let mut rig = Rig::new();
        for (table, number, frame, bits) in entries {
            rig.entry(table, number, frame << 12 | bits & 0x8000_0000_0000_0fff | PRESENT);
            rig.entry(table, 511, PRESENT | WRITE | u64::from(table) << 12);
        }
        for root in roots {
            rig.tell(Event::AddressSpace { root: Frame(root), vcpu: 0 });
        }
        for _ in 0..4 {
            rig.epoch();
        }
        let summary = rig.classifier.summary(&rig.cache);
        let sum: u64 = summary.classes.iter().map(|class| class.frames).sum();
        prop_assert_eq!(sum, u64::from(FRAMES));
        prop_assert_eq!(summary.classes[FrameClass::Free as usize].frames, 0);
        prop_assert!(summary.processes <= 8);
    }
}

#[test]
fn frames_that_there_are_not_are_nobodys() {
    let mut rig = Rig::new();
    let nowhere = Frame(u32::MAX);
    rig.tell(Event::AddressSpace { root: nowhere, vcpu: 9 });
    rig.tell(Event::Ring { frame: nowhere });
    rig.epoch();
    assert_eq!(rig.class(u32::MAX), (FrameClass::Untouched, Evidence::Host));
    rig.classifier.tell(&Stamped { at: Duration::ZERO, event: Event::Freed { frame: nowhere } });
}
