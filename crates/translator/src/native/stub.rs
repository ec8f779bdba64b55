//! What stands behind the block, because it is rarely taken.

use std::mem;

use iced_x86::Instruction;

use super::again;
use super::asm::Label;
use super::fields::{T0, field};
use super::translate::{ACCESS, Step, Translator};
use super::vector::Needs;

const RCX: u8 = 1;

/// Code that stands behind the block.
pub(super) struct Stub {
    pub(super) label: Label,
    pub(super) work: Work,
}

pub(super) enum Work {
    Outside(CalledOut),
    /// Looks the page of the stack up, for an access of `size` bytes, and goes on with the host's address at `go`.
    Stack {
        go: Label,
        size: u32,
        write: bool,
        outside: CalledOut,
    },
    /// Looks the page up in the second table, and goes on at `retry` if it is there.
    LookAgain {
        retry: Label,
        slow: Label,
        write: bool,
    },
    /// An operand may lie in two pages; if it is not that, `slow`.
    Crossing {
        slow: Label,
        way: Way,
    },
    /// The steps of a group, which ends at `end`. `aside`, `vectors`: what was so before them; `aside_behind`: and
    /// behind.
    OneByOne {
        steps: Box<[Step]>,
        aside: bool,
        vectors: Needs,
        end: Label,
        aside_behind: bool,
    },
    /// Makes registers live, or leaves.
    MakeLive {
        needs: Needs,
        offset: u32,
        back: Label,
        aside: bool,
        rcx_aside: bool,
    },
    /// The page behind this one is not what it was. RCX was put aside.
    Elsewhere,
    /// Leaves for a place in the same page, asking for a link.
    Near {
        site: u32,
        target: i64,
    },
    /// The same in another page: T0 is the address, flags are aside.
    Far {
        site: u32,
    },
    /// There is no room for another pair.
    Full {
        go: Label,
    },
    /// T0 is where the return at `offset` goes that has no pair; it has moved RSP by `moved`.
    Unpaired {
        offset: u32,
        moved: u16,
    },
    /// Takes registers back from a strip before.
    GiveBack {
        borrowed: Box<[u8]>,
        work: Box<Work>,
    },
    /// Goes on at this place.
    GoOn {
        place: u32,
    },
    /// A branch to `target` that another one leads to, because it is conditional.
    Branch {
        target: i64,
    },
    /// The core is wanted. `aside`: RCX was put aside.
    Wanted {
        target: i64,
        aside: bool,
    },
}

/// An instruction that is executed outside and goes on at `back`.
#[derive(Clone, Copy)]
pub(super) struct CalledOut {
    pub(super) len: u8,
    pub(super) offset: u32,
    pub(super) back: Label,
    /// The flags were put aside.
    pub(super) aside: bool,
    /// What must be live behind it, at `next`.
    pub(super) live: Needs,
    pub(super) next: u32,
}

/// How an instruction runs on a buffer.
pub(super) enum Way {
    /// It loads: in line.
    Load { go: Label },
    /// It stores so many bytes: here, and then goes `back`.
    Store { instr: Box<Instruction>, size: usize, back: Label },
}

/// Bytes of [`Translator::leave_for`].
pub(super) const LEAVE: u32 = 11;

impl Translator<'_> {
    /// Those that are pushed meanwhile, too.
    pub(super) fn all_stubs(&mut self) {
        let mut at = 0;
        while let Some(Stub { label, work }) = self.stubs.get_mut(at) {
            let (label, work) = (*label, mem::replace(work, Work::Elsewhere));
            at += 1;
            self.asm.bind(label);
            self.work(work, self.stubs.get(at).map(|next| next.label));
        }
    }

    /// `behind`: the one that comes directly behind it.
    fn work(&mut self, work: Work, behind: Option<Label>) {
        match work {
            Work::Stack { go, size, write, outside } => {
                self.stack_stub(go, size, write);
                self.outside_stub(outside);
            }
            Work::Outside(outside) => self.outside_stub(outside),
            Work::LookAgain { retry, slow, write } => {
                let again = self.thunks.again;
                self.asm.call_to(if write { again.write } else { again.read });
                self.asm.jump(retry);
                const { assert!(again::JUMP == 5) };
                if !self.compact || behind != Some(slow) {
                    self.asm.jump(slow);
                }
            }
            Work::Crossing { slow, way } => self.crossing_stub(slow, way),
            Work::OneByOne { steps, aside, vectors, end, aside_behind } => {
                (self.aside, self.vectors) = (aside, vectors);
                self.one_by_one(&steps, end, aside_behind);
                (self.aside, self.vectors) = (false, 0);
            }
            Work::MakeLive { needs, offset, back, aside, rcx_aside } => {
                if aside {
                    self.flags_from_field();
                }
                if !rcx_aside {
                    self.asm.store_field(field!(rcx), RCX);
                }
                self.make_live_stub(needs, offset, back);
            }
            Work::Elsewhere => {
                self.address_in_page(T0, self.head.into());
                self.asm.load_field(RCX, field!(rcx));
                self.asm.jump_to(self.thunks.leave);
            }
            Work::Near { site, target } => self.leave_for(target, site),
            Work::Far { site } => {
                self.asm.call_to(self.thunks.leave_far);
                self.asm.raw(&site.to_le_bytes());
            }
            Work::Full { go } => self.full_stub(go),
            Work::Unpaired { offset, moved } => self.unpaired_stub(offset, moved),
            Work::GiveBack { borrowed, work } => {
                self.give_back(&borrowed);
                self.work(*work, behind);
            }
            Work::GoOn { place } => self.asm.jump_to(place),
            Work::Branch { target } => self.branch(target),
            Work::Wanted { target, aside } => {
                if aside {
                    self.asm.load_field(RCX, field!(rcx));
                }
                self.address_in_page(T0, target);
                self.asm.jump_to(self.thunks.leave);
            }
        }
    }

    fn outside_stub(&mut self, outside: CalledOut) {
        let CalledOut { len, offset, back, aside, live, next } = outside;
        if self.compact && live == 0 {
            let thunks = self.thunks;
            self.asm.call_to(if aside { thunks.call_out_aside } else { thunks.call_out });
            return self.outside_data(len, offset | ACCESS, Some(back));
        }
        if aside {
            self.flags_from_field();
        }
        self.call_out(len, offset | ACCESS);
        self.make_live_again(live, next);
        self.asm.jump(back);
    }

    /// Leaves for `target` in this page, in [`LEAVE`] bytes, where the jump at `site` could lead.
    pub(super) fn leave_for(&mut self, target: i64, site: u32) {
        self.asm.call_to(self.thunks.leave_near);
        self.asm.raw(&site.to_le_bytes());
        self.asm.raw(&(target as u16).to_le_bytes());
    }
}
