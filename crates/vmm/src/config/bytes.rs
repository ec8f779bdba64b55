//! Sizes as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes.
///
/// Reads `512M`, `512MiB`, `1g`, `64 KiB` and plain bytes (`4096`); suffixes are powers of 1024. Writes the
/// largest suffix that loses nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// Why a size could not be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BytesError {
    /// No digits where there should be some, or an unknown suffix.
    #[error("`{0}` is not a size: write a whole number and K, M, G or T, such as 512M")]
    Malformed(String),
    /// More than 64 bits of bytes.
    #[error("`{0}` is more bytes than 64 bits can count: write a smaller size")]
    TooLarge(String),
}

const SUFFIXES: [(&str, u32); 4] = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];

impl FromStr for Bytes {
    type Err = BytesError;

    fn from_str(text: &str) -> Result<Self, BytesError> {
        let trimmed = text.trim();
        let end = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (digits, suffix) = trimmed.split_at(end);
        let shift = shift_of(suffix.trim_start());
        let (false, Some(shift)) = (digits.is_empty(), shift) else {
            return Err(BytesError::Malformed(text.to_owned()));
        };
        let too_large = || BytesError::TooLarge(text.to_owned());
        // All digits: the only way to fail is to overflow.
        let number: u64 = digits.parse().map_err(|_| too_large())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(too_large)
    }
}

fn shift_of(suffix: &str) -> Option<u32> {
    let upper = suffix.to_ascii_uppercase();
    if upper.is_empty() || upper == "B" {
        return Some(0);
    }
    let (_, shift) = SUFFIXES.iter().find(|(letter, _)| upper.starts_with(letter))?;
    matches!(&upper[1..], "" | "B" | "IB").then_some(*shift)
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (letter, shift) in SUFFIXES {
            if self.0 >> shift > 0 && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{letter}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, bytes) in [
            ("4096", 4096),
            ("4096B", 4096),
            ("64 KiB", 65_536),
            ("512M", 512 << 20),
            ("512mb", 512 << 20),
            ("1G", 1 << 30),
            ("1GiB", 1 << 30),
            (" 2T ", 2 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest() {
        for text in ["", "M", "-1M", "1.5G", "12Q", "1Gi", "0x10", "1M2", "1 2", "１M", "1é", "+5"]
        {
            assert_eq!(text.parse::<Bytes>(), Err(BytesError::Malformed(text.to_owned())));
        }
        for text in ["16777216T", "99999999999999999999", "18446744073709551616"] {
            assert_eq!(text.parse::<Bytes>(), Err(BytesError::TooLarge(text.to_owned())));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_can_be_read(bytes: u64) {
            prop_assert_eq!(Bytes(bytes).to_string().parse(), Ok(Bytes(bytes)));
        }

        #[test]
        fn any_text_is_answered(text: String) {
            let _ = text.parse::<Bytes>();
        }
    }
}
