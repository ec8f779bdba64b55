//! The guest's vector and x87 registers in the host's.
//!
//! They are *live* from the first instruction that needs them (generated code asks [`Vectors`] and calls
//! what is here) until generated code is left or calls out, which puts them back into the image. Live are
//! those of SSE with MXCSR, and beside them the upper halves of AVX, or x87, or both. Meanwhile nothing can fault because of them: the
//! gates are open and all exceptions masked, and what could change that is executed outside.
//!
//! Where they must not be live, the instruction is left to the interpreter, which raises what there is to
//! raise.

use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Register};

use super::asm::{Address, Asm, Condition};
use super::fields::{T0, field};
use crate::cpu::Cpu;
use crate::interp::Core;
use crate::machine::{Machine, VectorKind};
use crate::vector::image::{FCW_DEFAULT, MXCSR, MXCSR_DEFAULT, XMM, YMM_HIGH};

/// Places of the thunks. Each is called with RCX put aside and the offset in the page in T1 of the
/// instruction to be interpreted if it must not be done; loads RCX, destroys T0, touches no flag.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Live {
    /// Makes SSE live.
    pub(super) sse: u32,
    /// Makes SSE and AVX live.
    pub(super) avx: u32,
    /// Makes SSE and x87 live.
    pub(super) x87: u32,
}

const RAX: u8 = 0;
const RCX: u8 = 1;

/// The masks of the x87 control word.
const FCW_MASKS: u16 = 0x3f;

impl Live {
    /// Emits all of them; `refused` leaves for the interpreter.
    pub(super) fn emit(asm: &mut Asm, refused: u32) -> Self {
        let load = asm.here();
        load_low(asm);
        let mut live = Self { sse: asm.here(), ..Self::default() };
        refuse(asm, field!(vector.sse_refused), refused);
        asm.jump_to(load);
        live.avx = asm.here();
        refuse(asm, field!(vector.avx_refused), refused);
        load_if_off(asm, load);
        load_high(asm);
        live.x87 = asm.here();
        refuse(asm, field!(vector.x87_refused), refused);
        load_if_off(asm, load);
        load_x87(asm);
        live
    }
}

fn refuse(asm: &mut Asm, flag: i32, refused: u32) {
    asm.load_field(RCX, flag);
    asm.skip_if_rcx_is_0(5);
    asm.jump_to(refused);
}

/// SSE: upper halves, which its instructions neither use nor change, stay in the image.
fn load_low(asm: &mut Asm) {
    asm.load_field(RCX, field!(vector.image));
    for index in 0..16 {
        put(asm, Instruction::with2(Code::VEX_Vmovups_xmm_xmmm128, xmm(index), low(index)));
    }
    put(asm, Instruction::with1(Code::Ldmxcsr_m32, at(MXCSR)));
    asm.store_field_constant(field!(vector.sse_off), 0);
    done(asm);
}

fn load_if_off(asm: &mut Asm, load: u32) {
    asm.load_field(RCX, field!(vector.sse_off));
    asm.skip_if_rcx_is_0(5);
    asm.call_to(load);
    asm.load_field(RCX, field!(vector.image));
}

/// AVX. Upper halves that are all zero are left as they are, which is clean: with others, instructions of
/// SSE wait for the last change of the register that they replace.
fn load_high(asm: &mut Asm) {
    asm.mov(T0, RAX);
    asm.flags_to_ax();
    store(asm, Code::VEX_Vmovups_xmmm128_xmm, low(0), xmm(0));
    put(asm, Instruction::with2(Code::VEX_Vmovups_ymm_ymmm256, ymm(0), high(0)));
    for index in (2..16).step_by(2) {
        let code = Code::VEX_Vorps_ymm_ymm_ymmm256;
        put(asm, Instruction::with3(code, ymm(0), ymm(0), high(index)));
    }
    put(asm, Instruction::with2(Code::VEX_Vptest_ymm_ymmm256, ymm(0), ymm(0)));
    put(asm, Instruction::with2(Code::VEX_Vmovups_xmm_xmmm128, xmm(0), low(0)));
    let zero = asm.label();
    asm.jump_if(Condition::E, zero);
    for index in 0..16 {
        let (code, ymm) = (Code::VEX_Vinsertf128_ymm_ymm_xmmm128_imm8, ymm(index));
        put(asm, Instruction::with4(code, ymm, ymm, high(index), 1));
    }
    asm.bind(zero);
    asm.flags_from_ax();
    asm.mov(RAX, T0);
    asm.store_field_constant(field!(vector.avx_off), 0);
    done(asm);
}

/// FXRSTOR loads XMM registers and MXCSR too: with what they have.
fn load_x87(asm: &mut Asm) {
    store_low(asm);
    put(asm, Instruction::with1(Code::Fxrstor64_m512byte, at(0)));
    asm.store_field_constant(field!(vector.x87_off), 0);
    done(asm);
}

fn store_low(asm: &mut Asm) {
    for index in 0..16 {
        store(asm, Code::VEX_Vmovups_xmmm128_xmm, low(index), xmm(index));
    }
    put(asm, Instruction::with1(Code::Stmxcsr_m32, at(MXCSR)));
}

fn done(asm: &mut Asm) {
    asm.load_field(RCX, field!(rcx));
    asm.ret();
}

/// Puts back what is live, and gives the host its own. T0 and T1, flags aside, are left alone, and RCX is
/// free.
pub(super) fn put_away(asm: &mut Asm) {
    let done = asm.label();
    asm.compare_field(field!(vector.sse_off), 0);
    asm.jump_if(Condition::NE, done);
    asm.load_field(RCX, field!(vector.image));
    let no_x87 = asm.label();
    asm.compare_field(field!(vector.x87_off), 0);
    asm.jump_if(Condition::NE, no_x87);
    put(asm, Instruction::with1(Code::Fxsave64_m512byte, at(0)));
    // FOP, FIP and FDP: addresses of this process.
    put(asm, Instruction::with2(Code::Mov_rm16_imm16, at(6), 0));
    asm.store_constant(Address::at(RCX, 8), 0);
    asm.store_constant(Address::at(RCX, 16), 0);
    put(asm, Ok(Instruction::with(Code::Fninit)));
    asm.store_field_constant(field!(vector.x87_off), 1);
    asm.bind(no_x87);
    store_low(asm);
    asm.load_mxcsr_field(field!(vector.host_mxcsr));
    asm.store_field_constant(field!(vector.sse_off), 1);
    asm.compare_field(field!(vector.avx_off), 0);
    asm.jump_if(Condition::NE, done);
    for index in 0..16 {
        let code = Code::VEX_Vextractf128_xmmm128_ymm_imm8;
        put(asm, Instruction::with3(code, high(index), ymm(index), 1));
    }
    put(asm, Ok(Instruction::with(Code::VEX_Vzeroupper)));
    asm.store_field_constant(field!(vector.avx_off), 1);
    asm.bind(done);
}

/// In the image, whose address is in RCX.
fn at(offset: usize) -> MemoryOperand {
    MemoryOperand::with_base_displ(Register::RCX, offset as i64)
}

fn low(index: usize) -> MemoryOperand {
    at(XMM + 16 * index)
}

fn high(index: usize) -> MemoryOperand {
    at(YMM_HIGH + 16 * index)
}

fn xmm(index: usize) -> Register {
    Register::XMM0 + index as u32
}

fn ymm(index: usize) -> Register {
    Register::YMM0 + index as u32
}

fn store(asm: &mut Asm, code: Code, to: MemoryOperand, from: Register) {
    put(asm, Instruction::with2(code, to, from));
}

/// None of these depends on where it is.
fn put(asm: &mut Asm, instr: Result<Instruction, iced_x86::IcedError>) {
    let mut encoder = Encoder::new(64);
    let encoded = instr.and_then(|instr| encoder.encode(&instr, 0));
    encoded.expect("an instruction of a fixed sequence");
    asm.raw(&encoder.take_buffer());
}

/// Nothing is live yet.
pub(super) fn begin(cpu: &mut Cpu) {
    let vector = &mut cpu.native.vector;
    (vector.sse_off, vector.avx_off, vector.x87_off) = (1, 1, 1);
    vector.host_mxcsr = MXCSR_DEFAULT.into();
}

/// What may become live, until the next instruction that is executed outside.
#[inline(always)]
pub(super) fn refresh<M: Machine>(core: &mut Core<M>) {
    let closed = |kind| core.machine.vector_gate(kind).is_some();
    let fpu = &core.cpu.fpu;
    let sse = closed(VectorKind::Sse) || fpu.mxcsr() & MXCSR_DEFAULT != MXCSR_DEFAULT;
    let avx = sse || closed(VectorKind::Avx);
    let unmasked = fpu.fcw() & FCW_MASKS != FCW_MASKS || fpu.x87_pending();
    let x87 = sse || unmasked || closed(VectorKind::X87) || closed(VectorKind::Mmx);
    const { assert!(FCW_DEFAULT & FCW_MASKS == FCW_MASKS) };
    let vector = &mut core.cpu.native.vector;
    vector.sse_refused = sse.into();
    vector.avx_refused = avx.into();
    vector.x87_refused = x87.into();
    vector.image = core.cpu.fpu.image.as_mut_ptr() as usize;
}
