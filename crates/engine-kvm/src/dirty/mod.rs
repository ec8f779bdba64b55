//! Which frames the guest wrote: KVM's dirty ring where present, else its dirty log.
//!
//! Either costs nothing until it is switched on for the memory slots, with the first question. A frame is
//! told once, and then write-protected again until it is written again.

mod log;
mod ring;

use memory::Frame;

pub(crate) use log::DirtyLog;
pub(crate) use ring::DirtyRing;

use crate::vm::Slot;

/// How written frames are found.
pub(crate) enum Dirty {
    /// Each vCPU lists what it writes.
    Ring(DirtyRing),
    /// KVM keeps a bitmap of each slot.
    Log(DirtyLog),
}

/// The frame at page `offset` of slot `slot`.
fn frame_of(slots: &[Slot], slot: u32, offset: u64) -> Option<Frame> {
    let slot = slots.get(slot as usize)?;
    let offset = u32::try_from(offset).ok().filter(|&offset| offset < slot.frames.count)?;
    Some(Frame(slot.frames.first.0 + offset))
}
