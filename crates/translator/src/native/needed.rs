//! Which flags a block needs from one of its instructions on: others may be anything there.

use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, RflagsBits};
use x86::rflags;

use super::flags::{ALL, Effects, Flags};
use super::select::{Kind, kind};

/// The bits of RFLAGS that the block whose bytes are `source`, at physical address `start`, has right before the
/// instruction `offset` bytes into it, also with [`super::Options::forget_dead_flags`].
#[must_use]
pub fn flags_needed(source: &[u8], start: u64, offset: u64) -> u64 {
    let options = DecoderOptions::FORCE_RESERVED_NOP;
    let decoder = Decoder::with_ip(64, source, start & 0xfff, options);
    let mut factory = InstructionInfoFactory::new();
    let from = (start & 0xfff) + offset;
    let effects = decoder.into_iter().filter(|instr| instr.ip() >= from).map(|instr| {
        match kind(&instr, &mut factory) {
            Kind::Outside => Effects::OUTSIDE,
            _ => Effects::of(&instr),
        }
    });
    let effects: Vec<Effects> = effects.collect();
    in_rflags(effects.into_iter().rev().fold(ALL, |after, effects| effects.before(after)))
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
        assert_eq!(flags_needed(&source, 0x5010, 0), rflags::CF);
        assert_eq!(flags_needed(&source, 0x5010, 6), rflags::STATUS);
        // add rax, rdx; cpuid
        assert_eq!(flags_needed(&[0x48, 1, 0xd0, 0x0f, 0xa2], 0, 0), 0);
        assert_eq!(flags_needed(&[0x48, 1, 0xd0, 0x0f, 0xa2], 0, 3), rflags::STATUS);
    }
}
