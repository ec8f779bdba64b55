//! Which status flags an instruction needs, and which it overwrites.

use iced_x86::{Instruction, OpKind, Register, RflagsBits};

/// OF, SF, ZF, AF, CF, PF in iced's numbering.
pub(super) type Flags = u32;

pub(super) const ALL: Flags = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF;

/// What an instruction does to the flags.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effects {
    /// Needed.
    pub(super) reads: Flags,
    /// Perhaps changed.
    pub(super) writes: Flags,
    /// Overwritten whatever the operands are, with a value or with nothing defined.
    pub(super) kills: Flags,
}

impl Effects {
    /// Of an instruction that is executed outside: it may look at all of them.
    pub(super) const OUTSIDE: Self = Self { reads: ALL, writes: ALL, kills: 0 };

    pub(super) fn of(instr: &Instruction) -> Self {
        let writes = instr.rflags_modified() & ALL;
        let reads = instr.rflags_read() & ALL;
        if may_shift_by_zero(instr) {
            // By a count that goes all the way round, processors of AMD change OF.
            return Self { reads, writes: ALL, kills: 0 };
        }
        Self { reads, writes, kills: writes }
    }

    /// What must be kept before the instruction so that `after` is right behind it.
    pub(super) fn before(self, after: Flags) -> Flags {
        after & !self.kills | self.reads
    }
}

/// Shifts and rotates by a count that is zero change no flag.
pub(super) fn may_shift_by_zero(instr: &Instruction) -> bool {
    use iced_x86::Mnemonic::{Rcl, Rcr, Rol, Ror, Sal, Sar, Shl, Shld, Shr, Shrd};
    if !matches!(instr.mnemonic(), Rol | Ror | Rcl | Rcr | Shl | Sal | Shr | Sar | Shld | Shrd) {
        return false;
    }
    let count = instr.op_count() - 1;
    match instr.op_kind(count) {
        OpKind::Immediate8 => instr.immediate8() & 31 == 0 || narrow(instr),
        OpKind::Register => instr.op_register(count) == Register::CL,
        _ => false,
    }
}

/// With 8 and 16 bits a count may exceed the size, or rotate all the way round.
fn narrow(instr: &Instruction) -> bool {
    match instr.op_kind(0) {
        OpKind::Register => instr.op0_register().size() < 4,
        _ => instr.memory_size().size() < 4,
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    fn effects(bytes: &[u8]) -> Effects {
        Effects::of(&Decoder::new(64, bytes, DecoderOptions::NONE).decode())
    }

    #[test]
    fn effects_are_known() {
        let cmp = effects(&[0x48, 0x39, 0xc8]);
        assert_eq!((cmp.reads, cmp.kills), (0, ALL));
        let inc = effects(&[0x48, 0xff, 0xc0]);
        assert_eq!(inc.kills, ALL & !RflagsBits::CF);
        let adc = effects(&[0x48, 0x11, 0xc8]);
        assert_eq!((adc.reads, adc.kills), (RflagsBits::CF, ALL));
        let by_cl = effects(&[0x48, 0xd3, 0xe0]);
        assert_eq!((by_cl.writes, by_cl.kills), (ALL, 0));
        let by_0 = effects(&[0x48, 0xc1, 0xe0, 0x20]);
        assert_eq!(by_0.kills, 0);
        let mov = effects(&[0x48, 0x89, 0xc8]);
        assert_eq!((mov.writes, mov.before(ALL)), (0, ALL));
        assert_eq!(cmp.before(ALL), 0);
        // PUSHFQ, whose code takes them from where they were put aside.
        assert_eq!(effects(&[0x9c]).reads, ALL);
        let cli = effects(&[0xfa]);
        assert_eq!((cli.reads, cli.writes), (0, 0));
    }
}
