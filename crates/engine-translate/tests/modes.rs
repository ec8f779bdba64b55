//! This engine passes the conformance suite in each of its modes, with every block translated at once.

use std::sync::Arc;

use engine_translate::{Options, Predict, TranslateEngine};
use translator::native;
use translator::paths::Policy;

/// Everything is translated before it runs for the first time.
const AT_ONCE: Options = Options {
    translate: true,
    hot: 1,
    predict: Predict::Nothing,
    code_bytes: Options::CODE_MAX,
    native: native::Options::ALL,
    verify: false,
    paths: Policy::BLOCKS,
    dump: None,
};

/// Its handler goes on behind the instruction that faulted, where flags that only that instruction would have
/// overwritten can be seen: what `forget_dead_flags` gives up.
const SEES_DEAD_FLAGS: &str = "page_faults/registers_kept";

fn passes(options: Options) {
    let engine = Arc::new(TranslateEngine::with(options).expect("the engine starts"));
    let only = std::env::var("CONFORMANCE").unwrap_or_default();
    let forgets = options.translate && options.native.forget_dead_flags;
    let wanted = |name: &str| !(forgets && name == SEES_DEAD_FLAGS) && name.contains(&only);
    let report = engine::conformance::run(engine, wanted);
    assert!(report.failures.is_empty(), "{options:#?}: {:#?}", report.failures);
    assert!(!report.passed.is_empty() || !only.is_empty());
}

#[test]
fn all_code_at_once() {
    passes(AT_ONCE);
}

fn without(words: &[&str]) {
    let left_out = words.iter().try_fold(AT_ONCE.native, |native, word| native.without(word));
    passes(Options { native: left_out.expect("words"), ..AT_ONCE });
}

/// Two tests for two processors.
#[test]
fn each_optimisation_left_out() {
    let (one_half, _) = native::Options::WORDS.split_at(native::Options::WORDS.len() / 2);
    one_half.iter().for_each(|(word, _)| without(&[word]));
}

#[test]
fn each_other_optimisation_left_out() {
    let (_, other_half) = native::Options::WORDS.split_at(native::Options::WORDS.len() / 2);
    other_half.iter().for_each(|(word, _)| without(&[word]));
}

#[test]
fn nothing_leads_anywhere() {
    without(&["no-links", "no-jump-table"]);
}

/// Full, and started over, many times in each guest.
#[test]
fn room_for_a_few_blocks() {
    passes(Options { code_bytes: Options::CODE_MIN, ..AT_ONCE });
}

/// Also with dead flags forgotten: what nobody looks at is not compared.
#[test]
fn beside_the_interpreter() {
    let verified = Options { verify: true, ..AT_ONCE };
    passes(verified);
    let native = native::Options { forget_dead_flags: false, ..verified.native };
    passes(Options { native, ..verified });
}

/// Several blocks at a time, with flags that are dead behind exits.
#[test]
fn paths_beside_the_interpreter() {
    for (paths, hot) in [(Policy::PIN, 1), (Policy::FATHOM, 2), (Policy::NET, 2)] {
        let verified = Options { verify: true, paths, hot, ..AT_ONCE };
        passes(verified);
        let native = native::Options { forget_dead_flags: false, ..verified.native };
        passes(Options { native, ..verified });
    }
}

#[test]
fn loops_foreseen() {
    passes(Options { hot: 5, predict: Predict::Everything, ..AT_ONCE });
}

/// Every target is the head of a path at once, as long as it can be.
#[test]
fn paths_at_once() {
    passes(Options { paths: Policy::PIN, ..AT_ONCE });
}

/// What was interpreted twice tells where paths go.
#[test]
fn likely_paths() {
    passes(Options { paths: Policy::FATHOM, hot: 2, ..AT_ONCE });
}

#[test]
fn recorded_paths() {
    passes(Options { paths: Policy::NET, hot: 2, ..AT_ONCE });
}

#[test]
fn blocks_and_recorded_paths() {
    passes(Options { paths: Policy::DYNAMORIO, hot: 2, ..AT_ONCE });
}

#[test]
fn room_for_a_few_paths() {
    for paths in [Policy::PIN, Policy::DYNAMORIO] {
        passes(Options { paths, code_bytes: Options::CODE_MIN, ..AT_ONCE });
    }
}

#[test]
fn everything_interpreted() {
    passes(Options { translate: false, ..AT_ONCE });
}
