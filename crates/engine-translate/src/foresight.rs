//! Blocks that are going to run often, told before they do: those of a loop with many trips ahead.
//!
//! What is in a loop is found by running it once: whatever was interpreted since the loop's first block, callees
//! included.

use memory::FRAME_SIZE;
use translator::trips::Bound;
use translator::{Block, Mode, Width};

use crate::fetch;
use crate::host;
use crate::system::{Core, System};

/// Blocks interpreted last, by their physical addresses.
pub(crate) struct Recent {
    starts: [u64; RECENT],
    /// Counts them.
    count: usize,
}

/// A trip through more of them is not followed back to its begin; a power of two.
const RECENT: usize = 256;

impl Recent {
    pub(crate) fn new() -> Self {
        Self { starts: [u64::MAX; RECENT], count: 0 }
    }

    #[inline(always)]
    pub(crate) fn note(&mut self, start: u64) {
        self.starts[self.count % RECENT] = start;
        self.count = self.count.wrapping_add(1);
    }

    /// From the latest back to `first`; nothing where that is not among them.
    fn back_to(&self, first: u64) -> impl Iterator<Item = u64> {
        let latest = (1..=RECENT).map(|ago| self.starts[self.count.wrapping_sub(ago) % RECENT]);
        let len = latest.clone().position(|start| start == first).map_or(0, |index| index + 1);
        latest.take(len)
    }
}

/// What tells how often the loop that `block` closes is going to run. `source` are the block's bytes.
pub(crate) fn bound(core: &mut Core, block: &Block<System>, source: &[u8]) -> Option<Box<Bound>> {
    let last = block.insns.last()?;
    let branch = &source[source.len() - last.len as usize..];
    if core.cpu.width != Width::Bits64 || !Bound::may_be_in(branch) {
        return None;
    }
    let (span, len) = (Bound::span(branch)? as usize, source.len());
    if span <= len {
        // A block that begins before the loop does is not entered again.
        return if span == len { Bound::of(source, 0).map(Box::new) } else { None };
    }
    let end = block.start + len as u64;
    let first = end.checked_sub(span as u64).filter(|first| first >> 12 == block.start >> 12)?;
    let mut bytes = [0; FRAME_SIZE];
    let bytes = &mut bytes[..span];
    fetch::read_code(core, first, bytes).ok()?;
    Bound::of(bytes, span - len).map(Box::new)
}

/// Whether `block`, to which RIP points, runs at least `times` from now on. Then so does what `recent` has of the
/// loop, and is told.
pub(crate) fn will_run(core: &Core, block: &Block<System>, times: u32, recent: &Recent) -> bool {
    let Some(bound) = &block.bound else { return false };
    let next = core.cpu.rip().wrapping_add(u64::from(block.len));
    let segment = |slot: u8| core.cpu.segs[slot as usize & 7].base;
    let load = |va, size| peek(&core.machine, va, size);
    let trips = bound.trips(&core.cpu.regs, segment, next, load).unwrap_or(0);
    if trips < u64::from(times) {
        return false;
    }
    let first = (block.start + u64::from(block.len)).wrapping_sub(u64::from(bound.span));
    if first != block.start {
        let mode = Mode { width: core.cpu.width };
        for start in recent.back_to(first) {
            if let Some(inside) = core.machine.shared.blocks.find(start, mode, || None) {
                inside.heat(u32::try_from(trips).unwrap_or(u32::MAX));
            }
        }
    }
    true
}

/// Memory where the TLB knows it already: looking must not be seen.
fn peek(machine: &System, va: u64, size: usize) -> Option<u64> {
    let at = machine.tlb.read(va, size)?;
    // SAFETY: the TLB says that all of the access lies in one page and that this vCPU may read it; the
    // translation is dropped before a revocation is acknowledged, which happens between blocks.
    Some(unsafe {
        match size {
            1 => u64::from(host::load::<u8>(at)),
            2 => u64::from(host::load::<u16>(at)),
            4 => u64::from(host::load::<u32>(at)),
            _ => host::load::<u64>(at),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trip_is_followed_back_to_its_first_block() {
        let mut recent = Recent::new();
        (0..1000).for_each(|start| recent.note(start));
        assert_eq!(recent.back_to(997).collect::<Vec<_>>(), [999, 998, 997]);
        assert_eq!(recent.back_to(744).count(), RECENT);
        assert_eq!(recent.back_to(743).count(), 0);
        recent.note(998);
        assert_eq!(recent.back_to(998).collect::<Vec<_>>(), [998]);
    }
}
