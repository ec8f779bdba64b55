//! Accesses where there is no RAM.

use super::prelude::*;

cases!(
    "mmio": read_sizes, write_sizes, extended_reads, read_modify_write, locked, exchange, stack,
    strings_from, strings_to, through_page_tables, across_from_ram, execute_after,
);

fn read(gpa: u64, size: u8) -> Exit {
    Exit::MmioRead { gpa, size }
}

fn write(gpa: u64, size: u8, value: u64) -> Exit {
    Exit::MmioWrite { gpa, size, value }
}

const ANSWER: u64 = 0x8877_6655_4433_2211;

fn read_sizes(engine: &dyn Engine) {
    let rig = Rig::with(engine, |a| {
        a.mov(r8, u64::MAX)?;
        for size in [1, 2, 4, 8] {
            a.mov(rax, r8)?;
            match size {
                1 => a.mov(al, byte_ptr(MMIO))?,
                2 => a.mov(ax, word_ptr(MMIO + 2))?,
                4 => a.mov(eax, dword_ptr(MMIO + 4))?,
                _ => a.mov(rax, qword_ptr(MMIO + 8))?,
            }
            a.log_rax()?;
        }
        Ok(())
    });
    let record = rig.answer([ANSWER; 4]).run();
    let ones = u32::MAX;
    assert_eq!(
        record.log,
        [0xffff_ff11, ones, 0xffff_2211, ones, 0x4433_2211, 0, 0x4433_2211, 0x8877_6655]
    );
    let expected = [read(MMIO, 1), read(MMIO + 2, 2), read(MMIO + 4, 4), read(MMIO + 8, 8)];
    assert_eq!(record.exits, expected);
}

fn write_sizes(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        a.mov(rax, ANSWER)?;
        a.mov(byte_ptr(MMIO), al)?;
        a.mov(word_ptr(MMIO + 2), ax)?;
        a.mov(dword_ptr(MMIO + 4), eax)?;
        a.mov(qword_ptr(MMIO + 8), rax)?;
        a.mov(byte_ptr(MMIO + 16), ah)?;
        a.mov(qword_ptr(MMIO + 24), -2)?;
        a.mov(dword_ptr(MMIO + 33), 5)
    })
    .run();
    let expected = [
        write(MMIO, 1, 0x11),
        write(MMIO + 2, 2, 0x2211),
        write(MMIO + 4, 4, 0x4433_2211),
        write(MMIO + 8, 8, ANSWER),
        write(MMIO + 16, 1, 0x22),
        write(MMIO + 24, 8, -2i64 as u64),
        write(MMIO + 33, 4, 5),
    ];
    assert_eq!(record.exits, expected);
}

fn extended_reads(engine: &dyn Engine) {
    let rig = Rig::with(engine, |a| {
        a.movzx(eax, byte_ptr(MMIO))?;
        a.log_eax()?;
        a.movsx(eax, word_ptr(MMIO))?;
        a.log_eax()?;
        a.movsxd(rax, dword_ptr(MMIO))?;
        a.log_rax()?;
        a.mov(eax, 1)?;
        a.add(eax, dword_ptr(MMIO))?;
        a.log_eax()?;
        a.cmp(byte_ptr(MMIO), 7)?;
        a.sete(al)?;
        a.movzx(eax, al)?;
        a.log_eax()
    });
    let record = rig.answer([0xfff0, 0x8001, 0x8000_0001, 0x41, 7]).run();
    assert_eq!(record.log, [0xf0, 0xffff_8001, 0x8000_0001, u32::MAX, 0x42, 1]);
    assert_eq!(record.exits.len(), 5);
}

/// A read exit, then a write exit; the read's answer is used once.
fn read_modify_write(engine: &dyn Engine) {
    let rig = Rig::with(engine, |a| {
        a.add(dword_ptr(MMIO), 5)?;
        a.setc(al)?;
        a.movzx(eax, al)?;
        a.log_eax()?;
        a.or(byte_ptr(MMIO + 1), 0x80u32)?;
        a.not(word_ptr(MMIO + 2))
    });
    let record = rig.answer([0xffff_fffe, 1, 0x00ff]).run();
    let expected = [
        read(MMIO, 4),
        write(MMIO, 4, 3),
        read(MMIO + 1, 1),
        write(MMIO + 1, 1, 0x81),
        read(MMIO + 2, 2),
        write(MMIO + 2, 2, 0xff00),
    ];
    assert_eq!(record.exits, expected);
    assert_eq!(record.log, [1]);
}

fn locked(engine: &dyn Engine) {
    let rig = Rig::with(engine, |a| {
        a.lock().inc(dword_ptr(MMIO))?;
        a.mov(eax, 3)?;
        a.lock().xadd(dword_ptr(MMIO), eax)?;
        a.log_eax()
    });
    let record = rig.answer([7, 8]).run();
    let expected = [read(MMIO, 4), write(MMIO, 4, 8), read(MMIO, 4), write(MMIO, 4, 11)];
    assert_eq!(record.exits, expected);
    assert_eq!(record.log, [8]);
}

fn exchange(engine: &dyn Engine) {
    let rig = Rig::with(engine, |a| {
        a.mov(eax, 0x1234)?;
        a.xchg(dword_ptr(MMIO), eax)?;
        a.log_eax()
    });
    let record = rig.answer([0x5678]).run();
    assert_eq!(record.exits, [read(MMIO, 4), write(MMIO, 4, 0x1234)]);
    assert_eq!(record.log, [0x5678]);
}

fn stack(engine: &dyn Engine) {
    let rig = Rig::with(engine, |a| {
        a.push(qword_ptr(MMIO))?;
        a.pop(qword_ptr(MMIO + 8))?;
        a.mov(rax, rsp)?;
        a.log_eax()
    });
    let record = rig.answer([ANSWER]).run();
    assert_eq!(record.exits, [read(MMIO, 8), write(MMIO + 8, 8, ANSWER)]);
    assert_eq!(record.log, [STACK as u32]);
}

fn strings_from(engine: &dyn Engine) {
    let rig = Rig::with(engine, |a| {
        a.mov(esi, MMIO as u32)?;
        a.mov(edi, DATA as u32)?;
        a.mov(ecx, 2)?;
        a.rep().movsd()?;
        a.mov(ecx, 3)?;
        a.rep().movsb()?;
        a.mov(eax, ecx)?;
        a.log_eax()?;
        a.lodsw()?;
        a.movzx(eax, ax)?;
        a.log_eax()
    });
    let mut rig = rig.answer([0x0403_0201, 0x0807_0605, 9, 10, 11, 0xabcd]);
    let record = rig.run();
    let expected = [
        read(MMIO, 4),
        read(MMIO + 4, 4),
        read(MMIO + 8, 1),
        read(MMIO + 9, 1),
        read(MMIO + 10, 1),
        read(MMIO + 11, 2),
    ];
    assert_eq!(record.exits, expected);
    assert_eq!(rig.bytes(DATA, 12), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0]);
    assert_eq!(record.log, [0, 0xabcd]);
}

fn strings_to(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(esi, DATA as u32)?;
        a.mov(edi, MMIO as u32)?;
        a.mov(ecx, 2)?;
        a.rep().movsw()?;
        a.mov(eax, 0x5a)?;
        a.mov(ecx, 2)?;
        a.rep().stosb()?;
        a.stosq()
    });
    rig.set_word(DATA, 0x0403_0201);
    let record = rig.run();
    let expected = [
        write(MMIO, 2, 0x0201),
        write(MMIO + 2, 2, 0x0403),
        write(MMIO + 4, 1, 0x5a),
        write(MMIO + 5, 1, 0x5a),
        write(MMIO + 6, 8, 0x5a),
    ];
    assert_eq!(record.exits, expected);
}

/// The exit names the physical address; protection is checked before.
fn through_page_tables(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(byte_ptr(window(3) + 5), 1)?;
        a.fault(|a| a.mov(byte_ptr(window(4) + 5), 2))?;
        a.mov(al, byte_ptr(window(4) + 6))
    });
    rig.map_window(3, MMIO + 0x7000, paging::PRESENT | paging::WRITABLE);
    rig.map_window(4, MMIO + 0x8000, paging::PRESENT);
    let record = rig.run();
    assert_eq!(record.exits, [write(MMIO + 0x7005, 1, 1), read(MMIO + 0x8006, 1)]);
    assert_eq!(record.faults(), [Fault::page(window(4) + 5, 3)]);
}

/// The part in RAM is an ordinary access, the rest an exit.
fn across_from_ram(engine: &dyn Engine) {
    let rig = Rig::with(engine, |a| {
        a.mov(eax, dword_ptr(window(4) - 2))?;
        a.log_eax()?;
        a.mov(dword_ptr(window(4) - 2), 0x8765_4321u32)
    });
    rig.map_window(4, MMIO, paging::PRESENT | paging::WRITABLE);
    rig.write(window(4) - 2, &[0x11, 0x22]);
    let mut rig = rig.answer([0x4433]);
    let record = rig.run();
    assert_eq!(record.exits, [read(MMIO, 2), write(MMIO, 2, 0x8765)]);
    assert_eq!(record.log, [0x4433_2211]);
    assert_eq!(rig.bytes(window(4) - 2, 2), [0x21, 0x43]);
}

/// The instruction after an exit runs once, with all registers kept.
fn execute_after(engine: &dyn Engine) {
    let rig = Rig::with(engine, |a| {
        let mut again = a.create_label();
        a.xor(ebx, ebx)?;
        a.mov(ecx, 100)?;
        a.set_label(&mut again)?;
        a.add(ebx, dword_ptr(MMIO))?;
        a.inc(ebx)?;
        a.mov(dword_ptr(MMIO), ebx)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.mov(eax, ebx)?;
        a.log_eax()
    });
    let record = rig.answer(1..=100).run();
    assert_eq!(record.log, [5050 + 100]);
    assert_eq!(record.exits.len(), 200);
}
