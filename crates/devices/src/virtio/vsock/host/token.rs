//! What a change happened to, as the 64 bits that come with it.

use crate::virtio::vsock::packet::PORT_ANY;
use crate::virtio::vsock::streams::Key;

/// Something that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Token {
    Listener,
    Timer,
    /// Somebody who has not said yet which port he wants.
    Caller(u32),
    Stream(Key),
}

impl Token {
    /// No connection has the port of nobody, which leaves names for the others.
    pub(super) fn to_bits(self) -> u64 {
        let (host_port, guest_port) = match self {
            Self::Listener => (PORT_ANY, 0),
            Self::Timer => (PORT_ANY, 1),
            Self::Caller(number) => (number, PORT_ANY),
            Self::Stream(key) => (key.host_port, key.guest_port),
        };
        u64::from(host_port) << 32 | u64::from(guest_port)
    }

    pub(super) fn from_bits(bits: u64) -> Self {
        match ((bits >> 32) as u32, bits as u32) {
            (PORT_ANY, 0) => Self::Listener,
            (PORT_ANY, _) => Self::Timer,
            (number, PORT_ANY) => Self::Caller(number),
            (host_port, guest_port) => Self::Stream(Key { host_port, guest_port }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive() {
        let key = |host_port, guest_port| Token::Stream(Key { host_port, guest_port });
        let last = PORT_ANY - 1;
        for token in [
            Token::Listener,
            Token::Timer,
            Token::Caller(0),
            Token::Caller(last),
            key(0, 0),
            key(last, last),
        ] {
            assert_eq!(Token::from_bits(token.to_bits()), token);
        }
    }
}
