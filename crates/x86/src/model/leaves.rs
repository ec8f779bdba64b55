//! The leaves that are not feature bits: identity, topology, caches, state sizes, clocks.

use super::select::Selection;
use super::{Capability, CpuModel, MAX_EXTENDED, Topology, is_amd, vendor};
use crate::cpuid::{EXTENDED, HYPERVISOR, Table};

/// Highest basic leaf. The leaves above it tell of what is hidden (trace, enclaves, cache shares), repeat
/// leaf 0xb, or give frequencies (0x15, 0x16) which Linux would also take for the APIC timer's.
const MAX_BASIC: u32 = 0xd;
/// Highest extended leaf of AMD's processors that has something to tell.
const MAX_EXTENDED_AMD: u32 = EXTENDED + 0x21;
/// Rates of TSC and APIC timer in kHz, as VMware began and KVM's documentation has it.
const FREQUENCIES: u32 = HYPERVISOR + 0x10;

/// The vendor of the common model.
const VENDOR: &[u8; 12] = b"GenuineIntel";
/// Family 6, model 0x60, stepping 1, which no processor has: Linux has no special cases for it beyond what the bits
/// say, and neither has a program. One that has code for a processor by its name (`arch=` in GCC's `target_clones`,
/// `__builtin_cpu_is`) does not ask for feature bits; by the number of a processor with AVX-512 it would use that.
const SIGNATURE: u32 = 0x0006_0601;
const BRAND: &[u8] = b"Fathom virtual processor";

/// Width of physical addresses in the common model: what the translator's page walk has.
const PHYSICAL_BITS: u32 = 46;
/// Where an engine says nothing (SDM volume 3, 4.1.4).
const PHYSICAL_BITS_MIN: u32 = 36;
const LINEAR_BITS: u32 = 48;

/// A leaf that holds more than feature bits.
#[derive(Clone, Copy, Debug)]
pub struct LeafRule {
    /// EAX of CPUID, from and to.
    pub functions: (u32, u32),
    /// What it is for.
    pub holds: &'static str,
    /// What the common model shows, and the full one on an engine without a processor of its own.
    pub common: &'static str,
    /// What the full model shows on an engine with a processor.
    pub full: &'static str,
}

const fn leaf(
    functions: (u32, u32),
    holds: &'static str,
    common: &'static str,
    full: &'static str,
) -> LeafRule {
    LeafRule { functions, holds, common, full }
}

const SAME: &str = "the same";
const HOST: &str = "the host's";

/// Every leaf but those of feature bits alone. One that is in neither list is all zero.
#[rustfmt::skip]
pub const LEAVES: &[LeafRule] = &[
    leaf((0, 0), "vendor, highest leaf", "GenuineIntel, 0xd", "the host's vendor, 0xd"),
    leaf((1, 1), "signature, APIC id, number of vCPUs, CLFLUSH line; features", "family 6, model 0x60, stepping 1", "the host's signature"),
    leaf((2, 2), "cache descriptors", "see leaf 4", "see leaf 4; nothing on AMD"),
    leaf((4, 4), "caches", "L1 32 KiB twice, L2 1 MiB, L3 16 MiB for all vCPUs", "the host's, L3 for all vCPUs; nothing on AMD"),
    leaf((7, 7), "number of sub-leaves; features", "as many as have bits", SAME),
    leaf((0xb, 0xb), "topology", "one package, a core with one thread a vCPU", SAME),
    leaf((0xd, 0xd), "XSAVE components and sizes; features", "x87, SSE, AVX; standard format", "what the engine saves"),
    leaf((HYPERVISOR, HYPERVISOR), "hypervisor", "KVMKVMKVM on both engines", SAME),
    leaf((FREQUENCIES, FREQUENCIES), "kHz of the TSC and of the APIC timer", "the TSC's, 1000000", SAME),
    leaf((EXTENDED, EXTENDED), "highest leaf", "0x80000008", "0x80000021 and the vendor on AMD"),
    leaf((EXTENDED + 1, EXTENDED + 1), "features", "no signature", "on AMD the signature and bits of leaf 1 again"),
    leaf((EXTENDED + 2, EXTENDED + 4), "brand", "Fathom virtual processor", HOST),
    leaf((EXTENDED + 5, EXTENDED + 5), "level 1 caches and TLBs", "nothing", "the host's on AMD"),
    leaf((EXTENDED + 6, EXTENDED + 6), "level 2 cache", "1 MiB", HOST),
    leaf((EXTENDED + 7, EXTENDED + 7), "features", "the TSC is a clock", SAME),
    leaf((EXTENDED + 8, EXTENDED + 8), "address widths; features", "at most 46 and 48 bits", "the host's physical width, 48; number of cores on AMD"),
    leaf((EXTENDED + 0x1d, EXTENDED + 0x1d), "caches", "nothing", "the host's on AMD, L3 for all vCPUs"),
    leaf((EXTENDED + 0x1e, EXTENDED + 0x1e), "topology", "nothing", "on AMD as leaf 0xb"),
];

/// The whole table: first what is not features, then those.
pub(super) fn table(
    selection: &Selection,
    capability: &Capability<'_>,
    topology: Topology,
) -> Table {
    let host = capability.supported;
    let full = selection.model == CpuModel::Full && vendor(host) != [0; 12];
    let writer = Writer { host, full, amd: full && is_amd(host), topology };
    let mut table = Table::default();
    writer.basic(&mut table);
    writer.caches(&mut table);
    writer.extended(&mut table, selection.has("topoext"));
    writer.state(&mut table, selection.components());
    hypervisor(&mut table, capability);
    selection.write(&mut table);
    finish(&mut table, writer.amd);
    table
}

struct Writer<'a> {
    host: &'a Table,
    /// Identity and caches are the host's.
    full: bool,
    /// ... and laid out as AMD's are.
    amd: bool,
    topology: Topology,
}

impl Writer<'_> {
    fn basic(&self, table: &mut Table) {
        let Topology { vcpus, id } = self.topology;
        let [_, ebx, ecx, edx] = self.host.registers(0, 0);
        let name = if self.full { [ebx, ecx, edx] } else { name(VENDOR, [0, 2, 1]) };
        table.put(0, 0, [MAX_BASIC, name[0], name[1], name[2]]);
        let logical = vcpus.min(255).next_power_of_two().min(255);
        table.put(1, 0, [self.signature(), 8 << 8 | logical << 16 | (id & 0xff) << 24, 0, 0]);
        table.put(0xb, 0, [0, 1, 1 << 8, id]);
        table.put(0xb, 1, [vcpus.next_power_of_two().ilog2(), vcpus, 2 << 8 | 1, id]);
    }

    fn signature(&self) -> u32 {
        if self.full { self.host.registers(1, 0)[0] } else { SIGNATURE }
    }

    /// Leaf 4 (Intel) or 0x8000001d (AMD). The last level is shared by all vCPUs.
    fn caches(&self, table: &mut Table) {
        let cores = self.topology.vcpus.next_power_of_two().min(64) - 1;
        let function = if self.amd { EXTENDED + 0x1d } else { 4 };
        if !self.amd {
            // "See leaf 4", no TLB and prefetch descriptors.
            table.put(2, 0, [0x00ff_ff01, 0, 0, 0]);
        }
        let host = (0..8).map(|index| self.host.registers(function, index));
        let host: Vec<_> = host.take_while(|leaf| self.full && leaf[0] & 31 != 0).collect();
        let own = if self.amd { Vec::new() } else { synthetic_caches() };
        let caches = if host.is_empty() { own } else { host };
        for (index, [eax, ebx, ecx, edx]) in caches.into_iter().enumerate() {
            let shared = if eax >> 5 & 7 >= 3 { cores } else { 0 };
            let in_package = if self.amd { 0 } else { cores };
            let eax = eax & 0x3fff | shared << 14 | in_package << 26;
            table.put(function, index as u32, [eax, ebx, ecx, edx]);
        }
    }

    fn extended(&self, table: &mut Table, topoext: bool) {
        let Topology { vcpus, id } = self.topology;
        let max = if self.amd { MAX_EXTENDED_AMD } else { MAX_EXTENDED };
        let [_, ebx, ecx, edx] = self.host.registers(0, 0);
        let name = if self.amd { [ebx, ecx, edx] } else { [0; 3] };
        table.put(EXTENDED, 0, [max, name[0], name[1], name[2]]);
        let repeated = if self.amd { self.signature() } else { 0 };
        table.put(EXTENDED + 1, 0, [repeated, 0, 0, 0]);
        for (leaf, registers) in (EXTENDED + 2..).zip(self.brand()) {
            table.put(leaf, 0, registers);
        }
        if self.amd {
            table.put(EXTENDED + 5, 0, self.host.registers(EXTENDED + 5, 0));
            table.put(EXTENDED + 6, 0, self.host.registers(EXTENDED + 6, 0));
        } else {
            table.put(EXTENDED + 6, 0, [0, 0, self.level_2(), 0]);
        }
        // Cores, and the bits of an APIC id that number them (APM volume 3, E.4.7).
        let cores = (vcpus - 1) & 0xff | vcpus.next_power_of_two().ilog2() << 12;
        table.put(EXTENDED + 8, 0, [self.widths(), 0, if self.amd { cores } else { 0 }, 0]);
        if self.amd && topoext {
            table.put(EXTENDED + 0x1e, 0, [id, id & 0xff, 0, 0]);
        }
    }

    /// 1 MiB, 16 ways, lines of 64 bytes where the host does not tell.
    fn level_2(&self) -> u32 {
        let [_, _, host, _] = self.host.registers(EXTENDED + 6, 0);
        if self.full && host != 0 { host } else { 1024 << 16 | 8 << 12 | 64 }
    }

    fn widths(&self) -> u32 {
        let physical = match self.host.registers(EXTENDED + 8, 0)[0] & 0xff {
            0 => PHYSICAL_BITS_MIN,
            bits => bits,
        };
        let physical = if self.full { physical } else { physical.min(PHYSICAL_BITS) };
        physical | LINEAR_BITS << 8
    }

    fn brand(&self) -> [[u32; 4]; 3] {
        let host = [2, 3, 4].map(|leaf| self.host.registers(EXTENDED + leaf, 0));
        if self.full && host != [[0; 4]; 3] {
            return host;
        }
        let mut brand = [0u8; 48];
        brand[..BRAND.len()].copy_from_slice(BRAND);
        [0, 16, 32].map(|at| [0, 4, 8, 12].map(|word| word_at(&brand, at + word)))
    }

    /// Leaf 0xd in the standard format: offsets are the processor's, so the host's.
    fn state(&self, table: &mut Table, components: u64) {
        const HEADER_END: u32 = 512 + 64;
        if components == 0 {
            return;
        }
        let mut size = HEADER_END;
        for component in (2..63).filter(|bit| components >> bit & 1 != 0) {
            let [bytes, offset, flags, _] = self.host.registers(0xd, component);
            table.put(0xd, component, [bytes, offset, flags, 0]);
            size = size.max(offset.saturating_add(bytes));
        }
        // EBX is the size for the XCR0 of a reset; engines put in that of the XCR0 that is.
        table.put(0xd, 0, [components as u32, HEADER_END, size, (components >> 32) as u32]);
        table.put(0xd, 1, [0, HEADER_END, 0, 0]);
    }
}

/// 32 KiB data and code at level 1, 1 MiB at level 2, 16 MiB at level 3, lines of 64 bytes.
fn synthetic_caches() -> Vec<[u32; 4]> {
    const LEVELS: [[u32; 4]; 4] =
        [[1, 1, 8, 64], [2, 1, 8, 64], [3, 2, 16, 1024], [3, 3, 16, 16384]];
    let leaf = |[kind, level, ways, sets]: [u32; 4]| {
        [kind | level << 5 | 1 << 8, 63 | (ways - 1) << 22, sets - 1, 0]
    };
    LEVELS.map(leaf).to_vec()
}

fn hypervisor(table: &mut Table, capability: &Capability<'_>) {
    let [ebx, ecx, edx] = name(b"KVMKVMKVM\0\0\0", [0, 1, 2]);
    let max = if capability.tsc_khz.is_some() { FREQUENCIES } else { HYPERVISOR + 1 };
    table.put(HYPERVISOR, 0, [max, ebx, ecx, edx]);
    table.put(HYPERVISOR + 1, 0, [0; 4]);
    if let Some(tsc_khz) = capability.tsc_khz {
        table.put(FREQUENCIES, 0, [tsc_khz, capability.apic_khz, 0, 0]);
    }
}

/// What repeats feature bits or counts leaves.
fn finish(table: &mut Table, amd: bool) {
    let last = (0..=2).rev().find(|&index| table.registers(7, index) != [0; 4]).unwrap_or(0);
    let [_, ebx, ecx, edx] = table.registers(7, 0);
    table.put(7, 0, [last, ebx, ecx, edx]);
    if amd {
        // The bits of leaf 1 that AMD repeats (APM volume 3, E.4.2).
        const REPEATED: u32 = 0x0183_f3ff;
        let [eax, ebx, ecx, edx] = table.registers(EXTENDED + 1, 0);
        let edx = edx | table.registers(1, 0)[3] & REPEATED;
        table.put(EXTENDED + 1, 0, [eax, ebx, ecx, edx]);
    }
    table.leaves.sort_by_key(|leaf| (leaf.function, leaf.index));
}

/// A name of 12 letters; `order` says which third is in EBX, ECX and EDX.
fn name(letters: &[u8; 12], order: [usize; 3]) -> [u32; 3] {
    order.map(|third| word_at(letters, third * 4))
}

fn word_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
