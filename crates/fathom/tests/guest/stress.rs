//! stress-ng of Debian on two processors, with all that it computes verified.
//!
//! Two seconds and a bit for each of some stressors when all tests run; all stressors, ten minutes of them, with
//! `cargo xtask soak`.

use crate::engine::announce;
use crate::kit;
use crate::processor;
use crate::sandbox::Sandbox;
use crate::vm::Guest;

/// What is left of all when there are two minutes for it: whatever tells an engine apart from a processor most.
const SHORT: &str = "cpu matrix fp vecmath vecwide vecshuf memcpy str crypt zlib \
     vm mmap mprotect mremap atomic dekker peterson lockbus misaligned mcontend \
     fork vfork clone exec mutex futex sem switch context pipe \
     sigsegv sigfpe sigtrap longjmp fault icache branch far-branch opcode priv-instr regs \
     x86syscall usersyscall syscall ptrace seccomp timer";

#[test]
fn what_stress_ng_verifies_is_right() {
    if !processor::is_not_ours("stress-ng") {
        stress(2, SHORT);
    }
}

#[test]
#[ignore = "ten minutes: cargo xtask soak"]
fn ten_minutes_of_stress_ng_leave_nothing_wrong() {
    // The test above is the short one.
    if std::env::var("FATHOM_SOAK").as_deref() != Ok("short") {
        stress(4, "");
    }
}

/// So long each; all of them where none is named.
fn stress(seconds: u32, stressors: &str) {
    let sandbox = Sandbox::new();
    let script = format!("\"fathom.run=disk:/stress.sh {seconds} {stressors}\"");
    let disk = format!("{},ro", kit::disk_image());
    let mut vm = Guest::new("watchdog_thresh=60").word(&script).cpus(2).disk(disk).start(&sandbox);
    vm.console.event("modules");
    // A word after each: what stands still is given up, not what takes long.
    let mut done = Vec::new();
    loop {
        let line = vm.console.wait_for("\n");
        if line.contains("\"event\":\"exit\"") {
            break;
        }
        done.extend(line.trim_end().strip_prefix("ok ").map(str::to_owned));
    }
    let ended = vm.ended();
    let failed: Vec<_> = ended.console.lines().filter(|line| line.starts_with("FAILED")).collect();
    assert!(failed.is_empty(), "{failed:#?}\n{}", ended.console);
    let ended = ended.well();
    let skipped: Vec<_> =
        ended.console.lines().filter(|line| line.starts_with("skipped")).collect();
    announce(&format!("stress-ng: {} right, {skipped:?}", done.len()));
    assert!(done.len() * 10 >= stressors.split_whitespace().count() * 9, "{done:?}, {skipped:?}");
    assert!(!done.is_empty());
}
