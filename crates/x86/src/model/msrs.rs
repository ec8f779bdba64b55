//! Every model-specific register that a guest may find. Any other is #GP, to read and to write.

use super::{feature, is_amd};
use crate::cpuid::Table;
use crate::msr;
use crate::state::Msr;
use Kind::{Command, Constant, Field, Saved};
use Presence::{Always, Amd, With};

/// What becomes of a register's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It is in [`VcpuState::msrs`](crate::VcpuState).
    Saved,
    /// It is in another field of [`VcpuState`](crate::VcpuState), named here.
    Field(&'static str),
    /// It never changes: part of the model.
    Constant,
    /// Writes act and leave nothing behind.
    Command,
}

/// Where a register is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// On every processor here.
    Always,
    /// With any of these features.
    With(&'static [&'static str]),
    /// On AMD's processors, so in the full model only.
    Amd,
}

/// A register, or a run of them.
#[derive(Clone, Copy, Debug)]
pub struct MsrRule {
    /// As the manual has it.
    pub name: &'static str,
    /// Number of the first.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// What becomes of its value.
    pub kind: Kind,
    /// Where it is.
    pub presence: Presence,
    /// Its value at the first instruction.
    pub reset: u64,
    /// What the name does not say.
    pub why: &'static str,
}

const fn row(
    name: &'static str,
    (first, count): (u32, u32),
    kind: Kind,
    presence: Presence,
    reset: u64,
    why: &'static str,
) -> MsrRule {
    MsrRule { name, first, count, kind, presence, reset, why }
}

/// Fast strings (bit 0): Linux trusts REP MOVSB only with them.
pub(super) const MISC_ENABLE: u64 = 1;
/// x2APIC mode, enabled, at the architecture's address.
const APIC_BASE: u64 = 0xfee0_0c00;
const APIC_BOOTSTRAP: u64 = 1 << 8;
/// 8 variable ranges, fixed ranges, write-combining.
const MTRR_CAP: u64 = 0x508;
/// WB, WT, UC-, UC, twice (SDM volume 3, 12.12.4).
const PAT: u64 = 0x0007_0406_0007_0406;

const SPECULATES: Presence = With(&["spec_ctrl", "ibrs", "amd_stibp", "amd_ssbd"]);
const MTRR: Presence = With(&["mtrr"]);

/// The registers, in the order in which a saved state is loaded: the TSC is first, since deadlines are
/// relative to it.
#[rustfmt::skip]
pub const MSRS: &[MsrRule] = &[
    row("IA32_TIME_STAMP_COUNTER", (msr::TSC, 1), Saved, Always, 0, "writing it moves IA32_TSC_ADJUST"),
    row("IA32_TSC_ADJUST", (msr::TSC_ADJUST, 1), Saved, Always, 0, "writing it moves the TSC"),
    row("IA32_APIC_BASE", (msr::APIC_BASE, 1), Saved, Always, APIC_BASE, "and bit 8 on the first vCPU; the translator has no other mode"),
    row("IA32_SPEC_CTRL", (msr::SPEC_CTRL, 1), Saved, SPECULATES, 0, ""),
    row("IA32_PRED_CMD", (msr::PRED_CMD, 1), Command, With(&["spec_ctrl", "ibpb"]), 0, ""),
    row("IA32_BIOS_SIGN_ID", (msr::BIOS_SIGN_ID, 1), Constant, Always, 0, "the translator's; KVM has a revision of its own"),
    row("MSR_PLATFORM_INFO", (msr::PLATFORM_INFO, 1), Constant, Always, 0, "so CPUID cannot be made to fault"),
    row("IA32_MTRRCAP", (msr::MTRR_CAP, 1), Constant, MTRR, MTRR_CAP, ""),
    row("IA32_ARCH_CAPABILITIES", (msr::ARCH_CAPABILITIES, 1), Constant, With(&["arch_capabilities"]), 0, "by engine and host, see above"),
    row("IA32_FLUSH_CMD", (msr::FLUSH_CMD, 1), Command, With(&["flush_l1d"]), 0, ""),
    row("MSR_MISC_FEATURES_ENABLES", (msr::MISC_FEATURES_ENABLES, 1), Constant, Always, 0, "Linux writes the zero back"),
    row("IA32_SYSENTER_CS", (msr::SYSENTER_CS, 1), Saved, With(&["sep"]), 0, ""),
    row("IA32_SYSENTER_ESP", (msr::SYSENTER_ESP, 1), Saved, With(&["sep"]), 0, ""),
    row("IA32_SYSENTER_EIP", (msr::SYSENTER_EIP, 1), Saved, With(&["sep"]), 0, ""),
    row("IA32_MISC_ENABLE", (msr::MISC_ENABLE, 1), Saved, Always, MISC_ENABLE, "fast strings"),
    row("IA32_DEBUGCTL", (msr::DEBUGCTL, 1), Saved, Always, 0, "the translator takes BTF and LBR and keeps neither, as KVM does on Intel"),
    row("IA32_MTRR_PHYSBASE, PHYSMASK", (msr::MTRR_VARIABLE, 16), Saved, MTRR, 0, ""),
    row("IA32_MTRR_FIX64K", (msr::MTRR_FIX64K, 1), Saved, MTRR, 0, ""),
    row("IA32_MTRR_FIX16K", (msr::MTRR_FIX16K, 2), Saved, MTRR, 0, ""),
    row("IA32_MTRR_FIX4K", (msr::MTRR_FIX4K, 8), Saved, MTRR, 0, ""),
    row("IA32_MTRR_DEF_TYPE", (msr::MTRR_DEF_TYPE, 1), Saved, MTRR, 0, "off: Linux turns caches off on each processor to write MTRRs that are on"),
    row("IA32_PAT", (msr::PAT, 1), Saved, With(&["pat"]), PAT, ""),
    row("IA32_TSC_DEADLINE", (msr::TSC_DEADLINE, 1), Field("apic.tsc_deadline"), With(&["tsc_deadline_timer"]), 0, ""),
    row("x2APIC registers", (msr::X2APIC_FIRST, 0x100), Field("apic.registers"), With(&["x2apic"]), 0, "each as the manual has it"),
    row("IA32_XSS", (msr::XSS, 1), Saved, With(&["xsaves"]), 0, "there is no supervisor component"),
    row("IA32_EFER", (msr::EFER, 1), Field("efer"), Always, 0, ""),
    row("IA32_STAR", (msr::STAR, 1), Saved, With(&["syscall"]), 0, ""),
    row("IA32_LSTAR", (msr::LSTAR, 1), Saved, With(&["syscall"]), 0, ""),
    row("IA32_CSTAR", (msr::CSTAR, 1), Saved, With(&["syscall"]), 0, ""),
    row("IA32_FMASK", (msr::SFMASK, 1), Saved, With(&["syscall"]), 0, ""),
    row("IA32_FS_BASE", (msr::FS_BASE, 1), Field("fs.base"), With(&["lm"]), 0, ""),
    row("IA32_GS_BASE", (msr::GS_BASE, 1), Field("gs.base"), With(&["lm"]), 0, ""),
    row("IA32_KERNEL_GS_BASE", (msr::KERNEL_GS_BASE, 1), Saved, With(&["lm"]), 0, ""),
    row("IA32_TSC_AUX", (msr::TSC_AUX, 1), Saved, With(&["rdtscp", "rdpid"]), 0, ""),
    row("HWCR", (msr::HWCR, 1), Saved, Amd, 0, ""),
    row("VIRT_SPEC_CTRL", (msr::VIRT_SPEC_CTRL, 1), Saved, With(&["virt_ssbd"]), 0, ""),
    row("DE_CFG", (msr::DE_CFG, 1), Saved, Amd, 0, "what KVM offers: LFENCE waits"),
    row("MSR_KVM_WALL_CLOCK_NEW", (msr::KVM_WALL_CLOCK_NEW, 1), Command, With(&["kvm_clocksource"]), 0, "Linux writes it whenever it asks for the time of day"),
    row("MSR_KVM_SYSTEM_TIME_NEW", (msr::KVM_SYSTEM_TIME_NEW, 1), Saved, With(&["kvm_clocksource"]), 0, ""),
    row("MSR_KVM_PV_EOI_EN", (msr::KVM_PV_EOI, 1), Saved, With(&["kvm_pv_eoi"]), 0, ""),
];

impl MsrRule {
    /// The numbers that it stands for.
    pub fn indices(&self) -> impl Iterator<Item = u32> + use<> {
        self.first..self.first + self.count
    }

    /// Whether a processor with this table has it.
    #[must_use]
    pub fn is_present(&self, cpuid: &Table) -> bool {
        let has = |name: &&str| feature(name).is_some_and(|feature| cpuid.has(feature.at));
        match self.presence {
            Always => true,
            With(features) => features.iter().any(has),
            Amd => is_amd(cpuid),
        }
    }

    /// Its value at the first instruction of vCPU `id`.
    #[must_use]
    pub fn reset_of(&self, id: u32) -> u64 {
        let bootstrap = self.first == msr::APIC_BASE && id == 0;
        self.reset | if bootstrap { APIC_BOOTSTRAP } else { 0 }
    }
}

/// The rule for a register of any processor.
#[must_use]
pub fn msr_rule(index: u32) -> Option<&'static MsrRule> {
    MSRS.iter().find(|rule| (rule.first..rule.first + rule.count).contains(&index))
}

/// Whether vCPU `id` has this value in the register after a reset, where it has the register at all.
#[must_use]
pub fn is_reset(msr: &Msr, id: u32) -> bool {
    msr.value == msr_rule(msr.index).map_or(0, |rule| rule.reset_of(id))
}

/// The registers whose values are in [`VcpuState::msrs`](crate::VcpuState) for a processor with this table,
/// in the order in which they are to be loaded.
#[must_use]
pub fn saved_msrs(cpuid: &Table) -> Vec<u32> {
    let saved = MSRS.iter().filter(|rule| rule.kind == Saved && rule.is_present(cpuid));
    saved.flat_map(MsrRule::indices).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_has_one_rule() {
        for (at, rule) in MSRS.iter().enumerate() {
            for other in &MSRS[at + 1..] {
                let apart = rule.first + rule.count <= other.first
                    || other.first + other.count <= rule.first;
                assert!(apart, "{} and {}", rule.name, other.name);
            }
            assert!(
                rule.indices().all(|index| msr_rule(index).is_some_and(|r| r.name == rule.name))
            );
        }
        assert!(msr_rule(0x1234_5678).is_none());
    }

    #[test]
    fn presence_names_features() {
        for rule in MSRS {
            let With(features) = rule.presence else { continue };
            assert!(features.iter().all(|name| feature(name).is_some()), "{}", rule.name);
        }
    }

    #[test]
    fn a_state_has_what_the_processor_has() {
        let mut cpuid = Table::default();
        let none = saved_msrs(&cpuid);
        assert!(none.starts_with(&[msr::TSC, msr::TSC_ADJUST, msr::APIC_BASE]));
        assert!(!none.contains(&msr::TSC_AUX) && !none.contains(&msr::HWCR));
        cpuid.set(feature("rdpid").expect("listed").at);
        assert!(saved_msrs(&cpuid).contains(&msr::TSC_AUX));
        cpuid.put(0, 0, [1, 0x6874_7541, 0x444d_4163, 0x6974_6e65]);
        assert!(saved_msrs(&cpuid).contains(&msr::HWCR));
    }
}
