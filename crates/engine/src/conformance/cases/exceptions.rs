//! Exceptions: vector, error code, the instruction they name.

use super::prelude::*;

cases!(
    "exceptions": divide, undefined, general_protection, control_registers, msrs, stack_segment,
    breakpoint, software_interrupt, gates, user_gates, not_available, simd, x87, alignment_check,
    aligned_moves, too_long, stack_frame, ist, undefined_vector_instructions, nested,
);

const GP: Fault = Fault::new(Vector::GP);
const UD: Fault = Fault::new(Vector::UD);

fn divide(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.xor(ecx, ecx)?;
        a.fault(|a| a.div(ecx))?;
        a.mov(ecx, 2)?;
        a.mov(edx, 2)?;
        a.fault(|a| a.div(ecx))?;
        a.mov(eax, 0x8000_0000u32)?;
        a.cdq()?;
        a.mov(ecx, u32::MAX)?;
        a.fault(|a| a.idiv(ecx))?;
        a.mov(eax, 0x100)?;
        a.mov(cl, 1)?;
        a.fault(|a| a.div(cl))?;
        a.log_eax()
    });
    let record = rig.run();
    assert_eq!(record.faults(), [Fault::new(Vector::DE); 4]);
    assert_eq!(record.log, [0x100]);
}

fn undefined(engine: &dyn Engine) {
    let encodings: [&[u8]; 6] = [
        &[0x0f, 0x0b],       // ud2
        &[0xf0, 0x89, 0xc0], // lock mov
        &[0xf0, 0x01, 0xc0], // lock add with a register destination
        &[0x06],             // push es
        &[0x8e, 0xc8],       // mov cs, eax
        &[0xf0, 0x3b, 0x00], // lock cmp
    ];
    let mut rig = Rig::with(engine, |a| {
        for encoding in encodings {
            a.fault(|a| a.db(encoding))?;
        }
        Ok(())
    });
    assert_eq!(rig.run().faults(), [UD; 6]);
}

fn general_protection(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(rbx, 0x8000_0000_0000u64)?;
        a.fault(|a| a.mov(eax, dword_ptr(rbx)))?;
        a.fault(|a| a.mov(byte_ptr(rbx + 1), al))?;
        a.mov(rsi, rbx)?;
        a.fault(iced_x86::code_asm::CodeAssembler::lodsb)?;
        a.mov(rbx, u64::MAX << 47)?;
        a.fault(|a| a.mov(eax, dword_ptr(rbx - 1)))?;
        a.fault(|a| a.lgdt(ptr(DATA)))
    });
    rig.set_word(DATA, 0xffff);
    rig.set_word(DATA + 2, 1 << 63);
    assert_eq!(rig.run().faults(), [GP; 5]);
}

/// Bits that cannot be set, or not together.
fn control_registers(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(rbx, cr0)?;
        a.mov(rcx, cr4)?;
        for clear in [x86::cr0::PG, x86::cr0::PE] {
            a.mov(rax, rbx)?;
            a.and(eax, !clear as u32)?;
            a.fault(|a| a.mov(cr0, rax))?;
        }
        a.mov(rax, rbx)?;
        a.or(eax, x86::cr0::NW as u32)?;
        a.fault(|a| a.mov(cr0, rax))?;
        a.mov(rax, 1u64 << 32)?;
        a.or(rax, rbx)?;
        a.fault(|a| a.mov(cr0, rax))?;
        a.mov(rax, rcx)?;
        a.and(eax, !x86::cr4::PAE as u32)?;
        a.fault(|a| a.mov(cr4, rax))?;
        a.mov(rax, 1u64 << 63)?;
        a.or(rax, rcx)?;
        a.fault(|a| a.mov(cr4, rax))?;
        a.mov(eax, 16)?;
        a.fault(|a| a.mov(cr8, rax))?;
        a.mov(rax, 1u64 << 62 | PML4)?;
        a.fault(|a| a.mov(cr3, rax))?;
        a.mov(rax, cr0)?;
        a.sub(rax, rbx)?;
        a.log_eax()?;
        a.mov(rax, cr4)?;
        a.sub(rax, rcx)?;
        a.log_eax()
    });
    let record = rig.run();
    assert_eq!(record.faults(), [GP; 8]);
    assert_eq!(record.log, [0, 0]);
}

fn msrs(engine: &dyn Engine) {
    use x86::msr;
    let mut rig = Rig::with(engine, |a| {
        a.mov(ecx, 0xffff_fff0u32)?;
        a.fault(iced_x86::code_asm::CodeAssembler::rdmsr)?;
        a.fault(iced_x86::code_asm::CodeAssembler::wrmsr)?;
        // Values that are not canonical, or have reserved bits.
        for index in
            [msr::LSTAR, msr::FS_BASE, msr::GS_BASE, msr::KERNEL_GS_BASE, msr::SYSENTER_EIP]
        {
            a.mov(ecx, index)?;
            a.mov(edx, 0x8000)?;
            a.fault(iced_x86::code_asm::CodeAssembler::wrmsr)?;
        }
        a.read_msr(msr::EFER)?;
        a.or(edx, 0x8000_0000u32)?;
        a.fault(iced_x86::code_asm::CodeAssembler::wrmsr)?;
        a.mov(ecx, msr::PAT)?;
        a.mov(eax, 2)?;
        a.xor(edx, edx)?;
        a.fault(iced_x86::code_asm::CodeAssembler::wrmsr)
    });
    assert_eq!(rig.run().faults(), [GP; 9]);
}

/// Addresses by RSP and RBP that are not canonical; the gate has a stack of its own.
fn stack_segment(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(rbp, 0x8000_0000_0000u64)?;
        a.fault(|a| a.mov(rax, qword_ptr(rbp)))?;
        a.mov(rsp, rbp)?;
        a.fault(|a| a.mov(rax, qword_ptr(rsp)))?;
        a.fault(|a| a.pop(rax))?;
        a.add(rsp, 8)?;
        a.fault(|a| a.push(rax))?;
        a.mov(rsp, STACK)?;
        // DS by prefix changes nothing in 64-bit mode, as the base is RBP.
        a.fault(|a| a.mov(qword_ptr(rbp), rax))
    });
    rig.set_gate(12, Gate { ist: 1, ..Gate::stub(12) });
    assert_eq!(rig.run().faults(), [Fault::new(Vector::SS); 5]);
}

/// A trap: RIP is the instruction after.
fn breakpoint(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mark()?;
        a.int3()?;
        a.nop()?;
        a.int(3)?;
        a.log(1)
    });
    let record = rig.run();
    let trap = Fault::new(Vector::BP);
    assert_eq!(record.faults(), [trap.at(1), trap.at(4)]);
    assert_eq!(record.log, [1]);
}

fn software_interrupt(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mark()?;
        a.int(0x30)?;
        a.sti()?;
        a.nop()?;
        a.int(0x31)?;
        a.cli()?;
        a.pushfq()?;
        a.pop(rax)?;
        a.and(eax, 0x200)?;
        a.log_eax()
    });
    let record = rig.run();
    assert_eq!(record.log, [IRQ | 0x30, IRQ | 0x31, 0]);
    let flags: Vec<_> =
        record.frames.iter().map(|frame| (frame.rip - frame.mark, frame.rflags & 0x200)).collect();
    assert_eq!(flags, [(2, 0), (6, 0x200)]);
}

/// Gates that are not present or not there: the error code names the entry of the IDT (bit 1).
fn gates(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.fault(|a| a.int(0x40))?;
        a.sidt(ptr(DATA))?;
        a.mov(word_ptr(DATA), 0x2ff)?;
        a.lidt(ptr(DATA))?;
        a.fault(|a| a.int(0x30))?;
        a.int(0x2f)
    });
    rig.set_gate(0x40, Gate { present: false, ..Gate::stub(0x40) });
    let record = rig.run();
    let absent = Fault::with_code(Vector::NP, 0x40 * 8 + 2);
    let outside = Fault::with_code(Vector::GP, 0x30 * 8 + 2);
    assert_eq!(record.faults(), [absent, outside]);
    assert_eq!(record.log, [IRQ | 0x2f]);
}

/// INT n needs the gate's privilege; an exception does not.
fn user_gates(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.user(|a| {
            a.fault(|a| a.int(0x40))?;
            a.fault(|a| a.int(14))?;
            a.fault(iced_x86::code_asm::CodeAssembler::ud2)?;
            a.int(u32::from(crate::conformance::stubs::LEAVE))
        })
    });
    for vector in [0x40, 14, 6] {
        rig.set_gate(vector, Gate { dpl: 0, ..Gate::stub(vector) });
    }
    let refused = |vector: u32| Fault::with_code(Vector::GP, vector * 8 + 2);
    assert_eq!(rig.run().faults(), [refused(0x40), refused(14), UD]);
}

/// CR0.TS, CR0.EM, CR4.OSFXSR.
fn not_available(engine: &dyn Engine) {
    use x86::{cr0, cr4};
    let nm = Fault::new(Vector::NM);
    let mut rig = Rig::with(engine, |a| {
        a.set_cr0(cr0::TS)?;
        a.fault(|a| a.addps(xmm0, xmm1))?;
        a.fault(iced_x86::code_asm::CodeAssembler::fld1)?;
        a.fault(iced_x86::code_asm::CodeAssembler::wait)?;
        a.fault(|a| a.paddb(mm0, mm1))?;
        // Not SSE: no XMM register.
        a.sfence()?;
        a.clts()?;
        a.addps(xmm0, xmm1)?;
        a.clear_cr0(cr0::MP)?;
        a.set_cr0(cr0::TS)?;
        a.wait()?;
        a.clts()?;
        a.set_cr0(cr0::EM)?;
        a.fault(|a| a.addps(xmm0, xmm1))?;
        a.fault(iced_x86::code_asm::CodeAssembler::fld1)?;
        a.clear_cr0(cr0::EM)?;
        a.set_cr0(cr0::MP)?;
        a.clear_cr4(cr4::OSFXSR)?;
        a.fault(|a| a.addps(xmm0, xmm1))
    });
    assert_eq!(rig.run().faults(), [nm, nm, nm, nm, UD, nm, UD]);
}

/// #XM, or #UD without CR4.OSXMMEXCPT; the flag in MXCSR shows which.
fn simd(engine: &dyn Engine) {
    let divide_unmasked = 0x1f80 & !0x200u32;
    let mut rig = Rig::with(engine, |a| {
        a.xorps(xmm1, xmm1)?;
        a.movaps(xmm0, xmmword_ptr(DATA))?;
        a.mov(dword_ptr(DATA + 16), divide_unmasked)?;
        a.ldmxcsr(dword_ptr(DATA + 16))?;
        a.fault(|a| a.divps(xmm0, xmm1))?;
        a.stmxcsr(dword_ptr(DATA + 20))?;
        a.mov(eax, dword_ptr(DATA + 20))?;
        a.log_eax()?;
        a.movd(eax, xmm0)?;
        a.log_eax()?;
        a.clear_cr4(x86::cr4::OSXMMEXCPT)?;
        a.fault(|a| a.divps(xmm0, xmm1))?;
        a.mov(dword_ptr(DATA + 16), 0x1f80 | 1 << 16)?;
        a.fault(|a| a.ldmxcsr(dword_ptr(DATA + 16)))
    });
    let one = u64::from(1f32.to_bits());
    rig.set_word(DATA, one << 32 | one);
    rig.set_word(DATA + 8, one << 32 | one);
    let record = rig.run();
    assert_eq!(record.faults(), [Fault::new(Vector::XM), UD, GP]);
    assert_eq!(record.log, [divide_unmasked | 4, one as u32]);
}

/// An x87 exception is reported by the next waiting instruction.
fn x87(engine: &dyn Engine) {
    let mf = Fault::new(Vector::MF);
    let mut rig = Rig::with(engine, |a| {
        a.fninit()?;
        a.mov(dword_ptr(DATA), 0x037b)?;
        a.fldcw(word_ptr(DATA))?;
        a.fld1()?;
        a.fldz()?;
        a.fdivp(st1, st0)?;
        // These do not wait.
        a.fnstsw(ax)?;
        a.movzx(eax, ax)?;
        a.and(eax, 0x80bf)?;
        a.log_eax()?;
        a.fault(iced_x86::code_asm::CodeAssembler::wait)?;
        a.fault(iced_x86::code_asm::CodeAssembler::fld1)?;
        a.fnclex()?;
        a.wait()?;
        a.fld1()
    });
    let record = rig.run();
    assert_eq!(record.faults(), [mf; 2]);
    // Error summary and busy, zero divide.
    assert_eq!(record.log, [0x8084]);
}

/// Only with CR0.AM and EFLAGS.AC, and only in user mode.
fn alignment_check(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.set_cr0(x86::cr0::AM)?;
        a.set_flags(x86::rflags::AC as u32)?;
        a.mov(eax, dword_ptr(DATA + 1))?;
        a.user_with(x86::rflags::AC, |a| {
            a.mov(eax, dword_ptr(DATA + 4))?;
            a.mov(al, byte_ptr(DATA + 1))?;
            a.fault(|a| a.mov(eax, dword_ptr(DATA + 1)))?;
            a.fault(|a| a.mov(word_ptr(DATA + 3), ax))?;
            a.fault(|a| a.mov(rax, qword_ptr(DATA + 4)))
        })?;
        a.user(|a| a.mov(eax, dword_ptr(DATA + 1)))?;
        a.clear_cr0(x86::cr0::AM)?;
        a.user_with(x86::rflags::AC, |a| a.mov(eax, dword_ptr(DATA + 1)))
    });
    assert_eq!(rig.run().faults(), [Fault::new(Vector::AC); 3]);
}

fn aligned_moves(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.fault(|a| a.movaps(xmm0, xmmword_ptr(DATA + 8)))?;
        a.fault(|a| a.movdqa(xmmword_ptr(DATA + 1), xmm0))?;
        a.fault(|a| a.paddb(xmm0, xmmword_ptr(DATA + 4)))?;
        a.fault(|a| a.fxsave(ptr(DATA + 8)))?;
        a.movups(xmm0, xmmword_ptr(DATA + 1))?;
        a.movaps(xmm0, xmmword_ptr(DATA + 16))
    });
    assert_eq!(rig.run().faults(), [GP; 4]);
}

/// Fifteen bytes are the most.
fn too_long(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.db(&[[0x66; 14].as_slice(), &[0x90]].concat())?;
        a.fault(|a| a.db(&[[0x66; 15].as_slice(), &[0x90]].concat()))
    });
    assert_eq!(rig.run().faults(), [GP]);
}

/// RSP is aligned to 16 before the frame is pushed, and the old one is in it.
fn stack_frame(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        for offset in [0, 8, 3] {
            a.mov(rsp, STACK - offset)?;
            a.fault(iced_x86::code_asm::CodeAssembler::ud2)?;
            a.mov(rsp, STACK - offset)?;
            a.mov(eax, 0x1000_0000)?;
            a.fault(|a| a.mov(r8b, byte_ptr(rax + rax * 8 - 0x1000_0000)))?;
        }
        Ok(())
    });
    rig.set_word(DIRECTORY + 0x2000, 0);
    let frames = rig.run().frames;
    for (pair, offset) in frames.chunks(2).zip([0, 8, 3]) {
        let top = (STACK - offset) & !15;
        assert_eq!((pair[0].at, pair[0].rsp), (top - 40, STACK - offset));
        assert_eq!((pair[1].vector, pair[1].at, pair[1].rsp), (14, top - 40, STACK - offset));
        assert_eq!((pair[0].ss, pair[0].cs), (0x18, 0x10));
        // RF is set in the image of a fault.
        assert_eq!(pair[0].rflags & 0x1_0002, 0x1_0002);
    }
}

/// A gate with a stack of its own uses it whatever the privilege.
fn ist(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.fault(iced_x86::code_asm::CodeAssembler::ud2)?;
        a.user(|a| a.fault(iced_x86::code_asm::CodeAssembler::ud2))
    });
    rig.set_gate(6, Gate { ist: 1, ..Gate::stub(6) });
    let frames = rig.run().frames;
    let seen: Vec<_> = frames.iter().map(|frame| (frame.at, frame.rsp, frame.ss)).collect();
    assert_eq!(seen, [(IST1 - 40, STACK, 0x18), (IST1 - 40, USER_STACK, 0x2b)]);
}

/// AVX without CR4.OSXSAVE or without its bit in XCR0.
fn undefined_vector_instructions(engine: &dyn Engine) {
    if cpuid(engine, 1, 0)[2] & 1 << 28 == 0 {
        skip("no AVX");
    }
    let mut rig = Rig::with(engine, |a| {
        a.fault(|a| a.vaddps(ymm0, ymm1, ymm2))?;
        a.set_cr4(x86::cr4::OSXSAVE)?;
        a.xor(ecx, ecx)?;
        a.xor(edx, edx)?;
        a.mov(eax, 3)?;
        a.xsetbv()?;
        a.fault(|a| a.vaddps(ymm0, ymm1, ymm2))?;
        a.mov(eax, 7)?;
        a.xsetbv()?;
        a.vaddps(ymm0, ymm1, ymm2)?;
        // AVX without SSE, and a reserved bit.
        for value in [5u32, 6, 0x8000_0007] {
            a.mov(eax, value)?;
            a.fault(iced_x86::code_asm::CodeAssembler::xsetbv)?;
        }
        a.set_cr0(x86::cr0::TS)?;
        a.fault(|a| a.vaddps(ymm0, ymm1, ymm2))
    });
    let nm = Fault::new(Vector::NM);
    assert_eq!(rig.run().faults(), [UD, UD, GP, GP, GP, nm]);
}

/// An exception in a handler is delivered like any other.
fn nested(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.int(0x40)?;
        a.log(3)
    });
    rig.load(HANDLER, |a| {
        a.log(1)?;
        a.fault(iced_x86::code_asm::CodeAssembler::ud2)?;
        a.fault(|a| a.mov(al, byte_ptr(window(5))))?;
        a.log(2)?;
        a.iretq()
    });
    rig.set_gate(0x40, Gate::to(HANDLER));
    rig.map_window(5, 0, 0);
    let record = rig.run();
    assert_eq!(record.log, [1, 2, 3]);
    assert_eq!(record.faults(), [UD, Fault::page(window(5), 0)]);
}
