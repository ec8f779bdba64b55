//! Linux changes its own code while two processors run it: modules, static keys, tracers, probes, BPF.

use crate::console::events;
use crate::kit::Kernel;
use crate::processor;
use crate::sandbox::Sandbox;
use crate::vm::Guest;

/// The guest's 22 tests, and one that looks whether the kernel is still at ease.
const TESTS: usize = 23;

/// What a processor that shares another with many may take for a thing that the kernel knows to take no time.
const PATIENT_KERNEL: &str = "watchdog_thresh=60";

#[test]
fn the_kernel_may_change_code_that_processors_run() {
    if !processor::is_not_ours("a kernel that changes its code") {
        change("fathom.run=patching", Kernel::Cloud, TESTS);
    }
}

/// The kernel's own tests of static keys and of the compiler for BPF, which the cloud kernel has not.
#[test]
fn the_kernels_own_tests_of_changing_code_pass() {
    if processor::is_not_ours("the kernel's own tests of that") {
        return;
    }
    let said = change("fathom.run=patching:module-static-keys,module-test-bpf", Kernel::Full, 3);
    assert!(said.contains("351 PASSED") && !said.contains("skipped"), "{said}");
}

fn change(words: &str, kernel: Kernel, count: usize) -> String {
    let words = format!("{words} fathom.scale=15 {PATIENT_KERNEL}");
    let guest = Guest::new(&words).kernel(kernel).cpus(2);
    let ended = guest.run(&Sandbox::new()).well();
    let tests = events(&ended.console, "test");
    let wrong: Vec<_> = tests.iter().filter(|test| test["ok"] != true).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(tests.len(), count, "{tests:#?}");
    // "alg: hash: ... test failed": what a module computes when it is loaded.
    assert!(!ended.console.contains("] alg: "), "{}", ended.console);
    ended.console
}
