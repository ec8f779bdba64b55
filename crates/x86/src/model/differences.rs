//! Whether a guest that was shown one processor can go on where another engine or host is.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::capabilities::{ARCH_CAPABILITIES, FlawKind};
use super::features::{Exposure, FEATURES};
use super::select::{components_here, engine_has};
use super::{Capability, Processor};
use crate::cpuid::{EXTENDED, HYPERVISOR, Table};
use crate::msr;

/// Something of a guest's processor that is not so here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Difference {
    /// A feature that the guest may use is not here.
    Feature {
        /// As in [`FEATURES`].
        name: String,
    },
    /// State that the guest may have is not here.
    StateComponent {
        /// Its bit in XCR0.
        component: u32,
    },
    /// The guest's page tables may hold addresses that are not here.
    PhysicalBits {
        /// Width that the guest was shown.
        shown: u32,
        /// Width here.
        here: u32,
    },
    /// The guest does not work around a flaw that the processor has here.
    Flaw {
        /// Bit of IA32_ARCH_CAPABILITIES, as in [`ARCH_CAPABILITIES`].
        name: String,
    },
    /// The TSC runs at another rate; kvmclock tells the guest.
    TscRate {
        /// kHz that the guest was shown.
        shown_khz: u32,
        /// kHz here.
        here_khz: u32,
    },
    /// The APIC timer counts at another rate, which the guest measured when it started.
    ApicRate {
        /// kHz that the guest was shown.
        shown_khz: u32,
        /// kHz here.
        here_khz: u32,
    },
}

impl Difference {
    /// Whether the guest would fail here. The others slow or weaken it.
    #[must_use]
    pub const fn is_fatal(&self) -> bool {
        !matches!(self, Self::Flaw { .. } | Self::TscRate { .. } | Self::ApicRate { .. })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Feature { name } => write!(f, "cpu feature {name} is not here"),
            Self::StateComponent { component } => {
                write!(f, "state component {component} is not here")
            }
            Self::PhysicalBits { shown, here } => {
                write!(f, "physical addresses have {here} bits, the guest's have {shown}")
            }
            Self::Flaw { name } => {
                write!(
                    f,
                    "the guest was told {name}, which is not so here: it does not guard itself"
                )
            }
            Self::TscRate { shown_khz, here_khz } => {
                write!(f, "the tsc runs at {here_khz} khz, the guest's ran at {shown_khz}")
            }
            Self::ApicRate { shown_khz, here_khz } => {
                write!(f, "the apic timer runs at {here_khz} khz, the guest's ran at {shown_khz}")
            }
        }
    }
}

/// What of `shown`, a processor that a guest was shown, is not so with `capability`. Nothing: the guest goes
/// on as if it had not moved.
#[must_use]
pub fn differences(shown: &Processor, capability: &Capability<'_>) -> Vec<Difference> {
    let mut found = Vec::new();
    features(&shown.cpuid, capability, &mut found);
    state(&shown.cpuid, capability, &mut found);
    widths(&shown.cpuid, capability, &mut found);
    flaws(shown, capability, &mut found);
    rates(&shown.cpuid, capability, &mut found);
    found
}

fn features(shown: &Table, capability: &Capability<'_>, found: &mut Vec<Difference>) {
    let missing = FEATURES.iter().filter(|feature| {
        feature.exposure != Exposure::Follows
            && shown.has(feature.at)
            && !engine_has(capability, feature)
    });
    found.extend(missing.map(|feature| Difference::Feature { name: feature.name.to_owned() }));
}

fn state(shown: &Table, capability: &Capability<'_>, found: &mut Vec<Difference>) {
    let [low, _, _, high] = shown.registers(0xd, 0);
    let missing = (u64::from(low) | u64::from(high) << 32) & !components_here(capability);
    let bits = (0..64).filter(|bit| missing >> bit & 1 != 0);
    found.extend(bits.map(|component| Difference::StateComponent { component }));
}

fn widths(shown: &Table, capability: &Capability<'_>, found: &mut Vec<Difference>) {
    let width = |table: &Table| table.registers(EXTENDED + 8, 0)[0] & 0xff;
    let (shown, here) = (width(shown), width(capability.supported));
    if shown > here {
        found.push(Difference::PhysicalBits { shown, here });
    }
}

fn flaws(shown: &Processor, capability: &Capability<'_>, found: &mut Vec<Difference>) {
    let told = shown.msrs.iter().find(|msr| msr.index == msr::ARCH_CAPABILITIES);
    let told = told.map_or(0, |msr| msr.value);
    let here = capability.arch_capabilities;
    let wrong = ARCH_CAPABILITIES.iter().filter(|row| match row.kind {
        FlawKind::Immune => (told & !here) >> row.bit & 1 != 0,
        FlawKind::Warning | FlawKind::Control => false,
    });
    found.extend(wrong.map(|row| Difference::Flaw { name: row.name.to_owned() }));
}

/// Rates are measured, so they are never quite the same: one in a thousand is as far off as a clock that
/// NTP still follows.
fn rates(shown: &Table, capability: &Capability<'_>, found: &mut Vec<Difference>) {
    let differ = |a: u32, b: u32| a.abs_diff(b) > a / 1000;
    let [tsc, apic, ..] = shown.registers(HYPERVISOR + 0x10, 0);
    let here_tsc = capability.tsc_khz.unwrap_or(tsc);
    if tsc != 0 && differ(tsc, here_tsc) {
        found.push(Difference::TscRate { shown_khz: tsc, here_khz: here_tsc });
    }
    if apic != 0 && differ(apic, capability.apic_khz) {
        found.push(Difference::ApicRate { shown_khz: apic, here_khz: capability.apic_khz });
    }
}
