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

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    fn of(bytes: &[u8]) -> Option<Direct> {
        let instr = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
        assert_eq!(instr.len(), bytes.len());
        direct(&instr, &mut InstructionInfoFactory::new())
    }

    #[test]
    fn operands_and_gates_are_known() {
        let addps = of(&[0x0f, 0x58, 0x07]).expect("ADDPS");
        assert_eq!((addps.kind, addps.memory), (VectorKind::Sse, Some((16, false))));
        assert!(addps.aligned && !addps.legacy);
        let vmovups = of(&[0xc5, 0xfc, 0x11, 0x07]).expect("VMOVUPS");
        assert_eq!((vmovups.kind, vmovups.memory), (VectorKind::Avx, Some((32, true))));
        assert!(!vmovups.aligned);
        let fstp = of(&[0xdb, 0x3f]).expect("FSTP m80");
        assert!(fstp.memory == Some((10, true)) && fstp.legacy);
        let vzeroupper = of(&[0xc5, 0xf8, 0x77]).expect("VZEROUPPER");
        assert_eq!(vzeroupper.kind, VectorKind::Avx);
    }

    #[test]
    fn what_changes_masks_or_touches_elements_is_left_to_handlers() {
        let others: [&[u8]; 9] = [
            &[0x0f, 0xae, 0x17],                   // LDMXCSR
            &[0xd9, 0x2f],                         // FLDCW
            &[0xd9, 0x37],                         // FNSTENV
            &[0x0f, 0xae, 0x07],                   // FXSAVE
            &[0x48, 0x0f, 0xae, 0x27],             // XSAVE64
            &[0x66, 0x0f, 0xf7, 0xc1],             // MASKMOVDQU
            &[0xc4, 0xe2, 0x75, 0x8c, 0x07],       // VPMASKMOVD
            &[0xc4, 0xe2, 0x75, 0x90, 0x04, 0x0f], // VPGATHERDD
            &[0x0f, 0xc3, 0x07],                   // MOVNTI, no vector instruction
        ];
        for bytes in others {
            assert_eq!(of(bytes), None, "{bytes:02x?}");
        }
    }
}
