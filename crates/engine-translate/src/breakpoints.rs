//! Breakpoints: the guest's own in DR0 to DR3 (SDM volume 3, 18.2), and those of the debugger around it.
//!
//! A guest without any pays one test of a flag per block. Code: while there is a breakpoint on an
//! instruction nearby, blocks run one instruction at a time, so that each address is looked at. Data: a
//! page that is watched has no TLB entry for data, so that every access to it takes the slow path, which
//! notes what it met; that ends the block behind the instruction.

use engine::{BreakOn, DebugControl, DebugStop, EngineError, Exit, HardwareBreakpoint};
use memory::FRAME_SIZE;
use translator::decode::{BLOCK_LIMIT, MAX_LEN};
use translator::{Machine, Outcome, Stop};
use x86::{Event, Exception, Vector, rflags};

use crate::exceptions;
use crate::fetch::linear_rip;
use crate::system::{Core, System};

/// Indices of DR6 and DR7 in [`crate::registers::Registers::debug`].
pub(crate) const DR6: usize = 4;
pub(crate) const DR7: usize = 5;

/// DR6: which breakpoints were met; an access to a debug register; a single step.
const DR6_MET: u64 = 0xf;
const DR6_GENERAL_DETECT: u64 = 1 << 13;
const DR6_STEP: u64 = 1 << 14;

/// DR7: the next access to a debug register traps.
pub(crate) const DR7_GENERAL_DETECT: u64 = 1 << 13;

/// Breakpoints of each side.
const SIDE: usize = 4;

/// Bytes from a block's start to the last instruction that it can have.
const NEAR: u64 = (BLOCK_LIMIT * MAX_LEN) as u64;

/// The breakpoints of a vCPU, and which it has met.
#[derive(Debug, Default)]
pub(crate) struct Breakpoints {
    /// The guest's, then the debugger's.
    slots: [Option<HardwareBreakpoint>; 2 * SIDE],
    /// What the debugger asked for.
    control: DebugControl,
    /// Data breakpoints that the running instruction has met, a bit a slot.
    met: u8,
    /// RFLAGS.RF was set when the running instruction began.
    resumed: bool,
    /// Some slot is on code, some on data.
    code: bool,
    data: bool,
    /// Blocks have to be run with care: one of the above, a step, or RFLAGS.RF to be cleared.
    active: bool,
}

impl Breakpoints {
    /// Whether blocks have to be run by [`begin`].
    #[inline(always)]
    pub(crate) fn is_active(&self) -> bool {
        self.active
    }

    /// Whether the debugger stops after each instruction.
    #[inline(always)]
    pub(crate) fn steps(&self) -> bool {
        self.control.single_step
    }

    /// Whether INT3 belongs to the debugger.
    pub(crate) fn int3_stops(&self) -> bool {
        self.control.int3_stops
    }

    /// Whether RFLAGS.RF means anything: it is not kept where it does not.
    pub(crate) fn on_code(&self) -> bool {
        self.code
    }

    /// Whether data on the page of `va` is watched.
    #[inline(always)]
    pub(crate) fn watches_page(&self, va: u64) -> bool {
        const PAGE: u64 = !(FRAME_SIZE as u64 - 1);
        self.data && self.on_data().any(|(_, slot)| (slot.address ^ va) & PAGE == 0)
    }

    /// Whether a byte of `[va, va + len)` is watched.
    pub(crate) fn watches(&self, va: u64, len: u64) -> bool {
        self.data && self.on_data().any(|(_, slot)| overlaps(&slot, va, len))
    }

    /// Drops what an instruction met that did not complete.
    pub(crate) fn forget_met(&mut self) {
        self.met = 0;
    }

    fn on_data(&self) -> impl Iterator<Item = (usize, HardwareBreakpoint)> {
        self.slots().filter(|(_, slot)| slot.on != BreakOn::Execute)
    }

    fn slots(&self) -> impl Iterator<Item = (usize, HardwareBreakpoint)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| Some((index, (*slot)?)))
    }

    /// The slots of breakpoints on the instruction at `va`, a bit each.
    fn at(&self, va: u64) -> u8 {
        let here =
            self.slots().filter(|(_, slot)| slot.on == BreakOn::Execute && slot.address == va);
        here.fold(0, |bits, (index, _)| bits | 1 << index)
    }

    /// Whether a block that begins at `va` may reach an instruction with a breakpoint.
    fn near(&self, va: u64) -> bool {
        self.slots()
            .any(|(_, slot)| slot.on == BreakOn::Execute && slot.address.wrapping_sub(va) < NEAR)
    }
}

fn overlaps(slot: &HardwareBreakpoint, va: u64, len: u64) -> bool {
    slot.address.wrapping_sub(va) < len || va.wrapping_sub(slot.address) < u64::from(slot.size)
}

impl System {
    /// Takes up what the debugger asks for.
    pub(crate) fn set_debug(&mut self, control: &DebugControl) -> Result<(), EngineError> {
        control.breakpoints.iter().flatten().try_for_each(check)?;
        self.breakpoints.control = *control;
        // The flag stays up for RFLAGS.RF of the state as it is, and is found out to be needless.
        self.update_breakpoints(true);
        Ok(())
    }

    /// Takes up a change of the guest's debug registers, or of the debugger's wishes; `resume`: RFLAGS.RF
    /// may be set.
    pub(crate) fn update_breakpoints(&mut self, resume: bool) {
        let breakpoints = &mut self.breakpoints;
        let registers = &self.regs.debug;
        let guest = std::array::from_fn::<_, SIDE, _>(|index| of_register(registers, index));
        breakpoints.slots[..SIDE].copy_from_slice(&guest);
        breakpoints.slots[SIDE..].copy_from_slice(&breakpoints.control.breakpoints);
        let kinds = breakpoints.slots().map(|(_, slot)| slot.on == BreakOn::Execute);
        let (code, data) =
            kinds.fold((false, false), |(code, data), on_code| (code | on_code, data | !on_code));
        (breakpoints.code, breakpoints.data) = (code, data);
        breakpoints.active = code || data || breakpoints.steps() || resume;
        let watched = breakpoints.on_data().map(|(_, slot)| slot.address);
        watched.for_each(|va| self.tlb.forget_data(va));
        self.end = true;
    }

    /// Notes a data access that took the slow path.
    #[inline(always)]
    pub(crate) fn note_access(&mut self, va: u64, len: usize, write: bool) {
        if self.breakpoints.data {
            self.note_watched(va, len, write);
        }
    }

    #[cold]
    fn note_watched(&mut self, va: u64, len: usize, write: bool) {
        let met = self
            .breakpoints
            .on_data()
            .filter(|(_, slot)| write || slot.on == BreakOn::Access)
            .filter(|(_, slot)| overlaps(slot, va, len as u64))
            .fold(0, |bits, (index, _)| bits | 1 << index);
        if met != 0 {
            self.breakpoints.met |= met;
            self.end = true;
        }
    }

    /// #DB where DR7.GD guards the debug registers.
    pub(crate) fn check_general_detect(&mut self) -> Result<(), Stop> {
        if self.regs.debug[DR7] & DR7_GENERAL_DETECT == 0 {
            return Ok(());
        }
        self.regs.debug[DR6] |= DR6_GENERAL_DETECT;
        Err(self.raise(Exception::new(Vector::DB)))
    }
}

/// What can be asked: the same as of a debug register.
fn check(breakpoint: &HardwareBreakpoint) -> Result<(), EngineError> {
    let HardwareBreakpoint { address, on, size } = *breakpoint;
    let possible = match on {
        BreakOn::Execute => size == 1,
        BreakOn::Write | BreakOn::Access => {
            matches!(size, 1 | 2 | 4 | 8) && address.is_multiple_of(size.into())
        }
    };
    possible.then_some(()).ok_or_else(|| {
        EngineError::Unsupported(format!(
            "a breakpoint of {size} bytes at {address:#x}: data has 1, 2, 4 or 8 and is aligned, code has 1"
        ))
    })
}

/// Breakpoint `index` of the debug registers, where it is enabled. Breakpoints on I/O are not modelled.
fn of_register(debug: &[u64; 6], index: usize) -> Option<HardwareBreakpoint> {
    let dr7 = debug[DR7];
    if dr7 >> (2 * index) & 3 == 0 {
        return None;
    }
    let on = match dr7 >> (16 + 4 * index) & 3 {
        0 => BreakOn::Execute,
        1 => BreakOn::Write,
        3 => BreakOn::Access,
        _ => return None,
    };
    let size = match dr7 >> (18 + 4 * index) & 3 {
        _ if on == BreakOn::Execute => 1,
        0 => 1,
        1 => 2,
        2 => 8,
        _ => 4,
    };
    // The processor ignores the address bits below the size.
    Some(HardwareBreakpoint { address: debug[index] & !(u64::from(size) - 1), on, size })
}

/// How the next block is to be run.
pub(crate) enum Begin {
    /// Not at all: a breakpoint on its first instruction has done this.
    Met(Outcome),
    /// Yes; `single`: its first instruction only.
    Run { single: bool },
}

/// Before a block: breakpoints on its first instruction, the debugger's first.
pub(crate) fn begin(core: &mut Core) -> Begin {
    let va = linear_rip(core);
    let resumed = core.cpu.flag(rflags::RF);
    let breakpoints = &core.machine.breakpoints;
    if !resumed && let at @ 1.. = breakpoints.at(va) {
        return Begin::Met(meet(core, at));
    }
    let single = resumed || breakpoints.steps() || breakpoints.near(va);
    // It holds for one instruction, and what this instruction pushes shows it clear already.
    core.cpu.rflags &= !rflags::RF;
    core.machine.breakpoints.resumed = resumed;
    Begin::Run { single }
}

fn meet(core: &mut Core, at: u8) -> Outcome {
    let debuggers = at >> SIDE;
    if debuggers != 0 {
        let index = debuggers.trailing_zeros() as u8;
        core.machine.report(Exit::Debug(DebugStop::Breakpoint(index)));
        return Outcome::Retry;
    }
    note_in_dr6(core, at.into());
    core.machine.raise(Exception::new(Vector::DB));
    Outcome::Fault
}

/// After an instruction that will run again, having made `progress` or none: no breakpoint on it fires a
/// second time (SDM volume 3, 18.3.1.1).
pub(crate) fn hold_resume(core: &mut Core, progress: bool) {
    let breakpoints = &core.machine.breakpoints;
    if breakpoints.resumed || progress && breakpoints.code {
        core.cpu.rflags |= rflags::RF;
    }
}

/// After an instruction that has completed, or a repetition of it: the trap of RFLAGS.TF (`trapped`), the
/// breakpoints that it met, and the debugger's step.
pub(crate) fn complete(core: &mut Core, trapped: bool) {
    let breakpoints = &mut core.machine.breakpoints;
    let met = std::mem::take(&mut breakpoints.met);
    let guests = u64::from(met) & DR6_MET;
    let debuggers = met >> SIDE;
    let stop = if debuggers != 0 {
        Some(DebugStop::Breakpoint(debuggers.trailing_zeros() as u8))
    } else {
        breakpoints.steps().then_some(DebugStop::Step)
    };
    if trapped || guests != 0 {
        note_in_dr6(core, guests | if trapped { DR6_STEP } else { 0 });
        exceptions::deliver(core, Event::Exception(Exception::new(Vector::DB)));
    }
    if let Some(stop) = stop {
        core.machine.report(Exit::Debug(stop));
    }
}

/// After a fault has been delivered: the handler's first instruction is a border too.
pub(crate) fn step_into_handler(core: &mut Core) {
    if core.machine.breakpoints.steps() {
        core.machine.report(Exit::Debug(DebugStop::Step));
    }
}

/// The bits of breakpoints say what was met now; the others stay until the guest clears them.
fn note_in_dr6(core: &mut Core, bits: u64) {
    let dr6 = &mut core.machine.regs.debug[DR6];
    *dr6 = *dr6 & !DR6_MET | bits;
}

/// After a block that [`begin`] let run. Once RFLAGS.RF is clear again, a vCPU without breakpoints needs
/// no care.
pub(crate) fn end(core: &mut Core) {
    let resume = core.cpu.flag(rflags::RF);
    let breakpoints = &mut core.machine.breakpoints;
    breakpoints.resumed = false;
    breakpoints.forget_met();
    breakpoints.active = breakpoints.code || breakpoints.data || breakpoints.steps() || resume;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(address: u64, on: BreakOn, size: u8) -> Option<HardwareBreakpoint> {
        Some(HardwareBreakpoint { address, on, size })
    }

    #[test]
    fn debug_registers_say_what_they_watch() {
        let mut debug = [0x1003, 0x2007, 0x3001, 0x4000, 0, 0];
        assert_eq!(of_register(&debug, 0), None);
        // L0 on execution, G1 on 8 bytes written, L2 on 2 bytes accessed, L3 on I/O.
        debug[DR7] = 1 | 1 << 3 | 1 << 4 | 1 << 6 | 0b1001 << 20 | 0b0111 << 24 | 0b0010 << 28;
        assert_eq!(of_register(&debug, 0), slot(0x1003, BreakOn::Execute, 1));
        assert_eq!(of_register(&debug, 1), slot(0x2000, BreakOn::Write, 8));
        assert_eq!(of_register(&debug, 2), slot(0x3000, BreakOn::Access, 2));
        assert_eq!(of_register(&debug, 3), None);
    }

    #[test]
    fn a_watch_is_met_by_any_of_its_bytes() {
        let word = HardwareBreakpoint { address: 0x1004, on: BreakOn::Write, size: 4 };
        for (va, len, met) in [
            (0x1004, 1, true),
            (0x1007, 1, true),
            (0x1000, 5, true),
            (0x1000, 0x1000, true),
            (0x1000, 4, false),
            (0x1008, 8, false),
            (u64::MAX, 8, false),
        ] {
            assert_eq!(overlaps(&word, va, len), met, "{va:#x} {len}");
        }
        let last = HardwareBreakpoint { address: u64::MAX - 7, on: BreakOn::Write, size: 8 };
        assert!(overlaps(&last, u64::MAX, 1) && !overlaps(&last, 0, 8));
    }

    #[test]
    fn what_no_debug_register_can_hold_is_refused() {
        for (address, on, size) in [
            (0x1001, BreakOn::Write, 2),
            (0x1000, BreakOn::Access, 3),
            (0x1000, BreakOn::Write, 16),
            (0x1000, BreakOn::Execute, 4),
        ] {
            assert!(check(&HardwareBreakpoint { address, on, size }).is_err());
        }
        assert!(
            check(&HardwareBreakpoint { address: 0x1001, on: BreakOn::Execute, size: 1 }).is_ok()
        );
    }
}
