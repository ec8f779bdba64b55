//! The order in which frames are accessed for the first time in an epoch: what restoring a guest wants to have first.

use std::sync::Arc;
use std::time::Duration;

use memory::{FRAME_SIZE, Frame, GuestMemory, Tracer};

use super::{Estimate, Estimator};

/// See the module. In memory that does not grow: what comes after the first `most` frames of an epoch is counted only.
#[derive(Debug)]
pub struct AccessOrder {
    memory: Arc<GuestMemory>,
    most: usize,
    running: Vec<Frame>,
    /// Of the running epoch, without a place in `running`.
    more: u64,
    lost: u64,
    finished: Option<(Vec<Frame>, u64)>,
}

impl AccessOrder {
    /// Begins with the next epoch. Somebody must listen to the memory's events.
    #[must_use]
    pub fn new(memory: Arc<GuestMemory>, most: usize) -> Self {
        let most = most.clamp(1, 1 << 24);
        memory.open_trace(Tracer::Order, most);
        memory.arm_all(Tracer::Order);
        let lost = memory.touches_lost(Tracer::Order);
        Self { memory, most, running: Vec::new(), more: 0, lost, finished: None }
    }

    /// The frames of the last finished epoch, the first accessed first.
    #[must_use]
    pub fn order(&self) -> &[Frame] {
        self.finished.as_ref().map_or(&[], |(order, _)| order)
    }

    fn take(&mut self) {
        // As many as there may be frames: the guest goes on meanwhile.
        for _ in 0..self.memory.layout().frames() {
            let Some(frame) = self.memory.take_touch(Tracer::Order) else { break };
            if self.running.len() < self.most {
                self.running.push(frame);
            } else {
                self.more += 1;
            }
        }
        let lost = self.memory.touches_lost(Tracer::Order);
        self.more += lost - self.lost;
        self.lost = lost;
    }
}

impl Estimator for AccessOrder {
    fn name(&self) -> &'static str {
        "order"
    }

    fn interval(&mut self, _: Duration) {
        self.take();
    }

    fn look(&mut self) {
        self.take();
        self.finished = Some((std::mem::take(&mut self.running), self.more));
        self.more = 0;
        self.memory.arm_all(Tracer::Order);
    }

    fn tick(&mut self, _: Duration) {}

    fn estimate(&self) -> Option<Estimate> {
        let (order, more) = self.finished.as_ref()?;
        Some(Estimate::exact((order.len() as u64 + more) * FRAME_SIZE as u64))
    }
}

#[cfg(test)]
mod tests {
    use memory::Access;

    use super::*;

    #[test]
    fn frames_come_in_the_order_of_their_first_access() {
        let memory = Arc::new(GuestMemory::with_bytes(1 << 20).unwrap());
        let events = memory.listen(1);
        let mut order = AccessOrder::new(Arc::clone(&memory), 3);
        let access = |frame| events.note_access(Frame(frame), Access::Read, true, true);
        assert_eq!(order.estimate(), None);
        for frame in [7, 3, 7, 3, 9] {
            access(frame);
        }
        order.look();
        assert_eq!(order.order(), [7, 3, 9].map(Frame));
        for frame in [4, 3, 7, 9, 11] {
            access(frame);
            order.interval(Duration::ZERO);
        }
        order.look();
        assert_eq!(order.order(), [4, 3, 7].map(Frame));
        assert_eq!(order.estimate(), Some(Estimate::exact(5 * 4096)), "two without a place");
    }
}
