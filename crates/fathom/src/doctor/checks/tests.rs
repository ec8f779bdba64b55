use std::fs;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;

/// A host of these files.
fn host(files: &[(&str, &str)]) -> (TempDir, Host) {
    let root = tempfile::tempdir().expect("temporary directory");
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("directory");
        fs::write(path, text).expect("file");
    }
    let host = Host::at(root.path());
    (root, host)
}

fn remedy(check: &Check) -> &str {
    check.remedy.as_deref().unwrap_or_default()
}

#[test]
fn kvm_is_mended_by_what_is_wrong_with_it() {
    let (_root, host) = host(&[("proc/cpuinfo", "flags\t\t: fpu svm\n")]);
    let check = kvm(&host);
    assert_eq!((check.status, remedy(&check)), (Status::Missing, "sudo modprobe kvm_amd"));
    assert_eq!(virtualization(&host).status, Status::Ok);
}

#[test]
fn kvm_that_opens_is_not_kvm_that_works() {
    let (root, mut host) = host(&[("dev/kvm", ""), ("proc/cpuinfo", "flags : fpu hypervisor\n")]);
    assert_eq!(kvm(&host).status, Status::Ok);
    assert!(engine(&host).detail.contains("chooses kvm"));
    host.kvm = Kvm::Fails { why: "it emulates".into(), remedy: "nest" };
    assert_eq!((kvm(&host).status, remedy(&kvm(&host))), (Status::Missing, "nest"));
    assert!(engine(&host).detail.contains("chooses translate"));
    assert!(remedy(&virtualization(&host)).contains("nested virtualization"));
    let device = root.path().join("dev/kvm");
    fs::set_permissions(device, fs::Permissions::from_mode(0o000)).expect("mode");
    if !rustix::process::geteuid().is_root() {
        assert!(remedy(&kvm(&host)).contains("usermod"));
    }
}

#[test]
fn userfaultfd_has_grades() {
    let (root, mut host) = host(&[("proc/sys/vm/unprivileged_userfaultfd", "0")]);
    let refused = || Err(io::Error::from(io::ErrorKind::PermissionDenied));
    assert_eq!(userfaultfd(&host).status, Status::Ok);
    host.kernel_faults = refused();
    let check = userfaultfd(&host);
    assert_eq!(check.status, Status::Partial);
    assert_eq!(remedy(&check), "sudo sysctl vm.unprivileged_userfaultfd=1");
    host.user_faults = refused();
    assert_eq!(userfaultfd(&host).status, Status::Missing);
    host.user_faults = Ok(());
    fs::create_dir(root.path().join("dev")).expect("directory");
    fs::write(root.path().join("dev/userfaultfd"), "").expect("device");
    assert_eq!(userfaultfd(&host).status, Status::Ok);
}

#[test]
fn huge_pages_are_counted() {
    let sys = "sys/kernel/mm";
    let (_root, host) = host(&[
        (&format!("{sys}/transparent_hugepage/enabled"), "always [madvise] never\n"),
        (&format!("{sys}/transparent_hugepage/shmem_enabled"), "always advise [never]\n"),
        (&format!("{sys}/hugepages/hugepages-2048kB/nr_hugepages"), "8\n"),
        (&format!("{sys}/hugepages/hugepages-2048kB/free_hugepages"), "3\n"),
    ]);
    assert_eq!(
        transparent_huge_pages(&host).detail,
        "madvise for private memory, never for shared"
    );
    let check = reserved_huge_pages(&host);
    assert_eq!((check.status, check.detail.as_str()), (Status::Ok, "3 of 8 of 2 MiB free"));
}

#[test]
fn cgroups_of_both_versions_are_known() {
    let (_root, one) = host(&[("proc/self/cgroup", "9:memory:/\n0::/\n")]);
    assert!(cgroup(&one).detail.contains("version 1"));
    let (_root, two) = host(&[
        ("proc/self/cgroup", "0::/a/b\n"),
        ("sys/fs/cgroup/a/b/cgroup.controllers", "cpuset cpu io memory\n"),
    ]);
    assert_eq!(cgroup(&two).status, Status::Ok);
    let (_root, bare) = host(&[("proc/self/cgroup", "0::/\n")]);
    assert_eq!(cgroup(&bare).status, Status::Partial);
}

#[test]
fn networks_have_two_ways() {
    let (_root, bare) = host(&[]);
    assert_eq!((tap(&bare).status, remedy(&tap(&bare))), (Status::Missing, "sudo modprobe tun"));
    assert_eq!(remedy(&passt(&bare)), "sudo apt install passt");
    let (root, host) = host(&[("dev/net/tun", ""), ("usr/bin/passt", "")]);
    assert_eq!(tap(&host).status, Status::Ok);
    assert_eq!(passt(&host).status, Status::Missing, "it cannot be run");
    let program = root.path().join("usr/bin/passt");
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).expect("mode");
    assert!(passt(&host).detail.starts_with("/usr/bin/passt: "), "{:?}", passt(&host));
}

/// A host that hides everything gets an answer to everything.
#[test]
fn an_empty_host_has_a_diagnosis() {
    let (_root, mut host) = host(&[]);
    host.landlock = Landlock::NotEnabled;
    host.memfd = Err(io::Error::from(io::ErrorKind::Unsupported));
    host.cpu = vec![("avx2", false), ("sha", false)];
    let checks = all(&host);
    assert!(checks.iter().any(|check| check.status == Status::Fatal));
    for check in &checks {
        assert!(!check.detail.is_empty() && !check.detail.contains('\n'), "{check:?}");
    }
    assert_eq!(translator(&host).status, Status::Partial);
}
