//! The daemon: VMs that it starts and finds, and memory that goes to the one that uses it.

use std::fs::{self, File};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use api::VmStatus;
use serde_json::Value;

use crate::console::deadline;
use crate::engine::{self, Engine};
use crate::kit::Kernel;
use crate::sandbox::{Sandbox, text};
use crate::vm::{Guest, shown};

const MIB: u64 = 1 << 20;
/// What the idle guest has read, and keeps.
const READ_MIB: u64 = 120;
/// What both have is more than this, what both use less.
const LIMIT_MIB: u64 = 380;

#[test]
fn memory_goes_to_the_guest_that_uses_it_and_vms_outlive_the_daemon() {
    // It has passed once there, in one and a half minutes; once the targets were 30 MiB apart the wrong way when they were looked
    // at, since what the idle guest had read was less than a minute ago.
    if engine::is_not_yet_on_kvm("the daemon") {
        return;
    }
    let sandbox = Sandbox::new();
    let disk = File::create(sandbox.path("disk")).expect("a disk");
    disk.set_len((READ_MIB + 8) * MIB).expect("a disk");
    let disk = format!("{},ro", sandbox.path("disk").display());
    let mut idle = Guest::new("fathom.run=sh").disk(disk).start(&sandbox);
    idle.wait_for_shell();
    idle.shell("exec 3</dev/vda");
    idle.shell(&format!("dd if=/dev/vda of=/dev/null bs=1M count={READ_MIB} 2>/dev/null"));
    fs::create_dir(sandbox.path("vms")).expect("a folder");
    write_busy(&sandbox);

    let started = Started(&sandbox);
    let daemon = Daemon::start(&sandbox);
    let busy = wait(&sandbox, "the idle guest gives, the busy one has", |vms| {
        let (idle, busy) = (vm(vms, "guest")?, vm(vms, "busy")?);
        let resident = idle.resident_bytes + busy.resident_bytes;
        let gives = idle.ballooned_bytes >= 80 * MIB && busy.ballooned_bytes <= 40 * MIB;
        (gives && busy.resident_bytes >= 150 * MIB && resident <= LIMIT_MIB * MIB)
            .then_some(busy.pid)
    });
    let board = decided(&sandbox, daemon.0.id());
    let (state, target) = (&board["verdict"]["state"], |index: usize| {
        board["verdict"]["vms"][index]["target"].as_u64().expect("a target")
    });
    // By name: busy, then guest.
    assert!(target(0) >= target(1) + 64 * MIB, "{state}: {board}");
    let table = sandbox.success(&["balance"]);
    assert!(table.starts_with("host: ") && table.contains("busy"), "{table}");
    assert!(sandbox.refusal(2, &["serve"]).contains("a daemon runs already"));
    fs::write(sandbox.path("vms/bad.toml"), "[run]\nkernel = \n").expect("written");
    fs::write(sandbox.path("vms/none.toml"), "[run]\nkernel = \"none\"\n").expect("written");
    wait(&sandbox, "what is wrong is said", |_| {
        let log = daemon.log();
        (log.contains("bad.toml:2: ") && log.contains("exit status: 2: it rests")).then_some(())
    });
    let replayed = sandbox.success(&["balance", "--replay", daemon.1.as_str()]);
    assert!(replayed.ends_with("decisions come out the same\n"), "{replayed}");

    daemon.kill();
    let balloons =
        |vms: &[VmStatus]| Some((vm(vms, "guest")?.balloon_target_bytes, vm(vms, "busy")?.pid));
    let before = balloons(&shown(&sandbox, &["list", "--json"])).expect("both run");
    assert_eq!(before.1, busy);
    let daemon = Daemon::start(&sandbox);
    decided(&sandbox, daemon.0.id());
    assert!(daemon.log().contains("found running"), "{}", daemon.log());
    let after = balloons(&shown(&sandbox, &["list", "--json"])).expect("both run");
    assert_eq!(after.1, busy, "started twice");
    assert!(after.0 >= 80 * MIB, "the next daemon goes on where that one was: {after:?}");
    daemon.end();
    assert!(sandbox.refusal(2, &["balance"]).contains("no daemon runs"));
    let dry = sandbox.success(&["balance", "--dry-run", "--memory", "4G", "--json"]);
    let dry: Value = serde_json::from_str(&dry).expect("json");
    assert_eq!(dry["verdict"]["state"], "high");
    drop(started);
    idle.tell("stop", &[]);
    idle.ended().stopped();
}

fn write_busy(sandbox: &Sandbox) {
    let engine = Engine::under_test();
    let (kernel, initramfs) = (Kernel::Cloud.image(), Kernel::Cloud.initramfs());
    let words = "console=ttyS0 loglevel=5 panic=1 fathom.run=reuse:cycle,140 fathom.seconds=3000";
    let file = format!(
        "[run]\nkernel = \"{kernel}\"\ninitrd = \"{initramfs}\"\nmemory = \"256M\"\n\
         engine = \"{engine}\"\ncmdline = \"{words}\"\n[memory]\nreservation = \"64M\"\n"
    );
    fs::write(sandbox.path("vms/busy.toml"), file).expect("written");
}

/// What the daemon has started, and nobody else would end.
struct Started<'a>(&'a Sandbox);

impl Drop for Started<'_> {
    fn drop(&mut self) {
        let stopped = self.0.fathom(&["stop", "busy"]);
        assert!(stopped.status.success() || thread::panicking(), "{}", text(&stopped.stderr));
    }
}

/// It runs, and where its log is.
pub(crate) struct Daemon(Child, String);

impl Daemon {
    fn start(sandbox: &Sandbox) -> Self {
        let vms = sandbox.path("vms");
        let memory = format!("{LIMIT_MIB}M");
        Self::start_with(sandbox, &[vms.to_str().expect("text"), "--memory", &memory])
    }

    pub(crate) fn start_with(sandbox: &Sandbox, arguments: &[&str]) -> Self {
        let path = sandbox.path("serve.log");
        let log = File::create(&path).expect("a log");
        let mut command = sandbox.command(&[&["serve"], arguments].concat());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let path = path.to_str().expect("text").to_owned();
        Self(command.spawn().expect("the program runs"), path)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.1).expect("a log")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// As by the kernel when there is no memory.
    pub(crate) fn kill(mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("status");
    }

    pub(crate) fn end(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("told");
        assert_eq!(self.0.wait().expect("status").code(), Some(0));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Ended already, or the test has failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn vm<'a>(vms: &'a [VmStatus], name: &str) -> Option<&'a VmStatus> {
    vms.iter().find(|vm| vm.name == name)
}

pub(crate) fn wait<T>(
    sandbox: &Sandbox,
    what: &str,
    wanted: impl Fn(&[VmStatus]) -> Option<T>,
) -> T {
    let deadline = deadline();
    loop {
        let vms = shown(sandbox, &["list", "--json"]);
        if let Some(found) = wanted(&vms) {
            return found;
        }
        let board = || text(&sandbox.fathom(&["balance"]).stdout);
        assert!(Instant::now() < deadline, "never: {what}: {vms:#?}\n{}", board());
        thread::sleep(Duration::from_millis(200));
    }
}

/// What the daemon `pid` has decided of two VMs.
pub(crate) fn decided(sandbox: &Sandbox, pid: u32) -> Value {
    wait(sandbox, "a decision", |_| {
        let board = sandbox.fathom(&["balance", "--json"]).stdout;
        let board: Value = serde_json::from_slice(&board).ok()?;
        let vms = board["verdict"]["vms"].as_array()?.len();
        (board["pid"] == pid && vms == 2).then_some(board)
    })
}
