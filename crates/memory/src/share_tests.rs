//! Two memories over one pool.

use super::*;
use crate::{
    Access, DeviceView, Discard, FrameState, Gpa, HostPage, PoolWriter, ReadView, ZERO_SLOT,
};

const FRAMES: u32 = 64;

fn gpa(frame: u32) -> Gpa {
    Gpa(u64::from(frame) * FRAME_SIZE as u64)
}

/// Memory of which frame N is full of N + 1, but the last, which is zeros; in a pool that has the same in the slots
/// of the same numbers plus one.
fn memory(pool: &PoolWriter) -> (Arc<GuestMemory>, DeviceView) {
    let memory = GuestMemory::with_bytes(u64::from(FRAMES) * FRAME_SIZE as u64).expect("memory");
    let memory = Arc::new(memory);
    let view = DeviceView::new(Arc::clone(&memory));
    for frame in 0..FRAMES - 1 {
        view.write(gpa(frame), &[frame as u8 + 1; FRAME_SIZE]).expect("written");
    }
    view.write(gpa(FRAMES - 1), &[0; FRAME_SIZE]).expect("written");
    let descriptor = pool.descriptor().expect("a descriptor");
    memory.attach_pool(Pool::open(descriptor).expect("opened")).expect("attached");
    (memory, view)
}

fn pool() -> PoolWriter {
    let mut pool = PoolWriter::new(FRAMES + 1).expect("a pool");
    (1..FRAMES).for_each(|slot| pool.put(slot, &[slot as u8; FRAME_SIZE]));
    pool
}

/// All of the guest's frames and their slots.
fn all() -> Vec<(Frame, u32)> {
    let slot = |frame| if frame == FRAMES - 1 { ZERO_SLOT } else { frame + 1 };
    (0..FRAMES).map(|frame| (Frame(frame), slot(frame))).collect()
}

fn first_byte(page: HostPage) -> u8 {
    // SAFETY: nobody else uses the memory, whose page was resolved just now.
    unsafe { page.as_ptr().read_volatile() }
}

fn read(memory: &GuestMemory, frame: u32) -> u8 {
    first_byte(memory.resolve(Frame(frame), Access::Read).expect("resolved"))
}

#[test]
fn what_is_the_same_is_read_from_the_pool_and_a_write_copies_it() {
    let pool = pool();
    let ((memory, _), (other, view)) = (memory(&pool), memory(&pool));
    for memory in [&memory, &other] {
        let outcome = memory.share(&all()).expect("shared");
        assert_eq!(outcome, vec![Switch::Shared; FRAMES as usize]);
        assert_eq!((memory.backed_bytes().expect("asked"), memory.shared()), (0, FRAMES));
    }
    assert_eq!(read(&memory, 7), 8);
    assert_eq!(read(&memory, FRAMES - 1), 0);
    assert_eq!(memory.backed_bytes().expect("asked"), 0, "to read takes nothing");
    let looked = ReadView::new(Arc::clone(&memory));
    let mut bytes = [0; 16];
    looked.read(Gpa(0x7ff8), &mut bytes).expect("read");
    assert_eq!((&bytes[..8], &bytes[8..]), (&[8; 8][..], &[9; 8][..]));
    assert_eq!(memory.shared(), FRAMES, "to look changes nothing");

    // Where somebody reads while another writes: one address.
    let reader = memory.resolve(Frame(7), Access::Read).expect("resolved");
    let writer = memory.resolve(Frame(7), Access::Write).expect("resolved");
    // SAFETY: nobody else uses the memory, whose page was resolved for writing.
    unsafe { writer.as_ptr().write_volatile(99) };
    assert_eq!((first_byte(reader), read(&other, 7)), (99, 8));
    view.write(Gpa(0x8001), &[98]).expect("written");
    assert_eq!((read(&memory, 8), read(&other, 8)), (9, 9));
    let mut bytes = [0; 2];
    view.read(Gpa(0x8000), &mut bytes).expect("read");
    assert_eq!(bytes, [9, 98]);
    assert_eq!((memory.shared(), other.shared()), (FRAMES - 1, FRAMES - 1));
    assert_eq!(memory.backed_bytes().expect("asked"), FRAME_SIZE as u64);
    assert_eq!((memory.released_slots(), other.released_slots()), (vec![8], vec![9]));
    assert_eq!(memory.released_slots(), [0; 0]);
}

#[test]
fn what_differs_or_is_held_stays() {
    let mut pool = pool();
    let (memory, view) = memory(&pool);
    let mut almost = [3; FRAME_SIZE];
    almost[FRAME_SIZE - 1] = 4;
    pool.put(3, &almost);
    let pin = view.slice(gpa(5), 1, Access::Read).expect("a pin");
    let slot = |frame: u32, slot| (Frame(frame), slot);
    let wanted =
        [slot(2, 3), slot(5, 6), slot(6, 7), slot(6, 7), slot(FRAMES, 1), slot(8, FRAMES + 1)];
    let outcome = memory.share(&wanted).expect("shared");
    use Switch::{Busy, Differs, Shared};
    assert_eq!(outcome, [Differs, Busy, Shared, Busy, Busy, Busy]);
    drop(pin);
    assert_eq!((memory.shared(), memory.counts().absent), (1, 1));
    let facts = memory.facts(Frame(2)).expect("facts");
    assert_eq!((facts.state, read(&memory, 2)), (FrameState::Resident, 3));
    let before = memory.share(&[slot(6, 7)]).expect("asked");
    assert_eq!(before, [Busy], "it is shared already");
}

#[test]
fn a_shared_frame_that_is_given_back_is_zeros() {
    let pool = pool();
    let (memory, view) = memory(&pool);
    memory.share(&all()).expect("shared");
    let frames = (10..20).map(Frame);
    let report = memory.discard(frames, Discard::Balloon).expect("discarded");
    assert_eq!((report.discarded, report.kept), (10, 0));
    let mut bytes = [7; 2 * FRAME_SIZE];
    view.read(gpa(12), &mut bytes).expect("read");
    assert_eq!(bytes, [0; 2 * FRAME_SIZE]);
    let mut slots = memory.released_slots();
    slots.sort_unstable();
    assert_eq!(slots, (11..21).collect::<Vec<_>>());
}

#[test]
fn another_pool_and_an_image_find_every_frame_the_guests_own() {
    let (first, second) = (pool(), pool());
    let (memory, _) = memory(&first);
    memory.share(&all()).expect("shared");
    let descriptor = second.descriptor().expect("a descriptor");
    memory.attach_pool(Pool::open(descriptor).expect("opened")).expect("attached");
    assert_eq!((memory.shared(), memory.counts().resident), (0, FRAMES));
    memory.share(&all()[..9]).expect("shared");
    drop(second);
    let new = Ram::make_file(0).expect("a file");
    let draft = memory.draft_image(new).expect("a draft");
    memory.share(&all()[..9]).expect("shared while it is drafted");
    memory.become_image(draft).expect("an image");
    assert_eq!(memory.shared(), 0);
    assert!((0..FRAMES - 1).all(|frame| read(&memory, frame) == frame as u8 + 1));
    assert!(matches!(memory.share(&all()), Err(ShareError::Anonymous)));
}
