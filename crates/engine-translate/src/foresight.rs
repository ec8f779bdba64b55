//! Blocks that are going to run often, told before they do: those of a loop with many trips ahead.
//!
//! What is in a loop is found by running it once: whatever was interpreted since the loop's first block, callees
//! included.

use std::collections::HashSet;

use memory::FRAME_SIZE;
use translator::decode::MAX_LEN;
use translator::trips::Bound;
use translator::{Block, Insn, Width};

use crate::profile::{self, Profile};
use crate::system::{Core, System};
use crate::{fetch, host};

/// Blocks interpreted last, by their physical addresses.
pub(crate) struct Recent {
    starts: [u64; RECENT],
    /// Counts them.
    count: usize,
    /// Those that are going to run often.
    expected: HashSet<u64>,
}

/// Bytes that a block which runs into a loop begins before it, at most: the first trip has no block of its own at the
/// loop's first byte.
const NEAR: u64 = 128;

/// Of more, all are forgotten: they are not met again.
const EXPECTED: usize = 1 << 12;

/// A trip through more of them is not followed back to its begin; a power of two.
const RECENT: usize = 256;

impl Recent {
    pub(crate) fn new() -> Self {
        Self { starts: [u64::MAX; RECENT], count: 0, expected: HashSet::new() }
    }

    #[inline(always)]
    pub(crate) fn note(&mut self, start: u64) {
        self.starts[self.count % RECENT] = start;
        self.count = self.count.wrapping_add(1);
    }

    /// From the latest back to `first`, or to what ran into it; nothing where neither is among them.
    fn back_to(&self, first: u64) -> impl Iterator<Item = u64> {
        let latest = (1..=RECENT).map(|ago| self.starts[self.count.wrapping_sub(ago) % RECENT]);
        let len = latest.clone().position(|start| first.wrapping_sub(start) < NEAR);
        let len = len.map_or(0, |index| index + 1);
        latest.take(len)
    }

    fn expect_back_to(&mut self, first: u64) {
        if self.expected.len() > EXPECTED {
            self.expected.clear();
        }
        let mut expected = std::mem::take(&mut self.expected);
        expected.extend(self.back_to(first));
        expected.insert(first);
        self.expected = expected;
    }

    /// The same, which may be asked again.
    pub(crate) fn knows(&self, start: u64) -> bool {
        !self.expected.is_empty() && self.expected.contains(&start)
    }

    /// Whether the block at `start` is part of a loop with many trips ahead; not asked again.
    fn expects(&mut self, start: u64) -> bool {
        !self.expected.is_empty() && self.expected.remove(&start)
    }
}

/// What is known of code that was decoded just now.
#[derive(Debug, Default)]
pub(crate) struct Known {
    bound: Option<Box<Bound>>,
    /// Entries that it counts as having.
    heat: u32,
}

impl Known {
    /// Whether the code is worth keeping when it is met for the first time.
    pub(crate) fn tells(&self) -> bool {
        self.bound.is_some() || self.heat > 0
    }

    /// The block, with it.
    pub(crate) fn with(self, mut block: Block<System>) -> Block<System> {
        block.heat(self.heat);
        block.bound = self.bound;
        block
    }
}

/// What `profile` says of the code at `start`.
pub(crate) fn from(
    profile: &Profile,
    core: &mut Core,
    start: u64,
    insns: &[Insn<System>],
    hot: u32,
) -> Known {
    let mut bytes = [0; FRAME_SIZE];
    let bytes = &mut bytes[..length(insns)];
    let read = fetch::read_code(core, start, bytes);
    let known = read.is_ok() && profile.has(profile::key(start, bytes));
    Known { heat: if known { hot } else { 0 }, ..Known::default() }
}

/// What tells how often the loop that the code at `start` closes is going to run.
pub(crate) fn bound(core: &mut Core, start: u64, insns: &[Insn<System>]) -> Known {
    Known { bound: find_bound(core, start, insns).map(Box::new), ..Known::default() }
}

fn find_bound(core: &mut Core, start: u64, insns: &[Insn<System>]) -> Option<Bound> {
    if core.cpu.width != Width::Bits64 {
        return None;
    }
    let (len, last_len) = (length(insns), insns.last()?.len as usize);
    let mut last = [0; MAX_LEN];
    let last = &mut last[..last_len];
    fetch::read_code(core, start + (len - last_len) as u64, last).ok()?;
    let span = Bound::may_be_in(last).then(|| Bound::span(last))?? as usize;
    let first = (start + len as u64).checked_sub(span as u64)?;
    // What begins before its loop does is not entered again; a loop through several pages is not looked at.
    if span < len || first >> 12 != start >> 12 {
        return None;
    }
    let mut bytes = [0; FRAME_SIZE];
    let bytes = &mut bytes[..span];
    fetch::read_code(core, first, bytes).ok()?;
    Bound::of(bytes, span - len)
}

fn length(insns: &[Insn<System>]) -> usize {
    insns.iter().map(|insn| insn.len as usize).sum()
}

/// Whether `block`, to which RIP points, runs at least `times` from now on, alone or as part of a loop that does. If
/// it closes that loop, what `recent` has of it is told.
pub(crate) fn will_run(
    core: &Core,
    block: &Block<System>,
    times: u32,
    recent: &mut Recent,
) -> bool {
    if recent.expects(block.start) {
        return true;
    }
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
        recent.expect_back_to(first);
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
        recent.expect_back_to(998);
        assert!([998, 999].iter().all(|&start| recent.expects(start)));
        assert!(![997, 998].iter().any(|&start| recent.expects(start)), "told once");
        recent.note(998);
        assert_eq!(recent.back_to(998).collect::<Vec<_>>(), [998]);
    }
}
