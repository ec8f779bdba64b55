//! What substrates are made of: guests whose service waits for work (`guest::beat`), and their disks.

use crate::kit::Kit;
use crate::machine::Guest;
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::MetadataExt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) load: &'static str,
    pub(super) memory_mib: u64,
    has_disk: bool,
}

const SUBJECTS: [Subject; 3] = [
    Subject { load: "kernel", memory_mib: 256, has_disk: false },
    Subject { load: "web", memory_mib: 256, has_disk: true },
    Subject { load: "redis", memory_mib: 512, has_disk: true },
];

impl Subject {
    /// All, unless some are named.
    pub(super) fn named(names: &[String]) -> Result<Vec<Self>> {
        if names.is_empty() {
            return Ok(SUBJECTS.to_vec());
        }
        names.iter().map(|name| Self::parse(name)).collect()
    }

    pub(super) fn smallest() -> Self {
        SUBJECTS[0]
    }

    fn parse(name: &str) -> Result<Self> {
        let Some(known) = SUBJECTS.iter().find(|subject| subject.load == name) else {
            let known = SUBJECTS.map(|subject| subject.load).join(", ");
            bail!("no guest is called {name}: there are {known}");
        };
        Ok(*known)
    }

    pub(super) fn name(&self) -> String {
        format!("{}-{}", self.load, self.memory_mib)
    }

    pub(super) fn guest(&self, kit: &Kit) -> Result<Guest> {
        let words = format!("quiet fathom.run=beat:{}-idle", self.load);
        let guest = Guest::new(kit, &words).memory(self.memory_mib);
        Ok(match self.has_disk {
            true => guest.disk(&kit.loads_disk()?),
            false => guest,
        })
    }

    /// What its disk template takes: kernel, initial RAM disk and, where it has one, the disk's image.
    pub(super) fn template_bytes(&self, kit: &Kit) -> Result<u64> {
        let mut files = vec![kit.kernel().image(), kit.initramfs()];
        if self.has_disk {
            files.push(kit.loads_disk()?);
        }
        let blocks = files.iter().map(|file| {
            let found =
                fs::metadata(file).with_context(|| format!("look at {}", file.display()))?;
            Ok(found.blocks())
        });
        blocks.sum::<Result<u64>>().map(|blocks| blocks * 512)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_have_names() {
        assert_eq!(Subject::named(&["web".to_owned()]).unwrap()[0].name(), "web-256");
        assert!(Subject::named(&["dance".to_owned()]).is_err());
        assert_eq!(Subject::named(&[]).unwrap().len(), SUBJECTS.len());
    }
}
