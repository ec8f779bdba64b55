//! Which frames a guest would miss least, for a host that takes them.

use memory::{Epoch, Frame, FrameState, GuestMemory};

use crate::classes::FrameClass;

/// A frame that may be taken, and when it was last accessed: if that has changed since, it is another question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColdFrame {
    /// Which.
    pub frame: Frame,
    /// As the table had it.
    pub accessed: Epoch,
}

/// At most `most` of the resident frames that no device holds, those first that have been idle longest; among the
/// equally idle those first that a disk was the last to fill, since it may have them still, then by number. What was accessed
/// in the running epoch or the one before comes last of all.
///
/// Left out are frames with rings, and what all else needs, as long as it is in use: page tables and the kernel's code,
/// and other code that vCPUs hold.
#[must_use]
pub fn coldest(
    memory: &GuestMemory,
    most: usize,
    class: &dyn Fn(Frame) -> FrameClass,
) -> Vec<ColdFrame> {
    let hot = Epoch(memory.epoch().0.saturating_sub(1));
    let mut found = Vec::new();
    for frame in (0..memory.layout().frames()).map(Frame) {
        let Some(facts) = memory.facts(frame) else { break };
        if facts.state != FrameState::Resident || facts.pins != 0 {
            continue;
        }
        let is_hot = facts.accessed >= hot;
        let is_needed = match class(frame) {
            FrameClass::DmaRing => true,
            FrameClass::PageTable | FrameClass::KernelText => is_hot,
            _ => is_hot && facts.code,
        };
        if !is_needed {
            let key = (is_hot, facts.accessed, memory.origin(frame).is_none(), frame);
            found.push((key, ColdFrame { frame, accessed: facts.accessed }));
        }
    }
    if found.len() > most {
        found.select_nth_unstable_by_key(most, |(key, _)| *key);
        found.truncate(most);
    }
    found.sort_unstable_by_key(|(key, _)| *key);
    found.into_iter().map(|(_, cold)| cold).collect()
}

#[cfg(test)]
mod tests {
    use memory::{Access, DiskBlock, FRAME_SIZE};

    use super::*;

    fn numbers(found: &[ColdFrame]) -> Vec<u32> {
        found.iter().map(|cold| cold.frame.0).collect()
    }

    #[test]
    fn the_longest_idle_go_first_and_what_is_needed_stays() {
        let memory = GuestMemory::with_bytes(16 * FRAME_SIZE as u64).expect("memory");
        let touch = |frames: &[u32]| {
            for frame in frames {
                memory.resolve(Frame(*frame), Access::Read).expect("resident");
            }
        };
        touch(&[3, 4, 5, 6, 7, 8, 9]);
        memory.note_origin(Frame(8), Some(DiskBlock { disk: 0, block: 1 }));
        memory.advance_epoch();
        touch(&[5, 6, 9]);
        memory.advance_epoch();
        memory.advance_epoch();
        touch(&[3, 9, 10, 11]);
        memory.mark_code(Frame(11));
        let class = |frame: Frame| match frame.0 {
            7 => FrameClass::DmaRing,
            9 => FrameClass::PageTable,
            4 => FrameClass::KernelText,
            _ => FrameClass::Unknown,
        };
        assert_eq!(numbers(&coldest(&memory, 16, &class)), [8, 4, 5, 6, 3, 10]);
        assert_eq!(numbers(&coldest(&memory, 2, &class)), [8, 4]);
        for _ in 0..3 {
            memory.advance_epoch();
        }
        let idle = numbers(&coldest(&memory, 16, &class));
        assert_eq!(idle, [8, 4, 5, 6, 3, 9, 10, 11], "nobody needs it any more");
    }
}
