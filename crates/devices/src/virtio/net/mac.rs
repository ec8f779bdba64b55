//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Bit of the first byte: addressed to a group, so nobody's own.
const GROUP: u8 = 1;
/// Bit of the first byte: given by whoever runs the network, not by a manufacturer.
const LOCAL: u8 = 2;

/// The Ethernet address of an interface: of one station, not all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MacAddress([u8; 6]);

/// Text that is no interface's Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{text}` is no Ethernet address of one interface: write it as in 52:54:00:12:34:56")]
pub struct MacError {
    /// The text.
    text: String,
}

impl MacAddress {
    /// The address of interface `index` of the VM `name`, where none was asked for: the same every
    /// time, so that the guest knows its interface again.
    pub fn of_vm(name: &str, index: usize) -> Self {
        // FNV-1a: nothing is to be kept secret, and no release may change it.
        let bytes = name.bytes().chain((index as u64).to_le_bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        let [_, _, mut bytes @ ..] = hash.to_be_bytes();
        bytes[0] = bytes[0] & !GROUP | LOCAL;
        Self(bytes)
    }

    /// Its bytes, as they are sent.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let bad = || MacError { text: text.escape_debug().collect() };
        let byte = |part: &str| {
            let digits = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
            digits.then(|| u8::from_str_radix(part, 16).ok()).flatten()
        };
        let bytes = text.split(':').map(byte).collect::<Option<Vec<_>>>().ok_or_else(bad)?;
        let bytes = <[u8; 6]>::try_from(bytes).map_err(|_| bad())?;
        if bytes[0] & GROUP != 0 || bytes == [0; 6] {
            return Err(bad());
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for MacAddress {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_agree() {
        let address: MacAddress = "52:54:00:aB:0c:ff".parse().unwrap();
        assert_eq!(address.bytes(), [0x52, 0x54, 0, 0xab, 0x0c, 0xff]);
        assert_eq!(address.to_string(), "52:54:00:ab:0c:ff");
        let json = serde_json::to_string(&address).unwrap();
        assert_eq!(serde_json::from_str::<MacAddress>(&json).unwrap(), address);
    }

    #[test]
    fn what_is_no_address_of_an_interface_is_refused() {
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:5",
            "52:54:00:12:34:+5",
            "525400123456",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_vm_keeps_its_address_and_shares_it_with_no_other() {
        let address = MacAddress::of_vm("web", 0);
        assert_eq!(address.to_string(), "da:6c:a0:a6:a7:11", "no release may change it");
        assert_eq!(address.bytes()[0] & (GROUP | LOCAL), LOCAL);
        assert_ne!(address, MacAddress::of_vm("web", 1));
        assert_ne!(address, MacAddress::of_vm("web1", 0));
    }
}
