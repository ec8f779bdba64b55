//! The same instruction on the same state, natively and through the handlers.
//!
//! The host's instruction is its own oracle here; what is compared is everything around it: which
//! registers and flags are loaded and stored, memory operands, alignment, faults, MXCSR and x87 exceptions.

mod generate;
mod machine;
mod native;
mod pieces;
mod random;
mod speed;

use iced_x86::{Code, Formatter, IntelFormatter};
use x86::Vector;

use self::generate::{Case, WINDOW};
use self::machine::Flat;
use self::native::{Native, State};
use self::random::Random;
use crate::block::Mode;
use crate::cpu::{Cpu, Width};
use crate::decode::decode_crossing;
use crate::interp::Core;
use crate::machine::Stop;
use crate::vector::image::MXCSR;

/// MXCSR flags OE and UE, and PE, which is not exact beside them (see `vector::mxcsr`).
const OVERFLOW_OR_UNDERFLOW: u8 = 0x18;
const PRECISION: u8 = 0x20;

/// Instructions tried without `FATHOM_FUZZ_CASES`.
const CASES: u64 = 250_000;

#[test]
fn every_instruction_acts_as_natively() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let cases = number("FATHOM_FUZZ_CASES").unwrap_or(CASES);
    let mut random = Random::new(number("FATHOM_FUZZ_SEED").unwrap_or(1));
    let codes: Vec<Code> = generate::accepted();
    let mut bench = Bench::new();
    let mut failures = Failures::default();
    for case in 0..cases {
        let code = codes[(case % codes.len() as u64) as usize];
        let (window, slot) = (bench.native.window(), bench.native.slot());
        let Some(case) = Case::new(&mut random, code, window, slot) else { continue };
        if let Some(difference) = bench.compare(&mut random, &case) {
            failures.note(&case, difference);
        }
    }
    failures.report(bench.compared);
}

/// No instruction of an instruction set that CPUID may show is left out.
#[test]
fn nothing_exposed_is_missing() {
    let missing = generate::missing();
    assert!(missing.is_empty(), "not executed: {missing:?}");
}

struct Bench {
    native: Native,
    core: Core<Flat>,
    compared: u64,
}

impl Bench {
    fn new() -> Self {
        let native = Native::new();
        let machine = Flat::new(native.window());
        Self { native, core: Core { cpu: Cpu::new(), machine }, compared: 0 }
    }

    /// Runs the instruction both ways; says what differs.
    fn compare(&mut self, random: &mut Random, case: &Case) -> Option<String> {
        let mut state = State::random(random);
        let mut window = random.bytes::<WINDOW>();
        case.prepare(random, &mut state, &mut window, self.native.window().start);
        let bytes = case.encode(self.native.slot())?;
        self.compared += 1;

        self.native.set_window(&window);
        let expected = self.native.run(&bytes, &state);
        let expected_window = self.native.window_bytes();

        self.native.set_window(&window);
        state.enter(&mut self.core.cpu);
        let vector = match self.interpret(&bytes) {
            Ok(()) => None,
            Err(Stop::Fault) => self.core.machine.raised.take().map(|raised| raised.vector),
            Err(stop) => return Some(format!("stopped by {stop:?}")),
        };
        if case.is_sha() && expected.vector == Some(Vector::GP) {
            // Intel's processors check the alignment, which is not done here.
            return None;
        }
        if vector != expected.vector
            && !(case.instr.is_vsib() && expected.vector == Some(Vector::SS))
        {
            return Some(format!("raised {vector:?}, natively {:?}", expected.vector));
        }
        if vector.is_some() && case.instr.is_vsib() {
            // How many elements are gathered beyond the one that faults is up to the processor.
            return None;
        }
        let ignored = if vector.is_some() { 0 } else { case.undefined_flags() };
        let mut actual = State::leave(&self.core.cpu);
        if vector == Some(Vector::XM) && case.is_dot_product() {
            actual.image[MXCSR] = expected.state.image[MXCSR];
        }
        if vector == Some(Vector::XM) && actual.image[MXCSR] & OVERFLOW_OR_UNDERFLOW != 0 {
            actual.image[MXCSR] &= expected.state.image[MXCSR] | !PRECISION;
        }
        expected
            .state
            .difference(&actual, &state, ignored)
            .or_else(|| self.window_difference(case, &expected_window, &self.native.window_bytes()))
    }

    fn interpret(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let insn = decode_crossing::<Flat>(bytes, Mode { width: Width::Bits64 });
        let insn = insn.expect("a whole instruction");
        assert_eq!(insn.len as usize, bytes.len());
        self.core.cpu.set_rip(self.native.slot() + bytes.len() as u64);
        let outcome = (insn.handler)(&mut self.core, &insn);
        assert_eq!(host_control(), (0x1f80, 0x37f), "a thunk left its rounding behind");
        outcome
    }

    fn window_difference(
        &self,
        case: &Case,
        expected: &[u8; WINDOW],
        actual: &[u8; WINDOW],
    ) -> Option<String> {
        let start = self.native.window().start;
        let operand = case.address.unwrap_or(start).wrapping_sub(start) as usize;
        let uncompared = case.uncompared();
        let skipped = |at: usize| {
            uncompared.iter().any(|&[from, to]| (from..to).contains(&at.wrapping_sub(operand)))
        };
        let differs = |at: &usize| expected[*at] != actual[*at] && !skipped(*at);
        let at = (0..WINDOW).find(differs)?;
        Some(format!(
            "byte {} of the operand is {:#04x}, natively {:#04x}",
            at as i64 - operand as i64,
            actual[at],
            expected[at]
        ))
    }
}

/// MXCSR without its flags, and the x87 control word, as compiled code finds them.
fn host_control() -> (u32, u16) {
    let (mut mxcsr, mut control) = (0u32, 0u16);
    // SAFETY: both instructions only store, into locals of the right size.
    unsafe {
        std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr, options(nostack));
        std::arch::asm!("fnstcw [{}]", in(reg) &raw mut control, options(nostack));
    }
    (mxcsr & !0x3f, control)
}

#[derive(Default)]
struct Failures {
    by_code: std::collections::BTreeMap<String, (u64, String)>,
}

impl Failures {
    fn note(&mut self, case: &Case, difference: String) {
        let mut text = String::new();
        IntelFormatter::new().format(&case.instr, &mut text);
        let entry = self.by_code.entry(format!("{:?}", case.instr.code()));
        entry.or_insert_with(|| (0, format!("{text}: {difference}"))).0 += 1;
    }

    fn report(&self, compared: u64) {
        println!("{compared} instructions compared");
        for (code, (count, example)) in &self.by_code {
            println!("{code}: {count} times, such as {example}");
        }
        assert!(self.by_code.is_empty(), "{} kinds of instruction differ", self.by_code.len());
        assert!(compared > 1000, "hardly anything was compared");
    }
}
