//! The thread on which devices work: queues, console input, wake-ups.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use confine::Thread;
use devices::Notifier;
use event_manager::{EventManager, EventOps, EventSet, EventSubscriber, Events, SubscriberOps};

use crate::error::VmError;

/// A device as the event loop holds it.
pub(crate) type Subscriber = Arc<dyn EventSubscriber + Send + Sync>;

/// The I/O thread of one life of the machine. Dropping it ends the thread.
pub(crate) struct IoThread {
    stop: Notifier,
    gate: Arc<Gate>,
    thread: Option<thread::JoinHandle<()>>,
}

impl IoThread {
    /// Starts the thread; it serves `subscribers` until dropped.
    pub(crate) fn start(subscribers: Vec<Subscriber>) -> Result<Self, VmError> {
        let stop = Notifier::new().map_err(VmError::host("create an eventfd"))?;
        let mut events = EventManager::<Subscriber>::new()
            .map_err(|error| VmError::Host("create the event loop".into(), event_error(error)))?;
        for subscriber in subscribers {
            events.add_subscriber(subscriber);
        }
        events.add_subscriber(Arc::new(Wake { notifier: stop.clone(), take: false }));
        let gate = Gate::new().map_err(VmError::host("create an eventfd"))?;
        events.add_subscriber(Arc::new(Wake { notifier: gate.knock.clone(), take: true }));
        let gate = Arc::new(gate);
        let asked = stop.clone();
        let passing = Arc::clone(&gate);
        let body = move || {
            let _gone = Gone(&passing);
            // The stop notifier's subscriber leaves it signalled, so `take` sees it here.
            while !asked.take() {
                passing.pass();
                if let Err(error) = events.run() {
                    tracing::error!("event loop: {error}: devices no longer work");
                    return;
                }
            }
        };
        let thread = confine::spawn(thread::Builder::new().name("io".into()), Thread::Io, body)
            .map_err(VmError::host("start the I/O thread"))?;
        Ok(Self { stop, gate, thread: Some(thread) })
    }

    /// By which others hold the thread.
    pub(crate) fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }
}

/// Holds the thread between two turns of its devices: they use no guest memory then, and have no request in hand.
pub(crate) struct Gate {
    knock: Notifier,
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    /// How many want the thread to stand.
    holders: u32,
    stands: bool,
    /// The thread has ended.
    gone: bool,
}

impl Gate {
    fn new() -> std::io::Result<Self> {
        Ok(Self { knock: Notifier::new()?, state: Mutex::default(), changed: Condvar::new() })
    }

    /// Returns when the thread stands, or has ended; it goes on when the guard is dropped.
    pub(crate) fn hold(&self) -> Held<'_> {
        let mut state = self.lock();
        state.holders += 1;
        self.knock.signal();
        while !state.stands && !state.gone {
            state = self.wait(state);
        }
        Held(self)
    }

    /// Called by the thread.
    fn pass(&self) {
        let mut state = self.lock();
        while state.holders > 0 {
            state.stands = true;
            self.changed.notify_all();
            state = self.wait(state);
        }
        state.stands = false;
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        // Every change is one assignment: poisoning says nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, GateState>) -> MutexGuard<'a, GateState> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread stands while this lives.
pub(crate) struct Held<'a>(&'a Gate);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.lock().holders -= 1;
        self.0.changed.notify_all();
    }
}

/// The last act of the thread: nobody waits for it.
struct Gone<'a>(&'a Gate);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.0.lock().gone = true;
        self.0.changed.notify_all();
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.stop.signal();
        if let Some(thread) = self.thread.take() {
            // It ends by itself unless it panicked, and then there is nothing to save.
            let _ = thread.join();
        }
    }
}

/// Wakes the loop and nothing else.
struct Wake {
    notifier: Notifier,
    /// Whether it is asleep again afterwards.
    take: bool,
}

impl EventSubscriber for Wake {
    fn process(&self, _: Events, _: &mut EventOps<'_>) {
        if self.take {
            self.notifier.take();
        }
    }

    fn init(&self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.notifier, EventSet::IN)) {
            tracing::error!("event loop: {error:?}: the machine will not stop or be saved");
        }
    }
}

fn event_error(error: event_manager::Error) -> std::io::Error {
    std::io::Error::other(format!("{error:?}"))
}
