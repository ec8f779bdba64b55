//! Vector operands that lie in two pages of which generated code knows both: the instruction runs on a copy
//! in a buffer.
//!
//! Where [`super::translate::Translator::check`] found that the operand begins in a page but does not end
//! there, T0 is the offset in the page, up to 4095, and T1 the page's [`Translation`]. Flags are of no
//! interest.

use std::mem::offset_of;

use super::address::first_entry;
use super::asm::{Address, Asm, Condition};
use super::fields::{T0, T1, field};
use super::tables::Translation;

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// Longest operand.
pub(super) const LONGEST: usize = 32;

/// Places of the thunks. All are called.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Crossing {
    /// T0 becomes the address of a copy; NE if it cannot.
    pub(super) load: u32,
    /// T0 becomes the address of a buffer; NE if it cannot.
    pub(super) prepare_store: u32,
    /// Stores T1 bytes of that buffer.
    pub(super) store: u32,
}

impl Crossing {
    pub(super) fn emit(asm: &mut Asm) -> Self {
        let mut crossing = Self { load: asm.here(), ..Self::default() };
        load(asm);
        crossing.prepare_store = asm.here();
        prepare_store(asm);
        let copies = asm.here();
        copy(asm);
        crossing.store = asm.here();
        store(asm, copies);
        crossing
    }
}

const USED: [u8; 3] = [RAX, RCX, RDX];

/// Copies the end of one page and the start of the next, so that the operand is between them.
fn load(asm: &mut Asm) {
    let fail = asm.label();
    translate(asm, offset_of!(Translation, read) as i32, fail);
    for at in (0..LONGEST as i32).step_by(8) {
        asm.load(RAX, Address::at(RDX, 4096 - LONGEST as i32 + at));
        asm.store_field(field!(vector.buffer) + at, RAX);
    }
    for at in (0..LONGEST as i32).step_by(8) {
        asm.load(RAX, Address::at(RCX, at));
        asm.store_field(field!(vector.buffer) + LONGEST as i32 + at, RAX);
    }
    asm.lea(T0, Address::at(T0, LONGEST as i32 - 4096));
    asm.add_field(T0, field!(vector.buffer_at));
    succeed(asm, fail);
}

fn prepare_store(asm: &mut Asm) {
    let fail = asm.label();
    translate(asm, offset_of!(Translation, write) as i32, fail);
    asm.store_field(field!(vector.second), RCX);
    asm.lea(RDX, Address::sum(RDX, T0, 0));
    asm.store_field(field!(vector.first), RDX);
    asm.constant_32(RAX, 4096);
    asm.sub(RAX, T0);
    asm.store_field(field!(vector.in_first), RAX);
    asm.load_field(T0, field!(vector.buffer_at));
    succeed(asm, fail);
}

/// RDX is the host's address of the page, RCX that of the next. Destroys RAX and T1.
fn translate(asm: &mut Asm, page: i32, fail: super::asm::Label) {
    USED.iter().for_each(|&reg| asm.push(reg));
    let host = offset_of!(Translation, host) as i32;
    asm.load(RDX, Address::at(T1, host));
    asm.load(RCX, Address::at(T1, page));
    asm.lea(RCX, Address::at(RCX, 4096));
    first_entry(asm, RAX, RCX);
    asm.sub_memory(RCX, Address::at(RAX, page));
    asm.jump_if(Condition::NE, fail);
    asm.load(RCX, Address::at(RAX, host));
}

fn succeed(asm: &mut Asm, fail: super::asm::Label) {
    asm.sub(RAX, RAX);
    asm.bind(fail);
    USED.iter().rev().for_each(|&reg| asm.pop(reg));
    asm.ret();
}

fn store(asm: &mut Asm, copy: u32) {
    let used = [RSI, RDI, RAX, RCX, RDX];
    used.iter().for_each(|&reg| asm.push(reg));
    asm.load_field(RSI, field!(vector.buffer_at));
    asm.load_field(RDI, field!(vector.first));
    asm.load_field(RCX, field!(vector.in_first));
    asm.sub(T1, RCX);
    asm.call_to(copy);
    asm.load_field(RSI, field!(vector.buffer_at));
    asm.add_field(RSI, field!(vector.in_first));
    asm.load_field(RDI, field!(vector.second));
    asm.mov(RCX, T1);
    asm.call_to(copy);
    used.iter().rev().for_each(|&reg| asm.pop(reg));
    asm.ret();
}

/// Copies RCX bytes, less than [`LONGEST`], from RSI to RDI, and touches no others. Destroys RAX, RCX, RDX,
/// RSI and RDI.
fn copy(asm: &mut Asm) {
    let (eight, sixteen) = (asm.label(), asm.label());
    asm.compare(RCX, 16);
    asm.jump_if(Condition::AE, sixteen);
    asm.compare(RCX, 8);
    asm.jump_if(Condition::AE, eight);
    asm.repeat_movsb();
    asm.ret();
    // From the start and up to the end, which may be the same bytes.
    asm.bind(sixteen);
    copy_two(asm, (Address::at(RSI, 0), Address::at(RSI, 8)));
    let end = |back: i32| Address::sum(RSI, RCX, -back);
    copy_two(asm, (end(16), end(8)));
    asm.ret();
    asm.bind(eight);
    copy_two(asm, (Address::at(RSI, 0), end(8)));
    asm.ret();
}

/// Two words, from places relative to RSI to those relative to RDI.
fn copy_two(asm: &mut Asm, (a, b): (Address, Address)) {
    let to = |from| Address { base: Some(RDI), ..from };
    asm.load(RAX, a);
    asm.load(RDX, b);
    asm.store(to(a), RAX);
    asm.store(to(b), RDX);
}
