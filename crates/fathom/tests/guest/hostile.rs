//! A guest whose balloon driver lies harms nobody but itself: its neighbour has what it is to have, and what it had.

use api::RunState;
use serde_json::Value;

use crate::balance::{Daemon, decided, wait};
use crate::engine::is_not_yet_on_kvm;
use crate::host_killed::work;
use crate::sandbox::Sandbox;
use crate::vm::{Guest, Vm, shown};

#[test]
fn a_guest_that_lies_about_its_memory_harms_only_itself() {
    if is_not_yet_on_kvm("a balloon driver that lies") {
        return;
    }
    let sandbox = Sandbox::new();
    let mut good = Guest::new("fathom.run=sh").beside_others("good").start(&sandbox);
    let right = work(&mut good);
    let mut bad = Guest::new("fathom.run=sh").beside_others("bad").start(&sandbox);
    bad.wait_for_shell();
    bad.shell("dmesg -n 1");
    // Less than both could use, so that what one has the other has not.
    let limit: u64 = shown(&sandbox, &["list", "--json"]).iter().map(|vm| vm.resident_bytes).sum();
    let limit = limit.to_string();
    // Half of it is either's, whatever is said of what they use.
    let arguments =
        ["--memory", &limit, "--policy", "published", "--tax", "0", "--interval", "0.1"];
    let daemon = Daemon::start_with(&sandbox, &arguments);
    for what in ["lies", "wrong", "used"] {
        let said = bad.shell(&format!("/init hostile:{what} seconds=2"));
        assert!(said.contains("\"requests\":") && !said.contains("error"), "{what}: {said}");
        has_its_half(&sandbox, &daemon);
        goes_on(&mut good, &right, what);
    }
    assert_eq!(bad.status().state, RunState::Running);
    // The end of its kernel, sooner or later.
    bad.type_line("/init hostile:any");
    goes_on(&mut good, &right, "any");
    sandbox.fathom(&["stop", "bad"]);
    let ended = bad.ended();
    assert!(["stopped", "panic"].contains(&ended.report.outcome.as_str()), "{}", ended.errors);
    wait(&sandbox, "the other has all", |vms| {
        let board = sandbox.fathom(&["balance", "--json"]).stdout;
        let board: Value = serde_json::from_slice(&board).ok()?;
        (vms.len() == 1 && board["verdict"]["state"] == "high").then_some(())
    });
    daemon.end();
    good.shell("touch /tmp/stop; wait");
    assert_eq!(good.shell("cat /tmp/wrong"), "");
    good.tell("stop", &[]);
    good.ended().stopped();
}

fn has_its_half(sandbox: &Sandbox, daemon: &Daemon) {
    let board = decided(sandbox, daemon.pid());
    let verdict = &board["verdict"];
    let half = verdict["supply"].as_u64().expect("a sum") / 2;
    for vm in verdict["vms"].as_array().expect("both") {
        let published = vm["published"].as_u64().expect("a target");
        assert!(published.abs_diff(half) <= policy::GRAIN, "{board}");
    }
}

/// What it checks is right, some more times.
fn goes_on(good: &mut Vm<'_>, right: &str, what: &str) {
    good.shell("echo >/tmp/sums; while [ $(wc -l </tmp/sums) -lt 3 ]; do sleep 1; done");
    assert_eq!(good.shell("cat /tmp/wrong"), "", "of {right}, while the other did {what}");
}
