//! The processor as Linux and its programs see it, and what the report of a whole run says.

use api::Report;

use crate::console::events;
use crate::sandbox::Sandbox;
use crate::vm::{Ended, Guest};

/// Guests have 256 MiB.
const FRAMES: u64 = 65536;

#[test]
fn programs_find_a_processor_that_is_right() {
    let ended = run_tests(1);
    plausible(&ended.report);
}

#[test]
fn programs_find_two_processors_that_are_right_together() {
    run_tests(2);
}

fn run_tests(cpus: u32) -> Ended {
    // The whole log for once: it must be free of complaints, and of what upsets a serial port.
    let guest = Guest::new("ignore_loglevel fathom.run=tests").cpus(cpus);
    let ended = guest.run(&Sandbox::new()).well();
    let tests = events(&ended.console, "test");
    let failed: Vec<_> = tests.iter().filter(|test| test["ok"] != true).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let [selftest, smp] = ["selftest", "smp"].map(|name| events(&ended.console, name));
    assert_eq!((selftest.len(), smp.len()), (1, 1), "{}", ended.console);
    // Tests that vanish are no success.
    assert!(selftest[0]["run"].as_u64() >= Some(59), "{selftest:?}");
    assert_eq!(smp[0]["cpus"], cpus);
    assert!(tests.len() >= 59 + 7, "{} tests", tests.len());
    assert_eq!(events(&ended.console, "end")[0]["ok"], true);
    ended
}

fn plausible(report: &Report) {
    assert_eq!(report.engine, "translate");
    // Debian's kernel alone takes some 500 million instructions to boot.
    let instructions = report.guest_instructions.expect("the translator counts instructions");
    assert!((100_000_000..100_000_000_000).contains(&instructions), "{instructions}");
    assert_eq!(report.frames.values().sum::<u64>(), FRAMES, "{:?}", report.frames);
    assert!(report.frames["resident"] > FRAMES / 20 && report.frames["untouched"] > FRAMES / 20);
    assert!(
        report.exits["port_write"] > 1000 && report.exits["mmio_write"] > 10,
        "{:?}",
        report.exits
    );
    assert!(report.cpu_seconds > 0.0 && report.cpu_seconds < report.wall_seconds * 64.0);
    assert!(report.host_resident_bytes > report.frames["resident"] * 4096);
    assert!(report.working_set.is_sorted_by(|a, b| a.t_seconds < b.t_seconds));
    let peak = report.working_set.iter().filter_map(|sample| sample.window_1s_bytes).max();
    assert!((1 << 20..=FRAMES * 4096).contains(&peak.expect("samples")), "{peak:?}");
}
