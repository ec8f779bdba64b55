//! The transport on the I/O thread's event loop.

use event_manager::{EventOps, EventSet, EventSubscriber, Events};

use super::MmioTransport;

/// Event data of the device's own wake-up; queues have their index.
const WAKE: u32 = u32::MAX;
/// Event data of what the device watches.
const WATCH: u32 = u32::MAX - 1;

impl EventSubscriber for MmioTransport {
    fn init(&self, ops: &mut EventOps<'_>) {
        let queues = self.notifiers.iter().zip(0_u32..);
        let wake = self.wake.iter().map(|notifier| (notifier, WAKE));
        let notifiers = queues
            .chain(wake)
            .map(|(notifier, data)| Events::with_data(notifier, data, EventSet::IN));
        // A device that is not live does not look at what it watches, and must not keep the loop
        // busy: edges come once.
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let watch = self.watch.iter().map(|watch| Events::with_data(watch, WATCH, edges));
        for events in notifiers.chain(watch) {
            if let Err(error) = ops.add(events) {
                tracing::error!("{:?}: {error}: the guest's requests are not served", self.kind());
            }
        }
    }

    fn process(&self, events: Events, _ops: &mut EventOps<'_>) {
        // The signal is taken before the work, so that one sent during the work is not lost.
        match (events.data(), &self.wake) {
            (WAKE, Some(wake)) => {
                wake.take();
                self.serve_wake();
            }
            (WATCH, _) => self.serve_wake(),
            (index, _) => {
                if let Some(notifier) = self.notifiers.get(index as usize) {
                    notifier.take();
                    self.serve_queue(index as usize);
                }
            }
        }
    }
}
