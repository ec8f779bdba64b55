//! The local APIC timer in its three modes. No case depends on how fast it counts.

use super::prelude::*;
use crate::conformance::layout::FRAMES;

cases!(
    "timers": one_shot, one_shot_halt, stopped, masked, periodic, current_count, deadline,
    deadline_passed, deadline_cancelled, deadline_halt, many_halts,
);

const VECTOR: u64 = 0x40;
const MASKED: u64 = 1 << 16;
const PERIODIC: u64 = 1 << 17;
const DEADLINE: u64 = 2 << 17;
const FIRED: u32 = IRQ | VECTOR as u32;

/// Sets the timer's mode, counting at full speed.
fn mode(a: &mut CodeAssembler, lvt: u64) -> Asm {
    a.enable_apic()?;
    a.write_msr(apic::DIVIDE, 0xb)?;
    a.write_msr(apic::LVT_TIMER, lvt)
}

fn start(a: &mut CodeAssembler, count: u64) -> Asm {
    a.write_msr(apic::INITIAL_COUNT, count)
}

fn one_shot(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        mode(a, VECTOR)?;
        a.sti()?;
        start(a, 100_000)?;
        a.wait_for(FRAMES, 1)?;
        a.read_msr(apic::CURRENT_COUNT)?;
        a.log_eax()?;
        // It does not start again by itself.
        a.mov(ecx, 300_000)?;
        spin(a)?;
        a.log(1)
    })
    .run();
    assert_eq!(record.log, [FIRED, 0, 1]);
}

/// Counts ECX down.
fn spin(a: &mut CodeAssembler) -> Asm {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.pause()?;
    a.dec(ecx)?;
    a.jnz(again)
}

fn one_shot_halt(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        mode(a, VECTOR)?;
        for _ in 0..3 {
            start(a, 1_000_000)?;
            a.sti()?;
            a.hlt()?;
            a.cli()?;
        }
        a.log(1)
    })
    .run();
    assert_eq!(record.log, [FIRED, FIRED, FIRED, 1]);
}

/// An initial count of 0 stops it.
fn stopped(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        mode(a, VECTOR)?;
        a.sti()?;
        start(a, u64::from(u32::MAX))?;
        start(a, 0)?;
        a.read_msr(apic::CURRENT_COUNT)?;
        a.log_eax()?;
        a.mov(ecx, 100_000)?;
        spin(a)?;
        a.log(1)
    })
    .run();
    assert_eq!(record.log, [0, 1]);
}

/// Masked, it counts and does not interrupt.
fn masked(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        let (mut again, mut done) = (a.create_label(), a.create_label());
        mode(a, VECTOR | MASKED)?;
        a.sti()?;
        start(a, 10_000)?;
        a.set_label(&mut again)?;
        a.read_msr(apic::CURRENT_COUNT)?;
        a.test(eax, eax)?;
        a.jz(done)?;
        a.jmp(again)?;
        a.set_label(&mut done)?;
        a.log(1)
    })
    .run();
    assert_eq!(record.log, [1]);
}

fn periodic(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        mode(a, VECTOR | PERIODIC)?;
        start(a, 500_000)?;
        a.sti()?;
        a.wait_for(FRAMES, 5)?;
        a.cli()?;
        start(a, 0)?;
        // One may be pending.
        a.sti()?;
        a.nop()?;
        a.cli()?;
        a.mov(rax, qword_ptr(FRAMES))?;
        a.mov(ebx, eax)?;
        a.sti()?;
        a.mov(ecx, 300_000)?;
        spin(a)?;
        a.cli()?;
        a.sub(ebx, dword_ptr(FRAMES))?;
        a.mov(eax, ebx)?;
        a.log_eax()
    })
    .run();
    assert!(record.frames.len() >= 5);
    assert_eq!(record.log.last(), Some(&0), "interrupts after the timer was stopped");
}

/// It falls, from the initial count on, and never rises.
fn current_count(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        mode(a, VECTOR | MASKED)?;
        start(a, u64::from(u32::MAX))?;
        for _ in 0..4 {
            a.read_msr(apic::CURRENT_COUNT)?;
            a.log_eax()?;
        }
        a.read_msr(apic::INITIAL_COUNT)?;
        a.log_eax()
    })
    .run();
    assert!(record.log[..4].is_sorted_by(|earlier, later| earlier >= later), "{:x?}", record.log);
    assert!(record.log[3] > 0);
    assert_eq!(record.log[4], u32::MAX);
}

fn require_deadline(engine: &dyn Engine) {
    if cpuid(engine, 1, 0)[2] & 1 << 24 == 0 {
        skip("no TSC deadline");
    }
}

/// Reads the TSC to RAX.
fn tsc(a: &mut CodeAssembler) -> Asm {
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)
}

/// Arms the timer `ticks` from now; R12 holds the deadline.
fn arm(a: &mut CodeAssembler, ticks: i32) -> Asm {
    tsc(a)?;
    a.add(rax, ticks)?;
    a.mov(r12, rax)?;
    a.mov(rdx, rax)?;
    a.shr(rdx, 32)?;
    a.mov(ecx, x86::msr::TSC_DEADLINE)?;
    a.wrmsr()
}

/// Not before its time; then the MSR is zero.
fn deadline(engine: &dyn Engine) {
    require_deadline(engine);
    let record = Rig::with(engine, |a| {
        mode(a, VECTOR | DEADLINE)?;
        // Far enough for a host that lets others run before it is read.
        arm(a, i32::MAX)?;
        a.read_msr(x86::msr::TSC_DEADLINE)?;
        a.sub(rax, r12)?;
        a.log_eax()?;
        arm(a, 2_000_000)?;
        a.sti()?;
        a.wait_for(FRAMES, 1)?;
        tsc(a)?;
        a.cmp(rax, r12)?;
        a.setae(al)?;
        a.movzx(eax, al)?;
        a.log_eax()?;
        a.read_msr(x86::msr::TSC_DEADLINE)?;
        a.log_rax()
    })
    .run();
    assert_eq!(record.log, [0, FIRED, 1, 0, 0]);
}

fn deadline_passed(engine: &dyn Engine) {
    require_deadline(engine);
    let record = Rig::with(engine, |a| {
        mode(a, VECTOR | DEADLINE)?;
        a.sti()?;
        arm(a, -1000)?;
        a.wait_for(FRAMES, 1)?;
        a.write_msr(x86::msr::TSC_DEADLINE, 1)?;
        a.wait_for(FRAMES, 2)?;
        a.log(1)
    })
    .run();
    assert_eq!(record.log, [FIRED, FIRED, 1]);
}

fn deadline_cancelled(engine: &dyn Engine) {
    require_deadline(engine);
    let record = Rig::with(engine, |a| {
        mode(a, VECTOR | DEADLINE)?;
        a.sti()?;
        arm(a, 0x7000_0000)?;
        a.write_msr(x86::msr::TSC_DEADLINE, 0)?;
        // The initial count is not of this mode.
        start(a, 10)?;
        a.mov(ecx, 100_000)?;
        spin(a)?;
        a.log(1)
    })
    .run();
    assert_eq!(record.log, [1]);
}

fn deadline_halt(engine: &dyn Engine) {
    require_deadline(engine);
    let record = Rig::with(engine, |a| {
        mode(a, VECTOR | DEADLINE)?;
        for ticks in [0, 1000, 3_000_000] {
            arm(a, ticks)?;
            a.sti()?;
            a.hlt()?;
            a.cli()?;
            tsc(a)?;
            a.cmp(rax, r12)?;
            a.setae(al)?;
            a.movzx(eax, al)?;
            a.log_eax()?;
        }
        Ok(())
    })
    .run();
    assert_eq!(record.log, [FIRED, 1, FIRED, 1, FIRED, 1]);
}

/// No wake-up is lost between STI and sleep, whatever the distance.
fn many_halts(engine: &dyn Engine) {
    require_deadline(engine);
    let record = Rig::with(engine, |a| {
        let mut again = a.create_label();
        mode(a, VECTOR | DEADLINE)?;
        a.mov(ebx, 1000)?;
        a.set_label(&mut again)?;
        tsc(a)?;
        a.mov(ecx, ebx)?;
        a.shl(ecx, 6)?;
        a.add(rax, rcx)?;
        a.mov(rdx, rax)?;
        a.shr(rdx, 32)?;
        a.mov(ecx, x86::msr::TSC_DEADLINE)?;
        a.wrmsr()?;
        a.sti()?;
        a.hlt()?;
        a.cli()?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.log(1)
    })
    .run();
    assert_eq!(record.log.len(), 1001);
    assert_eq!(record.log.last(), Some(&1));
}
