//! Several processors: start-up, inter-processor interrupts, translations taken back.

use super::prelude::*;
use crate::conformance::layout::FRAMES;

cases!(
    "smp": start_up, waits_for_start_up, ping_pong, halted_ping_pong, broadcast, nmi, nmi_wakes_halt,
    shootdown, init_again, identities,
);

const MAILBOX: u64 = DATA;
const VECTOR: u64 = 0x40;
const TO_SECOND: u64 = 1 << 32;
const INIT: u64 = 0x4500;
const START_UP: u64 = 0x4600;

/// Sends INIT and two start-up IPIs to the second vCPU.
fn start_second(a: &mut CodeAssembler) -> Asm {
    a.write_msr(apic::ICR, TO_SECOND | INIT)?;
    for _ in 0..2 {
        a.write_msr(apic::ICR, TO_SECOND | START_UP | TRAMPOLINE >> 12)?;
    }
    Ok(())
}

/// Writes the way from real mode to [`CODE1`] in 64-bit mode. Each stage leaves a mark in the mailbox:
/// CS and a 16-bit word, then a 32-bit one.
fn write_trampoline(rig: &Rig) {
    let (protected, table) = (TRAMPOLINE + 0x100, TRAMPOLINE + 0x200);
    let real = assemble(16, 0, |a| {
        a.cli()?;
        a.mov(ax, (MAILBOX >> 4) as u32)?;
        a.mov(es, ax)?;
        a.mov(word_ptr(0).es(), cs)?;
        a.mov(word_ptr(2).es(), 0x1616)?;
        // The table is read through CS, whose base is this page.
        a.db(&[0x2e, 0x66, 0x0f, 0x01, 0x16])?;
        a.dw(&[0x200])?;
        a.mov(eax, cr0)?;
        a.or(al, 1)?;
        a.mov(cr0, eax)?;
        // Far jump with a 32-bit offset.
        a.db(&[0x66, 0xea])?;
        a.dd(&[protected as u32])?;
        a.dw(&[selector::KERNEL_CODE32])
    });
    rig.write(TRAMPOLINE, &real);
    rig.write(table, &crate::conformance::layout::GDT_LIMIT.to_le_bytes());
    rig.write(table + 2, &(crate::conformance::layout::GDT as u32).to_le_bytes());
    let bits = assemble(32, protected, |a| {
        a.mov(eax, u32::from(selector::KERNEL_DATA))?;
        for segment in [ds, es, ss] {
            a.mov(segment, eax)?;
        }
        a.mov(dword_ptr(MAILBOX as u32 + 4), 0x3232_3232)?;
        a.mov(eax, (x86::cr4::PAE | x86::cr4::OSFXSR) as u32)?;
        a.mov(cr4, eax)?;
        a.mov(eax, PML4 as u32)?;
        a.mov(cr3, eax)?;
        a.mov(ecx, x86::msr::EFER)?;
        a.rdmsr()?;
        a.or(eax, (x86::efer::LME | x86::efer::NXE) as u32)?;
        a.wrmsr()?;
        a.mov(eax, cr0)?;
        a.or(eax, (x86::cr0::PG | x86::cr0::WP) as u32)?;
        a.mov(cr0, eax)?;
        a.db(&[0xea])?;
        a.dd(&[CODE1 as u32])?;
        a.dw(&[selector::KERNEL_CODE])
    });
    rig.write(protected, &bits);
}

/// Spins for ever.
fn park(a: &mut CodeAssembler) -> Asm {
    let mut here = a.create_label();
    a.set_label(&mut here)?;
    a.pause()?;
    a.jmp(here)
}

/// Real mode at the vector, protected mode, long mode.
fn start_up(engine: &dyn Engine) {
    let mut rig = Rig::new(engine, 2);
    write_trampoline(&rig);
    rig.load_payload(CODE, |a| {
        a.enable_apic()?;
        start_second(a)?;
        a.wait_for(MAILBOX + 8, 7)
    });
    rig.load(CODE1, |a| {
        a.mov(rsp, STACK1)?;
        a.push(7)?;
        a.pop(rax)?;
        a.mov(qword_ptr(MAILBOX + 8), rax)?;
        park(a)
    });
    rig.run_all();
    assert_eq!(rig.word(MAILBOX), 0x3232_3232_1616_0000 | TRAMPOLINE >> 4);
}

/// INIT alone starts nothing, and neither does an interrupt.
fn waits_for_start_up(engine: &dyn Engine) {
    let mut rig = Rig::new(engine, 2);
    write_trampoline(&rig);
    rig.load_payload(CODE, |a| {
        a.enable_apic()?;
        a.write_msr(apic::ICR, TO_SECOND | INIT)?;
        a.write_msr(apic::ICR, TO_SECOND | VECTOR)?;
        a.write_msr(apic::ICR, TO_SECOND | 4 << 8)?;
        a.mov(ecx, 200_000)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.pause()?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.mov(eax, dword_ptr(MAILBOX))?;
        a.log_eax()
    });
    rig.load(CODE1, park);
    assert_eq!(rig.run_all()[0].log, [0]);
    assert_eq!(rig.word(MAILBOX), 0);
}

/// Counts at `at` the interrupts that come by way of [`HANDLER`] to both vCPUs: each has its own page.
fn counting_handler(rig: &Rig) {
    rig.load(HANDLER, |a| {
        for register in [rax, rcx, rdx] {
            a.push(register)?;
        }
        a.read_msr(apic::ID)?;
        a.shl(eax, 6)?;
        a.lock().inc(qword_ptr(rax + MAILBOX))?;
        a.write_msr(apic::EOI, 0)?;
        for register in [rdx, rcx, rax] {
            a.pop(register)?;
        }
        a.iretq()
    });
    rig.set_gate(VECTOR as u8, Gate::to(HANDLER));
}

/// Where [`counting_handler`] counts for vCPU `id`.
const fn count(id: u64) -> u64 {
    MAILBOX + id * 64
}

const ROUNDS: i32 = 300;

/// Each answers the other's interrupt, spinning or halted in between.
fn rounds(engine: &dyn Engine, halted: bool) {
    let play = |a: &mut CodeAssembler, own: u64, other: u64, first: bool| {
        let mut again = a.create_label();
        a.enable_apic()?;
        a.mov(ebx, 1)?;
        if first {
            // The other's APIC must be enabled before it is sent anything.
            a.wait_for(MAILBOX + 0x100, 1)?;
        } else {
            a.mov(qword_ptr(MAILBOX + 0x100), 1)?;
        }
        a.set_label(&mut again)?;
        a.zero_bytes()?;
        if first {
            a.write_msr(apic::ICR, other << 32 | VECTOR)?;
        }
        let (mut wait, mut there) = (a.create_label(), a.create_label());
        a.set_label(&mut wait)?;
        a.cli()?;
        a.cmp(dword_ptr(count(own)), ebx)?;
        a.jge(there)?;
        a.sti()?;
        if halted {
            a.hlt()?;
        } else {
            a.pause()?;
        }
        a.jmp(wait)?;
        a.set_label(&mut there)?;
        if !first {
            a.write_msr(apic::ICR, other << 32 | VECTOR)?;
        }
        a.inc(ebx)?;
        a.cmp(ebx, ROUNDS)?;
        a.jle(again)
    };
    let mut rig = Rig::with_two(engine, |a| play(a, 0, 1, true), |a| play(a, 1, 0, false));
    counting_handler(&rig);
    rig.run_all();
    assert_eq!([rig.word(count(0)), rig.word(count(1))], [ROUNDS as u64; 2]);
}

fn ping_pong(engine: &dyn Engine) {
    rounds(engine, false);
}

fn halted_ping_pong(engine: &dyn Engine) {
    rounds(engine, true);
}

/// Shorthands and destinations that reach the other, or both.
fn broadcast(engine: &dyn Engine) {
    let forms = [
        3 << 18,           // all but self
        2 << 18,           // all
        0xffff_ffff << 32, // all, by id
        1 << 32,           // the other
        1 << 11 | 2 << 32, // the other, logically
        1 << 11 | 3 << 32, // both, logically
    ];
    let mut rig = Rig::with_two(
        engine,
        |a| {
            a.enable_apic()?;
            a.wait_for(MAILBOX + 0x100, 1)?;
            a.sti()?;
            for (index, form) in forms.into_iter().enumerate() {
                a.write_msr(apic::ICR, form | VECTOR)?;
                a.wait_for(count(1), index as i32 + 1)?;
            }
            a.cli()
        },
        |a| {
            a.enable_apic()?;
            a.sti()?;
            a.mov(qword_ptr(MAILBOX + 0x100), 1)?;
            park(a)
        },
    );
    counting_handler(&rig);
    rig.run_all();
    assert_eq!([rig.word(count(0)), rig.word(count(1))], [3, 6]);
}

/// Sends an NMI to vCPU `id` and waits for its handler.
fn nmi_to_second(a: &mut CodeAssembler, halted: bool) -> Asm {
    a.enable_apic()?;
    a.wait_for(MAILBOX + 0x100, 1)?;
    if halted {
        a.mov(ecx, 100_000)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.pause()?;
        a.dec(ecx)?;
        a.jnz(again)?;
    }
    a.write_msr(apic::ICR, TO_SECOND | 4 << 8)?;
    a.wait_for(FRAMES, 1)
}

fn nmi(engine: &dyn Engine) {
    let mut rig = Rig::with_two(
        engine,
        |a| {
            nmi_to_second(a, false)?;
            a.wait_for(MAILBOX + 0x100, 2)
        },
        |a| {
            a.mov(qword_ptr(MAILBOX + 0x100), 1)?;
            // Back from its handler, which has logged by then: it would be stopped in the midst of it.
            a.wait_for(FRAMES, 1)?;
            a.mov(qword_ptr(MAILBOX + 0x100), 2)?;
            park(a)
        },
    );
    let records = rig.run_all();
    assert_eq!(records[1].log, [IRQ | 2]);
}

/// HLT with IF clear ends by an NMI.
fn nmi_wakes_halt(engine: &dyn Engine) {
    let mut rig = Rig::with_two(
        engine,
        |a| {
            nmi_to_second(a, true)?;
            a.wait_for(MAILBOX + 0x100, 2)
        },
        |a| {
            a.mov(qword_ptr(MAILBOX + 0x100), 1)?;
            a.hlt()?;
            a.mov(qword_ptr(MAILBOX + 0x100), 2)?;
            park(a)
        },
    );
    rig.run_all();
    assert_eq!(rig.word(MAILBOX + 0x100), 2);
}

/// After the other has answered the interrupt in which it invalidates, it never sees the old page again.
fn shootdown(engine: &dyn Engine) {
    const BEGUN: u64 = DATA + 0x200;
    const ENDED: u64 = DATA + 0x240;
    const STALE: u64 = DATA + 0x280;
    let entry = window_entry(5);
    let mut rig = Rig::with_two(
        engine,
        |a| {
            let mut again = a.create_label();
            a.enable_apic()?;
            a.wait_for(MAILBOX + 0x100, 1)?;
            a.mov(ebx, 1)?;
            a.set_label(&mut again)?;
            a.mov(qword_ptr(BEGUN), rbx)?;
            // Page 5 or 6, as the round is even or odd.
            a.mov(eax, ebx)?;
            a.and(eax, 1)?;
            a.shl(eax, 12)?;
            a.add(eax, (window(5) | paging::PRESENT | paging::WRITABLE) as u32)?;
            a.mov(qword_ptr(entry), rax)?;
            a.write_msr(apic::ICR, TO_SECOND | VECTOR)?;
            let (mut wait, mut there) = (a.create_label(), a.create_label());
            a.set_label(&mut wait)?;
            a.cmp(dword_ptr(count(1)), ebx)?;
            a.jge(there)?;
            a.pause()?;
            a.jmp(wait)?;
            a.set_label(&mut there)?;
            a.mov(qword_ptr(ENDED), rbx)?;
            a.inc(ebx)?;
            a.cmp(ebx, ROUNDS)?;
            a.jle(again)
        },
        |a| {
            let (mut again, mut fine) = (a.create_label(), a.create_label());
            a.enable_apic()?;
            a.mov(qword_ptr(MAILBOX + 0x100), 1)?;
            a.sti()?;
            a.set_label(&mut again)?;
            a.mov(rsi, qword_ptr(ENDED))?;
            a.mov(rdi, qword_ptr(window(5)))?;
            // Between two rounds the page must be the one of the round that ended.
            a.cmp(rsi, qword_ptr(BEGUN))?;
            a.jne(again)?;
            a.and(esi, 1)?;
            a.add(esi, 5)?;
            a.cmp(esi, edi)?;
            a.je(fine)?;
            a.inc(qword_ptr(STALE))?;
            a.set_label(&mut fine)?;
            a.inc(qword_ptr(STALE + 64))?;
            a.jmp(again)
        },
    );
    counting_handler(&rig);
    rig.load(HANDLER + 0x800, |a| {
        a.invlpg(ptr(window(5)))?;
        a.jmp(HANDLER)
    });
    rig.set_gate(VECTOR as u8, Gate::to(HANDLER + 0x800));
    rig.set_word(window(5), 5);
    rig.set_word(window(6), 6);
    rig.run_all();
    assert_eq!(rig.word(STALE), 0, "reads of the old page");
}

/// A running processor that gets INIT stops, and starts again with the next start-up IPI.
fn init_again(engine: &dyn Engine) {
    let mut rig = Rig::new(engine, 2);
    write_trampoline(&rig);
    rig.load_payload(CODE, |a| {
        a.enable_apic()?;
        for round in 1..=3 {
            start_second(a)?;
            a.wait_for(MAILBOX + 8, round)?;
        }
        Ok(())
    });
    rig.load(CODE1, |a| {
        a.inc(qword_ptr(MAILBOX + 8))?;
        a.cli()?;
        park(a)
    });
    rig.run_all();
    assert_eq!(rig.word(MAILBOX + 8), 3);
}

/// APIC id and CPUID agree, and differ between processors; only the first is the bootstrap one.
fn identities(engine: &dyn Engine) {
    let payload = |a: &mut CodeAssembler| {
        a.read_msr(apic::ID)?;
        a.log_eax()?;
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.mov(eax, ebx)?;
        a.shr(eax, 24)?;
        a.log_eax()?;
        a.mov(eax, 0xb)?;
        a.xor(ecx, ecx)?;
        a.cpuid()?;
        a.mov(eax, edx)?;
        a.log_eax()?;
        a.read_msr(x86::msr::APIC_BASE)?;
        a.and(eax, 0xd00)?;
        a.log_eax()
    };
    let mut rig = Rig::with_two(
        engine,
        |a| {
            payload(a)?;
            a.wait_for(MAILBOX, 1)
        },
        |a| {
            payload(a)?;
            a.mov(qword_ptr(MAILBOX), 1)?;
            park(a)
        },
    );
    let records = rig.run_all();
    assert_eq!(records[0].log, [0, 0, 0, 0xd00]);
    assert_eq!(records[1].log, [1, 1, 1, 0xc00]);
}
