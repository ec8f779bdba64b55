//! What changes in VMs that are activated: sizes, and who they are.
//!
//! ```text
//!   asked, with {n} --> Change, one a VM: all is checked before anything starts
//!                         |  of its configuration: the host's side of its network, Ethernet addresses
//!                         |  from outside, once it runs: the balloon
//!                         +--by its agent: name, interfaces, names of others, processors, clock, random numbers
//! ```

pub(crate) mod address;
mod apply;
pub(crate) mod template;

use std::collections::BTreeMap;
use std::fmt;

use agent_wire::{Address, Host, Identity, Interface, Which, is_hostname};
use devices::virtio::DeviceState;
use vmm::config::{MacAddress, NetBackend, VmConfig};
use vmm::saved::MachineState;

use crate::arguments::{IdentityArguments, net};
use crate::failure::Failure;
use address::Asked;
pub(crate) use apply::{Became, table};
use template::expand;

/// Processes that wait for agents at a time.
pub(crate) const AT_ONCE: usize = 64;

/// What is asked and cannot be: an option, or a key of a cluster's file, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) option: &'static str,
    pub(crate) why: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{}: {}", self.option, self.why)
    }
}

impl std::error::Error for Wrong {}

impl From<Wrong> for Failure {
    fn from(wrong: Wrong) -> Self {
        Self::usage(wrong)
    }
}

fn wrong(option: &'static str) -> impl FnOnce(String) -> Wrong {
    move |why| Wrong { option, why }
}

/// What becomes of one VM.
#[derive(Clone, Debug, Default)]
pub(crate) struct Change {
    /// What its balloon is to hold.
    balloon_bytes: Option<u64>,
    /// What its agent is told.
    identity: Option<Identity>,
    /// Its first interface's host side.
    backend: Option<NetBackend>,
    /// Of its interfaces.
    macs: Vec<MacAddress>,
    run: Option<String>,
}

/// What is asked for each of `names`, which are saved with `config`.
pub(crate) fn changes(
    asked: &IdentityArguments,
    config: &VmConfig,
    names: &[String],
) -> Result<Vec<Change>, Wrong> {
    if let Some(option) = needs_agent(asked)
        && config.vsock.is_none()
    {
        let why = "it needs the agent in the guest, and the VM was saved without vsock: save one that was run with \
                   --vsock cid=N,socket=PATH";
        return Err(wrong(option)(why.to_owned()));
    }
    let numbered = (1..).zip(names);
    let changes: Vec<Change> =
        numbered.map(|(n, name)| Change::new(asked, config, name, n)).collect::<Result<_, _>>()?;
    match differ(changes.iter()) {
        None => Ok(changes),
        Some((option, what, first, second)) => {
            let (first, second) = (&names[first], &names[second]);
            let why = format!("{what} is asked for {first} and {second}: put {{n}} into it");
            Err(wrong(option)(why))
        }
    }
}

/// The first option that only an agent can do.
fn needs_agent(asked: &IdentityArguments) -> Option<&'static str> {
    let given = [
        ("hostname", asked.hostname.is_some()),
        ("address", !asked.addresses.is_empty()),
        ("cpus", asked.cpus.is_some()),
        ("mac", asked.mac.is_some()),
        ("dns", !asked.dns.is_empty()),
        // Another segment, on which no two may have the same Ethernet address.
        ("net", asked.net.is_some()),
        ("run", asked.run.is_some()),
    ];
    given.into_iter().find(|(_, given)| *given).map(|(option, _)| option)
}

/// The first thing that two of them have, what it is, and who.
pub(crate) fn differ<'a>(
    changes: impl Iterator<Item = &'a Change>,
) -> Option<(&'static str, String, usize, usize)> {
    let mut taken = BTreeMap::new();
    for (index, change) in changes.enumerate() {
        for (option, what) in change.unique() {
            if let Some(first) = taken.insert((option, what.clone()), index)
                && first != index
            {
                return Some((option, what, first, index));
            }
        }
    }
    None
}

impl Change {
    fn new(
        asked: &IdentityArguments,
        config: &VmConfig,
        name: &str,
        n: u32,
    ) -> Result<Self, Wrong> {
        let mut change = Self::default();
        if let Some(memory) = asked.memory {
            let most = config.memory;
            let balloon = most.0.checked_sub(memory.0).filter(|_| memory.0 > 0);
            let why =
                || format!("{memory} is refused: it was started with {most}, which is the most");
            change.balloon_bytes = Some(balloon.ok_or_else(|| wrong("memory")(why()))?);
        }
        if needs_agent(asked).is_none() {
            return Ok(change);
        }
        if let Some(net) = &asked.net {
            change.backend = Some(backend(net, config, n).map_err(wrong("net"))?);
        }
        change.macs = macs(asked, config, name, n).map_err(wrong("mac"))?;
        change.identity = Some(Identity {
            hostname: hostname(asked, name, n).map_err(wrong("hostname"))?,
            interfaces: interfaces(asked, config, &change.macs, n).map_err(wrong("address"))?,
            dns: asked.dns.clone(),
            new_machine_id: true,
            cpus: cpus(asked, config).map_err(wrong("cpus"))?,
            ..Identity::default()
        });
        change.run.clone_from(&asked.run);
        if let Some(run) = &mut change.run {
            *run = expand(run, n).map_err(wrong("run"))?;
        }
        Ok(change)
    }

    /// Whether its guest has to answer.
    pub(crate) fn needs_agent(&self) -> bool {
        self.identity.is_some()
    }

    /// The VM's own state: its configuration, and the addresses that its devices have, which the guest is told later.
    pub(crate) fn configure(&self, state: &mut MachineState) {
        self.configure_plan(&mut state.config);
        let mut macs = self.macs.iter();
        for transport in &mut state.board.virtio {
            if let DeviceState::Net(net) = &mut transport.device
                && let Some(mac) = macs.next()
            {
                net.mac = *mac;
                transport.config_generation = transport.config_generation.wrapping_add(1);
            }
        }
    }

    fn configure_plan(&self, config: &mut VmConfig) {
        if let (Some(backend), Some(net)) = (&self.backend, config.nets.first_mut()) {
            net.backend = backend.clone();
        }
        for (net, mac) in config.nets.iter_mut().zip(&self.macs) {
            net.mac = Some(*mac);
        }
    }

    /// Its names and addresses, for all of a cluster.
    pub(crate) fn hosts(&self, name: &str) -> Vec<Host> {
        let Some(identity) = &self.identity else { return Vec::new() };
        let hostname = identity.hostname.as_deref().unwrap_or(name);
        let addresses = identity.interfaces.iter().flat_map(|interface| &interface.addresses);
        addresses.map(|address| Host { name: hostname.to_owned(), address: address.ip }).collect()
    }

    /// The same for each of a cluster.
    pub(crate) fn set_hosts(&mut self, hosts: &[Host]) {
        if let Some(identity) = &mut self.identity {
            identity.hosts = Some(hosts.to_vec());
        }
    }

    /// What no two may have, each by the option that asks for it.
    fn unique(&self) -> Vec<(&'static str, String)> {
        let mut unique = Vec::new();
        match &self.backend {
            Some(NetBackend::Tap(name)) => unique.push(("net", format!("TAP interface {name}"))),
            Some(NetBackend::Socket(path)) => {
                unique.push(("net", format!("passt at {}", path.display())));
            }
            Some(NetBackend::Passt(forwards)) => {
                let ports = forwards.iter();
                let port = |forward: &vmm::config::PortForward| {
                    ("net", format!("{:?} port {} of the host", forward.protocol, forward.host))
                };
                unique.extend(ports.map(port));
            }
            None => {}
        }
        unique.extend(self.macs.iter().map(|mac| ("mac", mac.to_string())));
        if let Some(identity) = &self.identity {
            unique.extend(identity.hostname.clone().map(|name| ("hostname", name)));
            let addresses = identity.interfaces.iter().flat_map(|interface| &interface.addresses);
            unique.extend(addresses.map(|address| ("address", address.ip.to_string())));
        }
        unique
    }
}

/// As asked; or the VM's name, if a host can have it.
fn hostname(asked: &IdentityArguments, name: &str, n: u32) -> Result<Option<String>, String> {
    let Some(text) = &asked.hostname else {
        return Ok(is_hostname(name).then(|| name.to_owned()));
    };
    let hostname = expand(text, n)?;
    if !is_hostname(&hostname) {
        return Err(format!("`{}` is no name of a host", hostname.escape_debug()));
    }
    Ok(Some(hostname))
}

fn cpus(asked: &IdentityArguments, config: &VmConfig) -> Result<Option<u32>, String> {
    match asked.cpus {
        Some(cpus) if cpus == 0 || cpus > config.cpus => Err(format!(
            "{cpus} are refused: it was started with {}, which is the most",
            config.cpus
        )),
        cpus => Ok(cpus),
    }
}

/// The first as asked, and all others as of a VM of this name.
fn macs(
    asked: &IdentityArguments,
    config: &VmConfig,
    name: &str,
    n: u32,
) -> Result<Vec<MacAddress>, String> {
    let own = |index| MacAddress::of_vm(name, index);
    let mut macs: Vec<MacAddress> = (0..config.nets.len()).map(own).collect();
    if let Some(text) = &asked.mac {
        let first = macs.first_mut().ok_or("it was saved without a network")?;
        *first = expand(text, n)?.parse().map_err(|error| format!("{error}"))?;
    }
    Ok(macs)
}

fn backend(text: &str, config: &VmConfig, n: u32) -> Result<NetBackend, String> {
    if config.nets.is_empty() {
        return Err("it was saved without a network".to_owned());
    }
    let net = net::parse(&expand(text, n)?)?;
    if net.mac.is_some() || net.mtu.is_some() {
        return Err(
            "mac= has an option of its own here, and mtu= stays as the guest knows it".into()
        );
    }
    Ok(net.backend)
}

fn interfaces(
    asked: &IdentityArguments,
    config: &VmConfig,
    macs: &[MacAddress],
    n: u32,
) -> Result<Vec<Interface>, String> {
    let place = |(index, mac): (usize, &MacAddress)| Interface {
        which: Which::Place(u32::try_from(index).unwrap_or(u32::MAX)),
        mac: Some(mac.to_string()),
        addresses: Vec::new(),
        gateway: None,
    };
    let mut interfaces: Vec<Interface> = macs.iter().enumerate().map(place).collect();
    for text in &asked.addresses {
        let Asked { address, gateway, device } = address::parse(&expand(text, n)?)?;
        let which = device.map_or(Which::Place(0), Which::Name);
        if which == Which::Place(0) && config.nets.is_empty() {
            let why =
                "it was saved without a network: name an interface of the guest's by dev=NAME";
            return Err(why.to_owned());
        }
        add(&mut interfaces, which, address, gateway);
    }
    Ok(interfaces)
}

fn add(
    interfaces: &mut Vec<Interface>,
    which: Which,
    address: Address,
    gateway: Option<std::net::IpAddr>,
) {
    match interfaces.iter_mut().find(|interface| interface.which == which) {
        Some(interface) => {
            interface.addresses.push(address);
            interface.gateway = gateway.or(interface.gateway);
        }
        None => {
            interfaces.push(Interface { which, mac: None, addresses: vec![address], gateway });
        }
    }
}

#[cfg(test)]
mod tests;
