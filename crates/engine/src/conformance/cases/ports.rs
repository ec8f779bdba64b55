//! Port I/O.

use super::prelude::*;

cases!("ports": out_sizes, in_sizes, repeated_out, repeated_in, backwards, source_fault, zero_count);

const PORT: u16 = 0x70;

fn write(port: u16, size: u8, value: u32) -> Exit {
    Exit::PortWrite { port, size, value }
}

fn out_sizes(engine: &dyn Engine) {
    let record = Rig::with(engine, |a| {
        a.mov(eax, 0x8899_aabbu32)?;
        a.out(0x55, al)?;
        a.out(0x56, ax)?;
        a.out(0x58, eax)?;
        a.mov(edx, 0xf00d)?;
        a.out(dx, al)?;
        a.out(dx, ax)?;
        a.out(dx, eax)
    })
    .run();
    let expected = [
        write(0x55, 1, 0xbb),
        write(0x56, 2, 0xaabb),
        write(0x58, 4, 0x8899_aabb),
        write(0xf00d, 1, 0xbb),
        write(0xf00d, 2, 0xaabb),
        write(0xf00d, 4, 0x8899_aabb),
    ];
    assert_eq!(record.exits, expected);
}

fn in_sizes(engine: &dyn Engine) {
    let rig = Rig::with(engine, |a| {
        a.mov(rbx, 0x1122_3344_5566_7788u64)?;
        for size in [1, 2, 4] {
            a.mov(edx, u32::from(PORT))?;
            a.mov(rax, rbx)?;
            match size {
                1 => a.in_(al, dx)?,
                2 => a.in_(ax, dx)?,
                _ => a.in_(eax, dx)?,
            }
            a.log_rax()?;
        }
        a.in_(al, 0x71)?;
        a.in_(ax, 0x72)?;
        a.in_(eax, 0x74)?;
        a.log_eax()
    });
    let junk = 0xffff_ffff_c0de_d00d;
    let record = rig.answer([junk, junk, junk, 1, 2, 3]).run();
    let low_high = [0x5566_770d, 0x1122_3344, 0x5566_d00d, 0x1122_3344, 0xc0de_d00d, 0, 3];
    assert_eq!(record.log, low_high);
    let read = |port, size| Exit::PortRead { port, size };
    let expected =
        [read(PORT, 1), read(PORT, 2), read(PORT, 4), read(0x71, 1), read(0x72, 2), read(0x74, 4)];
    assert_eq!(record.exits, expected);
}

fn repeated_out(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(edx, u32::from(PORT))?;
        a.mov(esi, DATA as u32)?;
        a.mov(ecx, 3)?;
        a.rep().outsb()?;
        a.mov(ecx, 2)?;
        a.rep().outsd()?;
        a.outsw()?;
        a.log_rcx_rsi()
    });
    rig.write(DATA, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]);
    let record = rig.run();
    let expected = [
        write(PORT, 1, 1),
        write(PORT, 1, 2),
        write(PORT, 1, 3),
        write(PORT, 4, 0x0706_0504),
        write(PORT, 4, 0x0b0a_0908),
        write(PORT, 2, 0x0d0c),
    ];
    assert_eq!(record.exits, expected);
    assert_eq!(record.log, [0, DATA as u32 + 13]);
}

fn repeated_in(engine: &dyn Engine) {
    let rig = Rig::with(engine, |a| {
        a.mov(edx, u32::from(PORT))?;
        a.mov(edi, DATA as u32)?;
        a.mov(ecx, 2)?;
        a.rep().insd()?;
        a.insw()?;
        a.mov(ecx, 2)?;
        a.rep().insb()?;
        a.mov(esi, edi)?;
        a.log_rcx_rsi()
    });
    let mut rig = rig.answer([0x0403_0201, 0x0807_0605, 0xffff_0a09, 0xffff_ff0b, 0x0c]);
    let record = rig.run();
    assert_eq!(rig.bytes(DATA, 13), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0]);
    assert_eq!(record.log, [0, DATA as u32 + 12]);
    assert_eq!(record.exits.len(), 5);
}

/// With DF set, addresses fall.
fn backwards(engine: &dyn Engine) {
    let rig = Rig::with(engine, |a| {
        a.mov(edx, u32::from(PORT))?;
        a.mov(edi, DATA as u32 + 6)?;
        a.mov(ecx, 3)?;
        a.std()?;
        a.rep().insw()?;
        a.lea(rsi, ptr(rdi + 6))?;
        a.mov(ecx, 2)?;
        a.rep().outsb()?;
        a.cld()?;
        a.log_rcx_rsi()
    });
    let mut rig = rig.answer([0x1111, 0x2222, 0x3333]);
    let record = rig.run();
    assert_eq!(rig.word(DATA), 0x1111_2222_3333_0000);
    assert_eq!(record.exits[3..], [write(PORT, 1, 0x11), write(PORT, 1, 0x22)]);
    assert_eq!(record.log, [0, DATA as u32 + 4]);
}

/// A fault in the middle leaves what was done before it, and nothing after.
fn source_fault(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(edx, u32::from(PORT))?;
        a.mov(esi, window(1) as u32 - 2)?;
        a.mov(ecx, 5)?;
        a.fault(|a| a.rep().outsb())?;
        a.log_rcx_rsi()
    });
    rig.write(window(1) - 2, &[7, 8]);
    rig.map_window(1, 0, 0);
    let record = rig.run();
    assert_eq!(record.exits, [write(PORT, 1, 7), write(PORT, 1, 8)]);
    assert_eq!(record.faults(), [Fault::page(window(1), 0)]);
    assert_eq!(record.log, [3, window(1) as u32]);
}

/// With RCX = 0 nothing happens, not even a fault.
fn zero_count(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(edx, u32::from(PORT))?;
        a.mov(esi, window(1) as u32)?;
        a.mov(edi, window(1) as u32)?;
        a.xor(ecx, ecx)?;
        a.rep().outsb()?;
        a.rep().insd()?;
        a.log_rcx_rsi()
    });
    rig.map_window(1, 0, 0);
    let record = rig.run();
    assert_eq!(record.exits, []);
    assert_eq!(record.faults(), []);
    assert_eq!(record.log, [0, window(1) as u32]);
}

trait LogCount {
    fn log_rcx_rsi(&mut self) -> Asm;
}

impl LogCount for CodeAssembler {
    fn log_rcx_rsi(&mut self) -> Asm {
        self.mov(eax, ecx)?;
        self.log_eax()?;
        self.mov(eax, esi)?;
        self.log_eax()
    }
}
