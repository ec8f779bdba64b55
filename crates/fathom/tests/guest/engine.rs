//! The engine that the guests of these tests run on.

use std::fmt::{self, Display, Formatter};
use std::io::Write;

/// One of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Engine {
    Kvm,
    Translate,
}

impl Engine {
    /// The one that `FATHOM_ENGINE` asks for.
    pub(crate) fn under_test() -> Self {
        match std::env::var("FATHOM_ENGINE").as_deref() {
            Err(_) | Ok("translate") => Self::Translate,
            Ok("kvm") => Self::Kvm,
            Ok(other) => panic!("FATHOM_ENGINE={other}: write kvm or translate"),
        }
    }

    pub(crate) fn other(self) -> Self {
        match self {
            Self::Kvm => Self::Translate,
            Self::Translate => Self::Kvm,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Translate => "translate",
        }
    }
}

impl Display for Engine {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Prints whether the test passes or not: the test runner keeps what `println` prints to itself.
pub(crate) fn announce(line: &str) {
    // Nobody to tell is no failure of the VM.
    let _ = writeln!(std::io::stderr(), "{line}");
}
