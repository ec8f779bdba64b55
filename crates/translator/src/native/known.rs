//! Which flags a block leaves as the manual says: for those who compare it with the interpreter.

use iced_x86::{Decoder, DecoderOptions, Instruction, InstructionInfoFactory, RflagsBits};
use x86::rflags;

use super::flags::{ALL, Flags, may_shift_by_zero};
use super::options::Options;
use super::translate::Step;

/// The bits of RFLAGS that the block whose bytes are `source`, at physical address `start`, has right before the
/// instruction `offset` bytes into it, where it is translated with `options`: the rest is overwritten
/// before an instruction looks at it.
#[must_use]
pub fn flags_needed(source: &[u8], start: u64, offset: u64, options: Options) -> u64 {
    if !options.forget_dead_flags {
        return rflags::STATUS;
    }
    let mut factory = InstructionInfoFactory::new();
    let behind = decode(source, start).filter(|instr| instr.ip() >= (start & 0xfff) + offset);
    let effects: Vec<_> =
        behind.map(|instr| Step::new(instr, options, &mut factory).effects).collect();
    rflags::STATUS
        & in_rflags(effects.into_iter().rev().fold(ALL, |after, effects| effects.before(after)))
}

/// The bits of RFLAGS that are defined after the first `count` instructions of the block: others may differ from
/// processor to processor.
#[must_use]
pub fn flags_defined(source: &[u8], start: u64, count: usize) -> u64 {
    let undefined = decode(source, start).take(count).fold(0, |undefined, instr| {
        let kept = if may_shift_by_zero(&instr) {
            undefined
        } else {
            undefined & !instr.rflags_modified()
        };
        kept | instr.rflags_undefined()
    });
    rflags::STATUS & !in_rflags(undefined)
}

fn decode(source: &[u8], start: u64) -> impl Iterator<Item = Instruction> {
    let options = DecoderOptions::FORCE_RESERVED_NOP;
    Decoder::with_ip(64, source, start & 0xfff, options).into_iter()
}

/// From iced's numbering.
fn in_rflags(flags: Flags) -> u64 {
    let bits = [
        (RflagsBits::OF, rflags::OF),
        (RflagsBits::SF, rflags::SF),
        (RflagsBits::ZF, rflags::ZF),
        (RflagsBits::AF, rflags::AF),
        (RflagsBits::CF, rflags::CF),
        (RflagsBits::PF, rflags::PF),
    ];
    bits.into_iter().filter(|(known, _)| flags & known != 0).map(|(_, bit)| bit).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_overwritten_is_not_needed() {
        // mov rax, [rcx]; adc rax, rdx; ret
        let source = [0x48, 0x8b, 1, 0x48, 0x11, 0xd0, 0xc3];
        assert_eq!(flags_needed(&source, 0x5010, 0, Options::default()), rflags::CF);
        assert_eq!(flags_needed(&source, 0x5010, 6, Options::default()), rflags::STATUS);
        // add rax, rdx; cpuid
        assert_eq!(flags_needed(&[0x48, 1, 0xd0, 0x0f, 0xa2], 0, 0, Options::default()), 0);
        assert_eq!(
            flags_needed(&[0x48, 1, 0xd0, 0x0f, 0xa2], 0, 3, Options::default()),
            rflags::STATUS
        );
    }

    #[test]
    fn flags_are_undefined_until_they_are_written() {
        // and rax, rdx; inc rax; shl rax, cl; add rax, rdx
        let source = [0x48, 0x21, 0xd0, 0x48, 0xff, 0xc0, 0x48, 0xd3, 0xe0, 0x48, 1, 0xd0];
        let defined = |count| flags_defined(&source, 0x5010, count);
        assert_eq!(defined(0), rflags::STATUS);
        assert_eq!(defined(1), rflags::STATUS & !rflags::AF);
        assert_eq!(defined(2), rflags::STATUS);
        assert_eq!(defined(3), rflags::STATUS & !rflags::AF & !rflags::OF);
        assert_eq!(defined(4), rflags::STATUS);
    }
}
