//! `ADDRESS/PREFIX[,gateway=ADDRESS][,dev=NAME]`.

use std::net::IpAddr;

use agent_wire::Address;

const FORM: &str = "write ADDRESS/PREFIX[,gateway=ADDRESS][,dev=NAME], as in 192.168.77.10/24";
/// IFNAMSIZ of Linux, with a closing zero.
const DEVICE_MAX: usize = 15;

/// An address that a guest is to have.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) address: Address,
    pub(crate) gateway: Option<IpAddr>,
    /// The guest's name of the interface.
    pub(crate) device: Option<String>,
}

/// One that a machine can have: not its network's own, and with a gateway in the network.
pub(crate) fn parse(text: &str) -> Result<Asked, String> {
    let mut parts = text.split(',');
    let address = address(parts.next().unwrap_or_default())?;
    let (mut gateway, mut device) = (None, None);
    for part in parts {
        match part.split_once('=') {
            Some(("gateway", text)) if gateway.is_none() => {
                gateway = Some(self::gateway(text, address)?);
            }
            Some(("dev", name)) if device.is_none() && is_device(name) => {
                device = Some(name.to_owned());
            }
            _ => return Err(format!("`{part}` is refused: {FORM}")),
        }
    }
    Ok(Asked { address, gateway, device })
}

fn address(text: &str) -> Result<Address, String> {
    let bad = || format!("`{text}` is no address: {FORM}");
    let (ip, prefix) = text.split_once('/').ok_or_else(bad)?;
    let ip: IpAddr = ip.parse().map_err(|_| bad())?;
    let bits = bits_of(ip);
    let digits = prefix.bytes().all(|byte| byte.is_ascii_digit());
    let prefix = prefix.parse().ok().filter(|prefix| digits && (1..=bits).contains(prefix));
    let address = Address { ip, prefix: prefix.ok_or_else(bad)? };
    if ip.is_unspecified() || ip.is_multicast() {
        return Err(format!("{text} is no address of a machine"));
    }
    // A network of two has neither (RFC 3021); IPv6 has no broadcast.
    if let IpAddr::V4(ip) = ip
        && address.prefix < 31
    {
        let host = u32::MAX >> address.prefix;
        let rest = ip.to_bits() & host;
        if rest == 0 || rest == host {
            let what = if rest == 0 { "the network's own" } else { "its broadcast address" };
            return Err(format!("{text} is {what}, no machine's"));
        }
    }
    Ok(address)
}

/// `text`, if it is in the network of `address` and another one.
pub(crate) fn gateway(text: &str, address: Address) -> Result<IpAddr, String> {
    let gateway: IpAddr = text.parse().map_err(|_| format!("gateway `{text}` is no address"))?;
    if !is_in_net(gateway, address) {
        return Err(format!(
            "gateway {gateway} is not in the net of {}/{}",
            address.ip, address.prefix
        ));
    }
    if gateway == address.ip {
        return Err(format!("gateway {gateway} is the machine's own address"));
    }
    Ok(gateway)
}

fn is_in_net(ip: IpAddr, address: Address) -> bool {
    match (ip, address.ip) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            (a.to_bits() ^ b.to_bits()).leading_zeros() >= u32::from(address.prefix)
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            (a.to_bits() ^ b.to_bits()).leading_zeros() >= u32::from(address.prefix)
        }
        _ => false,
    }
}

fn bits_of(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn is_device(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
    (1..=DEVICE_MAX).contains(&name.len()) && name.chars().all(plain) && name != "." && name != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let asked = parse("192.168.77.10/24,gateway=192.168.77.1").expect("good");
        assert_eq!(asked.address, Address { ip: [192, 168, 77, 10].into(), prefix: 24 });
        assert_eq!(asked.gateway, Some([192, 168, 77, 1].into()));
        assert_eq!(parse("10.0.0.1/8,dev=lo").expect("good").device.as_deref(), Some("lo"));
        for text in ["10.0.0.0/31", "10.0.0.1/32", "fd00::1/64,gateway=fd00::2", "10.0.0.2/1"] {
            assert!(parse(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn what_no_machine_can_have_is_refused() {
        for (text, reason) in [
            ("", "is no address"),
            ("10.0.0.1", "is no address"),
            ("10.0.0.1/0", "is no address"),
            ("10.0.0.1/33", "is no address"),
            ("10.0.0.1/+8", "is no address"),
            ("10.0.0.256/24", "is no address"),
            ("fd00::1/129", "is no address"),
            ("10.0.0.0/24", "the network's own"),
            ("10.0.0.255/24", "its broadcast address"),
            ("0.0.0.0/32", "no address of a machine"),
            ("224.0.0.1/24", "no address of a machine"),
            ("10.0.0.1/24,gateway=10.0.1.1", "is not in the net of 10.0.0.1/24"),
            ("10.0.0.1/24,gateway=fd00::1", "is not in the net"),
            ("10.0.0.1/24,gateway=10.0.0.1", "the machine's own"),
            ("10.0.0.1/24,gateway=", "is no address"),
            ("10.0.0.1/24,dev=a/b", "is refused"),
            ("10.0.0.1/24,dev=0123456789abcdef", "is refused"),
            ("10.0.0.1/24,mtu=1", "is refused"),
        ] {
            let refused = parse(text).expect_err(text);
            assert!(refused.contains(reason), "{text}: {refused}");
        }
    }
}
