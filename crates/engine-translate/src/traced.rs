//! Which pages of the TLB lead to frames whose accesses are traced, so that these alone can be forgotten.

/// Pages remembered at most. Who looks up more between two revocations pays for a whole flush.
const MOST: usize = 4096;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Traced {
    pages: Vec<u64>,
    incomplete: bool,
}

impl Traced {
    /// The page of `va` was put into the TLB, and leads to a traced frame. Perhaps not for the first time.
    #[cold]
    pub(crate) fn remember(&mut self, va: u64) {
        if self.pages.len() < MOST {
            self.pages.push(va);
        } else {
            self.incomplete = true;
        }
    }

    /// Whether there were too many.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// What was remembered, which is forgotten.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = u64> {
        self.incomplete = false;
        self.pages.drain(..)
    }

    /// The TLB is empty.
    pub(crate) fn clear(&mut self) {
        self.pages.clear();
        self.incomplete = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_can_be_remembered_is_told() {
        let mut traced = Traced::default();
        (0..MOST as u64).for_each(|page| traced.remember(page << 12));
        assert!(!traced.is_incomplete());
        traced.remember(7);
        assert!(traced.is_incomplete());
        traced.clear();
        traced.remember(0x1000);
        assert_eq!(
            (traced.is_incomplete(), traced.drain().collect::<Vec<_>>()),
            (false, vec![0x1000])
        );
        assert_eq!(traced.drain().count(), 0);
    }
}
