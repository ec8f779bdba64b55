//! Returns paired with their calls, on the host's stack.
//!
//! A call pushes its return address and executes the host's CALL, behind which stands its *landing*: where the guest's
//! return goes on. A return that finds its target on top executes the host's RET, which the processor predicts by what
//! it remembers of calls; one that does not looks its target up as any indirect branch does, and the pairs go.
//!
//! ```text
//!   stack: ->  0, the thunk `miss`        what no return finds, or finds where that is right too
//!              return address, landing    of the first call since
//!              ...
//!     RSP ->   return address, landing    of the last
//! ```
//!
//! A landing leads to the path at the return address by a link, as a branch there would: to the same frame, without a
//! guard. So all pairs go whenever the address could lead elsewhere, or the code is: where generated code is entered,
//! where it changes sides ([`super::calls`]), and behind each instruction executed outside that is no mere access
//! ([`drop_all`]). What was written over is closed where the link leads to.
//!
//! The flags are aside where a return lands, and stay so if nobody behind the call looks at them. That is known of the
//! bytes that stand there: with them the landing is closed, too.

use super::asm::{Address, Asm, Condition, Label};
use super::fields::{Fields, T0, T1, field};
use super::flags::{ALL, Flags};
use super::stub::{Stub, Work};
use super::translate::{Step, Translator};

const RSP: u8 = 4;

/// Bytes of a pair: the stack stays aligned as calls of Rust need it.
const PAIR: i32 = 16;

/// Pairs that are kept; with one more they go.
const MOST: i32 = 1024;

/// The thunk for returns that are not paired: T0 is the target, and the flags are aside. As an indirect branch, whose
/// [`Fields::from`] is set.
pub(super) fn emit_miss(asm: &mut Asm) -> u32 {
    let miss = asm.here();
    asm.load_field(RSP, field!(stack));
    asm.jump_by_table();
    miss
}

/// Begins the stack of pairs. Destroys T1.
pub(super) fn begin(asm: &mut Asm, miss: u32) {
    asm.push_constant(0);
    asm.place(T1, miss);
    asm.push(T1);
    asm.store_field(field!(stack), RSP);
    asm.lea(T1, Address::at(RSP, -MOST * PAIR));
    asm.store_field(field!(limit), T1);
}

/// Undoes [`begin`], from wherever the stack is.
pub(super) fn end(asm: &mut Asm) {
    asm.load_field(RSP, field!(stack));
    asm.lea(RSP, Address::at(RSP, PAIR));
}

/// What an instruction was executed outside for may have changed where addresses lead.
#[inline(always)]
pub(super) fn drop_all(fields: &mut Fields) {
    fields.top = fields.stack;
}

impl Translator<'_> {
    /// Whether the call at `step` is paired. Behind the end of the page is no page, perhaps.
    pub(super) fn is_paired(&self, step: &Step) -> bool {
        self.pairs && step.next < 4096
    }

    /// Pushes the return address, which is in T1. Flags are aside or of no interest.
    pub(super) fn push_pair(&mut self) {
        let [full, go] = [(); 2].map(|()| self.asm.label());
        self.asm.compare_with_field(RSP, field!(limit));
        self.asm.jump_if(Condition::BE, full);
        self.asm.bind(go);
        self.asm.push(T1);
        self.stubs.push(Stub { label: full, work: Work::Full { go } });
    }

    /// Somebody looks at these flags behind the call, as far as is known.
    pub(super) fn needed_behind(&self, step: &Step) -> Flags {
        let behind = |&&(offset, _): &&(u32, Flags)| offset == step.next;
        self.live.iter().find(behind).map_or(ALL, |&(_, flags)| flags)
    }

    /// Before a CALL of `length` bytes, and a landing where nobody looks at flags: it is closed by five bytes.
    pub(super) fn prepare_landing(&mut self, length: u32, needed: Flags) {
        if needed == 0 {
            let fits = |nops: &u32| {
                let call = self.asm.here() + nops;
                (call + length) % 8 <= 3 && call % 64 + length <= 64
            };
            let nops = (0..64).find(fits).expect("a place in a line");
            self.asm.nops(nops);
        }
    }

    /// What stands behind the host's CALL. T0 is the return address, and the flags are aside.
    pub(super) fn land(&mut self, step: &Step, needed: Flags) {
        if needed == 0 {
            self.landing = self.asm.here();
            debug_assert!(self.landing % 8 <= 3, "it is closed while others run");
        } else {
            self.flags_from_field();
        }
        self.asm.lea_wide(T0, T0, -(step.next as i32));
        self.asm.pop(T1);
        self.asm.store_field(field!(page), T0);
        let target = i64::from(step.next);
        let site = self.jump_to_link(|site| Work::Near { site, target });
        self.exits.push((site, step.next as u16));
    }

    /// The path goes on where the call leads. T1 is the return address.
    pub(super) fn pair_on_path(&mut self, step: &Step) {
        self.push_pair();
        let over = self.asm.label();
        self.asm.call(over);
        self.land(step, ALL);
        self.asm.bind(over);
    }

    /// To T0, which was popped with `moved` bytes.
    pub(super) fn go_back(&mut self, step: &Step, moved: u16) {
        let miss = self.asm.label();
        debug_assert!(self.aside, "whoever comes next may look at the flags");
        self.aside = false;
        self.asm.compare_with(T0, Address::at(RSP, 8));
        self.asm.jump_if(Condition::NE, miss);
        let offset = step.offset;
        self.stubs.push(Stub { label: miss, work: Work::Unpaired { offset, moved } });
        self.asm.ret();
    }

    /// [`Work::Full`].
    pub(super) fn full_stub(&mut self, go: Label) {
        self.asm.load_field(RSP, field!(stack));
        self.asm.jump(go);
    }

    /// [`Work::Unpaired`].
    pub(super) fn unpaired_stub(&mut self, offset: u32, moved: u16) {
        self.note_branch(offset, moved);
        self.asm.jump_to(self.thunks.miss);
    }

    /// Where a landing leads when it is closed.
    pub(super) fn dead_landing(&mut self) {
        self.flags_from_field();
        self.asm.jump_to(self.thunks.leave);
    }
}

#[cfg(test)]
mod tests {
    use super::super::stub::LEAVE;
    use super::super::{CodeCache, Made, Options};
    use crate::block::tests::Idle;
    use crate::paths::{Path, Policy, Source};

    /// Where a call lands that `behind` follows, and the code there before and after its path is closed.
    fn closed(behind: &[u8]) -> Option<[Vec<u8>; 2]> {
        let bytes = [&[0xe8, 0, 1, 0, 0], behind].concat();
        let source = Source { bytes: &bytes, first: 0x10 };
        let cache = CodeCache::new(1 << 20, Options::default(), Policy::FATHOM).expect("memory");
        let made = cache.translate::<Idle>(&Path::run(0x10, 5), source, 5, 7);
        let Made { block, emitted } = made.expect("code");
        let native = block.native().expect("code");
        let landing = Some(native.landing).filter(|&landing| landing != 0)?;
        let code = || emitted.memory.read(landing..landing + 5);
        let before = code();
        block.invalidate();
        let after = code();
        let jump = u32::from_le_bytes(after[1..].try_into().expect("four bytes"));
        assert_eq!(landing + 5 + jump, native.dead + LEAVE);
        Some([before, after])
    }

    /// Else flags that were of no interest would be missed by what is written there.
    #[test]
    fn where_flags_stay_aside_is_closed_with_the_path() {
        // xor eax, eax
        let [before, after] = closed(&[0x31, 0xc0]).expect("a landing without flags");
        assert_ne!(before[0], 0xe9);
        assert_eq!(after[0], 0xe9);
        // adc eax, eax
        assert_eq!(closed(&[0x11, 0xc0]), None);
    }
}
