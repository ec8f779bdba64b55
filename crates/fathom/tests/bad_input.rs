//! What users get wrong: one line that names the thing, the right status, nothing left behind.

mod sandbox;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use sandbox::{Sandbox, is_empty};

/// Refusals that need no kernel.
#[test]
fn bad_flags_and_sizes() {
    let sandbox = Sandbox::new();
    let kernel = sandbox.file("vmlinuz", b"no kernel");
    for (arguments, part) in [
        (&["run"][..], "--kernel"),
        (&["run", "--kernel", &kernel, "--wat"], "--wat"),
        (&["run", "--kernel", &kernel, "--memory", "lots"], "`lots` is not a size"),
        (&["run", "--kernel", &kernel, "--memory", "1M"], "memory 1M is refused"),
        (&["run", "--kernel", &kernel, "--memory", "99999999T"], "more bytes than 64 bits"),
        (&["run", "--kernel", &kernel, "--cpus", "0"], "ask for 1 to 64"),
        (&["run", "--kernel", &kernel, "--cpus", "-1"], "-1"),
        (&["run", "--kernel", &kernel, "--name", "a/b"], "name `a/b` is refused"),
        (&["run", "--kernel", &kernel, "--engine", "kvm"], "--engine translate"),
        (&["run", "--kernel", &kernel, "--engine", "qemu"], "qemu"),
        (
            &["run", "--kernel", &kernel, "--translate", "fast"],
            "`fast` is not known: write interpret",
        ),
        (&["run", "--kernel", &kernel, "--translate", "code=lots"], "`lots` is not a size"),
        (
            &["run", "--kernel", &kernel, "--engine", "translate", "--translate", "hot=0"],
            "--translate hot=0 is refused",
        ),
        (
            &["run", "--kernel", &kernel, "--engine", "translate", "--translate", "code=1K"],
            "--translate code=1K is refused: ask for 16K to 128M",
        ),
        (&["run", "--kernel", &kernel, "--report", "/nowhere/r.json"], "/nowhere/r.json"),
        (&["run", "--kernel", &kernel, "--console", "/nowhere/c"], "/nowhere/c"),
        (&["save", "web"], "<PATH>"),
        (&["restore"], "<PATH>"),
        (&["restore", "/nowhere/web"], "/nowhere/web"),
        (&["top"], "add --once"),
        (&["top", "--interval", "0"], "write seconds"),
        (&["balloon", "web", "much"], "`much` is not a size"),
        (&["reclaim", "web", "much"], "`much` is not a size"),
        (&["serve", "--swap-limit", "1G"], "--swap"),
        (&["serve", "--swap", "/nowhere/swap"], "/nowhere/swap: "),
        (&["stop"], "<NAME>"),
        (&["satrt"], "satrt"),
    ] {
        let line = sandbox.refusal(2, arguments);
        assert!(line.contains(part), "{part}: {line}");
    }
}

#[test]
fn bad_files() {
    let sandbox = Sandbox::new();
    let kernel = sandbox.file("vmlinuz", b"no kernel");
    let empty = sandbox.file("empty", b"");
    let odd = sandbox.file("odd.img", &[0; 700]);
    let disk = sandbox.file("disk.img", &[0; 1024]);
    let directory = sandbox.path("").to_str().expect("text").to_owned();
    let missing = sandbox.path("missing").to_str().expect("text").to_owned();
    let same = format!("{disk},overlay={disk}");
    let (host, taken) = (format!("cid=2,socket={missing}"), format!("cid=3,socket={disk}"));
    for (arguments, parts) in [
        (["--kernel", &missing, "--cpus", "1"], [missing.as_str(), "check the path"]),
        (["--kernel", &empty, "--cpus", "1"], [&empty, "is empty"]),
        (["--kernel", &directory, "--cpus", "1"], [&directory, "is a directory"]),
        (["--kernel", &kernel, "--initrd", &missing], [&missing, "initrd"]),
        (["--kernel", &kernel, "--initrd", &empty], [&empty, "initrd"]),
        (["--kernel", &kernel, "--disk", &missing], [&missing, "disk"]),
        (["--kernel", &kernel, "--disk", &odd], [&odd, "700 bytes"]),
        (["--kernel", &kernel, "--disk", &same], [&disk, "file of its own"]),
        (["--kernel", &kernel, "--vsock", &host], ["cid 2 is refused", "ask for 3 to"]),
        (["--kernel", &kernel, "--vsock", &taken], [&disk, "is no socket"]),
    ] {
        let arguments: Vec<_> = ["run"].into_iter().chain(arguments).collect();
        let line = sandbox.refusal(2, &arguments);
        assert!(parts.iter().all(|part| line.contains(part)), "{parts:?}: {line}");
    }
}

#[test]
fn a_disk_that_is_not_readable() {
    if rustix::process::geteuid().is_root() {
        // Root reads everything.
        return;
    }
    let sandbox = Sandbox::new();
    let kernel = sandbox.file("vmlinuz", b"no kernel");
    let disk = sandbox.file("disk.img", &[0; 1024]);
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o000)).expect("mode");
    let line = sandbox.refusal(2, &["run", "--kernel", &kernel, "--disk", &disk]);
    assert!(line.contains(&disk), "{line}");
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o400)).expect("mode");
    let line = sandbox.refusal(2, &["run", "--kernel", &kernel, "--disk", &disk]);
    assert!(line.contains(",ro or ,overlay=PATH"), "{line}");
}

/// What only the loader can tell, after the name was taken: the name must be free again.
#[test]
fn files_that_are_no_kernels() {
    let sandbox = Sandbox::new();
    let mut truncated = vec![0; 4096];
    truncated[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    truncated[0x202..0x206].copy_from_slice(b"HdrS");
    let kernels = [
        sandbox.file("text", b"just some text, long enough to have a header in it or so\n"),
        sandbox.file("truncated", &truncated),
        sandbox.file("elf", b"\x7fELF\x02\x01\x01"),
        sandbox.file("zeros", &[0; 65_536]),
    ];
    for kernel in &kernels {
        let line = sandbox.refusal(2, &["run", "--kernel", kernel, "--console", "none"]);
        let (_, reason) = line.split_once(kernel.as_str()).expect(&line);
        assert!(reason.trim().len() > 10, "no word on what is wrong with it: {line}");
        assert!(is_empty(sandbox.sockets().path()), "{line}");
    }
}

#[test]
fn an_initrd_larger_than_memory() {
    let sandbox = Sandbox::new();
    let kernel = sandbox.file("vmlinuz", b"no kernel");
    let initrd = sandbox.file("initrd", b"");
    fs::File::options()
        .write(true)
        .open(&initrd)
        .and_then(|f| f.set_len(64 << 20))
        .expect("length");
    let arguments = ["run", "--kernel", &kernel, "--initrd", &initrd, "--memory", "32M"];
    let line = sandbox.refusal(2, &arguments);
    assert!(line.contains(&initrd) && line.contains("--memory"), "{line}");
}

#[test]
fn a_name_in_use() {
    let sandbox = Sandbox::new();
    let kernel = sandbox.file("vmlinuz", b"no kernel");
    let (_vm, _server) = sandbox.fake_vm("web");
    let line = sandbox.refusal(2, &["run", "--kernel", &kernel, "--name", "web"]);
    assert!(line.contains("`web` is in use by process"), "{line}");
    assert!(line.contains("--name"), "{line}");
    assert!(sandbox.success(&["list"]).contains("web"), "the VM that had the name keeps it");
}

#[test]
fn a_socket_left_by_a_dead_vm() {
    let sandbox = Sandbox::new();
    let kernel = sandbox.file("vmlinuz", b"no kernel");
    let directory = sandbox.sockets();
    drop(UnixListener::bind(directory.path().join("web.sock")).expect("socket"));
    fs::write(directory.path().join("web.lock"), "12345").expect("lock");
    let line = sandbox.refusal(1, &["pause", "web"]);
    assert!(line.contains("no VM `web` is running"), "{line}");
    // The name is not what is wrong.
    let line = sandbox.refusal(2, &["run", "--kernel", &kernel, "--name", "web"]);
    assert!(line.contains(&kernel), "{line}");
    assert!(is_empty(directory.path()));
}

#[test]
fn a_socket_directory_of_somebody_elses() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("fathom")).expect("directory");
    fs::set_permissions(sandbox.path("fathom"), fs::Permissions::from_mode(0o777)).expect("mode");
    let line = sandbox.refusal(1, &["list"]);
    assert!(line.contains("open to others"), "{line}");
}

#[test]
fn names_of_no_vm() {
    let sandbox = Sandbox::new();
    for arguments in [
        &["pause", "web"][..],
        &["resume", "web"],
        &["stop", "../web"],
        &["balloon", "web", "1M"],
        &["reclaim", "web", "1M"],
        &["balloon", ""],
    ] {
        let line = sandbox.refusal(1, arguments);
        assert!(line.contains("is running: `fathom list`"), "{line}");
    }
}
