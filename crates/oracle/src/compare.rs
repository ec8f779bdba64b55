//! Differences between two outcomes, in words.

use std::fmt::Write;

use iced_x86::Instruction;
use translator::native::in_rflags;
use x86::rflags;

use crate::arena;
use crate::state::{Fault, Outcome};

/// The flags that code under test can change.
pub const FLAGS: u64 = rflags::STATUS | rflags::DF;

/// The flags that `instr` leaves undefined.
#[must_use]
pub fn undefined_flags(instr: &Instruction) -> u64 {
    in_rflags(instr.rflags_undefined())
}

/// What differs after `code`, one item a line; empty where nothing does. Flags in `undefined` do not count.
#[must_use]
pub fn differences(code: &[u8], native: &Outcome, ours: &Outcome, undefined: u64) -> String {
    let mut out = String::new();
    let mut note = |what: &str, native: u64, ours: u64| {
        if native != ours {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{what}: host {native:#x}, interpreter {ours:#x}");
        }
    };
    for (slot, name) in NAMES.iter().enumerate() {
        note(name, native.state.gpr[slot], ours.state.gpr[slot]);
    }
    let mask = FLAGS & !undefined;
    note("rflags", native.state.rflags & mask, ours.state.rflags & mask);
    note("rip", native.rip, ours.rip);
    if native.fault != ours.fault && !both_read_wrongly(code, native, ours) {
        let _ = writeln!(out, "fault: host {:x?}, interpreter {:x?}", native.fault, ours.fault);
    }
    let bytes = native.state.data.iter().zip(ours.state.data.iter()).enumerate();
    for (at, (native, ours)) in bytes.filter(|(_, (a, b))| a != b).take(4) {
        let at = arena::DATA + at as u64;
        let _ = writeln!(out, "memory {at:#x}: host {native:#04x}, interpreter {ours:#04x}");
    }
    out
}

/// Whether a CMPS faulted in both of its operands: which of them is told is not specified. Of AMD's processors, some
/// tell [RSI] and some [RDI].
fn both_read_wrongly(code: &[u8], native: &Outcome, ours: &Outcome) -> bool {
    let reads = |fault: Option<Fault>| fault.is_some_and(|fault| !fault.write);
    let at = native.rip.wrapping_sub(arena::ENTRY) as usize;
    let prefixes = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf2, 0xf3];
    let is_prefix = |byte: &&u8| prefixes.contains(*byte) || (0x40..0x50).contains(*byte);
    let opcode = code.get(at..).unwrap_or_default().iter().find(|byte| !is_prefix(byte));
    matches!(opcode, Some(0xa6 | 0xa7)) && reads(native.fault) && reads(ours.fault)
}

/// What differs in vector and x87 registers. What the host says of its MXCSR and the header do not count; the
/// x87 pointers are addresses of this process on the host, and are to be zero in the interpreter.
#[must_use]
pub fn vector_differences(native: &Outcome, ours: &Outcome) -> String {
    let mut out = String::new();
    let images = native.state.xstate.iter().zip(ours.state.xstate.iter()).enumerate();
    let counts = |at: usize| !matches!(at, 6..24 | 28..32 | 416..576);
    for (at, (native, ours)) in images.filter(|(at, (a, b))| counts(*at) && a != b).take(8) {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "image at {at}: host {native:#04x}, interpreter {ours:#04x}");
    }
    if ours.state.xstate[6..24].iter().any(|byte| *byte != 0) {
        out.push_str("the x87 pointers are not zero\n");
    }
    out
}

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::State;

    #[test]
    fn which_operand_of_cmps_faults_first_is_open() {
        let outcome = |address| Outcome {
            state: State::default(),
            rip: arena::ENTRY,
            fault: Some(Fault::new(14, false, address)),
        };
        let found = |code: &[u8]| differences(code, &outcome(0x1000), &outcome(0x2000), 0);
        assert_eq!(found(&[0x66, 0xf3, 0xa7]), "");
        assert_eq!(found(&[0x48, 0xa6]), "");
        // scasb; mov al, [rax]; nothing
        for code in [&[0xae][..], &[0x8a, 0x00], &[]] {
            assert!(found(code).starts_with("fault: host"), "{code:x?}");
        }
    }
}
