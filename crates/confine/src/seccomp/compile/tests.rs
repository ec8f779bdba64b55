//! What the data files come to.

use super::*;

const EVERYTHING: &[Having] =
    &[Having::Kvm, Having::Translate, Having::Gdb, Having::Net, Having::Vsock];

fn gathered(name: &str, having: &[Having]) -> Gathered {
    Gathered::of(name, &rules::all().expect("files"), having).expect("rules")
}

fn names(gathered: &Gathered) -> Vec<&'static str> {
    gathered.allowed.keys().map(|&number| calls::name(number).expect("named")).collect()
}

#[test]
fn every_file_compiles_whatever_the_vm_has() {
    for having in [&[][..], EVERYTHING] {
        let (process, threads) = all(having).expect("programs");
        assert!(!process.0.is_empty());
        assert_eq!(threads.len(), Thread::ALL.len());
        for programs in threads.values().chain([&process]) {
            // 4096 is the kernel's limit.
            assert!(programs.0.iter().all(|program| program.len() < 2000));
        }
    }
}

/// The filter of the process lets through what any of its threads may do. A kind of thread that this VM
/// does not have need not be among them.
#[test]
fn a_thread_may_do_nothing_that_the_process_may_not() {
    for having in [&[][..], EVERYTHING] {
        let process = names(&gathered("process", having));
        let there = |thread: &Thread| match thread {
            Thread::Gdb => having.contains(&Having::Gdb),
            Thread::Userfault => having.contains(&Having::Kvm),
            _ => true,
        };
        for thread in Thread::ALL.into_iter().filter(there) {
            for call in names(&gathered(thread.file(), having)) {
                assert!(process.contains(&call), "{call} of {}", thread.file());
            }
        }
    }
}

#[test]
fn threads_that_a_guest_reaches_open_and_start_nothing() {
    let never = [
        "openat",
        "open",
        "execve",
        "execveat",
        "fork",
        "vfork",
        "clone",
        "clone3",
        "socket",
        "connect",
        "bind",
        "unlink",
        "rename",
        "ptrace",
        "process_vm_readv",
        "setuid",
        "mount",
        "bpf",
        "perf_event_open",
        "io_uring_setup",
        "kill",
        "rt_sigaction",
        "memfd_create",
    ];
    for having in [&[][..], EVERYTHING] {
        for thread in [Thread::Vcpu, Thread::Io, Thread::Console, Thread::WorkingSet, Thread::Gdb] {
            let allowed = names(&gathered(thread.file(), having));
            for call in never {
                let connects = thread == Thread::Io && having.contains(&Having::Vsock);
                if connects && ["socket", "connect"].contains(&call) {
                    continue;
                }
                assert!(!allowed.contains(&call), "{call} in {}", thread.file());
            }
        }
    }
}

#[test]
fn nobody_becomes_another_program_or_somebody_else() {
    let allowed = names(&gathered("process", EVERYTHING));
    for call in ["execve", "execveat", "fork", "vfork", "setuid", "ptrace", "mount", "unshare"] {
        assert!(!allowed.contains(&call), "{call}");
    }
}

#[test]
fn kvm_is_for_those_that_have_it() {
    let requests = |having| gathered("vcpu", having).allowed[&libc::SYS_ioctl].len();
    assert!(requests(EVERYTHING) > requests(&[]) + 20);
}

/// A timer sends signals: nobody else has one, and the supervisor only for the vCPUs that it starts.
#[test]
fn timers_are_for_vcpus_of_the_translator() {
    let timers = ["timer_create", "timer_settime", "timer_delete"];
    for having in [&[][..], &[Having::Kvm], &[Having::Translate]] {
        for thread in Thread::ALL {
            let wanted = having.contains(&Having::Translate)
                && [Thread::Vcpu, Thread::Supervisor].contains(&thread);
            let allowed = names(&gathered(thread.file(), having));
            for call in timers {
                assert_eq!(allowed.contains(&call), wanted, "{call} of {}", thread.file());
            }
        }
    }
}

#[test]
fn what_is_refused_by_one_and_allowed_by_another_is_allowed() {
    let supervisor = gathered("supervisor", &[]);
    assert!(supervisor.refused.contains_key(&libc::SYS_openat), "by what it starts");
    assert!(supervisor.allowed.contains_key(&libc::SYS_openat));
    // Allowed calls, and one program for each error.
    assert_eq!(supervisor.programs().expect("programs").0.len(), 3);
    assert_eq!(gathered("vcpu", &[]).programs().expect("programs").0.len(), 2);
}

#[test]
fn mistakes_in_files_are_told() {
    let told = |allow: &str| {
        let text = format!(r#"{{ "about": "x", "allow": [{allow}] }}"#);
        let rules: Rules = serde_json::from_str(&text).expect("rules");
        Gathered::default().add(&rules).expect_err("a mistake")
    };
    assert_eq!(told(r#"{ "call": "raed", "why": "" }"#), "no system call raed");
    let condition = |text: &str| format!(r#"{{ "call": "read", "why": "", "where": [{text}] }}"#);
    assert_eq!(told(&condition(r#"{ "argument": 0 }"#)), "argument 0: nothing is asked of it");
    assert_eq!(told(&condition(r#"{ "argument": 0, "is": ["PROT_EXE"] }"#)), "no value PROT_EXE");
    assert!(told(&condition(r#"{ "argument": 6, "is": ["0"] }"#)).contains("argument"));
}

/// With KVM the first frame that is taken, or the first save of a guest that goes on, starts the thread that answers faults
/// from the API's, whose filter it inherits.
#[test]
fn who_answers_faults_may_also_where_the_api_has_started_it() {
    let [api, faults] = ["api", "userfault"].map(|name| gathered(name, &[Having::Kvm]));
    for (number, wanted) in &faults.allowed {
        let there = api.allowed.get(number).expect("the call");
        let is_there = |rule| there.contains(rule);
        let every = there.is_empty() || !wanted.is_empty() && wanted.iter().all(is_there);
        assert!(every, "{} of the API's", calls::name(*number).expect("named"));
    }
}
