//! Predictions against loops that are really run, by the interpreter.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use proptest::prelude::*;

use super::*;
use crate::block::tests::Idle;
use crate::decode::{BLOCK_LIMIT, DecodedBlock, decode_block};
use crate::{Core, Cpu, Mode, Outcome, Width};

/// Trips, at most, that are really run.
const PATIENCE: u64 = 5_000;

/// Writes code; the label is of the loop's first byte.
type Write = fn(&mut CodeAssembler, CodeLabel) -> Result<(), IcedError>;

/// Code at 0, in which the loop's last block begins at the second place given, and the loop at the first.
struct Loop {
    code: Vec<u8>,
    first: usize,
    last: usize,
}

impl Loop {
    /// `body` is the loop; what it gets the label of is its first byte.
    fn of(
        body: impl FnOnce(&mut CodeAssembler, CodeLabel) -> Result<(), IcedError>,
    ) -> Result<Self, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let mut first = a.create_label();
        a.set_label(&mut first)?;
        body(&mut a, first)?;
        Ok(Self { code: a.assemble(0)?, first: 0, last: 0 })
    }

    fn bound(&self) -> Option<Bound> {
        Bound::of(&self.code[self.first..], self.last - self.first)
    }

    fn predicted(&self, regs: &[u64; 32]) -> Option<u64> {
        let bound = self.bound()?;
        bound.trips(regs, |_| 0, self.code.len() as u64, |_, _| None)
    }

    /// By running it, with no memory.
    fn counted(&self, regs: [u64; 32]) -> Option<u64> {
        let mut core = Core { cpu: Cpu::new(), machine: Idle };
        core.cpu.regs = regs;
        core.cpu.set_rip(self.last as u64);
        let (mut trips, mut blocks) = (0, 0);
        loop {
            let from = core.cpu.rip() as usize;
            if from == self.code.len() {
                return Some(trips);
            }
            trips += u64::from(from == self.last);
            if trips > PATIENCE {
                return None;
            }
            let decoded: DecodedBlock<Idle> =
                decode_block(&self.code[from..], Mode { width: Width::Bits64 }, BLOCK_LIMIT);
            assert_eq!(core.run_block(&decoded.insns, false), Outcome::Done);
            blocks += 1;
            assert!(blocks < 4 * PATIENCE, "the last block is passed by");
        }
    }

    /// The prediction is what happens, or more than anybody waits for.
    fn check(&self, regs: [u64; 32]) -> Result<(), TestCaseError> {
        let predicted = self.predicted(&regs).expect("a bound that is known");
        match self.counted(regs) {
            Some(counted) => prop_assert_eq!(predicted, counted),
            None => prop_assert!(predicted > PATIENCE, "{} trips", predicted),
        }
        Ok(())
    }
}

/// Registers with RAX and RCX as given.
fn with(first: u64, second: u64) -> [u64; 32] {
    let mut regs = [0; 32];
    (regs[0], regs[1]) = (first, second);
    regs
}

/// Jumps back to `first` on condition number `condition`, of the twelve that are understood.
fn jump(a: &mut CodeAssembler, condition: usize, first: CodeLabel) -> Result<(), IcedError> {
    let jumps: [Write; 12] = [
        |a, to| a.je(to),
        |a, to| a.jne(to),
        |a, to| a.jl(to),
        |a, to| a.jle(to),
        |a, to| a.jg(to),
        |a, to| a.jge(to),
        |a, to| a.js(to),
        |a, to| a.jns(to),
        |a, to| a.jb(to),
        |a, to| a.jbe(to),
        |a, to| a.ja(to),
        |a, to| a.jae(to),
    ];
    jumps[condition](a, first)
}

/// Numbers near to each other, to zero and to the ends of what has a sign, so that loops come to an end.
fn number() -> impl Strategy<Value = u64> {
    let near = -300_i64..300;
    (near, prop::sample::select(vec![0, 1 << 7, 1 << 8, 1 << 31, 1 << 32, 1 << 63_u64]))
        .prop_map(|(offset, base): (i64, u64)| base.wrapping_add_signed(offset))
}

fn step() -> impl Strategy<Value = i32> {
    (-40..40_i32).prop_filter("a loop that goes on", |&step| step != 0)
}

proptest! {
    #[test]
    fn compared_after_the_step(
        rax_is in number(), rcx_is in number(), by in step(), condition in 0..12_usize,
        size in 0..4_usize, turned: bool,
    ) {
        let body = Loop::of(|a, first| {
            a.add(rax, by)?;
            a.nop()?;
            match (size, turned) {
                (0, false) => a.cmp(rax, rcx)?,
                (0, true) => a.cmp(rcx, rax)?,
                (1, false) => a.cmp(eax, ecx)?,
                (1, true) => a.cmp(ecx, eax)?,
                (2, _) => a.cmp(ax, cx)?,
                _ => a.cmp(al, cl)?,
            }
            jump(a, condition, first)
        }).unwrap();
        let signs = (6..8).contains(&condition);
        if turned && size < 2 && signs {
            prop_assert_eq!(body.bound(), None);
        } else {
            body.check(with(rax_is, rcx_is))?;
        }
    }

    #[test]
    fn compared_before_the_step(
        rax_is in number(), limit in -200..200_i32, by in step(), condition in 0..12_usize,
    ) {
        let body = Loop::of(|a, first| {
            a.cmp(rax, limit)?;
            a.lea(rax, ptr(rax + by))?;
            jump(a, condition, first)
        }).unwrap();
        body.check(with(rax_is, 0))?;
    }

    #[test]
    fn decided_by_the_step(
        rax_is in number(), by in 1..100_i32, condition in 0..12_usize, kind in 0..6_usize,
    ) {
        let body = Loop::of(|a, first| {
            match kind {
                0 => a.sub(rax, by)?,
                1 => a.sub(eax, by)?,
                2 => a.add(rax, by)?,
                3 => a.add(al, by)?,
                4 => a.dec(rax)?,
                _ => a.inc(eax)?,
            }
            jump(a, condition, first)
        }).unwrap();
        if kind >= 4 && condition >= 8 {
            prop_assert_eq!(body.bound(), None, "the carry is of another instruction");
        } else {
            body.check(with(rax_is, 0))?;
        }
    }

    /// The last block has part of the steps and the comparison.
    #[test]
    fn of_several_blocks(
        rax_is in number(), rcx_is in number(), by in step(), condition in 0..12_usize,
        other in 0..2_u64,
    ) {
        let body = |a: &mut CodeAssembler, first| {
            let mut over = a.create_label();
            a.dec(rax)?;
            a.test(rdx, rdx)?;
            a.je(over)?;
            a.inc(r8)?;
            a.set_label(&mut over)?;
            a.add(rax, by)?;
            a.cmp(rax, rcx)?;
            jump(a, condition, first)
        };
        let mut body = Loop::of(body).unwrap();
        // Behind DEC, TEST and a short JE; INC is in the last block if it is not jumped over.
        body.last = 3 + 3 + 2 + if other == 0 { 3 } else { 0 };
        let mut regs = with(rax_is, rcx_is);
        regs[2] = other;
        if by == 1 {
            prop_assert_eq!(body.bound(), None, "what stays where it is");
        } else {
            body.check(regs)?;
        }
    }

    #[test]
    fn counted_in_rcx(count in number()) {
        let body = Loop::of(|a, first| {
            a.inc(rax)?;
            a.loop_(first)
        }).unwrap();
        body.check(with(0, count))?;
    }

    #[test]
    fn tested_for_zero(rax_is in number(), by in step(), condition in 0..8_usize) {
        let body = Loop::of(|a, first| {
            a.add(rax, by)?;
            a.test(eax, eax)?;
            jump(a, condition, first)
        }).unwrap();
        body.check(with(rax_is, 0))?;
    }
}

#[test]
fn a_limit_in_memory_is_asked_for_where_it_is() {
    let body = Loop::of(|a, first| {
        a.add(eax, 2)?;
        a.cmp(eax, dword_ptr(rbx + rcx * 4 + 16).gs())?;
        a.jb(first)
    });
    let body = body.unwrap();
    let bound = body.bound().expect("a bound");
    let mut regs = with(0, 3);
    regs[3] = 0x1000;
    let segment = |slot| if slot == 5 { 0x10_0000 } else { 0 };
    let load = |va, size| ((va, size) == (0x10_1000 + 12 + 16, 4)).then_some(10);
    assert_eq!(bound.trips(&regs, segment, 0, load), Some(5));
    assert_eq!(bound.trips(&regs, segment, 0, |_, _| None), None);
}

#[test]
fn a_limit_beside_the_code_is_found_from_the_branch() {
    // cmp rax, [rip + 0x100]; lea rax, [rax + 1]; jne
    let code = [0x48, 0x3b, 0x05, 0, 1, 0, 0, 0x48, 0x8d, 0x40, 1, 0x75, 0xf3];
    let bound = Bound::of(&code, 0).expect("a bound");
    let load = |va, size| ((va, size) == (0x4007 + 0x100, 8)).then_some(7);
    assert_eq!(bound.trips(&with(0, 0), |_| 0, 0x4000 + 13, load), Some(8));
}

#[test]
fn what_changes_otherwise_is_no_counter() {
    let loops: [Write; 6] = [
        |a, first| {
            a.mov(rax, ptr(rax))?;
            a.test(rax, rax)?;
            a.jne(first)
        },
        |a, first| {
            a.inc(rax)?;
            a.shl(rax, 1)?;
            a.cmp(rax, rcx)?;
            a.jb(first)
        },
        |a, first| {
            a.inc(rax)?;
            a.mov(rcx, ptr(rdx))?;
            a.cmp(rax, rcx)?;
            a.jb(first)
        },
        |a, first| {
            a.inc(rax)?;
            a.cmp(byte_ptr(rdx), 3)?;
            a.jb(first)
        },
        |a, first| {
            a.inc(rax)?;
            a.call(rdx)?;
            a.cmp(rax, 9)?;
            a.jb(first)
        },
        |a, first| {
            a.inc(rax)?;
            a.cmp(rax, 9)?;
            a.jp(first)
        },
    ];
    for (number, body) in loops.into_iter().enumerate() {
        assert_eq!(Loop::of(body).unwrap().bound(), None, "loop {number}");
    }
    let kept = Loop::of(|a, first| {
        a.inc(rbx)?;
        a.call(rdx)?;
        a.cmp(rbx, 9)?;
        a.jb(first)
    });
    assert!(kept.unwrap().bound().is_some());
}

#[test]
fn only_branches_that_lead_back_are_looked_at() {
    for last in
        [&[0x75, 0xf3][..], &[0xe2, 0x80], &[0x0f, 0x85, 0, 0xff, 0xff, 0xff], &[0x2e, 0x75, 0xf3]]
    {
        assert!(Bound::may_be_in(last) && Bound::span(last).is_some(), "{last:x?}");
    }
    for last in [&[0x75, 0x13][..], &[0xeb, 0xf3], &[0x0f, 0x85, 0, 0, 0, 0], &[0xc3], &[]] {
        assert!(!Bound::may_be_in(last), "{last:x?}");
    }
    assert_eq!(Bound::span(&[0x0f, 0x85, 0, 0, 0xff, 0xff]), None, "too long");
}
