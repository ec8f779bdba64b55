//! What the host says to the agent in a guest, and what that answers: one JSON object a line.
//!
//! ```text
//!   host (fathom)                                 guest (agent), AF_VSOCK, port 1
//!     | {"version":1,"id":7,"request":{..}}\n ------> |   obeys: whoever runs the VM is its root
//!     | <------ {"version":1,"id":7,"outcome":{..}}\n |   is not trusted: bounded, timed, checked
//! ```
//!
//! It is *not* a transport: who connects to whom, and for how long one waits, is each side's own matter.
//!
//! ```
//! use agent_wire::{Question, Request, VERSION};
//!
//! let line = agent_wire::to_line(&Question { version: VERSION, id: 7, request: Request::Facts })?;
//! assert_eq!(line, b"{\"version\":1,\"id\":7,\"request\":\"facts\"}\n");
//! # Ok::<(), agent_wire::LineError>(())
//! ```
#![forbid(unsafe_code)]

mod lines;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use lines::{LineError, Lines, from_line, to_line};

/// Where the agent listens: a port that only root of the guest can have.
pub const PORT: u32 = 1;
/// Of this protocol. What is asked in another one is refused.
pub const VERSION: u32 = 1;
/// Longest line in either direction, its line feed included.
pub const LINE_MAX: usize = 4 << 20;
/// Most that a program's standard output may come to, and its standard error: six bytes of JSON for each fit a line.
pub const OUTPUT_MAX: u32 = 256 << 10;
/// Most entries of each list.
pub const LIST_MAX: usize = 16_384;
/// Longest host name (`__NEW_UTS_LEN` of Linux).
pub const HOSTNAME_MAX: usize = 64;

/// One line to the agent.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// [`VERSION`].
    pub version: u32,
    /// Comes back in the answer.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// What the agent can be asked.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// What the guest is: [`Outcome::Facts`].
    Facts,
    /// Become small and nobody, before it is saved to be activated later: [`Outcome::Parts`].
    Prepare(Prepare),
    /// Become somebody: [`Outcome::Parts`].
    Identity(Identity),
    /// Run a program: [`Outcome::Ran`].
    Run(Run),
}

/// How to prepare.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prepare {
    /// Also remove what must differ between machines and comes back by itself or by an identity: the machine's id, host
    /// keys of sshd.
    pub generalise: bool,
}

/// Who a guest is from now on. What is absent stays as it is.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Identity {
    /// Its name, without a domain or with one.
    pub hostname: Option<String>,
    /// Its interfaces.
    pub interfaces: Vec<Interface>,
    /// Names of others and its own, for `/etc/hosts`. Those of an earlier identity are forgotten.
    pub hosts: Option<Vec<Host>>,
    /// Servers for `/etc/resolv.conf`.
    pub dns: Vec<IpAddr>,
    /// Nanoseconds since 1970, when it was sent.
    pub wall_clock_ns: Option<u64>,
    /// Draw a new `/etc/machine-id`.
    pub new_machine_id: bool,
    /// Processors that are to run.
    pub cpus: Option<u32>,
    /// Hexadecimal bytes to mix into the guest's random numbers.
    pub entropy: Option<String>,
}

/// An interface of the guest, as it is to be. It goes up.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Which.
    pub which: Which,
    /// Its Ethernet address, `52:54:00:12:34:56`; absent: as it is.
    #[serde(default)]
    pub mac: Option<String>,
    /// Its addresses; others are taken off where there is one.
    #[serde(default)]
    pub addresses: Vec<Address>,
    /// Where packets go that have no other way.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
}

/// Which interface of a guest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// By the name that the guest has for it.
    Name(String),
    /// The one of this number, from 0 on, of those that are devices of the machine.
    Place(u32),
}

/// An address with the length of its network's prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Bits of it that are the network's.
    pub prefix: u8,
}

/// A line of `/etc/hosts`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// The name.
    pub name: String,
    /// Where it is.
    pub address: IpAddr,
}

/// A program to run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Its path or name, and its arguments.
    pub command: Vec<String>,
    /// It is killed then, with what it has started.
    pub timeout_ms: u64,
    /// So much of its output is kept, and of its errors; at most [`OUTPUT_MAX`].
    pub output_max: u32,
}

/// One line of the agent's.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`].
    pub version: u32,
    /// The question's; 0 if it had none that could be read.
    pub id: u64,
    /// What it came to.
    pub outcome: Outcome,
}

/// What a question came to.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// What the guest is.
    Facts(Facts),
    /// What was done of what was asked, part by part.
    Parts(Vec<Part>),
    /// A program has ended.
    Ran(Ran),
    /// The question was not understood, or cannot be answered: why.
    Refused(String),
}

/// One thing of several that were asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Part {
    /// Its name.
    pub part: String,
    /// Whether it is done.
    pub ok: bool,
    /// What was done, or why it was not.
    pub said: String,
}

/// What a guest is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// The agent's version, for people.
    pub agent: String,
    /// The kernel's name, release and version.
    pub kernel: String,
    /// Its name.
    pub hostname: String,
    /// Processors that run.
    pub cpus_online: u32,
    /// Processors that it could have.
    pub cpus_present: u32,
    /// Its memory as its kernel counts it.
    pub memory_bytes: u64,
    /// Nanoseconds since 1970, when this was read.
    pub wall_clock_ns: u64,
    /// Its interfaces.
    pub interfaces: Vec<InterfaceFacts>,
}

/// What an interface is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct InterfaceFacts {
    /// Its name.
    pub name: String,
    /// Its Ethernet address, if it has one.
    pub mac: Option<String>,
    /// Whether it is up.
    pub up: bool,
    /// Its addresses, with the lengths of their networks' prefixes.
    pub addresses: Vec<Address>,
}

/// How a program ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ran {
    /// Its status; absent if a signal ended it.
    pub status: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// It was killed because it took too long.
    pub timed_out: bool,
    /// What it printed; what is no UTF-8 is replaced.
    pub output: String,
    /// What it printed on standard error.
    pub errors: String,
    /// There was more.
    pub cut: bool,
}

/// Whether a guest can have this name (hostname(7), and RFC 1123 section 2.1).
#[must_use]
pub fn is_hostname(name: &str) -> bool {
    let label = |label: &str| {
        let inside = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty()
            && label.bytes().all(inside)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= HOSTNAME_MAX && name.split('.').all(label)
}

/// Six bytes in hexadecimal, with colons between them, of one interface and not of a group.
#[must_use]
pub fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2)?;
        let digits = part.bytes().all(|digit| digit.is_ascii_hexdigit());
        *byte = u8::from_str_radix(part, 16).ok().filter(|_| digits)?;
    }
    (parts.next().is_none() && bytes[0] & 1 == 0 && bytes != [0; 6]).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_read_as_it_was_written() {
        let interface = Interface {
            which: Which::Place(1),
            mac: Some("52:54:00:00:00:01".into()),
            addresses: vec![Address { ip: [10, 0, 0, 2].into(), prefix: 24 }],
            gateway: Some([10, 0, 0, 1].into()),
        };
        let identity = Identity {
            hostname: Some("web-1".into()),
            interfaces: vec![interface],
            hosts: Some(vec![Host { name: "db".into(), address: [10, 0, 0, 3].into() }]),
            wall_clock_ns: Some(u64::MAX),
            cpus: Some(2),
            ..Identity::default()
        };
        let run = Run { command: vec!["a\nb".into()], timeout_ms: 1, output_max: 2 };
        let requests = [
            Request::Facts,
            Request::Prepare(Prepare { generalise: true }),
            Request::Identity(identity),
            Request::Run(run),
        ];
        for request in requests {
            let question = Question { version: VERSION, id: 3, request };
            let line = to_line(&question).expect("a line");
            assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
            assert_eq!(from_line::<Question>(&line).expect("read"), question);
        }
    }

    #[test]
    fn what_a_host_does_not_know_is_refused_by_the_guest() {
        let bad = [
            r#"{"version":1,"id":1,"request":{"identity":{"hostnam":"a"}}}"#,
            r#"{"version":1,"id":1,"request":"reboot"}"#,
            r#"{"version":1,"id":-1,"request":"facts"}"#,
            "[]",
            "",
        ];
        for line in bad {
            assert!(from_line::<Question>(line.as_bytes()).is_err(), "{line}");
        }
    }

    #[test]
    fn the_largest_output_fits_a_line() {
        let text = "\u{1}".repeat(OUTPUT_MAX as usize);
        let ran = Ran {
            status: Some(0),
            signal: None,
            timed_out: false,
            output: text.clone(),
            errors: text,
            cut: true,
        };
        let answer = Answer { version: VERSION, id: u64::MAX, outcome: Outcome::Ran(ran) };
        assert!(to_line(&answer).is_ok());
    }

    #[test]
    fn names_and_ethernet_addresses() {
        for name in ["a", "web-1", "web-1.example.org", "0"] {
            assert!(is_hostname(name), "{name}");
        }
        for name in ["", "-a", "a-", "a..b", "a b", "a\n127.0.0.1 b", "ä", &"a".repeat(65)] {
            assert!(!is_hostname(name), "{name}");
        }
        assert_eq!(mac("52:54:00:aB:00:01"), Some([0x52, 0x54, 0, 0xab, 0, 1]));
        for text in [
            "",
            "52:54:00:ab:00",
            "52:54:00:ab:00:01:02",
            "53:54:00:ab:00:01",
            "+2:54:00:ab:00:01",
            "00:00:00:00:00:00",
        ] {
            assert_eq!(mac(text), None, "{text}");
        }
    }
}
