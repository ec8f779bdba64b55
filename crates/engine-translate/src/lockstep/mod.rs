//! Generated code beside the interpreter: every path that has code is executed by both, and what they leave
//! must be the same.
//!
//! ```text
//!   registers kept -> the interpreter runs the path, until it leaves it; its stores go into the journal, memory stays as it is
//!                  -> registers put back -> the code runs, and writes memory
//!                  -> registers, flags, vector state, fault: equal?  memory: as the journal says?
//! ```
//!
//! What must not happen twice (devices, ports, clocks, privileged state, stores to pages with code) stops either
//! before it happens; the interpreter then executes that instruction alone. Memory is not put back, so that
//! devices, which look at the guest's queues at any time, never see it go back, but where there was a difference:
//! a device may have written what both have read, and the piece may have written page tables that it used, which
//! a walk does not look for in the journal. Then both run again a few times, the last times with the
//! interpreter's stores made and taken back.
//!
//! Not compared: accessed and dirty bits (the first of the two sets them, before the other looks), what is in the
//! TLB, flags that nobody looks at (where the code does not keep them), and bytes farther than a line from those
//! that the interpreter has written.

mod access;
mod difference;
mod journal;
mod masks;
mod piece;
mod state;

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use engine::EngineError;
use translator::native::{self, Lane, Left};
use translator::paths::Path;
use translator::{Block, Outcome};
use x86::Exception;

use crate::system::{Core, System};
use difference::Difference;
pub(crate) use journal::Journal;
use masks::Masks;
use piece::Piece;
use state::State;

/// Pieces that are kept at least.
const PIECES: usize = 1 << 16;

/// How often a piece is executed by both before it counts as a difference.
const ATTEMPTS: u32 = 8;
/// From this attempt on the interpreter's stores are made.
const THROUGH: u32 = 4;

/// What was done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Verified {
    /// Pieces that were executed by both.
    pub(crate) blocks: u64,
    /// Instructions in them.
    pub(crate) instructions: u64,
    /// Instructions that were executed once because they must not be executed twice.
    pub(crate) alone: u64,
    /// Pieces that were executed by both once more.
    pub(crate) again: u64,
    /// Pieces in which more than one block was executed.
    pub(crate) joined: u64,
}

impl Verified {
    /// By their names in a report.
    pub(crate) fn named(self) -> [(&'static str, u64); 5] {
        [
            ("blocks_verified", self.blocks),
            ("blocks_verified_again", self.again),
            ("paths_verified", self.joined),
            ("instructions_verified", self.instructions),
            ("instructions_not_verified", self.alone),
        ]
    }
}

/// Compares what one vCPU executes.
pub(crate) struct Lockstep {
    pub(crate) verified: Verified,
    /// By physical address.
    pieces: HashMap<u64, Arc<Piece>>,
    /// When there are so many, those go that are not valid any more.
    full: usize,
    flags: Masks,
    /// Before the piece.
    before: Box<State>,
    /// What the interpreter has made of it.
    expected: Box<State>,
}

/// How one of the two came to its end.
struct End {
    outcome: Outcome,
    /// What it raised, if it did, and whether that is #SS if it is for an address that is none.
    fault: Option<(Exception, bool, bool)>,
    /// It stopped before what must not be executed twice.
    refused: bool,
    /// The next instruction is the interpreter's.
    interpret: bool,
}

/// One attempt.
enum Found {
    Same,
    /// The code went no further than so many instructions.
    Shorter(usize),
    Different(Difference),
}

impl Lockstep {
    /// For `core`, with code as `options` say, by a policy that looks at so many instructions behind exits.
    pub(crate) fn new(core: &Core, options: native::Options, look_ahead: usize) -> Self {
        let state = || Box::new(State::of(&core.cpu));
        Self {
            verified: Verified::default(),
            pieces: HashMap::new(),
            full: PIECES,
            flags: Masks::new(options, look_ahead),
            before: state(),
            expected: state(),
        }
    }

    /// `block` has the code of the first `count` instructions of `path`, which lies in the page `bytes`.
    pub(crate) fn keep(
        &mut self,
        block: &Arc<Block<System>>,
        path: Path,
        bytes: &[u8],
        count: usize,
    ) {
        if self.pieces.len() >= self.full {
            self.pieces.retain(|_, piece| piece.block.is_valid());
            self.full = PIECES.max(2 * self.pieces.len());
        }
        let piece = Piece::new(Arc::clone(block), path, bytes, count);
        self.pieces.insert(block.start, Arc::new(piece));
    }

    /// Runs `block`, to which RIP points and which has code, as `lane` would.
    pub(crate) fn run(
        &mut self,
        core: &mut Core,
        lane: &mut Lane,
        block: &Arc<Block<System>>,
    ) -> Option<Left> {
        let piece = self.pieces.get(&block.start).filter(|piece| Arc::ptr_eq(&piece.block, block));
        let Some(piece) = piece.map(Arc::clone) else {
            // Others take its place.
            self.verified.alone += 1;
            return Some(left(Outcome::Retry, true));
        };
        self.before.keep(&core.cpu);
        let mut limit = piece.len();
        let mut last = None;
        for attempt in 0..ATTEMPTS {
            let expected = record(core, &piece, limit, attempt >= THROUGH);
            self.expected.keep(&core.cpu);
            self.before.put_back(&mut core.cpu);
            let done = self.expected.retired - self.before.retired;
            if expected.refused && done == 0 {
                self.verified.alone += 1;
                return Some(left(Outcome::Retry, true));
            }
            if attempt >= THROUGH {
                take_back(core);
            }
            let (found, left) = repeat(core, lane, block)?;
            match self.compare(core, &piece, limit, &expected, &found) {
                Found::Same => {
                    self.verified.blocks += 1;
                    self.verified.instructions += done;
                    self.verified.joined += u64::from(piece.joins(done as usize));
                    return Some(Left { interpret: left.interpret || found.refused, ..left });
                }
                Found::Shorter(reached) => limit = reached,
                Found::Different(difference) => {
                    self.verified.again += 1;
                    last = Some(difference);
                }
            }
            take_back(core);
            self.before.put_back(&mut core.cpu);
            if !block.is_valid() {
                // A device has written it: there is another block now.
                return Some(self::left(Outcome::Retry, false));
            }
            // Whoever writes what is read here may come to an end.
            thread::sleep(Duration::from_micros(50 << attempt));
        }
        let difference = last.map(|difference| difference.tell(core, &piece));
        let line = difference.unwrap_or_else(|| "translated code stops early".into());
        core.machine.broken = Some(Err(EngineError::Bug(line)));
        Some(left(Outcome::Fault, false))
    }

    fn compare(
        &mut self,
        core: &mut Core,
        piece: &Arc<Piece>,
        limit: usize,
        expected: &End,
        found: &End,
    ) -> Found {
        let head = self.before.rip();
        if found.interpret
            && let Some(count) = piece.before(head, core.cpu.rip()).filter(|&count| count < limit)
        {
            // It has left an instruction to the interpreter, which has done it or raised its fault.
            return Found::Shorter(count);
        }
        let done = (self.expected.retired - self.before.retired) as usize;
        let flags = match self.expected.rflags == core.cpu.rflags {
            true => u64::MAX,
            false => self.flags.that_count(core, piece, done, head),
        };
        // SAFETY: the pages were translated for this piece, and no translation is taken back inside.
        let memory = unsafe { core.machine.journal.differing() }.is_empty();
        if expected.allows(found) && memory && self.expected.is_in(&core.cpu, flags) {
            return Found::Same;
        }
        Found::Different(Difference::new(
            core,
            (&self.before, &self.expected),
            (expected, found),
            flags,
        ))
    }
}

impl End {
    fn new(core: &Core, outcome: Outcome, on_stack: bool, refused: bool, interpret: bool) -> Self {
        let machine = &core.machine;
        let address = machine.fault_is_address;
        let stack = address && (on_stack || machine.fault_on_stack);
        let fault = (outcome == Outcome::Fault).then_some((machine.fault, address, stack));
        Self { outcome, fault, refused, interpret }
    }

    /// Whether generated code may end as `found` where the interpreter has ended so.
    fn allows(&self, found: &Self) -> bool {
        if found.interpret {
            return self.outcome == Outcome::Done;
        }
        (self.outcome, self.fault, self.refused) == (found.outcome, found.fault, found.refused)
    }
}

/// The interpreter runs at most `limit` instructions of `piece`; `through`: its stores are made.
fn record(core: &mut Core, piece: &Piece, limit: usize, through: bool) -> End {
    if through {
        // What walks find anew is what the piece has written.
        core.machine.tlb.flush();
    }
    begin(core);
    core.machine.journal.record(through);
    core.machine.tlb.set_slow(true);
    let start = core.cpu.rip();
    let outcome = piece.interpret(core, limit);
    let align = core.machine.align;
    core.machine.tlb.set_slow(align);
    let refused = core.machine.journal.end();
    if through {
        // SAFETY: what was recorded was translated for writing, and no translation is taken back inside.
        unsafe { core.machine.journal.take_marks() };
    }
    let on_stack = outcome == Outcome::Fault && piece.uses_stack(start, core.cpu.rip());
    End::new(core, outcome, on_stack, refused, false)
}

/// The code runs.
fn repeat(core: &mut Core, lane: &mut Lane, block: &Block<System>) -> Option<(End, Left)> {
    begin(core);
    core.machine.journal.repeat();
    let left = lane.run(core, block);
    let refused = core.machine.journal.end();
    let left = left?;
    Some((End::new(core, left.outcome, left.on_stack, refused, left.interpret), left))
}

fn begin(core: &mut Core) {
    core.machine.end = false;
    core.machine.no_trap = false;
    core.machine.fault_on_stack = false;
}

/// Gives memory that was written since the record began its old values. What was walked meanwhile is forgotten:
/// page tables may have been among it.
fn take_back(core: &mut Core) {
    // SAFETY: as in `compare`; what was recorded was translated for writing.
    unsafe { core.machine.journal.undo() };
    core.machine.tlb.flush();
}

fn left(outcome: Outcome, interpret: bool) -> Left {
    Left { outcome, on_stack: false, interpret }
}
