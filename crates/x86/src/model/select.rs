//! Which features a guest is shown.

use super::features::{Exposure, FEATURES, Feature};
use super::{Capability, CpuModel, ModelError, Topology, feature, is_amd};
use crate::cpuid::Table;

/// x87 and SSE, which every XCR0 with vector state has.
pub(super) const LEGACY: u64 = 3;

/// The features that were selected, for a model.
pub(super) struct Selection {
    pub(super) model: CpuModel,
    features: Vec<&'static Feature>,
}

impl Selection {
    pub(super) fn new(
        model: CpuModel,
        capability: &Capability<'_>,
        topology: Topology,
    ) -> Result<Self, ModelError> {
        let unknown = capability.also.iter().find(|name| feature(name).is_none());
        if let Some(&name) = unknown {
            return Err(ModelError::NoSuchFeature(name.to_owned()));
        }
        let shown = |feature: &&Feature| match feature.exposure {
            Exposure::Required | Exposure::Both => engine_has(capability, feature),
            Exposure::Full => model == CpuModel::Full && engine_has(capability, feature),
            Exposure::Follows => follows(model, capability, topology, feature),
            Exposure::Hidden => false,
        };
        let mut features: Vec<_> = FEATURES.iter().filter(shown).collect();
        drop_dependents(&mut features);
        let selection = Self { model, features };
        let required = FEATURES.iter().filter(|feature| feature.exposure == Exposure::Required);
        let lacking: Vec<_> =
            required.map(|feature| feature.name).filter(|name| !selection.has(name)).collect();
        if lacking.is_empty() { Ok(selection) } else { Err(ModelError::Lacks(lacking)) }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.features.iter().any(|feature| feature.name == name)
    }

    /// Sets the bits of all features in `table`.
    pub(super) fn write(&self, table: &mut Table) {
        self.features.iter().for_each(|feature| table.set(feature.at));
    }

    /// The components that XCR0 may have; 0 without XSAVE.
    pub(super) fn components(&self) -> u64 {
        let all = self.features.iter().fold(LEGACY, |all, feature| all | feature.components);
        if self.has("xsave") { all } else { 0 }
    }
}

pub(super) fn engine_has(capability: &Capability<'_>, feature: &Feature) -> bool {
    let present = capability.supported.has(feature.at) || capability.also.contains(&feature.name);
    present && feature.components & !components_here(capability) == 0
}

/// State components that the processor has and the engine carries.
pub(super) fn components_here(capability: &Capability<'_>) -> u64 {
    let [low, _, _, high] = capability.supported.registers(0xd, 0);
    (u64::from(low) | u64::from(high) << 32) & capability.state_components
}

fn follows(
    model: CpuModel,
    capability: &Capability<'_>,
    topology: Topology,
    feature: &Feature,
) -> bool {
    match feature.name {
        "hypervisor" => true,
        "ht" => topology.vcpus > 1,
        "cmp_legacy" => {
            topology.vcpus > 1 && model == CpuModel::Full && is_amd(capability.supported)
        }
        // Engines show these while the control register's bit is set.
        _ => false,
    }
}

/// Drops features until each that is left has all that it needs.
fn drop_dependents(features: &mut Vec<&'static Feature>) {
    loop {
        let names: Vec<_> = features.iter().map(|feature| feature.name).collect();
        features.retain(|feature| feature.needs.iter().all(|name| names.contains(name)));
        if features.len() == names.len() {
            return;
        }
    }
}
