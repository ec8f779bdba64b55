//! The guest program's own checks, on the processor and kernel that run the tests: what fails
//! here is a mistake in the check, not in a machine under test.

use std::process::{Command, Output};

fn guest(arguments: &[&str]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_guest")).args(arguments).output();
    let output = output.expect("the program was built for this test");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output, text)
}

fn all_pass(arguments: &[&str]) -> usize {
    let (output, text) = guest(arguments);
    let failed: Vec<&str> = text.lines().filter(|line| line.contains("\"ok\":false")).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(output.status.success(), "{output:?}");
    text.lines().filter(|line| line.contains("\"ok\":true")).count()
}

#[test]
fn self_tests_pass_on_a_real_processor() {
    assert!(all_pass(&["selftest"]) > 50);
}

#[test]
fn atomics_and_memory_order_pass_on_a_real_processor() {
    assert_eq!(all_pass(&["smp:4"]), 7);
}

#[test]
fn integer_loops_give_their_known_results() {
    assert_eq!(all_pass(&["integer:10"]), 3);
}

#[test]
fn phases_say_when_they_begin_and_end_and_what_they_touch() {
    let (output, text) = guest(&["phases:2", "seconds=0", "file=1"]);
    assert!(output.status.success());
    let states = |name: &str, state: &str| {
        let (name, state) = (format!("\"name\":\"{name}\""), format!("\"state\":\"{state}\""));
        text.lines().filter(|line| line.contains(&name) && line.contains(&state)).count()
    };
    for name in ["idle", "touch", "settle", "read", "reread"] {
        for state in ["begin", "steady", "end"] {
            assert_eq!(states(name, state), 1, "{name} {state}\n{text}");
        }
    }
    assert!(text.contains("\"bytes\":2097152,\"kernel_bytes\":4096"), "{text}");
}

#[test]
fn unknown_work_is_told_and_fails() {
    let (output, text) = guest(&["dance"]);
    assert!(!output.status.success());
    assert!(text.contains("\"event\":\"unknown\""));
    assert_eq!(guest(&[]).0.status.code(), Some(2));
}

/// The names and checksums of all workloads, done in a hundredth of their size.
fn checksums(scratch: &str) -> Vec<String> {
    let scratch = format!("scratch={scratch}");
    let (output, text) = guest(&["bench:one,two", "scale=1", "root=/nowhere", &scratch]);
    assert!(output.status.success(), "{output:?}");
    let ends = text.lines().filter(|line| line.contains("\"state\":\"end\""));
    ends.map(|line| line.split(',').filter(|field| !is_time(field)).collect()).collect()
}

fn is_time(field: &str) -> bool {
    field.contains("nanoseconds") || field.contains("uptime_ms")
}

#[test]
fn benchmarks_give_the_same_results_every_time() {
    let scratch = std::env::temp_dir().join(format!("fathom-scratch-{}", std::process::id()));
    std::fs::write(&scratch, vec![7; 1 << 20]).unwrap();
    let path = scratch.to_string_lossy();
    let first = checksums(&path);
    assert!(first.len() > 25, "{first:#?}");
    assert_eq!(first, checksums(&path));
    std::fs::remove_file(&scratch).unwrap();
}
