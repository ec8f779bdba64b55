//! Loops that are about to run often, and what an earlier run has translated, are translated before they have run
//! often; the guest sees no difference.

use std::fs::File;
use std::io::Seek;
use std::sync::Arc;

use engine::conformance::layout::DATA;
use engine::conformance::payload::{Asm, Payload};
use engine::conformance::rig::Rig;
use engine_translate::{Options, Predict, Profile, TranslateEngine};
use iced_x86::code_asm::*;

/// Never reached by counting.
const HOT: u32 = 1000;
/// Of each loop; fewer than that.
const TRIPS: u32 = 900;
/// Enough for a loop to be translated when it begins.
const ENOUGH: u32 = 800;

/// What a payload logs, and how many instructions of it were interpreted.
fn run(engine: TranslateEngine, write: impl FnOnce(&mut CodeAssembler) -> Asm) -> (Vec<u32>, u64) {
    let mut rig = Rig::with(&engine, write);
    let log = rig.run().log;
    (log, rig.vm.translation()["instructions_interpreted"])
}

fn engine(hot: u32, predict: bool) -> TranslateEngine {
    predicting(hot, if predict { Predict::Everything } else { Predict::Nothing })
}

fn predicting(hot: u32, predict: Predict) -> TranslateEngine {
    let options = Options { hot, predict, ..Options::default() };
    TranslateEngine::with(options).expect("the engine starts")
}

/// The bound in a register, and the whole loop one block.
fn one_block(a: &mut CodeAssembler) -> Asm {
    let mut again = a.create_label();
    a.mov(ecx, TRIPS)?;
    a.xor(eax, eax)?;
    a.mov(ebx, 1)?;
    a.set_label(&mut again)?;
    a.add(eax, ebx)?;
    a.lea(ebx, ptr(rbx + rbx * 2))?;
    a.dec(ecx)?;
    a.jnz(again)?;
    a.log_eax()
}

/// The bound in memory; two ways through the loop, and a function that it calls.
fn several_blocks(a: &mut CodeAssembler) -> Asm {
    let (mut again, mut even, mut function, mut out) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.mov(r12d, DATA as u32)?;
    a.mov(dword_ptr(r12), TRIPS)?;
    a.xor(ebx, ebx)?;
    a.xor(ebp, ebp)?;
    a.set_label(&mut again)?;
    a.test(ebx, 1)?;
    a.jz(even)?;
    a.add(ebp, 7)?;
    a.set_label(&mut even)?;
    a.call(function)?;
    a.inc(ebx)?;
    a.cmp(ebx, dword_ptr(r12))?;
    a.jb(again)?;
    a.jmp(out)?;
    a.set_label(&mut function)?;
    a.lea(ebp, ptr(rbp + rbp * 4 + 1))?;
    a.ret()?;
    a.set_label(&mut out)?;
    a.mov(eax, ebp)?;
    a.log_eax()
}

/// 256 times until a sequence of random numbers begins again: no counter, no limit.
fn trips_that_nothing_tells(a: &mut CodeAssembler) -> Asm {
    let (mut again, mut even) = (a.create_label(), a.create_label());
    a.xor(eax, eax)?;
    a.xor(ebx, ebx)?;
    a.set_label(&mut again)?;
    a.lea(eax, ptr(rax + rax * 4 + 1))?;
    a.test(eax, 1)?;
    a.jz(even)?;
    a.add(ebx, 3)?;
    a.set_label(&mut even)?;
    a.and(eax, 0xff)?;
    a.jnz(again)?;
    a.mov(eax, ebx)?;
    a.log_eax()
}

#[test]
fn what_runs_again_soon_is_translated() {
    let (log, counted) = run(predicting(HOT, Predict::Nothing), trips_that_nothing_tells);
    assert!(log == [128 * 3] && counted > 256 * 5, "{log:?}, {counted} instructions interpreted");
    let (same_log, soon) = run(predicting(HOT, Predict::Everything), trips_that_nothing_tells);
    assert!(same_log == log && counted - soon > 250 * 5, "{soon} of {counted} interpreted");
    // It runs in the kernel.
    let (same_log, kernel) = run(predicting(HOT, Predict::Programs), trips_that_nothing_tells);
    assert_eq!((same_log, kernel), (log, counted));
}

#[test]
fn a_loop_with_many_trips_ahead_is_translated_at_once() {
    for (write, per_trip) in [(one_block as fn(&mut CodeAssembler) -> Asm, 4), (several_blocks, 8)]
    {
        let (counted_log, counted) = run(engine(HOT, false), write);
        let (log, predicted) = run(engine(ENOUGH, true), write);
        assert_eq!(counted_log, log);
        assert!(counted > u64::from(TRIPS) * per_trip, "{counted} instructions interpreted");
        // What is left is in ways through the loop that its first trip did not take.
        assert!(predicted * 5 < counted, "{predicted} of {counted} instructions interpreted");
    }
}

#[test]
fn a_loop_with_few_trips_ahead_is_left_alone() {
    let (_, counted) = run(engine(HOT, false), one_block);
    let (_, predicted) = run(engine(HOT, true), one_block);
    assert_eq!(counted, predicted);
}

#[test]
fn what_an_earlier_run_translated_is_translated_when_it_is_met() {
    let mut file = tempfile::tempfile().expect("file");
    let other: File = file.try_clone().expect("file");
    let (log, counted) = run(engine(10, false).with_profile_out(Arc::new(other)), several_blocks);
    file.rewind().expect("start");
    let profile = Profile::read(file).expect("profile");
    let (known_log, known) = run(engine(10, false).with_profile(profile), several_blocks);
    assert_eq!(log, known_log);
    // All that is left is what runs once.
    assert!(known * 3 < counted, "{known} of {counted} instructions interpreted");
}
