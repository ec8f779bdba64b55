//! The processor that guests see.
//!
//! One synthetic model on every host: Intel's vendor string with a family and model that Linux has no
//! special cases for beyond what the bits say, and an IA32_ARCH_CAPABILITIES that rules out the known
//! speculation flaws. An interpreter does not speculate, so that is true, and it spares guests page-table
//! isolation and retpolines. (A native translator must look at this again.) Vendor and model decide nothing
//! else: user programs choose code by feature bits.
//!
//! Vector features are those that the interpreter runs *and* the host has, since the host executes them.
//! Hidden on purpose: SMAP, UMIP, PKU, CET, LA57, SGX, TSX, MPX, MONITOR, performance counters, AVX-512.

use translator::vector::{Features, host_features};
use x86::cpuid::{Leaf, Table};

/// Highest basic leaf.
const MAX_BASIC: u32 = 0xd;
const MAX_EXTENDED: u32 = 0x8000_0008;
const KVM_SIGNATURE: u32 = 0x4000_0000;
const KVM_FEATURES: u32 = 0x4000_0001;

/// Family 6, model 0x8f, stepping 8.
const VERSION: u32 = 0x0008_06f8;

/// CLOCKSOURCE2, NOP_IO_DELAY, CLOCKSOURCE_STABLE.
const KVM_FEATURE_BITS: u32 = 1 << 3 | 1 << 1 | 1 << 24;

/// Bytes of the XSAVE area with x87 and SSE, and with AVX.
const XSAVE_SSE: u32 = 576;
const XSAVE_AVX: u32 = 832;

/// RDCL_NO, IBRS_ALL, SKIP_L1DFL, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO,
/// BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO (SDM volume 4, IA32_ARCH_CAPABILITIES).
pub(crate) const ARCH_CAPABILITIES: u64 = 1 << 0
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27
    | 1 << 62;

/// The table of a vCPU with local APIC `id` out of `vcpus`. OSXSAVE, the APIC id and the XSAVE size depend
/// on the vCPU's state: [`query`] fills them in.
pub(crate) fn table(id: u32, vcpus: u32) -> Table {
    let host = host_features();
    let mut table = Table::default();
    basic(&mut table, id, vcpus, &host);
    extended(&mut table);
    kvm(&mut table);
    table
}

/// What CPUID answers, given the state it depends on.
pub(crate) fn query(table: &Table, function: u32, index: u32, osxsave: bool, xcr0: u64) -> Leaf {
    let function = clamp(function);
    let Some(leaf) = table.find(function, index) else {
        let none = Leaf { function, index, indexed: true, eax: 0, ebx: 0, ecx: 0, edx: 0 };
        // Topology sub-leaves beyond the last still name the sub-leaf and the APIC (SDM, leaf 0BH).
        return match table.find(function, 0) {
            Some(first) if function == 0xb => Leaf { ecx: index & 0xff, edx: first.edx, ..none },
            _ => none,
        };
    };
    let mut leaf = *leaf;
    match (function, index) {
        (1, _) if osxsave => leaf.ecx |= 1 << 27,
        (0xd, 0) => leaf.ebx = if xcr0 & 4 != 0 { XSAVE_AVX } else { XSAVE_SSE },
        (0xd, 1) => leaf.ebx = if xcr0 & 4 != 0 { XSAVE_AVX } else { XSAVE_SSE },
        _ => {}
    }
    leaf
}

/// Leaves beyond the highest answer like the highest basic one (SDM volume 2, CPUID).
fn clamp(function: u32) -> u32 {
    let known = function <= MAX_BASIC
        || (0x8000_0000..=MAX_EXTENDED).contains(&function)
        || (KVM_SIGNATURE..=KVM_FEATURES).contains(&function);
    if known { function } else { MAX_BASIC }
}

fn add(table: &mut Table, function: u32, [eax, ebx, ecx, edx]: [u32; 4]) {
    table.leaves.push(Leaf { function, index: 0, indexed: false, eax, ebx, ecx, edx });
}

fn add_indexed(table: &mut Table, function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) {
    table.leaves.push(Leaf { function, index, indexed: true, eax, ebx, ecx, edx });
}

fn basic(table: &mut Table, id: u32, vcpus: u32, host: &Features) {
    add(table, 0, vendor(MAX_BASIC, b"GenuineIntel"));
    let logical = vcpus.min(255).next_power_of_two().min(255);
    let ebx = 8 << 8 | logical << 16 | (id & 0xff) << 24;
    add(table, 1, [VERSION, ebx, leaf1_ecx(host), leaf1_edx(host, vcpus)]);
    add(table, 2, [0x00ff_ff01, 0, 0, 0]);
    caches(table, vcpus);
    // ARAT: without it Linux thinks that the local timer stops in HLT, and with no other timer to wake it
    // never stops its tick nor sleeps shorter than one.
    add(table, 6, [1 << 2, 0, 0, 0]);
    add_indexed(table, 7, 0, [2, leaf7_ebx(host), leaf7_ecx(host), leaf7_edx()]);
    // BHI_CTRL: Linux clears the branch history by a loop at every system call unless it can set a bit in
    // IA32_SPEC_CTRL instead; BHI_NO no longer spares it that.
    add_indexed(table, 7, 2, [0, 0, 0, 1 << 4]);
    add_indexed(table, 0xb, 0, [0, 1, 1 << 8, id]);
    add_indexed(table, 0xb, 1, [vcpus.next_power_of_two().ilog2(), vcpus, 2 << 8 | 1, id]);
    let avx = host.xcr0 & 4 != 0;
    let size = if avx { XSAVE_AVX } else { XSAVE_SSE };
    add_indexed(table, 0xd, 0, [host.xcr0 as u32, XSAVE_SSE, size, 0]);
    add_indexed(table, 0xd, 1, [host.leafd_1_eax | 1 << 2, XSAVE_SSE, 0, 0]);
    if avx {
        add_indexed(table, 0xd, 2, [256, XSAVE_SSE, 0, 0]);
    }
}

fn bits(list: &[u32]) -> u32 {
    list.iter().fold(0, |sum, bit| sum | 1 << bit)
}

fn leaf1_ecx(host: &Features) -> u32 {
    // CMPXCHG16B, PCID, x2APIC, MOVBE, POPCNT, TSC deadline, RDRAND, hypervisor.
    host.leaf1_ecx | bits(&[13, 17, 21, 22, 23, 24, 30, 31])
}

fn leaf1_edx(host: &Features, vcpus: u32) -> u32 {
    // DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH; HTT. Without VME: there is no
    // virtual-8086 mode.
    let own = bits(&[2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19]);
    host.leaf1_edx | own | if vcpus > 1 { 1 << 28 } else { 0 }
}

fn leaf7_ebx(host: &Features) -> u32 {
    // FSGSBASE, BMI1, SMEP, BMI2, ERMS, INVPCID, RDSEED, ADX, CLFLUSHOPT, CLWB.
    host.leaf7_ebx | bits(&[0, 3, 7, 8, 9, 10, 18, 19, 23, 24])
}

fn leaf7_ecx(host: &Features) -> u32 {
    host.leaf7_ecx | 1 << 22 // RDPID
}

fn leaf7_edx() -> u32 {
    // FSRM, SPEC_CTRL, ARCH_CAPABILITIES.
    bits(&[4, 26, 29])
}

/// Deterministic cache parameters: 32 KiB L1 data and code, 1 MiB L2, 16 MiB L3, 64-byte lines.
fn caches(table: &mut Table, vcpus: u32) {
    let cores = vcpus.next_power_of_two().min(64) - 1;
    let cache = |kind: u32, level: u32, ways: u32, sets: u32, shared: u32| {
        [
            kind | level << 5 | 1 << 8 | shared << 14 | cores << 26,
            63 | (ways - 1) << 22,
            sets - 1,
            0,
        ]
    };
    add_indexed(table, 4, 0, cache(1, 1, 8, 64, 0));
    add_indexed(table, 4, 1, cache(2, 1, 8, 64, 0));
    add_indexed(table, 4, 2, cache(3, 2, 16, 1024, 0));
    add_indexed(table, 4, 3, cache(3, 3, 16, 16384, cores));
}

fn extended(table: &mut Table) {
    add(table, 0x8000_0000, [MAX_EXTENDED, 0, 0, 0]);
    // LAHF, LZCNT, PREFETCHW; SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
    let (ecx, edx) = (1 | 1 << 5 | 1 << 8, 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29);
    add(table, 0x8000_0001, [0, 0, ecx, edx]);
    let mut brand = [0u8; 48];
    let name = b"Fathom x86-64 interpreter";
    brand[..name.len()].copy_from_slice(name);
    for (leaf, part) in brand.chunks_exact(16).enumerate() {
        let word =
            |at: usize| u32::from_le_bytes([part[at], part[at + 1], part[at + 2], part[at + 3]]);
        add(table, 0x8000_0002 + leaf as u32, [word(0), word(4), word(8), word(12)]);
    }
    add(table, 0x8000_0006, [0, 0, 1024 << 16 | 8 << 12 | 64, 0]);
    add(table, 0x8000_0007, [0, 0, 0, 1 << 8]); // invariant TSC
    add(table, 0x8000_0008, [crate::walk::PHYSICAL_BITS | 48 << 8, 0, 0, 0]);
}

fn kvm(table: &mut Table) {
    add(table, KVM_SIGNATURE, vendor_at(KVM_FEATURES, b"KVMKVMKVM\0\0\0", [0, 1, 2]));
    add(table, KVM_FEATURES, [KVM_FEATURE_BITS, 0, 0, 0]);
}

/// EAX = `max`; the vendor string is in EBX, EDX, ECX.
fn vendor(max: u32, name: &[u8; 12]) -> [u32; 4] {
    vendor_at(max, name, [0, 2, 1])
}

/// The hypervisor's signature is in EBX, ECX, EDX instead.
fn vendor_at(max: u32, name: &[u8; 12], order: [usize; 3]) -> [u32; 4] {
    let word = |part: usize| {
        let at = part * 4;
        u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]])
    };
    [max, word(order[0]), word(order[1]), word(order[2])]
}
