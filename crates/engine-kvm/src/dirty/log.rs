//! The dirty log: a bitmap of each slot, fetched and cleared by one call.

use engine::EngineError;
use kvm_ioctls::VmFd;
use memory::{FRAME_SIZE, Frame};

use super::frame_of;
use crate::error::refused;
use crate::vm::Slot;

/// Keeps nothing: the kernel does.
pub(crate) struct DirtyLog;

impl DirtyLog {
    /// Tells of every frame written since the last call.
    pub(crate) fn harvest(
        &self,
        vm: &VmFd,
        slots: &[Slot],
        mut tell: impl FnMut(Frame),
    ) -> Result<(), EngineError> {
        for (number, slot) in (0..).zip(slots) {
            let bytes = slot.frames.count as usize * FRAME_SIZE;
            let bitmap = vm.get_dirty_log(number, bytes).map_err(refused("read the dirty log"))?;
            for (index, word) in (0u64..).zip(bitmap) {
                let mut rest = word;
                while rest != 0 {
                    let offset = index * 64 + u64::from(rest.trailing_zeros());
                    rest &= rest - 1;
                    frame_of(slots, number, offset).into_iter().for_each(&mut tell);
                }
            }
        }
        Ok(())
    }
}
