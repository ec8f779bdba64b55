//! Becoming somebody.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::IpAddr;

use agent_wire::{Host, Identity, LIST_MAX, Part};
use rustix::system::sethostname;
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::parts::Parts;
use crate::{cpus, facts, files, interfaces, sys};

const HOSTS: &str = "/etc/hosts";
/// Lines of ours are between these.
const BEGIN: &str = "# fathom: begin";
const END: &str = "# fathom: end";
/// Clocks are set where they are off by more: a message takes a while on a busy host, and a clock that jumps is
/// worse than one that is a little late.
const CLOCK_NS: u64 = 100_000_000;

pub(crate) fn assume(identity: &Identity) -> Vec<Part> {
    let mut parts = Parts::default();
    if let Some(now) = identity.wall_clock_ns {
        parts.part("clock", set_clock(now));
    }
    if let Some(entropy) = &identity.entropy {
        parts.part("entropy", mix_in(entropy));
    }
    if let Some(name) = &identity.hostname {
        parts.part("hostname", set_hostname(name));
    }
    if identity.new_machine_id {
        parts.part("machine-id", draw_machine_id());
    }
    for interface in identity.interfaces.iter().take(LIST_MAX) {
        parts.part("interface", interfaces::set(interface));
    }
    if let Some(hosts) = &identity.hosts {
        parts.part("hosts", set_hosts(hosts));
    }
    if !identity.dns.is_empty() {
        parts.part("dns", set_dns(&identity.dns));
    }
    if let Some(cpus) = identity.cpus {
        parts.part("cpus", cpus::run(cpus));
    }
    parts.done()
}

fn set_clock(now: u64) -> io::Result<String> {
    let off = facts::wall_clock_ns().abs_diff(now);
    let ms = off as f64 / 1e6;
    if off <= CLOCK_NS {
        return Ok(format!("right within {ms:.1} ms"));
    }
    let tv_sec = i64::try_from(now / 1_000_000_000).unwrap_or(i64::MAX);
    let tv_nsec = (now % 1_000_000_000) as i64;
    clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec })?;
    Ok(format!("set: it was off by {ms:.1} ms"))
}

/// Hexadecimal bytes.
fn mix_in(entropy: &str) -> Result<String, String> {
    let bytes = bytes(entropy).ok_or("it is not hexadecimal")?;
    let mix = || -> io::Result<()> {
        let mut urandom = File::options().write(true).open("/dev/urandom")?;
        urandom.write_all(&bytes)?;
        sys::reseed(&urandom)
    };
    mix().map_err(|error| error.to_string())?;
    Ok(format!("{} bytes", bytes.len()))
}

fn bytes(hexadecimal: &str) -> Option<Vec<u8>> {
    let digits = hexadecimal.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// Now, and after a boot where there is a file for that.
fn set_hostname(name: &str) -> Result<String, String> {
    if !agent_wire::is_hostname(name) {
        return Err("it is no name of a host".to_owned());
    }
    sethostname(name.as_bytes()).map_err(|error| error.to_string())?;
    let kept = fs::metadata("/etc/hostname").is_ok()
        && files::replace("/etc/hostname", &format!("{name}\n")).is_ok();
    Ok(if kept { format!("{name}, and after a boot") } else { name.to_owned() })
}

/// As machine-id(5) has it: a random UUID in 32 digits.
fn draw_machine_id() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let id: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    files::replace("/etc/machine-id", &format!("{id}\n"))?;
    Ok(id)
}

fn set_hosts(hosts: &[Host]) -> Result<String, String> {
    if hosts.len() > LIST_MAX {
        return Err(format!("{} are too many, {LIST_MAX} can be", hosts.len()));
    }
    if let Some(bad) = hosts.iter().find(|host| !agent_wire::is_hostname(&host.name)) {
        return Err(format!("{:?} is no name of a host", bad.name));
    }
    let old = fs::read_to_string(HOSTS).unwrap_or_else(|_| "127.0.0.1 localhost\n".to_owned());
    files::replace(HOSTS, &with_ours(&old, hosts)).map_err(|error| error.to_string())?;
    Ok(format!("{} names", hosts.len()))
}

/// The file with these lines of ours, and no others of ours.
fn with_ours(old: &str, hosts: &[Host]) -> String {
    let mut text = String::new();
    let mut ours = false;
    for line in old.lines() {
        ours |= line == BEGIN;
        if !ours {
            text += line;
            text += "\n";
        }
        ours &= line != END;
    }
    text += BEGIN;
    text += "\n";
    for host in hosts {
        text += &format!("{} {}\n", host.address, host.name);
    }
    text + END + "\n"
}

fn set_dns(servers: &[IpAddr]) -> io::Result<String> {
    let lines: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    files::replace("/etc/resolv.conf", &lines)?;
    Ok(format!("{} servers", servers.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_replaced_by_those_of_a_new_identity() {
        let host =
            |name: &str, last| Host { name: name.to_owned(), address: [10, 0, 0, last].into() };
        let first = with_ours("127.0.0.1 localhost\n", &[host("a", 1), host("b", 2)]);
        let ours = "# fathom: begin\n10.0.0.1 a\n10.0.0.2 b\n# fathom: end\n";
        assert_eq!(first, format!("127.0.0.1 localhost\n{ours}"));
        let second = with_ours(&(first + "::1 six\n"), &[host("c", 3)]);
        let ours = "# fathom: begin\n10.0.0.3 c\n# fathom: end\n";
        assert_eq!(second, format!("127.0.0.1 localhost\n::1 six\n{ours}"));
    }

    #[test]
    fn a_name_that_would_add_a_line_is_refused() {
        let host = Host { name: "a\n10.0.0.9 bank".into(), address: [10, 0, 0, 1].into() };
        assert!(set_hosts(&[host]).expect_err("refused").contains("is no name of a host"));
    }

    #[test]
    fn entropy_is_hexadecimal() {
        assert_eq!(bytes("00ffA5"), Some(vec![0, 255, 0xa5]));
        for bad in ["0", "0g", "+1", "ää"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}
