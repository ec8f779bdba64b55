use super::*;
use crate::cpuid::{Bit, EXTENDED, HYPERVISOR, Register};

const STATE: u64 = 7;

/// A processor of `vendor` with every feature bit of every leaf that has some, AVX-512 and AMX state.
fn host(vendor: &[u8; 12]) -> Table {
    let mut table = Table::default();
    for feature in FEATURES {
        for bit in 0..32 {
            table.set(Bit { bit, ..feature.at });
        }
    }
    let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().expect("four"));
    table.put(0, 0, [0x20, word(0), word(8), word(4)]);
    let [_, _, ecx, edx] = table.registers(1, 0);
    table.put(1, 0, [0x00a2_0f12, 0x1234_5678, ecx, edx]);
    table.put(0xd, 0, [0x0006_02e7, 2696, 11008, 0]);
    table.put(0xd, 2, [256, 576, 0, 0]);
    table.put(0xd, 5, [64, 1088, 0, 0]);
    table.put(0xd, 6, [512, 1152, 0, 0]);
    table.put(0xd, 7, [1024, 1664, 0, 0]);
    table.put(0xd, 9, [8, 2688, 0, 0]);
    table.put(4, 0, [0xfc1f_c121, 0x02c0_003f, 0x3f, 0]);
    table.put(4, 1, [0xfc1f_c163, 0x02c0_003f, 0x3f, 0]);
    table.put(EXTENDED + 0x1d, 0, [0x0000_4121, 0x02c0_003f, 0x3f, 0]);
    table.put(EXTENDED + 0x1d, 1, [0x0000_4163, 0x03c0_003f, 0x7fff, 0]);
    table.put(EXTENDED + 2, 0, [0x6b63_6950, 0, 0, 0]);
    table.put(EXTENDED + 8, 0, [0x3030, 0xffff_ffff, 0x7001, 0]);
    table
}

fn capability(supported: &Table) -> Capability<'_> {
    Capability {
        supported,
        also: &[],
        arch_capabilities: u64::MAX,
        state_components: STATE,
        tsc_khz: None,
        apic_khz: 0,
    }
}

fn shown(model: CpuModel, host: &Table, vcpus: u32, id: u32) -> Processor {
    model.processor(&capability(host), Topology { vcpus, id }).expect("a processor")
}

fn has(table: &Table, name: &str) -> bool {
    table.has(feature(name).expect("listed").at)
}

/// All bits of leaves that consist of features alone.
#[test]
fn nothing_unlisted_is_shown() {
    let host = host(b"GenuineIntel");
    for model in [CpuModel::Common, CpuModel::Full] {
        let Processor { cpuid, msrs } = shown(model, &host, 1, 0);
        for (function, index, register) in [
            (1, 0, Register::Ecx),
            (1, 0, Register::Edx),
            (7, 0, Register::Ebx),
            (7, 0, Register::Edx),
            (EXTENDED + 1, 0, Register::Edx),
            (HYPERVISOR + 1, 0, Register::Eax),
        ] {
            for bit in 0..32 {
                let at = Bit { function, index, register, bit };
                let feature = FEATURES.iter().find(|feature| feature.at == at);
                let hidden = feature.is_none_or(|feature| feature.exposure == Exposure::Hidden);
                assert!(!(hidden && cpuid.has(at)), "{model} {at:x?}");
            }
        }
        let capabilities = msrs.iter().find(|msr| msr.index == msr::ARCH_CAPABILITIES);
        let known = ARCH_CAPABILITIES.iter().filter(|row| row.kind != FlawKind::Control);
        let known = known.fold(0, |mask, row| mask | 1 << row.bit);
        assert_eq!(capabilities.map(|msr| msr.value), Some(known));
    }
}

#[test]
fn the_common_model_is_the_same_on_any_vendor() {
    let [intel, amd] = [b"GenuineIntel", b"AuthenticAMD"].map(host);
    assert_eq!(shown(CpuModel::Common, &intel, 2, 1), shown(CpuModel::Common, &amd, 2, 1));
    let table = shown(CpuModel::Common, &amd, 2, 1).cpuid;
    assert_eq!(&vendor(&table), b"GenuineIntel");
    assert_eq!(table.registers(1, 0)[0], 0x0006_0601);
    assert!(!has(&table, "smap") && !has(&table, "vme") && has(&table, "avx2"));
    assert_eq!(table.registers(EXTENDED + 8, 0)[..2], [0x302e, 0]);
}

#[test]
fn the_full_model_is_the_hosts() {
    let intel = shown(CpuModel::Full, &host(b"GenuineIntel"), 4, 2).cpuid;
    assert!(has(&intel, "smap") && has(&intel, "kvm_pv_unhalt") && !has(&intel, "cmp_legacy"));
    assert_eq!(intel.registers(1, 0)[..2], [0x00a2_0f12, 0x0204_0800]);
    assert_eq!(intel.registers(EXTENDED + 2, 0)[0], 0x6b63_6950);
    assert_eq!(intel.registers(EXTENDED, 0), [EXTENDED + 8, 0, 0, 0]);
    // Level 1 is each core's own, level 3 everybody's.
    assert_eq!(intel.registers(4, 0)[0], 3 << 26 | 0x121);
    assert_eq!(intel.registers(4, 1)[0], 3 << 26 | 3 << 14 | 0x163);
    assert_eq!(intel.registers(EXTENDED + 0x1d, 0), [0; 4]);

    let amd = shown(CpuModel::Full, &host(b"AuthenticAMD"), 4, 2).cpuid;
    assert!(has(&amd, "cmp_legacy") && has(&amd, "topoext"));
    assert_eq!(&vendor(&amd), b"AuthenticAMD");
    assert_eq!(amd.registers(4, 0), [0; 4]);
    assert_eq!(amd.registers(EXTENDED + 0x1d, 1)[0], 3 << 14 | 0x163);
    assert_eq!(amd.registers(EXTENDED + 0x1e, 0), [2, 2, 0, 0]);
    assert_eq!(amd.registers(EXTENDED + 8, 0)[2], 2 << 12 | 3);
    // Bits of leaf 1 are there again, SEP is SYSCALL's place.
    assert_eq!(amd.registers(EXTENDED + 1, 0)[3] & 0x0183_f3ff, {
        amd.registers(1, 0)[3] & 0x0183_f3ff
    });
}

#[test]
fn a_feature_goes_with_what_it_needs() {
    let mut host = host(b"GenuineIntel");
    let [eax, ebx, ecx, edx] = host.registers(1, 0);
    host.put(1, 0, [eax, ebx, ecx & !(1 << 9), edx]); // no SSSE3
    let table = shown(CpuModel::Full, &host, 1, 0).cpuid;
    for gone in ["ssse3", "sse4_1", "sse4_2", "avx", "avx2", "vaes", "sha_ni", "fma"] {
        assert!(!has(&table, gone), "{gone}");
    }
    assert!(has(&table, "xsave") && has(&table, "aes"));
    assert_eq!(table.registers(0xd, 0), [3, 576, 576, 0]);
    // Hidden, so what asks it is hidden.
    assert!(!has(&table, "kvm_pv_tlb_flush"));
}

#[test]
fn state_follows_what_the_engine_saves() {
    let host = host(b"GenuineIntel");
    let table = shown(CpuModel::Full, &host, 1, 0).cpuid;
    assert!(!has(&table, "avx512f") && !has(&table, "pku"));
    assert_eq!(table.registers(0xd, 0), [7, 576, 832, 0]);
    let larger = Capability { state_components: 0x2e7, ..capability(&host) };
    let topology = Topology { vcpus: 1, id: 0 };
    let table = CpuModel::Full.processor(&larger, topology).expect("a processor").cpuid;
    assert!(has(&table, "avx512f") && has(&table, "avx512_fp16") && has(&table, "pku"));
    assert_eq!(table.registers(0xd, 0), [0x2e7, 576, 2696, 0]);
    assert_eq!(table.registers(0xd, 9), [8, 2688, 0, 0]);
    let common = CpuModel::Common.processor(&larger, topology).expect("a processor").cpuid;
    assert_eq!(common.registers(0xd, 0), [7, 576, 832, 0]);
}

#[test]
fn without_xsave_there_is_no_state_leaf() {
    let mut host = host(b"AuthenticAMD");
    let [eax, ebx, ecx, edx] = host.registers(1, 0);
    host.put(1, 0, [eax, ebx, ecx & !(1 << 26), edx]);
    let table = shown(CpuModel::Full, &host, 1, 0).cpuid;
    assert!(!has(&table, "avx") && !has(&table, "xsaveopt"));
    assert_eq!(table.registers(0xd, 0), [0; 4]);
    assert_eq!(table.registers(0xd, 1), [0; 4]);
}

#[test]
fn refusals_name_what_is_missing() {
    let mut host = host(b"GenuineIntel");
    host.put(EXTENDED + 1, 0, [0, 0, 0, 0]);
    let one = Topology { vcpus: 1, id: 0 };
    let refused = CpuModel::Common.processor(&capability(&host), one);
    assert_eq!(refused, Err(ModelError::Lacks(vec!["syscall", "nx", "lm"])));
    let also = Capability { also: &["syscall", "nx", "lm"], ..capability(&host) };
    assert!(CpuModel::Common.processor(&also, one).is_ok());
    let unknown = Capability { also: &["nx", "xn"], ..capability(&host) };
    let refused = CpuModel::Common.processor(&unknown, one);
    assert_eq!(refused, Err(ModelError::NoSuchFeature("xn".to_owned())));
    for (vcpus, id) in [(0, 0), (1, 1), (4, u32::MAX)] {
        let refused = CpuModel::Full.processor(&capability(&host), Topology { vcpus, id });
        assert_eq!(refused, Err(ModelError::NoSuchVcpu { id, vcpus }));
    }
}

#[test]
fn clocks_and_topology() {
    let host = host(b"GenuineIntel");
    let timed = Capability { tsc_khz: Some(2_500_000), apic_khz: 1_000_000, ..capability(&host) };
    let topology = Topology { vcpus: 3, id: 2 };
    let table = CpuModel::Common.processor(&timed, topology).expect("a processor").cpuid;
    assert_eq!(table.registers(HYPERVISOR, 0)[0], HYPERVISOR + 0x10);
    assert_eq!(table.answer(HYPERVISOR + 0x10, 0).registers(), [2_500_000, 1_000_000, 0, 0]);
    assert_eq!(table.answer(0xb, 0).registers(), [0, 1, 0x100, 2]);
    assert_eq!(table.answer(0xb, 1).registers(), [2, 3, 0x201, 2]);
    assert_eq!(table.answer(0xb, 2).registers(), [0, 0, 2, 2]);
    assert_eq!(table.registers(1, 0)[1], 2 << 24 | 4 << 16 | 8 << 8);
    assert!(has(&table, "ht") && has(&table, "hypervisor") && !has(&table, "osxsave"));
    assert_eq!(
        shown(CpuModel::Common, &host, 1, 0).cpuid.registers(HYPERVISOR, 0)[0],
        HYPERVISOR + 1
    );
}

#[test]
fn leaf_7_counts_its_sub_leaves() {
    let mut host = host(b"GenuineIntel");
    assert_eq!(shown(CpuModel::Full, &host, 1, 0).cpuid.registers(7, 0)[0], 2);
    host.put(7, 2, [0; 4]);
    assert_eq!(shown(CpuModel::Full, &host, 1, 0).cpuid.registers(7, 0)[0], 1);
    assert_eq!(shown(CpuModel::Common, &host, 1, 0).cpuid.registers(7, 0)[0], 0);
}

fn names(found: &[Difference]) -> Vec<String> {
    found.iter().map(ToString::to_string).collect()
}

#[test]
fn a_guest_goes_on_where_nothing_differs() {
    let [intel, amd] = [b"GenuineIntel", b"AuthenticAMD"].map(host);
    let common = shown(CpuModel::Common, &intel, 2, 1);
    assert_eq!(names(&differences(&common, &capability(&amd))), [""; 0]);
    let full = shown(CpuModel::Full, &intel, 2, 1);
    assert_eq!(names(&differences(&full, &capability(&intel))), [""; 0]);
}

#[test]
fn differences_are_named() {
    let [large, mut small] = [host(b"GenuineIntel"), host(b"GenuineIntel")];
    let shown = CpuModel::Full.processor(
        &Capability {
            state_components: 0x2e7,
            tsc_khz: Some(2_000_000),
            apic_khz: 1_000_000,
            ..capability(&large)
        },
        Topology { vcpus: 1, id: 0 },
    );
    let shown = shown.expect("a processor");
    let [eax, ebx, ecx, edx] = small.registers(1, 0);
    small.put(1, 0, [eax, ebx, ecx & !(1 << 22), edx]); // MOVBE
    small.put(EXTENDED + 8, 0, [0x3027, u32::MAX, 0, 0]);
    let here = Capability {
        state_components: 0xe7,
        arch_capabilities: !(1 << 5),
        tsc_khz: Some(2_003_000),
        apic_khz: 1_000_000,
        ..capability(&small)
    };
    let found = differences(&shown, &here);
    assert_eq!(
        names(&found),
        [
            "cpu feature movbe is not here",
            "cpu feature pku is not here",
            "state component 9 is not here",
            "physical addresses have 39 bits, the guest's have 48",
            "the guest was told MDS_NO, which is not so here: it does not guard itself",
            "the tsc runs at 2003000 khz, the guest's ran at 2000000",
        ]
    );
    let fatal: Vec<_> = found.iter().map(Difference::is_fatal).collect();
    assert_eq!(fatal, [true, true, true, true, false, false]);
    let json = serde_json::to_string(&found).expect("serialises");
    assert!(json.starts_with(r#"[{"kind":"feature","name":"movbe"}"#), "{json}");
    assert_eq!(serde_json::from_str::<Vec<Difference>>(&json).expect("parses"), found);
}

/// Whatever a table holds is a feature or told in [`LEAVES`].
#[test]
fn every_leaf_is_told() {
    for vendor in [b"GenuineIntel", b"AuthenticAMD"] {
        let host = host(vendor);
        let timed = Capability { tsc_khz: Some(2_000_000), ..capability(&host) };
        for model in [CpuModel::Common, CpuModel::Full] {
            let processor = model.processor(&timed, Topology { vcpus: 2, id: 0 });
            for leaf in processor.expect("a processor").cpuid.leaves {
                let told = LEAVES
                    .iter()
                    .any(|rule| (rule.functions.0..=rule.functions.1).contains(&leaf.function));
                let mut rest = leaf.registers();
                for feature in FEATURES {
                    if (feature.at.function, feature.at.index) == (leaf.function, leaf.index) {
                        rest[feature.at.register as usize] &= !(1 << feature.at.bit);
                    }
                }
                assert!(told || rest == [0; 4], "{model}: leaf {:#x}", leaf.function);
            }
        }
    }
}
