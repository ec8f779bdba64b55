//! From an operand to the host's address of it.

use std::mem;

use iced_x86::{Instruction, Register};

use super::asm::{Address, Asm, Condition, Label};
use super::fields::{T0, T1, field, host, register, segment_base};
use super::flags::Flags;
use super::stub::{Stub, Work};
use super::tables::{TRANSLATIONS, Translation};
use super::translate::{Step, Translator};

/// Where an operand is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) segment: Option<usize>,
    pub(super) base: Register,
    pub(super) index: Register,
    /// Base-two logarithm.
    pub(super) scale: u8,
    /// With RIP as base: from the start of the page.
    pub(super) disp: i64,
}

impl Place {
    /// Of the memory operand.
    pub(super) fn of(instr: &Instruction) -> Self {
        let segment = match instr.memory_segment() {
            Register::FS => Some(4),
            Register::GS => Some(5),
            _ => None,
        };
        Self {
            segment,
            base: instr.memory_base(),
            index: instr.memory_index(),
            scale: instr.memory_index_scale().trailing_zeros() as u8,
            // The decoder's address of an instruction is its offset in the page.
            disp: instr.memory_displacement64() as i64,
        }
    }

    pub(super) fn by(base: Register, disp: i64) -> Self {
        Self { segment: None, base, index: Register::None, scale: 0, disp }
    }

    /// Whether they differ in the displacement only.
    pub(super) fn has_registers_of(&self, other: &Self) -> bool {
        Self { disp: 0, ..*self } == Self { disp: 0, ..*other }
    }
}

impl Translator<'_> {
    /// Loads T0 with the linear address of the memory operand. May destroy T1; touches no flag.
    pub(super) fn address(&mut self, step: &Step) -> Option<()> {
        self.address_at(&Place::of(&step.instr))
    }

    pub(super) fn address_at(&mut self, place: &Place) -> Option<()> {
        let mut sum = self.offset_parts(place, T0)?;
        if let Some(segment) = place.segment {
            // The base may need a register of its own beside two.
            if sum.base == Some(T0) || sum.index.is_some() {
                self.asm.lea(T0, sum);
                self.asm.load_field(T1, segment_base(segment));
                self.asm.lea(T0, Address::sum(T0, T1, 0));
                return Some(());
            }
            self.asm.load_field(T0, segment_base(segment));
            if let Some(base) = sum.base {
                sum.index = Some((base, 0));
            }
            sum.base = Some(T0);
        }
        if sum.index.is_none() && sum.disp == 0 && sum.base == Some(T0) {
            return Some(());
        }
        self.asm.lea(T0, sum);
        Some(())
    }

    /// Base, index and displacement of the effective address in the host's registers: `scratch` may stand for the
    /// base and T1 for the index.
    pub(super) fn offset_parts(&mut self, place: &Place, scratch: u8) -> Option<Address> {
        if place.base == Register::RIP {
            let disp = i32::try_from(place.disp).ok()?;
            self.asm.load_field(scratch, field!(page));
            return Some(Address::at(scratch, disp));
        }
        let base = self.part(place.base, scratch);
        let index = self.part(place.index, T1).map(|index| (index, place.scale));
        Some(Address { base, index, disp: place.disp as i32 })
    }

    pub(super) fn part(&mut self, guest: Register, scratch: u8) -> Option<u8> {
        if guest == Register::None {
            return None;
        }
        Some(self.value_of(guest.number() as u8, scratch))
    }

    /// The host's register with the guest's register; `scratch` where it has none.
    pub(super) fn value_of(&mut self, slot: u8, scratch: u8) -> u8 {
        host(slot).unwrap_or_else(|| {
            self.asm.load_field(scratch, register(slot));
            scratch
        })
    }

    /// Turns the linear address in T0 into the host's, for an access of `size` bytes. Destroys T1 and,
    /// unless they are needed by then, the flags. Returns where the access is to go on that was made outside.
    pub(super) fn check(&mut self, step: &Step, size: usize, write: bool) -> Label {
        let [slow, back] = [(); 2].map(|()| self.asm.label());
        self.check_or(step.before, size, write, slow);
        self.stubs.push(Stub { label: slow, work: self.work_outside(step, back) });
        back
    }

    /// The same, going to `slow` where the tables do not answer. `before`: the flags that are needed.
    pub(super) fn check_or(&mut self, before: Flags, size: usize, write: bool, slow: Label) {
        self.put_flags_aside(before);
        let miss = self.asm.label();
        let asm = &mut self.asm;
        first_entry(asm, T1, T0);
        let page = if write {
            mem::offset_of!(Translation, write)
        } else {
            mem::offset_of!(Translation, read)
        };
        let retry = asm.label();
        asm.bind(retry);
        asm.sub_memory(T0, Address::at(T1, page as i32));
        asm.compare(T0, 4096 - size as i32);
        asm.jump_if(Condition::A, miss);
        asm.add_memory(T0, Address::at(T1, mem::offset_of!(Translation, host) as i32));
        self.stubs.push(Stub { label: miss, work: Work::LookAgain { retry, slow, write } });
    }
}

/// Whether an address that is relative to RIP can be emitted.
pub(super) fn displacement_fits(instr: &Instruction) -> bool {
    let displacement = instr.memory_displacement64() as i64;
    instr.memory_base() != Register::RIP || i32::try_from(displacement).is_ok()
}

/// `to` = the place of the first table's entry for address `va`.
pub(super) fn first_entry(asm: &mut Asm, to: u8, va: u8) {
    // What comes round at the top is cut off.
    asm.rotate_right(to, va, 12 - ENTRY_SHIFT as u8);
    asm.and_32(to, TABLE_MASK);
    asm.add_field(to, field!(translations));
}

/// Base-two logarithm of the size of a [`Translation`].
pub(super) const ENTRY_SHIFT: usize = mem::size_of::<Translation>().trailing_zeros() as usize;
/// Offsets of entries in their table.
const TABLE_MASK: i32 = ((TRANSLATIONS - 1) << ENTRY_SHIFT) as i32;
