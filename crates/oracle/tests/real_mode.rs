//! 16-bit code: the host cannot run it, so results are written down here. Start-up code of other
//! processors is what it is for.

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, *};
use oracle::arena;
use oracle::interpret::FlatMachine;
use translator::decode::{BLOCK_LIMIT, decode_block};
use translator::{Core, Cpu, Mode, Outcome, Width};

/// Runs `body` at offset 0x100 of a code segment until its end; all segments begin with the data.
fn run(
    prepare: impl FnOnce(&mut Core<FlatMachine>),
    body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Core<FlatMachine> {
    let mut asm = CodeAssembler::new(16).expect("16 is a bitness");
    body(&mut asm).expect("the body assembles");
    let code = asm.assemble(0x100).expect("the code assembles");
    let mut cpu = Cpu::new();
    cpu.width = Width::Bits16;
    cpu.stack_mask = 0xffff;
    for segment in &mut cpu.segs[..6] {
        segment.base = arena::DATA;
    }
    cpu.regs[4] = 0xdead_1000;
    cpu.set_rip(0x100);
    let mut core =
        Core { cpu, machine: FlatMachine::new(Box::new(arena::Pages([0; arena::DATA_LEN]))) };
    prepare(&mut core);
    let mode = Mode { width: Width::Bits16 };
    for _ in 0..1000 {
        let offset = core.cpu.rip().wrapping_sub(0x100) as usize;
        if offset >= code.len() {
            break;
        }
        let decoded = decode_block(&code[offset..], mode, BLOCK_LIMIT);
        let outcome = core.run_block(&decoded.insns, false);
        assert_ne!(outcome, Outcome::Fault, "{:?}", core.machine.exception);
    }
    core
}

fn word(core: &Core<FlatMachine>, at: usize) -> u16 {
    u16::from_le_bytes([core.machine.data[at], core.machine.data[at + 1]])
}

#[test]
fn addresses_wrap_at_64_kib() {
    let core = run(
        |core| {
            core.cpu.regs[3] = 0x7777_fff0;
            core.cpu.regs[6] = 0x8888_0020;
        },
        |asm| asm.mov(word_ptr(bx + si + 0x10), 0x1234),
    );
    assert_eq!(word(&core, 0x20), 0x1234);
}

#[test]
fn calls_push_two_bytes_and_leave_the_rest_of_rsp() {
    let core = run(
        |_| {},
        |asm| {
            let mut function = asm.create_label();
            let mut end = asm.create_label();
            asm.call(function)?;
            asm.jmp(end)?;
            asm.set_label(&mut function)?;
            asm.mov(cx, sp)?;
            asm.ret()?;
            asm.set_label(&mut end)?;
            asm.nop()
        },
    );
    assert_eq!(core.cpu.regs[4], 0xdead_1000);
    assert_eq!(core.cpu.regs[1], 0x0ffe);
    assert_eq!(word(&core, 0xffe), 0x103);
}

#[test]
fn a_32_bit_operand_is_pushed_as_such() {
    let core = run(|core| core.cpu.regs[0] = 0x1122_3344, |asm| asm.push(eax));
    assert_eq!(core.cpu.regs[4], 0xdead_0ffc);
    assert_eq!((word(&core, 0xffc), word(&core, 0xffe)), (0x3344, 0x1122));
}

#[test]
fn loop_counts_in_cx() {
    let core = run(
        |core| core.cpu.regs[1] = 0x5_0003,
        |asm| {
            let mut top = asm.create_label();
            asm.set_label(&mut top)?;
            asm.inc(dx)?;
            asm.loop_(top)?;
            asm.nop()
        },
    );
    assert_eq!((core.cpu.regs[1], core.cpu.regs[2]), (0x5_0000, 3));
}

#[test]
fn strings_use_16_bit_registers() {
    let core = run(
        |core| {
            core.cpu.regs[0] = 0xabcd;
            core.cpu.regs[1] = 0xffff_0004;
            core.cpu.regs[7] = 0x9999_0100;
        },
        |asm| asm.rep().stosw(),
    );
    assert_eq!((core.cpu.regs[1], core.cpu.regs[7]), (0xffff_0000, 0x9999_0108));
    assert_eq!((word(&core, 0xfe), word(&core, 0x100), word(&core, 0x106)), (0, 0xabcd, 0xabcd));
    assert_eq!(word(&core, 0x108), 0);
}

#[test]
fn lea_cuts_to_the_address_size() {
    let core = run(
        |core| {
            core.cpu.regs[3] = 0xffff;
            core.cpu.regs[7] = 2;
        },
        |asm| asm.lea(eax, ptr(bx + di)),
    );
    assert_eq!(core.cpu.regs[0], 1);
}
