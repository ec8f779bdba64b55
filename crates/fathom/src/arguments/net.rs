//! `tap=NAME` or `passt[=SOCKET]`, with options behind it.

use std::net::{IpAddr, Ipv4Addr};

use vmm::config::{NetBackend, NetConfig, PortForward, Protocol};

const FORM: &str = "write tap=NAME, passt or passt=SOCKET, then ,mac=ADDRESS ,mtu=N or, with passt, ,tcp=PORT:PORT";

/// A comma ends a path: a path with one in it cannot be given here.
pub(crate) fn parse(text: &str) -> Result<NetConfig, String> {
    let mut parts = text.split(',');
    let backend = backend(parts.next().unwrap_or_default())?;
    let mut config = NetConfig { backend, mac: None, mtu: None };
    for part in parts {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        match key {
            "mac" if config.mac.is_none() => {
                config.mac = Some(value.parse().map_err(|error| format!("{error}"))?);
            }
            "mtu" if config.mtu.is_none() => {
                let mtu = value.parse().map_err(|_| format!("`{value}` is no MTU: write a number"));
                config.mtu = Some(mtu?);
            }
            "mac" | "mtu" => return Err(format!("an interface has one {key}")),
            "tcp" => forwards(&mut config)?.push(forward(Protocol::Tcp, value)?),
            "udp" => forwards(&mut config)?.push(forward(Protocol::Udp, value)?),
            _ => return Err(format!("`{part}` is no option: {FORM}")),
        }
    }
    Ok(config)
}

fn backend(text: &str) -> Result<NetBackend, String> {
    match text.split_once('=') {
        Some(("tap", name)) if !name.is_empty() => Ok(NetBackend::Tap(name.to_owned())),
        Some(("passt", path)) if !path.is_empty() => Ok(NetBackend::Socket(path.into())),
        // What QEMU calls it.
        None if text == "passt" || text == "user" => Ok(NetBackend::Passt(Vec::new())),
        _ => Err(format!("`{text}` is no network: {FORM}")),
    }
}

fn forwards(config: &mut NetConfig) -> Result<&mut Vec<PortForward>, String> {
    match &mut config.backend {
        NetBackend::Passt(forwards) => Ok(forwards),
        NetBackend::Socket(_) => {
            Err("whoever started that passt forwards its ports: leave tcp= and udp= out".to_owned())
        }
        NetBackend::Tap(_) => Err("a TAP interface forwards no ports: use passt".to_owned()),
    }
}

/// `[ADDRESS/]PORT[:PORT]`: of the host, then of the guest.
fn forward(protocol: Protocol, text: &str) -> Result<PortForward, String> {
    let bad = || format!("`{text}` forwards nothing: write [ADDRESS/]PORT[:PORT], as in 8080:80");
    let (address, ports) = match text.split_once('/') {
        Some((address, ports)) => (address.parse().map_err(|_| bad())?, ports),
        None => (IpAddr::V4(Ipv4Addr::LOCALHOST), text),
    };
    let port = |text: &str| text.parse().ok().filter(|port| *port != 0).ok_or_else(bad);
    let (host, guest) = ports.split_once(':').unwrap_or((ports, ports));
    Ok(PortForward { protocol, address, host: port(host)?, guest: port(guest)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let mac = "52:54:00:12:34:56".parse().ok();
        let passt = || NetBackend::Passt(Vec::new());
        for (text, backend, mac, mtu) in [
            ("tap=tap0", NetBackend::Tap("tap0".into()), None, None),
            ("passt", passt(), None, None),
            ("user,mtu=1500", passt(), None, Some(1500)),
            ("passt=/run/a=b.socket", NetBackend::Socket("/run/a=b.socket".into()), None, None),
            ("tap=t,mtu=9000,mac=52:54:00:12:34:56", NetBackend::Tap("t".into()), mac, Some(9000)),
        ] {
            assert_eq!(parse(text), Ok(NetConfig { backend, mac, mtu }), "{text}");
        }
    }

    #[test]
    fn ports_are_the_hosts_own_unless_an_address_is_given() {
        let config = parse("passt,tcp=8080:80,udp=0.0.0.0/53,tcp=::1/22").expect("good");
        let forward = |protocol, address: &str, host, guest| {
            let address = address.parse().expect("an address");
            PortForward { protocol, address, host, guest }
        };
        let expected = vec![
            forward(Protocol::Tcp, "127.0.0.1", 8080, 80),
            forward(Protocol::Udp, "0.0.0.0", 53, 53),
            forward(Protocol::Tcp, "::1", 22, 22),
        ];
        assert_eq!(config.backend, NetBackend::Passt(expected));
    }

    #[test]
    fn the_rest_is_refused() {
        for text in [
            "",
            "tap",
            "tap=",
            "passt=",
            "user=x",
            "bridge=br0",
            "passt,",
            "passt,mac=1",
            "passt,mtu=many",
            "passt,mtu=1,mtu=2",
            "passt,tcp=",
            "passt,tcp=0:80",
            "passt,tcp=80:65536",
            "passt,tcp=localhost/80",
            "passt=/s,tcp=80",
            "tap=tap0,udp=53",
            "passt,vhost=on",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
