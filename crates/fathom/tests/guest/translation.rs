//! The translator with each of its optimisations left out: guests see no difference.

use std::fs;

use crate::engine::{Engine, announce};
use crate::kit::{self, Kernel};
use crate::processor;
use crate::sandbox::Sandbox;
use crate::vm::{Ended, Guest};

/// Each block by itself.
const BLOCKS: &str = "verify,keep-flags";
/// Over conditional branches, up to eight at a time, from the first time on.
const PATHS: &str = "verify,keep-flags,paths=pin";

/// A guest of one vCPU, all code of which is executed by the interpreter, too.
fn verified(guest: Guest, how: &str) -> Option<Ended> {
    if Engine::under_test() != Engine::Translate {
        return None;
    }
    let sandbox = Sandbox::new();
    let arguments = ["--translate", how, "--translate-stats"];
    let ended = guest.arguments(&arguments).run(&sandbox).well();
    let counts = &ended.report.translation;
    announce(&format!(
        "{how}: {} pieces, {} of several blocks, with {} instructions, {} again; {} instructions not",
        counts["blocks_verified"],
        counts["paths_verified"],
        counts["instructions_verified"],
        counts["blocks_verified_again"],
        counts["instructions_not_verified"],
    ));
    assert!(counts["instructions_verified"] > 500_000_000, "{counts:?}");
    assert!(counts["instructions_not_verified"] < counts["instructions_verified"] / 500);
    let joined = counts["paths_verified"];
    assert_eq!(joined > counts["blocks_verified"] / 10, how == PATHS, "{counts:?}");
    assert!(how == PATHS || joined == 0, "{counts:?}");
    Some(ended)
}

#[test]
fn interpreter_and_translator_do_the_same_from_boot_to_power_off() {
    verified(Guest::new("fathom.run=boot"), BLOCKS);
}

#[test]
fn interpreter_and_paths_do_the_same_from_boot_to_power_off() {
    verified(Guest::new("fathom.run=boot"), PATHS);
}

#[test]
#[ignore = "minutes: cargo xtask soak"]
fn interpreter_and_translator_in_lockstep_through_the_tests() {
    for how in [BLOCKS, PATHS] {
        let Some(ended) = verified(Guest::new("fathom.run=tests"), how) else { return };
        processor::is_right(&ended.console, 1);
    }
}

/// Python and SQLite among them.
#[test]
#[ignore = "minutes: cargo xtask soak"]
fn interpreter_and_translator_in_lockstep_through_programs_of_debian() {
    for how in [BLOCKS, PATHS] {
        let sandbox = Sandbox::new();
        let overlay = sandbox.path("overlay");
        let disk = format!("{},overlay={}", kit::disk_image(), overlay.display());
        let guest = Guest::new("fathom.run=disk:/check.sh").disk(disk);
        let Some(ended) = verified(guest, how) else { return };
        let right = ended.console.lines().filter(|line| line.starts_with("ok ")).count();
        assert_eq!(right, 10, "{}", ended.console);
    }
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
    translated_on(2, how)
}

fn translated_on(cpus: u32, how: &str) -> Option<Ended> {
    if Engine::under_test() != Engine::Translate {
        return None;
    }
    let sandbox = Sandbox::new();
    let guest = Guest::new("fathom.run=tests").cpus(cpus);
    let vm = guest.arguments(&["--translate", how, "--translate-stats"]).start(&sandbox);
    let map = format!("/tmp/perf-{}.map", vm.pid());
    let ended = vm.ended().well();
    if how.contains("perf-map") {
        let names = fs::read_to_string(&map).expect("a map of a confined process");
        fs::remove_file(&map).expect("removed");
        let blocks = names.lines().filter(|line| line.contains(" guest_")).count() as u64;
        assert_eq!(blocks, ended.report.translation["blocks_translated"]);
    }
    processor::is_right(&ended.console, cpus);
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

/// Everything is driven out before it has run often, by either vCPU.
#[test]
fn a_guest_runs_with_much_too_little_room_for_all_code() {
    let Some(ended) = translated("hot=1,code=256K") else { return };
    let evictions = ended.report.translation["evictions"];
    assert!(evictions > 100, "{evictions}");
}

#[test]
fn a_guest_runs_with_all_code_at_once_and_exact_flags() {
    translated("hot=1,keep-flags");
}

/// One vCPU: of what is on a page that another one may still write unseen, it is left to chance how often it runs.
#[test]
fn what_is_translated_at_first_sight_is_not_interpreted() {
    let Some(ended) = translated_on(1, "hot=1") else { return };
    let counts = &ended.report.translation;
    // What is left: code of 16 and 32 bits, and what was written while it was read.
    assert!(counts["instructions_interpreted"] < counts["instructions_translated"] / 100);
}

#[test]
fn a_guest_runs_without_links_and_jump_table() {
    let Some(ended) = translated("no-links,no-jump-table,perf-map") else { return };
    assert_eq!(ended.report.translation["links_made"], 0);
    assert_eq!(ended.report.guest_instructions, None);
}

#[test]
fn the_code_that_takes_the_most_time_is_listed_at_the_end() {
    if Engine::under_test() != Engine::Translate {
        return;
    }
    let guest = Guest::new("fathom.run=tests").cpus(2).arguments(&["--translate", "dump=hot:2"]);
    let errors = guest.run(&Sandbox::new()).well().errors;
    let listed =
        errors.lines().filter(|line| line.contains(" samples, ") && line.contains(": guest 0x"));
    assert_eq!(listed.count(), 2, "{errors}");
    assert!(errors.contains(" elsewhere than in code; 2 of "), "{errors}");
}
