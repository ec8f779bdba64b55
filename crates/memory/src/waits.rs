//! Who had to wait for frames that were not there, and for how long: what a restored guest is slow by.
//!
//! Only while somebody asks, and only where a thread comes to a frame that is absent or on its way: an access to
//! any other frame is as fast as ever.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use crate::address::Frame;
use crate::guest_memory::GuestMemory;

/// Who waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Waiter {
    /// The vCPU of this number.
    Vcpu(u32),
    /// A device, or whoever else reads guest memory.
    Device,
}

/// One time that somebody had to wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wait {
    /// Who.
    pub waiter: Waiter,
    /// The frame.
    pub frame: Frame,
    /// When it came to the frame.
    pub begin: Instant,
    /// When it had the frame, or was told that its source fails; `>= begin`.
    pub end: Instant,
    /// It brought the frame from its source. Else somebody else was doing so, or the source failed.
    pub fetched: bool,
}

/// What [`GuestMemory::take_waits`] hands out.
#[derive(Clone, Debug, Default)]
pub struct Waits {
    /// In the order in which they ended.
    pub waits: Vec<Wait>,
    /// How many more there were, for which there was no room.
    pub lost: u64,
}

thread_local! {
    static WAITER: Cell<Waiter> = const { Cell::new(Waiter::Device) };
    static REGISTERED: Cell<Option<Registered>> = const { Cell::new(None) };
}

/// vCPUs by the kernel's numbers of their threads, for who waits in the place of one.
static THREADS: Mutex<BTreeMap<u32, u32>> = Mutex::new(BTreeMap::new());

/// A thread's line in [`THREADS`], which goes with the thread: the kernel uses its number again.
struct Registered(u32);

impl Drop for Registered {
    fn drop(&mut self) {
        THREADS.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// From now on this thread's waits are vCPU `id`'s.
pub fn i_am_vcpu(id: u32) {
    WAITER.set(Waiter::Vcpu(id));
    let thread = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
    THREADS.lock().unwrap_or_else(PoisonError::into_inner).insert(thread, id);
    REGISTERED.set(Some(Registered(thread)));
}

/// Does `act` in the place of another thread: what it waits for, that one waits for. `thread` is the kernel's number of
/// it.
pub fn in_place_of<T>(thread: u32, act: impl FnOnce() -> T) -> T {
    let vcpu = THREADS.lock().unwrap_or_else(PoisonError::into_inner).get(&thread).copied();
    // KVM may have a thread of the kernel wait for a page in a vCPU's place (Linux virt/kvm/async_pf.c), which
    // does not say for which: with one vCPU it is that one.
    let before = WAITER.replace(Waiter::Vcpu(vcpu.unwrap_or(0)));
    let done = act();
    WAITER.set(before);
    done
}

/// Whose waits this thread's are.
pub(crate) fn waiter() -> Waiter {
    WAITER.get()
}

/// Where waits are written down, once somebody asks.
#[derive(Default)]
pub(crate) struct WaitLog(OnceLock<Mutex<Kept>>);

struct Kept {
    /// At most `capacity`.
    waits: Vec<Wait>,
    capacity: usize,
    lost: u64,
}

impl WaitLog {
    /// Now, if waits are written down.
    pub(crate) fn begin(&self) -> Option<Instant> {
        self.0.get().map(|_| Instant::now())
    }

    pub(crate) fn end(&self, begin: Option<Instant>, frame: Frame, fetched: bool) {
        let (Some(kept), Some(begin)) = (self.0.get(), begin) else { return };
        let end = Instant::now();
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.waits.len() < kept.capacity {
            kept.waits.push(Wait { waiter: waiter(), frame, begin, end, fetched });
        } else {
            kept.lost += 1;
        }
    }
}

impl GuestMemory {
    /// From now on writes down who waits for frames: `capacity` waits, until they are taken. The capacity of the first
    /// call counts.
    pub fn record_waits(&self, capacity: usize) {
        self.waits.0.get_or_init(|| Mutex::new(Kept { waits: Vec::new(), capacity, lost: 0 }));
    }

    /// The waits since the last time, or since they are recorded. Nothing where they are not.
    pub fn take_waits(&self) -> Waits {
        let Some(kept) = self.waits.0.get() else { return Waits::default() };
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        Waits { waits: std::mem::take(&mut kept.waits), lost: std::mem::take(&mut kept.lost) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};
    use std::sync::{Arc, Barrier};
    use std::thread;

    use super::*;
    use crate::{Access, DeviceView, FRAME_SIZE, Gpa, Source, SourceError};

    /// Says which frame it is asked for, and gives it once it is told whether it has it.
    struct Gated {
        asked: Mutex<Sender<Frame>>,
        answer: Mutex<Receiver<bool>>,
    }

    impl Source for Gated {
        fn fetch(&self, frame: Frame, into: &mut [u8; FRAME_SIZE]) -> Result<(), SourceError> {
            self.asked.lock().expect("sender").send(frame).expect("the test listens");
            into.fill(frame.0 as u8);
            let there = self.answer.lock().expect("receiver").recv().expect("the test answers");
            if there { Ok(()) } else { Err(SourceError::Unavailable("not now".into())) }
        }
    }

    fn gated() -> (Arc<GuestMemory>, Receiver<Frame>, Sender<bool>) {
        let memory = Arc::new(GuestMemory::with_bytes(1 << 20).expect("memory"));
        let ((asked, ask), (give, answer)) = (mpsc::channel(), mpsc::channel());
        let source = Gated { asked: Mutex::new(asked), answer: Mutex::new(answer) };
        let source = memory.add_source(Arc::new(source)).expect("a source");
        memory.make_absent((0..16).map(Frame), source).expect("absent");
        (memory, ask, give)
    }

    #[test]
    fn who_fetches_and_who_waits_for_that_are_told_apart() {
        let (memory, ask, give) = gated();
        memory.record_waits(10);
        let vcpu = |id| {
            let memory = Arc::clone(&memory);
            thread::spawn(move || {
                i_am_vcpu(id);
                memory.resolve(Frame(3), Access::Read).expect("fetched");
            })
        };
        let started = Instant::now();
        let first = vcpu(7);
        assert_eq!(ask.recv().expect("asked"), Frame(3));
        let second = vcpu(8);
        // The second one waits when the frame says so.
        while !memory.table.is_waited_for(Frame(3)) {
            thread::yield_now();
        }
        let given = Instant::now();
        give.send(true).expect("given");
        first.join().expect("the first");
        second.join().expect("the second");
        // What is there, or never was absent, is waited for by nobody.
        memory.resolve(Frame(3), Access::Write).expect("there");
        memory.resolve(Frame(20), Access::Write).expect("zeros");
        let Waits { mut waits, lost } = memory.take_waits();
        waits.sort_by_key(|wait| wait.begin);
        let told = waits.iter().map(|wait| (wait.waiter, wait.frame, wait.fetched));
        let expected = [(Waiter::Vcpu(7), Frame(3), true), (Waiter::Vcpu(8), Frame(3), false)];
        assert!(told.eq(expected), "{waits:?}");
        assert!(waits.iter().all(|wait| started <= wait.begin && wait.begin <= given));
        assert!(waits.iter().all(|wait| given <= wait.end));
        assert_eq!(lost, 0);
        assert!(memory.take_waits().waits.is_empty());
    }

    #[test]
    fn devices_failures_and_waits_that_find_no_room() {
        let (memory, ask, give) = gated();
        let view = DeviceView::new(Arc::clone(&memory));
        give.send(true).expect("given");
        view.read(Gpa(0), &mut [0; 2]).expect("read");
        assert!(memory.take_waits().waits.is_empty(), "nobody had asked");
        memory.record_waits(2);
        memory.record_waits(100);
        give.send(false).expect("refused");
        view.read(Gpa(0x1000), &mut [0; 2]).expect_err("its source fails");
        for _ in 0..3 {
            give.send(true).expect("given");
        }
        view.read(Gpa(0x1000), &mut [0; 0x2001]).expect("read");
        let Waits { waits, lost } = memory.take_waits();
        let told = waits.iter().map(|wait| (wait.waiter, wait.frame, wait.fetched));
        let device = Waiter::Device;
        assert!(told.eq([(device, Frame(1), false), (device, Frame(1), true)]), "{waits:?}");
        assert_eq!(lost, 2);
        assert_eq!(memory.take_waits().lost, 0);
        assert_eq!(ask.try_iter().count(), 5);
    }

    #[test]
    fn one_waits_in_the_place_of_another() {
        let (tell, told) = mpsc::channel();
        let begin = Arc::new(Barrier::new(2));
        let ended = Arc::clone(&begin);
        let vcpu = thread::spawn(move || {
            i_am_vcpu(5);
            let number = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
            tell.send(number).expect("told");
            ended.wait();
        });
        let number = told.recv().expect("its number");
        assert_eq!(in_place_of(number, waiter), Waiter::Vcpu(5));
        assert_eq!(waiter(), Waiter::Device);
        begin.wait();
        vcpu.join().expect("ended");
        // Its number may be another's by now, but not that vCPU's.
        assert_eq!(in_place_of(number, waiter), Waiter::Vcpu(0));
    }
}
