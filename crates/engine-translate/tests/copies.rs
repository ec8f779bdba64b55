//! Copies of whole pages within the kernel's half are told, whoever executes the instruction; others are not.

use engine::conformance::layout::{DATA, PML4};
use engine::conformance::payload::Asm;
use engine::conformance::rig::Rig;
use engine_translate::{Options, TranslateEngine};
use iced_x86::code_asm::*;
use memory::{Event, Frame};

/// The first address of the kernel's half, where memory is a second time.
const HALF: u64 = 0xffff_8000_0000_0000;
const PAGE: u64 = 4096;

#[derive(Clone, Copy)]
struct Copy {
    to: u64,
    from: u64,
    count: u64,
    bytes: bool,
}

/// The `number`th pair of pages.
fn pages(number: u64) -> (u64, u64) {
    let from = DATA + number * 2 * PAGE;
    (from, from + PAGE)
}

fn copies() -> [Copy; 6] {
    let copy = |number, [in_from, in_to]: [u64; 2], count, bytes| {
        let (from, to) = pages(number);
        Copy { to: to + in_to, from: from + in_from, count, bytes }
    };
    [
        copy(0, [HALF, HALF], 512, false),
        copy(1, [HALF, HALF], 4096, true),
        // Not all of it, in two pages, for a program, from one.
        copy(2, [HALF, HALF], 511, false),
        copy(3, [HALF + 8, HALF], 512, false),
        copy(4, [HALF, 0], 512, false),
        copy(5, [0, HALF], 512, false),
    ]
}

fn payload(a: &mut CodeAssembler) -> Asm {
    for Copy { to, from, count, bytes } in copies() {
        a.mov(rsi, from)?;
        a.mov(rdi, to)?;
        // From now on translations to both pages are there.
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(qword_ptr(rdi), rax)?;
        a.mov(rcx, count)?;
        if bytes {
            a.rep().movsb()?;
        } else {
            a.rep().movsq()?;
        }
    }
    Ok(())
}

fn told(options: Options) {
    let engine = TranslateEngine::with(options).expect("the engine starts");
    let mut rig = Rig::with(&engine, payload);
    rig.set_word(PML4 + (HALF >> 39 & 0x1ff) * 8, rig.word(PML4));
    let frame = |gpa: u64| Frame(u32::try_from(gpa / PAGE).expect("a small address"));
    rig.memory.listen(64);
    rig.memory.watch((0..6).map(|number| frame(pages(number).0)));
    for number in 0..6 {
        rig.set_word(pages(number).0 + 8, number + 70);
    }
    rig.run();
    let events = rig.memory.events().expect("somebody listens");
    let mut inbox = memory::Inbox::default();
    let told: Vec<_> =
        std::iter::from_fn(|| inbox.take(events)).map(|stamped| stamped.event).collect();
    let copied = |number| {
        let (from, to) = pages(number);
        Event::Copied { from: frame(from), to: frame(to) }
    };
    let told: Vec<_> =
        told.into_iter().filter(|event| matches!(event, Event::Copied { .. })).collect();
    assert_eq!(told, [copied(0), copied(1)]);
    let copies = [0, 1, 2, 4, 5].map(|number| rig.word(pages(number).1 + 8));
    assert_eq!(copies, [70, 71, 72, 74, 75]);
}

#[test]
fn the_interpreter_tells_of_copies() {
    told(Options { translate: false, ..Options::default() });
}

#[test]
fn generated_code_tells_of_copies() {
    told(Options { hot: 1, ..Options::default() });
}
