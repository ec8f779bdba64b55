//! A difference between interpreter and generated code, as text.

use std::fmt::Write;
use std::ops::Range;

use memory::FRAME_SIZE;
use translator::paths::Source;

use super::End;
use super::journal::LINE;
use super::piece::Piece;
use super::state::State;
use crate::fetch;
use crate::system::Core;

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// See the module.
pub(super) struct Difference {
    /// Of the first instruction.
    rip: u64,
    /// What differs, in few words.
    names: Vec<String>,
    /// All that is known, by lines.
    text: String,
}

impl Difference {
    /// The states before and after the interpreter, beside the core's; how the two ended; and the bits of RFLAGS
    /// that count.
    pub(super) fn new(
        core: &Core,
        (before, expected): (&State, &State),
        (expected_end, found_end): (&End, &End),
        flags: u64,
    ) -> Self {
        let mut difference = Self { rip: before.rip(), names: Vec::new(), text: String::new() };
        let found = State::of(&core.cpu);
        difference.ends(expected_end, found_end);
        difference.registers([before, expected, &found], flags);
        difference.vectors(expected, &found);
        difference.memory(core);
        difference
    }

    /// Prints all that is known, with the path's listing, and returns one line.
    pub(super) fn tell(&self, core: &mut Core, piece: &Piece) -> String {
        let (rip, page) = (self.rip, piece.block.start >> 12);
        let mut bytes = vec![0; FRAME_SIZE];
        let read = fetch::read_code(core, page << 12, &mut bytes);
        let listing = read.ok().and_then(|()| {
            let shared = std::sync::Arc::clone(&core.machine.shared);
            let source = Source { bytes: &bytes, first: 0 };
            shared.code.list(&piece.path, source, page, piece.block.code_frame()?)
        });
        let listing = listing.unwrap_or_else(|| "no listing: no memory for code is left\n".into());
        let head = format!("fathom: interpreter and translated code differ at rip {rip:#x}\n");
        // On a terminal in raw mode a line feed does not return to the margin.
        eprint!("{}", format!("{head}{}{listing}", self.text).replace('\n', "\r\n"));
        let names = self.names.join(", ");
        format!("interpreter and translated code differ at rip {rip:#x} in {names}: see above")
    }

    fn line(&mut self, name: &str, before: &str, expected: &str, found: &str) {
        let mark = if expected == found { ' ' } else { '*' };
        let _ = writeln!(self.text, "{mark} {name:<8} {before:>20} {expected:>20} {found:>20}");
    }

    fn differs(&mut self, name: impl Into<String>) {
        self.names.push(name.into());
    }

    fn ends(&mut self, expected: &End, found: &End) {
        self.line("", "before", "interpreter", "translated");
        let end = |end: &End| match (end.fault, end.refused, end.interpret) {
            (Some((fault, ..)), ..) => format!("{:?} {:#x}", fault.vector, fault.error_code),
            (_, true, _) => "before once only".into(),
            (_, _, true) => "to interpreter".into(),
            _ => format!("{:?}", end.outcome),
        };
        self.line("end", "", &end(expected), &end(found));
        if !expected.allows(found) {
            self.differs("their ends");
            let _ = writeln!(self.text, "  faults: {:?}, {:?}", expected.fault, found.fault);
        }
    }

    fn registers(&mut self, [before, expected, found]: [&State; 3], flags: u64) {
        let value = |value: u64| format!("{value:#x}");
        let mut row = |name: &str, values: [u64; 3]| {
            let [before, expected, found] = values.map(value);
            self.line(name, &before, &expected, &found);
            if expected != found {
                self.differs(name);
            }
        };
        row("rip", [before.rip(), expected.rip(), found.rip()]);
        row("rflags", [before.rflags, expected.rflags & flags, found.rflags & flags]);
        for (slot, name) in NAMES.into_iter().enumerate() {
            row(name, [before, expected, found].map(|state| state.regs[slot]));
        }
        for (slot, name) in ["es", "cs", "ss", "ds", "fs", "gs"].into_iter().enumerate() {
            if expected.segs[slot] != found.segs[slot] {
                self.differs(name);
                let (a, b) = (expected.segs[slot], found.segs[slot]);
                let _ = writeln!(self.text, "* {name}: {a:x?}, {b:x?}");
            }
        }
    }

    fn vectors(&mut self, expected: &State, found: &State) {
        let (a, b) = (&expected.image, &found.image);
        for (name, range) in components() {
            if a[range.clone()] != b[range.clone()] {
                let _ = writeln!(self.text, "* {name}: {:02x?}", &a[range.clone()]);
                let _ = writeln!(self.text, "  {:>1$}: {2:02x?}", "", name.len(), &b[range]);
                self.differs(name);
            }
        }
    }

    fn memory(&mut self, core: &Core) {
        // SAFETY: as where the comparison was made.
        for (line, now) in unsafe { core.machine.journal.differing() } {
            for at in (0..LINE).filter(|&at| line.new[at] != now[at]) {
                let (va, old, new, now) =
                    (line.va + at as u64, line.old[at], line.new[at], now[at]);
                let by = if line.has(at) { "" } else { ", which the interpreter did not write" };
                let text = format!("byte {va:#x}: {old:02x}, then {new:02x} and {now:02x}{by}");
                let _ = writeln!(self.text, "* {text}");
            }
            self.differs(format!("memory at {:#x}", line.va));
        }
    }
}

/// Parts of the XSAVE image (SDM volume 1, 10.5.1 and 13.4).
fn components() -> Vec<(String, Range<usize>)> {
    let mut parts = vec![("x87 control".into(), 0..24), ("mxcsr".into(), 24..28)];
    parts.extend((0..8).map(|n| (format!("st{n}"), 32 + 16 * n..48 + 16 * n)));
    parts.extend((0..16).map(|n| (format!("xmm{n}"), 160 + 16 * n..176 + 16 * n)));
    parts.push(("xsave header".into(), 512..576));
    parts.extend((0..16).map(|n| (format!("ymm{n} high"), 576 + 16 * n..592 + 16 * n)));
    parts
}
