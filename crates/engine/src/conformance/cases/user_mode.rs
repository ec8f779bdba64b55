//! Ring 3: the ways in and out, and what it may not do.

use super::prelude::*;
use x86::{cr4, msr, rflags};

cases!(
    "user_mode": syscall, syscall_flags, syscall_again, syscall_elsewhere, syscall_disabled, sysret_target, iretq_and_int, iret_refused, interrupt_stack, privileged,
    ports, port_map, io_privilege, popf, swapgs, fsgsbase, fsgsbase_disabled, time_stamp,
);

const GP: Fault = Fault::new(Vector::GP);

/// Points SYSCALL at [`HANDLER`].
fn set_up_syscall(a: &mut CodeAssembler, mask: u64) -> Asm {
    let kernel = u64::from(selector::KERNEL_CODE);
    let user = u64::from(selector::USER_CODE32);
    a.write_msr(msr::STAR, user << 48 | kernel << 32)?;
    a.write_msr(msr::LSTAR, HANDLER)?;
    a.write_msr(msr::SFMASK, mask)
}

fn log_all(a: &mut CodeAssembler, registers: &[AsmRegister32]) -> Asm {
    for &register in registers {
        a.mov(eax, register)?;
        a.log_eax()?;
    }
    Ok(())
}

fn syscall(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        let mut here = a.create_label();
        set_up_syscall(a, 0)?;
        a.user(|a| {
            a.lea(r13, ptr(here))?;
            a.syscall()?;
            a.set_label(&mut here)?;
            a.mov(ebx, cs)?;
            a.mov(esi, ss)?;
            a.mov(rdi, rsp)
        })?;
        log_all(a, &[ebx, esi, edi])
    });
    rig.load(HANDLER, |a| {
        a.mov(rbx, rcx)?;
        a.sub(rbx, r13)?;
        a.mov(esi, cs)?;
        a.mov(edi, ss)?;
        log_all(a, &[ebx, esi, edi, esp])?;
        a.sysretq()
    });
    let record = rig.run();
    assert_eq!(record.faults(), []);
    let inside = [0, 0x10, 0x18, USER_STACK as u32];
    assert_eq!(record.log, [inside.as_slice(), &[0x33, 0x2b, USER_STACK as u32]].concat());
}

/// R11 keeps the flags, the mask clears some, SYSRET brings them back.
fn syscall_flags(engine: &dyn Engine) {
    let bits = rflags::IF | rflags::DF | rflags::AC | rflags::CF;
    let shown = bits as u32 | rflags::TF as u32;
    let mut rig = Rig::with(engine, |a| {
        set_up_syscall(a, rflags::IF | rflags::DF | rflags::TF)?;
        a.user_with(bits, |a| {
            a.syscall()?;
            a.pushfq()?;
            a.pop(rbx)
        })?;
        a.cld()?;
        a.and(ebx, shown)?;
        log_all(a, &[ebx])
    });
    rig.load(HANDLER, |a| {
        a.pushfq()?;
        a.pop(rbx)?;
        a.and(ebx, shown)?;
        a.mov(esi, r11d)?;
        a.and(esi, shown)?;
        log_all(a, &[ebx, esi])?;
        a.sysretq()
    });
    let kept = (rflags::AC | rflags::CF) as u32;
    assert_eq!(rig.run().log, [kept, bits as u32, bits as u32]);
}

/// Many times, while interrupts come: registers and flags are what they were, and no call is lost.
fn syscall_again(engine: &dyn Engine) {
    const TIMER: u64 = HANDLER + 0x800;
    const TICKS: u64 = DATA;
    let mut rig = Rig::with(engine, |a| {
        set_up_syscall(a, rflags::IF | rflags::CF | rflags::DF)?;
        a.enable_apic()?;
        a.write_msr(apic::DIVIDE, 0xb)?;
        a.write_msr(apic::LVT_TIMER, 1 << 17 | 0x40)?;
        a.write_msr(apic::INITIAL_COUNT, 100_000)?;
        a.xor(ebx, ebx)?;
        a.xor(esi, esi)?;
        a.xor(edi, edi)?;
        a.user_with(rflags::IF, |a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.inc(edi)?;
            a.stc()?;
            a.syscall()?;
            // Carry is back.
            a.adc(esi, 0)?;
            a.cmp(dword_ptr(TICKS), 20)?;
            a.jb(again)?;
            a.cmp(edi, 1000)?;
            a.jb(again)
        })?;
        a.cli()?;
        a.sub(esi, edi)?;
        a.sub(ebx, edi)?;
        log_all(a, &[esi, ebx])
    });
    rig.load(HANDLER, |a| {
        // Carry was cleared.
        a.adc(ebx, 1)?;
        a.sysretq()
    });
    rig.load(TIMER, |a| {
        a.push(rax)?;
        a.push(rcx)?;
        a.push(rdx)?;
        a.inc(dword_ptr(TICKS))?;
        a.write_msr(apic::EOI, 0)?;
        a.pop(rdx)?;
        a.pop(rcx)?;
        a.pop(rax)?;
        a.iretq()
    });
    rig.set_gate(0x40, Gate::to(TIMER));
    assert_eq!(rig.run().log, [0, 0]);
}

/// What SYSCALL loads is what the MSRs say now.
fn syscall_elsewhere(engine: &dyn Engine) {
    const OTHER: u64 = HANDLER + 0x800;
    let mut rig = Rig::with(engine, |a| {
        set_up_syscall(a, rflags::CF)?;
        for target in [HANDLER, OTHER, HANDLER] {
            a.write_msr(msr::LSTAR, target)?;
            a.user(iced_x86::code_asm::CodeAssembler::syscall)?;
        }
        a.write_msr(msr::SFMASK, 0)?;
        a.user(|a| {
            a.stc()?;
            a.syscall()
        })
    });
    rig.load(HANDLER, |a| {
        a.setc(al)?;
        a.movzx(eax, al)?;
        a.log_eax()?;
        a.sysretq()
    });
    rig.load(OTHER, |a| {
        a.log(5)?;
        a.sysretq()
    });
    assert_eq!(rig.run().log, [0, 5, 0, 1]);
}

/// On Intel's processors SYSRET itself refuses to go where nothing can be.
fn sysret_target(engine: &dyn Engine) {
    // GenuineIntel, by its first letters.
    if cpuid(engine, 0, 0)[1] != u32::from_le_bytes(*b"Genu") {
        skip("SYSRET as other vendors have it");
    }
    let mut rig = Rig::with(engine, |a| {
        set_up_syscall(a, 0)?;
        for target in [1u64 << 47, !0 << 47 >> 1] {
            a.mov(rcx, target)?;
            a.mov(r11, rflags::FIXED)?;
            a.fault(iced_x86::code_asm::CodeAssembler::sysretq)?;
        }
        a.mov(ebx, cs)?;
        a.mov(esi, ss)?;
        log_all(a, &[ebx, esi])
    });
    let record = rig.run();
    assert_eq!(record.faults(), [GP, GP]);
    assert_eq!(record.log, [0x10, 0x18]);
}

/// Without EFER.SCE there is no SYSCALL; and SYSRET is the kernel's.
fn syscall_disabled(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.user(|a| a.fault(iced_x86::code_asm::CodeAssembler::sysretq))?;
        a.read_msr(msr::EFER)?;
        a.and(eax, !(x86::efer::SCE as u32))?;
        a.wrmsr()?;
        a.user(|a| a.fault(iced_x86::code_asm::CodeAssembler::syscall))?;
        a.fault(iced_x86::code_asm::CodeAssembler::sysretq)
    });
    let ud = Fault::new(Vector::UD);
    assert_eq!(rig.run().faults(), [GP, ud, ud]);
}

/// Down by IRETQ, up by INT on the stack of the TSS, and down again.
fn iretq_and_int(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.user_with(rflags::CF, |a| {
            a.mark()?;
            a.int(0x40)?;
            a.mov(ebx, ss)?;
            a.mov(rsi, rsp)?;
            a.setc(cl)?;
            a.movzx(ecx, cl)
        })?;
        log_all(a, &[ebx, esi, ecx])
    });
    let record = rig.run();
    assert_eq!(record.log, [IRQ | 0x40, 0x2b, USER_STACK as u32, 1]);
    let frame = record.frames[0];
    assert_eq!((frame.rip - frame.mark, frame.cs, frame.ss), (2, 0x33, 0x2b));
    assert_eq!((frame.rsp, frame.at), (USER_STACK, KERNEL_STACK - 40));
    assert_eq!(frame.rflags & 3, 3);
}

/// What IRETQ loads: SS, RFLAGS, CS, RIP.
fn push_frame(a: &mut CodeAssembler, stack: u16, flags: u64, code: u16, target: u64) -> Asm {
    a.mov(rax, rsp)?;
    a.push(i32::from(stack))?;
    a.push(rax)?;
    a.push((flags | rflags::FIXED) as i32)?;
    a.push(i32::from(code))?;
    a.mov(rax, target)?;
    a.push(rax)
}

/// Nowhere, no code, no stack, the kernel's stack, a nested task, up; and what is allowed: no stack in the kernel.
fn iret_refused(engine: &dyn Engine) {
    use selector::{KERNEL_CODE, KERNEL_DATA, USER_CODE, USER_DATA};
    let iretq = CodeAssembler::iretq;
    let mut rig = Rig::with(engine, |a| {
        for (stack, code, target) in [
            (KERNEL_DATA, KERNEL_CODE, 1 << 47),
            (USER_DATA, 0, HANDLER),
            (0, USER_CODE, HANDLER),
            (KERNEL_DATA, USER_CODE, HANDLER),
        ] {
            push_frame(a, stack, 0, code, target)?;
            a.fault(iretq)?;
        }
        a.set_flags(rflags::NT as u32)?;
        push_frame(a, KERNEL_DATA, 0, KERNEL_CODE, HANDLER)?;
        a.fault(iretq)?;
        a.push(rflags::FIXED as i32)?;
        a.popfq()?;
        a.user(|a| {
            push_frame(a, KERNEL_DATA, 0, KERNEL_CODE, HANDLER)?;
            a.fault(iretq)
        })?;
        push_frame(a, 0, rflags::CF, KERNEL_CODE, HANDLER)?;
        a.iretq()
    });
    rig.load_payload(HANDLER, |a| {
        a.setc(bl)?;
        a.movzx(ebx, bl)?;
        a.mov(esi, ss)?;
        log_all(a, &[ebx, esi])
    });
    let record = rig.run();
    let refused = |selector: u16| Fault::with_code(Vector::GP, selector.into());
    let faults = [GP, GP, GP, refused(KERNEL_DATA), GP, refused(KERNEL_CODE)];
    assert_eq!(record.faults(), faults);
    assert_eq!(record.log, [1, 0]);
}

fn interrupt_stack(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.enable_apic()?;
        a.write_msr(apic::SELF_IPI, 0x40)?;
        a.user_with(rflags::IF, |a| {
            a.nop()?;
            a.mov(ebx, 5)
        })?;
        log_all(a, &[ebx])
    });
    let record = rig.run();
    assert_eq!(record.log, [IRQ | 0x40, 5]);
    let frame = record.frames[0];
    assert_eq!((frame.cs, frame.ss, frame.rsp), (0x33, 0x2b, USER_STACK));
    assert_eq!((frame.at, frame.rflags & 0x200), (KERNEL_STACK - 40, 0x200));
}

fn privileged(engine: &dyn Engine) {
    type Body = fn(&mut CodeAssembler) -> Asm;
    let bodies: [Body; 18] = [
        |a| a.hlt(),
        |a| a.cli(),
        |a| a.sti(),
        |a| a.rdmsr(),
        |a| a.wrmsr(),
        |a| a.mov(cr0, rax),
        |a| a.mov(rax, cr0),
        |a| a.mov(rax, cr3),
        |a| a.mov(rax, cr8),
        |a| a.mov(dr0, rax),
        |a| a.lgdt(ptr(DATA)),
        |a| a.lidt(ptr(DATA)),
        |a| a.lldt(ax),
        |a| a.ltr(ax),
        |a| a.invlpg(ptr(DATA)),
        |a| a.wbinvd(),
        |a| a.clts(),
        |a| a.swapgs(),
    ];
    let mut rig = Rig::with(engine, |a| {
        a.user(|a| {
            a.mov(ecx, msr::EFER)?;
            bodies.into_iter().try_for_each(|body| a.fault(body))
        })
    });
    assert_eq!(rig.run().faults(), [GP; 18]);
}

fn ports(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.user(|a| {
            a.mov(edx, 0x70)?;
            a.fault(|a| a.out(dx, al))?;
            a.fault(|a| a.in_(eax, dx))?;
            a.fault(|a| a.out(0x80, al))?;
            a.mov(esi, DATA as u32)?;
            a.mov(edi, DATA as u32)?;
            a.mov(ecx, 1)?;
            a.fault(|a| a.rep().outsb())?;
            a.fault(iced_x86::code_asm::CodeAssembler::insb)
        })
    });
    let record = rig.run();
    assert_eq!(record.faults(), [GP; 5]);
    assert_eq!(record.exits, []);
}

/// The TSS opens single ports; all that an access covers must be open.
fn port_map(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.user(|a| {
            a.mov(edx, 0x70)?;
            a.out(dx, al)?;
            a.out(dx, ax)?;
            a.fault(|a| a.out(dx, eax))?;
            a.mov(edx, 0x72)?;
            a.fault(|a| a.out(dx, al))?;
            // Past the end of the map.
            a.mov(edx, 0x1000)?;
            a.fault(|a| a.out(dx, al))
        })
    });
    rig.write(TSS + 0x68, &[0xff; 32]);
    rig.write(TSS + 0x68 + 0x70 / 8, &[0b1111_1100]);
    let mut state = Rig::state(0, rig.vcpus[0].state().expect("state"));
    state.tr.limit = 0x68 + 31;
    rig.vcpus[0].set_state(&state).expect("set state");
    let record = rig.run();
    assert_eq!(record.faults(), [GP; 3]);
    let sizes: Vec<_> = record
        .exits
        .iter()
        .map(|exit| matches!(exit, Exit::PortWrite { port: 0x70, .. }))
        .collect();
    assert_eq!(sizes, [true, true]);
}

/// With IOPL 3 user mode may use ports and IF.
fn io_privilege(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.user_with(rflags::IOPL, |a| {
            a.out(0x70, al)?;
            a.sti()?;
            a.pushfq()?;
            a.pop(rbx)?;
            a.cli()?;
            a.fault(iced_x86::code_asm::CodeAssembler::hlt)
        })?;
        a.and(ebx, 0x3200)?;
        log_all(a, &[ebx])
    });
    let record = rig.run();
    assert_eq!(record.faults(), [GP]);
    assert_eq!(record.log, [0x3200]);
    assert_eq!(record.exits.len(), 1);
}

/// POPFQ in user mode leaves IF and IOPL alone, without a fault.
fn popf(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.user_with(rflags::IF, |a| {
            a.push(0x3001)?;
            a.popfq()?;
            a.pushfq()?;
            a.pop(rbx)
        })?;
        a.and(ebx, 0x3201)?;
        log_all(a, &[ebx])
    });
    assert_eq!(rig.run().log, [0x201]);
}

fn swapgs(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.write_msr(msr::GS_BASE, window(5))?;
        a.write_msr(msr::KERNEL_GS_BASE, window(6))?;
        for _ in 0..2 {
            a.mov(ebx, dword_ptr(0).gs())?;
            log_all(a, &[ebx])?;
            a.swapgs()?;
        }
        a.swapgs()?;
        a.read_msr(msr::KERNEL_GS_BASE)?;
        a.log_eax()
    });
    rig.set_word(window(5), 5);
    rig.set_word(window(6), 6);
    assert_eq!(rig.run().log, [5, 6, window(5) as u32]);
}

fn require_fsgsbase(engine: &dyn Engine) {
    if cpuid(engine, 7, 0)[1] & 1 == 0 {
        skip("no FSGSBASE");
    }
}

fn fsgsbase(engine: &dyn Engine) {
    require_fsgsbase(engine);
    let mut rig = Rig::with(engine, |a| {
        a.set_cr4(cr4::FSGSBASE)?;
        a.user(|a| {
            a.mov(rax, 0x1234_5678_9abcu64)?;
            a.wrfsbase(rax)?;
            a.mov(eax, window(5) as u32)?;
            a.wrgsbase(rax)?;
            a.rdfsbase(rbx)?;
            a.rdfsbase(esi)?;
            a.mov(edi, dword_ptr(0).gs())?;
            a.mov(rax, 1u64 << 47)?;
            a.fault(|a| a.wrgsbase(rax))?;
            a.mov(rax, u64::MAX)?;
            a.wrfsbase(eax)?;
            a.rdfsbase(rcx)
        })?;
        a.mov(rbp, rcx)?;
        a.mov(rax, rbx)?;
        a.log_rax()?;
        log_all(a, &[esi, edi])?;
        a.mov(rax, rbp)?;
        a.log_rax()?;
        a.read_msr(msr::GS_BASE)?;
        a.log_eax()
    });
    rig.set_word(window(5), 5);
    let record = rig.run();
    assert_eq!(record.faults(), [GP]);
    let expected = [0x5678_9abc, 0x1234, 0x5678_9abc, 5, u32::MAX, 0, window(5) as u32];
    assert_eq!(record.log, expected);
}

fn fsgsbase_disabled(engine: &dyn Engine) {
    require_fsgsbase(engine);
    let mut rig = Rig::with(engine, |a| {
        a.fault(|a| a.rdfsbase(rax))?;
        a.fault(|a| a.wrgsbase(rax))
    });
    assert_eq!(rig.run().faults(), [Fault::new(Vector::UD); 2]);
}

/// CR4.TSD keeps the time-stamp counter from user mode.
fn time_stamp(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.user(iced_x86::code_asm::CodeAssembler::rdtsc)?;
        a.set_cr4(cr4::TSD)?;
        a.rdtsc()?;
        a.user(|a| a.fault(iced_x86::code_asm::CodeAssembler::rdtsc))
    });
    assert_eq!(rig.run().faults(), [GP]);
}
