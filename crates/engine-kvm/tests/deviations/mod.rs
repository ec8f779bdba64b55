//! The cases of the suite that KVM cannot pass, or not on the lab's processor: see `list.txt`.

use std::str::FromStr;

/// A line of the list.
#[derive(Debug)]
pub(crate) struct Deviation {
    pub(crate) case: &'static str,
    pub(crate) kind: Kind,
    pub(crate) why: &'static str,
}

/// Whose deviation it is and how it is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Bare,
    Follows,
    Chance,
    Race,
    Kvm,
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        Ok(match word {
            "bare" => Self::Bare,
            "follows" => Self::Follows,
            "chance" => Self::Chance,
            "race" => Self::Race,
            "kvm" => Self::Kvm,
            other => return Err(format!("{other:?} is no kind")),
        })
    }
}

impl Deviation {
    /// Whether the case is to fail.
    #[allow(dead_code, reason = "the tests that include this file need different parts")]
    pub(crate) fn must_fail(&self) -> bool {
        matches!(self.kind, Kind::Bare | Kind::Follows)
    }
}

/// The whole list.
pub(crate) fn all() -> Vec<Deviation> {
    let lines = include_str!("list.txt").lines();
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let list: Vec<_> = lines.map(deviation).collect();
    let cases = engine::conformance::cases();
    for Deviation { case, .. } in &list {
        assert!(cases.iter().any(|known| known.name == *case), "list.txt: there is no {case}");
    }
    list
}

fn deviation(line: &'static str) -> Deviation {
    let mut parts = line.splitn(3, ' ');
    let mut part = || parts.next().unwrap_or_else(|| panic!("list.txt: {line}: a part is missing"));
    let (case, kind, why) = (part(), part(), part());
    Deviation { case, kind: kind.parse().unwrap_or_else(|why| panic!("list.txt: {why}")), why }
}

/// Those that hold on this host: the lab's are left out on any other.
#[allow(dead_code, reason = "the tests that include this file need different parts")]
pub(crate) fn here() -> Vec<Deviation> {
    let mut list = all();
    list.retain(|deviation| deviation.kind == Kind::Kvm || is_lab());
    list
}

/// Whether this host's processor is QEMU's translator, by its name.
#[allow(dead_code, reason = "the tests that include this file need different parts")]
pub(crate) fn is_lab() -> bool {
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    processors.lines().any(|line| line.starts_with("model name") && line.contains("QEMU TCG CPU"))
}
