//! The processor as Linux and its programs see it, and what the report of a whole run says.

use std::collections::{BTreeMap, BTreeSet};

use api::Report;

use crate::console::events;
use crate::engine::{Engine, announce};

/// Guests have 256 MiB.
const FRAMES: u64 = 65536;
/// Self-tests in the guest program, and those of several threads.
const SELFTESTS: u64 = 59;
const OTHER_TESTS: usize = 7;

/// Looks at what the guest program's `tests` have printed.
pub(crate) fn is_right(printed: &str, cpus: u32) {
    let tests = events(printed, "test");
    let failed: Vec<_> = tests.iter().filter(|test| test["ok"] != true).collect();
    let names: BTreeSet<_> = failed.iter().filter_map(|test| test["name"].as_str()).collect();
    let expected: BTreeSet<_> = deviations().iter().map(|(name, _)| *name).collect();
    assert_eq!(names, expected, "{failed:#?}");
    let [selftest, smp] = ["selftest", "smp"].map(|name| events(printed, name));
    assert_eq!((selftest.len(), smp.len()), (1, 1), "{printed}");
    // Tests that vanish are no success.
    assert!(selftest[0]["run"].as_u64() >= Some(SELFTESTS), "{selftest:?}");
    assert_eq!(smp[0]["cpus"], cpus);
    assert!(tests.len() >= SELFTESTS as usize + OTHER_TESTS, "{} tests", tests.len());
}

/// What QEMU's translator, as the processor below KVM, does otherwise than processors do. The same tests
/// fail in a guest of QEMU's translator without KVM, and pass on our own.
const LAB_DEVIATIONS: [(&str, &str); 8] = [
    ("undefined-instruction", "LOCK on a register is executed"),
    ("page-crossing", "a store that faults on its second page has written to the first"),
    ("stack-fault", "a non-canonical stack address raises #GP"),
    ("non-canonical", "a jump to a non-canonical address faults at its target"),
    ("software-interrupt", "error codes count IDT entries of 16 bytes by 8"),
    ("alignment-check", "#AC does not exist"),
    ("sse-exception", "unmasked SSE exceptions are not raised"),
    ("fsgsbase", "WRFSBASE takes non-canonical addresses"),
];

/// Words for the kernel's command line: no self-tests that make the kernel itself fault on that processor
/// (a fault in IRETQ, and far transfers to 32-bit code).
pub(crate) fn words() -> &'static str {
    if in_lab() { "fathom.without=iretq,compatibility-mode" } else { "" }
}

/// Whether the engine under test has QEMU's translator below it.
pub(crate) fn in_lab() -> bool {
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Engine::under_test() == Engine::Kvm && processor.contains("QEMU TCG CPU")
}

/// Whether `what` of the processor itself is to be left out, said loudly: in the lab, where it is QEMU's translator that
/// would be tested, and at great length.
pub(crate) fn is_not_ours(what: &str) -> bool {
    if in_lab() {
        announce(&format!(
            "*** NOT TESTED in the lab: {what}: run `cargo xtask lab` on a host that has KVM ***"
        ));
    }
    in_lab()
}

/// Self-tests that must fail here, and why: none but in the lab.
fn deviations() -> &'static [(&'static str, &'static str)] {
    if !in_lab() {
        return &[];
    }
    for (name, why) in LAB_DEVIATIONS {
        println!("deviates: {name}: on the lab's processor {why}");
    }
    &LAB_DEVIATIONS
}

/// The report of a guest that has booted, done its tests and given memory back.
pub(crate) fn is_plausible(report: &Report) {
    assert_eq!(report.guest_instructions, None, "only the interpreter alone counts them");
    match Engine::under_test() {
        Engine::Translate => translation_is_plausible(&report.translation),
        Engine::Kvm => assert!(report.translation.is_empty(), "{:?}", report.translation),
    }
    assert_eq!(report.frames.values().sum::<u64>(), FRAMES, "{:?}", report.frames);
    assert!(report.frames["resident"] > FRAMES / 20 && report.frames["untouched"] > FRAMES / 20);
    let exits = &report.exits;
    assert!(exits["port_write"] > 1000 && exits["mmio_write"] > 10, "{exits:?}");
    assert!(report.cpu_seconds > 0.0 && report.cpu_seconds < report.wall_seconds * 64.0);
    assert!(report.host_resident_bytes > report.frames["resident"] * 4096);
    assert!(report.working_set.is_sorted_by(|a, b| a.t_seconds < b.t_seconds));
    let peak = report.working_set.iter().filter_map(|sample| sample.window_1s_bytes).max();
    assert!((1 << 20..=FRAMES * 4096).contains(&peak.expect("samples")), "{peak:?}");
}

/// Debian's kernel alone has hundreds of thousands of instructions that are run more than a few times.
fn translation_is_plausible(counts: &BTreeMap<String, u64>) {
    let translated = counts["blocks_translated"];
    assert!((10_000..counts["blocks_decoded"]).contains(&translated), "{counts:?}");
    assert!(counts["instructions_translated"] > 2 * translated, "{counts:?}");
    assert!(counts["code_bytes"] > counts["guest_bytes_translated"], "{counts:?}");
    assert!(counts["links_made"] > translated / 2, "{counts:?}");
}
