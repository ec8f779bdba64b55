//! A vCPU's state taken out of one machine and put into another, which may be of another engine.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use x86::model::{CpuModel, Shown, is_reset};
use x86::{ApicState, DescriptorTable, Event, Exception, Gpr, Msr, Segment, VcpuState};
use x86::{cr4, msr, rflags};

use super::prelude::*;
use crate::conformance::payload::apic as register;

moves!(
    "moves": computation, apic, timer, deadline, tsc, kvmclock, halted, waiting, events, nothing_is_lost,
    real_mode, io_apic, tscs_in_step, standstill,
);

/// Where a payload waits to be looked at.
pub(super) const WAIT: u64 = 0x1_3000;

pub(super) fn write_wait(rig: &Rig) {
    rig.load(WAIT, |a| {
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        a.jmp(here)
    });
}

/// Kicks until the vCPU stands at [`WAIT`], and answers its state.
pub(super) fn state_at_wait(rig: &mut Rig) -> VcpuState {
    for _ in 0..5000 {
        let vm = Arc::clone(&rig.board.vm);
        let kicker = thread::spawn(move || {
            thread::sleep(Duration::from_millis(1));
            vm.kick(0);
        });
        while rig.vcpus[0].run().expect("the engine runs") != Exit::Kicked {}
        kicker.join().expect("kicks");
        let state = rig.vcpus[0].state().expect("state");
        if state.rip == WAIT {
            return state;
        }
    }
    panic!("the payload does not arrive");
}

/// A machine with the processor that all engines can show.
fn source(engine: &dyn Engine, write: impl FnOnce(&mut CodeAssembler) -> Asm) -> Rig {
    let rig = Rig::showing(CpuModel::Common, engine, 1);
    rig.load_payload(CODE, write);
    write_wait(&rig);
    rig
}

/// A machine with the memory and the state of another.
fn moved(engine: &dyn Engine, rig: &Rig, state: &VcpuState) -> Rig {
    moved_showing(CpuModel::Common, engine, rig, state)
}

/// The same, with a choice of the processor.
pub(super) fn moved_showing(
    cpu: impl Into<Shown>,
    engine: &dyn Engine,
    rig: &Rig,
    state: &VcpuState,
) -> Rig {
    let mut other = Rig::showing(cpu, engine, 1);
    for gpa in (0..RAM).step_by(4096) {
        other.write(gpa, &rig.bytes(gpa, 4096));
    }
    other.vcpus[0].set_state(state).expect("set state");
    other
}

const FACTOR: u64 = 6_364_136_223_846_793_005;
const TERM: u64 = 1_442_695_040_888_963_407;

/// Stopped in the middle of a computation, it goes on in another machine to the same result.
fn computation(from: &dyn Engine, to: &dyn Engine) {
    const LIMIT: u64 = DATA + 0x100;
    let mut rig = source(from, |a| {
        let mut again = a.create_label();
        a.mov(r8, FACTOR)?;
        a.mov(r9, TERM)?;
        a.mov(ebx, 1)?;
        a.xor(ecx, ecx)?;
        a.set_label(&mut again)?;
        a.imul_2(rbx, r8)?;
        a.add(rbx, r9)?;
        // Through memory and a vector register as well.
        a.mov(qword_ptr(DATA), rbx)?;
        a.movq(xmm3, qword_ptr(DATA))?;
        a.movq(rbx, xmm3)?;
        a.inc(rcx)?;
        a.cmp(rcx, qword_ptr(LIMIT))?;
        a.jb(again)?;
        a.mov(rax, rbx)?;
        a.log_rax()
    });
    rig.set_word(LIMIT, u64::MAX);
    let vm = Arc::clone(&rig.vm);
    let kicker = thread::spawn(move || {
        thread::sleep(Duration::from_millis(5));
        vm.kick(0);
    });
    assert_eq!(rig.vcpus[0].run().expect("the engine runs"), Exit::Kicked);
    kicker.join().expect("kicks");
    let state = rig.vcpus[0].state().expect("state");
    let rounds = state.gpr[Gpr::Rcx as usize] + 1000;
    let mut other = moved(to, &rig, &state);
    drop(rig);
    other.set_word(LIMIT, rounds);
    let step = |value: u64| value.wrapping_mul(FACTOR).wrapping_add(TERM);
    let expected = (0..rounds).fold(1u64, |value, _| step(value));
    assert_eq!(other.run().log, [expected as u32, (expected >> 32) as u32]);
}

/// Requests, service and registers of the local APIC go along.
fn apic(from: &dyn Engine, to: &dyn Engine) {
    let mut rig = source(from, |a| {
        a.enable_apic()?;
        a.write_msr(register::LVT_TIMER, 1 << 16 | 0x77)?;
        a.write_msr(register::DIVIDE, 3)?;
        a.write_msr(register::SELF_IPI, 0x91)?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.log(99)
    });
    // In service, with another one requested.
    rig.load(HANDLER, |a| {
        a.write_msr(register::SELF_IPI, 0x41)?;
        a.jmp(WAIT)
    });
    rig.set_gate(0x91, Gate::to(HANDLER));
    let mut state = state_at_wait(&mut rig);
    state.rip = HANDLER + 0x100;
    let mut other = moved(to, &rig, &state);
    other.load_payload(HANDLER + 0x100, |a| {
        for register in [register::SVR, register::LVT_TIMER, register::DIVIDE, register::PPR] {
            a.read_msr(register)?;
            a.log_eax()?;
        }
        a.read_msr(register::ISR + 4)?;
        a.log_eax()?;
        a.read_msr(register::IRR + 2)?;
        a.log_eax()?;
        a.sti()?;
        a.nop()?;
        a.log(1)?;
        a.write_msr(register::EOI, 0)?;
        a.nop()?;
        a.log(2)
    });
    let expected = [0x1ff, 1 << 16 | 0x77, 3, 0x90, 1 << 17, 2, 1, IRQ | 0x41, 2];
    assert_eq!(other.run().log, expected);
}

/// An armed timer fires in the other machine.
fn timer(from: &dyn Engine, to: &dyn Engine) {
    let mut rig = source(from, |a| {
        a.enable_apic()?;
        a.write_msr(register::DIVIDE, 0xb)?;
        a.write_msr(register::LVT_TIMER, 0x40)?;
        // Far enough not to fire before it is moved, except on a host that stands still.
        a.write_msr(register::INITIAL_COUNT, 200_000_000)?;
        a.jmp(WAIT)
    });
    let mut state = state_at_wait(&mut rig);
    state.rip = HANDLER + 0x100;
    let mut other = moved(to, &rig, &state);
    other.load_payload(HANDLER + 0x100, |a| {
        a.sti()?;
        a.hlt()?;
        a.cli()?;
        a.log(1)
    });
    assert_eq!(other.run().log, [IRQ | 0x40, 1]);
}

/// An armed deadline is met in the other machine, by a TSC that goes on.
fn deadline(from: &dyn Engine, to: &dyn Engine) {
    if cpuid(from, 1, 0)[2] & 1 << 24 == 0 {
        skip("no TSC deadline");
    }
    let mut rig = source(from, |a| {
        a.enable_apic()?;
        a.write_msr(register::LVT_TIMER, 2 << 17 | 0x40)?;
        a.rdtsc()?;
        a.mov(dword_ptr(DATA), eax)?;
        a.mov(dword_ptr(DATA + 4), edx)?;
        // Far enough not to be met before it is moved, except on a host that stands still.
        a.add(eax, 4_000_000_000u32 as i32)?;
        a.adc(edx, 0)?;
        a.mov(ecx, msr::TSC_DEADLINE)?;
        a.wrmsr()?;
        a.jmp(WAIT)
    });
    let mut state = state_at_wait(&mut rig);
    state.rip = HANDLER + 0x100;
    assert_ne!(state.apic.tsc_deadline, 0);
    let mut other = moved(to, &rig, &state);
    let armed = rig.word(DATA);
    other.load_payload(HANDLER + 0x100, |a| {
        a.sti()?;
        a.hlt()?;
        a.cli()?;
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.mov(rbx, armed + 4_000_000_000)?;
        a.cmp(rax, rbx)?;
        a.setae(al)?;
        a.movzx(eax, al)?;
        a.log_eax()
    });
    assert_eq!(other.run().log, [IRQ | 0x40, 1]);
}

/// TSC and IA32_TSC_ADJUST are as they were, and the TSC goes on.
fn tsc(from: &dyn Engine, to: &dyn Engine) {
    const START: u64 = 0x1234_0000_0000;
    let mut rig = source(from, |a| {
        a.write_msr(msr::TSC, START)?;
        a.read_msr(msr::TSC_ADJUST)?;
        a.mov(qword_ptr(DATA), rax)?;
        a.jmp(WAIT)
    });
    let mut state = state_at_wait(&mut rig);
    state.rip = HANDLER;
    let mut other = moved(to, &rig, &state);
    other.load_payload(HANDLER, |a| {
        a.read_msr(msr::TSC_ADJUST)?;
        a.log_rax()?;
        a.read_msr(msr::TSC)?;
        a.log_rax()
    });
    let log = other.run().log;
    let adjust = rig.word(DATA);
    assert_eq!(log[..2], [adjust as u32, (adjust >> 32) as u32]);
    let saved = state.msrs.iter().find(|entry| entry.index == msr::TSC).expect("a TSC").value;
    let found = u64::from(log[3]) << 32 | u64::from(log[2]);
    // A minute or two, on a host that stands still.
    assert!((saved..START + (1 << 38)).contains(&found), "{found:#x} after {saved:#x}");
}

/// kvmclock goes on where it was, by the record that the guest finds after the move.
fn kvmclock(from: &dyn Engine, to: &dyn Engine) {
    const RECORD: u64 = DATA + 0x400;
    const HOURS: u64 = 100_000_000_000_000;
    if cpuid(from, 0x4000_0001, 0)[0] & 1 << 3 == 0 {
        skip("no kvmclock");
    }
    let mut rig = source(from, |a| {
        a.write_msr(msr::TSC, 0x7777_0000_0000)?;
        a.write_msr(msr::KVM_SYSTEM_TIME_NEW, RECORD | 1)?;
        a.jmp(WAIT)
    });
    rig.vm.set_clock_ns(HOURS).expect("set clock");
    let mut state = state_at_wait(&mut rig);
    state.rip = HANDLER;
    let before = rig.vm.clock_ns().expect("clock");
    assert!(before >= HOURS, "{before}");
    let mut other = Rig::showing(CpuModel::Common, to, 1);
    other.vm.set_clock_ns(before).expect("set clock");
    other.vcpus[0].set_state(&state).expect("set state");
    other.load_payload(HANDLER, |a| {
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.log_rax()
    });
    let mut last = before;
    let log = other.run().log;
    let told = told_ns(&other, RECORD, u64::from(log[0]) | u64::from(log[1]) << 32);
    for ns in [told, other.vm.clock_ns().expect("clock")] {
        assert!((last..last + 100_000_000_000).contains(&ns), "{ns} ns after {last}");
        last = ns;
    }
}

/// What a guest makes of its record of kvmclock at a TSC.
fn told_ns(rig: &Rig, record: u64, tsc: u64) -> u64 {
    let scale = rig.word(record + 24);
    let (multiplier, shift) = (u128::from(scale as u32), (scale >> 32) as i8);
    let ticks = tsc.wrapping_sub(rig.word(record + 8));
    let ticks = if shift < 0 { ticks >> -shift } else { ticks << shift };
    rig.word(record + 16).wrapping_add(((u128::from(ticks) * multiplier) >> 32) as u64)
}

/// A halted processor is halted in the other machine, and wakes there.
fn halted(from: &dyn Engine, to: &dyn Engine) {
    let mut rig = source(from, |a| {
        a.enable_apic()?;
        a.sti()?;
        a.hlt()?;
        a.log(1)
    });
    let state = loop {
        rig.vm.kick(0);
        assert_eq!(rig.vcpus[0].run().expect("the engine runs"), Exit::Kicked);
        let vm = Arc::clone(&rig.vm);
        let kicker = thread::spawn(move || {
            thread::sleep(Duration::from_millis(2));
            vm.kick(0);
        });
        assert_eq!(rig.vcpus[0].run().expect("the engine runs"), Exit::Kicked);
        kicker.join().expect("kicks");
        let state = rig.vcpus[0].state().expect("state");
        if state.halted {
            break state;
        }
    };
    let mut other = moved(to, &rig, &state);
    let pin = 18;
    // The redirection is of the other machine's IO-APIC, which starts afresh: an NMI by kick is none,
    // so the interrupt is put into the state.
    let mut woken = other.vcpus[0].state().expect("state");
    assert!(woken.halted);
    request(&mut woken, 0x50);
    other.vcpus[0].set_state(&woken).expect("set state");
    other.vm.set_irq(pin, false);
    assert_eq!(other.run().log, [IRQ | 0x50, 1]);
}

/// A processor that waits for its start-up IPI waits for it in the other machine.
fn waiting(from: &dyn Engine, to: &dyn Engine) {
    let two = |engine| Rig::showing(CpuModel::Common, engine, 2);
    let rig = two(from);
    let state = rig.vcpus[1].state().expect("state");
    assert!(state.waiting_for_sipi);
    let mut other = two(to);
    other.vcpus[1].set_state(&state).expect("set state");
    assert!(other.vcpus[1].state().expect("state").waiting_for_sipi);
    const STARTED: u64 = 0x9000;
    other.write(
        STARTED,
        &assemble(16, STARTED, |a| {
            let mut here = a.create_label();
            a.mov(ax, 7)?;
            a.mov(word_ptr(0x20).cs(), ax)?;
            a.set_label(&mut here)?;
            a.jmp(here)
        }),
    );
    other.set_word(STARTED + 0x20, 0);
    other.load_payload(CODE, |a| {
        a.enable_apic()?;
        a.write_msr(register::ICR, 1 << 32 | 0x4600 | STARTED >> 12)?;
        a.wait_for(STARTED + 0x20, 7)?;
        a.log(1)
    });
    assert_eq!(other.run_all()[0].log, [1]);
}

/// What is being delivered is delivered, once, wherever that is.
fn events(from: &dyn Engine, to: &dyn Engine) {
    for (event, vector, error_code) in [
        (Event::Interrupt(0x51), 0x51, 0),
        (Event::Exception(Exception::new(Vector::DE)), 0, 0),
        (Event::Exception(Exception::with_code(Vector::GP, 0x28)), 13, 0x28),
        (Event::Exception(Exception::page_fault(0x7000, 2)), 14, 2),
        (Event::Nmi, 2, 0),
    ] {
        let mut rig = source(from, |a| a.log(1));
        let mut state = Rig::state(0, rig.vcpus[0].state().expect("state"));
        state.rflags |= rflags::IF;
        state.event = Some(event);
        // Where the handler of an exception goes on.
        state.gpr[Gpr::R15 as usize] = CODE;
        rig.vcpus[0].set_state(&state).expect("set state");
        let between = rig.vcpus[0].state().expect("state");
        let mut other = moved(to, &rig, &between);
        let frames = other.run().frames;
        let frame = frames[0];
        let found = (frames.len(), frame.vector, frame.error_code, frame.rip);
        assert_eq!(found, (1, vector, error_code, CODE), "{event:?}");
        if vector == 14 {
            assert_eq!(frame.cr2, 0x7000);
        }
    }
}

/// Every field of a state with nothing at its initial value is the same in the other machine.
fn nothing_is_lost(from: &dyn Engine, to: &dyn Engine) {
    let [mut rig, mut other] = [from, to].map(|engine| Rig::showing(CpuModel::Common, engine, 1));
    let mut state = full_state(from, to, rig.vcpus[0].state().expect("state"));
    // What the other's host does not have, the guest may not have used (`model::differences`).
    let there = other.vcpus[0].state().expect("state").msrs;
    for entry in &mut state.msrs {
        if there.iter().any(|other| other.index == entry.index) {
            entry.value = super::msrs::sample(entry.index, false).unwrap_or(entry.value);
        }
    }
    rig.vcpus[0].set_state(&state).expect("set state");
    let before = rig.vcpus[0].state().expect("state");
    other.vcpus[0].set_state(&before).expect("set state");
    let after = other.vcpus[0].state().expect("state");
    assert_msrs(&before.msrs, &after.msrs);
    assert_eq!(apic_kept(&before.apic), apic_kept(&after.apic));
    assert_eq!(vectors_kept(&before.xstate), vectors_kept(&after.xstate));
    let rest = |state: VcpuState| VcpuState {
        msrs: Vec::new(),
        apic: ApicState::default(),
        xstate: Vec::new(),
        ..state
    };
    assert_eq!(rest(before), rest(after));
}

fn full_state(from: &dyn Engine, to: &dyn Engine, fresh: VcpuState) -> VcpuState {
    let both = |bit: u32| [from, to].iter().all(|engine| cpuid(*engine, 1, 0)[2] >> bit & 1 != 0);
    let (xsave, avx) = (both(26), both(28));
    let mut state = Rig::state(0, fresh);
    for (index, register) in state.gpr.iter_mut().enumerate() {
        *register = 0x0101_0101_0101_0101 * (index as u64 + 1);
    }
    state.rip = 0xffff_8000_1234_5678;
    state.rflags |= rflags::IF | rflags::CF | rflags::AC | rflags::ID | rflags::IOPL | rflags::NT;
    state.cs = Segment { selector: 0x33, attributes: 0xa0fb, ..Segment::CODE64 };
    state.ss = Segment { selector: 0x2b, attributes: 0xc0f3, ..Segment::DATA };
    state.ds = Segment { selector: 0x2b, attributes: 0xc0f3, ..Segment::DATA };
    state.fs = Segment { selector: 0x18, base: 0x7fff_1234_5678, ..Segment::DATA };
    state.gs = Segment { selector: 0x18, base: 0xffff_8000_0000_0100, ..Segment::DATA };
    state.ldtr = Segment { selector: 0x50, base: 0x1_2340, limit: 0x77, attributes: 0x82 };
    let base = 0xffff_8000_0000_2000;
    state.tr = Segment { selector: 0x40, base, limit: 0x206f, attributes: 0x8b };
    state.gdtr = DescriptorTable { base: 0xffff_8000_0000_3000, limit: 0x7f };
    state.idtr = DescriptorTable { base: 0xffff_8000_0000_4000, limit: 0xfff };
    (state.cr2, state.cr3, state.cr8) = (0x1234, 0x5000, 7);
    state.cr4 |= cr4::TSD | cr4::DE | cr4::MCE | if xsave { cr4::OSXSAVE } else { 0 };
    state.xcr0 = if avx { 7 } else { 1 };
    state.debug = [1, 2, 3, 4, 0xffff_4ff1, 0x400];
    (state.interrupt_shadow, state.nmi_blocked) = (true, true);
    state.xstate = image();
    state.xstate[512] = if avx { 7 } else { 3 };
    state.apic.registers[0x0f] = 0x1ff;
    state.apic.registers[0x32] = 0x77;
    state.apic.registers[0x35] = 0x1_0041;
    state.apic.registers[0x3e] = 3;
    request(&mut state, 0x31);
    state
}

/// The TSC runs on; what the other does not have must be as after a reset.
fn assert_msrs(before: &[Msr], after: &[Msr]) {
    for entry in before {
        let found = after.iter().find(|other| other.index == entry.index);
        let kept = match found {
            Some(other) if entry.index == msr::TSC => {
                other.value.wrapping_sub(entry.value) < 1 << 40
            }
            Some(other) => other.value == entry.value,
            None => is_reset(entry, 0),
        };
        assert!(kept, "{entry:x?} became {found:x?}");
    }
}

/// TPR, SVR, in service, trigger modes, requests, local vectors, initial count, divider.
fn apic_kept(state: &ApicState) -> Vec<(usize, u32)> {
    let kept = [0x02, 0x08, 0x0f].into_iter().chain(0x10..0x28).chain(0x32..=0x38).chain([0x3e]);
    kept.map(|index| (index, state.registers[index])).collect()
}

/// All but what the processor leaves to software, and the components that are not in the image.
fn vectors_kept(image: &[u8]) -> [&[u8]; 5] {
    let end = if image[512] & 4 != 0 { 832 } else { 576 };
    [&image[..6], &image[24..28], &image[32..416], &image[512..520], &image[576..end]]
}

/// A processor in real mode goes on in real mode.
fn real_mode(from: &dyn Engine, to: &dyn Engine) {
    const ADDRESS: u64 = 0x9000;
    let mut rig = source(from, |a| a.log(1));
    rig.write(
        ADDRESS,
        &assemble(16, 0, |a| {
            let mut here = a.create_label();
            a.set_label(&mut here)?;
            a.inc(eax)?;
            a.jmp(here)
        }),
    );
    let fresh = rig.vcpus[0].state().expect("state");
    let mut state = VcpuState { apic: fresh.apic, msrs: fresh.msrs, ..VcpuState::reset() };
    state.cs = Segment::real((ADDRESS >> 4) as u16, true);
    (state.ds, state.rip) = (Segment::real(0x100, false), 0);
    rig.vcpus[0].set_state(&state).expect("set state");
    let vm = Arc::clone(&rig.vm);
    let kicker = thread::spawn(move || {
        thread::sleep(Duration::from_millis(2));
        vm.kick(0);
    });
    assert_eq!(rig.vcpus[0].run().expect("the engine runs"), Exit::Kicked);
    kicker.join().expect("kicks");
    let mut between = rig.vcpus[0].state().expect("state");
    between.rip = 0x80;
    let mut other = moved(to, &rig, &between);
    other.write(
        ADDRESS + 0x80,
        &assemble(16, 0x80, |a| {
            a.mov(ax, cs)?;
            a.mov(dx, u32::from(LOG))?;
            a.out(dx, eax)?;
            a.mov(ax, ds)?;
            a.out(dx, eax)?;
            a.mov(dx, u32::from(DONE))?;
            a.out(dx, eax)
        }),
    );
    let log = other.run().log;
    assert_eq!([log[0] & 0xffff, log[1] & 0xffff], [ADDRESS as u32 >> 4, 0x100]);
}

/// An XSAVE image of all components, none in its initial state.
pub(super) fn image() -> Vec<u8> {
    let mut image = vec![0; x86::XSTATE_SIZE];
    image[0..2].copy_from_slice(&0x027fu16.to_le_bytes());
    // FSW with the top of the stack at 6, and all but two registers empty.
    image[2..4].copy_from_slice(&0x3000u16.to_le_bytes());
    image[4] = 0xc0;
    image[24..28].copy_from_slice(&0x3fa0u32.to_le_bytes());
    for register in 0..2 {
        let at = 32 + register * 16;
        // 1.25 and 1.75, significand and exponent.
        image[at..at + 8]
            .copy_from_slice(&(0xa000_0000_0000_0000u64 + ((register as u64) << 62)).to_le_bytes());
        image[at + 8..at + 10].copy_from_slice(&0x3fffu16.to_le_bytes());
    }
    for (index, byte) in image[160..416].iter_mut().enumerate() {
        *byte = index as u8 ^ 0x5a;
    }
    image[512] = 7;
    for (index, byte) in image[576..832].iter_mut().enumerate() {
        *byte = index as u8 ^ 0xa5;
    }
    image
}

/// Sets a bit of the interrupt request register.
pub(super) fn request(state: &mut VcpuState, vector: u8) {
    let word = 0x20 + usize::from(vector / 32);
    state.apic.registers[word] |= 1 << (vector % 32);
}

/// Where inputs lead and what is in service goes along.
fn io_apic(from: &dyn Engine, to: &dyn Engine) {
    const LEVEL: u32 = 1 << 15;
    const REMOTE_IRR: u32 = 1 << 14;
    const INPUT_REGISTER: u32 = 0x10 + 2 * 19;
    let redirect = |a: &mut CodeAssembler, pin: u32, entry: u32| {
        a.mov(ebx, IO_APIC as u32)?;
        a.mov(dword_ptr(rbx), 0x11 + 2 * pin)?;
        a.mov(dword_ptr(rbx + 0x10), 0)?;
        a.mov(dword_ptr(rbx), 0x10 + 2 * pin)?;
        a.mov(dword_ptr(rbx + 0x10), entry)
    };
    let mut rig = source(from, |a| {
        a.enable_apic()?;
        redirect(a, 18, 0x50)?;
        redirect(a, 19, LEVEL | 0x60)?;
        a.jmp(WAIT)
    });
    state_at_wait(&mut rig);
    rig.vm.set_irq(19, true);
    let mut state = state_at_wait(&mut rig);
    state.rip = HANDLER + 0x100;
    let chip = rig.vm.io_apic().expect("the io-apic");
    assert_ne!(chip.entries[19] & u64::from(REMOTE_IRR), 0, "in service: {chip:?}");
    let mut other = moved(to, &rig, &state);
    other.vm.set_io_apic(&chip).expect("set the io-apic");
    assert_eq!(other.vm.io_apic().expect("the io-apic"), chip);
    other.vm.set_irq(19, false);
    other.vm.pulse_irq(18);
    other.load_payload(HANDLER + 0x100, |a| {
        a.sti()?;
        a.wait_for(FRAMES, 2)?;
        a.cli()?;
        a.mov(ebx, IO_APIC as u32)?;
        a.mov(dword_ptr(rbx), INPUT_REGISTER)?;
        a.mov(eax, dword_ptr(rbx + 0x10))?;
        a.and(eax, REMOTE_IRR)?;
        a.log_eax()
    });
    assert_eq!(other.run().log, [IRQ | 0x60, IRQ | 0x50, 0]);
    let mut wrong = chip.clone();
    wrong.entries.pop();
    let refused = other.vm.set_io_apic(&wrong).expect_err("23 entries").to_string();
    assert!(refused.contains("entries: 23"), "{refused}");
    assert_eq!(other.vm.io_apic().expect("the io-apic").entries.len(), 24);
}

/// TSCs that were in step are so again, although they were read, and are set, one after the other.
fn tscs_in_step(from: &dyn Engine, to: &dyn Engine) {
    let [rig, mut other] = [from, to].map(|engine| Rig::showing(CpuModel::Common, engine, 2));
    let offsets = rig.vcpus.iter().map(|vcpu| vcpu.tsc_offset()).collect::<Option<Vec<_>>>();
    let Some(offsets) = offsets.filter(|_| other.vcpus[0].tsc_offset().is_some()) else {
        skip("no offset of the TSC is told");
    };
    for (vcpu, from) in other.vcpus.iter_mut().zip(&rig.vcpus) {
        vcpu.set_state(&from.state().expect("state")).expect("set state");
        thread::sleep(Duration::from_millis(1));
    }
    let apart = offsets[1].wrapping_sub(offsets[0]);
    let first = other.vcpus[0].tsc_offset().expect("an offset");
    other.vcpus[1].set_tsc_offset(first.wrapping_add(apart)).expect("set");
    let after = [0, 1].map(|id| other.vcpus[id].tsc_offset().expect("an offset"));
    assert_eq!(after[1].wrapping_sub(after[0]), apart);
    let tsc = |id: usize| {
        let state = other.vcpus[id].state().expect("state");
        state.msrs.iter().find(|entry| entry.index == msr::TSC).expect("a TSC").value
    };
    let times = [tsc(0), tsc(1).wrapping_sub(apart), tsc(0)];
    assert!(times.is_sorted(), "{times:?}");
}

/// A guest is told that it stood, in its record of kvmclock and for as long as it does not take that back.
fn standstill(from: &dyn Engine, to: &dyn Engine) {
    const RECORD: u64 = DATA + 0x400;
    const FLAGS: u64 = RECORD + 29;
    if cpuid(from, 0x4000_0001, 0)[0] & 1 << 3 == 0 {
        skip("no kvmclock");
    }
    let mut rig = source(from, |a| {
        a.write_msr(msr::KVM_SYSTEM_TIME_NEW, RECORD | 1)?;
        a.jmp(WAIT)
    });
    let mut state = state_at_wait(&mut rig);
    state.rip = HANDLER;
    assert_eq!(rig.bytes(FLAGS, 1)[0] & 2, 0);
    let mut other = moved(to, &rig, &state);
    other.vcpus[0].tell_stopped().expect("told");
    other.load_payload(HANDLER, |a| {
        a.mov(al, byte_ptr(FLAGS))?;
        a.and(eax, 2)?;
        a.log_eax()
    });
    assert_eq!(other.run().log, [2]);
    // One without a kvmclock has nobody to tell.
    Rig::showing(CpuModel::Common, to, 1).vcpus[0].tell_stopped().expect("nothing to do");
}
