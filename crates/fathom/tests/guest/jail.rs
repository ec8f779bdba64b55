//! What root can do beside: a VM in a jail, a root directory and a user of its own; and in a control group.

use std::fs;
use std::io::BufReader;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;

use crate::confined::is_confined;
use crate::console::Console;
use crate::engine::{Engine, announce};
use crate::kit::Kernel;
use crate::processor;
use crate::sandbox::Sandbox;
use crate::vm::Guest;

/// Nobody's, on any host.
const USER: u32 = 54_321;
const GROUP: u32 = 54_322;

#[test]
fn a_jailed_vm_has_a_root_and_a_user_of_its_own() {
    if fs::metadata("/proc/self").expect("proc").uid() != 0 {
        return announce("*** NOT TESTED: --jail: run the tests as root ***");
    }
    let sandbox = Sandbox::new();
    let root = sandbox.path("jail");
    fs::create_dir(&root).expect("a directory");
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).expect("mode");
    fs::copy(Kernel::Cloud.image(), root.join("vmlinuz")).expect("kernel");
    fs::copy(Kernel::Cloud.initramfs(), root.join("initrd")).expect("initrd");

    let engine = Engine::under_test().name();
    let jail = format!("{USER}:{GROUP}:{}", root.display());
    let words = "console=ttyS0 loglevel=5 panic=1 fathom.run=boot fathom.end=stay";
    let words = format!("{words} {}", processor::words());
    let mut command = sandbox.command(&["run", "--jail", &jail, "--engine", engine]);
    command.args(["--kernel", "/vmlinuz", "--initrd", "/initrd", "--cmdline", &words]);
    command.args(["--name", "jailed"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program runs");
    let mut console = Console::read(BufReader::new(child.stdout.take().expect("output")));
    let mut errors = Console::read(BufReader::new(child.stderr.take().expect("errors")));
    errors.wait_for(&format!("runs on engine {engine} "));
    console.event("end");

    is_jailed(child.id(), &root);
    is_confined(child.id());
    // Nothing of it is seen outside.
    assert_eq!(fs::read_dir(root.join("dev")).expect("dev").count(), 0);
    let told = |arguments: &[&str]| {
        let mut command = sandbox.command(arguments);
        command.env("XDG_RUNTIME_DIR", root.join("run"));
        let output = command.output().expect("the program runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(told(&["list"]).contains("jailed"));
    told(&["stop", "jailed"]);
    let status = child.wait().expect("status");
    assert!(status.success(), "{status}: {}", errors.until_end());
}

fn is_jailed(pid: u32, root: &Path) {
    let process = Path::new("/proc").join(pid.to_string());
    let status = fs::read_to_string(process.join("status")).expect("status");
    let has = |line: String| assert!(status.contains(&line), "{line}: {status}");
    has(format!("Uid:\t{USER}\t{USER}\t{USER}\t{USER}\n"));
    has(format!("Gid:\t{GROUP}\t{GROUP}\t{GROUP}\t{GROUP}\n"));
    has("Groups:\t \n".to_owned());
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        has(format!("{set}:\t0000000000000000\n"));
    }
    let inside = fs::metadata(process.join("root")).expect("its root");
    let outside = fs::metadata(root).expect("the jail");
    assert_eq!((inside.dev(), inside.ino()), (outside.dev(), outside.ino()));
    let mounts = fs::read_to_string(process.join("mounts")).expect("mounts");
    let places: Vec<_> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    assert_eq!(places, ["/", "/dev", "/proc"], "no more of the host is mounted");
}

#[test]
fn a_vm_has_a_control_group_of_its_own() {
    let limits = "fathom-test,memory=2G,cpus=3";
    let sandbox = Sandbox::new();
    let guest = Guest::new("fathom.run=sh");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let root = fs::metadata("/proc/self").expect("proc").uid() == 0;
    if !root || !mounts.contains(" - cgroup") {
        return announce(
            "*** NOT TESTED: --cgroup: run the tests as root, with control groups ***",
        );
    }
    let mut vm = guest.arguments(&["--cgroup", limits]).start(&sandbox);
    vm.wait_for_shell();
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", vm.pid())).expect("its groups");
    let ours: Vec<_> =
        groups.lines().filter(|line| line.ends_with(":/fathom-test/guest")).collect();
    // `0::` is version 2, which has one tree for all controllers.
    let is = |start: &str, name: &str| {
        ours.iter().any(|line| line.starts_with(start) && line.contains(name))
    };
    assert!(is("0::", "") || is("", ":memory:") && is("", "cpu"), "{groups}");
    vm.type_line("poweroff -f");
    vm.ended().well();
}
