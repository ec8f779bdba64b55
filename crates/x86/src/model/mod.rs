//! The vCPU model: what processor a guest sees, on either engine, from one description.
//!
//! ```text
//!   what the engine can do (Capability)  --+
//!   CpuModel::Common | CpuModel::Full    --+--> Processor { cpuid, msrs }
//!   Topology { vcpus, id }               --+
//! ```
//!
//! [`FEATURES`] says of each CPUID bit who is shown it and why, [`ARCH_CAPABILITIES`] the same of the bits
//! of that MSR, [`MSRS`] which model-specific registers there are, what they hold at reset and which of them
//! are part of a saved state. docs/vcpu-model.md is written from these tables.
//!
//! - [`CpuModel::Common`] is what the translator can do and the host has: the same table on both engines of
//!   a host, so a guest can go on on the other.
//! - [`CpuModel::Full`] is all that the engine has and nothing forbids, with the host's vendor, family and
//!   caches. On the translator it is the same as `Common`.
//!
//! [`differences`] says what of a processor that a guest was shown is not so elsewhere.
//!
//! What it is *not*: it asks no processor and no kernel; engines say what they can do.
//!
//! An engine on KVM turns KVM_GET_SUPPORTED_CPUID into a [`Table`] (`indexed` is
//! KVM_CPUID_FLAG_SIGNIFCANT_INDEX), reads the system-wide IA32_ARCH_CAPABILITIES (KVM_GET_MSRS on
//! /dev/kvm; 0 where it is not a feature MSR), and for each vCPU gives `processor.cpuid` to KVM_SET_CPUID2
//! and then `processor.msrs` to KVM_SET_MSRS:
//!
//! ```
//! use x86::cpuid::Table;
//! use x86::model::{Capability, CpuModel, ModelError, Processor, Topology};
//!
//! fn processor(supported: &Table, id: u32) -> Result<Processor, ModelError> {
//!     CpuModel::Full.processor(
//!         &Capability {
//!             supported,
//!             also: &["tsc_deadline_timer", "x2apic"], // KVM_CAP_TSC_DEADLINE_TIMER; in-kernel APIC
//!             arch_capabilities: 0,
//!             state_components: 7,      // what the engine carries in `VcpuState::xstate`
//!             tsc_khz: Some(2_000_000), // KVM_GET_TSC_KHZ
//!             apic_khz: 1_000_000,      // KVM's APIC timer counts nanoseconds
//!         },
//!         Topology { vcpus: 2, id },
//!     )
//! }
//! # assert!(processor(&Table::default(), 0).is_err());
//! ```

mod capabilities;
mod differences;
mod features;
mod leaves;
mod msrs;
mod select;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use capabilities::{ARCH_CAPABILITIES, FlawBit, FlawKind, translator_capabilities};
pub use differences::{Difference, differences};
pub use features::{Exposure, FEATURES, Feature, feature};
pub use leaves::{LEAVES, LeafRule};
pub use msrs::{Kind, MSRS, MsrRule, Presence, is_reset, msr_rule, saved_msrs};

use crate::cpuid::Table;
use crate::state::Msr;
use crate::{cpuid, msr};
use select::Selection;

/// Which processor a guest is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuModel {
    /// What both engines have: the guest can move between them.
    Common,
    /// All that the engine has.
    #[default]
    Full,
}

/// What an engine can do on its host.
#[derive(Clone, Copy, Debug)]
pub struct Capability<'a> {
    /// CPUID as far as the engine can bear it out: feature bits, components and sizes of leaf 0xd, address
    /// widths. Where leaf 0 names no vendor, the model's own identity and caches stand in.
    pub supported: &'a Table,
    /// Features that it has although `supported` does not say so.
    pub also: &'a [&'a str],
    /// Bits that IA32_ARCH_CAPABILITIES can have here.
    pub arch_capabilities: u64,
    /// State components that the engine saves and loads in [`VcpuState::xstate`](crate::VcpuState), as
    /// bits of XCR0.
    pub state_components: u64,
    /// Rate of the guest's TSC; `None` keeps the leaf that tells it away.
    pub tsc_khz: Option<u32>,
    /// Rate of the local APIC's timer before its divider.
    pub apic_khz: u32,
}

/// The place of a vCPU among its like: each is a core of one package, with one thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Topology {
    /// vCPUs of the machine, 1 or more.
    pub vcpus: u32,
    /// Local APIC id of this one, less than `vcpus`.
    pub id: u32,
}

/// What one vCPU shows its guest.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Processor {
    /// Its CPUID; see [`Table::answer`].
    pub cpuid: Table,
    /// MSRs that differ from what an engine has at reset, to be set before the first instruction.
    pub msrs: Vec<Msr>,
}

impl Processor {
    /// The same of another vCPU of the machine: `id` is its local APIC id.
    #[must_use]
    pub fn of_vcpu(&self, id: u32) -> Self {
        let mut processor = self.clone();
        for leaf in &mut processor.cpuid.leaves {
            match leaf.function {
                1 => leaf.ebx = leaf.ebx & 0x00ff_ffff | (id & 0xff) << 24,
                0xb => leaf.edx = id,
                leaf_of_amd if leaf_of_amd == cpuid::EXTENDED + 0x1e => {
                    (leaf.eax, leaf.ebx) = (id, id & 0xff);
                }
                _ => {}
            }
        }
        processor
    }
}

/// State components that a processor with this CPUID has in [`VcpuState::xstate`](crate::VcpuState), as bits of XCR0. x87
/// and SSE are always among them: they are the image's legacy area, which a processor without XSAVE has by FXSAVE.
#[must_use]
pub fn state_components(table: &Table) -> u64 {
    let [low, _, _, high] = table.registers(0xd, 0);
    select::LEGACY | u64::from(low) | u64::from(high) << 32
}

/// Which processor the vCPUs of a machine show.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Shown {
    /// A model's, by what the engine can do here.
    Model(CpuModel),
    /// The one that a guest has seen elsewhere, as its vCPU 0 showed it: it may be less than this engine has, and stays so.
    Elsewhere(Processor),
}

impl Default for Shown {
    fn default() -> Self {
        Self::Model(CpuModel::default())
    }
}

impl From<CpuModel> for Shown {
    fn from(model: CpuModel) -> Self {
        Self::Model(model)
    }
}

impl Shown {
    /// The processor that vCPU `topology.id` shows on an engine with `capability`. One that was shown elsewhere and cannot be
    /// shown here is not: [`differences`] says what is missing.
    ///
    /// # Errors
    /// As [`CpuModel::processor`].
    pub fn processor(
        &self,
        capability: &Capability<'_>,
        topology: Topology,
    ) -> Result<Processor, ModelError> {
        let Topology { vcpus, id } = topology;
        match self {
            Self::Model(model) => model.processor(capability, topology),
            Self::Elsewhere(_) if id >= vcpus => Err(ModelError::NoSuchVcpu { id, vcpus }),
            Self::Elsewhere(shown)
                if differences(shown, capability).iter().any(Difference::is_fatal) =>
            {
                CpuModel::default().processor(capability, topology)
            }
            Self::Elsewhere(shown) => Ok(shown.of_vcpu(topology.id)),
        }
    }
}

/// Why there is no such processor.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ModelError {
    /// The host or the engine is too small.
    #[error("this engine cannot show {}, without which no guest starts: use another engine", .0.join(", "))]
    Lacks(Vec<&'static str>),
    /// The caller's mistake.
    #[error("vcpu {id} of {vcpus}: ids are 0 to vcpus - 1, and there is at least one vcpu")]
    NoSuchVcpu {
        /// The id.
        id: u32,
        /// Out of how many.
        vcpus: u32,
    },
    /// The caller's mistake.
    #[error("{0}: no such cpuid feature")]
    NoSuchFeature(String),
}

impl CpuModel {
    /// The processor that vCPU `topology.id` shows on an engine with `capability`. The same arguments give
    /// the same processor.
    pub fn processor(
        self,
        capability: &Capability<'_>,
        topology: Topology,
    ) -> Result<Processor, ModelError> {
        let Topology { vcpus, id } = topology;
        if id >= vcpus {
            return Err(ModelError::NoSuchVcpu { id, vcpus });
        }
        let selection = Selection::new(self, capability, topology)?;
        let msrs = initial_msrs(&selection, capability);
        Ok(Processor { cpuid: leaves::table(&selection, capability, topology), msrs })
    }
}

/// KVM's MISC_ENABLE lacks fast strings, its PLATFORM_INFO offers to have CPUID fault.
fn initial_msrs(selection: &Selection, capability: &Capability<'_>) -> Vec<Msr> {
    let mut msrs = vec![
        Msr { index: msr::MISC_ENABLE, value: msrs::MISC_ENABLE },
        Msr { index: msr::PLATFORM_INFO, value: 0 },
    ];
    if selection.has("arch_capabilities") {
        let value = capability.arch_capabilities & capabilities::shown();
        msrs.push(Msr { index: msr::ARCH_CAPABILITIES, value });
    }
    msrs
}

impl CpuModel {
    /// As users write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Common => "common",
            Self::Full => "full",
        }
    }
}

impl std::fmt::Display for CpuModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The vendor that a table names, zeros where it names none.
pub(crate) fn vendor(table: &Table) -> [u8; 12] {
    let [_, ebx, ecx, edx] = table.registers(0, 0);
    let mut name = [0; 12];
    for (part, word) in name.chunks_exact_mut(4).zip([ebx, edx, ecx]) {
        part.copy_from_slice(&word.to_le_bytes());
    }
    name
}

/// Whether a table's leaves are laid out as AMD's are.
#[must_use]
pub fn is_amd(table: &Table) -> bool {
    matches!(&vendor(table), b"AuthenticAMD" | b"HygonGenuine")
}

/// The highest leaf of the extended range that Intel's processors and the common model have.
pub(crate) const MAX_EXTENDED: u32 = cpuid::EXTENDED + 8;

#[cfg(test)]
mod tests;
