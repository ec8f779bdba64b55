//! A block and its code as text, for people.

use std::fmt::Write;
use std::ops::Range;
use std::sync::Arc;

use iced_x86::{Code, Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter};

use super::memory::Lease;
use super::outside::Outside;
use super::thunks::Thunks;
use super::translate::Mark;
use crate::decode::MAX_LEN;
use crate::paths::Source;

/// Code that was just made.
#[derive(Clone, Debug)]
pub struct Emitted {
    pub(super) memory: Arc<Lease>,
    pub(super) range: Range<u32>,
    pub(super) marks: Vec<Mark>,
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

    /// Guest instructions in it.
    #[must_use]
    pub fn instructions(&self) -> usize {
        self.marks.len()
    }

    /// The guest's instructions, which are in `source` of the page at `page`, each followed by its host code.
    #[must_use]
    pub fn listing(&self, page: u64, source: Source<'_>) -> String {
        let head = self.marks.first().map_or(0, |mark| mark.offset);
        let start = page + u64::from(head);
        let mut text = format!("guest {start:#x}, {} instructions:\n", self.marks.len());
        self.list_host(&mut text, self.range.start..self.mark(0));
        for (index, mark) in self.marks.iter().enumerate() {
            let bytes = source.part(mark.offset, mark.offset + MAX_LEN as u32);
            let (at, options) = (page + u64::from(mark.offset), DecoderOptions::FORCE_RESERVED_NOP);
            let instr = Decoder::with_ip(64, bytes, at, options).decode();
            let _ = writeln!(text, "{:x}  {}", instr.ip(), intel(&instr));
            self.list_host(&mut text, mark.place..self.mark(index + 1));
        }
        text.push_str("stubs:\n");
        self.list_host(&mut text, self.stubs..self.range.end);
        text
    }

    fn mark(&self, index: usize) -> u32 {
        self.marks.get(index).map_or(self.stubs, |mark| mark.place)
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
            let at = decoder.position();
            let behind = (at + self.data(&instr, data, &code[at..])).min(code.len());
            if decoder.set_position(behind).is_err() {
                return;
            }
            decoder.set_ip(start + behind as u64);
        }
    }

    /// Bytes behind a call of a thunk that are not code.
    fn data(&self, call: &Instruction, fixed: usize, behind: &[u8]) -> usize {
        let target = call.near_branch_target();
        let outs = [self.thunks.call_out, self.thunks.call_out_aside];
        let out = outs.iter().any(|&place| self.memory.address(place) as u64 == target);
        match behind.first_chunk() {
            Some(&head) if out => Outside::of(head).size(),
            _ => fixed,
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

#[cfg(test)]
mod tests {
    use super::super::{CodeCache, Made, Options};
    use super::*;
    use crate::block::tests::Idle;
    use crate::paths::{Path, Policy};

    #[test]
    fn a_block_is_listed_with_its_code() {
        // add rax, rcx; mov [rdx], rax; cpuid; jmp to itself
        let bytes = [0x48, 1, 0xc8, 0x48, 0x89, 2, 0x0f, 0xa2, 0xeb, 0xfe];
        let (path, source) = (Path::run(0x10, 10), Source { bytes: &bytes, first: 0x10 });
        let cache = CodeCache::new(1 << 20, Options::default(), Policy::BLOCKS).expect("memory");
        let Made { block, emitted } = cache.translate::<Idle>(&path, source, 5, 7).expect("code");
        assert_eq!((block.start, block.len), (0x5010, 10));
        let text = emitted.listing(0x5000, source);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "guest 0x5010, 4 instructions:");
        let at = |part: &str| lines.iter().position(|line| line.contains(part)).expect(part);
        assert!(lines[at("5010  add rax,rcx") + 1].ends_with("  add rax,rcx"), "{text}");
        let (store, outside) = (at("5013  mov [rdx],rax"), at("5016  cpuid"));
        assert!(
            store < outside && lines[store..outside].concat().contains("mov [r14],rax"),
            "{text}"
        );
        let stubs = at("stubs:");
        assert!(lines[outside..stubs].concat().contains("  call outside"), "{text}");
        assert!(lines[stubs..].concat().contains("  call outside"), "the store's: {text}");
        assert!(!text.contains("(bad)"), "{text}");

        let stats = cache.stats();
        assert_eq!((stats.blocks, stats.guest_bytes), (1, 10));
        assert_eq!(emitted.addresses().len() as u64, stats.code_bytes + stats.stub_bytes);
        cache.reset();
        assert_eq!((cache.stats().evictions, cache.stats().bookkeeping_bytes), (1, 0));
    }
}
