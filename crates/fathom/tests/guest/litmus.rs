//! Several processors see of each other's loads and stores what x86 lets them, and nothing else.

use crate::console::events;
use crate::processor;
use crate::sandbox::Sandbox;
use crate::vm::Guest;

/// All that two processors can be tested for; how often is asked for in percent.
#[test]
fn two_processors_see_what_x86_allows() {
    see_what_x86_allows("litmus", 2, 43);
}

/// What takes a third and a fourth.
#[test]
fn four_processors_agree_on_the_order_of_stores() {
    see_what_x86_allows("litmus:wrc,rwc,iriw", 4, 3);
}

fn see_what_x86_allows(work: &str, cpus: u32, count: usize) {
    // On the lab's processor threads take turns, and whoever waits for another does so for its whole turn.
    let percent = if processor::in_lab() { 1 } else { 20 };
    let words = format!("fathom.run={work} fathom.scale={percent}");
    let ended = Guest::new(&words).cpus(cpus).run(&Sandbox::new()).well();
    let tests = events(&ended.console, "test");
    let wrong: Vec<_> = tests.iter().filter(|test| test["ok"] != true).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(tests.len(), count, "{tests:#?}");
    let skipped = |test: &&serde_json::Value| {
        test["seen"].as_str().is_some_and(|seen| seen.starts_with("skipped: more threads"))
    };
    assert_eq!(tests.iter().filter(skipped).count(), if cpus < 4 { 3 } else { 0 });
    assert_eq!(events(&ended.console, "litmus")[0]["cpus"], cpus);
}
