//! The local APIC as x2APIC MSRs (SDM volume 3, 10.12), and when interrupts are taken.

use super::prelude::*;

cases!(
    "interrupts": masked, sti_shadow, sti_cli, sti_before, sti_request, mov_ss_shadow, popf_and_iret, task_priority, priority,
    in_service, pending_once_more, request_registers, halt, icr_forms, nmi, nmi_blocked, registers,
    eoi_value, disabled, unmasked_by_instruction,
);

const VECTOR: u32 = 0x40;

/// Requests an interrupt of this vCPU.
fn request(a: &mut CodeAssembler, vector: u32) -> Asm {
    a.write_msr(apic::SELF_IPI, u64::from(vector))
}

/// Lets a pending interrupt come.
fn window_of_two(a: &mut CodeAssembler) -> Asm {
    a.sti()?;
    a.nop()?;
    a.nop()?;
    a.cli()
}

fn masked(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        a.enable_apic()?;
        request(a, VECTOR)?;
        a.nop()?;
        a.log(1)?;
        window_of_two(a)?;
        a.log(2)
    })
    .run();
    assert_eq!(record.log, [1, IRQ | VECTOR, 2]);
}

/// The instruction after STI runs before the interrupt.
fn sti_shadow(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        let mut here = a.create_label();
        a.enable_apic()?;
        request(a, VECTOR)?;
        a.lea(r13, ptr(here))?;
        a.sti()?;
        a.set_label(&mut here)?;
        a.inc(ebx)?;
        a.nop()?;
        a.cli()
    })
    .run();
    assert_eq!(record.log, [IRQ | VECTOR]);
    assert_eq!(record.frames[0].rip - record.frames[0].mark, 2);
    assert_eq!(record.frames[0].rflags & 0x200, 0x200);
}

/// No interrupt fits between STI and CLI.
fn sti_cli(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        a.enable_apic()?;
        request(a, VECTOR)?;
        for _ in 0..5 {
            a.sti()?;
            a.cli()?;
        }
        // A second STI gives no second shadow.
        a.log(1)?;
        a.sti()?;
        a.sti()?;
        a.cli()?;
        a.log(2)
    })
    .run();
    assert_eq!(record.log, [1, IRQ | VECTOR, 2]);
}

/// What comes after the shadow is over is taken at once; RFLAGS shows what STI and CLI did.
fn sti_before(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        a.enable_apic()?;
        for _ in 0..3 {
            let (mut here, mut over) = (a.create_label(), a.create_label());
            a.lea(r13, ptr(here))?;
            a.sti()?;
            a.nop()?;
            a.pushfq()?;
            a.pop(rbx)?;
            a.write_msr(apic::SELF_IPI, VECTOR.into())?;
            a.set_label(&mut here)?;
            a.jmp(over)?;
            a.set_label(&mut over)?;
            a.cli()?;
            a.pushfq()?;
            a.pop(rax)?;
            a.shl(eax, 16)?;
            a.mov(ax, bx)?;
            a.and(eax, 0x0200_0200)?;
            a.log_eax()?;
            // Ends what the handler began.
            a.write_msr(apic::EOI, 0)?;
        }
        a.nop()
    })
    .run();
    assert_eq!(record.log, [IRQ | VECTOR, 0x200, IRQ | VECTOR, 0x200, IRQ | VECTOR, 0x200]);
    assert!(record.frames.iter().all(|frame| frame.rip == frame.mark), "taken late");
}

/// The instruction in the shadow of STI may be the one that requests.
fn sti_request(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        a.enable_apic()?;
        for _ in 0..3 {
            let mut here = a.create_label();
            a.lea(r13, ptr(here))?;
            a.mov(ecx, apic::SELF_IPI)?;
            a.mov(eax, VECTOR)?;
            a.xor(edx, edx)?;
            a.sti()?;
            a.wrmsr()?;
            a.set_label(&mut here)?;
            a.nop()?;
            a.cli()?;
            a.write_msr(apic::EOI, 0)?;
        }
        a.nop()
    })
    .run();
    assert_eq!(record.log, [IRQ | VECTOR; 3]);
    assert!(record.frames.iter().all(|frame| frame.rip == frame.mark), "taken elsewhere");
}

/// The instruction after MOV SS is never separated from it.
fn mov_ss_shadow(engine: &dyn Engine) {
    const FRAMES: u64 = crate::conformance::layout::FRAMES;
    let record = Rig::with(engine, |a| {
        let (mut again, mut between) = (a.create_label(), a.create_label());
        a.enable_apic()?;
        a.write_msr(apic::DIVIDE, 0xb)?;
        a.write_msr(apic::LVT_TIMER, u64::from(1 << 17 | VECTOR))?;
        a.write_msr(apic::INITIAL_COUNT, 20_000)?;
        a.lea(r13, ptr(between))?;
        a.mov(esi, ss)?;
        a.sti()?;
        a.set_label(&mut again)?;
        a.mov(ss, esi)?;
        a.set_label(&mut between)?;
        a.inc(rbx)?;
        a.cmp(qword_ptr(FRAMES), 50)?;
        a.jl(again)?;
        a.cli()
    })
    .run();
    assert!(record.frames.len() >= 50);
    assert!(record.frames.iter().all(|frame| frame.rip != frame.mark), "taken after MOV SS");
}

/// POPFQ and IRETQ that set IF have no shadow.
fn popf_and_iret(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        let mut here = a.create_label();
        a.enable_apic()?;
        request(a, VECTOR)?;
        a.lea(r13, ptr(here))?;
        a.set_flags(x86::rflags::IF as u32)?;
        a.set_label(&mut here)?;
        a.nop()?;
        a.cli()?;
        request(a, VECTOR)?;
        let mut there = a.create_label();
        a.lea(r13, ptr(there))?;
        a.push(i32::from(selector::KERNEL_DATA))?;
        a.push(STACK as i32)?;
        a.push(0x202)?;
        a.push(i32::from(selector::KERNEL_CODE))?;
        a.push(r13)?;
        a.iretq()?;
        a.set_label(&mut there)?;
        a.nop()?;
        a.cli()
    })
    .run();
    let offsets: Vec<_> =
        record.frames.iter().map(|frame| frame.rip.wrapping_sub(frame.mark)).collect();
    assert_eq!(offsets, [0, 0]);
}

/// CR8 holds back its class and those below it.
fn task_priority(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        a.enable_apic()?;
        a.mov(ebx, 5)?;
        a.mov(cr8, rbx)?;
        a.read_msr(apic::TPR)?;
        a.log_eax()?;
        request(a, 0x5f)?;
        request(a, 0x60)?;
        window_of_two(a)?;
        a.log(1)?;
        a.sti()?;
        a.mov(ebx, 4)?;
        a.mov(cr8, rbx)?;
        a.nop()?;
        a.cli()?;
        a.log(2)?;
        a.write_msr(apic::TPR, 0x30)?;
        a.mov(rax, cr8)?;
        a.log_eax()
    })
    .run();
    assert_eq!(record.log, [0x50, IRQ | 0x60, 1, IRQ | 0x5f, 2, 3]);
}

/// The higher vector comes first, whatever the order of requests.
fn priority(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        a.enable_apic()?;
        for vector in [0x41, 0x91, 0x42, 0x70] {
            request(a, vector)?;
        }
        a.sti()?;
        for _ in 0..6 {
            a.nop()?;
        }
        a.cli()
    })
    .run();
    assert_eq!(record.log, [IRQ | 0x91, IRQ | 0x70, IRQ | 0x42, IRQ | 0x41]);
}

/// Until its EOI an interrupt keeps out its class and below, and no others.
fn in_service(engine: &dyn Engine) {
    let rig = Rig::with(engine, |a| {
        a.enable_apic()?;
        request(a, 0x91)?;
        window_of_two(a)?;
        a.log(9)
    });
    rig.load(HANDLER, |a| {
        a.read_msr(apic::PPR)?;
        a.log_eax()?;
        a.read_msr(apic::ISR + 4)?;
        a.log_eax()?;
        request(a, 0x41)?;
        request(a, 0x95)?;
        window_of_two(a)?;
        a.log(1)?;
        request(a, 0xa1)?;
        window_of_two(a)?;
        a.log(2)?;
        a.write_msr(apic::EOI, 0)?;
        a.read_msr(apic::PPR)?;
        a.log_eax()?;
        a.iretq()
    });
    rig.set_gate(0x91, Gate::to(HANDLER));
    let mut rig = rig;
    let expected = [0x90, 1 << 17, 1, IRQ | 0xa1, 2, 0, IRQ | 0x95, IRQ | 0x41, 9];
    assert_eq!(rig.run().log, expected);
}

/// A vector can be in service and requested once more, and not twice.
fn pending_once_more(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.enable_apic()?;
        request(a, VECTOR)?;
        request(a, VECTOR)?;
        window_of_two(a)?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.cli()?;
        a.log(9)
    });
    rig.load(HANDLER, |a| {
        let mut second = a.create_label();
        a.log(1)?;
        a.inc(dword_ptr(DATA))?;
        a.cmp(dword_ptr(DATA), 1)?;
        a.jne(second)?;
        request(a, VECTOR)?;
        request(a, VECTOR)?;
        window_of_two(a)?;
        a.log(2)?;
        a.set_label(&mut second)?;
        a.write_msr(apic::EOI, 0)?;
        a.iretq()
    });
    rig.set_gate(VECTOR as u8, Gate::to(HANDLER));
    assert_eq!(rig.run().log, [1, 2, 1, 9]);
}

fn request_registers(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        a.enable_apic()?;
        request(a, 0x41)?;
        request(a, 0xe3)?;
        for register in [apic::IRR + 2, apic::IRR + 7, apic::ISR + 2] {
            a.read_msr(register)?;
            a.log_eax()?;
        }
        window_of_two(a)?;
        for register in [apic::IRR + 2, apic::IRR + 7, apic::ISR + 7] {
            a.read_msr(register)?;
            a.log_eax()?;
        }
        Ok(())
    })
    .run();
    assert_eq!(record.log, [2, 8, 0, IRQ | 0xe3, IRQ | 0x41, 0, 0, 0]);
}

/// HLT after STI: the interrupt ends it and returns to the instruction after.
fn halt(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        for _ in 0..3 {
            let mut here = a.create_label();
            a.enable_apic()?;
            request(a, VECTOR)?;
            a.lea(r13, ptr(here))?;
            a.sti()?;
            a.hlt()?;
            a.set_label(&mut here)?;
            a.cli()?;
        }
        a.log(1)
    })
    .run();
    assert_eq!(record.log, [IRQ | VECTOR, IRQ | VECTOR, IRQ | VECTOR, 1]);
    assert!(record.frames.iter().all(|frame| frame.rip == frame.mark));
}

/// Shorthands, and physical and logical destinations.
fn icr_forms(engine: &dyn Engine) {
    let forms = [1 << 18, 2 << 18, 0, 1 << 11 | 1 << 32, 0xffff_ffff << 32];
    let record = Rig::with(engine, |a| {
        a.enable_apic()?;
        for (index, form) in forms.into_iter().enumerate() {
            a.write_msr(apic::ICR, form | (0x50 + index as u64))?;
            window_of_two(a)?;
        }
        // Nobody but this one, and somebody who is not there.
        a.write_msr(apic::ICR, 3 << 18 | 0x60)?;
        a.write_msr(apic::ICR, 9 << 32 | 0x61)?;
        window_of_two(a)?;
        a.read_msr(apic::ICR)?;
        a.log_rax()
    })
    .run();
    let seen: Vec<_> = (0..5).map(|index| IRQ | (0x50 + index)).chain([0x61, 9]).collect();
    assert_eq!(record.log, seen);
}

/// Sends an NMI to vCPU 0.
fn send_nmi(a: &mut CodeAssembler) -> Asm {
    a.write_msr(apic::ICR, 4 << 8)
}

fn nmi(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        a.enable_apic()?;
        send_nmi(a)?;
        a.nop()?;
        a.log(1)
    })
    .run();
    assert_eq!(record.log, [IRQ | 2, 1]);
    assert_eq!(record.frames[0].vector, 2);
}

/// Until the next IRET, of whatever kind, no NMI comes; one is kept.
fn nmi_blocked(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.enable_apic()?;
        send_nmi(a)?;
        a.nop()?;
        a.log(9)
    });
    rig.load(HANDLER, |a| {
        let mut second = a.create_label();
        a.log(1)?;
        a.inc(dword_ptr(DATA))?;
        a.cmp(dword_ptr(DATA), 1)?;
        a.jne(second)?;
        send_nmi(a)?;
        send_nmi(a)?;
        a.nop()?;
        a.set_label(&mut second)?;
        a.log(2)?;
        a.iretq()
    });
    rig.set_gate(2, Gate::to(HANDLER));
    assert_eq!(rig.run().log, [1, 2, 1, 2, 9]);
}

fn registers(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        a.read_msr(x86::msr::APIC_BASE)?;
        a.log_eax()?;
        a.read_msr(apic::ID)?;
        a.log_eax()?;
        a.enable_apic()?;
        a.read_msr(apic::SVR)?;
        a.log_eax()?;
        // The logical id follows from the id.
        a.read_msr(0x80d)?;
        a.log_eax()?;
        // Read-only, write-only, no such register.
        a.xor(eax, eax)?;
        a.xor(edx, edx)?;
        a.mov(ecx, apic::ID)?;
        a.fault(iced_x86::code_asm::CodeAssembler::wrmsr)?;
        a.mov(ecx, apic::EOI)?;
        a.fault(iced_x86::code_asm::CodeAssembler::rdmsr)?;
        a.mov(ecx, apic::SELF_IPI)?;
        a.fault(iced_x86::code_asm::CodeAssembler::rdmsr)?;
        a.mov(ecx, 0x8f0)?;
        a.fault(iced_x86::code_asm::CodeAssembler::rdmsr)
    })
    .run();
    assert_eq!(record.log, [0xfee0_0d00, 0, 0x1ff, 1]);
    assert_eq!(record.faults(), [Fault::new(Vector::GP); 4]);
}

/// Only zero may be written to EOI (SDM volume 3, 10.12.1.2).
fn eoi_value(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        a.enable_apic()?;
        a.mov(ecx, apic::EOI)?;
        a.mov(eax, 1)?;
        a.xor(edx, edx)?;
        a.fault(iced_x86::code_asm::CodeAssembler::wrmsr)
    })
    .run();
    assert_eq!(record.faults(), [Fault::new(Vector::GP)]);
}

/// Software-disabled, it takes no fixed interrupts, but NMIs.
fn disabled(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        a.write_msr(apic::SVR, 0xff)?;
        a.write_msr(apic::ICR, 1 << 18 | 0x50)?;
        send_nmi(a)?;
        window_of_two(a)?;
        a.log(1)?;
        a.enable_apic()?;
        window_of_two(a)?;
        a.log(2)
    })
    .run();
    assert_eq!(record.log, [IRQ | 2, 1, 2]);
}

/// A pending interrupt comes before the instruction after the one that unmasks it, even an exit.
fn unmasked_by_instruction(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        a.enable_apic()?;
        a.mov(eax, 15)?;
        a.mov(cr8, rax)?;
        a.sti()?;
        request(a, VECTOR)?;
        a.xor(eax, eax)?;
        a.mov(cr8, rax)?;
        a.log(1)?;
        a.cli()
    })
    .run();
    assert_eq!(record.log, [IRQ | VECTOR, 1]);
}
