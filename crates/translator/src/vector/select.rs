//! From an iced instruction to the handler that executes it.

use iced_x86::{Code, EncodingKind, Instruction, Mnemonic};

use super::encoding::Encoding;
use super::handlers::{self, checks};
use super::plan::{Memory, Plan};
use super::{arena, elements, features, mxcsr, save, x87};
use crate::decode::operands::blank;
use crate::insn::{Handler, Insn};
use crate::machine::{Machine, VectorKind};

/// The instruction in executable form; `None` where it is not a vector or x87 instruction, or one that this
/// host does not have.
pub(crate) fn select<M: Machine>(instr: &Instruction) -> Option<Insn<M>> {
    if instr.code() == Code::Wait {
        return Some(blank(instr, x87::fwait));
    }
    if !matches!(instr.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        || !features::supports(instr)
    {
        return None;
    }
    written_out(instr).or_else(|| thunk(instr))
}

fn written_out<M: Machine>(instr: &Instruction) -> Option<Insn<M>> {
    let sse = VectorKind::Sse;
    let (handler, kind): (Handler<M>, _) = match instr.mnemonic() {
        Mnemonic::Ldmxcsr => (mxcsr::load, sse),
        Mnemonic::Stmxcsr => (mxcsr::store, sse),
        Mnemonic::Vldmxcsr => (mxcsr::load, VectorKind::Avx),
        Mnemonic::Vstmxcsr => (mxcsr::store, VectorKind::Avx),
        _ => return save::select(instr).or_else(|| elements::select(instr)),
    };
    let mut insn = blank(instr, handler);
    insn.dst = kind as u8;
    Some(insn)
}

fn thunk<M: Machine>(instr: &Instruction) -> Option<Insn<M>> {
    let encoding = Encoding::of(instr)?;
    let (plan, place) = arena::find(encoding)?;
    let mut insn = blank(instr, handler(plan)?);
    insn.imm = encoding.0;
    insn.aux = place.0;
    insn.dst = dst(plan);
    insn.src = match plan.memory {
        Memory::None => 0,
        Memory::Load(size) | Memory::Store(size) => size as u8,
    };
    Some(insn)
}

fn dst(plan: Plan) -> u8 {
    let mut dst = plan.kind as u8;
    for (bit, set) in
        [(checks::MXCSR, plan.mxcsr), (checks::WAITS, plan.waits), (checks::ALIGNED, plan.aligned)]
    {
        if set {
            dst |= bit;
        }
    }
    dst
}

fn handler<M: Machine>(plan: Plan) -> Option<Handler<M>> {
    Some(match plan.memory {
        Memory::None => handlers::registers,
        Memory::Load(1) => handlers::load::<M, 1>,
        Memory::Load(2) => handlers::load::<M, 2>,
        Memory::Load(4) => handlers::load::<M, 4>,
        Memory::Load(8) => handlers::load::<M, 8>,
        Memory::Load(10) => handlers::load::<M, 10>,
        Memory::Load(14) => handlers::load::<M, 14>,
        Memory::Load(16) => handlers::load::<M, 16>,
        Memory::Load(28) => handlers::load::<M, 28>,
        Memory::Load(32) => handlers::load::<M, 32>,
        Memory::Load(94) => handlers::load::<M, 94>,
        Memory::Load(108) => handlers::load::<M, 108>,
        Memory::Store(_) if plan.legacy || plan.mxcsr => handlers::store_and_change,
        Memory::Store(1) => handlers::store::<M, 1>,
        Memory::Store(2) => handlers::store::<M, 2>,
        Memory::Store(4) => handlers::store::<M, 4>,
        Memory::Store(8) => handlers::store::<M, 8>,
        Memory::Store(16) => handlers::store::<M, 16>,
        Memory::Store(32) => handlers::store::<M, 32>,
        _ => return None,
    })
}
