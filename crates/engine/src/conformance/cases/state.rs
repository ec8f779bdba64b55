//! State out and in: what a snapshot needs.

use x86::{DescriptorTable, Gpr, Segment, VcpuState, cr4, msr, rflags};

use super::moves::{WAIT, image, request, state_at_wait, write_wait};
use super::prelude::*;

cases!(
    "state": registers_out, registers_in, round_trip, vectors_round_trip, shadow_kept,
);

/// Where an XSAVE image says which components it has.
const XSTATE_BV: usize = 512;

/// What a payload puts into registers is in the state.
fn registers_out(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        let registers = [rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
        a.write_msr(msr::FS_BASE, 0x7777_0000_1234)?;
        a.write_msr(msr::KERNEL_GS_BASE, 0x5555)?;
        a.write_msr(msr::STAR, 0x1234_5678_9abc_def0)?;
        a.mov(eax, 3)?;
        a.mov(cr8, rax)?;
        a.mov(rax, DATA)?;
        a.mov(cr2, rax)?;
        for (index, register) in registers.into_iter().enumerate() {
            a.mov(register, 0x1111_1111_1111_1111 * (index as u64 + 1))?;
        }
        a.mov(rsp, STACK - 64)?;
        a.xor(eax, eax)?;
        a.std()?;
        a.stc()?;
        a.jmp(WAIT)
    });
    write_wait(&rig);
    let state = state_at_wait(&mut rig);
    let mut expected: Vec<u64> = (1..=14).map(|index| 0x1111_1111_1111_1111 * index).collect();
    expected.insert(0, 0);
    expected.insert(4, STACK - 64);
    assert_eq!(state.gpr.to_vec(), expected);
    let flags = rflags::CF | rflags::ZF | rflags::PF | rflags::DF | rflags::FIXED;
    assert_eq!(state.rflags & !rflags::AF, flags);
    assert_eq!((state.cr2, state.cr3, state.cr8), (DATA, PML4, 3));
    assert_eq!(state.fs.base, 0x7777_0000_1234);
    assert_eq!(state.cs.selector, selector::KERNEL_CODE);
    assert_eq!(find(&state, msr::KERNEL_GS_BASE), Some(0x5555));
    assert_eq!(find(&state, msr::STAR), Some(0x1234_5678_9abc_def0));
    assert!(!state.halted && !state.waiting_for_sipi && state.event.is_none());
}

fn find(state: &VcpuState, index: u32) -> Option<u64> {
    state.msrs.iter().find(|entry| entry.index == index).map(|entry| entry.value)
}

/// Replaces the value of an MSR that the state has.
fn put(state: &mut VcpuState, index: u32, value: u64) {
    let found = state.msrs.iter_mut().find(|entry| entry.index == index);
    found.unwrap_or_else(|| panic!("no MSR {index:#x} in the state")).value = value;
}

/// MSRs that a kernel sets, with values that they can have.
const MSRS: [(u32, u64); 9] = [
    (msr::STAR, 0x0023_0010_0000_0000),
    (msr::LSTAR, 0xffff_8000_0000_1000),
    (msr::CSTAR, 0xffff_8000_0000_2000),
    (msr::SFMASK, 0x4_7700),
    (msr::KERNEL_GS_BASE, 0xffff_8888_0000_0000),
    (msr::SYSENTER_CS, 0x10),
    // AMD's have 32 bits; see the topic of MSRs.
    (msr::SYSENTER_ESP, 0x8000_3000),
    (msr::SYSENTER_EIP, 0x8000_4000),
    (msr::TSC_AUX, 0x1001),
];

/// What is put into the state, the payload finds.
fn registers_in(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        for register in [rbx, rbp, r8, r15] {
            a.mov(rax, register)?;
            a.log_rax()?;
        }
        for (index, _) in MSRS {
            a.read_msr(index)?;
            a.log_rax()?;
        }
        a.mov(rax, cr2)?;
        a.log_rax()?;
        a.mov(rax, cr8)?;
        a.log_eax()?;
        a.mov(rax, dr2)?;
        a.log_rax()?;
        a.mov(eax, dword_ptr(0).gs())?;
        a.log_eax()?;
        a.str(eax)?;
        a.log_eax()?;
        a.sgdt(ptr(DATA))?;
        a.mov(rax, qword_ptr(DATA + 2))?;
        a.log_rax()
    });
    let mut state = Rig::state(0, rig.vcpus[0].state().expect("state"));
    let values = [3u64, 0x1234_5678_9abc_def0, u64::MAX, 1 << 63];
    for (register, value) in [Gpr::Rbx, Gpr::Rbp, Gpr::R8, Gpr::R15].into_iter().zip(values) {
        state.gpr[register as usize] = value;
    }
    MSRS.into_iter().for_each(|(index, value)| put(&mut state, index, value));
    state.cr2 = 0xffff_9999_0000_1111;
    state.cr8 = 9;
    state.debug[2] = 0x1_0000_2222;
    state.gs.base = window(5);
    rig.set_word(window(5), 55);
    rig.vcpus[0].set_state(&state).expect("set state");
    let msrs = MSRS.map(|(_, value)| value);
    let mut expected: Vec<u32> = Vec::new();
    for value in values.into_iter().chain(msrs).chain([state.cr2]) {
        expected.extend([value as u32, (value >> 32) as u32]);
    }
    expected.extend([9, 0x2222, 1, 55, u32::from(selector::TSS)]);
    expected.extend([state.gdtr.base as u32, 0]);
    assert_eq!(rig.run().log, expected);
}

/// Every field comes back as it was set.
fn round_trip(engine: &dyn Engine) {
    let rig = &mut Rig::new(engine, 1);
    let mut state = Rig::state(0, rig.vcpus[0].state().expect("state"));
    for (index, register) in state.gpr.iter_mut().enumerate() {
        *register = 0x0101_0101_0101_0101 * (index as u64 + 1);
    }
    state.rip = 0xffff_8000_1234_5678;
    state.rflags |= rflags::IF | rflags::CF | rflags::AC | rflags::ID;
    state.cs = Segment { selector: 0x33, attributes: 0xa0fb, ..Segment::CODE64 };
    state.ss = Segment { selector: 0x2b, attributes: 0xc0f3, ..Segment::DATA };
    state.ds = Segment { selector: 0x2b, attributes: 0xc0f3, ..Segment::DATA };
    state.fs = Segment { selector: 0x18, base: 0x7fff_1234_5678, ..Segment::DATA };
    state.gs = Segment { selector: 0x18, base: 0xffff_8000_0000_0100, ..Segment::DATA };
    state.ldtr = Segment { selector: 0x50, base: 0x1_2340, limit: 0x77, attributes: 0x82 };
    state.tr =
        Segment { selector: 0x40, base: 0xffff_8000_0000_2000, limit: 0x206f, attributes: 0x8b };
    state.gdtr = DescriptorTable { base: 0xffff_8000_0000_3000, limit: 0x7f };
    state.idtr = DescriptorTable { base: 0xffff_8000_0000_4000, limit: 0xfff };
    state.cr2 = 0x1234;
    state.cr3 = 0x5000;
    state.cr4 |= cr4::TSD;
    if cpuid(engine, 1, 0)[2] & 1 << 26 != 0 {
        state.cr4 |= cr4::OSXSAVE;
    }
    state.cr8 = 7;
    state.debug = [1, 2, 3, 4, 0xffff_4ff1, 0x400];
    state.interrupt_shadow = true;
    state.nmi_blocked = true;
    MSRS.into_iter().for_each(|(index, value)| put(&mut state, index, value));
    rig.vcpus[0].set_state(&state).expect("set state");
    let mut after = rig.vcpus[0].state().expect("state");
    // The APIC has a case of its own, and the TSC runs on.
    after.apic = state.apic.clone();
    // A component in its initial state may be in the image or not (SDM volume 1, 13.6).
    for state in [&mut after, &mut state] {
        state.xstate[XSTATE_BV] = 0;
    }
    for state in [&mut after, &mut state] {
        // Whether an initial component is noted as such is the processor's choice (SDM volume 1, 13.6).
        state.xstate[512] = 0;
        state.msrs.retain(|entry| !matches!(entry.index, msr::TSC | msr::TSC_DEADLINE));
    }
    assert_eq!(after, state);
}

/// x87, SSE and AVX state in, seen by the payload, and out.
fn vectors_round_trip(engine: &dyn Engine) {
    let avx = cpuid(engine, 1, 0)[2] & 1 << 28 != 0;
    let mut rig = Rig::with(engine, |a| {
        a.movups(xmmword_ptr(DATA), xmm9)?;
        if avx {
            a.vmovups(ymmword_ptr(DATA + 64), ymm15)?;
        }
        a.fst(qword_ptr(DATA + 32))?;
        a.stmxcsr(dword_ptr(DATA + 40))?;
        a.fnstcw(word_ptr(DATA + 44))?;
        a.fnstsw(word_ptr(DATA + 46))?;
        a.jmp(WAIT)
    });
    write_wait(&rig);
    let mut state = Rig::state(0, rig.vcpus[0].state().expect("state"));
    state.xstate = image();
    if avx {
        state.cr4 |= cr4::OSXSAVE;
        state.xcr0 = 7;
    } else {
        state.xstate[512] = 3;
    }
    rig.vcpus[0].set_state(&state).expect("set state");
    let after = state_at_wait(&mut rig);
    assert_eq!(rig.bytes(DATA, 16), state.xstate[160 + 9 * 16..160 + 10 * 16]);
    if avx {
        assert_eq!(rig.bytes(DATA + 64, 16), state.xstate[160 + 15 * 16..160 + 16 * 16]);
        assert_eq!(rig.bytes(DATA + 80, 16), state.xstate[576 + 15 * 16..576 + 16 * 16]);
        assert_eq!(after.xstate[576..832], state.xstate[576..832]);
    }
    assert_eq!(f64::from_bits(rig.word(DATA + 32)), 1.25);
    assert_eq!(rig.word(DATA + 40), 0x3000_027f_0000_3fa0);
    // Pointers to the last x87 instruction (bytes 6 to 23) are not of interest.
    assert_eq!(after.xstate[0..6], state.xstate[0..6]);
    assert_eq!(after.xstate[24..28], state.xstate[24..28]);
    assert_eq!(after.xstate[32..64], state.xstate[32..64]);
    assert_eq!(after.xstate[160..416], state.xstate[160..416]);
}

/// The shadow of STI is part of the state.
fn shadow_kept(engine: &dyn Engine) {
    for shadow in [true, false] {
        let mut rig = Rig::with(engine, |a| {
            a.mark()?;
            a.nop()?;
            a.nop()?;
            a.cli()
        });
        let mut state = Rig::state(0, rig.vcpus[0].state().expect("state"));
        state.apic.registers[0xf] = 0x1ff;
        request(&mut state, 0x40);
        state.rflags |= rflags::IF;
        state.interrupt_shadow = shadow;
        rig.vcpus[0].set_state(&state).expect("set state");
        let rip = rig.run().frames[0].rip;
        // With it, the first instruction (LEA of 7 bytes) runs before the interrupt.
        assert_eq!(rip - CODE, if shadow { 7 } else { 0 });
    }
}
