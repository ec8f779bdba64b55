//! A forbidden system call ends the process with a message; a needed one is made. A child process confines
//! itself: examples/confined.rs.

mod child;

use std::os::unix::process::ExitStatusExt;
use std::process::Output;

use child::confined;

/// Those that every VM has.
const THREADS: [&str; 8] =
    ["main", "supervisor", "vcpu", "io", "workingset", "api", "signals", "console"];

fn run(arguments: &[&str]) -> Output {
    confined().args(arguments).output().expect("it runs")
}

/// Makes the call on a thread of a filtered process; `thread` may be empty.
fn attempt(call: &str, thread: &str) -> Output {
    let separator = if thread.is_empty() { "" } else { "@" };
    run(&["filter", "--", &format!("call:{call}{separator}{thread}")])
}

/// Asserts that the call ended the process, and that a message named it.
fn is_forbidden(call: &str, thread: &str, told: &str) {
    let output = attempt(call, thread);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{call} {thread}: {errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(errors.contains(told), "{told}: {errors}");
    assert!(output.stdout.is_empty(), "{call} {thread}");
}

/// Asserts that the call was made, or refused by an error, and the process lived on.
fn is_survived(call: &str, thread: &str) -> String {
    let output = attempt(call, thread);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{call} {thread}: {errors}");
    let answer = String::from_utf8(output.stdout).expect("text");
    answer.rsplit(' ').next().expect("an answer").trim().to_owned()
}

#[test]
fn no_thread_may_do_these() {
    for (call, told) in [
        ("inet socket", "process.json made the system call socket(0x2, 0x1, 0x0"),
        ("connect", "connect("),
        ("execve", "execve("),
        ("fork", "fork("),
        ("new process", "clone(0x11"),
        ("new namespace", "clone(0x10000000"),
        ("ptrace", "ptrace("),
        ("setuid", "setuid("),
        ("kill", "kill(0x1"),
        ("signal another", "tgkill(0x1"),
        ("executable memory", "mmap("),
        ("make executable", "mprotect("),
        ("type into terminal", "ioctl(0x0, 0x5412"),
        ("another filter", "seccomp(0x1, 0x1"),
        ("x32", "system call 0x40000027("),
        // This VM has no KVM.
        ("run a vcpu", "ioctl(0x0, 0xae80"),
    ] {
        is_forbidden(call, "", told);
    }
}

#[test]
fn a_thread_may_do_only_what_its_kind_does() {
    assert_eq!(is_survived("unix socket", ""), "ok");
    for thread in THREADS {
        let told = format!("{}.json made", thread.replace("gset", "g-set"));
        is_forbidden("unix socket", thread, &told);
    }
    is_survived("epoll", "io");
    for thread in ["vcpu", "workingset", "api", "signals"] {
        is_forbidden("epoll", thread, "epoll_wait(");
    }
}

#[test]
fn some_calls_are_refused_by_an_error() {
    for thread in ["vcpu", "io", "workingset", "signals", "console"] {
        assert_eq!(is_survived("open", thread), "PermissionDenied", "{thread}");
    }
    for thread in ["main", "supervisor", "api"] {
        assert_ne!(is_survived("open", thread), "PermissionDenied", "{thread}");
    }
    // The C library starts threads by another call then.
    for thread in ["", "supervisor", "api"] {
        assert_eq!(is_survived("clone3", thread), "Unsupported", "{thread}");
    }
    is_forbidden("clone3", "vcpu", "clone3(");
}

#[test]
fn every_kind_of_thread_starts_works_and_ends() {
    for thread in THREADS {
        let output = run(&["filter", "--", &format!("work@{thread}"), "work"]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{thread}: {errors}");
        let answers = String::from_utf8_lossy(&output.stdout);
        assert_eq!(answers, format!("work@{thread} ok\nwork ok\n"));
    }
}

#[test]
fn a_panic_is_told_on_every_kind_of_thread() {
    for thread in ["vcpu", "io", "api"] {
        let mut command = confined();
        command.env("RUST_BACKTRACE", "1").args(["filter", "--", &format!("panic@{thread}")]);
        let output = command.output().expect("it runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains("as asked"), "{errors}");
        assert!(!errors.contains("system call"), "{errors}");
    }
}
