//! Which instruction sets are implemented here and present on the host.

use std::arch::is_x86_feature_detected;
use std::sync::OnceLock;

use iced_x86::{CpuidFeature, Instruction};

use super::arena;

/// CPUID bits of what this module executes on this host, by register. A CPUID policy may show the guest
/// any subset, as long as XSAVE goes with AVX.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features {
    /// Leaf 1 EDX: FPU, MMX, FXSR, SSE, SSE2.
    pub leaf1_edx: u32,
    /// Leaf 1 ECX: SSE3, PCLMULQDQ, SSSE3, FMA, SSE4.1, SSE4.2, AES, XSAVE, AVX, F16C. (CRC32, which
    /// comes with SSE4.2, is an integer instruction.)
    pub leaf1_ecx: u32,
    /// Leaf 7 EBX: AVX2, SHA.
    pub leaf7_ebx: u32,
    /// Leaf 7 ECX: GFNI, VAES, VPCLMULQDQ.
    pub leaf7_ecx: u32,
    /// Leaf 0xd, sub-leaf 1, EAX: XSAVEOPT, XSAVEC.
    pub leafd_1_eax: u32,
    /// State components that XSAVE handles, the bits that XCR0 may have.
    pub xcr0: u64,
    /// MXCSR bits that may be set.
    pub mxcsr_mask: u32,
}

/// What can be executed here. Nothing where code cannot be generated (see [`super::prepare`]).
#[must_use]
pub fn host_features() -> Features {
    let mut features = Features { mxcsr_mask: super::image::MXCSR_MASK, ..Features::default() };
    if arena::prepare().is_err() {
        return features;
    }
    features.xcr0 = 3;
    features.leafd_1_eax = 0b11;
    for row in ROWS {
        if has(row.feature) {
            *(row.field)(&mut features) |= 1 << row.bit;
        }
    }
    if has(CpuidFeature::AVX) {
        features.xcr0 |= 4;
    }
    features
}

/// Whether all that `instr` needs is implemented here and present.
pub(super) fn supports(instr: &Instruction) -> bool {
    instr.cpuid_features().iter().all(|&feature| has(feature))
}

pub(super) fn has(feature: CpuidFeature) -> bool {
    static HOST: OnceLock<u64> = OnceLock::new();
    let Some(row) = ROWS.iter().position(|row| row.feature == feature) else {
        // Part of the x87 unit since the 387, or of x86-64 itself.
        return matches!(feature, CpuidFeature::FPU287 | CpuidFeature::FPU387 | CpuidFeature::CMOV)
            || written_out(feature);
    };
    let host = HOST.get_or_init(|| {
        let present = |(bit, row): (usize, &Row)| u64::from((row.present)()) << bit;
        ROWS.iter().enumerate().map(present).fold(0, |all, bit| all | bit)
    });
    host >> row & 1 != 0
}

/// Does not depend on the host.
fn written_out(feature: CpuidFeature) -> bool {
    matches!(feature, CpuidFeature::XSAVEOPT | CpuidFeature::XSAVEC)
}

struct Row {
    feature: CpuidFeature,
    field: fn(&mut Features) -> &mut u32,
    bit: u32,
    present: fn() -> bool,
}

macro_rules! rows {
    ($($feature:ident $field:ident $bit:literal $present:expr;)*) => {
        &[$(Row {
            feature: CpuidFeature::$feature,
            field: |features| &mut features.$field,
            bit: $bit,
            present: || $present,
        }),*]
    };
}

// AVX is reported as present only where the host kernel has enabled its state.
const ROWS: &[Row] = rows! {
    FPU leaf1_edx 0 true;
    MMX leaf1_edx 23 true;
    FXSR leaf1_edx 24 true;
    SSE leaf1_edx 25 true;
    SSE2 leaf1_edx 26 true;
    SSE3 leaf1_ecx 0 is_x86_feature_detected!("sse3");
    PCLMULQDQ leaf1_ecx 1 is_x86_feature_detected!("pclmulqdq");
    SSSE3 leaf1_ecx 9 is_x86_feature_detected!("ssse3");
    FMA leaf1_ecx 12 is_x86_feature_detected!("fma");
    SSE4_1 leaf1_ecx 19 is_x86_feature_detected!("sse4.1");
    SSE4_2 leaf1_ecx 20 is_x86_feature_detected!("sse4.2");
    AES leaf1_ecx 25 is_x86_feature_detected!("aes");
    XSAVE leaf1_ecx 26 true;
    AVX leaf1_ecx 28 is_x86_feature_detected!("avx");
    F16C leaf1_ecx 29 is_x86_feature_detected!("f16c");
    AVX2 leaf7_ebx 5 is_x86_feature_detected!("avx2");
    SHA leaf7_ebx 29 is_x86_feature_detected!("sha");
    GFNI leaf7_ecx 8 is_x86_feature_detected!("gfni");
    VAES leaf7_ecx 9 is_x86_feature_detected!("vaes");
    VPCLMULQDQ leaf7_ecx 10 is_x86_feature_detected!("vpclmulqdq");
};
