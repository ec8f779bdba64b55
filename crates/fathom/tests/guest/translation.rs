//! The translator with each of its optimisations left out: guests see no difference.

use std::fs;

use crate::engine::Engine;
use crate::processor;
use crate::sandbox::Sandbox;
use crate::vm::{Ended, Guest};

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
    assert!(counts["blocks_translated"] > counts["blocks_decoded"] / 2, "{counts:?}");
}

#[test]
fn a_guest_runs_without_links_and_jump_table() {
    let Some(ended) = translated("no-links,no-jump-table,perf-map") else { return };
    assert_eq!(ended.report.translation["links_made"], 0);
    assert_eq!(ended.report.guest_instructions, None);
}
