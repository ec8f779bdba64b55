//! The kernel's `ip=` parameter, done here: Debian's kernels leave it to the initramfs.
//!
//! `ip=dhcp`, or `ip=CLIENT:SERVER:GATEWAY:NETMASK:HOST:DEVICE:..` (nfsroot.rst of Linux), of which
//! all but the client's address may be left out.

use crate::report::emit;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

const BUSYBOX: &str = "/bin/busybox";
const LEASE_SCRIPT: &str = "/tmp/lease";
/// What busybox's DHCP client calls with its results in the environment.
const LEASE: &str = "#!/bin/busybox sh
[ \"$1\" = bound ] || exit 0
busybox ip address add \"$ip/$mask\" dev \"$interface\"
[ -z \"$router\" ] || busybox ip route add default via ${router%% *}
";

/// An address, or where to get one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Address<'a> {
    Dhcp,
    Static { client: &'a str, gateway: &'a str, netmask: &'a str, device: &'a str },
}

impl<'a> Address<'a> {
    /// What `ip=` asks for; none if it asks for nothing.
    pub(crate) fn from_cmdline(cmdline: &'a str) -> Option<Self> {
        let value = cmdline.split_whitespace().find_map(|word| word.strip_prefix("ip="))?;
        let fields: Vec<_> = value.split(':').collect();
        let field = |at: usize, default| match fields.get(at) {
            Some(&"") | None => default,
            Some(text) => *text,
        };
        match field(0, "") {
            "" | "off" | "none" => None,
            "dhcp" | "on" | "any" => Some(Self::Dhcp),
            client => Some(Self::Static {
                client,
                gateway: field(2, ""),
                netmask: field(3, "255.255.255.0"),
                device: field(5, "eth0"),
            }),
        }
    }

    /// Tells how it went.
    pub(crate) fn configure(&self) {
        let up = run(&["ip", "link", "set", "lo", "up"]);
        let done = up && self.set();
        emit("network", &[("ok", done.into())]);
    }

    fn set(&self) -> bool {
        match *self {
            Self::Dhcp => {
                let written = fs::write(LEASE_SCRIPT, LEASE).and_then(|()| {
                    fs::set_permissions(LEASE_SCRIPT, fs::Permissions::from_mode(0o755))
                });
                // -f -q -n: until it has an address or gives up.
                let ask = ["udhcpc", "-f", "-q", "-n", "-i", "eth0", "-s", LEASE_SCRIPT];
                written.is_ok() && run(&["ip", "link", "set", "eth0", "up"]) && run(&ask)
            }
            Self::Static { client, gateway, netmask, device } => {
                // Its route comes with the address and the mask.
                let set = run(&["ifconfig", device, client, "netmask", netmask, "up"]);
                let route = ["ip", "route", "add", "default", "via", gateway];
                set && (gateway.is_empty() || run(&route))
            }
        }
    }
}

/// Runs a program of busybox; whether it did as asked.
fn run(words: &[&str]) -> bool {
    let mut command = Command::new(BUSYBOX);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_kernel_reads_them() {
        let all = "quiet ip=192.0.2.2::192.0.2.1:255.255.255.128:name:eth1:off panic=1";
        let expected = Address::Static {
            client: "192.0.2.2",
            gateway: "192.0.2.1",
            netmask: "255.255.255.128",
            device: "eth1",
        };
        assert_eq!(Address::from_cmdline(all), Some(expected));
        let (netmask, device) = ("255.255.255.0", "eth0");
        let short = Address::Static { client: "192.0.2.2", gateway: "", netmask, device };
        assert_eq!(Address::from_cmdline("ip=192.0.2.2"), Some(short));
        assert_eq!(Address::from_cmdline("ip=dhcp"), Some(Address::Dhcp));
        assert_eq!(Address::from_cmdline("quiet ip=off zip=dhcp"), None);
    }
}
