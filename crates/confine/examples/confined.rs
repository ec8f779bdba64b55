//! A process that confines itself and then tries things, for the tests in `tests/`.
//!
//! ```text
//! confined [fresh] [NEED=PATH]... [filter] -- [ATTEMPT[:ARGUMENT][@THREAD]]...
//! ```
//! `fresh` closes inherited descriptors, `filter` forbids system calls. Each attempt is made on a thread, of
//! that kind if one is named, and answered by a line: `ok` or what the host said.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use confine::{Need, PathRule, Thread};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut parts = arguments.split(|argument| argument == "--");
    let (rules, attempts) = (parts.next().expect("rules"), parts.next().expect("attempts"));
    if rules.iter().any(|rule| rule == "fresh") {
        confine::close_inherited(&[]).expect("closed");
    }
    let paths: Vec<PathRule> = rules.iter().filter_map(|rule| path_rule(rule)).collect();
    let mut missing = vec![confine::restrict_paths(&paths).expect("confined")];
    if rules.iter().any(|rule| rule == "filter") {
        missing.push(confine::restrict_calls(&[]).expect("confined"));
    }
    for missing in missing.into_iter().flatten() {
        println!("missing {}", missing.wall);
    }
    for what in attempts {
        match on_a_thread(what) {
            Ok(()) => println!("{what} ok"),
            Err(error) => println!("{what} {:?}", error.kind()),
        }
    }
}

fn path_rule(rule: &str) -> Option<PathRule> {
    let (need, path) = rule.split_once('=')?;
    let need = match need {
        "read" => Need::Read,
        "write" => Need::ReadWrite,
        "output" => Need::Output,
        "sockets" => Need::SocketDirectory,
        _ => panic!("no rule {need}"),
    };
    Some(PathRule::new(path, need))
}

/// Walls hold for every thread.
fn on_a_thread(what: &str) -> io::Result<()> {
    let (what, thread) = what.split_once('@').unwrap_or((what, ""));
    let (verb, argument) = what.split_once(':').unwrap_or((what, ""));
    std::thread::scope(|scope| {
        let body = || {
            if !thread.is_empty() {
                confine::enter(kind(thread)).expect("a filter");
            }
            attempt(verb, argument)
        };
        scope.spawn(body).join().expect("no panic in an attempt")
    })
}

fn kind(thread: &str) -> Thread {
    let named = |kind: &Thread| format!("{kind:?}").eq_ignore_ascii_case(thread);
    Thread::ALL.into_iter().find(named).unwrap_or_else(|| panic!("no thread {thread}"))
}

fn attempt(verb: &str, argument: &str) -> io::Result<()> {
    let path = Path::new(argument);
    match verb {
        "read" => File::open(path).map(drop),
        "write" => File::options().write(true).open(path)?.write_all(b"x"),
        "truncate" => fs::write(path, b"new"),
        "remove" => fs::remove_file(path),
        "make" => File::create_new(path).map(drop),
        "rename" => fs::rename(path, path.with_extension("renamed")),
        "list" => fs::read_dir(path).map(drop),
        "listen" => UnixListener::bind(path).map(drop),
        "connect" => UnixStream::connect(path).map(drop),
        "call" => call(argument),
        "work" => work(),
        "panic" => panic!("as asked"),
        "tcp" => TcpListener::bind("127.0.0.1:0").map(drop),
        "execute" => Command::new(path).status().map(drop),
        "wait" => wait(),
        "privileges" => privileges(),
        _ => panic!("no attempt {verb}"),
    }
}

/// Waits while the test looks at this process from outside.
fn wait() -> io::Result<()> {
    println!("waiting");
    io::stdout().flush()?;
    io::stdin().read_line(&mut String::new()).map(drop)
}

fn privileges() -> io::Result<()> {
    let status = fs::read_to_string("/proc/self/status")?;
    if !status.lines().any(|line| line == "NoNewPrivs:\t1") {
        return Err(io::Error::other("new privileges are possible"));
    }
    Ok(())
}

/// What any thread does: heap, locks, time, messages.
fn work() -> io::Result<()> {
    let heap: Vec<Vec<u8>> = (0..200).map(|n| vec![1; n * 1000]).collect();
    let keys: std::collections::HashMap<usize, u8> = (0..10).map(|n| (n, 0)).collect();
    let big = vec![0_u8; 64 << 20];
    drop((heap, keys, big));
    let (lock, never) = (std::sync::Mutex::new(()), std::sync::Condvar::new());
    let guard = lock.lock().map_err(|_| io::Error::other("poisoned"))?;
    let wait = std::time::Duration::from_millis(1);
    drop(never.wait_timeout(guard, wait));
    std::thread::sleep(wait);
    std::thread::yield_now();
    eprintln!("working");
    Ok(())
}

/// A system call by number, with arguments that make sense only for whether it is made at all.
fn call(name: &str) -> io::Result<()> {
    let page = rustix::param::page_size();
    let (number, arguments) = match name {
        "inet socket" => {
            (libc::SYS_socket, [libc::AF_INET as usize, libc::SOCK_STREAM as usize, 0])
        }
        "unix socket" => {
            (libc::SYS_socket, [libc::AF_UNIX as usize, libc::SOCK_STREAM as usize, 0])
        }
        "connect" => (libc::SYS_connect, [0; 3]),
        "execve" => (libc::SYS_execve, [0; 3]),
        "fork" => (libc::SYS_fork, [0; 3]),
        "new process" => (libc::SYS_clone, [libc::SIGCHLD as usize, 0, 0]),
        "new namespace" => (libc::SYS_clone, [libc::CLONE_NEWUSER as usize, 0, 0]),
        "clone3" => (libc::SYS_clone3, [0; 3]),
        "ptrace" => (libc::SYS_ptrace, [usize::MAX, 0, 0]),
        "setuid" => (libc::SYS_setuid, [0; 3]),
        "open" => (libc::SYS_openat, [usize::MAX, 0, 0]),
        "kill" => (libc::SYS_kill, [1, 0, 0]),
        "signal another" => (libc::SYS_tgkill, [1, 1, libc::SIGABRT as usize]),
        "executable memory" => (libc::SYS_mmap, [0, page, libc::PROT_EXEC as usize]),
        "make executable" => (libc::SYS_mprotect, [0, page, libc::PROT_EXEC as usize]),
        "type into terminal" => (libc::SYS_ioctl, [0, libc::TIOCSTI as usize, 0]),
        "run a vcpu" => (libc::SYS_ioctl, [0, 0xae80, 0]),
        "epoll" => (libc::SYS_epoll_wait, [usize::MAX, 0, 0]),
        "another filter" => (libc::SYS_seccomp, [libc::SECCOMP_SET_MODE_FILTER as usize, 1, 0]),
        "x32" => (libc::SYS_getpid | 0x4000_0000, [0; 3]),
        _ => panic!("no call {name}"),
    };
    let [first, second, third] = arguments;
    // SAFETY: none of these calls is given memory of ours; if one is made, it fails, or this process does
    // no more with its result than exit.
    match unsafe { libc::syscall(number, first, second, third, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
