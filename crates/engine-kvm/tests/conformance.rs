//! This engine passes the conformance suite, a test a topic. Only where KVM can run guests: elsewhere the
//! suite is run inside a virtual machine that can (`cargo xtask lab`), and says so here, loudly.

mod deviations;

use std::sync::{Arc, OnceLock};

use deviations::Kind;
use engine::Engine;
use engine_kvm::{KvmEngine, probe};
use engine_translate::TranslateEngine;

/// The engine, or why there is none. A test run that must have it sets `FATHOM_REQUIRE_KVM`.
fn engine() -> Option<Arc<KvmEngine>> {
    static USABLE: OnceLock<Result<(), String>> = OnceLock::new();
    let usable = USABLE.get_or_init(|| probe().map_err(|error| error.to_string()));
    match usable {
        Ok(()) => Some(Arc::new(KvmEngine::new().expect("the engine starts"))),
        Err(why) => {
            assert!(std::env::var_os("FATHOM_REQUIRE_KVM").is_none(), "no KVM: {why}");
            eprintln!("NOT TESTED on the KVM engine: {why}: run `cargo xtask lab`");
            None
        }
    }
}

/// What QEMU's translator lacks as a host of virtual machines: it loads their debug registers without setting
/// breakpoints, and sets breakpoints of theirs that outlive them, which ends it; INT3 is not intercepted.
const NOT_IN_THE_LAB: [&str; 2] = ["breakpoints", "debugger_breakpoints"];

/// So often a case is run that depends on time.
const ATTEMPTS: usize = 5;

fn passes(topic: &str) {
    let Some(engine) = engine() else { return };
    if deviations::is_lab() && NOT_IN_THE_LAB.contains(&topic) {
        eprintln!(
            "NOT TESTED on the KVM engine: {topic}: run `cargo xtask lab` on a host that has KVM"
        );
        return;
    }
    // One case, where somebody looks for its defect: CONFORMANCE=topic/case.
    let only = std::env::var("CONFORMANCE").unwrap_or_default();
    let wanted = |name: &str| name.split('/').next() == Some(topic) && name.contains(&only);
    let report = engine::conformance::run(Arc::clone(&engine) as Arc<dyn Engine>, wanted);
    println!("kvm: {topic}: {} passed, {} skipped", report.passed.len(), report.skipped.len());
    for (case, why) in report.skipped {
        println!("skipped {case}: {why}");
    }
    let mut failures = report.failures;
    for deviation in deviations::here().iter().filter(|deviation| wanted(deviation.case)) {
        let case = deviation.case;
        println!("deviates {case}: {}", deviation.why);
        assert!(
            !(deviation.must_fail() && report.passed.contains(&case)),
            "{case} passes: take it out of deviations/list.txt"
        );
        failures.retain(|(failed, _)| {
            *failed != case || deviation.kind == Kind::Race && !passes_in_time(&engine, case)
        });
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Whether a case that has failed once passes at a further attempt.
fn passes_in_time(engine: &Arc<KvmEngine>, case: &str) -> bool {
    (1..ATTEMPTS).any(|_| {
        let report =
            engine::conformance::run(Arc::clone(engine) as Arc<dyn Engine>, |name| name == case);
        println!("again {case}: {:?}", report.failures);
        report.failures.is_empty()
    })
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

/// A state that one engine gives out goes on on the other.
#[test]
fn moves_from_and_to_the_translator() {
    let Some(kvm) = engine() else { return };
    let translate = Arc::new(TranslateEngine::new().expect("the engine starts"));
    let there = engine::conformance::run_moves(translate.clone(), kvm.clone());
    let back = engine::conformance::run_moves(kvm, translate);
    for (way, report) in [("translate to kvm", there), ("kvm to translate", back)] {
        println!("{way}: {} passed, {} skipped", report.passed.len(), report.skipped.len());
        assert!(!report.passed.is_empty() && report.failures.is_empty(), "{way}: {report:#?}");
    }
}
