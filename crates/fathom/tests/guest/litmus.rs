//! Several processors see of each other's loads and stores what x86 lets them, and nothing else.

use crate::console::events;
use crate::engine::Engine;
use crate::processor;
use crate::sandbox::Sandbox;
use crate::vm::Guest;

/// All that two processors can be tested for; how often is asked for in percent.
#[test]
fn two_processors_see_what_x86_allows() {
    see_what_x86_allows("litmus", 2, 43, &[]);
}

/// What takes a third and a fourth.
#[test]
fn four_processors_agree_on_the_order_of_stores() {
    see_what_x86_allows("litmus:wrc,rwc,iriw", 4, 3, &[]);
}

/// Code is thrown away, and made again, all the time.
#[test]
fn two_processors_with_little_room_for_code_see_the_same() {
    if Engine::under_test() == Engine::Translate {
        see_what_x86_allows("litmus", 2, 43, &["--translate", "code=256K"]);
    }
}

fn see_what_x86_allows(work: &str, cpus: u32, count: usize, more: &[&str]) {
    if processor::is_not_ours("what processors see of each other's stores") {
        return;
    }
    let percent = if more.is_empty() { 20 } else { 5 };
    let words = format!("fathom.run={work} fathom.scale={percent}");
    let words = format!("{words} watchdog_thresh=60");
    let ended = Guest::new(&words).cpus(cpus).arguments(more).run(&Sandbox::new()).well();
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
