//! A block and its code as text, for people.

use std::fmt::Write;
use std::ops::Range;
use std::sync::Arc;

use iced_x86::{Code, Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter};

use super::memory::Lease;
use super::thunks::Thunks;

/// Code that was just made.
#[derive(Clone, Debug)]
pub struct Emitted {
    pub(super) memory: Arc<Lease>,
    pub(super) range: Range<u32>,
    /// Where the code of each guest instruction starts.
    pub(super) marks: Vec<u32>,
    /// Where the rare begins.
    pub(super) stubs: u32,
    pub(super) thunks: Thunks,
}

impl Emitted {
    /// Host addresses that it is executed at.
    #[must_use]
    pub fn addresses(&self) -> Range<usize> {
        self.memory.address(self.range.start)..self.memory.address(self.range.end)
    }

    /// The guest's instructions, which are the bytes `source` at `start`, each followed by its host code.
    #[must_use]
    pub fn listing(&self, start: u64, source: &[u8]) -> String {
        let mut text = format!("guest {start:#x}, {} bytes:\n", source.len());
        self.list_host(&mut text, self.range.start..self.mark(0));
        let mut decoder = Decoder::with_ip(64, source, start, DecoderOptions::FORCE_RESERVED_NOP);
        for index in 0..self.marks.len() {
            let instr = decoder.decode();
            let _ = writeln!(text, "{:x}  {}", instr.ip(), intel(&instr));
            self.list_host(&mut text, self.mark(index)..self.mark(index + 1));
        }
        text.push_str("stubs:\n");
        self.list_host(&mut text, self.stubs..self.range.end);
        text
    }

    fn mark(&self, index: usize) -> u32 {
        self.marks.get(index).copied().unwrap_or(self.stubs)
    }

    fn list_host(&self, text: &mut String, places: Range<u32>) {
        let start = self.memory.address(places.start) as u64;
        let code = self.memory.read(places);
        let mut decoder = Decoder::with_ip(64, &code, start, DecoderOptions::NONE);
        while decoder.can_decode() {
            let instr = decoder.decode();
            let Some((name, data)) = self.thunk(&instr) else {
                let _ = writeln!(text, "{:>24x}  {}", instr.ip(), intel(&instr));
                continue;
            };
            let _ = writeln!(text, "{:>24x}  {name}", instr.ip());
            let behind = (decoder.position() + data).min(code.len());
            if decoder.set_position(behind).is_err() {
                return;
            }
            decoder.set_ip(start + behind as u64);
        }
    }

    fn thunk(&self, instr: &Instruction) -> Option<(&'static str, usize)> {
        let place = instr.near_branch_target().wrapping_sub(self.memory.address(0) as u64);
        let called = instr.code() == Code::Call_rel32_64;
        u32::try_from(place).ok().filter(|_| called).and_then(|place| self.thunks.called(place))
    }
}

fn intel(instr: &Instruction) -> String {
    let mut text = String::new();
    let mut formatter = IntelFormatter::new();
    formatter.options_mut().set_hex_prefix("0x");
    formatter.options_mut().set_hex_suffix("");
    formatter.options_mut().set_uppercase_hex(false);
    formatter.options_mut().set_branch_leading_zeros(false);
    formatter.format(instr, &mut text);
    text
}
