//! From a head along the code, without running it.

use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};

use super::{Follow, Limits, Path, Policy};
use crate::block::Mode;
use crate::cpu::Width;
use crate::decode::{ends_block, quick};
use crate::insn::Insn;
use crate::machine::Machine;

/// What is known of the code at an offset in the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// It has run so many times; 0 if nothing is known.
    Runs(u32),
    /// It is the head of a path.
    Head,
}

const PAGE: u32 = 4096;

/// The path whose head is `head` bytes into the page `bytes`. `known` tells what is known of other offsets.
/// `None`: not even one instruction lies in the page.
pub fn grow<M: Machine>(
    bytes: &[u8],
    head: u32,
    mode: Mode,
    policy: &Policy,
    known: impl Fn(u32) -> Known,
) -> Option<Path> {
    let mut growing = Growing { path: Path { fragments: Vec::new() }, left: policy.limits };
    let mut at = head;
    let mut decoder = Decoder::with_ip(mode.width as u32, bytes, 0, OPTIONS);
    // The last instruction, of which but its length is of interest.
    let mut last = Vec::<Insn<M>>::with_capacity(1);
    while growing.left.instructions > 0 {
        let plain = plain_len(bytes, at, mode, &mut last);
        let next = if let Some(len) = plain {
            growing.push(at, len);
            at + len
        } else {
            let Some(instr) = decode(&mut decoder, at) else { break };
            growing.push(at, instr.len() as u32);
            let Some(next) = growing.next(&instr, policy.follow, &known) else { break };
            next
        };
        if next >= PAGE || growing.path.covers(next) {
            break;
        }
        // A return is as much code as a branch to it.
        let head = || policy.limits.at_heads && known(next) == Known::Head;
        if head() && !growing.is_return(&mut decoder, next) {
            break;
        }
        at = next;
    }
    (!growing.path.fragments.is_empty()).then_some(growing.path)
}

/// As blocks are decoded.
const OPTIONS: u32 = DecoderOptions::FORCE_RESERVED_NOP;

/// Bytes of the instruction at `at`, if that is one that leads on to the next, and a common one.
fn plain_len<M: Machine>(
    bytes: &[u8],
    at: u32,
    mode: Mode,
    insns: &mut Vec<Insn<M>>,
) -> Option<u32> {
    if mode.width != Width::Bits64 {
        return None;
    }
    insns.clear();
    let decoded = quick::decode(bytes.get(at as usize..)?, insns)?;
    (!decoded.ends).then_some(decoded.len as u32)
}

/// `None`: it is not wholly in the page.
fn decode(decoder: &mut Decoder<'_>, at: u32) -> Option<Instruction> {
    decoder.set_position(at as usize).ok()?;
    decoder.set_ip(at.into());
    let instr = decoder.decode();
    (decoder.last_error() != DecoderError::NoMoreBytes).then_some(instr)
}

struct Growing {
    path: Path,
    left: Limits,
}

impl Growing {
    fn push(&mut self, at: u32, len: u32) {
        self.path.push(at, len);
        self.left.instructions -= 1;
    }

    fn is_return(&self, decoder: &mut Decoder<'_>, at: u32) -> bool {
        let mut instr = || decode(decoder, at);
        self.left.instructions > 0 && instr().is_some_and(|instr| instr.mnemonic() == Mnemonic::Ret)
    }

    /// Where the path goes on behind `instr`, whether that is possible or not.
    fn next(
        &mut self,
        instr: &Instruction,
        follow: Follow,
        known: &impl Fn(u32) -> Known,
    ) -> Option<u32> {
        let through = instr.next_ip() as u32;
        let flow = instr.flow_control();
        if flow == FlowControl::Next {
            // What may change the mode or the translations, or hold interrupts back, ends a path as it ends a block.
            return (!ends_block(instr)).then_some(through);
        }
        if follow == Follow::Nothing || instr.op0_kind() != OpKind::NearBranch64 {
            return None;
        }
        let target = u32::try_from(instr.near_branch_target()).ok().filter(|&to| to < PAGE);
        let allowed = |left: &mut usize| left.checked_sub(1).map(|less| *left = less);
        match flow {
            FlowControl::ConditionalBranch if instr.is_jcc_short_or_near() => {
                allowed(&mut self.left.branches)?;
                likely(follow, through, target, known)
            }
            FlowControl::UnconditionalBranch => {
                allowed(&mut self.left.jumps)?;
                target
            }
            FlowControl::Call => {
                allowed(&mut self.left.calls)?;
                target
            }
            _ => None,
        }
    }
}

/// The direction of a conditional branch.
fn likely(
    follow: Follow,
    through: u32,
    target: Option<u32>,
    known: &impl Fn(u32) -> Known,
) -> Option<u32> {
    if follow == Follow::Through {
        return Some(through);
    }
    // What is a head is linked to; what never ran is left to a stub.
    let runs = |at: u32| match known(at) {
        Known::Runs(runs) if at < PAGE => runs,
        _ => 0,
    };
    let (straight, aside) = (runs(through), target.map_or(0, runs));
    match (straight, aside) {
        (0, 0) => None,
        _ if aside > straight => target,
        _ => Some(through),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::tests::Idle;
    use crate::cpu::Width;
    use crate::paths::Fragment;

    const LONG: Mode = Mode { width: Width::Bits64 };

    fn page(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut page = vec![0xcc; 4096];
        for &(at, bytes) in parts {
            page[at..at + bytes.len()].copy_from_slice(bytes);
        }
        page
    }

    fn fragments(path: Option<Path>) -> Vec<(u16, u16)> {
        let fragments = path.expect("a path").fragments;
        fragments.into_iter().map(|Fragment { offset, len }| (offset, len)).collect()
    }

    /// `jne 0x20; ret`, and there `nop; jmp 0x10`.
    fn branches() -> Vec<u8> {
        page(&[(0x10, &[0x90, 0x75, 0x0d, 0xc3]), (0x20, &[0x90, 0xeb, 0xed])])
    }

    #[test]
    fn blocks_end_with_a_branch() {
        let page = branches();
        let path = grow::<Idle>(&page, 0x10, LONG, &Policy::BLOCKS, |_| Known::Runs(1));
        assert_eq!(fragments(path), [(0x10, 3)]);
    }

    #[test]
    fn the_likelier_side_is_followed() {
        let page = branches();
        let path = |known: fn(u32) -> Known| {
            fragments(grow::<Idle>(&page, 0x10, LONG, &Policy::FATHOM, known))
        };
        // Back to the head the path ends.
        let taken = path(|at| Known::Runs(if at == 0x20 { 9 } else { 2 }));
        assert_eq!(taken, [(0x10, 3), (0x20, 3)]);
        assert_eq!(path(|at| Known::Runs(if at == 0x13 { 9 } else { 2 })), [(0x10, 4)]);
        assert_eq!(path(|_| Known::Runs(0)), [(0x10, 3)]);
        // It ends where another path begins, wherever that is.
        assert_eq!(path(|at| if at > 0x12 { Known::Head } else { Known::Runs(1) }), [(0x10, 3)]);
        assert_eq!(path(|_| Known::Head), [(0x10, 1)]);
    }

    #[test]
    fn a_return_is_never_somebody_else_s() {
        let page = page(&[(0x10, &[0x90, 0xc2, 8, 0, 0x90])]);
        let path = grow::<Idle>(&page, 0x10, LONG, &Policy::FATHOM, |_| Known::Head);
        assert_eq!(fragments(path), [(0x10, 4)]);
    }

    #[test]
    fn limits_hold() {
        let straight = page(&[(0, &[0x75, 0, 0x75, 0, 0x75, 0, 0xc3])]);
        let limits = Limits { branches: 2, ..Policy::PIN.limits };
        let policy = Policy { limits, ..Policy::PIN };
        let path = grow::<Idle>(&straight, 0, LONG, &policy, |_| Known::Runs(0));
        assert_eq!(fragments(path), [(0, 6)]);
        let limits = Limits { instructions: 2, ..Policy::PIN.limits };
        let policy = Policy { limits, ..Policy::PIN };
        let path = grow::<Idle>(&straight, 0, LONG, &policy, |_| Known::Runs(0));
        assert_eq!(fragments(path), [(0, 4)]);
    }

    #[test]
    fn a_path_stays_in_its_page() {
        // The last instruction reaches over the border.
        let page = page(&[(0xffc, &[0x90, 0x90, 0x48, 0x89])]);
        let path = grow::<Idle>(&page, 0xffc, LONG, &Policy::FATHOM, |_| Known::Runs(0));
        assert_eq!(fragments(path), [(0xffc, 2)]);
        assert_eq!(grow::<Idle>(&page, 0xffe, LONG, &Policy::FATHOM, |_| Known::Runs(0)), None);
    }
}
