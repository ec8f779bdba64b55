//! The thread on which devices work: queues, console input, wake-ups.

use std::sync::Arc;
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
        events.add_subscriber(Arc::new(Stop(stop.clone())));
        let asked = stop.clone();
        let body = move || {
            // The stop notifier's subscriber leaves it signalled, so `take` sees it here.
            while !asked.take() {
                if let Err(error) = events.run() {
                    tracing::error!("event loop: {error}: devices no longer work");
                    return;
                }
            }
        };
        let thread = confine::spawn(thread::Builder::new().name("io".into()), Thread::Io, body)
            .map_err(VmError::host("start the I/O thread"))?;
        Ok(Self { stop, thread: Some(thread) })
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
struct Stop(Notifier);

impl EventSubscriber for Stop {
    fn process(&self, _: Events, _: &mut EventOps<'_>) {}

    fn init(&self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.0, EventSet::IN)) {
            tracing::error!("event loop: {error:?}: the machine will not stop by itself");
        }
    }
}

fn event_error(error: event_manager::Error) -> std::io::Error {
    std::io::Error::other(format!("{error:?}"))
}
