//! Stock gdb on a guest's kernel, as a kernel developer uses it.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use api::RunState;

use crate::console::Console;
use crate::engine::announce;
use crate::processor;
use crate::sandbox::Sandbox;
use crate::vm::{Guest, Vm};

/// Where a kernel is entered that is loaded at the default address.
const ENTRY: &str = "0x1000000";

/// gdb without a terminal does not tell that it lets the guest go on.
const GO_ON: &str = "echo it goes on\\n";

#[test]
fn gdb_debugs_a_kernel() {
    if Command::new("gdb").arg("--version").stdout(Stdio::null()).status().is_err() {
        return announce("*** NOT TESTED: gdb is not here: apt-get install gdb ***");
    }
    let sandbox = Sandbox::new();
    let socket = sandbox.path("gdb");
    let guest = Guest::new("nokaslr reboot=t fathom.run=sh").cpus(2);
    let mut vm = guest.arguments(&["--gdb", socket.to_str().expect("text")]).start(&sandbox);
    let mode = socket.metadata().expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    stands_before_its_first_instruction(&sandbox, &vm);
    vm.wait_for_shell();
    let symbols = Symbols::of(&mut vm);
    memory_is_read_through_page_tables(&sandbox, &symbols);
    if processor::in_lab() {
        // It passes INT3 to the guest, and sets no breakpoints of the guest's.
        announce(
            "*** NOT TESTED in the lab: breakpoints: run `cargo xtask lab` on a host that has KVM ***",
        );
        goes_on_when_gdb_dies(&sandbox, &mut vm, &["info threads"]);
    } else {
        stops_where_asked(&sandbox, &mut vm, &symbols);
        one_debugger_at_a_time(&sandbox, &mut vm, &symbols);
        goes_on_when_gdb_dies(&sandbox, &mut vm, &[&format!("break *{}", symbols.sync)]);
    }
    reboots_under_gdb(&sandbox, &mut vm);
    vm.type_line("poweroff -f");
    vm.ended().well();
    assert!(!socket.exists(), "the socket is removed");
}

/// Addresses in the guest's kernel.
struct Symbols {
    /// What `sync` does.
    sync: String,
    /// What `echo >/proc/sys/kernel/panic` changes.
    panic_timeout: String,
    linux_banner: String,
}

impl Symbols {
    fn of(vm: &mut Vm<'_>) -> Self {
        let mut symbol = |name: &str| {
            let line = vm.shell(&format!("grep -m 1 -w {name} /proc/kallsyms"));
            let address = line.split_whitespace().next().expect("an address");
            assert!(address.starts_with("ffffffff8"), "{line}");
            format!("0x{address}")
        };
        Self {
            sync: symbol("ksys_sync"),
            panic_timeout: symbol("panic_timeout"),
            linux_banner: symbol("linux_banner"),
        }
    }
}

/// A gdb that runs a script.
struct Gdb {
    child: Child,
    said: Console,
}

impl Gdb {
    fn start(sandbox: &Sandbox, script: &[&str]) -> Self {
        let socket = sandbox.path("gdb");
        let attach = format!("target remote {}", socket.display());
        let mut command = Command::new("gdb");
        command.args(["-nx", "-q", "-batch", "-ex", "set pagination off", "-ex", &attach]);
        command.args(script.iter().flat_map(|line| ["-ex", line]));
        // Both in the order in which it says them.
        let (reader, writer) = std::io::pipe().expect("a pipe");
        command.stdin(Stdio::null()).stdout(writer.try_clone().expect("a pipe")).stderr(writer);
        let child = command.spawn().expect("gdb runs");
        drop(command);
        Self { child, said: Console::read(reader) }
    }

    fn ended(mut self) -> String {
        let said = self.said.until_end();
        self.child.wait().expect("status");
        said
    }

    fn run(sandbox: &Sandbox, script: &[&str]) -> String {
        Self::start(sandbox, script).ended()
    }
}

impl Drop for Gdb {
    fn drop(&mut self) {
        // Ended already, or the test has failed: either is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn stands_before_its_first_instruction(sandbox: &Sandbox, vm: &Vm<'_>) {
    assert_eq!(vm.status().state, RunState::Paused);
    assert_eq!(vm.console.so_far(), "");
    let said = Gdb::run(
        sandbox,
        &["info threads", "p/x $rip", "stepi", "p $cr0 & 1", "p $fctrl", "p $mxcsr"],
    );
    for part in [
        "(vcpu 0, in the kernel)",
        "(vcpu 1, not started)",
        &format!("$1 = {ENTRY}\n"),
        "0x0000000001000007 in ",
        "$2 = 1\n",
        "$3 = 895\n",
        "$4 = 8064\n",
        "detached",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

fn memory_is_read_through_page_tables(sandbox: &Sandbox, symbols: &Symbols) {
    let said = Gdb::run(
        sandbox,
        &[
            &format!("x/s {}", symbols.linux_banner),
            &format!("p *(int *) {}", symbols.panic_timeout),
            "x/x 0xffff000000000000",
            "monitor info registers",
        ],
    );
    for part in [
        "\"Linux version 6.",
        "$1 = 1\n",
        "Cannot access memory at address 0xffff000000000000",
        "vcpu 1: rip 0xffffffff8",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

/// Breakpoints in memory and of the processor, a watchpoint, and steps; the guest does not notice.
fn stops_where_asked(sandbox: &Sandbox, vm: &mut Vm<'_>, symbols: &Symbols) {
    let Symbols { sync, panic_timeout, .. } = symbols;
    for (place, kind) in [("break", "Breakpoint 1, "), ("hbreak", "Breakpoint 1, ")] {
        let mut gdb = Gdb::start(
            sandbox,
            &[
                &format!("{place} *{sync}"),
                GO_ON,
                "continue",
                "p/x $rip",
                // No INT3 is to be seen where it stands.
                &format!("p/x *(unsigned char *) {sync}"),
                "stepi",
                "stepi",
                "p $rip > $1 || $rip < $1",
                "info breakpoints",
            ],
        );
        gdb.said.wait_for("it goes on");
        vm.type_line("sync; echo synced $((40 + 2))");
        let said = gdb.ended();
        assert!(said.contains(kind) && said.contains(&format!("$1 = {sync}\n")), "{said}");
        assert!(!said.contains("$2 = 0xcc"), "{said}");
        assert!(said.contains("$3 = 1\n"), "{said}");
        assert!(said.contains("already hit 1 time"), "{said}");
        vm.console.wait_for("synced 42\r\n");
        vm.wait_for_shell();
    }
    let mut gdb =
        Gdb::start(sandbox, &[&format!("watch *(int *) {panic_timeout}"), GO_ON, "continue"]);
    gdb.said.wait_for("it goes on");
    vm.type_line("echo 7 >/proc/sys/kernel/panic; echo written $((40 + 2))");
    let said = gdb.ended();
    assert!(said.contains("Old value = 1\nNew value = 7\n"), "{said}");
    vm.console.wait_for("written 42\r\n");
    vm.wait_for_shell();
}

fn one_debugger_at_a_time(sandbox: &Sandbox, vm: &mut Vm<'_>, symbols: &Symbols) {
    let mut gdb = Gdb::start(sandbox, &[&format!("break *{}", symbols.sync), GO_ON, "continue"]);
    gdb.said.wait_for("it goes on");
    let other = Gdb::run(sandbox, &["info threads"]);
    assert!(!other.contains("vcpu"), "{other}");
    vm.type_line("sync; echo synced $((40 + 2))");
    assert!(gdb.ended().contains("Breakpoint 1, "));
    vm.console.wait_for("synced 42\r\n");
    vm.wait_for_shell();
}

/// A breakpoint, which nobody would serve any more, is taken out.
fn goes_on_when_gdb_dies(sandbox: &Sandbox, vm: &mut Vm<'_>, script: &[&str]) {
    let mut gdb = Gdb::start(sandbox, &[script, &[GO_ON, "continue"]].concat());
    gdb.said.wait_for("it goes on");
    drop(gdb);
    vm.wait_until("forgotten", |status| status.state == RunState::Running);
    // A client that leaves in the middle of a packet.
    drop(UnixStream::connect(sandbox.path("gdb")).expect("connected"));
    assert_eq!(vm.shell("sync; echo $?"), "0");
}

fn reboots_under_gdb(sandbox: &Sandbox, vm: &mut Vm<'_>) {
    let mut gdb = Gdb::start(sandbox, &[GO_ON, "continue", "p/x $rip"]);
    gdb.said.wait_for("it goes on");
    vm.type_line("reboot -f");
    let said = gdb.ended();
    assert!(said.contains("SIGTRAP") && said.contains(&format!("$1 = {ENTRY}\n")), "{said}");
    vm.console.event("init");
    vm.wait_for_shell();
}
