//! What the frame table costs: nanoseconds per operation, the best of several rounds.
//!
//! `cargo bench -p memory`

#![allow(missing_docs, clippy::unwrap_used, reason = "a program that prints figures")]

use std::cell::RefCell;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use memory::{Access, DeviceView, Discard, Epoch, FRAME_SIZE, Frame, Gpa, GuestMemory, Keep};
use vm_memory::{Bytes, GuestAddress};

const FRAMES: u32 = 65_536;
const ROUNDS: usize = 7;

fn main() {
    let memory = Arc::new(GuestMemory::with_bytes(u64::from(FRAMES) * 4096).unwrap());
    let view = DeviceView::new(Arc::clone(&memory));
    let all = || (0..FRAMES).map(Frame);
    let touch_all = || {
        for frame in all() {
            let page = memory.resolve(frame, Access::Write).unwrap();
            // SAFETY: a resident page; nobody discards meanwhile.
            unsafe { page.as_ptr().write_volatile(1) };
        }
    };
    let resolve_all = |access| {
        for frame in all() {
            black_box(memory.resolve(black_box(frame), access).unwrap());
        }
    };
    let give_back = |frames: &mut dyn Iterator<Item = Frame>| {
        memory.discard(frames, Discard::Reported).unwrap();
    };

    best("first touch (with the host's page fault)", FRAMES, || give_back(&mut all()), touch_all);
    best("resolve, resident, read", FRAMES, || {}, || resolve_all(Access::Read));
    best("resolve, resident, write", FRAMES, || {}, || resolve_all(Access::Write));
    let next = || {
        memory.advance_epoch();
    };
    best("resolve, first read of an epoch", FRAMES, next, || resolve_all(Access::Read));
    best("resolve, first write of an epoch", FRAMES, next, || resolve_all(Access::Write));

    let mut bytes = [0; 64];
    let device_reads = || all().for_each(|frame| view.read(gpa(frame), &mut bytes).unwrap());
    best("device read, 64 bytes", FRAMES, || {}, device_reads);
    let device_writes = || all().for_each(|frame| view.write(gpa(frame), &[1; 64]).unwrap());
    best("device write, 64 bytes", FRAMES, || {}, device_writes);
    let loads = || {
        for frame in all() {
            let address = GuestAddress(gpa(frame).0);
            black_box(view.load::<u16>(address, Ordering::Acquire).unwrap());
        }
    };
    best("vm-memory load, 2 bytes", FRAMES, || {}, loads);
    let page = vec![1; 64 << 10];
    let bulk = || (0..FRAMES / 16).for_each(|n| view.write(gpa(Frame(n * 16)), &page).unwrap());
    best("device write, 64 KiB, per frame", FRAMES, || {}, bulk);

    touch_all();
    let freeze = || memory.freeze(Box::new(Nowhere)).unwrap();
    best("freeze, without the engine's part", FRAMES, || {}, || drop(black_box(freeze())));
    let frozen = RefCell::new(None);
    let thaw_and_freeze = || {
        // First ends the one before.
        frozen.take();
        frozen.replace(Some(freeze()));
    };
    best("first write to a frozen frame", FRAMES, thaw_and_freeze, || resolve_all(Access::Write));
    let mut contents = [0; FRAME_SIZE];
    let mut take = || {
        let frozen = frozen.borrow();
        for frame in all() {
            frozen.as_ref().unwrap().take(frame, &mut contents).unwrap();
        }
    };
    best("take a frozen frame", FRAMES, thaw_and_freeze, &mut take);
    frozen.take();

    best("discard, one run", FRAMES, touch_all, || give_back(&mut all()));
    let odd = || give_back(&mut all().filter(|frame| frame.0 % 2 == 1));
    best("discard, every second frame", FRAMES / 2, touch_all, odd);
    best("census of ages", FRAMES, || {}, || drop(black_box(memory.accesses_by_age(60))));
    let since = || {
        black_box(memory.accessed_since(Epoch(3)).count());
    };
    best("census, accessed since", FRAMES, || {}, since);
}

/// Whom nothing is kept for: what is left is the copy.
struct Nowhere;

impl Keep for Nowhere {
    fn keep(&self, _: Frame, contents: &[u8; FRAME_SIZE]) {
        black_box(contents);
    }
}

fn gpa(frame: Frame) -> Gpa {
    Gpa(u64::from(frame.0) * 4096)
}

/// Prints the least time of `what` per item; `prepare` is not timed.
fn best(name: &str, items: u32, mut prepare: impl FnMut(), mut what: impl FnMut()) {
    let least = (0..ROUNDS)
        .map(|_| {
            prepare();
            let start = Instant::now();
            what();
            start.elapsed()
        })
        .min()
        .unwrap_or(Duration::ZERO);
    println!("{name:<45} {:>9.2} ns", least.as_nanos() as f64 / f64::from(items));
}
