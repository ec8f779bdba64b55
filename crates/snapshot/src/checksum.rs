//! Checksums and identities.

use std::fmt;
use std::hash::Hasher;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use twox_hash::XxHash3_64;

/// XXH3 with 64 bits, seed 0. Finds accidents, not attackers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Checksum(pub u64);

impl Checksum {
    /// Of `bytes`.
    pub fn of(bytes: &[u8]) -> Checksum {
        Checksum(XxHash3_64::oneshot(bytes))
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Of bytes that come in pieces.
pub(crate) struct Running(XxHash3_64);

impl Running {
    pub(crate) fn new() -> Self {
        Self(XxHash3_64::new())
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    pub(crate) fn checksum(&self) -> Checksum {
        Checksum(self.0.finish())
    }
}

/// 128 bits that tell one snapshot, or one generation of a VM, from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id(pub [u8; 16]);

impl Id {
    /// A new one.
    ///
    /// # Errors
    /// The host has no random numbers.
    pub fn random() -> std::io::Result<Id> {
        let mut bytes = [0; 16];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += rustix::rand::getrandom(
                &mut bytes[filled..],
                rustix::rand::GetRandomFlags::empty(),
            )?;
        }
        Ok(Id(bytes))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

// In JSON both are strings of hexadecimal digits, all of them.

impl Serialize for Checksum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Checksum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        hexadecimal(deserializer, 16).map(|number| Checksum(number as u64))
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        hexadecimal(deserializer, 32).map(|number| Id(number.to_be_bytes()))
    }
}

fn hexadecimal<'de, D: Deserializer<'de>>(
    deserializer: D,
    digits: usize,
) -> Result<u128, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_hexadecimal(&text, digits)
        .ok_or_else(|| de::Error::custom(format_args!("not {digits} hexadecimal digits: {text:?}")))
}

/// Exactly `digits` of them, no sign.
pub(crate) fn parse_hexadecimal(text: &str, digits: usize) -> Option<u128> {
    let right = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if right { u128::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xxh3_is_the_published_one() {
        // The empty input's hash, from the reference implementation's documentation.
        assert_eq!(Checksum::of(b""), Checksum(0x2d06_8005_38d3_94c2));
        let bytes: Vec<u8> = (0..5000u32).map(|n| n as u8).collect();
        let mut running = Running::new();
        bytes.chunks(777).for_each(|piece| running.add(piece));
        assert_eq!(running.checksum(), Checksum::of(&bytes));
    }

    #[test]
    fn text_is_read_back_and_nothing_else_is() {
        let id = Id(*b"\x01\0\0\0abcdefghijkl");
        let json = serde_json::to_string(&(id, Checksum(10))).expect("JSON");
        assert_eq!(json, r#"["010000006162636465666768696a6b6c","000000000000000a"]"#);
        assert_eq!(
            serde_json::from_str::<(Id, Checksum)>(&json).expect("read"),
            (id, Checksum(10))
        );
        for wrong in ["", "+00000000000000a", "a", "00000000000000000a", "000000000000000g"] {
            let json = serde_json::to_string(wrong).expect("JSON");
            assert!(serde_json::from_str::<Checksum>(&json).is_err(), "{wrong}");
        }
    }
}
