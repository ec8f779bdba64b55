//! REP MOVS and REP STOS: the host's own, as far as both pages go, again and again.
//!
//! The registers show what has been done whenever somebody may look. So the handler can take over between any two
//! parts: where the tables of translations do not know a page, an element lies in two, the direction is down, the
//! core is wanted, or a copy of a page is to be told.

use std::mem::offset_of;

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use x86::rflags;

use super::address::first_entry;
use super::again::{self, Again};
use super::asm::{Address, Asm, Condition, Label};
use super::fields::{RFLAGS, T0, T1, field};
use super::options::Options;
use super::stub::Stub;
use super::tables::Translation;
use super::translate::{Step, Translator};

const RCX: u8 = 1;
const RDX: u8 = 2;
const RBX: u8 = 3;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// An instruction of this kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Repeat {
    /// MOVS, else STOS.
    moves: bool,
    /// Base-two logarithm of the size of its elements.
    scale: u8,
}

impl Repeat {
    /// Which one it is, if it is to be in line.
    pub(super) fn of(instr: &Instruction, options: Options) -> Option<Self> {
        use Mnemonic::{Movsb, Movsd, Movsq, Movsw, Stosb, Stosd, Stosq, Stosw};
        let (moves, scale) = match instr.mnemonic() {
            Movsb => (true, 0),
            Movsw => (true, 1),
            // Also the name of an instruction of SSE.
            Movsd if instr.is_string_instruction() => (true, 2),
            Movsq => (true, 3),
            Stosb => (false, 0),
            Stosw => (false, 1),
            Stosd => (false, 2),
            Stosq => (false, 3),
            _ => return None,
        };
        let plain = instr.has_rep_prefix() && !instr.has_repne_prefix() && !instr.has_lock_prefix();
        let wide = instr.op0_kind() == OpKind::MemoryESRDI
            && (!moves || instr.op1_kind() == OpKind::MemorySegRSI);
        let flat = !moves || !matches!(instr.memory_segment(), Register::FS | Register::GS);
        (options.strings && plain && wide && flat).then_some(Self { moves, scale })
    }
}

/// Places of the thunks, by the logarithm of the size. Each is called, works on the guest's registers as the
/// instruction does, and destroys T0, T1 and the flags; NE if something is left to do.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Strings {
    pub(super) moves: [u32; 4],
    pub(super) stores: [u32; 4],
}

impl Strings {
    pub(super) fn emit(asm: &mut Asm, again: Again) -> Self {
        let mut strings = Self::default();
        for scale in 0..4 {
            let place = usize::from(scale);
            strings.moves[place] = asm.here();
            emit(asm, Repeat { moves: true, scale }, again);
            strings.stores[place] = asm.here();
            emit(asm, Repeat { moves: false, scale }, again);
        }
        strings
    }
}

impl Translator<'_> {
    pub(super) fn repeat(&mut self, step: &Step, repeat: Repeat) {
        self.put_flags_aside(step.before);
        let (slow, back) = (self.asm.label(), self.asm.label());
        let Strings { moves, stores } = self.thunks.strings;
        let places = if repeat.moves { moves } else { stores };
        self.asm.call_to(places[usize::from(repeat.scale)]);
        self.asm.jump_if(Condition::NE, slow);
        self.stubs.push(Stub { label: slow, work: self.work_outside(step, back) });
        self.asm.bind(back);
    }
}

/// RBX is the host's address of the source, T0 that of the destination, RDX how many elements are done at once.
fn emit(asm: &mut Asm, repeat: Repeat, again: Again) {
    let [next, out] = [(); 2].map(|()| asm.label());
    asm.push(RBX);
    asm.push(RDX);
    asm.test_field(RFLAGS, rflags::DF as u32);
    asm.jump_if(Condition::NE, out);
    asm.bind(next);
    asm.test(RCX, RCX);
    asm.jump_if(Condition::E, out);
    elements(asm, repeat, out);
    if repeat.moves {
        leave_copies(asm, repeat, out);
        translate(asm, RSI, offset_of!(Translation, read), again.read, out);
        asm.mov(RBX, T0);
    }
    translate(asm, RDI, offset_of!(Translation, write), again.write, out);
    run(asm, repeat);
    // Between two parts, as the handler does.
    asm.load_field(T0, field!(pending));
    asm.compare_byte_with_0(Address::at(T0, 0));
    asm.jump_if(Condition::E, next);
    asm.test(RCX, RCX);
    asm.bind(out);
    asm.pop(RDX);
    asm.pop(RBX);
    asm.ret();
}

/// RDX = as many elements as lie in both pages, and not more than RCX. NE and out if that is none.
fn elements(asm: &mut Asm, repeat: Repeat, out: Label) {
    room(asm, RDX, RDI);
    if repeat.moves {
        room(asm, T0, RSI);
        smaller(asm, RDX, T0);
    }
    asm.shift_right(RDX, repeat.scale);
    smaller(asm, RDX, RCX);
    // One that lies in two pages: whoever comes here has at least one to do.
    let some = asm.label();
    asm.test(RDX, RDX);
    asm.jump_if(Condition::NE, some);
    asm.test(RCX, RCX);
    asm.jump(out);
    asm.bind(some);
}

/// `to` = bytes from `pointer` to the end of its page.
fn room(asm: &mut Asm, to: u8, pointer: u8) {
    asm.low_32(to, pointer);
    // Up to here, less one.
    asm.or_32(to, -4096);
    asm.negate_32(to);
}

/// NE and out if a whole page is copied within the upper half and somebody wants to know.
fn leave_copies(asm: &mut Asm, repeat: Repeat, out: Label) {
    let on = asm.label();
    asm.compare_sized(false, RDX, 4096 >> repeat.scale);
    asm.jump_if(Condition::NE, on);
    for pointer in [RSI, RDI] {
        asm.mov(T0, pointer);
        asm.shift_right(T0, 63);
        asm.jump_if(Condition::E, on);
    }
    asm.compare_field(field!(system.copies_told), 0);
    asm.jump_if(Condition::NE, out);
    asm.bind(on);
}

fn smaller(asm: &mut Asm, to: u8, other: u8) {
    asm.compare_registers(true, other, to);
    asm.move_if(Condition::B, to, other);
}

/// T0 = the host's address for `pointer`. NE and out if it is not known. Destroys T1.
fn translate(asm: &mut Asm, pointer: u8, page: usize, again: u32, out: Label) {
    let [retry, found] = [(); 2].map(|()| asm.label());
    asm.mov(T0, pointer);
    first_entry(asm, T1, T0);
    asm.bind(retry);
    asm.sub_memory(T0, Address::at(T1, page as i32));
    asm.compare(T0, 4095);
    asm.jump_if(Condition::BE, found);
    asm.call_to(again);
    asm.jump(retry);
    const { assert!(again::JUMP == 5) };
    asm.test(RCX, RCX);
    asm.jump(out);
    asm.bind(found);
    asm.add_memory(T0, Address::at(T1, offset_of!(Translation, host) as i32));
}

/// The host's instruction, and the guest's registers behind it.
fn run(asm: &mut Asm, repeat: Repeat) {
    asm.sub(RCX, RDX);
    asm.push(RCX);
    asm.mov(RCX, RDX);
    asm.shift_left(RDX, repeat.scale);
    if repeat.moves {
        asm.add_registers(RSI, RDX);
        asm.push(RSI);
        asm.mov(RSI, RBX);
    }
    asm.add_registers(RDI, RDX);
    asm.push(RDI);
    asm.mov(RDI, T0);
    asm.repeat_string(repeat.moves, repeat.scale);
    asm.pop(RDI);
    if repeat.moves {
        asm.pop(RSI);
    }
    asm.pop(RCX);
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    fn of(bytes: &[u8]) -> Option<Repeat> {
        let instr = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
        Repeat::of(&instr, Options::default())
    }

    #[test]
    fn only_what_the_thunks_do_is_theirs() {
        assert_eq!(of(&[0xf3, 0xa4]), Some(Repeat { moves: true, scale: 0 }));
        assert_eq!(of(&[0xf3, 0x48, 0xa5]), Some(Repeat { moves: true, scale: 3 }));
        assert_eq!(of(&[0x66, 0xf3, 0xab]), Some(Repeat { moves: false, scale: 1 }));
        // Segments without a base.
        assert!(of(&[0x2e, 0xf3, 0xa4]).is_some());
        let others: [&[u8]; 6] = [
            // Once; REPNE; from FS; addresses of 32 bits; LODS; MOVSD of SSE.
            &[0xa4],
            &[0xf2, 0xa4],
            &[0x64, 0xf3, 0xa4],
            &[0x67, 0xf3, 0xaa],
            &[0xf3, 0xac],
            &[0xf2, 0x0f, 0x10, 0xc1],
        ];
        assert!(others.iter().all(|bytes| of(bytes).is_none()));
    }
}
