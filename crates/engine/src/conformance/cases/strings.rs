//! String instructions: both directions, overlap, and faults in the middle.

use super::prelude::*;

cases!(
    "strings": moves, backwards, overlap, stores_and_loads, compares, scans, source_fault,
    destination_fault, element_across, backwards_fault, resumed, zero_count, every_border,
    interrupted, large,
);

/// Logs RCX, RSI, RDI.
fn log_progress(a: &mut CodeAssembler) -> Asm {
    for register in [ecx, esi, edi] {
        a.mov(eax, register)?;
        a.log_eax()?;
    }
    Ok(())
}

fn start(a: &mut CodeAssembler, from: u64, to: u64, count: u32) -> Asm {
    a.mov(esi, from as u32)?;
    a.mov(edi, to as u32)?;
    a.mov(ecx, count)
}

fn counting(len: usize) -> Vec<u8> {
    (0..len).map(|index| index as u8 ^ (index >> 8) as u8).collect()
}

fn moves(engine: &dyn Engine) {
    let (from, to) = (DATA, DATA + 0x1_0000);
    let mut rig = Rig::with(engine, |a| {
        start(a, from, to, 1000)?;
        a.rep().movsb()?;
        a.mov(ecx, 1000)?;
        a.rep().movsw()?;
        a.mov(ecx, 1000)?;
        a.rep().movsd()?;
        a.mov(ecx, 1000)?;
        a.rep().movsq()?;
        a.movsb()?;
        log_progress(a)
    });
    let bytes = counting(15_001);
    rig.write(from, &bytes);
    let record = rig.run();
    assert_eq!(rig.bytes(to, 15_001), bytes);
    assert_eq!(rig.bytes(to + 15_001, 1), [0]);
    assert_eq!(record.log, [0, from as u32 + 15_001, to as u32 + 15_001]);
}

fn backwards(engine: &dyn Engine) {
    let (from, to) = (DATA, DATA + 0x1_0000);
    let mut rig = Rig::with(engine, |a| {
        start(a, from + 7992, to + 7992, 1000)?;
        a.std()?;
        a.rep().movsq()?;
        a.cld()?;
        log_progress(a)
    });
    let bytes = counting(8000);
    rig.write(from, &bytes);
    let record = rig.run();
    assert_eq!(rig.bytes(to, 8000), bytes);
    assert_eq!(record.log, [0, from as u32 - 8, to as u32 - 8]);
}

/// Overlapping moves go element by element, in order.
fn overlap(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        // Forward, one byte on: fills.
        start(a, DATA, DATA + 1, 5000)?;
        a.rep().movsb()?;
        // Backward, the way memmove does it.
        start(a, DATA + 0x1_0000 + 4095, DATA + 0x1_0000 + 4100, 4096)?;
        a.std()?;
        a.rep().movsb()?;
        a.cld()?;
        // Forward by words, three bytes on.
        start(a, DATA + 0x2_0000, DATA + 0x2_0003, 4)?;
        a.rep().movsd()
    });
    rig.write(DATA, &[0xaa]);
    let bytes = counting(4096);
    rig.write(DATA + 0x1_0000, &bytes);
    rig.write(DATA + 0x2_0000, &counting(20));
    let mut model = counting(20);
    for element in 0..4 {
        model.copy_within(element * 4..element * 4 + 4, element * 4 + 3);
    }
    rig.run();
    assert_eq!(rig.bytes(DATA, 5002), [[0xaa; 5001].as_slice(), &[0]].concat());
    assert_eq!(rig.bytes(DATA + 0x1_0005, 4096), bytes);
    assert_eq!(rig.bytes(DATA + 0x2_0000, 20), model);
}

fn stores_and_loads(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(rax, 0x1122_3344_5566_7788u64)?;
        start(a, DATA, DATA, 600)?;
        a.rep().stosq()?;
        a.mov(ecx, 3)?;
        a.rep().stosb()?;
        a.std()?;
        a.stosw()?;
        a.cld()?;
        a.mov(ecx, 2)?;
        a.rep().lodsd()?;
        a.log_rax()?;
        log_progress(a)
    });
    let record = rig.run();
    assert_eq!(rig.word(DATA + 4792), 0x1122_3344_5566_7788);
    assert_eq!(rig.word(DATA + 4800), 0x77_8888_8888 & 0xff_ff88_8888 | 0x7788 << 24);
    assert_eq!(record.log, [0x1122_3344, 0, 0, DATA as u32 + 8, DATA as u32 + 4801]);
}

fn compares(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        start(a, DATA, DATA + 0x1000, 10)?;
        a.repe().cmpsb()?;
        a.setb(al)?;
        a.movzx(eax, al)?;
        a.log_eax()?;
        log_progress(a)?;
        a.repne().cmpsb()?;
        log_progress(a)
    });
    rig.write(DATA, &[1, 2, 3, 4, 0xff, 7]);
    rig.write(DATA + 0x1000, &[1, 2, 3, 5, 0, 7]);
    let (left, right) = (DATA as u32, DATA as u32 + 0x1000);
    assert_eq!(rig.run().log, [1, 6, left + 4, right + 4, 4, left + 6, right + 6]);
}

fn scans(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.xor(eax, eax)?;
        start(a, 0, DATA, u32::MAX)?;
        a.repne().scasb()?;
        log_progress(a)?;
        a.xor(eax, eax)?;
        a.mov(ecx, 5)?;
        a.repe().scasd()?;
        a.setz(al)?;
        a.movzx(eax, al)?;
        a.log_eax()?;
        log_progress(a)
    });
    rig.write(DATA, &[7; 5000]);
    let end = DATA as u32 + 5001;
    assert_eq!(rig.run().log, [u32::MAX - 5001, 0, end, 1, 0, 0, end + 20]);
}

/// Registers show the elements done; memory has those and no more.
fn source_fault(engine: &dyn Engine) {
    let to = DATA;
    let mut rig = Rig::with(engine, |a| {
        start(a, window(5) - 10, to, 4096)?;
        a.fault(|a| a.rep().movsb())?;
        log_progress(a)
    });
    rig.map_window(5, 0, 0);
    rig.write(window(5) - 10, &[3; 10]);
    let record = rig.run();
    assert_eq!(record.faults(), [Fault::page(window(5), 0)]);
    assert_eq!(record.log, [4086, window(5) as u32, to as u32 + 10]);
    assert_eq!(rig.bytes(to, 12), [3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 0, 0]);
}

fn destination_fault(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        start(a, DATA, window(5) - 0x1010, 0x1000)?;
        a.fault(|a| a.rep().movsq())?;
        log_progress(a)?;
        start(a, DATA, window(5) - 6, 100)?;
        a.fault(|a| a.rep().stosw())?;
        log_progress(a)
    });
    rig.map_window(5, window(5), paging::PRESENT);
    let record = rig.run();
    assert_eq!(record.faults(), [Fault::page(window(5), 3); 2]);
    let stored = [0x1000 - 0x202, DATA as u32 + 0x1010, window(5) as u32];
    let filled = [97, DATA as u32, window(5) as u32];
    assert_eq!(record.log, [stored, filled].concat());
}

/// An element half of which faults is not moved at all.
fn element_across(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        start(a, DATA, window(5) - 11, 9)?;
        a.fault(|a| a.rep().movsq())?;
        log_progress(a)
    });
    rig.map_window(5, 0, 0);
    rig.write(DATA, &[9; 100]);
    let record = rig.run();
    assert_eq!(record.faults(), [Fault::page(window(5), 2)]);
    assert_eq!(record.log, [8, DATA as u32 + 8, window(5) as u32 - 3]);
    assert_eq!(rig.bytes(window(5) - 4, 4), [9, 0, 0, 0]);
}

fn backwards_fault(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        start(a, DATA + 0x2000, window(6) + 12, 100)?;
        a.std()?;
        a.fault(|a| a.rep().movsd())?;
        a.cld()?;
        log_progress(a)
    });
    rig.map_window(5, 0, 0);
    let record = rig.run();
    assert_eq!(record.faults(), [Fault::page(window(6) - 4, 2)]);
    assert_eq!(record.log, [96, DATA as u32 + 0x2000 - 16, window(6) as u32 - 4]);
}

/// The handler maps the page and returns: the instruction goes on where it was.
fn resumed(engine: &dyn Engine) {
    let to = window(5) - 0x800;
    let mut rig = Rig::with(engine, |a| {
        start(a, DATA, to, 0x3000)?;
        a.rep().movsb()?;
        log_progress(a)
    });
    rig.load(HANDLER, |a| {
        a.push(rax)?;
        a.push(rbx)?;
        a.mov(rax, cr2)?;
        a.sub(rax, WINDOW as i32)?;
        a.shr(rax, 12)?;
        a.mov(rbx, rax)?;
        a.shl(rax, 12)?;
        a.add(rax, (WINDOW | 7) as i32)?;
        a.mov(qword_ptr(rbx * 8 + WINDOW_TABLE), rax)?;
        a.pop(rbx)?;
        a.pop(rax)?;
        a.add(rsp, 8)?;
        a.iretq()
    });
    rig.set_gate(14, Gate::to(HANDLER));
    for page in 5..8 {
        rig.map_window(page, 0, 0);
    }
    let bytes = counting(0x3000);
    rig.write(DATA, &bytes);
    let record = rig.run();
    assert_eq!(record.log, [0, DATA as u32 + 0x3000, to as u32 + 0x3000]);
    assert_eq!(rig.bytes(to, 0x3000), bytes);
}

fn zero_count(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.stc()?;
        start(a, window(5), window(5), 0)?;
        a.rep().movsb()?;
        a.rep().stosq()?;
        a.repe().cmpsb()?;
        a.repne().scasb()?;
        a.setc(al)?;
        a.movzx(eax, al)?;
        a.log_eax()?;
        log_progress(a)
    });
    rig.map_window(5, 0, 0);
    let record = rig.run();
    assert_eq!(record.faults(), []);
    assert_eq!(record.log, [1, 0, window(5) as u32, window(5) as u32]);
}

/// Short ones from and to around the ends of pages, of each size, again and again.
fn every_border(engine: &dyn Engine) {
    const LEN: usize = 0x400;
    let (from, to) = (DATA + 0x1000 - 24, DATA + 0x8000 - 20);
    let mut rig = Rig::with(engine, |a| {
        let mut again = a.create_label();
        a.xor(ebx, ebx)?;
        a.set_label(&mut again)?;
        for element in 0..4 {
            a.lea(rsi, ptr(rbx + from))?;
            a.lea(rdi, ptr(rbx * 2 + to))?;
            a.mov(ecx, 9)?;
            match element {
                0 => a.rep().movsb()?,
                1 => a.rep().movsw()?,
                2 => a.rep().movsd()?,
                _ => a.rep().movsq()?,
            }
            a.mov(ecx, 3)?;
            a.mov(rax, 0xf1f2_f3f4_f5f6_f7f8u64)?;
            match element {
                0 => a.rep().stosb()?,
                1 => a.rep().stosw()?,
                2 => a.rep().stosd()?,
                _ => a.rep().stosq()?,
            }
            log_progress(a)?;
        }
        a.inc(ebx)?;
        a.cmp(ebx, 40)?;
        a.jb(again)
    });
    let source = counting(LEN);
    rig.write(from, &source);
    let mut model = vec![0; LEN];
    let mut log = Vec::new();
    for start in 0..40 {
        for size in [1, 2, 4, 8] {
            let (moved, end) = (9 * size, 2 * start + 12 * size);
            model[2 * start..2 * start + moved].copy_from_slice(&source[start..start + moved]);
            for stored in model[2 * start + moved..end].chunks_exact_mut(size) {
                stored.copy_from_slice(&0xf1f2_f3f4_f5f6_f7f8u64.to_le_bytes()[..size]);
            }
            log.extend([0, from as u32 + (start + moved) as u32, to as u32 + end as u32]);
        }
    }
    let record = rig.run();
    assert_eq!(record.log, log);
    assert!(rig.bytes(to, LEN) == model, "copy differs");
}

/// Interrupts come between iterations, with RIP at the instruction, and nothing is lost.
fn interrupted(engine: &dyn Engine) {
    let len = 0x40_0000u32;
    let (from, to) = (0x40_0000u64, 0x80_0000u64);
    let mut rig = Rig::with(engine, |a| {
        a.enable_apic()?;
        a.write_msr(apic::DIVIDE, 0xb)?;
        a.write_msr(apic::LVT_TIMER, 1 << 17 | 0x40)?;
        a.write_msr(apic::INITIAL_COUNT, 50_000)?;
        a.sti()?;
        for _ in 0..4 {
            start(a, from, to, len)?;
            a.rep().movsb()?;
        }
        a.cli()?;
        log_progress(a)
    });
    rig.load(HANDLER, |a| {
        a.push(rax)?;
        a.push(rcx)?;
        a.push(rdx)?;
        a.write_msr(apic::EOI, 0)?;
        a.pop(rdx)?;
        a.pop(rcx)?;
        a.pop(rax)?;
        a.iretq()
    });
    rig.set_gate(0x40, Gate::to(HANDLER));
    let bytes = counting(len as usize);
    rig.write(from, &bytes);
    let record = rig.run();
    assert_eq!(record.log, [0, from as u32 + len, to as u32 + len]);
    assert!(rig.bytes(to, len as usize) == bytes, "copy differs");
}

/// Crosses from small pages to large ones and between distant pages.
fn large(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        start(a, window(500) + 5, 0x60_0001, 0x2_0000)?;
        a.rep().movsb()?;
        log_progress(a)
    });
    let bytes = counting(0x2_0000);
    rig.write(window(500) + 5, &bytes);
    // Two pages of the source trade places.
    for (page, other) in [(501, 502), (502, 501)] {
        rig.map_window(page, window(other), paging::PRESENT);
    }
    let mut model = bytes;
    for offset in 0..4096 {
        model.swap(0xffb + offset, 0x1ffb + offset);
    }
    let record = rig.run();
    assert_eq!(record.log, [0, window(500) as u32 + 0x2_0005, 0x62_0001]);
    assert!(rig.bytes(0x60_0001, 0x2_0000) == model, "copy differs");
}
