//! Every CPUID feature that somebody has thought about. A bit that is not here is hidden.

use crate::cpuid::{Bit, Register};
use Exposure::{Both, Follows, Full, Hidden, Required};
use Register::{Eax, Ebx, Ecx, Edx};

/// Who is shown a feature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exposure {
    /// Both models; no guest starts without it.
    Required,
    /// Both models, where the engine has it. The translator has all of these, those of vector units where
    /// its host has them.
    Both,
    /// The model `full` only, where the engine has it. The translator has none of these.
    Full,
    /// Nobody.
    Hidden,
    /// Follows from the state or the topology of the vCPU.
    Follows,
}

/// A CPUID feature and what becomes of it.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    /// As in Linux's /proc/cpuinfo, where it has one there.
    pub name: &'static str,
    /// Its place.
    pub at: Bit,
    /// Who is shown it.
    pub exposure: Exposure,
    /// Names of the features that it cannot be without.
    pub needs: &'static [&'static str],
    /// State components in XCR0 that it cannot be without.
    pub components: u64,
    /// Why it is shown or hidden, where the name does not say it.
    pub why: &'static str,
}

const fn row(
    name: &'static str,
    (function, index, register): (u32, u32, Register),
    bit: u32,
    exposure: Exposure,
    needs: &'static [&'static str],
    why: &'static str,
) -> Feature {
    let at = Bit { function, index, register, bit };
    Feature { name, at, exposure, needs, components: 0, why }
}

impl Feature {
    const fn state(self, components: u64) -> Self {
        Self { components, ..self }
    }
}

/// The feature of that name.
#[must_use]
pub fn feature(name: &str) -> Option<&'static Feature> {
    FEATURES.iter().find(|feature| feature.name == name)
}

const AVX: u64 = 1 << 2;
const AVX512: u64 = AVX | 0b111 << 5;
const PKRU: u64 = 1 << 9;

const L1C: (u32, u32, Register) = (1, 0, Ecx);
const L1D: (u32, u32, Register) = (1, 0, Edx);
const L6A: (u32, u32, Register) = (6, 0, Eax);
const L6C: (u32, u32, Register) = (6, 0, Ecx);
const L7B: (u32, u32, Register) = (7, 0, Ebx);
const L7C: (u32, u32, Register) = (7, 0, Ecx);
const L7D: (u32, u32, Register) = (7, 0, Edx);
const L71A: (u32, u32, Register) = (7, 1, Eax);
const L71D: (u32, u32, Register) = (7, 1, Edx);
const L72D: (u32, u32, Register) = (7, 2, Edx);
const LD1A: (u32, u32, Register) = (0xd, 1, Eax);
const X1C: (u32, u32, Register) = (0x8000_0001, 0, Ecx);
const X1D: (u32, u32, Register) = (0x8000_0001, 0, Edx);
const X7D: (u32, u32, Register) = (0x8000_0007, 0, Edx);
const X8B: (u32, u32, Register) = (0x8000_0008, 0, Ebx);
const X21A: (u32, u32, Register) = (0x8000_0021, 0, Eax);
const X21C: (u32, u32, Register) = (0x8000_0021, 0, Ecx);
const KVM: (u32, u32, Register) = (0x4000_0001, 0, Eax);

const PMU: &str = "no performance counters: they would tell guests of the host and need state";
const NESTED: &str = "no virtual machines inside the guest";
const POWER: &str = "power and heat are the host's business";
const TSX: &str = "transactions are off on current hosts and abort on engines without them";
const TRACE: &str = "no hardware trace: its state is large and host addresses are in it";
const AMX: &str = "8 KiB more state in each vCPU";
const SGX: &str = "no enclaves: their memory cannot be seen, moved or saved";
const CET: &str = "supervisor state components that few KVM save";
const PAGE: &str = "KVM would write to guest memory on its own account";
const SPECULATION: &str =
    "a control over the host's speculation; the translator does not speculate";
const IMMUNE: &str = "the host is not affected; the guest need not work around it";

/// The table, by leaf.
#[rustfmt::skip]
pub const FEATURES: &[Feature] = &[
    row("sse3", L1C, 0, Both, &["sse2"], ""),
    row("pclmulqdq", L1C, 1, Both, &["sse2"], ""),
    row("dtes64", L1C, 2, Hidden, &[], TRACE),
    row("monitor", L1C, 3, Hidden, &[], "MWAIT would keep a host core busy with an idle guest"),
    row("ds_cpl", L1C, 4, Hidden, &[], TRACE),
    row("vmx", L1C, 5, Hidden, &[], NESTED),
    row("smx", L1C, 6, Hidden, &[], NESTED),
    row("est", L1C, 7, Hidden, &[], POWER),
    row("tm2", L1C, 8, Hidden, &[], POWER),
    row("ssse3", L1C, 9, Both, &["sse3"], ""),
    row("cid", L1C, 10, Hidden, &[], "cache modes for firmware"),
    row("sdbg", L1C, 11, Hidden, &[], "silicon debugging"),
    row("fma", L1C, 12, Both, &["avx"], ""),
    row("cx16", L1C, 13, Both, &["cx8"], ""),
    row("xtpr", L1C, 14, Hidden, &[], "chipset message control"),
    row("pdcm", L1C, 15, Hidden, &[], PMU),
    row("pcid", L1C, 17, Both, &[], ""),
    row("dca", L1C, 18, Hidden, &[], "belongs to devices that are not there"),
    row("sse4_1", L1C, 19, Both, &["ssse3"], ""),
    row("sse4_2", L1C, 20, Both, &["sse4_1"], ""),
    row("x2apic", L1C, 21, Required, &["apic", "msr"], "the local APIC has no page"),
    row("movbe", L1C, 22, Both, &[], ""),
    row("popcnt", L1C, 23, Both, &[], ""),
    row("tsc_deadline_timer", L1C, 24, Both, &["apic", "tsc", "x2apic"], "the timer with the fewest exits"),
    row("aes", L1C, 25, Both, &["sse2"], ""),
    row("xsave", L1C, 26, Both, &["fxsr"], ""),
    row("osxsave", L1C, 27, Follows, &["xsave"], "CR4.OSXSAVE"),
    row("avx", L1C, 28, Both, &["xsave", "sse4_2"], "").state(AVX),
    row("f16c", L1C, 29, Both, &["avx"], ""),
    row("rdrand", L1C, 30, Both, &[], ""),
    row("hypervisor", L1C, 31, Follows, &[], "always: Linux looks for KVM's leaves only with it"),
    row("fpu", L1D, 0, Required, &[], ""),
    row("vme", L1D, 1, Full, &[], "the translator has no virtual-8086 mode"),
    row("de", L1D, 2, Both, &[], ""),
    row("pse", L1D, 3, Required, &[], ""),
    row("tsc", L1D, 4, Required, &[], ""),
    row("msr", L1D, 5, Required, &[], ""),
    row("pae", L1D, 6, Required, &[], ""),
    row("mce", L1D, 7, Both, &[], "CR4.MCE may be set"),
    row("cx8", L1D, 8, Required, &[], ""),
    row("apic", L1D, 9, Required, &[], ""),
    row("sep", L1D, 11, Both, &[], ""),
    row("mtrr", L1D, 12, Both, &[], "kept for the guest; memory is write-back whatever they say"),
    row("pge", L1D, 13, Required, &[], ""),
    row("mca", L1D, 14, Hidden, &[], "no bank would ever report, and KVM's 32 banks are 128 registers"),
    row("cmov", L1D, 15, Required, &[], ""),
    row("pat", L1D, 16, Required, &[], ""),
    row("pse36", L1D, 17, Both, &[], ""),
    row("pn", L1D, 18, Hidden, &[], "names the host's processor"),
    row("clflush", L1D, 19, Both, &[], ""),
    row("dts", L1D, 21, Hidden, &[], TRACE),
    row("acpi", L1D, 22, Hidden, &[], POWER),
    row("mmx", L1D, 23, Required, &[], ""),
    row("fxsr", L1D, 24, Required, &[], ""),
    row("sse", L1D, 25, Required, &["fxsr"], ""),
    row("sse2", L1D, 26, Required, &["sse"], ""),
    row("ss", L1D, 27, Full, &[], ""),
    row("ht", L1D, 28, Follows, &[], "more than one vCPU"),
    row("tm", L1D, 29, Hidden, &[], POWER),
    row("pbe", L1D, 31, Hidden, &[], POWER),

    row("dtherm", L6A, 0, Hidden, &[], POWER),
    row("ida", L6A, 1, Hidden, &[], POWER),
    row("arat", L6A, 2, Both, &["apic"], "without it Linux keeps its tick: it thinks that the timer stops in HLT"),
    row("hwp", L6A, 7, Hidden, &[], POWER),
    row("aperfmperf", L6C, 0, Hidden, &[], POWER),
    row("epb", L6C, 3, Hidden, &[], POWER),

    row("fsgsbase", L7B, 0, Both, &[], ""),
    row("tsc_adjust", L7B, 1, Both, &["tsc"], "with it Linux needs no watchdog over the TSC"),
    row("sgx", L7B, 2, Hidden, &[], SGX),
    row("bmi1", L7B, 3, Both, &[], ""),
    row("hle", L7B, 4, Hidden, &[], TSX),
    row("avx2", L7B, 5, Both, &["avx"], ""),
    row("fdp_excptn_only", L7B, 6, Full, &[], "how the host's x87 behaves"),
    row("smep", L7B, 7, Both, &[], ""),
    row("bmi2", L7B, 8, Both, &[], ""),
    row("erms", L7B, 9, Both, &[], ""),
    row("invpcid", L7B, 10, Both, &[], ""),
    row("rtm", L7B, 11, Hidden, &[], TSX),
    row("cqm", L7B, 12, Hidden, &[], PMU),
    row("zero_fcs_fds", L7B, 13, Full, &[], "how the host's x87 behaves"),
    row("mpx", L7B, 14, Hidden, &[], "withdrawn"),
    row("rdt_a", L7B, 15, Hidden, &[], "shares of the host's caches"),
    row("avx512f", L7B, 16, Full, &["avx2", "fma"], "").state(AVX512),
    row("avx512dq", L7B, 17, Full, &["avx512f"], ""),
    row("rdseed", L7B, 18, Both, &[], ""),
    row("adx", L7B, 19, Both, &[], ""),
    row("smap", L7B, 20, Full, &[], "the translator does not check it"),
    row("avx512ifma", L7B, 21, Full, &["avx512f"], ""),
    row("clflushopt", L7B, 23, Both, &["clflush"], ""),
    row("clwb", L7B, 24, Both, &["clflush"], ""),
    row("intel_pt", L7B, 25, Hidden, &[], TRACE),
    row("avx512cd", L7B, 28, Full, &["avx512f"], ""),
    row("sha_ni", L7B, 29, Both, &["ssse3"], ""),
    row("avx512bw", L7B, 30, Full, &["avx512f"], ""),
    row("avx512vl", L7B, 31, Full, &["avx512f"], ""),
    row("avx512vbmi", L7C, 1, Full, &["avx512f"], ""),
    row("umip", L7C, 2, Full, &[], "the translator does not check it"),
    row("pku", L7C, 3, Full, &["xsave"], "the translator does not check it").state(PKRU),
    row("ospke", L7C, 4, Follows, &["pku"], "CR4.PKE"),
    row("waitpkg", L7C, 5, Hidden, &[], "waiting without an exit keeps a host core; needs an MSR in the state"),
    row("avx512_vbmi2", L7C, 6, Full, &["avx512f"], ""),
    row("user_shstk", L7C, 7, Hidden, &[], CET),
    row("gfni", L7C, 8, Both, &["sse2"], ""),
    row("vaes", L7C, 9, Both, &["avx", "aes"], ""),
    row("vpclmulqdq", L7C, 10, Both, &["avx", "pclmulqdq"], ""),
    row("avx512_vnni", L7C, 11, Full, &["avx512f"], ""),
    row("avx512_bitalg", L7C, 12, Full, &["avx512f"], ""),
    row("tme", L7C, 13, Hidden, &[], "the host's memory encryption"),
    row("avx512_vpopcntdq", L7C, 14, Full, &["avx512f"], ""),
    row("la57", L7C, 16, Hidden, &[], "a fifth level costs every page walk; the translator has four"),
    row("rdpid", L7C, 22, Both, &[], ""),
    row("bus_lock_detect", L7C, 24, Hidden, &[], "the host's guard against slow locks"),
    row("cldemote", L7C, 25, Full, &[], ""),
    row("movdiri", L7C, 27, Full, &[], ""),
    row("movdir64b", L7C, 28, Full, &[], ""),
    row("enqcmd", L7C, 29, Hidden, &[], "belongs to devices that are not there"),
    row("sgx_lc", L7C, 30, Hidden, &[], SGX),
    row("pks", L7C, 31, Hidden, &[], CET),
    row("avx512_4vnniw", L7D, 2, Full, &["avx512f"], ""),
    row("avx512_4fmaps", L7D, 3, Full, &["avx512f"], ""),
    row("fsrm", L7D, 4, Both, &["erms"], ""),
    row("avx512_vp2intersect", L7D, 8, Full, &["avx512f"], ""),
    row("md_clear", L7D, 10, Full, &[], SPECULATION),
    row("rtm_always_abort", L7D, 11, Hidden, &[], TSX),
    row("serialize", L7D, 14, Full, &[], ""),
    row("tsxldtrk", L7D, 16, Hidden, &[], TSX),
    row("pconfig", L7D, 18, Hidden, &[], "the host's memory encryption"),
    row("arch_lbr", L7D, 19, Hidden, &[], PMU),
    row("ibt", L7D, 20, Hidden, &[], CET),
    row("amx_bf16", L7D, 22, Hidden, &[], AMX),
    row("avx512_fp16", L7D, 23, Full, &["avx512bw", "avx512vl"], ""),
    row("amx_tile", L7D, 24, Hidden, &[], AMX),
    row("amx_int8", L7D, 25, Hidden, &[], AMX),
    row("spec_ctrl", L7D, 26, Both, &[], "Linux clears branches by slow code where it cannot set the bit"),
    row("intel_stibp", L7D, 27, Full, &["spec_ctrl"], SPECULATION),
    row("flush_l1d", L7D, 28, Full, &[], SPECULATION),
    row("arch_capabilities", L7D, 29, Both, &[], "says which flaws need no work-around: see below"),
    row("core_capabilities", L7D, 30, Hidden, &[], "the host's guard against slow locks"),
    row("intel_ssbd", L7D, 31, Full, &["spec_ctrl"], SPECULATION),
    row("sha512", L71A, 0, Full, &["avx2"], ""),
    row("sm3", L71A, 1, Full, &["avx"], ""),
    row("sm4", L71A, 2, Full, &["avx2"], ""),
    row("avx_vnni", L71A, 4, Full, &["avx2"], ""),
    row("avx512_bf16", L71A, 5, Full, &["avx512f"], ""),
    row("cmpccxadd", L71A, 7, Full, &[], ""),
    row("fzrm", L71A, 10, Full, &[], ""),
    row("fsrs", L71A, 11, Full, &[], ""),
    row("fsrc", L71A, 12, Full, &[], ""),
    row("fred", L71A, 17, Hidden, &[], "another way to deliver events, with registers that no state here has"),
    row("lkgs", L71A, 18, Hidden, &[], "goes with fred"),
    row("amx_fp16", L71A, 21, Hidden, &[], AMX),
    row("hreset", L71A, 22, Hidden, &[], POWER),
    row("avx_ifma", L71A, 23, Full, &["avx2"], ""),
    row("lam", L71A, 26, Hidden, &[], "the translator does not mask addresses, and few kernels use it"),
    row("avx_vnni_int8", L71D, 4, Full, &["avx2"], ""),
    row("avx_ne_convert", L71D, 5, Full, &["avx2"], ""),
    row("avx_vnni_int16", L71D, 10, Full, &["avx2"], ""),
    row("prefetchi", L71D, 14, Full, &[], ""),
    row("psfd", L72D, 0, Full, &["spec_ctrl"], SPECULATION),
    row("ipred_ctrl", L72D, 1, Full, &["spec_ctrl"], SPECULATION),
    row("rrsba_ctrl", L72D, 2, Full, &["spec_ctrl"], SPECULATION),
    row("ddpd_u", L72D, 3, Full, &["spec_ctrl"], SPECULATION),
    row("bhi_ctrl", L72D, 4, Both, &["spec_ctrl"], "without it Linux clears the branch history by a loop at every system call"),
    row("mcdt_no", L72D, 5, Full, &[], IMMUNE),

    row("xsaveopt", LD1A, 0, Both, &["xsave"], ""),
    row("xsavec", LD1A, 1, Both, &["xsave"], ""),
    row("xgetbv1", LD1A, 2, Both, &["xsave"], ""),
    row("xsaves", LD1A, 3, Full, &["xsavec"], "the translator has no XSAVES; there are no supervisor components"),
    row("xfd", LD1A, 4, Hidden, &[], AMX),

    row("lahf_lm", X1C, 0, Both, &[], ""),
    row("cmp_legacy", X1C, 1, Follows, &[], "AMD: more than one vCPU, and they are cores"),
    row("svm", X1C, 2, Hidden, &[], NESTED),
    row("extapic", X1C, 3, Hidden, &[], "registers that the in-kernel APIC has not"),
    row("cr8_legacy", X1C, 4, Full, &[], ""),
    row("abm", X1C, 5, Both, &[], ""),
    row("sse4a", X1C, 6, Full, &["sse3"], ""),
    row("misalignsse", X1C, 7, Full, &[], ""),
    row("3dnowprefetch", X1C, 8, Both, &[], ""),
    row("osvw", X1C, 9, Hidden, &[], "errata of the host's processor"),
    row("ibs", X1C, 10, Hidden, &[], PMU),
    row("xop", X1C, 11, Full, &["avx"], ""),
    row("skinit", X1C, 12, Hidden, &[], NESTED),
    row("wdt", X1C, 13, Hidden, &[], POWER),
    row("lwp", X1C, 15, Hidden, &[], "withdrawn"),
    row("fma4", X1C, 16, Full, &["avx"], ""),
    row("tce", X1C, 17, Hidden, &[], "how the host's TLB behaves"),
    row("nodeid_msr", X1C, 19, Hidden, &[], "the guest is one node"),
    row("tbm", X1C, 21, Full, &[], ""),
    row("topoext", X1C, 22, Full, &[], "AMD: leaves 0x8000001d and 0x8000001e"),
    row("perfctr_core", X1C, 23, Hidden, &[], PMU),
    row("perfctr_nb", X1C, 24, Hidden, &[], PMU),
    row("bpext", X1C, 26, Hidden, &[], "more debug registers than the state has"),
    row("perfctr_llc", X1C, 28, Hidden, &[], PMU),
    row("mwaitx", X1C, 29, Hidden, &[], "waiting would keep a host core busy"),
    row("syscall", X1D, 11, Required, &[], ""),
    row("nx", X1D, 20, Required, &["pae"], ""),
    row("mmxext", X1D, 22, Full, &["mmx"], ""),
    row("fxsr_opt", X1D, 25, Full, &["fxsr"], ""),
    row("pdpe1gb", X1D, 26, Both, &[], ""),
    row("rdtscp", X1D, 27, Both, &["tsc"], ""),
    row("lm", X1D, 29, Required, &["pae", "syscall", "nx", "sse2"], ""),
    row("3dnowext", X1D, 30, Hidden, &[], "withdrawn"),
    row("3dnow", X1D, 31, Hidden, &[], "withdrawn"),
    row("constant_tsc", X7D, 8, Both, &["tsc"], "the TSC is a clock"),

    row("clzero", X8B, 0, Full, &[], ""),
    row("irperf", X8B, 1, Hidden, &[], PMU),
    row("xsaveerptr", X8B, 2, Full, &["xsave"], "how the host's x87 behaves"),
    row("rdpru", X8B, 4, Hidden, &[], POWER),
    row("wbnoinvd", X8B, 9, Full, &[], ""),
    row("ibpb", X8B, 12, Full, &[], SPECULATION),
    row("ibrs", X8B, 14, Full, &[], SPECULATION),
    row("amd_stibp", X8B, 15, Full, &[], SPECULATION),
    row("ibrs_always_on", X8B, 16, Full, &["ibrs"], SPECULATION),
    row("amd_stibp_always_on", X8B, 17, Full, &["amd_stibp"], SPECULATION),
    row("ibrs_same_mode", X8B, 19, Full, &["ibrs"], SPECULATION),
    row("amd_ssbd", X8B, 24, Full, &[], SPECULATION),
    row("virt_ssbd", X8B, 25, Full, &[], SPECULATION),
    row("ssb_no", X8B, 26, Full, &[], IMMUNE),
    row("amd_psfd", X8B, 28, Full, &[], SPECULATION),
    row("btc_no", X8B, 29, Full, &[], IMMUNE),
    row("ibpb_ret", X8B, 30, Full, &["ibpb"], SPECULATION),
    row("no_nested_data_bp", X21A, 0, Full, &[], "how the host behaves"),
    row("lfence_rdtsc", X21A, 2, Full, &[], "how the host behaves"),
    row("verw_clear", X21A, 5, Full, &[], SPECULATION),
    row("null_sel_clr_base", X21A, 6, Full, &[], "how the host behaves"),
    row("autoibrs", X21A, 8, Full, &[], SPECULATION),
    row("no_smm_ctl_msr", X21A, 9, Full, &[], "how the host behaves"),
    row("sbpb", X21A, 27, Full, &[], SPECULATION),
    row("ibpb_brtype", X21A, 28, Full, &[], SPECULATION),
    row("srso_no", X21A, 29, Full, &[], IMMUNE),
    row("srso_user_kernel_no", X21A, 30, Full, &[], IMMUNE),
    row("tsa_sq_no", X21C, 1, Full, &[], IMMUNE),
    row("tsa_l1_no", X21C, 2, Full, &[], IMMUNE),

    row("kvm_clocksource_old", KVM, 0, Hidden, &[], "the same clock by MSRs that others use for something else"),
    row("kvm_nop_io_delay", KVM, 1, Both, &[], "no write to port 0x80 after each port write"),
    row("kvm_mmu_op", KVM, 2, Hidden, &[], "withdrawn"),
    row("kvm_clocksource", KVM, 3, Both, &[], "the TSC's frequency without calibration, and the time of day"),
    row("kvm_asyncpf", KVM, 4, Hidden, &[], "absent frames are the VM's to resolve, in order"),
    row("kvm_steal_time", KVM, 5, Hidden, &[], PAGE),
    row("kvm_pv_eoi", KVM, 6, Full, &["x2apic"], "saves an exit an interrupt where the host has no virtual APIC"),
    row("kvm_pv_unhalt", KVM, 7, Full, &[], "waiters for a spinlock sleep"),
    row("kvm_pv_tlb_flush", KVM, 9, Full, &["kvm_steal_time"], "asks the steal-time page who is preempted, so goes with it"),
    row("kvm_asyncpf_vmexit", KVM, 10, Hidden, &[], NESTED),
    row("kvm_pv_send_ipi", KVM, 11, Full, &["x2apic"], "many interrupts in one exit"),
    row("kvm_poll_control", KVM, 12, Hidden, &[], "how long the host polls is the host's business"),
    row("kvm_pv_sched_yield", KVM, 13, Full, &["kvm_steal_time"], "as kvm_pv_tlb_flush"),
    row("kvm_asyncpf_int", KVM, 14, Hidden, &[], "as kvm_asyncpf"),
    row("kvm_msi_ext_dest_id", KVM, 15, Hidden, &[], "for more than 255 vCPUs"),
    row("kvm_hc_map_gpa_range", KVM, 16, Hidden, &[], "for encrypted guests"),
    row("kvm_migration_control", KVM, 17, Hidden, &[], "for encrypted guests"),
    row("kvm_clocksource_stable", KVM, 24, Both, &["kvm_clocksource"], "all vCPUs see the same clock"),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_has_its_place_and_name() {
        let (mut places, mut names) = (HashSet::new(), HashSet::new());
        for feature in FEATURES {
            assert!(feature.at.bit < 32, "{}", feature.name);
            assert!(places.insert(feature.at), "{}: place used twice", feature.name);
            assert!(names.insert(feature.name), "{}: name used twice", feature.name);
        }
    }

    /// What a required feature needs is required, what both models show needs nothing of one alone.
    #[test]
    fn needs_are_features_at_least_as_common() {
        let rank = |exposure| match exposure {
            Required => 0,
            Both => 1,
            _ => 2,
        };
        for feature in FEATURES {
            for name in feature.needs {
                let needed =
                    super::feature(name).unwrap_or_else(|| panic!("{name}: no such feature"));
                assert!(rank(needed.exposure) <= rank(feature.exposure), "{} {name}", feature.name);
            }
        }
    }

    #[test]
    fn what_is_hidden_says_why() {
        for feature in FEATURES {
            let silent = feature.why.is_empty();
            assert!(!(silent && matches!(feature.exposure, Hidden | Follows)), "{}", feature.name);
        }
    }
}
