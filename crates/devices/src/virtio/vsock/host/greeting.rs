//! What a program on the host says first: `CONNECT PORT`, and a line feed.

use crate::virtio::vsock::packet::PORT_ANY;

/// Longest greeting, line feed included.
pub(super) const GREETING_MAX: usize = 32;

/// What the first bytes of a caller come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Greeting {
    /// Not all of the line is there.
    Unfinished,
    /// He wants this port of the guest's; the line has so many bytes.
    Connect { port: u32, len: usize },
    /// It is no greeting.
    Bad,
}

impl Greeting {
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let Some(end) = bytes.iter().take(GREETING_MAX).position(|&byte| byte == b'\n') else {
            return if bytes.len() < GREETING_MAX { Self::Unfinished } else { Self::Bad };
        };
        match port(&bytes[..end]) {
            Some(port) => Self::Connect { port, len: end + 1 },
            None => Self::Bad,
        }
    }
}

fn port(line: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(line).ok()?.trim_ascii_end().strip_prefix("CONNECT ")?;
    // `parse` would take a plus sign.
    let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|port| all_digits && *port != PORT_ANY)
}

/// What the caller is told when the guest has taken the connection: the port that the guest sees.
pub(in super::super) fn answer(host_port: u32) -> String {
    format!("OK {host_port}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_ends_with_its_line() {
        let connect = |port, len| Greeting::Connect { port, len };
        for (bytes, expected) in [
            (&b""[..], Greeting::Unfinished),
            (b"CONNECT 5", Greeting::Unfinished),
            (b"CONNECT 52\n", connect(52, 11)),
            (b"CONNECT 52\r\n", connect(52, 12)),
            (b"CONNECT 0\nCONNECT 1\n", connect(0, 10)),
            (b"CONNECT 4294967294\nbytes of the stream", connect(u32::MAX - 1, 19)),
        ] {
            assert_eq!(Greeting::parse(bytes), expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn anything_else_is_bad() {
        for bytes in [
            &b"\n"[..],
            b"CONNECT\n",
            b"CONNECT \n",
            b"CONNECT +1\n",
            b"CONNECT -1\n",
            b"CONNECT 4294967295\n",
            b"CONNECT 4294967296\n",
            b"CONNECT 1 2\n",
            b"LISTEN 1\n",
            b"CONNECT \xff\n",
            b"CONNECT 00000000000000000000000000000001\n",
            &[b'C'; GREETING_MAX],
        ] {
            assert_eq!(Greeting::parse(bytes), Greeting::Bad, "{}", bytes.escape_ascii());
        }
    }
}
