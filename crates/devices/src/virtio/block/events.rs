//! What a disk tells of its transfers: see [`memory::Event`]; and where frames were read from, whoever asks for that
//! later.

use memory::{DiskBlock, Event, FRAME_SIZE, Frame};

use crate::DeviceView;
use crate::virtio::queue::Segments;

const BLOCK: u64 = FRAME_SIZE as u64;

/// Which way the bytes went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    /// To the guest.
    Read,
    /// From it.
    Write,
}

/// Tells that the bytes of `disk` from `offset` on were transferred to or from `buffer`.
pub(super) fn tell_transfer(
    memory: &DeviceView,
    disk: u8,
    transfer: Transfer,
    offset: u64,
    buffer: &Segments,
) {
    let mut events = memory.memory().events().map(memory::EventStream::transfer);
    if events.is_none() && transfer == Transfer::Write {
        return;
    }
    let mut at = offset;
    for segment in buffer.iter() {
        let mut done = 0;
        while done < segment.len {
            let address = memory::Gpa(segment.address.0 + done);
            let len = (BLOCK - address.0 % BLOCK).min(segment.len - done);
            if let Some(frame) = memory.memory().frame_of(address) {
                let whole = len == BLOCK && (at + done).is_multiple_of(BLOCK);
                let block = DiskBlock { disk, block: (at + done) / BLOCK };
                if transfer == Transfer::Read {
                    memory.memory().note_origin(frame, whole.then_some(block));
                }
                let starts = || {
                    let mut bytes = [0; 4];
                    // It was there a moment ago.
                    let _ = memory.read(address, &mut bytes);
                    bytes
                };
                if let Some(events) = &mut events {
                    tell(events, transfer, frame, whole.then_some(block), starts);
                }
            }
            done += len;
        }
        at += segment.len;
    }
}

/// `block`: of which `frame` has the contents, all of it.
fn tell(
    events: &mut memory::Transfer<'_>,
    transfer: Transfer,
    frame: Frame,
    block: Option<DiskBlock>,
    starts: impl FnOnce() -> [u8; 4],
) {
    match (transfer, block) {
        (Transfer::Read, Some(from)) => {
            events.tell(Event::Read { frame, from, changed: false });
        }
        (Transfer::Read, None) => events.tell(Event::Overwritten { frame }),
        (Transfer::Write, Some(to)) => {
            events.tell(Event::Written { frame, to, starts: starts() });
        }
        // It stays what it was.
        (Transfer::Write, None) => {}
    }
}

/// Tells that the guest no longer wants `len` bytes of `disk` from `offset` on: the blocks that are all in it.
pub(super) fn tell_discard(memory: &DeviceView, disk: u8, offset: u64, len: u64) {
    let Some(events) = memory.memory().events() else { return };
    let (first, end) = (offset.div_ceil(BLOCK), (offset + len) / BLOCK);
    if first < end {
        let count = end - first;
        events.tell(Event::Discarded { first: DiskBlock { disk, block: first }, count });
    }
}
