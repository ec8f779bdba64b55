//! Network interfaces: asked and checked.

use devices::virtio::net::{MacAddress, NetBackend, NetConfig as NetPlan};
use serde::{Deserialize, Serialize};

use super::ConfigError;

/// A network interface as asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NetConfig {
    /// The host's side.
    pub backend: NetBackend,
    /// The guest's Ethernet address; by default one that follows from the VM's name.
    pub mac: Option<MacAddress>,
    /// The largest packet; by default what the host's side takes.
    pub mtu: Option<u16>,
}

/// Checks interfaces of the VM `name`, which has `disks` disks and `max` places for
/// both. Opens none.
pub(super) fn nets(
    asked: Vec<NetConfig>,
    name: &str,
    disks: usize,
    max: usize,
) -> Result<Vec<NetPlan>, ConfigError> {
    let nets = asked.len();
    if nets > 0 && disks + nets > max {
        return Err(ConfigError::Nets { disks, nets, max });
    }
    let plan = |(index, NetConfig { backend, mac, mtu })| {
        let mac = mac.unwrap_or_else(|| MacAddress::of_vm(name, index));
        let plan = NetPlan { backend, mac, mtu };
        plan.check()?;
        Ok(plan)
    };
    let plans = asked.into_iter().enumerate().map(plan).collect::<Result<Vec<_>, ConfigError>>()?;
    for (index, plan) in plans.iter().enumerate() {
        if plans[..index].iter().any(|earlier| earlier.mac == plan.mac) {
            return Err(ConfigError::SameMac { mac: plan.mac });
        }
    }
    Ok(plans)
}
