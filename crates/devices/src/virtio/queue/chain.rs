//! One descriptor chain, whole and checked.

use memory::Gpa;
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;

use super::{QueueError, Segment, Segments};
use crate::DeviceView;

/// A request: what the device may read, then what it may write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Index of its first descriptor: what goes back into the used ring.
    pub head: u16,
    /// Device-readable part.
    pub readable: Segments,
    /// Device-writable part.
    pub writable: Segments,
}

impl Chain {
    pub(super) fn collect(
        descriptors: DescriptorChain<&DeviceView>,
        queue_size: u16,
        memory: &DeviceView,
    ) -> Result<Self, QueueError> {
        let head = descriptors.head_index();
        let mut chain = Self { head, readable: Segments::default(), writable: Segments::default() };
        let (mut count, mut ended) = (0, false);
        for descriptor in descriptors {
            // "A driver MUST NOT create a descriptor chain longer than the Queue Size" (2.7.5.3.1),
            // also through an indirect table.
            count += 1;
            if count > queue_size {
                return Err(QueueError::Chain { head });
            }
            ended = !descriptor.has_next();
            chain.add(&descriptor, memory)?;
        }
        if ended { Ok(chain) } else { Err(QueueError::Chain { head }) }
    }

    fn add(&mut self, descriptor: &Descriptor, memory: &DeviceView) -> Result<(), QueueError> {
        let part = if descriptor.is_write_only() {
            &mut self.writable
        } else if self.writable.pieces() == 0 {
            &mut self.readable
        } else {
            return Err(QueueError::Order { head: self.head });
        };
        let segment = Segment { address: Gpa(descriptor.addr().0), len: descriptor.len().into() };
        // An empty buffer is inside memory anywhere, so its end is checked too.
        let ends = segment.address.checked_add(segment.len).is_some();
        if !ends || !memory.contains(segment.address, segment.len as usize) {
            return Err(segment.outside());
        }
        part.push(segment);
        Ok(())
    }
}
