//! The contexts for user accesses: one for each of the address spaces that ran last.

use super::context::Context;

/// Address spaces whose translations are kept. Linux takes turns with six identifiers, too.
const SPACES: usize = 8;

/// See the module.
#[derive(Default)]
pub(super) struct Spaces {
    known: Vec<Space>,
    /// Which of them is entered.
    entered: Option<usize>,
    /// Times that one was entered.
    clock: u64,
}

struct Space {
    asid: u64,
    /// When it was last entered.
    used: u64,
    context: Context,
}

impl Spaces {
    /// The context of `asid`, the address space that is in use until `leave`.
    #[inline]
    pub(super) fn enter(&mut self, asid: u64) -> &mut Context {
        let place = match self.entered {
            Some(place) => place,
            None => self.place(asid),
        };
        &mut self.known[place].context
    }

    /// That of the last `enter`, if there was one since `leave`.
    pub(super) fn entered(&self) -> Option<&Context> {
        self.entered.map(|place| &self.known[place].context)
    }

    pub(super) fn leave(&mut self) {
        self.entered = None;
    }

    pub(super) fn find(&mut self, asid: u64) -> Option<&mut Context> {
        let space = self.known.iter_mut().find(|space| space.asid == asid);
        space.map(|space| &mut space.context)
    }

    pub(super) fn contexts(&mut self) -> impl Iterator<Item = &mut Context> {
        self.known.iter_mut().map(|space| &mut space.context)
    }

    #[cold]
    fn place(&mut self, asid: u64) -> usize {
        let known = self.known.iter().position(|space| space.asid == asid);
        let place = known.unwrap_or_else(|| self.take_in(asid));
        self.clock += 1;
        self.known[place].used = self.clock;
        self.entered = Some(place);
        place
    }

    /// A place for an address space that has none: a new one, else that of the one entered least recently.
    fn take_in(&mut self, asid: u64) -> usize {
        if self.known.len() < SPACES {
            self.known.push(Space { asid, used: 0, context: Context::new() });
            return self.known.len() - 1;
        }
        let oldest = (0..SPACES).min_by_key(|&place| self.known[place].used);
        let place = oldest.expect("there are places");
        self.known[place].asid = asid;
        self.known[place].context.clear();
        place
    }
}
