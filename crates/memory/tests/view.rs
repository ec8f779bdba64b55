//! Devices' accesses: right bytes, true table, no way out of RAM.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::{Arc, Mutex};

use memory::{
    Access, AccessError, DeviceView, Discard, Epoch, Frame, FrameState, Gpa, GuestMemory,
    MappingObserver, Revocation, read_at, write_at,
};
use proptest::prelude::*;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, Permissions};

const MIB: u64 = 1 << 20;

fn view() -> DeviceView {
    DeviceView::new(Arc::new(GuestMemory::with_bytes(2 * MIB).unwrap()))
}

fn facts(view: &DeviceView, frame: u32) -> memory::FrameFacts {
    view.memory().facts(Frame(frame)).unwrap()
}

/// Writes down the code writes that it is told of.
#[derive(Default)]
struct CodeWrites(Mutex<Vec<(u64, usize)>>);

impl MappingObserver for CodeWrites {
    fn revoke(&self, _: Revocation<'_>) {}

    fn code_written(&self, gpa: Gpa, len: usize) {
        self.0.lock().unwrap().push((gpa.0, len));
    }
}

#[test]
fn copies_cross_frames_and_record_their_direction() {
    let view = view();
    let data: Vec<u8> = (0..10_000).map(|n| n as u8).collect();
    view.write(Gpa(4000), &data).unwrap();
    view.memory().advance_epoch();
    let mut back = vec![0; data.len()];
    view.read(Gpa(4000), &mut back).unwrap();
    assert_eq!(back, data);
    for frame in 0..4 {
        let facts = facts(&view, frame);
        assert_eq!(facts.state, FrameState::Resident);
        assert_eq!((facts.accessed, facts.written, facts.pins), (Epoch(2), Epoch(1), 0));
    }
    assert_eq!(facts(&view, 4).state, FrameState::Untouched);
}

#[test]
fn addresses_outside_ram_are_errors_and_touch_nothing() {
    let view = view();
    let end = 2 * MIB;
    for (gpa, len) in [(end, 1), (end - 1, 2), (u64::MAX, 1), (0, 3 << 20), (0xc000_0000, 8)] {
        let mut into = vec![0; len];
        let error = view.read(Gpa(gpa), &mut into).unwrap_err();
        assert!(matches!(error, AccessError::OutsideRam { .. }), "{error}");
        assert!(view.write(Gpa(gpa), &into).is_err());
        assert!(view.slice(Gpa(gpa), len, Access::Write).is_err());
        assert!(!view.contains(Gpa(gpa), len));
        assert!(!vm_memory::GuestMemory::check_range(
            &view,
            GuestAddress(gpa),
            len,
            Permissions::Read
        ));
    }
    assert_eq!(view.memory().counts().resident, 0);
    view.read(Gpa(u64::MAX), &mut []).unwrap();
}

#[test]
fn the_hole_separates_the_ranges() {
    let memory = GuestMemory::with_bytes((3 << 30) + 2 * MIB).unwrap();
    let view = DeviceView::new(Arc::new(memory));
    assert!(view.write(Gpa(0xbfff_fffc), &[1; 8]).is_err());
    view.write(Gpa(0xbfff_fffc), &[1; 4]).unwrap();
    view.write(Gpa(0x1_0000_0000), &[2; 4]).unwrap();
    let mut both = [0; 4];
    view.read(Gpa(0x1_0000_0000), &mut both).unwrap();
    assert_eq!(both, [2; 4]);
    assert_eq!(view.memory().counts().resident, 2);
    // Through vm-memory, the part before the hole is written and counted.
    assert_eq!(vm_memory::Bytes::write(&view, &[3; 8], GuestAddress(0xbfff_fffc)).unwrap(), 4);
}

#[test]
fn writes_to_code_reach_the_engine_by_every_way() {
    let view = view();
    let seen = Arc::new(CodeWrites::default());
    view.memory().set_observer(seen.clone());
    view.memory().resolve(Frame(1), Access::Read).unwrap();
    assert!(view.memory().mark_code(Frame(1)));
    assert!(!view.memory().mark_code(Frame(1)));
    let taken = || std::mem::take(&mut *seen.0.lock().unwrap());

    view.write(Gpa(0x1ffe), &[0; 8]).unwrap();
    assert_eq!(taken(), [(0x1ffe, 2)]);
    view.read(Gpa(0x1ffe), &mut [0; 8]).unwrap();
    assert_eq!(taken(), []);
    view.store(1u16, GuestAddress(0x1010), std::sync::atomic::Ordering::Release).unwrap();
    assert!(taken().contains(&(0x1010, 2)));
    view.write_obj(1u64, GuestAddress(0x1020)).unwrap();
    assert!(taken().contains(&(0x1020, 8)));
    drop(view.slice(Gpa(0), 0x3000, Access::Write).unwrap());
    assert_eq!(taken(), [(0x1000, 0x1000)]);
    view.memory().clear_code(Frame(1));
    view.write(Gpa(0x1000), &[0; 8]).unwrap();
    assert_eq!(taken(), []);
}

#[test]
fn a_slice_pins_its_frames_until_it_is_dropped() {
    let view = view();
    let slice = view.slice(Gpa(0x1800), 0x1000, Access::Write).unwrap();
    let report = view.memory().discard((0..4).map(Frame), Discard::Balloon).unwrap();
    assert_eq!((report.discarded, report.kept), (2, 2));
    assert_eq!(facts(&view, 1).state, FrameState::Resident);
    drop(slice);
    let report = view.memory().discard((0..4).map(Frame), Discard::Balloon).unwrap();
    assert_eq!((report.discarded, report.kept), (4, 0));
    assert_eq!(facts(&view, 1).state, FrameState::Ballooned);
}

#[test]
fn a_late_write_through_a_slice_counts_in_its_own_epoch() {
    let view = view();
    let slice = view.slice(Gpa(0), 16, Access::Write).unwrap();
    let epoch = view.memory().advance_epoch();
    drop(slice);
    assert_eq!(facts(&view, 0).written, epoch);
}

#[test]
fn file_io_goes_straight_into_guest_memory() {
    let view = view();
    let file = tempfile::tempfile().unwrap();
    view.write(Gpa(0x1000), b"hello").unwrap();
    view.write(Gpa(0x5000), b" world").unwrap();
    let from = [
        view.slice(Gpa(0x1000), 5, Access::Read).unwrap(),
        view.slice(Gpa(0x5000), 6, Access::Read).unwrap(),
    ];
    assert_eq!(write_at(&file, 100, &from).unwrap(), 11);
    let into = [view.slice(Gpa(0x8000), 20, Access::Write).unwrap()];
    assert_eq!(read_at(&file, 102, &into).unwrap(), 9);
    let refused = read_at(&file, 102, &from).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);
    drop(into);
    let mut back = [0; 9];
    view.read(Gpa(0x8000), &mut back).unwrap();
    assert_eq!(&back, b"llo world");
}

#[test]
fn a_virtqueue_works_on_the_view() {
    let view = view();
    let (table, avail, used) = (0x1000, 0x2000, 0x3000);
    // One chain: 5 readable bytes at 0x4000, then 3 writable bytes at 0x5000.
    let descriptor = |addr: u64, len: u32, flags: u16, next: u16| {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        bytes
    };
    view.write(Gpa(table), &descriptor(0x4000, 5, 1, 1)).unwrap();
    view.write(Gpa(table + 16), &descriptor(0x5000, 3, 2, 0)).unwrap();
    view.write(Gpa(avail), &[0, 0, 1, 0, 0, 0]).unwrap();
    view.write(Gpa(0x4000), b"hello").unwrap();

    let mut queue = Queue::new(16).unwrap();
    queue.set_desc_table_address(Some(table as u32), Some(0));
    queue.set_avail_ring_address(Some(avail as u32), Some(0));
    queue.set_used_ring_address(Some(used as u32), Some(0));
    queue.set_size(16);
    queue.set_ready(true);
    assert!(queue.is_valid(&view));

    let chain = queue.iter(&view).unwrap().next().unwrap();
    let head = chain.head_index();
    let mut reader = chain.clone().reader(&view).unwrap();
    let mut writer = chain.writer(&view).unwrap();
    assert_eq!((facts(&view, 4).pins, facts(&view, 5).pins), (1, 1));
    let mut got = [0; 5];
    std::io::Read::read_exact(&mut reader, &mut got).unwrap();
    assert_eq!(&got, b"hello");
    std::io::Write::write_all(&mut writer, b"yes").unwrap();
    drop((reader, writer));
    queue.add_used(&view, head, 3).unwrap();

    let mut back = [0; 3];
    view.read(Gpa(0x5000), &mut back).unwrap();
    assert_eq!(&back, b"yes");
    assert_eq!((facts(&view, 5).pins, facts(&view, 4).pins), (0, 0));
    assert_eq!((facts(&view, 4).written, facts(&view, 3).written), (Epoch(1), Epoch(1)));
    assert_eq!(facts(&view, 6).state, FrameState::Untouched);
}

#[test]
fn a_loader_writes_only_where_it_writes() {
    let view = view();
    let loader = view.loader();
    assert!(GuestMemoryBackend::check_range(&loader, GuestAddress(0), 2 << 20));
    assert!(!GuestMemoryBackend::check_range(&loader, GuestAddress(0), (2 << 20) + 1));
    assert!(!GuestMemoryBackend::check_range(&loader, GuestAddress(4 << 20), 1));
    assert_eq!(loader.last_addr(), GuestAddress((2 << 20) - 1));
    assert_eq!(view.memory().counts().resident, 0);
    let mut image: &[u8] = &[7; 5000];
    loader.read_exact_volatile_from(GuestAddress(0x10_0000), &mut image, 5000).unwrap();
    assert_eq!(view.memory().counts().resident, 2);
    assert_eq!(facts(&view, 0x100).written, Epoch(1));
    let mut last = [0];
    view.read(Gpa(0x10_0000 + 4999), &mut last).unwrap();
    assert_eq!(last, [7]);
}

/// Addresses that matter: both ends of both ranges, the hole, the end of the address space.
fn addresses() -> impl Strategy<Value = u64> {
    let edges = prop::sample::select(vec![0, 0xc000_0000, 1 << 32, (1 << 32) + 2 * MIB, u64::MAX]);
    let near = (edges, -9000i64..9000).prop_map(|(edge, by)| edge.wrapping_add_signed(by));
    prop_oneof![4 => near, 1 => any::<u64>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A guest may name any address and length: exactly the bytes of RAM are reached, by our own
    /// methods all or nothing, through vm-memory as far as RAM goes.
    #[test]
    fn any_address_and_length_is_safe(
        accesses in prop::collection::vec((addresses(), 0usize..10_000, any::<bool>()), 1..20)
    ) {
        let memory = Arc::new(GuestMemory::with_bytes((3 << 30) + 2 * MIB).unwrap());
        let view = DeviceView::new(memory);
        let loader = view.loader();
        for (gpa, len, write) in accesses {
            let inside = view.memory().layout().contiguous(Gpa(gpa)).min(len as u64) as usize;
            let mut bytes = vec![1; len];
            let done = if write {
                view.write(Gpa(gpa), &bytes)
            } else {
                view.read(Gpa(gpa), &mut bytes)
            };
            prop_assert_eq!(done.is_ok(), inside == len);
            prop_assert_eq!(view.contains(Gpa(gpa), len), inside == len);
            let at = GuestAddress(gpa);
            let through = Bytes::write(&view, &bytes, at);
            prop_assert_eq!(through.unwrap_or(0), inside);
            let through = Bytes::read(&loader, &mut bytes, at);
            prop_assert_eq!(through.unwrap_or(0), inside);
            if let Some(region) = loader.find_region(at) {
                let last = vm_memory::GuestMemoryRegion::len(region);
                let start = vm_memory::MemoryRegionAddress(last.min(gpa));
                let _ = Bytes::read(region, &mut bytes, start);
            }
        }
        let pinned = view.memory().accessed_since(Epoch(1));
        prop_assert!(pinned.map(|f| facts(&view, f.0)).all(|facts| facts.pins == 0));
    }
}
