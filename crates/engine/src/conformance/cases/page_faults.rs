//! Page faults: error codes, CR2, and that nothing has happened.
//!
//! Error code bits (SDM volume 3, 4.7): 1 present, 2 write, 4 user, 8 reserved bit, 16 fetch.

use super::prelude::*;

cases!(
    "page_faults": not_present, read_only, user, no_execute, reserved_bits, upper_levels,
    high_half, crossing_reads, crossing_writes, crossing_fetch, push, pop, read_modify_write,
    registers_kept, supervisor_fetch, supervisor_access,
);

const R: u64 = paging::PRESENT;
const W: u64 = paging::PRESENT | paging::WRITABLE;
const RU: u64 = R | paging::USER;
const WU: u64 = W | paging::USER;
const NX: u64 = paging::NO_EXECUTE;

/// Jumps to `target` and expects to fault there.
fn fetch(a: &mut CodeAssembler, target: u64) -> Asm {
    a.fault(|a| {
        a.mov(r13, target)?;
        a.jmp(r13)
    })
}

fn not_present(engine: &dyn Engine) {
    let page = window(5);
    let mut rig = Rig::with(engine, |a| {
        a.fault(|a| a.mov(al, byte_ptr(page + 1)))?;
        a.fault(|a| a.mov(byte_ptr(page + 2), al))?;
        fetch(a, page + 3)?;
        a.user(|a| {
            a.fault(|a| a.mov(al, byte_ptr(page + 4)))?;
            a.fault(|a| a.mov(byte_ptr(page + 5), al))?;
            fetch(a, page + 6)
        })
    });
    rig.map_window(5, page, WU & !R);
    let expected = [
        Fault::page(page + 1, 0),
        Fault::page(page + 2, 2),
        Fault::page(page + 3, 16),
        Fault::page(page + 4, 4),
        Fault::page(page + 5, 6),
        Fault::page(page + 6, 20),
    ];
    assert_eq!(rig.run().faults(), expected);
}

/// CR0.WP decides whether the supervisor may write.
fn read_only(engine: &dyn Engine) {
    let page = window(5);
    let mut rig = Rig::with(engine, |a| {
        a.mov(eax, dword_ptr(page))?;
        a.fault(|a| a.mov(dword_ptr(page), 1))?;
        a.fault(|a| a.rep().stosb())?;
        a.clear_cr0(x86::cr0::WP)?;
        a.mov(dword_ptr(page), 2)?;
        a.user(|a| a.fault(|a| a.mov(dword_ptr(page + 4), 3)))?;
        a.set_cr0(x86::cr0::WP)?;
        a.fault(|a| a.mov(dword_ptr(page + 8), 4))?;
        a.user(|a| a.fault(|a| a.mov(dword_ptr(page + 12), 5)))
    });
    rig.map_window(5, page, RU);
    let mut state = Rig::state(0, rig.vcpus[0].state().expect("state"));
    state.gpr[1] = 1;
    state.gpr[7] = page;
    rig.vcpus[0].set_state(&state).expect("set state");
    let record = rig.run();
    let expected = [
        Fault::page(page, 3),
        Fault::page(page, 3),
        Fault::page(page + 4, 7),
        Fault::page(page + 8, 3),
        Fault::page(page + 12, 7),
    ];
    assert_eq!(record.faults(), expected);
    assert_eq!(rig.bytes(page, 16), [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

fn user(engine: &dyn Engine) {
    let page = window(5);
    let mut rig = Rig::with(engine, |a| {
        a.mov(byte_ptr(page), 1)?;
        a.user(|a| {
            a.fault(|a| a.mov(al, byte_ptr(page)))?;
            a.fault(|a| a.mov(byte_ptr(page + 1), al))?;
            fetch(a, page)
        })?;
        a.mov(byte_ptr(page + 2), 1)
    });
    rig.map_window(5, page, W);
    let expected = [Fault::page(page, 5), Fault::page(page + 1, 7), Fault::page(page, 21)];
    assert_eq!(rig.run().faults(), expected);
    assert_eq!(rig.bytes(page, 3), [1, 0, 1]);
}

fn no_execute(engine: &dyn Engine) {
    let page = window(5);
    let mut rig = Rig::with(engine, |a| {
        a.mov(al, byte_ptr(page))?;
        a.mov(byte_ptr(page + 1), al)?;
        fetch(a, page)?;
        a.user(|a| fetch(a, page))
    });
    rig.map_window(5, page, WU | NX);
    assert_eq!(rig.run().faults(), [Fault::page(page, 17), Fault::page(page, 21)]);
}

fn reserved_bits(engine: &dyn Engine) {
    let page = window(5);
    let other = 1u64 << 39 | page;
    let big = 0x60_0000u64;
    let mut rig = Rig::with(engine, |a| {
        // In a PML4 entry bit 7 is reserved.
        a.mov(rbx, other)?;
        a.fault(|a| a.mov(al, byte_ptr(rbx)))?;
        a.fault(|a| a.mov(byte_ptr(rbx), al))?;
        // Bits 20 to 13 of the entry of a 2 MiB page are.
        a.fault(|a| a.mov(al, byte_ptr(big)))?;
        a.user(|a| a.fault(|a| a.mov(al, byte_ptr(big))))?;
        // Without EFER.NXE bit 63 is.
        a.mov(al, byte_ptr(page))?;
        a.read_msr(x86::msr::EFER)?;
        a.and(eax, !(x86::efer::NXE as u32))?;
        a.wrmsr()?;
        a.fault(|a| a.mov(al, byte_ptr(page)))
    });
    rig.set_word(PML4 + 8, PDPT | WU | paging::LARGE);
    rig.set_word(DIRECTORY + 3 * 8, big | 1 << 13 | WU | paging::LARGE);
    rig.map_window(5, page, WU | NX);
    let expected = [
        Fault::page(other, 9),
        Fault::page(other, 11),
        Fault::page(big, 9),
        Fault::page(big, 13),
        Fault::page(page, 9),
    ];
    assert_eq!(rig.run().faults(), expected);
}

/// Rights are those of all levels together.
fn upper_levels(engine: &dyn Engine) {
    let tables = DATA;
    let base = 0x80_0000u64;
    let mut rig = Rig::with(engine, |a| {
        a.user(|a| a.fault(|a| a.mov(al, byte_ptr(base))))?;
        a.fault(|a| a.mov(byte_ptr(base + (2 << 20)), al))?;
        fetch(a, base + (4 << 20))?;
        a.fault(|a| a.mov(al, byte_ptr(base + (6 << 20))))
    });
    for page in 0..4 {
        let table = tables + page * 0x1000;
        rig.set_word(table, WINDOW | WU);
        let bits = [W, RU, WU | NX, WU & !R][page as usize];
        rig.set_word(DIRECTORY + (4 + page) * 8, table | bits);
    }
    let expected = [
        Fault::page(base, 5),
        Fault::page(base + (2 << 20), 3),
        Fault::page(base + (4 << 20), 17),
        Fault::page(base + (6 << 20), 0),
    ];
    assert_eq!(rig.run().faults(), expected);
}

/// CR2 has 64 bits.
fn high_half(engine: &dyn Engine) {
    let address = 0xffff_8000_1234_5678u64;
    let mut rig = Rig::with(engine, |a| {
        a.mov(rbx, address)?;
        a.fault(|a| a.mov(rax, qword_ptr(rbx)))?;
        a.mov(rbx, u64::MAX - 7)?;
        a.fault(|a| a.mov(qword_ptr(rbx), rax))
    });
    assert_eq!(rig.run().faults(), [Fault::page(address, 0), Fault::page(u64::MAX - 7, 2)]);
}

/// CR2 is the first byte that cannot be accessed.
fn crossing_reads(engine: &dyn Engine) {
    let (first, second) = (window(5), window(6));
    let mut rig = Rig::with(engine, |a| {
        a.fault(|a| a.mov(rax, qword_ptr(second - 3)))?;
        a.fault(|a| a.mov(ax, word_ptr(first - 1)))?;
        a.fault(|a| a.mov(rax, qword_ptr(window(7) - 4)))?;
        a.fault(|a| a.movups(xmm0, xmmword_ptr(second - 15)))
    });
    rig.map_window(6, second, 0);
    rig.map_window(4, window(4), 0);
    let expected = [
        Fault::page(second, 0),
        Fault::page(first - 1, 0),
        Fault::page(window(7) - 4, 0),
        Fault::page(second, 0),
    ];
    assert_eq!(rig.run().faults(), expected);
}

/// A write of which one part faults writes nothing.
fn crossing_writes(engine: &dyn Engine) {
    let second = window(6);
    let mut rig = Rig::with(engine, |a| {
        a.mov(rax, u64::MAX)?;
        a.fault(|a| a.mov(qword_ptr(second - 3), rax))?;
        a.fault(|a| a.add(dword_ptr(second - 2), 5))?;
        a.fault(|a| a.movups(xmmword_ptr(second - 8), xmm0))?;
        a.fault(|a| a.mov(qword_ptr(window(7) - 3), rax))?;
        a.fault(|a| a.xchg(word_ptr(second - 1), ax))
    });
    rig.set_word(second - 8, 0x0102_0304_0506_0708);
    rig.map_window(6, second, RU);
    rig.set_word(window(7), 0x1112_1314_1516_1718);
    let record = rig.run();
    let expected = [
        Fault::page(second, 3),
        Fault::page(second, 3),
        Fault::page(second, 3),
        Fault::page(window(7) - 3, 3),
        Fault::page(second, 3),
    ];
    assert_eq!(record.faults(), expected);
    assert_eq!(rig.word(second - 8), 0x0102_0304_0506_0708);
    assert_eq!(rig.word(window(7)), 0x1112_1314_1516_1718);
}

/// An instruction whose end is on a page that is not there: RIP is its start, CR2 the page.
fn crossing_fetch(engine: &dyn Engine) {
    let second = window(6);
    let mut rig = Rig::with(engine, |a| fetch(a, second - 2));
    // mov eax, imm32, three bytes of which are on the second page
    rig.write(second - 2, &[0xb8, 1]);
    rig.map_window(6, second, 0);
    assert_eq!(rig.run().faults(), [Fault::page(second, 16)]);
}

/// The stack cannot take the fault itself: the gate has a stack of its own.
fn push(engine: &dyn Engine) {
    let top = window(6);
    let mut rig = Rig::with(engine, |a| {
        for body in [push_rax, call, push_memory] {
            a.mov(rsp, top + 4)?;
            a.fault(body)?;
            a.mov(rbx, rsp)?;
            a.mov(rsp, STACK)?;
            a.mov(rax, rbx)?;
            a.log_eax()?;
        }
        Ok(())
    });
    rig.set_gate(14, Gate { ist: 1, ..Gate::stub(14) });
    rig.map_window(5, window(5), 0);
    let record = rig.run();
    assert_eq!(record.faults(), [Fault::page(top - 4, 2); 3]);
    assert_eq!(record.log, [top as u32 + 4; 3]);
}

fn push_rax(a: &mut CodeAssembler) -> Asm {
    a.push(rax)
}

fn push_memory(a: &mut CodeAssembler) -> Asm {
    a.push(qword_ptr(DATA))
}

fn call(a: &mut CodeAssembler) -> Asm {
    a.call(HANDLER)
}

/// A POP to memory that faults leaves RSP as it was.
fn pop(engine: &dyn Engine) {
    let page = window(5);
    let mut rig = Rig::with(engine, |a| {
        a.push(7)?;
        a.fault(|a| a.pop(qword_ptr(page)))?;
        a.mov(eax, esp)?;
        a.log_eax()?;
        a.pop(rax)?;
        a.log_eax()
    });
    rig.map_window(5, page, 0);
    let record = rig.run();
    assert_eq!(record.faults(), [Fault::page(page, 2)]);
    assert_eq!(record.log, [STACK as u32 - 8, 7]);
}

/// What will be written is read as if it were written.
fn read_modify_write(engine: &dyn Engine) {
    let page = window(5);
    let mut rig = Rig::with(engine, |a| {
        a.fault(|a| a.add(dword_ptr(page), 1))?;
        a.fault(|a| a.lock().inc(dword_ptr(page)))?;
        // A comparison that fails writes too: it stores what it has read.
        a.mov(eax, 1)?;
        a.fault(|a| a.lock().cmpxchg(dword_ptr(page), ecx))?;
        a.fault(|a| a.bts(dword_ptr(page), 3))?;
        a.fault(|a| a.shl(dword_ptr(page), 0))?;
        a.cmp(dword_ptr(page), 1)?;
        a.bt(dword_ptr(page), 3)
    });
    rig.map_window(5, page, RU);
    assert_eq!(rig.run().faults(), [Fault::page(page, 3); 5]);
}

fn registers_kept(engine: &dyn Engine) {
    let page = window(5);
    let mut rig = Rig::with(engine, |a| {
        a.mov(rax, 0x1111_1111_1111_1111u64)?;
        a.mov(rbx, rax)?;
        a.mov(rsi, page)?;
        a.stc()?;
        a.fault(|a| a.add(rax, qword_ptr(rsi)))?;
        a.fault(|a| a.xchg(qword_ptr(rsi), rax))?;
        a.fault(iced_x86::code_asm::CodeAssembler::lodsq)?;
        a.fault(|a| a.xadd(qword_ptr(rsi), rax))?;
        a.adc(rbx, 0)?;
        a.log_rax()?;
        a.mov(rax, rbx)?;
        a.log_rax()?;
        a.mov(rax, rsi)?;
        a.log_eax()
    });
    rig.map_window(5, page, 0);
    let record = rig.run();
    let (read, write) = (Fault::page(page, 0), Fault::page(page, 2));
    assert_eq!(record.faults(), [read, write, read, write]);
    let ones = 0x1111_1111;
    assert_eq!(record.log, [ones, ones, ones + 1, ones, page as u32]);
}

/// CR4.SMEP: the supervisor executes no user page.
fn supervisor_fetch(engine: &dyn Engine) {
    if cpuid(engine, 7, 0)[1] & 1 << 7 == 0 {
        skip("no SMEP");
    }
    let page = window(5);
    let mut rig = supervisor_only(engine, |a| {
        a.set_cr4(x86::cr4::SMEP)?;
        a.mov(al, byte_ptr(page))?;
        fetch(a, page)?;
        a.clear_cr4(x86::cr4::SMEP)
    });
    assert_eq!(rig.run().faults(), [Fault::page(page, 17)]);
}

/// CR4.SMAP: the supervisor accesses no user page but with AC set.
fn supervisor_access(engine: &dyn Engine) {
    if cpuid(engine, 7, 0)[1] & 1 << 20 == 0 {
        skip("no SMAP");
    }
    let page = window(5);
    let mut rig = supervisor_only(engine, |a| {
        a.set_cr4(x86::cr4::SMAP)?;
        a.fault(|a| a.mov(al, byte_ptr(page)))?;
        a.fault(|a| a.mov(byte_ptr(page), al))?;
        a.stac()?;
        a.mov(byte_ptr(page), al)?;
        a.clac()?;
        a.fault(|a| a.mov(al, byte_ptr(page)))?;
        a.clear_cr4(x86::cr4::SMAP)
    });
    assert_eq!(
        rig.run().faults(),
        [Fault::page(page, 1), Fault::page(page, 3), Fault::page(page, 1)]
    );
}

/// A machine in which only the window is open to user mode.
fn supervisor_only(engine: &dyn Engine, write: impl FnOnce(&mut CodeAssembler) -> Asm) -> Rig {
    let rig = Rig::with(engine, write);
    rig.set_word(DIRECTORY, W | paging::LARGE);
    rig
}
