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

/// Whether this is on KVM and has not passed there yet, which is told. `FATHOM_KVM=all` has it tried.
pub(crate) fn is_not_yet_on_kvm(what: &str) -> bool {
    let is_left_out = Engine::under_test() == Engine::Kvm && asked_of_kvm() != "all";
    if is_left_out {
        announce(&format!("*** NOT TESTED on KVM yet: {what}: FATHOM_KVM=all tries it ***"));
    }
    is_left_out
}

/// Whether this takes minutes in the lab and `FATHOM_KVM=short` leaves such out, as continuous integration does.
pub(crate) fn is_long_on_kvm(what: &str) -> bool {
    let is_left_out = Engine::under_test() == Engine::Kvm && asked_of_kvm() == "short";
    if is_left_out {
        announce(&format!("*** NOT TESTED on KVM here: {what}: cargo xtask lab has it ***"));
    }
    is_left_out
}

/// How much of what is tested on KVM: `short`, `all`, or nothing, which is what has passed there.
fn asked_of_kvm() -> String {
    std::env::var("FATHOM_KVM").unwrap_or_default()
}

/// Prints whether the test passes or not: the test runner keeps what `println` prints to itself.
pub(crate) fn announce(line: &str) {
    // Nobody to tell is no failure of the VM.
    let _ = writeln!(std::io::stderr(), "{line}");
}
