//! One descriptor chain, whole and checked.

use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestMemory, Permissions};

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
        let (part, access) = if descriptor.is_write_only() {
            (&mut self.writable, Permissions::Write)
        } else if self.writable.is_empty() {
            (&mut self.readable, Permissions::Read)
        } else {
            return Err(QueueError::Order { head: self.head });
        };
        let segment = Segment { address: descriptor.addr(), len: u64::from(descriptor.len()) };
        let inside = segment.address.0.checked_add(segment.len).is_some()
            && memory.check_range(segment.address, segment.len as usize, access);
        if !inside {
            return Err(segment.outside());
        }
        part.push(segment);
        Ok(())
    }
}
