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

#[cfg(test)]
mod tests {
    use super::super::{CodeCache, Options};
    use super::*;
    use crate::block::Block;
    use crate::block::tests::Idle;
    use crate::cpu::Width;
    use crate::decode::decode_block;

    #[test]
    fn a_block_is_listed_with_its_code() {
        // add rax, rcx; mov [rdx], rax; cpuid; jmp to itself
        let source = [0x48, 1, 0xc8, 0x48, 0x89, 2, 0x0f, 0xa2, 0xeb, 0xfe];
        let mode = crate::Mode { width: Width::Bits64 };
        let insns = decode_block(&source, mode, 8).insns;
        let len: usize = insns.iter().map(|insn| usize::from(insn.len)).sum();
        let block = Arc::new(Block::<Idle>::new(insns, 0x5010, None));
        let cache = CodeCache::new(1 << 20, Options::default()).expect("memory");
        let made = cache.translate(&block, &source[..len], 7).expect("code").expect("new code");
        assert!(cache.translate(&block, &source[..len], 7).expect("code").is_none());
        let text = made.listing(0x5010, &source[..len]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], format!("guest 0x5010, {len} bytes:"));
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
        assert_eq!((stats.blocks, stats.guest_bytes), (1, len as u64));
        let addresses = made.addresses();
        let emitted = stats.code_bytes + stats.stub_bytes;
        assert_eq!(addresses.len() as u64, emitted);
        cache.reset();
        assert_eq!((cache.stats().evictions, cache.stats().bookkeeping_bytes), (1, 0));
    }
}
