//! Single-stepping by EFLAGS.TF (SDM volume 3, 17.3.1.4), and #DB in general.

use super::prelude::*;

cases!("single_step": steps, handler_runs_free, after_segment_load, faults_do_not_trap, icebp, user);

const TF: u32 = x86::rflags::TF as u32;

/// Clears TF. It was set when the POPFQ began, so there is a last trap after that.
fn stop(a: &mut CodeAssembler) -> Asm {
    a.pushfq()?;
    a.and(dword_ptr(rsp), !TF)?;
    a.popfq()
}

/// Where the traps were, from the mark; the mark must be after the POPFQ that sets TF.
fn traps(rig: &mut Rig) -> Vec<i64> {
    let faults = rig.run().faults();
    assert!(faults.iter().all(|fault| fault.vector == 1), "{faults:?}");
    faults.iter().map(|fault| fault.offset).collect()
}

/// The first trap is after the instruction that follows the POPFQ.
fn steps(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        let (mut over, mut here) = (a.create_label(), a.create_label());
        a.lea(r13, ptr(here))?;
        a.mov(rax, dr6)?;
        a.and(eax, !0x4000)?;
        a.mov(dr6, rax)?;
        a.set_flags(TF)?;
        a.set_label(&mut here)?;
        a.nop()?; // 0
        a.mov(eax, 1)?; // 1
        a.jmp(over)?; // 6
        a.nop()?; // 8
        a.set_label(&mut over)?;
        a.push(rax)?; // 9
        a.pop(rax)?; // 10
        stop(a)?; // 11: pushfq, 12: and, 19: popfq, 20
        a.nop()?;
        a.mov(rax, dr6)?;
        a.and(eax, 0x400f)?;
        a.log_eax()
    });
    let record = rig.run();
    let offsets: Vec<_> = record.faults().iter().map(|fault| fault.offset).collect();
    assert_eq!(offsets, [1, 6, 9, 10, 11, 12, 19, 20]);
    let flags: Vec<_> = record.frames.iter().map(|frame| frame.rflags as u32 & TF).collect();
    assert_eq!(flags, [TF, TF, TF, TF, TF, TF, TF, 0]);
    assert_eq!(record.log, [0x4000]);
}

/// INT n clears TF for its handler and IRETQ brings it back: the handler's instructions do not trap.
fn handler_runs_free(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        let mut here = a.create_label();
        a.lea(r13, ptr(here))?;
        a.set_flags(TF)?;
        a.set_label(&mut here)?;
        a.int(0x40)?; // 0
        a.nop()?; // 2
        a.nop()?; // 3
        stop(a) // 4, 5, 12, 13
    });
    rig.load(HANDLER, |a| {
        a.nop()?;
        a.iretq()
    });
    rig.set_gate(0x40, Gate::to(HANDLER));
    assert_eq!(traps(&mut rig), [3, 4, 5, 12, 13]);
}

/// MOV SS holds the trap back until after the next instruction.
fn after_segment_load(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        let mut here = a.create_label();
        a.mov(ebx, ss)?;
        a.lea(r13, ptr(here))?;
        a.set_flags(TF)?;
        a.set_label(&mut here)?;
        a.mov(ss, ebx)?; // 0
        a.nop()?; // 2
        a.nop()?; // 3
        stop(a)
    });
    assert_eq!(traps(&mut rig), [3, 4, 5, 12, 13]);
}

/// An instruction that faults has not completed and does not trap.
fn faults_do_not_trap(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        let (mut here, mut after) = (a.create_label(), a.create_label());
        a.lea(r13, ptr(here))?;
        a.lea(r15, ptr(after))?;
        a.set_flags(TF)?;
        a.set_label(&mut here)?;
        a.ud2()?; // 0
        a.set_label(&mut after)?;
        a.nop()?; // 2
        stop(a) // 3, 4, 11, 12
    });
    let record = rig.run();
    let seen: Vec<_> = record.faults().iter().map(|fault| (fault.vector, fault.offset)).collect();
    assert_eq!(seen, [(6, 0), (1, 3), (1, 4), (1, 11), (1, 12)]);
}

/// INT1 traps without TF.
fn icebp(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mark()?;
        a.int1()?;
        a.nop()
    });
    assert_eq!(traps(&mut rig), [1]);
}

fn user(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.user_with(u64::from(TF), |a| {
            let mut here = a.create_label();
            a.set_label(&mut here)?;
            a.lea(r13, ptr(here))?; // 0
            a.nop()?; // 7
            a.inc(eax)?; // 8
            stop(a) // 10, 11, 18, 19
        })
    });
    assert_eq!(traps(&mut rig), [7, 8, 10, 11, 18, 19]);
}
