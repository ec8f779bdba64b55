//! A word about the engine that no guest ran on. Tests run in the order of their names, so it comes late.

use crate::engine::{Engine, announce};
use crate::sandbox::Sandbox;

/// Fails where the engine under test cannot run at all, with its own words; says so loudly of the other.
#[test]
fn an_engine_that_is_not_tested_is_named() {
    let (tested, other) = (Engine::under_test(), Engine::under_test().other());
    assert_eq!(refusal(tested), None, "engine {tested} is under test");
    let why = refusal(other).unwrap_or_else(|| format!("run again with FATHOM_ENGINE={other}"));
    announce(&format!(
        "\n*** guests ran on engine {tested}; NOT TESTED: engine {other}: {why} ***"
    ));
}

/// Why an engine does not run guests here. The engine is looked at before the kernel, which is not there.
fn refusal(engine: Engine) -> Option<String> {
    let sandbox = Sandbox::new();
    let absent = sandbox.path("no-kernel");
    let absent = absent.to_str().expect("text");
    let line = sandbox.refusal(2, &["run", "--kernel", absent, "--engine", engine.name()]);
    (!line.contains("no-kernel")).then(|| line.trim_end().to_owned())
}
