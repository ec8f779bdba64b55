//! How a guest can end by its own fault. (Powering off and rebooting: almost every other test.)

use crate::sandbox::Sandbox;
use crate::vm::Guest;

#[test]
fn a_panic_is_exit_status_3_whether_the_kernel_then_resets_or_not() {
    let sandbox = Sandbox::new();
    for timeout in ["panic=1", "panic=0"] {
        let words = format!("{timeout} fathom.modules=none fathom.end=panic");
        let ended = Guest::new(&words).run(&sandbox);
        assert_eq!(ended.status, Some(3), "{timeout}: {}\n{}", ended.errors, ended.console);
        assert!(ended.console.contains("Kernel panic - not syncing: sysrq triggered crash"));
        assert!(ended.errors.contains("the guest's kernel panicked"), "{}", ended.errors);
        assert_eq!(ended.report.outcome, "panic");
    }
}
