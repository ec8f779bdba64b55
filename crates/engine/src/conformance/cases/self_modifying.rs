//! Code that changes: by its own stores, through other addresses, by other processors and by devices.

use std::sync::Arc;

use memory::{Discard, Gpa};

use super::prelude::*;

cases!(
    "self_modifying": next_instruction, itself, called_again, through_alias, across_pages, by_string,
    by_locked, by_vector, data_beside, remapped, by_other_processor, by_device, discarded,
    many_versions, second_half,
);

/// `mov eax, value; ret`
fn function(value: u8) -> [u8; 6] {
    [0xb8, value, 0, 0, 0, 0xc3]
}

/// Calls `address` and logs what it returns.
fn call(a: &mut CodeAssembler, address: u64) -> Asm {
    a.mov(eax, address as u32)?;
    a.call(rax)?;
    a.log_eax()
}

const PLACE: u64 = WINDOW + 5 * 4096 + 0x100;

/// The store changes the instruction right after it.
fn next_instruction(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        let mut target = a.create_label();
        for _ in 0..2 {
            a.nop()?;
        }
        a.lea(rbx, ptr(target))?;
        a.mov(byte_ptr(rbx + 1), 7)?;
        a.set_label(&mut target)?;
        a.mov(eax, 1)?;
        a.log_eax()
    })
    .run();
    assert_eq!(record.log, [7]);
}

/// An instruction that overwrites itself completes, and is another one the next time.
fn itself(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        let mut again = a.create_label();
        a.lea(rbx, ptr(again))?;
        a.mov(ecx, 2)?;
        a.set_label(&mut again)?;
        // A store of 0x7f to [rbx + 2]: to its own displacement, which is 0x7f the second time.
        a.mov(byte_ptr(rbx + 2), 0x7f)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.movzx(eax, byte_ptr(rbx + 2))?;
        a.log_eax()?;
        a.movzx(eax, byte_ptr(rbx + 0x7f))?;
        a.log_eax()
    })
    .run();
    assert_eq!(record.log, [0x7f, 0x7f]);
}

fn called_again(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        for value in [2, 3, 4] {
            call(a, PLACE)?;
            a.mov(byte_ptr(PLACE + 1), value)?;
        }
        call(a, PLACE)
    });
    rig.write(PLACE, &function(1));
    assert_eq!(rig.run().log, [1, 2, 3, 4]);
}

/// The store goes to another linear address of the same page.
fn through_alias(engine: &dyn Engine) {
    let alias = PLACE + 0x1000;
    let mut rig = Rig::with(engine, |a| {
        call(a, PLACE)?;
        call(a, alias)?;
        a.mov(byte_ptr(alias + 1), 2)?;
        call(a, PLACE)?;
        a.mov(byte_ptr(PLACE + 1), 3)?;
        call(a, alias)?;
        call(a, PLACE)
    });
    rig.write(PLACE, &function(1));
    rig.map_window(6, window(5), paging::PRESENT | paging::WRITABLE);
    assert_eq!(rig.run().log, [1, 1, 2, 3, 3]);
}

/// An instruction on two pages, of which each is changed, and then the second is another one.
fn across_pages(engine: &dyn Engine) {
    let place = window(6) - 3;
    let mut rig = Rig::with(engine, |a| {
        call(a, place)?;
        a.mov(byte_ptr(place + 4), 2)?;
        call(a, place)?;
        a.mov(byte_ptr(place + 1), 3)?;
        call(a, place)?;
        a.mov(dword_ptr(window_entry(6)), (window(7) | paging::PRESENT) as u32)?;
        a.invlpg(ptr(window(6)))?;
        call(a, place)
    });
    rig.write(place, &function(1));
    rig.write(window(7), &function(0)[3..]);
    rig.write(window(7) + 1, &[4]);
    assert_eq!(rig.run().log, [1, 0x0200_0001, 0x0200_0003, 0x0400_0003]);
}

fn by_string(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        let mut target = a.create_label();
        call(a, PLACE)?;
        a.mov(esi, DATA as u32)?;
        a.mov(edi, PLACE as u32)?;
        a.mov(ecx, 6)?;
        a.rep().movsb()?;
        call(a, PLACE)?;
        // And onto what comes next.
        a.mov(eax, 9)?;
        a.lea(rdi, ptr(target))?;
        a.add(rdi, 1)?;
        a.mov(ecx, 1)?;
        a.rep().stosb()?;
        a.set_label(&mut target)?;
        a.mov(eax, 1)?;
        a.log_eax()
    });
    rig.write(PLACE, &function(1));
    rig.write(DATA, &function(2));
    assert_eq!(rig.run().log, [1, 2, 9]);
}

fn by_locked(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        call(a, PLACE)?;
        a.lock().inc(byte_ptr(PLACE + 1))?;
        call(a, PLACE)?;
        a.mov(cl, 8)?;
        a.xchg(byte_ptr(PLACE + 1), cl)?;
        call(a, PLACE)?;
        a.mov(eax, 8)?;
        a.mov(ecx, 9)?;
        a.lock().cmpxchg(byte_ptr(PLACE + 1), cl)?;
        call(a, PLACE)
    });
    rig.write(PLACE, &function(1));
    assert_eq!(rig.run().log, [1, 2, 8, 9]);
}

fn by_vector(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        call(a, PLACE)?;
        a.movups(xmm0, xmmword_ptr(DATA))?;
        a.movups(xmmword_ptr(PLACE), xmm0)?;
        call(a, PLACE)?;
        a.movups(xmm0, xmmword_ptr(DATA + 16))?;
        a.movq(qword_ptr(PLACE), xmm0)?;
        call(a, PLACE)
    });
    rig.write(PLACE, &function(1));
    rig.write(DATA, &function(2));
    rig.write(DATA + 16, &function(3));
    assert_eq!(rig.run().log, [1, 2, 3]);
}

/// Data on a page of code may change without end, and the code is as it was.
fn data_beside(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        let mut again = a.create_label();
        a.mov(ebx, 10_000)?;
        a.xor(esi, esi)?;
        a.set_label(&mut again)?;
        a.mov(eax, PLACE as u32)?;
        a.call(rax)?;
        a.add(esi, eax)?;
        a.inc(dword_ptr(PLACE + 16))?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.mov(eax, esi)?;
        a.log_eax()?;
        a.mov(eax, dword_ptr(PLACE + 16))?;
        a.log_eax()
    });
    rig.write(PLACE, &function(1));
    assert_eq!(rig.run().log, [10_000, 10_000]);
}

/// Another page at the same address, and the first one again.
fn remapped(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        for page in [6, 7, 5] {
            call(a, PLACE)?;
            a.mov(dword_ptr(window_entry(5)), (window(page) | paging::PRESENT) as u32)?;
            a.invlpg(ptr(PLACE))?;
        }
        call(a, PLACE)
    });
    for page in 5..8 {
        rig.write(window(page) + 0x100, &function(page as u8));
    }
    assert_eq!(rig.run().log, [5, 6, 7, 5]);
}

/// Cross-modifying code as the manual has it (SDM volume 3, 8.1.3): the other processor has changed the
/// code, and this one serializes, by the return from an interrupt, before it runs it.
fn by_other_processor(engine: &dyn Engine) {
    const ROUNDS: i32 = 200;
    const ANSWERED: u64 = DATA + 0x40;
    let mut rig = Rig::with_two(
        engine,
        |a| {
            let (mut again, mut wait, mut there) =
                (a.create_label(), a.create_label(), a.create_label());
            a.enable_apic()?;
            a.wait_for(DATA + 0x80, 1)?;
            a.mov(ebx, 1)?;
            a.set_label(&mut again)?;
            a.mov(dword_ptr(PLACE + 1), ebx)?;
            a.write_msr(apic::ICR, 1 << 32 | 0x40)?;
            a.set_label(&mut wait)?;
            a.cmp(dword_ptr(ANSWERED), ebx)?;
            a.je(there)?;
            a.pause()?;
            a.jmp(wait)?;
            a.set_label(&mut there)?;
            a.inc(ebx)?;
            a.cmp(ebx, ROUNDS)?;
            a.jle(again)
        },
        |a| {
            // After each interrupt it calls the function and answers what that returned; in between it
            // calls it too, so that it is always at hand in its old form.
            let (mut again, mut quiet) = (a.create_label(), a.create_label());
            a.enable_apic()?;
            a.mov(qword_ptr(DATA + 0x80), 1)?;
            a.set_label(&mut again)?;
            a.sti()?;
            a.nop()?;
            a.cli()?;
            a.mov(eax, PLACE as u32)?;
            a.call(rax)?;
            a.cmp(dword_ptr(DATA), 0)?;
            a.je(quiet)?;
            a.mov(dword_ptr(DATA), 0)?;
            a.mov(dword_ptr(ANSWERED), eax)?;
            a.set_label(&mut quiet)?;
            a.jmp(again)
        },
    );
    rig.load(HANDLER, |a| {
        for register in [rax, rcx, rdx] {
            a.push(register)?;
        }
        a.mov(dword_ptr(DATA), 1)?;
        a.write_msr(apic::EOI, 0)?;
        for register in [rdx, rcx, rax] {
            a.pop(register)?;
        }
        a.iretq()
    });
    rig.set_gate(0x40, Gate::to(HANDLER));
    rig.write(PLACE, &function(0));
    rig.run_all();
    assert_eq!(rig.word(ANSWERED), ROUNDS as u64);
}

/// A device writes the code while the vCPU is in an exit.
fn by_device(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        for value in 2..5 {
            call(a, PLACE)?;
            a.ask(value)?;
        }
        call(a, PLACE)
    });
    rig.write(PLACE, &function(1));
    let view = rig.view.clone();
    let record = rig.run_asking(&|value| {
        view.write(Gpa(PLACE + 1), &[value as u8]).expect("inside RAM");
    });
    assert_eq!(record.log, [1, 2, 3, 4]);
}

/// The frame of the code is given back, comes again with zeros, and gets other code.
fn discarded(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        call(a, PLACE)?;
        a.ask(2)?;
        call(a, PLACE)?;
        a.ask(0)?;
        // Zeros are ADD [RAX], AL: it runs on to the end of the page, where there is nothing.
        a.mov(eax, DATA as u32)?;
        a.fault(|a| {
            a.mov(r13, window(6))?;
            a.mov(ebx, PLACE as u32)?;
            a.jmp(rbx)
        })
    });
    rig.write(PLACE, &function(1));
    rig.map_window(6, 0, 0);
    let (view, memory) = (rig.view.clone(), Arc::clone(&rig.memory));
    let record = rig.run_asking(&|value| {
        let frame = memory.frame_of(Gpa(PLACE)).expect("inside RAM");
        let done = memory.discard([frame], Discard::Balloon).expect("given back");
        assert_eq!(done.discarded, 1);
        if value != 0 {
            view.write(Gpa(PLACE), &function(value as u8)).expect("inside RAM");
        }
    });
    assert_eq!(record.log, [1, 2]);
    assert_eq!(record.faults(), [Fault::page(window(6), 16)]);
}

/// A loop that rewrites the function before each call.
fn many_versions(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        let mut again = a.create_label();
        a.xor(ebx, ebx)?;
        a.xor(esi, esi)?;
        a.set_label(&mut again)?;
        a.inc(ebx)?;
        a.mov(dword_ptr(PLACE + 1), ebx)?;
        a.mov(eax, PLACE as u32)?;
        a.call(rax)?;
        a.add(esi, eax)?;
        a.cmp(ebx, 1000)?;
        a.jb(again)?;
        a.mov(eax, esi)?;
        a.log_eax()
    });
    rig.write(PLACE, &function(0));
    assert_eq!(rig.run().log, [500_500]);
}

/// The store is in the middle of the code that it changes, further on, and back.
fn second_half(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        let (mut again, mut late) = (a.create_label(), a.create_label());
        a.lea(rbx, ptr(late))?;
        a.xor(esi, esi)?;
        a.mov(ecx, 5)?;
        a.set_label(&mut again)?;
        a.inc(byte_ptr(rbx + 1))?;
        a.nop()?;
        a.nop()?;
        a.set_label(&mut late)?;
        a.mov(eax, 0)?;
        a.add(esi, eax)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.mov(eax, esi)?;
        a.log_eax()
    })
    .run();
    assert_eq!(record.log, [1 + 2 + 3 + 4 + 5]);
}
