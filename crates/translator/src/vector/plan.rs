//! What has to happen around an instruction: which gate, which memory, which checks.

use iced_x86::{
    CpuidFeature, EncodingKind, Instruction, InstructionInfo, Mnemonic, OpAccess, OpKind, Register,
};

use crate::machine::VectorKind;

/// How an instruction is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    /// The gate.
    pub(super) kind: VectorKind,
    /// The memory operand.
    pub(super) memory: Memory,
    /// It rounds by MXCSR and may raise #XM.
    pub(super) mxcsr: bool,
    /// It waits for a pending x87 exception: #MF.
    pub(super) waits: bool,
    /// A memory operand that is not aligned to its size is #GP.
    pub(super) aligned: bool,
    /// It needs the whole legacy area in registers: x87 or MMX.
    pub(super) legacy: bool,
    /// It may leave the x87 unit in MMX state although the guest's is not loaded.
    pub(super) disturbs_x87: bool,
}

/// The memory operand: bytes moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Memory {
    None,
    Load(usize),
    Store(usize),
}

/// Longest memory operand: FNSAVE and FRSTOR.
pub(super) const MAX_OPERAND: usize = 108;

impl Plan {
    /// `None` where the memory operand is neither read nor written whole.
    pub(super) fn of(instr: &Instruction, info: &InstructionInfo) -> Option<Self> {
        let x87 = is_x87(instr);
        let mmx = is_mmx(instr);
        let memory = memory(instr, info)?;
        Some(Self {
            kind: kind(instr, x87, mmx),
            memory,
            mxcsr: uses_mxcsr(instr.mnemonic()),
            waits: mmx || x87 && !is_non_waiting(instr.mnemonic()),
            aligned: needs_alignment(instr, memory),
            legacy: x87 || mmx,
            disturbs_x87: !mmx
                && matches!(instr.mnemonic(), Mnemonic::Cvtpi2ps | Mnemonic::Cvtpi2pd),
        })
    }
}

fn memory(instr: &Instruction, info: &InstructionInfo) -> Option<Memory> {
    if !(0..instr.op_count()).any(|op| instr.op_kind(op) == OpKind::Memory) {
        return Some(Memory::None);
    }
    let size = instr.memory_size().size();
    let access = info.used_memory().first()?.access();
    match access {
        _ if size == 0 || size > MAX_OPERAND => None,
        OpAccess::Read => Some(Memory::Load(size)),
        OpAccess::Write => Some(Memory::Store(size)),
        _ => None,
    }
}

fn kind(instr: &Instruction, x87: bool, mmx: bool) -> VectorKind {
    if x87 {
        VectorKind::X87
    } else if instr.encoding() == EncodingKind::VEX {
        VectorKind::Avx
    } else if mmx && !has_xmm(instr) {
        VectorKind::Mmx
    } else {
        VectorKind::Sse
    }
}

fn is_x87(instr: &Instruction) -> bool {
    instr.cpuid_features().iter().any(|feature| {
        matches!(feature, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387)
    })
}

/// Conversions to MMX format that read memory do not count: they neither wait nor make the transition to
/// MMX state (SDM volume 2, CVTPI2PD; AMD's processors treat CVTPI2PS alike).
fn is_mmx(instr: &Instruction) -> bool {
    instr.mnemonic() == Mnemonic::Emms
        || (0..instr.op_count()).any(|op| register(instr, op).is_mm())
}

fn has_xmm(instr: &Instruction) -> bool {
    (0..instr.op_count()).any(|op| register(instr, op).is_xmm())
}

fn register(instr: &Instruction, op: u32) -> Register {
    match instr.op_kind(op) {
        OpKind::Register => instr.op_register(op),
        _ => Register::None,
    }
}

/// SDM volume 1, 8.6 and 8.3.11: the control instructions without the WAIT prefix.
fn is_non_waiting(mnemonic: Mnemonic) -> bool {
    use Mnemonic::{Fnclex, Fndisi, Fneni, Fninit, Fnsave, Fnsetpm, Fnstcw, Fnstenv, Fnstsw};
    matches!(
        mnemonic,
        Fnclex | Fndisi | Fneni | Fninit | Fnsave | Fnsetpm | Fnstcw | Fnstenv | Fnstsw
    )
}

/// SDM volume 1, 14.9: legacy encodings demand it of 16-byte operands, VEX encodings only of explicitly
/// aligned moves. Of SHA instructions Intel's processors demand it and AMD's do not; nothing is lost by
/// not asking.
fn needs_alignment(instr: &Instruction, memory: Memory) -> bool {
    use Mnemonic::{
        Lddqu, Movdqu, Movupd, Movups, Pcmpestri, Pcmpestri64, Pcmpestrm, Pcmpestrm64, Pcmpistri,
        Pcmpistrm, Vmovapd, Vmovaps, Vmovdqa, Vmovntdq, Vmovntdqa, Vmovntpd, Vmovntps,
    };
    let mnemonic = instr.mnemonic();
    match (instr.encoding(), memory) {
        _ if instr.cpuid_features() == [CpuidFeature::SHA] => false,
        (EncodingKind::Legacy, Memory::Load(16) | Memory::Store(16)) => !matches!(
            mnemonic,
            Lddqu
                | Movdqu
                | Movupd
                | Movups
                | Pcmpestri
                | Pcmpestri64
                | Pcmpestrm
                | Pcmpestrm64
                | Pcmpistri
                | Pcmpistrm
        ),
        (EncodingKind::VEX, _) => matches!(
            mnemonic,
            Vmovapd | Vmovaps | Vmovdqa | Vmovntdq | Vmovntdqa | Vmovntpd | Vmovntps
        ),
        _ => false,
    }
}

/// The floating-point arithmetic of SDM volume 1, appendix E. RCP and RSQRT neither round by MXCSR nor
/// raise exceptions.
fn uses_mxcsr(mnemonic: Mnemonic) -> bool {
    let name = format!("{mnemonic:?}").to_ascii_lowercase();
    let name = name.strip_prefix('v').unwrap_or(&name);
    let scalar_or_packed = ["ss", "sd", "ps", "pd"].iter().any(|end| name.ends_with(end));
    let arithmetic = [
        "add", "sub", "mul", "div", "sqrt", "min", "max", "cmp", "comis", "ucomis", "cvt", "round",
        "dpp", "hadd", "hsub", "fmadd", "fmsub", "fnmadd", "fnmsub",
    ];
    name.starts_with("cvt")
        || scalar_or_packed && arithmetic.iter().any(|start| name.starts_with(start))
}
