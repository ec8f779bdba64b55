//! States on which an instruction does something.

use iced_x86::{CodeSize, Instruction, Mnemonic, OpKind, Register};

use super::{branch_target, place};
use crate::arena;
use crate::random::Random;
use crate::state::State;

/// Random registers, flags and memory.
pub(super) fn random_state(random: &mut Random) -> State {
    let mut state = State::new();
    for value in &mut state.gpr {
        *value = random.interesting();
    }
    // Status flags and DF.
    state.rflags = 0x202 | random.bits() & 0x8d5;
    if random.one_in(3) {
        state.rflags |= 0x400;
    }
    for chunk in state.data.chunks_exact_mut(8) {
        chunk.copy_from_slice(&random.bits().to_le_bytes());
    }
    state
}

/// Points the registers that `instr` uses for memory into the data.
pub(super) fn prepare(state: &mut State, instr: &Instruction, random: &mut Random) {
    stack(state, instr, random);
    strings(state, instr, random);
    divisions(state, instr, random);
    let has_memory = (0..instr.op_count()).any(|op| instr.op_kind(op) == OpKind::Memory);
    if has_memory {
        let len = instr.memory_size().size().max(1) as u64;
        let mut target = place(random, len);
        if random.one_in(200) && instr.code_size() == CodeSize::Code64 {
            // Not canonical.
            target ^= 1 << 63;
        }
        if instr.mnemonic() == Mnemonic::Cmpxchg16b && !random.one_in(8) {
            target &= !15;
        }
        bit_index(state, instr, random);
        solve(state, instr, target);
    }
    double_shift(state, instr, random);
    indirect_branch(state, instr, random);
}

/// Makes the effective address `target`, by the base register or, where there is none, the index.
fn solve(state: &mut State, instr: &Instruction, mut target: u64) {
    let (base, index) = (instr.memory_base(), instr.memory_index());
    if instr.memory_segment() == Register::GS {
        target = target.wrapping_sub(arena::GS_BASE);
    }
    if !base.is_gpr() {
        return;
    }
    let displacement = instr.memory_displacement64();
    let number = base.number();
    let offset = if index == Register::AL {
        state.gpr[0] & 0xff
    } else if index.is_gpr() {
        // A shared base and index can only be met where the scale allows.
        let factor = u64::from(instr.memory_index_scale());
        if index.number() == number {
            state.gpr[number] = target.wrapping_sub(displacement) / (factor + 1);
            return;
        }
        state.gpr[index.number()].wrapping_mul(factor)
    } else {
        0
    };
    let value = target.wrapping_sub(displacement).wrapping_sub(offset);
    let upper = state.gpr[number] & !0xffff_ffff;
    // With a 32-bit address the upper half does not count.
    state.gpr[number] = if base.size() == 4 { value & 0xffff_ffff | upper } else { value };
}

/// BT and its kin: an index that stays near.
fn bit_index(state: &mut State, instr: &Instruction, random: &mut Random) {
    let bit =
        matches!(instr.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
    if bit && instr.op_kind(1) == OpKind::Register {
        let number = instr.op_register(1).number();
        let index = random.below(2048) as i64 - 1024;
        let junk = random.bits();
        state.gpr[number] = match instr.op_register(1).size() {
            2 => junk & !0xffff | index as u16 as u64,
            4 => junk & !0xffff_ffff | index as u32 as u64,
            _ => index as u64,
        };
    }
}

/// SHLD and SHRD of 16 bits by CL: a count that is defined, unless CL is already part of an address.
fn double_shift(state: &mut State, instr: &Instruction, random: &mut Random) {
    let double = matches!(instr.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd);
    let by_cl = double && instr.op_kind(2) == OpKind::Register;
    if by_cl && instr.op_register(1).size() == 2 {
        let count = random.below(17) | random.below(8) << 5;
        state.gpr[1] = state.gpr[1] & !0xff | count;
    }
}

fn stack(state: &mut State, instr: &Instruction, random: &mut Random) {
    if instr.is_stack_instruction() || instr.mnemonic() == Mnemonic::Leave {
        state.gpr[4] = place(random, 8);
        state.gpr[5] = place(random, 8);
        if matches!(instr.mnemonic(), Mnemonic::Popa | Mnemonic::Popad) {
            // Processors differ in which registers a fault in the middle leaves loaded.
            state.gpr[4] = arena::DATA + 4096 + random.below(1024) - 512;
        }
    }
}

fn strings(state: &mut State, instr: &Instruction, random: &mut Random) {
    if !instr.is_string_instruction() {
        return;
    }
    for number in [6, 7] {
        state.gpr[number] = place(random, 8);
    }
    if random.one_in(4) {
        // Overlapping.
        state.gpr[7] = state.gpr[6].wrapping_add(random.below(32)).wrapping_sub(16);
    }
    if instr.memory_segment() == Register::GS {
        state.gpr[6] = state.gpr[6].wrapping_sub(arena::GS_BASE);
    }
    state.gpr[1] = if random.one_in(8) { random.below(3000) } else { random.below(20) };
    if random.one_in(3) {
        // Something to find, or equal for long.
        let byte = random.bits() as u8 & 3;
        state.data.fill(byte);
        state.gpr[0] = u64::from(byte) * 0x0101_0101_0101_0101;
        let other = random.below(arena::DATA_LEN as u64) as usize;
        state.data[other] ^= 0x10;
    }
}

/// Quotients that fit, most of the time.
fn divisions(state: &mut State, instr: &Instruction, random: &mut Random) {
    let divides = matches!(instr.mnemonic(), Mnemonic::Div | Mnemonic::Idiv);
    if divides && !random.one_in(4) {
        let size = if instr.op_kind(0) == OpKind::Register {
            instr.op_register(0).size()
        } else {
            instr.memory_size().size()
        };
        let negative = instr.mnemonic() == Mnemonic::Idiv && random.one_in(2);
        match size {
            1 => state.gpr[0] = random.below(4000),
            _ if negative => state.gpr[2] = u64::MAX,
            _ => state.gpr[2] = random.below(4),
        }
    }
}

/// Where an indirect branch goes.
fn indirect_branch(state: &mut State, instr: &Instruction, random: &mut Random) {
    let target = branch_target(random);
    let long = instr.code_size() == CodeSize::Code64;
    let target = if long && random.one_in(8) { target | 1 << 60 } else { target };
    match instr.mnemonic() {
        Mnemonic::Ret => put(state, state.gpr[4], target),
        Mnemonic::Jmp | Mnemonic::Call if instr.op_kind(0) == OpKind::Register => {
            state.gpr[instr.op_register(0).number()] = target;
        }
        Mnemonic::Jmp | Mnemonic::Call if instr.op_kind(0) == OpKind::Memory => {
            if let Some(va) = address(state, instr) {
                put(state, va, target);
            }
        }
        _ => {}
    }
}

/// The linear address of the memory operand, which is the first.
fn address(state: &State, instr: &Instruction) -> Option<u64> {
    instr.virtual_address(0, 0, |register, _, _| {
        Some(match register {
            Register::GS => arena::GS_BASE,
            _ if register.is_segment_register() => 0,
            _ if register.size() == 4 => state.gpr[register.number()] & 0xffff_ffff,
            _ => state.gpr[register.number()],
        })
    })
}

/// Stores as much of a word as lies inside.
fn put(state: &mut State, va: u64, value: u64) {
    for (i, byte) in value.to_le_bytes().into_iter().enumerate() {
        let at = va.wrapping_add(i as u64).wrapping_sub(arena::DATA);
        if let Some(place) = state.data.get_mut(at as usize) {
            *place = byte;
        }
    }
}
