//! What is saved in the middle of its work: guests that beat (`guest::beat`).

use crate::kit::Kit;
use crate::machine::Guest;
use anyhow::{Result, bail};
use std::path::PathBuf;

/// As `NAME` or `NAME:MIB` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) load: &'static str,
    pub(super) memory_mib: u64,
    has_disk: bool,
}

/// With the memory that they have unless said otherwise, and whether they are on the disk of programs.
const SUBJECTS: [(&str, u64, bool); 5] = [
    ("kernel", 256, false),
    ("redis", 512, true),
    ("web", 512, true),
    ("sqlite3", 512, true),
    ("build", 512, true),
];

impl Subject {
    /// All, unless some are named.
    pub(super) fn named(names: &[String]) -> Result<Vec<Self>> {
        if names.is_empty() {
            return Ok(SUBJECTS.map(Self::of).to_vec());
        }
        names.iter().map(|name| Self::parse(name)).collect()
    }

    pub(super) fn smallest() -> Self {
        Self::of(SUBJECTS[0])
    }

    fn of((load, memory_mib, has_disk): (&'static str, u64, bool)) -> Self {
        Self { load, memory_mib, has_disk }
    }

    fn parse(text: &str) -> Result<Self> {
        let (name, mib) = text.split_once(':').unwrap_or((text, ""));
        let Some(&known) = SUBJECTS.iter().find(|(load, ..)| *load == name) else {
            let known = SUBJECTS.map(|(load, ..)| load).join(", ");
            bail!("no guest is called {name}: there are {known}");
        };
        let mut subject = Self::of(known);
        if !mib.is_empty() {
            subject.memory_mib = mib.parse()?;
        }
        Ok(subject)
    }

    pub(super) fn name(&self) -> String {
        format!("{}-{}", self.load, self.memory_mib)
    }

    /// What of the host's files the guest reads later: nobody writes to it.
    pub(super) fn disk(&self, kit: &Kit) -> Result<Option<PathBuf>> {
        self.has_disk.then(|| kit.loads_disk()).transpose()
    }

    pub(super) fn guest(&self, kit: &Kit) -> Result<Guest> {
        let words = format!("quiet fathom.run=beat:{}", self.load);
        let guest = Guest::new(kit, &words).memory(self.memory_mib);
        Ok(match self.disk(kit)? {
            Some(disk) => guest.disk(&disk),
            None => guest,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_may_have_another_memory() {
        let named = |name: &str| Subject::named(&[name.to_owned()]);
        assert_eq!(named("redis").unwrap()[0].memory_mib, 512);
        assert_eq!(named("kernel:4096").unwrap()[0].name(), "kernel-4096");
        for nonsense in ["dance", "kernel:", "kernel:much"] {
            assert_eq!(named(nonsense).is_ok(), nonsense == "kernel:", "{nonsense}");
        }
        assert_eq!(Subject::named(&[]).unwrap().len(), SUBJECTS.len());
    }
}
