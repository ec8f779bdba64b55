//! The translator with each of its optimisations left out: guests see no difference.

use std::fs;

use crate::engine::{Engine, announce};
use crate::kit::{self, Kernel};
use crate::processor;
use crate::sandbox::Sandbox;
use crate::vm::{Ended, Guest};

/// A guest of one vCPU, each block of which is executed by the interpreter, too.
fn verified(guest: Guest) -> Option<Ended> {
    if Engine::under_test() != Engine::Translate {
        return None;
    }
    let sandbox = Sandbox::new();
    let arguments = ["--translate", "verify,keep-flags", "--translate-stats"];
    let ended = guest.arguments(&arguments).run(&sandbox).well();
    let counts = &ended.report.translation;
    announce(&format!(
        "{} blocks with {} instructions verified, {} again; {} instructions not",
        counts["blocks_verified"],
        counts["instructions_verified"],
        counts["blocks_verified_again"],
        counts["instructions_not_verified"],
    ));
    assert!(counts["instructions_verified"] > 500_000_000, "{counts:?}");
    assert!(counts["instructions_not_verified"] < counts["instructions_verified"] / 500);
    Some(ended)
}

#[test]
fn interpreter_and_translator_do_the_same_from_boot_to_power_off() {
    verified(Guest::new("fathom.run=boot"));
}

#[test]
#[ignore = "minutes: cargo xtask soak"]
fn interpreter_and_translator_in_lockstep_through_the_tests() {
    let Some(ended) = verified(Guest::new("fathom.run=tests")) else { return };
    processor::is_right(&ended.console, 1);
}

/// Python and SQLite among them.
#[test]
#[ignore = "minutes: cargo xtask soak"]
fn interpreter_and_translator_in_lockstep_through_programs_of_debian() {
    let sandbox = Sandbox::new();
    let overlay = sandbox.path("overlay");
    let disk = format!("{},overlay={}", kit::disk_image(), overlay.display());
    let Some(ended) = verified(Guest::new("fathom.run=disk:/check.sh").disk(disk)) else { return };
    let right = ended.console.lines().filter(|line| line.starts_with("ok ")).count();
    assert_eq!(right, 10, "{}", ended.console);
}

/// Two vCPUs would see what is executed twice.
#[test]
fn one_vcpu_is_verified_and_no_more() {
    if Engine::under_test() != Engine::Translate {
        return;
    }
    let sandbox = Sandbox::new();
    for (more, why) in [("verify", "ask for one vcpu"), ("verify,interpret", "nothing to compare")]
    {
        let (kernel, cpus) = (Kernel::Cloud.image(), if more == "verify" { "2" } else { "1" });
        let mut command = sandbox.command(&["run", "--kernel", &kernel, "--engine", "translate"]);
        let output = command.args(["--cpus", cpus, "--translate", more]).output().expect("output");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && errors.contains(why), "{errors}");
    }
}

/// A guest of two vCPUs that has done its tests; `None` where nothing is translated.
fn translated(how: &str) -> Option<Ended> {
    if Engine::under_test() != Engine::Translate {
        return None;
    }
    let sandbox = Sandbox::new();
    let guest = Guest::new("fathom.run=tests").cpus(2);
    let vm = guest.arguments(&["--translate", how, "--translate-stats"]).start(&sandbox);
    let map = format!("/tmp/perf-{}.map", vm.pid());
    let ended = vm.ended().well();
    if how.contains("perf-map") {
        let names = fs::read_to_string(&map).expect("a map of a confined process");
        fs::remove_file(&map).expect("removed");
        let blocks = names.lines().filter(|line| line.contains(" guest_")).count() as u64;
        assert_eq!(blocks, ended.report.translation["blocks_translated"]);
    }
    processor::is_right(&ended.console, 2);
    let (counts, errors) = (&ended.report.translation, &ended.errors);
    assert_eq!(counts["blocks_translated"] == 0, how == "interpret", "{counts:?}");
    assert!(errors.contains("fathom: translation\n"), "{errors}");
    assert!(errors.contains(&counts["instructions_interpreted"].to_string()), "{errors}");
    Some(ended)
}

/// Code is full, and goes, while the other vCPU runs some.
#[test]
fn a_guest_runs_with_little_room_for_code() {
    let Some(ended) = translated("code=1M") else { return };
    let evictions = ended.report.translation["evictions"];
    assert!(evictions > 10, "{evictions}");
}

#[test]
fn a_guest_runs_with_all_code_at_once_and_exact_flags() {
    let Some(ended) = translated("hot=1,keep-flags") else { return };
    let counts = &ended.report.translation;
    // The rest crosses pages, or is on a page that the other vCPU may still write unseen.
    assert!(counts["blocks_translated"] > counts["blocks_decoded"] / 3, "{counts:?}");
}

#[test]
fn a_guest_runs_without_links_and_jump_table() {
    let Some(ended) = translated("no-links,no-jump-table,perf-map") else { return };
    assert_eq!(ended.report.translation["links_made"], 0);
    assert_eq!(ended.report.guest_instructions, None);
}
