//! Generated code beside the interpreter: every block that has code is executed by both, and what they leave
//! must be the same.
//!
//! ```text
//!   registers kept -> the interpreter runs the block; its stores go into the journal, memory stays as it is
//!                  -> registers put back -> the code runs, and writes memory
//!                  -> registers, flags, vector state, fault: equal?  memory: as the journal says?
//! ```
//!
//! What must not happen twice (devices, ports, clocks, privileged state, stores to pages with code) stops either
//! before it happens; the interpreter then executes that instruction alone. Memory is not put back, so that
//! devices, which look at the guest's queues at any time, never see it go back, but where there was a difference:
//! a device may have written what both have read, and the piece may have written page tables that it used, which
//! a walk does not look for in the journal. Then both run again a few times, the last times with the
//! interpreter's stores made and taken back.
//!
//! Not compared: accessed and dirty bits (the first of the two sets them, before the other looks), what is in the
//! TLB, flags that nobody looks at (where the code does not keep them), and bytes farther than a line from those
//! that the interpreter has written.

mod access;
mod difference;
mod journal;

use std::sync::Arc;
use std::time::Duration;

use engine::EngineError;
use translator::native::{Lane, Left, flags_needed};
use translator::{Block, Cpu, Outcome};
use x86::{Exception, rflags};

use crate::fetch;
use crate::system::{Core, System};
use crate::vcpu::uses_stack;
use difference::Difference;
pub(crate) use journal::Journal;

/// How often a piece is executed by both before it counts as a difference.
const ATTEMPTS: u32 = 8;
/// From this attempt on the interpreter's stores are made.
const THROUGH: u32 = 4;

/// What was done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Verified {
    /// Pieces that were executed by both.
    pub(crate) blocks: u64,
    /// Instructions in them.
    pub(crate) instructions: u64,
    /// Instructions that were executed once because they must not be executed twice.
    pub(crate) alone: u64,
    /// Pieces that were executed by both once more.
    pub(crate) again: u64,
}

impl Verified {
    /// By their names in a report.
    pub(crate) fn named(self) -> [(&'static str, u64); 4] {
        [
            ("blocks_verified", self.blocks),
            ("blocks_verified_again", self.again),
            ("instructions_verified", self.instructions),
            ("instructions_not_verified", self.alone),
        ]
    }
}

/// Compares what one vCPU executes.
pub(crate) struct Lockstep {
    pub(crate) verified: Verified,
    /// All flags must be right.
    exact_flags: bool,
}

/// How one of the two came to its end.
#[derive(Clone)]
struct End {
    cpu: Cpu,
    outcome: Outcome,
    /// What it raised, if it did, and whether that is #SS if it is for an address that is none.
    fault: Option<(Exception, bool, bool)>,
    /// It stopped before what must not be executed twice.
    refused: bool,
    /// The next instruction is the interpreter's.
    interpret: bool,
}

/// One attempt.
enum Found {
    Same,
    /// The code went no further than so many instructions.
    Shorter(usize),
    Different(Difference),
}

impl Lockstep {
    pub(crate) fn new(exact_flags: bool) -> Self {
        Self { verified: Verified::default(), exact_flags }
    }

    /// Runs `block`, to which RIP points and which has code, as `lane` would.
    pub(crate) fn run(
        &mut self,
        core: &mut Core,
        lane: &mut Lane,
        block: &Arc<Block<System>>,
    ) -> Option<Left> {
        let before = core.cpu.clone();
        let mut limit = block.insns.len();
        let mut last = None;
        for attempt in 0..ATTEMPTS {
            let through = attempt >= THROUGH;
            let expected = record(core, block, limit, through);
            let done = expected.cpu.retired - before.retired;
            if expected.refused && done == 0 {
                self.verified.alone += 1;
                restore(core, &before);
                return Some(left(Outcome::Retry, true));
            }
            restore(core, &before);
            if through {
                take_back(core);
            }
            let (mut found, left) = repeat(core, lane, block)?;
            found.cpu.retired = expected.cpu.retired;
            match self.compare(core, block, &before, &expected, &found) {
                Found::Same => {
                    self.verified.blocks += 1;
                    self.verified.instructions += done;
                    let interpret = left.interpret || found.refused;
                    return Some(Left { interpret, ..left });
                }
                Found::Shorter(reached) if reached < limit => limit = reached,
                Found::Shorter(_) => {}
                Found::Different(difference) => last = Some(difference),
            }
            take_back(core);
            restore(core, &before);
            if !block.is_valid() {
                // A device has written it: there is another block now.
                return Some(left_again());
            }
            self.verified.again += 1;
            // Whoever writes what is read here may come to an end.
            std::thread::sleep(Duration::from_micros(50 << attempt));
        }
        let difference = last.map(|difference| difference.tell(core, block));
        let place = difference.unwrap_or_else(|| "translated code stops early".into());
        core.machine.broken = Some(EngineError::Bug(place));
        Some(left(Outcome::Fault, false))
    }

    fn compare(
        &self,
        core: &mut Core,
        block: &Block<System>,
        before: &Cpu,
        expected: &End,
        found: &End,
    ) -> Found {
        let start = before.rip();
        let reached = found.cpu.rip();
        let faults = expected.outcome == Outcome::Fault && found.interpret;
        if found.interpret && reached != expected.cpu.rip() {
            // It has left an instruction to the interpreter, which may do it without a fault.
            if let Some(count) = instructions(block, reached.wrapping_sub(start)) {
                return Found::Shorter(count);
            }
        }
        let flags = self.flags(core, block, start, expected, found);
        let same_end = faults
            || found.interpret && expected.outcome == Outcome::Done
            || expected.outcome == found.outcome
                && expected.fault == found.fault
                && expected.refused == found.refused;
        // SAFETY: the pages were translated for this block, and no translation is taken back inside.
        let memory = !unsafe { core.machine.journal.differing() }.is_empty();
        if same_end && !memory && same_state(&expected.cpu, &found.cpu, flags) {
            return Found::Same;
        }
        Found::Different(Difference::new(core, before, expected, found, flags))
    }

    /// The bits of RFLAGS that must be the same.
    fn flags(
        &self,
        core: &mut Core,
        block: &Block<System>,
        start: u64,
        expected: &End,
        found: &End,
    ) -> u64 {
        let offset = found.cpu.rip().wrapping_sub(start);
        if self.exact_flags
            || expected.cpu.rflags == found.cpu.rflags
            || offset >= block.len.into()
        {
            return u64::MAX;
        }
        let mut bytes = vec![0; block.len as usize];
        match fetch::read_code(core, block.start, &mut bytes) {
            Ok(()) => !rflags::STATUS | flags_needed(&bytes, block.start, offset),
            Err(_) => u64::MAX,
        }
    }
}

/// The interpreter runs at most `limit` instructions of `block`.
fn record(core: &mut Core, block: &Block<System>, limit: usize, through: bool) -> End {
    if through {
        // What walks find anew is what the piece has written.
        core.machine.tlb.flush();
    }
    begin(core);
    core.machine.journal.record(through);
    core.machine.tlb.set_slow(true);
    let start = core.cpu.rip();
    let outcome = core.run_insns(&block.insns[..limit]);
    let align = core.machine.align;
    core.machine.tlb.set_slow(align);
    let refused = core.machine.journal.end();
    let on_stack = uses_stack(block, core.cpu.rip().wrapping_sub(start));
    End::new(core, outcome, on_stack, refused, false)
}

/// The code runs.
fn repeat(core: &mut Core, lane: &mut Lane, block: &Block<System>) -> Option<(End, Left)> {
    begin(core);
    core.machine.journal.repeat();
    let left = lane.run(core, block);
    let refused = core.machine.journal.end();
    let left = left?;
    Some((End::new(core, left.outcome, left.on_stack, refused, left.interpret), left))
}

fn begin(core: &mut Core) {
    core.machine.end = false;
    core.machine.no_trap = false;
    core.machine.fault_on_stack = false;
}

/// Gives memory that was written since the record began its old values. What was walked meanwhile is forgotten:
/// page tables may have been among it.
fn take_back(core: &mut Core) {
    // SAFETY: as in `compare`; what was recorded was translated for writing.
    unsafe { core.machine.journal.undo() };
    core.machine.tlb.flush();
}

/// Gives the registers back. What generated code counts stays.
fn restore(core: &mut Core, before: &Cpu) {
    let cpu = &mut core.cpu;
    cpu.regs = before.regs;
    cpu.rflags = before.rflags;
    cpu.segs = before.segs;
    cpu.fpu.image = before.fpu.image;
    cpu.retired = before.retired;
}

fn left(outcome: Outcome, interpret: bool) -> Left {
    Left { outcome, on_stack: false, interpret }
}

/// The block is to be looked for again.
fn left_again() -> Left {
    left(Outcome::Retry, false)
}

/// How many instructions of the block are before `offset`, if one begins there.
fn instructions(block: &Block<System>, offset: u64) -> Option<usize> {
    let mut at = 0;
    for (count, insn) in block.insns.iter().enumerate() {
        if at == offset {
            return Some(count);
        }
        at += u64::from(insn.len);
    }
    None
}

fn same_state(a: &Cpu, b: &Cpu, flags: u64) -> bool {
    a.regs == b.regs
        && (a.rflags ^ b.rflags) & flags == 0
        && a.segs == b.segs
        && a.fpu.image == b.fpu.image
}

impl End {
    fn new(
        core: &Core,
        outcome: Outcome,
        on_stack: bool,
        refused: bool,
        interpret: bool,
    ) -> Self {
        let machine = &core.machine;
        let address = machine.fault_is_address;
        let stack = address && (on_stack || machine.fault_on_stack);
        let fault = (outcome == Outcome::Fault).then_some((machine.fault, address, stack));
        Self { cpu: core.cpu.clone(), outcome, fault, refused, interpret }
    }
}
