//! Segment registers in 64-bit mode: loads, their faults, bases, far transfers.

use super::prelude::*;

cases!(
    "segments": load_faults, null, accessed_bit, bases, system_registers, far_return, far_faults,
    compatibility_mode, user_loads,
);

/// Far return with an operand size of 64 bits, which the assembler lacks.
const RETFQ: &[u8] = &[0x48, 0xcb];

fn gp(selector: u16) -> Fault {
    Fault::with_code(Vector::GP, u32::from(selector))
}

fn load_faults(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        for selector in
            [selector::ABSENT, selector::OUTSIDE, selector::EXECUTE_ONLY, selector::TSS, 0x14]
        {
            a.mov(eax, u32::from(selector))?;
            a.fault(|a| a.mov(ds, eax))?;
        }
        // LDTR is null.
        // SS: not present is another vector; it must be writable, and of the current privilege.
        for selector in
            [selector::ABSENT, selector::READ_ONLY, selector::USER_DATA, selector::USER_DATA & !3]
        {
            a.mov(eax, u32::from(selector))?;
            a.fault(|a| a.mov(ss, eax))?;
        }
        a.mov(eax, u32::from(selector::READ_ONLY))?;
        a.mov(es, eax)?;
        a.mov(eax, es)?;
        a.log_eax()
    });
    let record = rig.run();
    let expected = [
        Fault::with_code(Vector::NP, u32::from(selector::ABSENT)),
        gp(selector::OUTSIDE),
        gp(selector::EXECUTE_ONLY),
        gp(selector::TSS),
        gp(0x14),
        Fault::with_code(Vector::SS, u32::from(selector::ABSENT)),
        gp(selector::READ_ONLY),
        gp(selector::USER_DATA & !3),
        gp(selector::USER_DATA & !3),
    ];
    assert_eq!(record.faults(), expected);
    assert_eq!(record.log, [u32::from(selector::READ_ONLY)]);
}

/// A null selector in DS, ES and (at privilege 0) SS is no obstacle in 64-bit mode.
fn null(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        a.xor(eax, eax)?;
        a.mov(ds, eax)?;
        a.mov(es, eax)?;
        a.mov(ss, eax)?;
        a.push(7)?;
        a.pop(rax)?;
        a.mov(qword_ptr(DATA), rax)?;
        a.mov(eax, dword_ptr(DATA))?;
        a.log_eax()
    })
    .run();
    assert_eq!((record.log, record.frames), (vec![7], vec![]));
}

/// The processor marks the descriptor as used.
fn accessed_bit(engine: &dyn Engine) {
    let at = descriptor(selector::UNUSED_DATA);
    let mut rig = Rig::with(engine, |a| {
        a.mov(eax, dword_ptr(at + 4))?;
        a.log_eax()?;
        a.mov(eax, u32::from(selector::UNUSED_DATA))?;
        a.mov(es, eax)?;
        a.mov(eax, dword_ptr(at + 4))?;
        a.log_eax()
    });
    assert_eq!(rig.run().log, [0x00cf_9200, 0x00cf_9300]);
}

/// Only FS and GS have bases; their MSRs hold 64 bits, a selector load clears them.
fn bases(engine: &dyn Engine) {
    use x86::msr;
    let mut rig = Rig::with(engine, |a| {
        a.write_msr(msr::FS_BASE, window(5))?;
        a.write_msr(msr::GS_BASE, window(6))?;
        a.mov(eax, dword_ptr(0).fs())?;
        a.log_eax()?;
        a.mov(eax, dword_ptr(4).gs())?;
        a.log_eax()?;
        // LEA takes no base.
        a.mov(ebx, 5)?;
        a.lea(rax, ptr(rbx).gs())?;
        a.log_eax()?;
        a.write_msr(msr::GS_BASE, 0xffff_8000_0000_0000)?;
        a.mov(rbx, window(5) + 0x8000_0000_0000)?;
        a.mov(eax, dword_ptr(rbx).gs())?;
        a.log_eax()?;
        a.mov(eax, u32::from(selector::KERNEL_DATA))?;
        a.mov(fs, eax)?;
        a.read_msr(msr::FS_BASE)?;
        a.log_rax()
    });
    rig.set_word(window(5), 55);
    rig.set_word(window(6), 66 << 32);
    assert_eq!(rig.run().log, [55, 66, 5, 55, 0, 0]);
}

/// LGDT, LIDT, LTR, LLDT and their stores.
fn system_registers(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.sgdt(ptr(DATA))?;
        a.sidt(ptr(DATA + 16))?;
        a.str(eax)?;
        a.log_eax()?;
        a.sldt(eax)?;
        a.log_eax()?;
        // A TSS that is in use cannot be loaded; one that is not becomes so.
        a.mov(eax, u32::from(selector::TSS1))?;
        a.fault(|a| a.ltr(ax))?;
        a.mov(byte_ptr(descriptor(selector::TSS1) + 5), 0x89u32)?;
        a.ltr(ax)?;
        a.movzx(eax, byte_ptr(descriptor(selector::TSS1) + 5))?;
        a.log_eax()?;
        a.str(eax)?;
        a.log_eax()?;
        a.mov(eax, u32::from(selector::KERNEL_DATA))?;
        a.fault(|a| a.lldt(ax))?;
        a.fault(|a| a.ltr(ax))?;
        a.xor(eax, eax)?;
        a.lldt(ax)?;
        a.fault(|a| a.ltr(ax))
    });
    let record = rig.run();
    let tss1 = selector::TSS1;
    assert_eq!(record.log, [u32::from(selector::TSS), 0, 0x8b, u32::from(tss1)]);
    let data = gp(selector::KERNEL_DATA);
    assert_eq!(record.faults(), [gp(tss1), data, data, gp(0)]);
    assert_eq!(rig.word(DATA) >> 16, 0x1000);
    assert_eq!(rig.word(DATA + 16) & 0xffff_ffff, 0x2000 << 16 | 0xfff);
}

/// RETFQ within privilege 0, and by it to user mode.
fn far_return(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        let (mut near, mut user, mut after) =
            (a.create_label(), a.create_label(), a.create_label());
        a.push(i32::from(selector::KERNEL_CODE))?;
        a.lea(rax, ptr(near))?;
        a.push(rax)?;
        a.db(RETFQ)?;
        a.set_label(&mut near)?;
        a.log(1)?;
        a.lea(r14, ptr(after))?;
        a.push(i32::from(selector::USER_DATA))?;
        a.push(USER_STACK as i32)?;
        a.push(i32::from(selector::USER_CODE))?;
        a.lea(rax, ptr(user))?;
        a.push(rax)?;
        a.db(RETFQ)?;
        a.set_label(&mut user)?;
        a.mov(ebx, cs)?;
        a.mov(rcx, rsp)?;
        a.int3()?;
        a.set_label(&mut after)?;
        a.mov(eax, ebx)?;
        a.log_eax()?;
        a.mov(eax, ecx)?;
        a.log_eax()
    });
    assert_eq!(rig.run().log, [1, u32::from(selector::USER_CODE), USER_STACK as u32]);
}

fn far_faults(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        for selector in [0, selector::KERNEL_DATA, selector::OUTSIDE, selector::USER_CODE & !3] {
            a.mov(rsp, STACK)?;
            a.push(i32::from(selector))?;
            a.push(HANDLER as i32)?;
            a.fault(|a| a.db(RETFQ))?;
        }
        // IRETQ checks the same.
        a.mov(rsp, STACK)?;
        a.push(0)?;
        a.push(STACK as i32)?;
        a.push(2)?;
        a.push(i32::from(selector::KERNEL_DATA))?;
        a.push(HANDLER as i32)?;
        a.fault(iced_x86::code_asm::CodeAssembler::iretq)?;
        a.mov(eax, esp)?;
        a.log_eax()
    });
    let record = rig.run();
    let data = gp(selector::KERNEL_DATA);
    assert_eq!(
        record.faults(),
        [gp(0), data, gp(selector::OUTSIDE), gp(selector::USER_CODE & !3), data]
    );
    assert_eq!(record.log, [STACK as u32 - 40]);
}

/// User code of 32 bits under the 64-bit kernel.
fn compatibility_mode(engine: &dyn Engine) {
    let entry = window(9);
    let mut rig = Rig::with(engine, |a| {
        let mut after = a.create_label();
        a.lea(r14, ptr(after))?;
        a.mov(rbx, 0x1234_5678_9abc_def0u64)?;
        a.push(i32::from(selector::USER_DATA))?;
        a.push(USER_STACK as i32)?;
        a.push(2)?;
        a.push(i32::from(selector::USER_CODE32))?;
        a.push(entry as i32)?;
        a.iretq()?;
        a.set_label(&mut after)?;
        a.log_rax()?;
        a.mov(eax, ecx)?;
        a.log_eax()?;
        a.mov(eax, esi)?;
        a.log_eax()
    });
    let code = assemble(32, entry, |a| {
        a.mov(eax, u32::MAX)?;
        // One byte here, a REX prefix in 64-bit mode.
        a.db(&[0x40])?;
        a.mov(ecx, esp)?;
        a.push(ebx)?;
        a.pop(esi)?;
        a.lea(eax, ptr(eax + 0x77))?;
        a.int3()
    });
    rig.write(entry, &code);
    let record = rig.run();
    assert_eq!(record.faults(), []);
    assert_eq!(record.log, [0x77, 0, USER_STACK as u32, 0x9abc_def0]);
}

/// User mode loads no segment of the kernel, and a null SS neither.
fn user_loads(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.user(|a| {
            a.mov(eax, u32::from(selector::KERNEL_DATA))?;
            a.fault(|a| a.mov(ds, eax))?;
            a.fault(|a| a.mov(ss, eax))?;
            a.xor(eax, eax)?;
            a.mov(ds, eax)?;
            a.fault(|a| a.mov(ss, eax))?;
            a.mov(eax, u32::from(selector::USER_DATA))?;
            a.mov(ss, eax)?;
            a.mov(es, eax)
        })
    });
    assert_eq!(rig.run().faults(), [gp(selector::KERNEL_DATA), gp(selector::KERNEL_DATA), gp(0)]);
}
