//! A vCPU lacks a frame of a restored guest whose source fails: the VM stands until the source is back.
//!
//! ```text
//!   vCPU:    Exit::Unavailable --> lack --> stands, as all others do ..........> runs on
//!   here:                                   retry ... retry ... --> supplied ----^
//! ```
//! The fetch is tried on a thread of its own: vCPUs that stand can be paused, saved and ended at any time, however
//! long the source takes.

use std::io;
use std::sync::Arc;
use std::thread::Builder;
use std::time::Duration;

use confine::Thread;
use memory::shortage::{FIRST_PAUSE, LONGEST_PAUSE};
use memory::{GuestMemory, Shortage};

use crate::control::Control;
use crate::outcome::End;

/// Between two looks whether a thread has come back.
const LOOK: Duration = Duration::from_millis(20);

/// Starts to look after what vCPUs and devices lack, if any frame can be absent. It ends with the machine, and nobody
/// waits for its thread, which may hang in a fetch.
pub(crate) fn watch(
    control: &Arc<Control>,
    memory: &Arc<GuestMemory>,
    kick_all: Box<dyn Fn() + Send + Sync>,
) -> io::Result<()> {
    if !memory.has_sources() {
        return Ok(());
    }
    memory.wait_for_sources();
    let (control, memory) = (Arc::clone(control), Arc::clone(memory));
    let body = move || look_after(&control, &memory, &*kick_all);
    // It does what the observer's thread may: memory, and no more.
    confine::spawn(Builder::new().name("shortage".into()), Thread::WorkingSet, body).map(drop)
}

fn look_after(control: &Control, memory: &GuestMemory, kick_all: &dyn Fn()) {
    let mut pause = FIRST_PAUSE;
    while let Some(frames) = control.lacking() {
        let mut short = None;
        for frame in frames {
            match memory.retry(frame) {
                Ok(()) => control.supplied(frame),
                Err(error) if error.may_pass() => short = Some(error),
                Err(error) => {
                    control.end(End::Failed(error.to_string()));
                    kick_all();
                }
            }
        }
        let Some(error) = short else {
            pause = FIRST_PAUSE;
            continue;
        };
        if pause == FIRST_PAUSE {
            tracing::warn!("the VM stands until its memory can be had: {error}");
        }
        control.sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// What the user is told.
pub(crate) fn tell(shortage: &Shortage) -> String {
    let frame = shortage.frame;
    let seconds = shortage.lasts.as_secs();
    match &shortage.reason {
        Some(reason) => format!("waits for its memory: {reason}"),
        None => format!("waits for its memory: frame {frame}: no answer for {seconds} s"),
    }
}

/// Waits until the threads of a machine that has ended are out of its memory. False: some are not, and may never be.
pub(crate) fn have_come_back(control: &Control, memory: &GuestMemory) -> bool {
    while !control.has_finished(LOOK) || memory.is_fetching() {
        if memory.hangs() {
            return false;
        }
        if memory.is_fetching() {
            std::thread::sleep(LOOK);
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::sync::mpsc;
    use std::thread::{self, JoinHandle};
    use std::time::Instant;

    use memory::{Access, FRAME_SIZE, Frame, Source, SourceError};

    use super::*;
    use crate::control::RunState;

    /// A store that comes and goes.
    #[derive(Default)]
    struct Store {
        gone: AtomicBool,
        asked: AtomicU32,
    }

    impl Source for Store {
        fn fetch(&self, _: Frame, into: &mut [u8; FRAME_SIZE]) -> Result<(), SourceError> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            if self.gone.load(Ordering::SeqCst) {
                return Err(SourceError::Unavailable("/snapshots/a: the server is gone".into()));
            }
            into.fill(9);
            Ok(())
        }
    }

    const FRAMES: u32 = 4096;

    fn machine(source: Arc<dyn Source>) -> (Arc<Control>, Arc<GuestMemory>) {
        let bytes = u64::from(FRAMES) * FRAME_SIZE as u64;
        let memory = Arc::new(GuestMemory::with_bytes(bytes).expect("memory"));
        let id = memory.add_source(source).expect("a source");
        memory.make_absent((0..FRAMES).map(Frame), id).expect("absent");
        let control = Arc::new(Control::new(2, 0));
        watch(&control, &memory, Box::new(|| ())).expect("a thread");
        (control, memory)
    }

    /// A vCPU that touches one frame after the other, and what it has touched.
    fn vcpu(
        id: u32,
        control: &Arc<Control>,
        memory: &Arc<GuestMemory>,
    ) -> (JoinHandle<()>, Arc<AtomicU32>) {
        let (control, memory) = (Arc::clone(control), Arc::clone(memory));
        let touched = Arc::<AtomicU32>::default();
        let count = Arc::clone(&touched);
        let thread = thread::spawn(move || {
            while control.may_run(id) {
                let frame = Frame((count.load(Ordering::SeqCst) * 2 + id) % FRAMES);
                match memory.resolve(frame, Access::Read) {
                    Ok(_) => drop(count.fetch_add(1, Ordering::SeqCst)),
                    Err(error) => {
                        assert!(error.may_pass(), "{error}");
                        control.lack(frame);
                    }
                }
                thread::sleep(Duration::from_micros(200));
            }
            control.finished();
        });
        (thread, touched)
    }

    fn wait_until(what: impl Fn() -> bool) {
        while !what() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn all_stand_while_the_source_is_gone_and_go_on_by_themselves() {
        let store = Arc::<Store>::default();
        let (control, memory) = machine(Arc::clone(&store) as _);
        let vcpus = [0, 1].map(|id| vcpu(id, &control, &memory));
        let touched = || [0, 1].map(|id: usize| vcpus[id].1.load(Ordering::SeqCst));
        wait_until(|| touched().iter().all(|&count| count > 5));
        assert_eq!(control.run_state(), RunState::Running);

        store.gone.store(true, Ordering::SeqCst);
        wait_until(|| control.run_state() == RunState::Paused && memory.shortage().is_some());
        // Pausing returns, since they stand, and outlives the shortage.
        assert!(control.pause(|| ()));
        let told = tell(&memory.shortage().expect("a shortage"));
        assert!(told.starts_with("waits for its memory: frame "), "{told}");
        assert!(told.ends_with("/snapshots/a: the server is gone"), "{told}");
        let (before, asked) = (touched(), store.asked.load(Ordering::SeqCst));
        wait_until(|| store.asked.load(Ordering::SeqCst) > asked + 1);
        assert_eq!(touched(), before);

        store.gone.store(false, Ordering::SeqCst);
        wait_until(|| memory.shortage().is_none());
        thread::sleep(Duration::from_millis(5));
        assert_eq!(touched(), before, "the user wants them to stand");
        assert!(control.resume());
        wait_until(|| (0..2).all(|id| touched()[id] > before[id] + 5));
        assert_eq!(control.run_state(), RunState::Running);

        store.gone.store(true, Ordering::SeqCst);
        wait_until(|| control.run_state() == RunState::Paused);
        control.end(End::Stopped);
        assert!(have_come_back(&control, &memory));
        vcpus.into_iter().for_each(|(thread, _)| thread.join().expect("no panic"));
    }

    #[test]
    fn what_is_lost_ends_the_machine() {
        struct Corrupt(AtomicU32);
        impl Source for Corrupt {
            fn fetch(&self, _: Frame, _: &mut [u8; FRAME_SIZE]) -> Result<(), SourceError> {
                match self.0.fetch_add(1, Ordering::SeqCst) {
                    0 => Err(SourceError::Unavailable("not now".into())),
                    _ => Err(SourceError::Corrupt("chunk 3: wrong checksum".into())),
                }
            }
        }
        let (control, memory) = machine(Arc::new(Corrupt(AtomicU32::new(0))));
        memory.resolve(Frame(7), Access::Read).expect_err("not now");
        control.lack(Frame(7));
        let expected = "frame 7: fetch: corrupt: chunk 3: wrong checksum";
        assert_eq!(control.wait_end(), End::Failed(expected.into()));
    }

    #[test]
    fn a_thread_that_hangs_in_a_fetch_is_left_behind() {
        struct Hangs(Mutex<mpsc::Receiver<()>>);
        impl Source for Hangs {
            fn fetch(&self, _: Frame, _: &mut [u8; FRAME_SIZE]) -> Result<(), SourceError> {
                self.0.lock().expect("receiver").recv().expect("an answer");
                Ok(())
            }
        }
        let (answer, wait) = mpsc::channel();
        let (control, memory) = machine(Arc::new(Hangs(Mutex::new(wait))));
        let [first, second] = [0, 1].map(|id| vcpu(id, &control, &memory).0);
        wait_until(|| memory.is_fetching());
        let ended = Instant::now();
        control.end(End::Stopped);
        assert_eq!(control.wait_end(), End::Stopped);
        assert!(!have_come_back(&control, &memory));
        // Long before anything would answer.
        assert!(ended.elapsed() < Duration::from_secs(60));
        let told = tell(&memory.shortage().expect("a shortage"));
        assert!(told.contains("no answer for"), "{told}");
        for _ in 0..2 {
            answer.send(()).expect("the source is there");
        }
        [first, second].into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert!(have_come_back(&control, &memory));
    }
}
