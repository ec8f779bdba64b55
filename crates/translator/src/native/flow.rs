//! The instructions of a path in order, and what is needed where it is left.

use iced_x86::{
    Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, OpKind,
};

use super::branch::target_of;
use super::flags::{ALL, Flags};
use super::options::Options;
use super::select::Kind;
use super::translate::Step;
use crate::decode::ends_block;
use crate::paths::{Fragment, Path, Source};

/// As blocks are decoded.
const OPTIONS: u32 = DecoderOptions::FORCE_RESERVED_NOP;

/// Decodes a page wherever it is asked to, by offsets in it.
pub(super) struct InPage<'a> {
    decoder: Decoder<'a>,
    first: u32,
}

impl<'a> InPage<'a> {
    pub(super) fn new(source: Source<'a>) -> Self {
        Self { decoder: Decoder::new(64, source.bytes, OPTIONS), first: source.first }
    }

    /// `None`: there are no bytes.
    fn go_to(&mut self, offset: u32) -> Option<()> {
        self.decoder.set_position(offset.checked_sub(self.first)? as usize).ok()?;
        self.decoder.set_ip(offset.into());
        Some(())
    }

    fn offset(&self) -> u32 {
        self.first + self.decoder.position() as u32
    }

    /// `None`: it reaches beyond the bytes.
    fn decode(&mut self, instr: &mut Instruction) -> Option<()> {
        self.decoder.decode_out(instr);
        (self.decoder.last_error() != DecoderError::NoMoreBytes).then_some(())
    }
}

/// Makes `steps` the instructions of `path`, up to one that cannot lead to the next. `None`: the bytes are not there, or
/// others than those that it was made from.
pub(super) fn steps(
    path: &Path,
    decoder: &mut InPage<'_>,
    options: Options,
    factory: &mut InstructionInfoFactory,
    steps: &mut Vec<Step>,
) -> Option<()> {
    steps.clear();
    for fragment in &path.fragments {
        let end = fragment.end();
        decoder.go_to(fragment.offset.into())?;
        while decoder.offset() < end {
            let offset = decoder.offset();
            if !leads_on(steps.last(), offset) {
                return Some(());
            }
            if let Some(last) = steps.last_mut() {
                last.goes_on = Some(offset);
            }
            // Where it is to be: it is too large to be moved.
            let step = steps.push_mut(Step::default());
            decoder.decode(&mut step.instr)?;
            if decoder.offset() > end {
                return None;
            }
            step.find_out(options, factory);
        }
    }
    Some(())
}

/// Whether what is at `offset` may run behind `step`.
fn leads_on(step: Option<&Step>, offset: u32) -> bool {
    let Some(step) = step else { return true };
    let through = step.next == offset;
    let taken = || {
        let near = step.instr.op0_kind() == OpKind::NearBranch64;
        near && target_of(&step.instr) == i64::from(offset)
    };
    match step.kind {
        Kind::Jump | Kind::Call => taken(),
        Kind::JumpIf => through || taken(),
        Kind::JumpTo | Kind::CallTo | Kind::Return => false,
        // See `decode_block`: what may change the mode, say, ends a path too.
        Kind::Outside | Kind::System(_) => through && !ends_block(&step.instr),
        _ => through,
    }
}

/// A target, flags that somebody may look at there, and the bytes that say so: none if nothing is known.
pub(super) type Exit = (u32, Flags, Fragment);

/// Flags that somebody may look at behind the exits of a path.
pub(super) struct Exits {
    pub(super) known: Vec<Exit>,
    head: u32,
    /// Some lead to the head, perhaps.
    to_head: bool,
}

impl Exits {
    /// Looks at so many instructions behind each exit, and behind calls, where it is come back to. `known` is memory.
    pub(super) fn of(
        steps: &[Step],
        decoder: &mut InPage<'_>,
        look_ahead: usize,
        options: Options,
        factory: &mut InstructionInfoFactory,
        mut known: Vec<Exit>,
    ) -> Self {
        known.clear();
        let head = steps.first().map_or(0, |step| step.offset);
        let mut exits = Self { known, head, to_head: look_ahead == 0 };
        if look_ahead == 0 {
            return exits;
        }
        for step in steps.iter().filter(|step| !goes_straight_on(step)) {
            let call = matches!(step.kind, Kind::Call | Kind::CallTo);
            let behind = (options.pair_returns && call).then_some(i64::from(step.next));
            for &target in targets(step).iter().chain([&behind]).flatten() {
                let Some(target) = u32::try_from(target).ok().filter(|&target| target < 4096)
                else {
                    continue;
                };
                exits.to_head |= target == head;
                let met = exits.known.iter().any(|&(known, ..)| known == target);
                if !met && target != head {
                    let (flags, end) = flags_at(decoder, target, look_ahead, options, factory);
                    let fragment = Fragment { offset: target as u16, len: (end - target) as u16 };
                    exits.known.push((target, flags, fragment));
                }
            }
        }
        exits
    }

    /// Fills in which flags are needed around each instruction.
    pub(super) fn spread(&self, steps: &mut [Step], forget: bool) {
        // A loop: what is needed at the head is known better the second time.
        let mut at_head = ALL;
        for _ in 0..if self.to_head { 2 } else { 1 } {
            let mut after = ALL;
            for step in steps.iter_mut().rev() {
                step.after = if goes_straight_on(step) {
                    after
                } else if step.goes_on.is_some() || can_go_on(step) {
                    let flags = |&target: &i64| self.at(target, at_head);
                    let left =
                        targets(step).iter().flatten().map(flags).fold(0, |all, one| all | one);
                    left | if step.goes_on.is_some() { after } else { 0 }
                } else {
                    ALL
                };
                if !forget {
                    step.after = ALL;
                }
                after = if forget { step.effects.before(step.after) } else { ALL };
                step.before = after;
            }
            at_head = after;
        }
    }

    /// Targets, and flags that are needed there.
    pub(super) fn flags(&self) -> impl Iterator<Item = (u32, Flags)> {
        self.known.iter().map(|&(target, flags, _)| (target, flags))
    }

    fn at(&self, target: i64, at_head: Flags) -> Flags {
        if target == i64::from(self.head) {
            return at_head;
        }
        let known = self.known.iter().find(|&&(known, ..)| i64::from(known) == target);
        known.map_or(ALL, |&(_, flags, _)| flags)
    }
}

/// Whether all places that it leads to are [`targets`].
fn can_go_on(step: &Step) -> bool {
    match step.kind {
        Kind::JumpTo | Kind::CallTo | Kind::Return => false,
        Kind::Outside | Kind::System(_) => step.instr.flow_control() == FlowControl::Next,
        _ => true,
    }
}

/// Whether the path is never left at `step`.
fn goes_straight_on(step: &Step) -> bool {
    let branch = matches!(step.kind, Kind::Jump | Kind::JumpIf | Kind::Call | Kind::CallTo);
    !branch && step.goes_on == Some(step.next)
}

/// Where the path is left at `step` by a branch whose target is known.
fn targets(step: &Step) -> [Option<i64>; 2] {
    let on_path = step.goes_on.map(i64::from);
    let through = i64::from(step.next);
    let targets = match step.kind {
        Kind::Jump | Kind::Call => [Some(target_of(&step.instr)), None],
        Kind::JumpIf => [Some(target_of(&step.instr)), Some(through)],
        _ => [Some(through), None],
    };
    targets.map(|target| target.filter(|_| target != on_path))
}

/// Flags that somebody may look at from `at` on, and the end of the bytes that say so.
fn flags_at(
    decoder: &mut InPage<'_>,
    at: u32,
    count: usize,
    options: Options,
    factory: &mut InstructionInfoFactory,
) -> (Flags, u32) {
    if decoder.go_to(at).is_none() {
        return (ALL, at);
    }
    let (mut open, mut needed, mut end) = (ALL, 0, at);
    let mut step = Step::default();
    for _ in 0..count {
        if decoder.decode(&mut step.instr).is_none() || step.instr.is_invalid() {
            break;
        }
        step.find_out(options, factory);
        needed |= step.effects.reads & open;
        open &= !step.effects.kills;
        end = step.next;
        if needed == ALL || open == 0 || step.instr.flow_control() != FlowControl::Next {
            break;
        }
    }
    let flags = needed | open;
    // Nothing was learnt.
    if flags == ALL { (ALL, at) } else { (flags, end) }
}
