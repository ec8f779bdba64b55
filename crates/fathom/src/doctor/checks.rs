//! The checks, one function each.

#[cfg(test)]
mod tests;

use std::io;

use api::SocketDirectory;

use super::host::{Host, Kvm, Landlock};
use super::{Check, Status};

pub(super) fn all(host: &Host) -> Vec<Check> {
    let mut checks = vec![
        engine(host),
        translator(host),
        kvm(host),
        virtualization(host),
        memfd(host),
        userfaultfd(host),
        transparent_huge_pages(host),
        reserved_huge_pages(host),
        same_page_merging(host),
        cgroup(host),
        seccomp(host),
        landlock(host),
        tap(host),
        passt(host),
        perf(host),
    ];
    checks.push(sockets(SocketDirectory::open()));
    checks
}

/// What `--engine auto` would choose.
fn engine(host: &Host) -> Check {
    let detail = match host.kvm {
        Kvm::Runs => "auto chooses kvm",
        Kvm::Fails { .. } => "auto chooses translate: KVM does not run guests here",
    };
    Check::new("engine", Status::Ok, detail)
}

/// Without these the thunks of vector instructions cannot run.
const NEEDED: [&str; 3] = ["xsave", "avx", "avx2"];

fn translator(host: &Host) -> Check {
    let name = "translator";
    let lacking = |only_needed: bool| {
        let lacks = |(feature, there): &(&'static str, bool)| {
            (!there && (!only_needed || NEEDED.contains(feature))).then_some(*feature)
        };
        host.cpu.iter().filter_map(lacks).collect::<Vec<_>>().join(" ")
    };
    let (needed, all) = (lacking(true), lacking(false));
    match () {
        () if !needed.is_empty() => {
            let detail = format!("this CPU has no {needed}: guests that use it fail");
            Check::new(name, Status::Partial, detail)
        }
        () if all.is_empty() => Check::new(name, Status::Ok, "this CPU has all that it can use"),
        () => Check::new(name, Status::Ok, format!("guests do without {all}, as this CPU does")),
    }
}

fn kvm(host: &Host) -> Check {
    let name = "kvm";
    match (host.open_device("/dev/kvm"), &host.kvm) {
        (Ok(()), Kvm::Runs) => Check::new(name, Status::Ok, "a short guest runs"),
        (Ok(()), Kvm::Fails { why, remedy }) => {
            Check::new(name, Status::Missing, why.clone()).mend(*remedy)
        }
        (Err(error), _) => {
            let check = Check::new(name, Status::Missing, format!("/dev/kvm: {}", plain(&error)));
            match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    check.mend("sudo usermod -aG kvm $USER, then log in again")
                }
                _ => match cpu_extension(host) {
                    Some(Extension::Vmx) => check.mend("sudo modprobe kvm_intel"),
                    Some(Extension::Svm) => check.mend("sudo modprobe kvm_amd"),
                    None => check,
                },
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Extension {
    Vmx,
    Svm,
}

fn cpu_flags(host: &Host) -> String {
    let cpuinfo = host.read("/proc/cpuinfo").unwrap_or_default();
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("flags"));
    line.unwrap_or_default().to_owned()
}

fn cpu_extension(host: &Host) -> Option<Extension> {
    cpu_flags(host).split_ascii_whitespace().find_map(|flag| match flag {
        "vmx" => Some(Extension::Vmx),
        "svm" => Some(Extension::Svm),
        _ => None,
    })
}

/// KVM may work without these flags only where another mechanism stands in, so their absence is a hint.
fn virtualization(host: &Host) -> Check {
    let name = "virtualization";
    let guest = cpu_flags(host).split_ascii_whitespace().any(|flag| flag == "hypervisor");
    match (cpu_extension(host), guest) {
        (Some(Extension::Vmx), _) => Check::new(name, Status::Ok, "the CPU shows VMX"),
        (Some(Extension::Svm), _) => Check::new(name, Status::Ok, "the CPU shows SVM"),
        (None, true) => {
            let detail =
                "this is a VM whose CPU shows neither VMX nor SVM: KVM is unlikely to work";
            Check::new(name, Status::Missing, detail)
                .mend("ask for nested virtualization where this VM is configured")
        }
        (None, false) => Check::new(name, Status::Missing, "the CPU shows neither VMX nor SVM")
            .mend("turn on virtualization in the firmware's settings"),
    }
}

fn memfd(host: &Host) -> Check {
    match &host.memfd {
        Ok(()) => Check::new("memfd", Status::Ok, "guest memory can be had"),
        Err(error) => {
            let detail = format!("memfd_create: {}: no guest memory without it", plain(error));
            Check::new("memfd", Status::Fatal, detail)
        }
    }
}

fn userfaultfd(host: &Host) -> Check {
    let name = "userfaultfd";
    let mend = "sudo sysctl vm.unprivileged_userfaultfd=1";
    match (&host.kernel_faults, &host.user_faults) {
        (Ok(()), _) => Check::new(name, Status::Ok, "faults of user code and of the kernel"),
        (Err(_), Ok(())) => match host.open_device("/dev/userfaultfd") {
            Ok(()) => {
                let detail = "faults of user code and, by /dev/userfaultfd, of the kernel";
                Check::new(name, Status::Ok, detail)
            }
            Err(_) => {
                let detail = "faults of user code only: not those of KVM or of system calls";
                Check::new(name, Status::Partial, detail).mend(mend)
            }
        },
        (_, Err(error)) => {
            let check = Check::new(name, Status::Missing, plain(error));
            // The setting is there if the kernel has userfaultfd at all.
            match host.exists("/proc/sys/vm/unprivileged_userfaultfd") {
                true => check.mend(mend),
                false => check.mend("boot a kernel with CONFIG_USERFAULTFD"),
            }
        }
    }
}

fn transparent_huge_pages(host: &Host) -> Check {
    let name = "huge pages, transparent";
    let mend = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled";
    let shmem = host.read("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    let shmem = shmem.as_deref().and_then(chosen).unwrap_or("unknown");
    let enabled = host.read("/sys/kernel/mm/transparent_hugepage/enabled");
    match enabled.as_deref().and_then(chosen) {
        None => Check::new(name, Status::Missing, "not in this kernel"),
        Some("never") => Check::new(name, Status::Missing, "turned off").mend(mend),
        Some(mode) => {
            Check::new(name, Status::Ok, format!("{mode} for private memory, {shmem} for shared"))
        }
    }
}

/// The word in brackets, as in `always [madvise] never`.
fn chosen(modes: &str) -> Option<&str> {
    modes.split_ascii_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
}

fn reserved_huge_pages(host: &Host) -> Check {
    let name = "huge pages, reserved";
    let at = |size: &str, what: &str| {
        host.number(&format!("/sys/kernel/mm/hugepages/hugepages-{size}/{what}_hugepages"))
    };
    let sizes = [("2048kB", "2 MiB"), ("1048576kB", "1 GiB")];
    let found: Vec<_> = sizes
        .iter()
        .filter_map(|(size, text)| Some((text, at(size, "nr")?, at(size, "free")?)))
        .collect();
    if found.is_empty() {
        return Check::new(name, Status::Missing, "not in this kernel");
    }
    let of_size = |(text, all, free): &(&&str, u64, u64)| format!("{free} of {all} of {text} free");
    let detail = found.iter().map(of_size).collect::<Vec<_>>().join(", ");
    if found.iter().any(|(_, all, _)| *all > 0) {
        return Check::new(name, Status::Ok, detail);
    }
    Check::new(name, Status::Missing, format!("{detail}; none are needed"))
        .mend("sudo sysctl vm.nr_hugepages=N")
}

fn same_page_merging(host: &Host) -> Check {
    let name = "same-page merging";
    let mend = "echo 1 | sudo tee /sys/kernel/mm/ksm/run";
    match host.number("/sys/kernel/mm/ksm/run") {
        None => Check::new(name, Status::Missing, "KSM is not in this kernel"),
        Some(1) => Check::new(name, Status::Ok, "KSM runs"),
        Some(_) => Check::new(name, Status::Missing, "KSM is stopped: guests on KVM share nothing")
            .mend(mend),
    }
}

fn cgroup(host: &Host) -> Check {
    let name = "cgroups";
    let ours = host.read("/proc/self/cgroup").unwrap_or_default();
    let unified = ours.lines().find_map(|line| line.strip_prefix("0::"));
    let legacy_memory = ours.lines().any(|line| {
        line.split(':').nth(1).is_some_and(|names| names.split(',').any(|name| name == "memory"))
    });
    if legacy_memory {
        return Check::new(name, Status::Partial, "version 1 limits memory")
            .mend("boot with systemd.unified_cgroup_hierarchy=1 for version 2");
    }
    let Some(path) = unified else {
        return Check::new(name, Status::Missing, "this process is in none");
    };
    let controllers = host.read(&format!("/sys/fs/cgroup{path}/cgroup.controllers"));
    let has = |wanted: &str| {
        controllers.as_deref().is_some_and(|all| all.split_ascii_whitespace().any(|c| c == wanted))
    };
    if has("memory") && has("cpu") {
        return Check::new(name, Status::Ok, "version 2, with the memory and cpu controllers");
    }
    Check::new(name, Status::Partial, "version 2, but not with the memory and cpu controllers here")
        .mend("systemd-run --user --scope -p Delegate=yes fathom ...")
}

fn seccomp(host: &Host) -> Check {
    let name = "seccomp";
    match host.read("/proc/sys/kernel/seccomp/actions_avail") {
        Some(actions) => Check::new(name, Status::Ok, format!("filters: {actions}")),
        None => Check::new(name, Status::Missing, "filters are not in this kernel")
            .mend("boot a kernel with CONFIG_SECCOMP_FILTER"),
    }
}

fn landlock(host: &Host) -> Check {
    let name = "landlock";
    match &host.landlock {
        Landlock::Version(version) => Check::new(name, Status::Ok, format!("version {version}")),
        Landlock::NotEnabled => Check::new(name, Status::Missing, "turned off at boot")
            .mend("boot with landlock at the front of the lsm= parameter"),
        Landlock::NotInKernel => Check::new(name, Status::Missing, "not in this kernel")
            .mend("boot Linux 5.13 or later with CONFIG_SECURITY_LANDLOCK"),
        Landlock::Unknown(why) => Check::new(name, Status::Unknown, why.clone()),
    }
}

fn tap(host: &Host) -> Check {
    let name = "tap";
    let device = "/dev/net/tun";
    match host.open_device(device) {
        Ok(()) => Check::new(name, Status::Ok, "--net tap=NAME works with interfaces of yours"),
        Err(error) => {
            let check = Check::new(name, Status::Missing, format!("{device}: {}", plain(&error)));
            match error.kind() {
                io::ErrorKind::PermissionDenied => check.mend("sudo chmod 666 /dev/net/tun"),
                _ => check.mend("sudo modprobe tun"),
            }
        }
    }
}

fn passt(host: &Host) -> Check {
    let name = "passt";
    match host.program("passt") {
        Some(path) => Check::new(name, Status::Ok, format!("{path}: --net passt works")),
        None => Check::new(name, Status::Missing, "not in PATH: no network without privileges")
            .mend("sudo apt install passt"),
    }
}

fn perf(host: &Host) -> Check {
    let name = "perf events";
    let path = "/proc/sys/kernel/perf_event_paranoid";
    match host.read(path).and_then(|text| text.parse::<i64>().ok()) {
        None => Check::new(name, Status::Missing, "not in this kernel"),
        Some(level) if level <= 2 => {
            Check::new(name, Status::Ok, format!("own processes can be measured (level {level})"))
        }
        Some(level) => Check::new(name, Status::Missing, format!("for root only (level {level})"))
            .mend("sudo sysctl kernel.perf_event_paranoid=2"),
    }
}

fn sockets(directory: Result<SocketDirectory, api::DirectoryError>) -> Check {
    let name = "sockets";
    match directory {
        Ok(directory) => Check::new(name, Status::Ok, format!("in {}", directory.path().display())),
        Err(error) => Check::new(name, Status::Fatal, error.to_string()),
    }
}

/// The host's words without Rust's `(os error N)`.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
