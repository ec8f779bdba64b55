//! How often a loop is going to run, told before it does (Namjoshi and Kulkarni, "Novel online profiling for
//! virtual machines", 2010): its bound is mostly in a register already.
//!
//! ```text
//!   bytes from the loop's head to its backward branch --Bound::of--> Bound { counter, step, limit, condition }
//!                                                                       |  registers, memory
//!                                                                    Bound::trips --> how often
//! ```
//!
//! A prediction is a guess about time and nothing else: where it is wrong a block is translated too early or too
//! late. So whatever a callee, an alias or another way out of the loop may do is left out of account.

mod arc;
mod find;

use crate::cpu::{REG_NONE, REG_RIP};
use arc::Arc;

/// What a backward branch is decided by, and how that changes from trip to trip.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bound {
    /// Bytes from the loop's first byte to the end of its branch.
    pub span: u32,
    /// Register slot of what changes by `step`.
    counter: u8,
    /// Bits compared: 8, 16, 32 or 64.
    bits: u32,
    /// Added with every trip.
    step: u64,
    /// Of that, what is added between the start of the branch's block and the comparison.
    before: u64,
    limit: Limit,
    again: Again,
}

/// What the counter is compared with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Limit {
    Constant(u64),
    Register(u8),
    Memory(Place),
}

/// An address that no trip changes: base, index and displacement, and a segment's slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    base: u8,
    index: u8,
    scale: u8,
    seg: u8,
    disp: u64,
}

/// For which values of the counter there is another trip, beside the limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Again {
    Equal,
    NotEqual,
    Below,
    BelowOrEqual,
    Above,
    AboveOrEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// Of the difference.
    Negative,
    NotNegative,
}

impl Bound {
    /// How often the loop's last block runs, if it is entered with these registers; at least 1. `None`: the limit
    /// is in memory and `load`, which is given a linear address and a size, does not know it.
    ///
    /// `segments` are the bases of ES, CS, SS, DS, FS, GS and of no segment; `next` is the address behind the
    /// branch.
    pub fn trips(
        &self,
        regs: &[u64; 32],
        segments: impl Fn(u8) -> u64,
        next: u64,
        load: impl FnOnce(u64, usize) -> Option<u64>,
    ) -> Option<u64> {
        let limit = match self.limit {
            Limit::Constant(value) => value,
            Limit::Register(slot) => regs[slot as usize & 31],
            Limit::Memory(place) => {
                load(place.address(regs, segments(place.seg), next), self.bits as usize / 8)?
            }
        };
        let seen = regs[self.counter as usize & 31].wrapping_add(self.before);
        Some(self.again.arc(limit, self.bits).steps(seen, self.step).saturating_add(1))
    }

    /// Whether the loop has its first byte at `start` if its branch ends at `end`.
    #[must_use]
    pub const fn begins_at(&self, start: u64, end: u64) -> bool {
        start.wrapping_add(self.span as u64) == end
    }
}

impl Place {
    fn address(&self, regs: &[u64; 32], segment: u64, next: u64) -> u64 {
        let base = if self.base == REG_RIP { next } else { regs[self.base as usize & 31] };
        let index = regs[self.index as usize & 31] << (self.scale & 3);
        base.wrapping_add(index).wrapping_add(self.disp).wrapping_add(segment)
    }

    /// Whether no register that it is made of is among `written`, a bit a slot.
    fn stays(&self, written: u32) -> bool {
        let moves = |slot: u8| slot < REG_NONE && written & 1 << slot != 0;
        !moves(self.base) && !moves(self.index)
    }
}

impl Again {
    /// The counters, `bits` wide, with which there is another trip.
    const fn arc(self, limit: u64, bits: u32) -> Arc {
        let half = 1_u64 << (bits - 1);
        let next = limit.wrapping_add(1);
        let (from, to) = match self {
            Self::Equal => (limit, next),
            Self::NotEqual => (next, limit),
            Self::Below => return Arc::between(bits, 0, limit, false),
            Self::BelowOrEqual => return Arc::between(bits, 0, next, true),
            Self::Above => return Arc::between(bits, next, 0, false),
            Self::AboveOrEqual => return Arc::between(bits, limit, 0, true),
            Self::Less => return Arc::between(bits, half, limit, false),
            Self::LessOrEqual => return Arc::between(bits, half, next, true),
            Self::Greater => return Arc::between(bits, next, half, false),
            Self::GreaterOrEqual => return Arc::between(bits, limit, half, true),
            Self::Negative => (limit.wrapping_add(half), limit),
            Self::NotNegative => (limit, limit.wrapping_add(half)),
        };
        Arc::between(bits, from, to, false)
    }
}

#[cfg(test)]
mod tests;
