//! Address spaces as vCPUs load them: a program each (Antfarm).

use std::collections::HashMap;
use std::time::Duration;

use memory::Frame;
use serde::Serialize;

/// Spaces that are kept: a guest that loads more has the longest unused ones forgotten.
const SPACES_MAX: usize = 1 << 14;

/// An address space of the guest's users, seen from outside: a process, or one's program before it began another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ProcessSeen {
    /// Guest physical address of the root of its page tables.
    pub root: u64,
    /// When a vCPU first went by it, since the machine began to tell.
    pub first: Duration,
    /// When one was last seen to.
    pub last: Duration,
    /// Frames that it maps for users, as of the last complete walk; each mapping counts.
    pub frames: u64,
    /// Its page tables for users, the root included.
    pub tables: u32,
}

#[derive(Clone, Copy, Debug)]
struct Space {
    first: Duration,
    last: Duration,
    /// Of the last walk that came to an end.
    frames: u64,
    tables: u32,
    /// What was found on the walk that goes on.
    counting: (u64, u32),
}

/// The spaces that are there, by root.
#[derive(Debug, Default)]
pub(super) struct Spaces {
    spaces: HashMap<u32, Space>,
    newest: Option<Frame>,
    created: u64,
    gone: u64,
}

impl Spaces {
    /// A vCPU goes by `root`.
    pub(super) fn loaded(&mut self, root: Frame, at: Duration) {
        self.newest = Some(root);
        self.found(root, at);
    }

    /// `root` was met, though perhaps no vCPU goes by it now.
    pub(super) fn found(&mut self, root: Frame, at: Duration) {
        if let Some(space) = self.spaces.get_mut(&root.0) {
            space.last = at;
            return;
        }
        if self.spaces.len() >= SPACES_MAX
            && let Some(&oldest) =
                self.spaces.iter().min_by_key(|(_, space)| space.last).map(|(root, _)| root)
        {
            self.spaces.remove(&oldest);
        }
        let space = Space { first: at, last: at, frames: 0, tables: 0, counting: (0, 0) };
        self.spaces.insert(root.0, space);
    }

    /// The root that was loaded last.
    pub(super) fn newest(&self) -> Option<Frame> {
        self.newest
    }

    pub(super) fn roots(&self) -> Vec<Frame> {
        let mut roots: Vec<_> = self.spaces.keys().copied().map(Frame).collect();
        roots.sort_unstable();
        roots
    }

    /// A walk met a table of `root`'s with so many mappings for users.
    pub(super) fn count(&mut self, root: Frame, frames: u64) {
        if let Some(Space { counting: (sum, tables), .. }) = self.spaces.get_mut(&root.0) {
            *sum = sum.saturating_add(frames);
            *tables = tables.saturating_add(1);
        }
    }

    /// All tables of `root` were met.
    pub(super) fn counted(&mut self, root: Frame) {
        let Some(space) = self.spaces.get_mut(&root.0) else { return };
        // From nothing for users to something: a program has begun.
        self.created += u64::from(space.frames == 0 && space.counting.0 != 0);
        (space.frames, space.tables) = std::mem::take(&mut space.counting);
    }

    /// What is at `root` is no longer a root of what was there.
    pub(super) fn ended(&mut self, root: Frame) {
        if let Some(space) = self.spaces.remove(&root.0) {
            self.gone += u64::from(space.frames != 0);
        }
    }

    /// Spaces that were met with something in them, from the beginning on, and those of them that are gone.
    pub(super) fn created_and_gone(&self) -> (u64, u64) {
        (self.created, self.gone)
    }

    /// Those with something for users in them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Frame, Duration, Duration, u64, u32)> + '_ {
        let live = self.spaces.iter().filter(|(_, space)| space.frames != 0);
        live.map(|(&root, space)| {
            (Frame(root), space.first, space.last, space.frames, space.tables)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_a_space_with_something_in_it() {
        let mut spaces = Spaces::default();
        for root in [3, 4] {
            spaces.loaded(Frame(root), Duration::from_secs(root.into()));
        }
        spaces.count(Frame(3), 7);
        spaces.count(Frame(3), 1);
        spaces.roots().into_iter().for_each(|root| spaces.counted(root));
        let seconds = Duration::from_secs;
        let all: Vec<_> = spaces.iter().collect();
        assert_eq!(all, [(Frame(3), seconds(3), seconds(3), 8, 2)]);
        assert_eq!(spaces.created_and_gone(), (1, 0));
        spaces.ended(Frame(3));
        spaces.ended(Frame(4));
        assert_eq!((spaces.created_and_gone(), spaces.iter().count()), ((1, 1), 0));
    }

    #[test]
    fn a_guest_with_very_many_has_the_oldest_forgotten() {
        let mut spaces = Spaces::default();
        for root in 0..SPACES_MAX as u32 + 9 {
            spaces.loaded(Frame(root), Duration::from_millis(root.into()));
        }
        assert_eq!(spaces.roots().len(), SPACES_MAX);
        assert_eq!(spaces.roots()[0], Frame(9));
    }
}
