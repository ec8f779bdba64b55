//! This engine passes the conformance suite, a test a topic.

use std::sync::Arc;

use engine_translate::TranslateEngine;

fn passes(topic: &str) {
    let engine = Arc::new(TranslateEngine::new().expect("the engine starts"));
    // One case, where somebody looks for its defect: CONFORMANCE=topic/case.
    let only = std::env::var("CONFORMANCE").unwrap_or_default();
    let wanted = |name: &str| name.split('/').next() == Some(topic) && name.contains(&only);
    let report = engine::conformance::run(engine, wanted);
    assert!(report.failures.is_empty(), "{:#?}", report.failures);
    for (case, why) in report.skipped {
        println!("skipped {case}: {why}");
    }
}

macro_rules! topics {
    ($($topic:ident),+ $(,)?) => {
        $(#[test] fn $topic() { passes(stringify!($topic)); })+

        #[test]
        fn every_topic_is_run() {
            let run = [$(stringify!($topic)),+];
            for case in engine::conformance::cases() {
                let topic = case.name.split('/').next().unwrap_or_default();
                assert!(run.contains(&topic), "{topic}: not among the tests of this file");
            }
        }
    };
}

topics!(
    ports,
    mmio,
    moves,
    msrs,
    page_faults,
    accessed_dirty,
    translation,
    exceptions,
    single_step,
    breakpoints,
    calls,
    debugger,
    debugger_breakpoints,
    double_fault,
    segments,
    strings,
    interrupts,
    io_apic,
    timers,
    user_mode,
    smp,
    atomics,
    ordering,
    self_modifying,
    backing,
    freeze,
    memory_facts,
    state,
    kicks,
    processor,
    shown,
    vector_state,
);
