//! The IO-APIC: programmed through its two windows, driven by `Vm::set_irq`.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::prelude::*;
use crate::conformance::layout::FRAMES;
use crate::traits::Vm;

cases!(
    "io_apic": registers, edge, edge_again, masked, level, level_unmasked, level_dropped, wakes_halt,
    high_pin,
);

/// Not one of the lowest 16, which boards may give to other controllers too.
const PIN: u32 = 18;
const VECTOR: u32 = 0x50;
const MASKED: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;
const REMOTE_IRR: u32 = 1 << 14;

/// Writes a register of the IO-APIC.
fn write(a: &mut CodeAssembler, register: u32, value: u32) -> Asm {
    a.mov(ebx, IO_APIC as u32)?;
    a.mov(dword_ptr(rbx), register)?;
    a.mov(dword_ptr(rbx + 0x10), value)
}

/// Logs bits of a register.
fn log(a: &mut CodeAssembler, register: u32, mask: u32) -> Asm {
    a.mov(ebx, IO_APIC as u32)?;
    a.mov(dword_ptr(rbx), register)?;
    a.mov(eax, dword_ptr(rbx + 0x10))?;
    a.and(eax, mask)?;
    a.log_eax()
}

/// Redirects a pin to vCPU 0.
fn redirect(a: &mut CodeAssembler, pin: u32, bits: u32) -> Asm {
    write(a, 0x10 + 2 * pin + 1, 0)?;
    write(a, 0x10 + 2 * pin, bits)
}

fn raise(vm: &Arc<dyn Vm>, value: u32) {
    vm.set_irq(PIN, value != 0);
}

fn registers(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        log(a, 1, 0xff_0000)?;
        log(a, 0x10 + 2 * 7, MASKED)?;
        redirect(a, 7, MASKED | LEVEL | 0x77)?;
        log(a, 0x10 + 2 * 7, u32::MAX)?;
        write(a, 0x11 + 2 * 7, 3 << 24)?;
        log(a, 0x11 + 2 * 7, 0xff00_0000)
    })
    .run();
    assert_eq!(record.log, [23 << 16, MASKED, MASKED | LEVEL | 0x77, 3 << 24]);
    assert_eq!(record.exits, []);
}

/// A rise and a fall are one interrupt; staying high is none.
fn edge(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.enable_apic()?;
        redirect(a, PIN, VECTOR)?;
        a.sti()?;
        a.ask(1)?;
        a.wait_for(FRAMES, 1)?;
        a.log(1)?;
        a.ask(1)?;
        a.ask(0)?;
        a.nop()?;
        a.log(2)
    });
    let vm = Arc::clone(&rig.vm);
    let record = rig.run_asking(&|value| raise(&vm, value));
    assert_eq!(record.log, [IRQ | VECTOR, 1, 2]);
}

fn edge_again(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.enable_apic()?;
        redirect(a, PIN, VECTOR)?;
        a.sti()?;
        for count in 1..=3 {
            a.ask(1)?;
            a.ask(0)?;
            a.wait_for(FRAMES, count)?;
            a.log(count as u32)?;
        }
        Ok(())
    });
    let vm = Arc::clone(&rig.vm);
    let record = rig.run_asking(&|value| raise(&vm, value));
    let vector = IRQ | VECTOR;
    assert_eq!(record.log, [vector, 1, vector, 2, vector, 3]);
}

fn masked(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.enable_apic()?;
        redirect(a, PIN, MASKED | VECTOR)?;
        a.sti()?;
        a.ask(1)?;
        a.ask(0)?;
        a.nop()?;
        a.log(1)
    });
    let vm = Arc::clone(&rig.vm);
    assert_eq!(rig.run_asking(&|value| raise(&vm, value)).log, [1]);
}

/// While the line is high the interrupt comes again after each EOI; remote IRR is set in between.
fn level(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.enable_apic()?;
        redirect(a, PIN, LEVEL | VECTOR)?;
        a.sti()?;
        a.ask(1)?;
        a.wait_for(DATA, 2)?;
        log(a, 0x10 + 2 * PIN, REMOTE_IRR)?;
        a.log(9)
    });
    rig.load(HANDLER, |a| {
        let mut first = a.create_label();
        for register in [rax, rbx, rcx, rdx] {
            a.push(register)?;
        }
        log(a, 0x10 + 2 * PIN, REMOTE_IRR)?;
        a.cmp(dword_ptr(DATA), 0)?;
        a.je(first)?;
        a.ask(0)?;
        a.set_label(&mut first)?;
        a.write_msr(apic::EOI, 0)?;
        a.inc(dword_ptr(DATA))?;
        for register in [rdx, rcx, rbx, rax] {
            a.pop(register)?;
        }
        a.iretq()
    });
    rig.set_gate(VECTOR as u8, Gate::to(HANDLER));
    let vm = Arc::clone(&rig.vm);
    let record = rig.run_asking(&|value| raise(&vm, value));
    assert_eq!(record.log, [REMOTE_IRR, REMOTE_IRR, 0, 9]);
    assert_eq!(rig.word(DATA), 2);
}

/// A level that rose while masked is seen when the mask goes.
fn level_unmasked(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.enable_apic()?;
        redirect(a, PIN, LEVEL | MASKED | VECTOR)?;
        a.sti()?;
        a.ask(1)?;
        a.log(1)?;
        redirect(a, PIN, LEVEL | VECTOR)?;
        a.wait_for(DATA, 1)?;
        a.log(2)
    });
    rig.load(HANDLER, |a| {
        a.push(rax)?;
        a.push(rdx)?;
        a.push(rcx)?;
        a.log(5)?;
        a.ask(0)?;
        a.write_msr(apic::EOI, 0)?;
        a.inc(dword_ptr(DATA))?;
        a.pop(rcx)?;
        a.pop(rdx)?;
        a.pop(rax)?;
        a.iretq()
    });
    rig.set_gate(VECTOR as u8, Gate::to(HANDLER));
    let vm = Arc::clone(&rig.vm);
    assert_eq!(rig.run_asking(&|value| raise(&vm, value)).log, [1, 5, 2]);
}

/// What has reached the local APIC stays there when the line falls, and comes once.
fn level_dropped(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.enable_apic()?;
        redirect(a, PIN, LEVEL | VECTOR)?;
        a.ask(1)?;
        a.ask(0)?;
        a.log(1)?;
        a.sti()?;
        a.wait_for(FRAMES, 1)?;
        a.nop()?;
        a.log(2)
    });
    let vm = Arc::clone(&rig.vm);
    assert_eq!(rig.run_asking(&|value| raise(&vm, value)).log, [1, IRQ | VECTOR, 2]);
}

/// From another thread, while the vCPU sleeps (or is about to).
fn wakes_halt(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.enable_apic()?;
        redirect(a, PIN, VECTOR)?;
        for delay in [0, 1, 30] {
            a.ask(delay)?;
            a.sti()?;
            a.hlt()?;
            a.cli()?;
        }
        a.log(1)
    });
    let vm = Arc::clone(&rig.vm);
    let last = Mutex::new(None::<thread::JoinHandle<()>>);
    let record = rig.run_asking(&|delay| {
        let mut last = last.lock().expect("no panic");
        // While its line is up there is no edge for another.
        last.take().into_iter().for_each(|thread| thread.join().expect("raised"));
        let vm = Arc::clone(&vm);
        *last = Some(thread::spawn(move || {
            thread::sleep(Duration::from_millis(u64::from(delay)));
            vm.set_irq(PIN, true);
            vm.set_irq(PIN, false);
        }));
    });
    let vector = IRQ | VECTOR;
    assert_eq!(record.log, [vector, vector, vector, 1]);
}

/// The last pin is a pin like the others.
fn high_pin(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.enable_apic()?;
        redirect(a, 23, VECTOR + 1)?;
        a.sti()?;
        a.ask(0)?;
        a.wait_for(FRAMES, 1)?;
        a.log(1)
    });
    let vm = Arc::clone(&rig.vm);
    let record = rig.run_asking(&|_| {
        vm.set_irq(23, true);
        vm.set_irq(23, false);
    });
    assert_eq!(record.log, [IRQ | (VECTOR + 1), 1]);
}
