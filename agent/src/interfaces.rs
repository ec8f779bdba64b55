//! Interfaces: what they are, and what they are to be.

use std::io;
use std::path::Path;

use agent_wire::{Address, Interface, InterfaceFacts, LIST_MAX, Which};

use crate::netlink::{Link, Netlink};

const LOOPBACK: &str = "lo";

/// All of them; none where the kernel does not say.
pub(crate) fn facts() -> Vec<InterfaceFacts> {
    let read = || -> io::Result<_> {
        let mut netlink = Netlink::open()?;
        Ok((netlink.links()?, netlink.addresses()?))
    };
    let Ok((links, addresses)) = read() else { return Vec::new() };
    let facts = |link: Link| InterfaceFacts {
        mac: link.is_ethernet.then(|| text(&link.mac)),
        up: link.is_up,
        addresses: of(&addresses, link.index),
        name: link.name,
    };
    links.into_iter().map(facts).take(LIST_MAX).collect()
}

/// Takes addresses off all but the loopback, and has them down.
pub(crate) fn drop_all() -> io::Result<String> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let addresses = netlink.addresses()?;
    let (mut downed, mut dropped) = (0, 0);
    for link in links.iter().filter(|link| link.name != LOOPBACK) {
        for address in of(&addresses, link.index) {
            // A second address of a network goes with the first (promote_secondaries of ip-sysctl.rst).
            dropped += u32::from(gone(netlink.delete_address(link.index, address))?);
        }
        netlink.set_up(link.index, false)?;
        downed += 1;
    }
    Ok(format!("{dropped} addresses of {downed} interfaces dropped"))
}

/// Whether it was there.
fn gone(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ok(false),
        Err(error) => Err(error),
    }
}

/// Down for a new Ethernet address, which not every device takes otherwise; then up, with its addresses and the gateway.
pub(crate) fn set(asked: &Interface) -> Result<String, String> {
    let mac = match &asked.mac {
        None => None,
        Some(text) => Some(agent_wire::mac(text).ok_or("its Ethernet address is none")?),
    };
    let mut netlink = Netlink::open().map_err(|error| format!("ask the kernel: {error}"))?;
    let links = netlink.links().map_err(|error| format!("list interfaces: {error}"))?;
    let link = find(&links, &asked.which)?;
    let refused = |what: &str| {
        let name = link.name.clone();
        let what = what.to_owned();
        move |error: io::Error| format!("{name}: {what}: {error}")
    };
    if let Some(mac) = mac.filter(|mac| link.mac != mac)
        && netlink.set_mac(link.index, mac).is_err()
    {
        netlink.set_up(link.index, false).map_err(refused("take it down"))?;
        netlink.set_mac(link.index, mac).map_err(refused("set its Ethernet address"))?;
    }
    netlink.set_up(link.index, true).map_err(refused("take it up"))?;
    if !asked.addresses.is_empty() {
        let old = netlink.addresses().map_err(refused("list its addresses"))?;
        for address in of(&old, link.index) {
            let kept = link.name == LOOPBACK && address.ip.is_loopback();
            if !kept && !asked.addresses.contains(&address) && !is_link_local(address) {
                gone(netlink.delete_address(link.index, address))
                    .map_err(refused("drop an address"))?;
            }
        }
        for &address in asked.addresses.iter().take(LIST_MAX) {
            let what = format!("add {}/{}", address.ip, address.prefix);
            netlink.add_address(link.index, address).map_err(refused(&what))?;
        }
    }
    if let Some(gateway) = asked.gateway {
        let what = format!("route to {gateway}");
        netlink.set_gateway(link.index, gateway).map_err(refused(&what))?;
    }
    Ok(format!("{} is up", link.name))
}

fn find<'a>(links: &'a [Link], which: &Which) -> Result<&'a Link, String> {
    let found = match which {
        Which::Name(name) => links.iter().find(|link| link.name == *name),
        Which::Place(place) => {
            let devices = || links.iter().filter(|link| link.is_ethernet && is_device(&link.name));
            devices().nth(*place as usize)
        }
    };
    found.ok_or_else(|| match which {
        Which::Name(name) => format!("there is no interface {name:?}"),
        Which::Place(place) => format!("there is no interface number {place}"),
    })
}

/// Of the machine, not made by the kernel, such as bridges are.
fn is_device(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).join("device").exists()
}

/// IPv6's, which the kernel makes itself.
fn is_link_local(address: Address) -> bool {
    matches!(address.ip, std::net::IpAddr::V6(ip) if ip.is_unicast_link_local())
}

fn of(addresses: &[(u32, Address)], index: u32) -> Vec<Address> {
    let mine = addresses.iter().filter(|(owner, _)| *owner == index);
    mine.map(|(_, address)| *address).collect()
}

fn text(mac: &[u8]) -> String {
    let bytes: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(which: Which, mac: Option<&str>) -> Interface {
        Interface { which, mac: mac.map(str::to_owned), addresses: Vec::new(), gateway: None }
    }

    #[test]
    fn the_loopback_is_known_with_its_address() {
        let facts = facts();
        let lo = facts.iter().find(|interface| interface.name == "lo").expect("a loopback");
        assert_eq!(lo.mac, None);
        if lo.up {
            let own = Address { ip: [127, 0, 0, 1].into(), prefix: 8 };
            assert!(lo.addresses.contains(&own), "{lo:?}");
        }
    }

    #[test]
    fn what_is_not_there_is_said() {
        let refused = set(&asked(Which::Name("no such".into()), None)).expect_err("refused");
        assert_eq!(refused, "there is no interface \"no such\"");
        let refused = set(&asked(Which::Place(9999), None)).expect_err("refused");
        assert_eq!(refused, "there is no interface number 9999");
        let refused = set(&asked(Which::Place(0), Some("ff:ff"))).expect_err("refused");
        assert_eq!(refused, "its Ethernet address is none");
    }
}
