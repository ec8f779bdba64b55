//! Stops for a debugger outside the guest, which the guest does not notice: steps.

use super::prelude::*;
use crate::conformance::debugging::{STEP, logged, next, on, set, stops};
use crate::debug::{BreakOn, DebugControl, DebugStop};
use crate::error::EngineError;
use x86::{Gpr, rflags};

cases!(
    "debugger": steps, steps_over_exits, steps_each_repetition, steps_hold_interrupts,
    steps_reach_handlers, refused,
);

fn steps(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        let mut over = a.create_label();
        a.nop()?; // 0
        a.mov(ebx, 7)?; // 1
        a.jmp(over)?; // 6
        a.ud2()?;
        a.set_label(&mut over)?;
        a.push(rbx)?; // 10
        a.pop(rcx)?; // 11
        a.nop() // 12
    });
    set(&mut rig, &STEP);
    let offsets = [1, 6, 10, 11, 12, 13];
    for offset in offsets {
        assert_eq!(next(&mut rig, &mut Vec::new()), Some((DebugStop::Step, offset)));
    }
    let state = rig.vcpus[0].state().expect("state");
    assert_eq!(state.gpr[Gpr::Rcx as usize], 7);
    // The debugger's step is not the guest's.
    assert_eq!((state.rflags & rflags::TF, state.debug[4] & 0x400f), (0, 0));
    set(&mut rig, &DebugControl::default());
    assert_eq!(next(&mut rig, &mut Vec::new()), None);
}

/// An instruction that needs answers is one step, after them.
fn steps_over_exits(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(edx, 0x70)?; // 0
        a.in_(al, dx)?; // 5
        a.mov(ebx, dword_ptr(MMIO))?; // 6
        a.out(dx, al)?; // 13
        a.mov(dword_ptr(MMIO), ebx)?; // 14
        a.nop() // 21
    });
    set(&mut rig, &STEP);
    let mut seen = Vec::new();
    for offset in [5, 6, 13, 14, 21] {
        assert_eq!(next(&mut rig, &mut seen), Some((DebugStop::Step, offset)));
    }
    let expected = [
        Exit::PortRead { port: 0x70, size: 1 },
        Exit::MmioRead { gpa: MMIO, size: 4 },
        Exit::PortWrite { port: 0x70, size: 1, value: 0x5a },
        Exit::MmioWrite { gpa: MMIO, size: 4, value: 0x5a },
    ];
    assert_eq!(seen, expected);
}

fn steps_each_repetition(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(edi, DATA as u32)?; // 0
        a.mov(ecx, 3)?; // 5
        a.rep().stosb()?; // 10
        a.nop() // 12
    });
    set(&mut rig, &STEP);
    for offset in [5, 10, 10, 10, 12, 13] {
        assert_eq!(next(&mut rig, &mut Vec::new()), Some((DebugStop::Step, offset)));
    }
}

/// An interrupt that waits does not come between two steps, and is not lost.
fn steps_hold_interrupts(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.enable_apic()?;
        a.write_msr(apic::SELF_IPI, 0x40)?;
        a.mark()?;
        a.log(1)?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.nop()?;
        a.log(2)
    });
    let mut seen = Vec::new();
    set(&mut rig, &STEP);
    while next(&mut rig, &mut seen).is_some() {
        let enabled = rig.vcpus[0].state().expect("state").rflags & rflags::IF != 0;
        let rip = rig.vcpus[0].state().expect("state").rip;
        let code = rig.bytes(rip, 1)[0];
        assert!(!enabled || (CODE..HANDLER).contains(&rip), "{rip:#x}");
        if enabled && code != 0x90 {
            break;
        }
    }
    assert_eq!(logged(&seen), [1]);
    set(&mut rig, &DebugControl::default());
    assert_eq!(next(&mut rig, &mut seen), None);
    assert_eq!(logged(&seen), [1, IRQ | 0x40, 2]);
}

/// Whether a step ends at a handler's first instruction or behind its last is for the engine; it ends.
fn steps_reach_handlers(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.nop()?;
        a.fault(|a| a.ud2())?;
        a.log(1)
    });
    set(&mut rig, &STEP);
    let mut seen = Vec::new();
    while let Some((stop, _)) = next(&mut rig, &mut seen) {
        assert_eq!(stop, DebugStop::Step);
    }
    assert_eq!(logged(&seen), [1]);
}

fn refused(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| a.log(1));
    for wrong in [
        (DATA + 1, BreakOn::Write, 2),
        (DATA, BreakOn::Access, 3),
        (DATA, BreakOn::Write, 0),
        (CODE, BreakOn::Execute, 4),
    ] {
        let result = rig.vcpus[0].set_debug(&on(&[wrong]));
        assert!(matches!(result, Err(EngineError::Unsupported(_))), "{wrong:?}: {result:?}");
    }
    assert_eq!(stops(&mut rig), (vec![], vec![1]));
}
