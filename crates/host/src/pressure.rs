//! How much processes of this host wait for memory, by Linux's pressure stall information (Documentation/accounting/psi.rst).

use serde::{Deserialize, Serialize};

const PATH: &str = "/proc/pressure/memory";

/// Of time, the part in which somebody waited for memory: 0 to 1, over the last ten seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pressure {
    /// Some process that could have run.
    pub some: f64,
    /// All that could have.
    pub full: f64,
    /// `some` since the host started: seconds.
    pub some_seconds: f64,
    /// `full` since then.
    pub full_seconds: f64,
}

impl Pressure {
    /// Now; `None`: this kernel does not say (it was built or started without).
    pub(crate) fn read() -> Option<Self> {
        Self::parse(&std::fs::read_to_string(PATH).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let line = |kind: &str| -> Option<(f64, f64)> {
            let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
            let value = |key: &str| -> Option<f64> {
                let found = line.split(' ').find_map(|word| word.strip_prefix(key))?;
                found.parse().ok().filter(|value| (0.0..f64::INFINITY).contains(value))
            };
            // In per cent, and in microseconds.
            Some(((value("avg10=")? / 100.0).min(1.0), value("total=")? / 1e6))
        };
        let (some, some_seconds) = line("some")?;
        let (full, full_seconds) = line("full")?;
        Some(Self { some, full, some_seconds, full_seconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_says_is_read() {
        let text = "some avg10=12.50 avg60=3.00 avg300=0.10 total=3082737\n\
                    full avg10=0.50 avg60=0.00 avg300=0.00 total=1741692\n";
        let expected =
            Pressure { some: 0.125, full: 0.005, some_seconds: 3.082_737, full_seconds: 1.741_692 };
        assert_eq!(Pressure::parse(text), Some(expected));
        for wrong in
            ["", "some avg10=1", "some avg10=1 total=2\nfull avg10=x total=1", "some\nfull"]
        {
            assert_eq!(Pressure::parse(wrong), None, "{wrong}");
        }
        assert_eq!(Pressure::parse("some avg10=-1 total=2\nfull avg10=NaN total=1"), None);
    }
}
