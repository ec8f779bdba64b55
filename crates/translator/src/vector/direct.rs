//! Which instructions generated code may execute as they are, on registers that hold the guest's.

use iced_x86::{Code, EncodingKind, Instruction, InstructionInfoFactory, Mnemonic, OpKind};

use super::encoding::Encoding;
use super::plan::{Memory, Plan};
use super::{elements, features};
use crate::machine::VectorKind;

/// What has to be so when it is executed. All exceptions are masked then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Direct {
    /// The gate, which is open.
    pub(crate) kind: VectorKind,
    /// The memory operand: its size, and whether it is written.
    pub(crate) memory: Option<(usize, bool)>,
    /// The host may demand that the operand is aligned to its size.
    pub(crate) aligned: bool,
    /// It uses the x87 unit.
    pub(crate) legacy: bool,
}

/// `None` where its handler must do it, which is so for all that change what exceptions are masked, that
/// save or load state, or that touch memory element by element.
pub(crate) fn direct(instr: &Instruction, factory: &mut InstructionInfoFactory) -> Option<Direct> {
    let encoded = matches!(instr.encoding(), EncodingKind::Legacy | EncodingKind::VEX);
    // Registers are loaded and stored by instructions of AVX.
    let host = features::has(iced_x86::CpuidFeature::AVX) && features::supports(instr);
    if !encoded || !host || !is_vector(instr) || is_excluded(instr) {
        return None;
    }
    let clears = matches!(instr.mnemonic(), Mnemonic::Vzeroupper | Mnemonic::Vzeroall);
    if clears {
        let kind = VectorKind::Avx;
        return Some(Direct { kind, memory: None, aligned: false, legacy: false });
    }
    if instr.code() != Code::Wait {
        Encoding::of(instr)?;
    }
    let plan = Plan::of(instr, factory.info(instr))?;
    let memory = match plan.memory {
        Memory::None => None,
        Memory::Load(size) => Some((size, false)),
        Memory::Store(size) => Some((size, true)),
    };
    let sha = instr.cpuid_features() == [iced_x86::CpuidFeature::SHA];
    let aligned = plan.aligned || sha && memory.is_some();
    let ours = !plan.disturbs_x87 && memory.is_none_or(|(size, _)| size <= 32);
    ours.then_some(Direct { kind: plan.kind, memory, aligned, legacy: plan.legacy })
}

/// CPUID counts others to SSE that are none.
fn is_vector(instr: &Instruction) -> bool {
    use iced_x86::CpuidFeature::{FPU, FPU287, FPU387};
    let vector = |op| {
        let register = instr.op_register(op);
        instr.op_kind(op) == OpKind::Register && (register.is_vector_register() || register.is_mm())
    };
    let x87 = |feature| [FPU, FPU287, FPU387].contains(feature);
    (0..instr.op_count()).any(vector)
        || instr.cpuid_features().iter().any(x87)
        || matches!(instr.mnemonic(), Mnemonic::Emms | Mnemonic::Vzeroupper | Mnemonic::Vzeroall)
}

fn is_excluded(instr: &Instruction) -> bool {
    use Mnemonic::{Fldcw, Fldenv, Fnsave, Fnstenv, Frstor, Fxrstor, Fxrstor64, Fxsave, Fxsave64};
    matches!(
        instr.mnemonic(),
        Fldcw | Fldenv | Fnsave | Fnstenv | Frstor | Fxrstor | Fxrstor64 | Fxsave | Fxsave64
    ) || elements::takes(instr)
}
