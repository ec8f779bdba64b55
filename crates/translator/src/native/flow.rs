//! The instructions of a path in order, and what is needed where it is left.

use iced_x86::{
    Decoder, DecoderError, DecoderOptions, FlowControl, InstructionInfoFactory, OpKind,
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

/// Makes `steps` the instructions of `path`, up to one that cannot lead to the next. `None`: the bytes are not there, or
/// others than those that it was made from.
pub(super) fn steps(
    path: &Path,
    source: Source<'_>,
    options: Options,
    factory: &mut InstructionInfoFactory,
    steps: &mut Vec<Step>,
) -> Option<()> {
    steps.clear();
    for fragment in &path.fragments {
        let bytes = source.part(fragment.offset.into(), fragment.end());
        if bytes.len() != usize::from(fragment.len) {
            return None;
        }
        let mut decoder = Decoder::with_ip(64, bytes, fragment.offset.into(), OPTIONS);
        while decoder.can_decode() {
            let instr = decoder.decode();
            if decoder.last_error() == DecoderError::NoMoreBytes {
                return None;
            }
            let step = Step::new(instr, options, factory);
            if !leads_on(steps.last(), step.offset) {
                return Some(());
            }
            if let Some(last) = steps.last_mut() {
                last.goes_on = Some(step.offset);
            }
            steps.push(step);
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

/// Flags that somebody may look at behind the exits of a path.
pub(super) struct Exits {
    /// By target: flags, and the bytes that were looked at.
    known: Vec<(u32, Flags, Fragment)>,
    head: u32,
}

impl Exits {
    /// Looks at so many instructions behind each exit, and behind calls, where it is come back to.
    pub(super) fn of(
        steps: &[Step],
        source: Source<'_>,
        look_ahead: usize,
        options: Options,
        factory: &mut InstructionInfoFactory,
    ) -> Self {
        let head = steps.first().map_or(0, |step| step.offset);
        let mut exits = Self { known: Vec::new(), head };
        if look_ahead == 0 {
            return exits;
        }
        let behind = |step: &Step| {
            let call = matches!(step.kind, Kind::Call | Kind::CallTo);
            (options.pair_returns && call).then_some(i64::from(step.next))
        };
        let targets = steps.iter().flat_map(targets);
        for target in targets.chain(steps.iter().filter_map(behind)) {
            let Some(target) = u32::try_from(target).ok().filter(|&target| target < 4096) else {
                continue;
            };
            let met = exits.known.iter().any(|&(known, ..)| known == target);
            if !met && target != head {
                let (flags, end) = flags_at(source, target, look_ahead, options, factory);
                let fragment = Fragment { offset: target as u16, len: (end - target) as u16 };
                exits.known.push((target, flags, fragment));
            }
        }
        exits
    }

    /// Fills in which flags are needed around each instruction.
    pub(super) fn spread(&self, steps: &mut [Step], forget: bool) {
        // A loop: what is needed at the head is known better the second time.
        let mut at_head = ALL;
        for _ in 0..2 {
            let mut after = ALL;
            for step in steps.iter_mut().rev() {
                let flags = |target| self.at(target, at_head);
                let left = targets(step).map(flags).fold(0, |all, flags| all | flags);
                step.after = if step.goes_on.is_some() {
                    after | left
                } else if can_go_on(step) {
                    left
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

    /// The bytes that were looked at.
    pub(super) fn watched(&self) -> Vec<Fragment> {
        self.known.iter().map(|&(.., bytes)| bytes).filter(|bytes| bytes.len > 0).collect()
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

/// Where the path is left at `step` by a branch whose target is known.
fn targets(step: &Step) -> impl Iterator<Item = i64> + use<> {
    let on_path = step.goes_on.map(i64::from);
    let through = i64::from(step.next);
    let targets = match step.kind {
        Kind::Jump | Kind::Call => [Some(target_of(&step.instr)), None],
        Kind::JumpIf => [Some(target_of(&step.instr)), Some(through)],
        _ => [Some(through), None],
    };
    targets.into_iter().flatten().filter(move |&target| Some(target) != on_path)
}

/// Flags that somebody may look at from `at` on, and the end of the bytes that say so.
fn flags_at(
    source: Source<'_>,
    at: u32,
    count: usize,
    options: Options,
    factory: &mut InstructionInfoFactory,
) -> (Flags, u32) {
    let bytes = source.part(at, 4096);
    let mut decoder = Decoder::with_ip(64, bytes, at.into(), OPTIONS);
    let (mut open, mut needed, mut end) = (ALL, 0, at);
    for _ in 0..count {
        if !decoder.can_decode() {
            break;
        }
        let step = Step::new(decoder.decode(), options, factory);
        if step.instr.is_invalid() {
            break;
        }
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
