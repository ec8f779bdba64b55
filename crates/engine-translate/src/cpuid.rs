//! The processor that guests see: the shared model of [`x86::model`], over what this engine can do.
//!
//! The model's IA32_ARCH_CAPABILITIES rules out the known flaws of speculation. An interpreter does not
//! speculate, so that is true, and it spares guests page-table isolation and retpolines. (A native
//! translator must look at this again.) Vector features are those that the interpreter runs *and* the host
//! has, since the host executes them.

use engine::EngineError;
use translator::vector::{Features, host_features};
use x86::cpuid::{Leaf, Table};
use x86::model::{self, Capability, Difference, Processor, Shown, Topology};

use crate::{clock, walk};

/// Bytes of the XSAVE area with x87 and SSE, and with AVX.
const XSAVE_SSE: u32 = 576;
const XSAVE_AVX: u32 = 832;

/// This engine's APIC timer counts nanoseconds, as KVM's does.
const APIC_KHZ: u32 = 1_000_000;

/// What is written out in the interpreter or the system around it, on any host.
const INTEGER: [&str; 52] = [
    "cx16",
    "pcid",
    "x2apic",
    "movbe",
    "popcnt",
    "tsc_deadline_timer",
    "rdrand",
    "de",
    "pse",
    "tsc",
    "msr",
    "pae",
    "mce",
    "cx8",
    "apic",
    "sep",
    "mtrr",
    "pge",
    "cmov",
    "pat",
    "pse36",
    "clflush",
    "arat",
    "fsgsbase",
    "tsc_adjust",
    "bmi1",
    "smep",
    "bmi2",
    "erms",
    "invpcid",
    "rdseed",
    "adx",
    "clflushopt",
    "clwb",
    "rdpid",
    "fsrm",
    "spec_ctrl",
    "arch_capabilities",
    "bhi_ctrl",
    "xgetbv1",
    "lahf_lm",
    "abm",
    "3dnowprefetch",
    "syscall",
    "nx",
    "pdpe1gb",
    "rdtscp",
    "lm",
    "constant_tsc",
    "kvm_nop_io_delay",
    "kvm_clocksource",
    "kvm_clocksource_stable",
];

/// The processor of the vCPU with local APIC `id` out of `vcpus`. OSXSAVE and the XSAVE size depend on the
/// vCPU's state: [`query`] fills them in.
pub(crate) fn processor(shown: &Shown, id: u32, vcpus: u32) -> Result<Processor, EngineError> {
    let features = host_features();
    let processor =
        shown.processor(&capability(&features, &supported(&features)), Topology { vcpus, id });
    processor.map_err(|error| EngineError::Unsupported(error.to_string()))
}

/// What of a processor that a guest was shown is not so here.
pub(crate) fn differences(shown: &Processor) -> Vec<Difference> {
    let features = host_features();
    model::differences(shown, &capability(&features, &supported(&features)))
}

fn capability<'a>(features: &Features, supported: &'a Table) -> Capability<'a> {
    Capability {
        supported,
        also: &INTEGER,
        arch_capabilities: model::translator_capabilities(),
        state_components: features.xcr0,
        tsc_khz: Some(u32::try_from(clock::tsc_hz() / 1000).unwrap_or(u32::MAX)),
        apic_khz: APIC_KHZ,
    }
}

/// What CPUID answers, given the state it depends on.
pub(crate) fn query(table: &Table, function: u32, index: u32, osxsave: bool, xcr0: u64) -> Leaf {
    let mut leaf = table.answer(function, index);
    match (leaf.function, leaf.index) {
        (1, _) if osxsave => leaf.ecx |= 1 << 27,
        (0xd, 0 | 1) => leaf.ebx = if xcr0 & 4 != 0 { XSAVE_AVX } else { XSAVE_SSE },
        _ => {}
    }
    leaf
}

/// Vector features, state sizes and address widths; no vendor, so that the model's stands in.
fn supported(host: &Features) -> Table {
    let mut table = Table::default();
    table.put(1, 0, [0, 0, host.leaf1_ecx, host.leaf1_edx]);
    table.put(7, 0, [0, host.leaf7_ebx, host.leaf7_ecx, 0]);
    table.put(0xd, 0, [host.xcr0 as u32, 0, 0, (host.xcr0 >> 32) as u32]);
    table.put(0xd, 1, [host.leafd_1_eax, 0, 0, 0]);
    table.put(0xd, 2, [XSAVE_AVX - XSAVE_SSE, XSAVE_SSE, 0, 0]);
    table.put(0x8000_0008, 0, [walk::PHYSICAL_BITS | 48 << 8, 0, 0, 0]);
    table
}

#[cfg(test)]
mod tests {
    use x86::cpuid::EXTENDED;
    use x86::model::{CpuModel, Exposure, FEATURES};

    use super::*;

    /// What the common model calls common to both engines, this one has.
    #[test]
    fn common_features_are_all_here() {
        let features = host_features();
        let host = supported(&features);
        // Known to the translator, and missing where the host lacks them.
        let vector = [
            "sse3",
            "pclmulqdq",
            "ssse3",
            "fma",
            "sse4_1",
            "sse4_2",
            "aes",
            "avx",
            "f16c",
            "avx2",
            "sha_ni",
            "gfni",
            "vaes",
            "vpclmulqdq",
        ];
        for feature in FEATURES {
            let here = INTEGER.contains(&feature.name) || host.has(feature.at);
            match feature.exposure {
                Exposure::Required => assert!(here, "{}", feature.name),
                Exposure::Both => {
                    assert!(here || vector.contains(&feature.name), "{}", feature.name);
                }
                _ => assert!(!here, "{}: the translator has what it is said not to", feature.name),
            }
        }
    }

    #[test]
    fn both_models_are_the_same_here() {
        let of = |model| processor(&Shown::Model(model), 1, 3).expect("a processor");
        assert_eq!(of(CpuModel::Common), of(CpuModel::Full));
    }

    /// A guest that comes from a smaller processor sees that one, and may go back.
    #[test]
    fn a_processor_that_was_shown_elsewhere_stays() {
        let full = processor(&Shown::default(), 0, 3).expect("a processor");
        let mut small = full.clone();
        let leaf = |leaf: &&mut Leaf| leaf.function == 1;
        small.cpuid.leaves.iter_mut().find(leaf).expect("leaf 1").ecx &= !(1 << 17);
        widths_of(&mut small, 40);
        let shown = Shown::Elsewhere(small.clone());
        assert_eq!(processor(&shown, 0, 3).expect("a processor"), small);
        let other = processor(&shown, 2, 3).expect("a processor");
        assert_eq!(other.of_vcpu(0), small);
        assert_eq!(other.cpuid.registers(0xb, 1)[3], 2);
        assert_eq!(full.of_vcpu(2), processor(&Shown::default(), 2, 3).expect("a processor"));
        // What is not here is not shown: the difference is found, and the guest refused.
        widths_of(&mut small, 60);
        assert_eq!(processor(&Shown::Elsewhere(small.clone()), 0, 3).expect("a processor"), full);
        assert!(differences(&small).iter().any(Difference::is_fatal));
    }

    fn widths_of(processor: &mut Processor, bits: u32) {
        let leaves = &mut processor.cpuid.leaves;
        let leaf = leaves.iter_mut().find(|leaf| leaf.function == EXTENDED + 8).expect("widths");
        leaf.eax = leaf.eax & !0xff | bits;
    }
}
