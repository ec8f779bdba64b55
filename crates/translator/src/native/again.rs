//! The second table of translations, where the first did not answer.
//!
//! Where [`super::translate::Translator::check`] has failed, T0 is the address less that of the page at T1, the
//! place in the first table. Flags are of no interest.

use std::mem::offset_of;

use super::address::ENTRY_SHIFT;
use super::asm::{Address, Asm, Condition};
use super::fields::{T0, T1, field};
use super::tables::{SECOND, Translation};

const RCX: u8 = 1;
const RDX: u8 = 2;

/// Bytes of the jump behind the call, which is skipped where the second table does not answer either.
pub(super) const JUMP: u8 = 5;

/// Places of the thunks. Each is called; where the page is known it copies it into the first table, makes T0 the
/// address again, and returns; else T0 is as it was, and it returns behind the next jump.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Again {
    pub(super) read: u32,
    pub(super) write: u32,
}

impl Again {
    pub(super) fn emit(asm: &mut Asm) -> Self {
        let read = asm.here();
        look(asm, offset_of!(Translation, read) as i32);
        let write = asm.here();
        look(asm, offset_of!(Translation, write) as i32);
        Self { read, write }
    }
}

fn look(asm: &mut Asm, page: i32) {
    let fail = asm.label();
    asm.add_memory(T0, Address::at(T1, page));
    asm.push(RCX);
    asm.push(RDX);
    asm.mov(RDX, T0);
    asm.and(RDX, -4096);
    // The first table has the page: the access does not end in it.
    asm.load(RCX, Address::at(T1, page));
    asm.compare_registers(true, RCX, RDX);
    asm.jump_if(Condition::E, fail);
    // See `second_index`.
    asm.mov(RCX, T0);
    asm.shift_right(RCX, 12);
    asm.xor(RCX, T0);
    asm.shift_right(RCX, 12);
    asm.and_32(RCX, SECOND as i32 - 1);
    asm.shift_left_32(RCX, ENTRY_SHIFT as u8);
    asm.add_field(RCX, field!(second));
    asm.sub_memory(RDX, Address::at(RCX, page));
    asm.jump_if(Condition::NE, fail);
    let parts = [offset_of!(Translation, read), offset_of!(Translation, write)];
    for part in parts.into_iter().chain([offset_of!(Translation, host)]) {
        asm.load(RDX, Address::at(RCX, part as i32));
        asm.store(Address::at(T1, part as i32), RDX);
    }
    asm.pop(RDX);
    asm.pop(RCX);
    asm.ret();
    asm.bind(fail);
    asm.sub_memory(T0, Address::at(T1, page));
    asm.pop(RDX);
    asm.pop(RCX);
    // ADD [RSP], JUMP
    asm.raw(&[0x48, 0x83, 0x04, 0x24, JUMP]);
    asm.ret();
}
