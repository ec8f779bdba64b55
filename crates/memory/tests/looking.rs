//! An engine that looks for accesses and tells of them later, while frames are given back.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::Duration;

use memory::{
    Access, DeviceView, Discard, FRAME_SIZE, Frame, FrameState, Gpa, GuestMemory, MappingObserver,
    Revocation,
};

const FRAME: Frame = Frame(5);
/// For a discard that must wait: longer than one takes that need not.
const WAIT: Duration = Duration::from_millis(500);

/// Sees that the guest has accessed a frame, and tells of it when the frame has been discarded, or cannot be.
struct Slow {
    memory: Mutex<Weak<GuestMemory>>,
    looked: Sender<()>,
    discarded: Mutex<Receiver<()>>,
}

impl Slow {
    fn look(&self) {
        let memory = self.memory.lock().unwrap().upgrade().unwrap();
        self.looked.send(()).unwrap();
        // Either will do.
        let _ = self.discarded.lock().unwrap().recv_timeout(WAIT);
        memory.note(FRAME, Access::Read);
    }
}

impl MappingObserver for Slow {
    fn revoke(&self, _: Revocation<'_>) {}

    fn code_written(&self, _: Gpa, _: usize) {}

    fn report(&self) {
        self.look();
    }

    fn end_epoch(&self) {
        self.look();
    }

    fn maps_by_itself(&self) -> bool {
        true
    }
}

#[test]
fn what_was_seen_before_a_discard_does_not_undo_it() {
    let looks: [fn(&GuestMemory); 2] = [GuestMemory::catch_up, |memory| drop(memory.end_epoch(1))];
    for look in looks {
        for (why, state) in
            [(Discard::Balloon, FrameState::Ballooned), (Discard::Reported, FrameState::Untouched)]
        {
            assert_eq!(state_after(look, why), state);
        }
    }
}

/// Of the frame, after a look that a discard met.
fn state_after(look: fn(&GuestMemory), why: Discard) -> FrameState {
    let memory = Arc::new(GuestMemory::with_bytes(1 << 20).unwrap());
    let (looked, has_looked) = channel();
    let (discarded, is_discarded) = channel();
    let weak = Mutex::new(Arc::downgrade(&memory));
    let engine = Slow { memory: weak, looked, discarded: Mutex::new(is_discarded) };
    let view = DeviceView::new(Arc::clone(&memory));
    view.write(Gpa(u64::from(FRAME.0) * FRAME_SIZE as u64), &[1; FRAME_SIZE]).unwrap();
    memory.set_observer(Arc::new(engine));
    thread::scope(|scope| {
        scope.spawn(|| look(&memory));
        has_looked.recv().unwrap();
        memory.discard([FRAME], why).unwrap();
        // The look may be over.
        let _ = discarded.send(());
    });
    memory.facts(FRAME).unwrap().state
}
