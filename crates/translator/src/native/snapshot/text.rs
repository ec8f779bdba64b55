//! Translated code as text in which no address and no offset of a field stands.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::ops::Range;

use iced_x86::{
    Code, Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter, OpKind, Register,
    SymbolResolver, SymbolResult,
};

use super::super::fields::{
    CPL, KERNEL_GS_BASE, RFLAGS, RIP, SHADOW, field, register, segment, segment_base,
};
use super::super::outside::Outside;
use super::super::thunks::Thunks;
use super::{HOST, NOP, Translated};

/// An instruction's code in line.
pub(super) fn alone(translated: &Translated) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}", intel(&translated.guest[1], None));
    translated.list(&mut text, translated.mark(1)..translated.end_of(1));
    text
}

/// A whole block, with what stands behind it.
pub(super) fn block(what: &str, translated: &Translated) -> String {
    let mut text = format!("\n# {what}\n");
    for (index, guest) in translated.guest.iter().enumerate() {
        let _ = writeln!(text, "{}", intel(guest, None));
        translated.list(&mut text, translated.mark(index)..translated.end_of(index));
    }
    text += "behind\n";
    translated.list(&mut text, translated.code.places.stubs..translated.code.places.dead);
    text
}

/// How much is emitted for an instruction.
pub(super) fn ledger(translated: &Translated) -> String {
    let in_line = translated.mark(1)..translated.end_of(1);
    let count = translated.host(in_line.clone()).len();
    let places = translated.code.places;
    let behind = places.dead - places.stubs;
    let name = intel(&translated.guest[1], None);
    format!("{name:<36} {count:>3} {:>4} {behind:>4}\n", in_line.len())
}

impl Translated {
    fn mark(&self, index: usize) -> u32 {
        self.code.marks[index].place
    }

    /// Where the code of the next instruction begins, or what stands behind the block.
    fn end_of(&self, index: usize) -> u32 {
        self.code.marks.get(index + 1).map_or(self.code.places.stubs, |mark| mark.place)
    }

    fn list(&self, text: &mut String, places: Range<u32>) {
        let targets = self.targets();
        for instr in self.host(places) {
            if let Some(number) = targets.iter().position(|&target| target == instr.ip()) {
                let _ = writeln!(text, "  {number}:");
            }
            let names = Names { thunks: self.thunks, targets: targets.clone() };
            let _ = writeln!(text, "    {}", intel(&instr, Some(names)));
        }
    }

    /// The host's instructions, without the data behind calls.
    fn host(&self, places: Range<u32>) -> Vec<Instruction> {
        let code = &self.code.bytes()[(places.start - HOST) as usize..(places.end - HOST) as usize];
        let start = u64::from(places.start);
        let mut decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
        let mut found = Vec::new();
        while decoder.can_decode() {
            let instr = decoder.decode();
            assert!(!instr.is_invalid(), "code at {:#x}", instr.ip());
            let called = instr.code() == Code::Call_rel32_64;
            let target = instr.near_branch_target();
            let rest = &code[decoder.position()..];
            let data = if called { data(&self.thunks, target, rest) } else { 0 };
            found.push(instr);
            let behind = (decoder.position() + data).min(code.len());
            decoder.set_position(behind).expect("inside");
            decoder.set_ip(start + behind as u64);
        }
        found
    }

    /// Where branches within the code lead.
    fn targets(&self) -> BTreeSet<u64> {
        let all = self.code.places.inner..self.code.places.dead;
        let targets = self.host(all).into_iter().map(|instr| instr.near_branch_target());
        targets.filter(|&target| target >= HOST.into()).collect()
    }
}

/// Bytes of data behind a call of a thunk.
fn data(thunks: &Thunks, place: u64, behind: &[u8]) -> usize {
    let outs = [thunks.call_out, thunks.call_out_aside].map(u64::from);
    match place {
        place if outs.contains(&place) => {
            behind.first_chunk().map_or(0, |&head| Outside::of(head).size())
        }
        place if place == u64::from(thunks.leave_near) => 6,
        place if place == u64::from(thunks.leave_far) => 4,
        _ => 0,
    }
}

fn intel(instr: &Instruction, names: Option<Names>) -> String {
    let resolver = names.map(|names| Box::new(names) as Box<dyn SymbolResolver>);
    let mut formatter = IntelFormatter::with_options(resolver, None);
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_branch_leading_zeros(false);
    let mut text = String::new();
    formatter.format(instr, &mut text);
    text
}

/// What addresses and fields are called.
struct Names {
    thunks: Thunks,
    targets: BTreeSet<u64>,
}

impl SymbolResolver for Names {
    fn symbol(
        &mut self,
        instr: &Instruction,
        _: u32,
        operand: Option<u32>,
        address: u64,
        _: u32,
    ) -> Option<SymbolResult<'_>> {
        let kind = instr.op_kind(operand?);
        let name = match kind {
            OpKind::Memory if instr.segment_prefix() == Register::GS => field_name(address as i32)?,
            OpKind::NearBranch64 => self.target(address)?,
            _ => return None,
        };
        Some(SymbolResult::with_string(address, name))
    }
}

impl Names {
    fn target(&self, address: u64) -> Option<String> {
        let Thunks { leave, leave_near, leave_far, guard_miss, call_out, .. } = self.thunks;
        let Thunks { live, crossing, again, .. } = self.thunks;
        let thunks = [
            (leave, "leave"),
            (leave_near, "leave_near"),
            (leave_far, "leave_far"),
            (guard_miss, "guard_miss"),
            (call_out, "call_out"),
            (self.thunks.call_out_aside, "call_out_aside"),
            (self.thunks.slot.read, "slot_read"),
            (self.thunks.slot.write, "slot_write"),
            (live.sse, "live_sse"),
            (live.avx, "live_avx"),
            (live.x87, "live_x87"),
            (crossing.load, "crossing_load"),
            (crossing.prepare_store, "crossing_prepare_store"),
            (crossing.store, "crossing_store"),
            (again.read, "again_read"),
            (again.write, "again_write"),
        ];
        let strings = self.thunks.strings;
        let strings = [(strings.moves, ["movsb", "movsw", "movsd", "movsq"])]
            .into_iter()
            .chain([(strings.stores, ["stosb", "stosw", "stosd", "stosq"])])
            .flat_map(|(places, names)| places.into_iter().zip(names));
        let thunk =
            thunks.into_iter().chain(strings).find(|&(place, _)| u64::from(place) == address);
        let here = || self.targets.iter().position(|&target| target == address);
        thunk.map(|(_, name)| name.to_owned()).or_else(|| here().map(|number| number.to_string()))
    }
}

/// Beside GS.
fn field_name(offset: i32) -> Option<String> {
    let fields = [
        (RFLAGS, "rflags"),
        (RIP, "rip"),
        (CPL, "cpl"),
        (SHADOW, "shadow"),
        (KERNEL_GS_BASE, "kernel_gs_base"),
        (segment_base(4), "fs_base"),
        (segment_base(5), "gs_base"),
        (field!(page), "page"),
        (field!(translations), "translations"),
        (field!(second), "second"),
        (field!(stack_read), "stack_read"),
        (field!(stack_write), "stack_write"),
        (field!(stack_host), "stack_host"),
        (field!(guards), "guards"),
        (field!(jumps), "jumps"),
        (field!(pending), "pending"),
        (field!(flags), "flags"),
        (field!(rcx), "kept_rcx"),
        (field!(target), "target"),
        (field!(from), "from"),
        (field!(stack), "stack"),
        (field!(limit), "limit"),
        (field!(system.held), "held"),
        (field!(system.tsc_refused), "tsc_refused"),
        (field!(system.tsc_offset), "tsc_offset"),
        (field!(system.tsc_aux), "tsc_aux"),
        (field!(system.bases_refused), "bases_refused"),
        (field!(system.copies_told), "copies_told"),
        (field!(system.calls), "calls"),
        (field!(system.supervisor), "supervisor"),
        (field!(system.user), "user"),
        (field!(system.moved), "moved"),
        (field!(vector.sse_off), "sse_off"),
        (field!(vector.avx_off), "avx_off"),
        (field!(vector.x87_off), "x87_off"),
    ];
    let registers = (0..16).map(|slot| (register(slot), format!("guest_r{slot}")));
    let segments = (0..6).map(|slot| (segment(slot), format!("segment_{slot}")));
    let fields = fields.into_iter().map(|(known, name)| (known, name.to_owned()));
    let known = fields.chain(registers).chain(segments).filter(|&(known, _)| known <= offset);
    let (known, name) = known.max_by_key(|&(known, _)| known)?;
    Some(if known == offset { name } else { format!("{name}_and_{}", offset - known) })
}

#[test]
fn nothing_is_emitted_for_a_nop() {
    let nops = Translated::new(&[NOP; 3]);
    assert!(nops.mark(0) == nops.mark(1) && nops.mark(1) == nops.mark(2));
}
