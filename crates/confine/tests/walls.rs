//! The walls beside the filters of system calls hold, and let through what they should. A child process confines itself: examples/confined.rs.

mod child;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use child::confined;
use tempfile::TempDir;

/// Confines a child by `rules`, has it make `attempts`, and returns the answers in order.
fn answers(rules: &[String], attempts: &[String]) -> Vec<String> {
    let output = confined().args(rules).arg("--").args(attempts).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let (missing, answers): (Vec<_>, Vec<_>) =
        text.lines().map(str::to_owned).partition(|line| line.starts_with("missing "));
    assert!(missing.is_empty(), "{missing:?}: test on a kernel with Landlock");
    answers
}

/// Asserts that each attempt is answered as said.
fn check(rules: &[String], expected: &[(String, &str)]) {
    let attempts: Vec<String> = expected.iter().map(|(attempt, _)| attempt.clone()).collect();
    for (answer, (attempt, wanted)) in answers(rules, &attempts).iter().zip(expected) {
        assert_eq!(answer, &format!("{attempt} {wanted}"));
    }
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("temporary directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str) -> PathBuf {
        fs::write(self.path(name), "old").expect("file");
        self.path(name)
    }
}

fn with(word: &str, separator: char, path: &Path) -> String {
    format!("{word}{separator}{}", path.display())
}

#[test]
fn planned_files_are_reachable_with_the_planned_rights() {
    let folder = Folder::new();
    let [kernel, disk, report] = ["kernel", "disk", "report"].map(|name| folder.file(name));
    let rules = [("read", &kernel), ("write", &disk), ("output", &report)];
    let rules = rules.map(|(need, path)| with(need, '=', path));
    let attempt = |verb: &str, path: &Path| with(verb, ':', path);
    check(
        &rules,
        &[
            (attempt("read", &kernel), "ok"),
            (attempt("write", &kernel), "PermissionDenied"),
            (attempt("truncate", &kernel), "PermissionDenied"),
            (attempt("read", &disk), "ok"),
            (attempt("write", &disk), "ok"),
            (attempt("truncate", &disk), "PermissionDenied"),
            (attempt("read", &report), "PermissionDenied"),
            (attempt("truncate", &report), "ok"),
            (attempt("remove", &report), "PermissionDenied"),
            (attempt("rename", &disk), "PermissionDenied"),
        ],
    );
    assert_eq!(fs::read_to_string(report).expect("report"), "new");
}

#[test]
fn other_paths_are_refused() {
    let folder = Folder::new();
    let other = folder.file("other");
    check(
        &[with("read", '=', &folder.file("kernel"))],
        &[
            (with("read", ':', &other), "PermissionDenied"),
            (with("truncate", ':', &other), "PermissionDenied"),
            (with("make", ':', &folder.path("new")), "PermissionDenied"),
            (with("listen", ':', &folder.path("socket")), "PermissionDenied"),
            (with("list", ':', folder.0.path()), "PermissionDenied"),
            ("read:/etc/passwd".into(), "PermissionDenied"),
            ("read:/proc/1/status".into(), "PermissionDenied"),
            ("execute:/bin/true".into(), "PermissionDenied"),
        ],
    );
    assert_eq!(fs::read_to_string(other).expect("other"), "old");
}

#[test]
fn a_file_under_another_name_is_the_same_file_and_a_new_one_is_not() {
    let folder = Folder::new();
    let (disk, other) = (folder.file("disk"), folder.file("other"));
    std::os::unix::fs::symlink(&disk, folder.path("link")).expect("link");
    std::os::unix::fs::symlink(&other, folder.path("way out")).expect("link");
    check(
        &[with("write", '=', &folder.path("link"))],
        &[
            (with("write", ':', &folder.path("link")), "ok"),
            (with("write", ':', &disk), "ok"),
            (with("read", ':', &folder.path("way out")), "PermissionDenied"),
        ],
    );
}

#[test]
fn sockets_are_made_and_removed_in_their_directory_only() {
    let folder = Folder::new();
    let sockets = folder.path("sockets");
    fs::create_dir(&sockets).expect("directory");
    let socket = sockets.join("vm.sock");
    check(
        &[with("sockets", '=', &sockets)],
        &[
            (with("listen", ':', &socket), "ok"),
            (with("remove", ':', &socket), "ok"),
            (with("make", ':', &sockets.join("file")), "PermissionDenied"),
            (with("listen", ':', &folder.path("vm.sock")), "PermissionDenied"),
        ],
    );
}

#[test]
fn what_the_process_knows_of_itself_stays() {
    check(
        &[],
        &[
            ("read:/proc/self/status".into(), "ok"),
            ("read:/proc/self/pagemap".into(), "ok"),
            ("write:/proc/self/oom_score_adj".into(), "PermissionDenied"),
            ("privileges".into(), "ok"),
        ],
    );
}

#[test]
fn what_the_process_knows_of_itself_stays_when_the_kernel_forgets() {
    let forget = |process: &Path| {
        // What was used lately is only marked the first time.
        for _ in 0..6 {
            assert!(process.is_dir());
            if fs::write("/proc/sys/vm/drop_caches", "2").is_err() {
                eprintln!("NOT TESTED: only root can have the kernel forget");
                return;
            }
        }
    };
    let last = look_at(&[], &["read:/proc/self/status"], forget);
    assert_eq!(last, "read:/proc/self/status ok");
}

/// Needs Linux 6.7, whose Landlock knows TCP.
#[test]
fn there_is_no_network() {
    let answers = answers(&[], &["tcp".into()]);
    assert!(answers[0] == "tcp PermissionDenied" || landlock_version() < Some(4), "{answers:?}");
}

fn landlock_version() -> Option<u32> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = release.split('.').map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next()?, numbers.next()?);
    Some(if version >= (6, 7) { 4 } else { 1 })
}

#[test]
fn new_privileges_are_refused() {
    check(&[], &[("privileges".into(), "ok")]);
}

/// Confines a child by `rules` and calls `look` with its folder in /proc; then it makes `attempts`. Its
/// last answer.
fn look_at(rules: &[&str], attempts: &[&str], look: impl FnOnce(&Path)) -> String {
    let mut command = confined();
    command.args(rules).args(["--", "wait"]).args(attempts);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs");
    let mut answers = BufReader::new(child.stdout.take().expect("output")).lines();
    assert_eq!(answers.next().expect("a line").expect("text"), "waiting");
    look(&PathBuf::from(format!("/proc/{}", child.id())));
    child.stdin.take().expect("input").write_all(b"\n").expect("written");
    let last = answers.map(|line| line.expect("text")).last().expect("an answer");
    assert!(child.wait().expect("status").success());
    last
}

#[test]
fn inherited_descriptors_are_closed() {
    let secret = tempfile::tempfile().expect("file");
    // One that is not closed on exec.
    let secret = rustix::io::fcntl_dupfd_cloexec(&secret, 50).expect("duplicate");
    rustix::io::fcntl_setfd(&secret, rustix::io::FdFlags::empty()).expect("flags");
    let number = format!("fd/{}", secret.as_raw_fd());
    let is_open = |process: &Path| process.join(&number).symlink_metadata().is_ok();
    look_at(&[], &[], |process| assert!(is_open(process), "this test could not fail"));
    look_at(&["fresh"], &[], |process| assert!(!is_open(process), "{number} was inherited"));
}

#[test]
fn core_dumps_lack_guest_memory_and_descriptors_are_few() {
    look_at(&[], &[], |process| {
        let filter = fs::read_to_string(process.join("coredump_filter")).expect("filter");
        assert_eq!(filter.trim(), "00000031");
        let limits = fs::read_to_string(process.join("limits")).expect("limits");
        let open = limits.lines().find(|line| line.starts_with("Max open files")).expect(&limits);
        let hard = open.split_whitespace().nth(4).expect(open);
        assert!(hard.parse::<u32>().expect(hard) <= 8192, "{open}");
    });
}

#[test]
fn descriptors_are_closed_only_before_there_are_threads() {
    let error = confine::close_inherited(&[]).expect_err("tests run on threads");
    assert!(error.to_string().contains("other threads run already"), "{error}");
    File::open("/").expect("nothing was closed");
}
