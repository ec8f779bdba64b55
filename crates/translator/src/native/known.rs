//! Which flags a path leaves as the manual says: for those who compare it with the interpreter.

use iced_x86::{InstructionInfoFactory, RflagsBits};
use x86::rflags;

use super::flags::{ALL, may_shift_by_zero};
use super::flow::{self, Exits, InPage};
use super::options::Options;
use super::translate::Step;
use crate::paths::{Path, Source};

/// The bits of RFLAGS that `path`, which lies in `source`, has right where it is left for `offset` in its page, translated
/// with `options` by a policy that looks at `look_ahead` instructions behind exits: the rest is overwritten before an
/// instruction looks at it. `None`: another page.
#[must_use]
pub fn flags_needed(
    path: &Path,
    source: Source<'_>,
    offset: Option<u32>,
    options: Options,
    look_ahead: usize,
) -> u64 {
    let (mut factory, mut steps) = (InstructionInfoFactory::new(), Vec::new());
    let mut decoder = InPage::new(source);
    let known = flow::steps(path, &mut decoder, options, &mut factory, &mut steps);
    let (true, Some(()), Some(offset)) = (options.forget_dead_flags, known, offset) else {
        return rflags::STATUS;
    };
    let exits = Exits::of(&steps, &mut decoder, look_ahead, options, &mut factory, Vec::new());
    exits.spread(&mut steps, true);
    let inside = steps.iter().find(|step| step.offset == offset).map(|step| step.before);
    let behind = || exits.flags().find(|&(target, _)| target == offset).map(|(_, flags)| flags);
    rflags::STATUS & in_rflags(inside.or_else(behind).unwrap_or(ALL))
}

/// The bits of RFLAGS that are defined after the first `count` instructions of the path: others may differ from
/// processor to processor.
#[must_use]
pub fn flags_defined(path: &Path, source: Source<'_>, count: usize) -> u64 {
    let (mut factory, mut steps) = (InstructionInfoFactory::new(), Vec::new());
    let mut decoder = InPage::new(source);
    flow::steps(path, &mut decoder, Options::default(), &mut factory, &mut steps);
    let undefined = steps.iter().take(count).fold(0, |undefined, Step { instr, .. }| {
        let kept =
            if may_shift_by_zero(instr) { undefined } else { undefined & !instr.rflags_modified() };
        kept | instr.rflags_undefined()
    });
    rflags::STATUS & !in_rflags(undefined)
}

/// iced's flags as bits of RFLAGS.
#[must_use]
pub fn in_rflags(flags: u32) -> u64 {
    let bits = [
        (RflagsBits::OF, rflags::OF),
        (RflagsBits::SF, rflags::SF),
        (RflagsBits::ZF, rflags::ZF),
        (RflagsBits::AF, rflags::AF),
        (RflagsBits::CF, rflags::CF),
        (RflagsBits::PF, rflags::PF),
        (RflagsBits::DF, rflags::DF),
    ];
    bits.into_iter().filter(|(known, _)| flags & known != 0).map(|(_, bit)| bit).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::Fragment;

    const FIRST: u32 = 0x10;

    fn source(bytes: &[u8]) -> Source<'_> {
        Source { bytes, first: FIRST }
    }

    fn needed(bytes: &[u8], offset: u32) -> u64 {
        let path = Path::run(FIRST, bytes.len() as u32);
        flags_needed(&path, source(bytes), Some(FIRST + offset), Options::default(), 0)
    }

    #[test]
    fn what_is_overwritten_is_not_needed() {
        // mov rax, [rcx]; adc rax, rdx; ret
        let returns = [0x48, 0x8b, 1, 0x48, 0x11, 0xd0, 0xc3];
        assert_eq!(needed(&returns, 0), rflags::CF);
        assert_eq!(needed(&returns, 6), rflags::STATUS);
        // add rax, rdx; cpuid
        let outside = [0x48, 1, 0xd0, 0x0f, 0xa2];
        assert_eq!((needed(&outside, 0), needed(&outside, 3)), (0, rflags::STATUS));
        let path = Path::run(FIRST, 5);
        let elsewhere = flags_needed(&path, source(&outside), None, Options::default(), 0);
        assert_eq!(elsewhere, rflags::STATUS);
    }

    #[test]
    fn what_an_exit_overwrites_is_not_needed_there() {
        // jne 0x16; nop; ret, and there: add rax, rdx
        let bytes = [0x75, 4, 0x90, 0xc3, 0xcc, 0xcc, 0x48, 1, 0xd0];
        let needed = |at, look_ahead| {
            let path = Path::run(FIRST, 4);
            flags_needed(&path, source(&bytes), Some(at), Options::default(), look_ahead)
        };
        assert_eq!((needed(0x16, 1), needed(0x16, 0)), (0, rflags::STATUS));
        assert_eq!(needed(0x30, 1), rflags::STATUS);
    }

    #[test]
    fn flags_are_undefined_until_they_are_written() {
        // and rax, rdx; inc rax; jmp 0x20, and there: shl rax, cl; add rax, rdx
        let mut bytes = vec![0x48, 0x21, 0xd0, 0x48, 0xff, 0xc0, 0xeb, 8];
        bytes.resize(16, 0xcc);
        bytes.extend([0x48, 0xd3, 0xe0, 0x48, 1, 0xd0]);
        let fragments = [(0x10, 8), (0x20, 6)].map(|(offset, len)| Fragment { offset, len });
        let path = Path { fragments: fragments.into() };
        let defined = |count| flags_defined(&path, source(&bytes), count);
        assert_eq!(defined(0), rflags::STATUS);
        assert_eq!(defined(1), rflags::STATUS & !rflags::AF);
        assert_eq!((defined(2), defined(3)), (rflags::STATUS, rflags::STATUS));
        assert_eq!(defined(4), rflags::STATUS & !rflags::AF & !rflags::OF);
        assert_eq!(defined(5), rflags::STATUS);
    }
}
