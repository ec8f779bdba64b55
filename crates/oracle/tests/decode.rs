//! Where blocks end, and what decoding makes of addresses.

use oracle::interpret::FlatMachine;
use translator::decode::{BLOCK_LIMIT, DecodedBlock, decode_block, decode_crossing};
use translator::{Insn, InsnFlags, Mode, REG_NONE, REG_RIP, SEG_NONE, Width};

fn decode(bytes: &[u8], width: Width) -> DecodedBlock<FlatMachine> {
    decode_block(bytes, Mode { width }, BLOCK_LIMIT)
}

fn first(bytes: &[u8], width: Width) -> Insn<FlatMachine> {
    decode(bytes, width).insns.into_iter().next().expect("an instruction")
}

#[test]
fn a_branch_ends_the_block() {
    // nop; jz +0; nop
    let block = decode(&[0x90, 0x74, 0, 0x90], Width::Bits64);
    assert_eq!((block.insns.len(), block.len, block.crosses), (2, 3, false));
}

#[test]
fn what_may_change_the_mode_ends_the_block() {
    // mov cr3, rax; nop, and iretq; nop, and wrmsr; nop
    for bytes in [[0x0f, 0x22, 0xd8, 0x90].as_slice(), &[0x48, 0xcf, 0x90], &[0x0f, 0x30, 0x90]] {
        assert_eq!(decode(bytes, Width::Bits64).insns.len(), 1, "{bytes:02x?}");
    }
    // cpuid; nop, and sti; nop: the instruction behind STI is in its shadow anyway.
    for bytes in [[0x0f, 0xa2, 0x90].as_slice(), &[0xfb, 0x90]] {
        assert_eq!(decode(bytes, Width::Bits64).insns.len(), 2, "{bytes:02x?}");
    }
}

#[test]
fn a_block_is_bounded() {
    assert_eq!(decode(&[0x90; 100], Width::Bits64).insns.len(), BLOCK_LIMIT);
}

#[test]
fn an_instruction_that_reaches_beyond_the_page_is_apart() {
    // nop; mov eax, imm32 cut off
    let block = decode(&[0x90, 0xb8, 1, 2], Width::Bits64);
    assert_eq!((block.insns.len(), block.len, block.crosses), (1, 1, false));
    let block = decode(&[0xb8, 1, 2], Width::Bits64);
    assert_eq!((block.insns.len(), block.len, block.crosses), (0, 0, true));
    let mode = Mode { width: Width::Bits64 };
    assert!(decode_crossing::<FlatMachine>(&[0xb8, 1, 2], mode).is_none());
    let insn = decode_crossing::<FlatMachine>(&[0xb8, 1, 2, 3, 4, 0x90], mode).unwrap();
    assert_eq!((insn.len, insn.imm), (5, 0x0403_0201));
}

#[test]
fn branches_are_relative_to_the_next_instruction() {
    let block = decode(&[0x90, 0x90, 0xe8, 0xfb, 0xff, 0xff, 0xff], Width::Bits64);
    assert_eq!(block.insns[2].imm as i64, -5);
    // A 16-bit distance that wraps.
    assert_eq!(first(&[0xe9, 0xfc, 0xff], Width::Bits16).imm as i64, -4);
}

#[test]
fn rip_relative_operands_are_relative_to_the_next_instruction() {
    // nop; mov eax, [rip + 0x10]
    let block = decode(&[0x90, 0x8b, 0x05, 0x10, 0, 0, 0], Width::Bits64);
    let insn = &block.insns[1];
    assert_eq!((insn.base, insn.disp, insn.index), (REG_RIP, 0x10, REG_NONE));
    // With a 32-bit address, and an immediate behind the displacement: cmp dword [eip - 1], 5
    let insn = first(&[0x67, 0x83, 0x3d, 0xff, 0xff, 0xff, 0xff, 5], Width::Bits64);
    assert_eq!((insn.base, insn.disp), (REG_RIP, -1));
    assert_ne!(insn.flags & InsnFlags::ADDR32, 0);
}

#[test]
fn segments_count_by_mode() {
    // mov eax, [rbx], with and without an ES prefix, and with FS.
    assert_eq!(first(&[0x8b, 0x03], Width::Bits64).seg, SEG_NONE);
    assert_eq!(first(&[0x26, 0x8b, 0x03], Width::Bits64).seg, SEG_NONE);
    assert_eq!(first(&[0x64, 0x8b, 0x03], Width::Bits64).seg, 4);
    assert_eq!(first(&[0x8b, 0x03], Width::Bits32).seg, 3);
    assert_eq!(first(&[0x26, 0x8b, 0x03], Width::Bits32).seg, 0);
    // mov eax, [ebp]: the stack segment.
    let insn = first(&[0x8b, 0x45, 0], Width::Bits32);
    assert_eq!(insn.seg, 2);
    assert_ne!(insn.flags & InsnFlags::STACK, 0);
    assert_ne!(first(&[0x8b, 0x45, 0], Width::Bits64).flags & InsnFlags::STACK, 0);
    assert_eq!(first(&[0x8b, 0x03], Width::Bits64).flags & InsnFlags::STACK, 0);
}

#[test]
fn high_byte_registers_without_rex_and_new_ones_with() {
    // mov ah, dh; mov spl, sil; mov r12b, r8b
    let insn = first(&[0x88, 0xf4], Width::Bits64);
    assert_eq!((insn.dst, insn.src), (0x80, 0x82));
    let insn = first(&[0x40, 0x88, 0xf4], Width::Bits64);
    assert_eq!((insn.dst, insn.src), (4, 6));
    let insn = first(&[0x45, 0x88, 0xc4], Width::Bits64);
    assert_eq!((insn.dst, insn.src), (12, 8));
}

/// Runs one instruction and returns the exception's vector.
fn vector(bytes: &[u8]) -> u8 {
    let outcome =
        oracle::interpret::run(&oracle::State::new(), bytes, oracle::native::Bitness::Bits64, 1);
    outcome.fault.expect("an exception").vector
}

#[test]
fn what_does_not_exist_raises() {
    // Too long: sixteen bytes with prefixes.
    let mut long = vec![0x66; 15];
    long.push(0x90);
    assert_eq!(vector(&long), 13);
    // ud2; LOCK on MOV; an opcode that 64-bit mode has dropped.
    for bytes in [[0x0f, 0x0b].as_slice(), &[0xf0, 0x89, 0x03], &[0x27, 0x90]] {
        assert_eq!(vector(bytes), 6, "{bytes:02x?}");
    }
}
