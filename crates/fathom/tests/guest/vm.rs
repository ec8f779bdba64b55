//! A VM under test: started, talked to, waited for.

use std::fs;
use std::io::Write;
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use api::{Report, VmStatus};

use crate::console::{Console, complaints, deadline};
use crate::engine::{Engine, announce};
use crate::kit::Kernel;
use crate::processor;
use crate::sandbox::{Sandbox, text};

/// Two guests at a time would slow each other down, and spoil what is measured.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Name of a VM that has its sandbox to itself.
const NAME: &str = "guest";

/// Of the shell in the guest.
const PROMPT: &str = "/ # ";

/// Asks the kernel to reset by a triple fault; of other guests each one is a crash.
const RESET_BY_FAULT: &str = "reboot=t";

/// What to start.
pub(crate) struct Guest {
    name: String,
    /// Waits until no other runs.
    alone: bool,
    kernel: Kernel,
    words: String,
    cpus: u32,
    disks: Vec<String>,
    more: Vec<String>,
    /// Writes a report at its end; so on KVM it is watched, and its memory in a file.
    reports: bool,
}

impl Guest {
    /// The cloud kernel with one vCPU, 256 MiB, and these words on its command line.
    pub(crate) fn new(words: &str) -> Self {
        // Warnings and worse are for us to see; the rest only takes time.
        let words = format!("console=ttyS0 loglevel=5 panic=1 {words} {}", processor::words());
        let name = NAME.to_owned();
        Self {
            name,
            alone: true,
            kernel: Kernel::Cloud,
            words,
            cpus: 1,
            disks: Vec::new(),
            more: Vec::new(),
            reports: true,
        }
    }

    /// One of several in a sandbox, at the same time.
    pub(crate) fn beside_others(self, name: &str) -> Self {
        Self { name: name.to_owned(), alone: false, ..self }
    }

    pub(crate) fn word(mut self, word: &str) -> Self {
        self.words += " ";
        self.words += word;
        self
    }

    /// Without a report, which tests of how it ends need.
    pub(crate) fn unwatched(self) -> Self {
        Self { reports: false, ..self }
    }

    pub(crate) fn kernel(self, kernel: Kernel) -> Self {
        Self { kernel, ..self }
    }

    pub(crate) fn cpus(self, cpus: u32) -> Self {
        Self { cpus, ..self }
    }

    pub(crate) fn disk(mut self, disk: String) -> Self {
        self.disks.push(disk);
        self
    }

    /// Other arguments of `fathom run`.
    pub(crate) fn arguments(mut self, arguments: &[&str]) -> Self {
        self.more.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    pub(crate) fn start(self, sandbox: &Sandbox) -> Vm<'_> {
        let turn = || ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = self.alone.then(turn);
        let engine = Engine::under_test();
        let (kernel, initramfs) = (self.kernel.image(), self.kernel.initramfs());
        let mut command = sandbox.command(&["run", "--kernel", &kernel, "--initrd", &initramfs]);
        command.args(["--cmdline", &self.words, "--memory", "256M", "--name", &self.name]);
        command.args(["--cpus", &self.cpus.to_string(), "--engine", engine.name()]);
        command.args(self.disks.iter().flat_map(|disk| ["--disk", disk]));
        command.args(&self.more);
        if self.reports {
            command.arg("--report").arg(sandbox.path(&format!("{}.json", self.name)));
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program runs");
        let mut console = Console::read(child.stdout.take().expect("standard output"));
        let mut errors = Console::read(child.stderr.take().expect("standard error"));
        if !self.words.contains(RESET_BY_FAULT) {
            console.give_up_on(&errors, "triple fault");
        }
        errors.wait_for(&format!("runs on engine {engine} "));
        let test = thread::current().name().unwrap_or_default().to_owned();
        announce(&format!("{test}: a guest runs on engine {engine}"));
        Vm { sandbox, name: self.name, child, console, errors, commands: 0, _turn: turn }
    }

    /// Starts it and waits for its end.
    pub(crate) fn run(self, sandbox: &Sandbox) -> Ended {
        self.start(sandbox).ended()
    }
}

/// A VM that runs; killed when dropped.
pub(crate) struct Vm<'a> {
    sandbox: &'a Sandbox,
    name: String,
    child: Child,
    pub(crate) console: Console,
    errors: Console,
    /// Typed so far.
    commands: u32,
    _turn: Option<MutexGuard<'static, ()>>,
}

/// What `list` or `top` shows to scripts. They ask again if a VM does not answer in time, for on a crowded host it
/// may take longer than people want to wait for all others.
pub(crate) fn shown(sandbox: &Sandbox, arguments: &[&str]) -> Vec<VmStatus> {
    let deadline = deadline();
    loop {
        let output = sandbox.fathom(arguments);
        let errors = text(&output.stderr);
        let is_late = |line: &str| line.contains("did not answer within");
        if !errors.is_empty() && errors.lines().all(is_late) && Instant::now() < deadline {
            continue;
        }
        assert!(output.status.success() && errors.is_empty(), "{arguments:?}: {errors}");
        return serde_json::from_slice(&output.stdout).expect("json");
    }
}

/// A VM that has ended.
pub(crate) struct Ended {
    pub(crate) status: Option<i32>,
    pub(crate) console: String,
    pub(crate) errors: String,
    pub(crate) report: Report,
}

impl Vm<'_> {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the shell of `fathom.run=sh`.
    pub(crate) fn wait_for_shell(&mut self) {
        self.console.wait_for(PROMPT);
    }

    /// Types a command into the shell and returns what it printed; it must succeed.
    pub(crate) fn shell(&mut self, command: &str) -> String {
        self.commands += 1;
        let number = self.commands;
        // The echo of what is typed has the sums, the answer their results.
        let sum = format!("$(({number}+1000))");
        self.type_line(&format!("echo begin {sum}; {command}; echo end {sum} status $?"));
        self.console.wait_for(&format!("begin {}\r\n", number + 1000));
        let printed = self.console.wait_for(&format!("end {} status ", number + 1000));
        let status = self.console.wait_for("\r\n");
        // What is typed before the prompt is echoed twice.
        self.wait_for_shell();
        assert_eq!(status, "0", "{command}: {printed}");
        without_kernel_messages(&printed)
    }

    pub(crate) fn type_line(&mut self, line: &str) {
        let keyboard = self.child.stdin.as_mut().expect("standard input");
        keyboard
            .write_all(line.as_bytes())
            .and_then(|()| keyboard.write_all(b"\n"))
            .expect("typed");
    }

    /// One of the commands that take the name of a VM.
    pub(crate) fn tell(&self, verb: &str, arguments: &[&str]) -> String {
        self.sandbox.success(&[&[verb, self.name.as_str()], arguments].concat())
    }

    /// The same where the VM or the host says no: the line.
    pub(crate) fn refusal(&self, verb: &str, arguments: &[&str]) -> String {
        self.sandbox.refusal(1, &[&[verb, self.name.as_str()], arguments].concat())
    }

    /// The VM as `fathom top` shows it to scripts.
    pub(crate) fn top(&self) -> VmStatus {
        self.shown(&["top", "--once", "--json"])
    }

    /// The same from `fathom list`, which does not wait for a working set.
    pub(crate) fn status(&self) -> VmStatus {
        self.shown(&["list", "--json"])
    }

    fn shown(&self, arguments: &[&str]) -> VmStatus {
        let vms = shown(self.sandbox, arguments);
        let vm = vms.into_iter().find(|vm| vm.name == self.name);
        let vm = vm.unwrap_or_else(|| panic!("it has ended: {}", self.errors.so_far()));
        assert_eq!(vm.pid, self.pid());
        assert_eq!(vm.engine, Engine::under_test().name());
        vm
    }

    /// Waits until the VM is as wanted.
    pub(crate) fn wait_until(&self, what: &str, wanted: impl Fn(&VmStatus) -> bool) -> VmStatus {
        let deadline = deadline();
        loop {
            let status = self.status();
            if wanted(&status) {
                return status;
            }
            let console = || self.console.so_far();
            assert!(Instant::now() < deadline, "never {what}: {status:?}\n{}", console());
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// A busy guest that was paused a tenth of a second ago or longer has done nothing since.
    pub(crate) fn stood_since(&self, paused: &VmStatus) {
        let now = self.status();
        assert_eq!(now.exits, paused.exits, "a paused guest ran");
        // Its threads take some time to go to sleep.
        let busy = now.guest_cpu_seconds - paused.guest_cpu_seconds;
        assert!(busy < 0.01, "a paused guest ran for {busy} s");
    }

    /// Saves it, which ends its process, and has it go on in another one after `meanwhile`.
    pub(crate) fn go_on_elsewhere(&mut self, name: &str, meanwhile: impl FnOnce(), more: &[&str]) {
        let path = self.sandbox.path(name);
        let path = path.to_str().expect("text");
        let said = self.tell("save", &[path, "--stop"]);
        announce(&format!("{name}: {}", said.trim_end()));
        meanwhile();
        self.begin_again(path, more);
    }

    /// Waits for the end of its process, and has it go on as it is in a snapshot.
    pub(crate) fn begin_again(&mut self, path: &str, more: &[&str]) {
        self.begin_again_on(Engine::under_test(), path, more);
    }

    /// The same; `more` may say on which engine.
    pub(crate) fn begin_again_on(&mut self, engine: Engine, path: &str, more: &[&str]) {
        complain(&self.console.until_end());
        let status = self.child.wait().expect("status").code();
        assert_eq!(status, Some(0), "{}", self.errors.until_end());
        let mut command = self.sandbox.command(&["restore", path]);
        command.args(more).arg("--report");
        command.arg(self.sandbox.path(&format!("{}.json", self.name)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.child = command.spawn().expect("the program runs");
        self.console = Console::read(self.child.stdout.take().expect("standard output"));
        self.errors = Console::read(self.child.stderr.take().expect("standard error"));
        self.console.give_up_on(&self.errors, "triple fault");
        self.errors.wait_for(&format!("runs on engine {engine} "));
    }

    /// How its memory came, when it has been stopped.
    pub(crate) fn report_of_a_restore(&self) -> api::Restore {
        let json = fs::read(self.sandbox.path(&format!("{}.json", self.name))).expect("a report");
        let report: Report = serde_json::from_slice(&json).expect("a report");
        report.restore.expect("of a restore")
    }

    /// Waits for the end.
    pub(crate) fn ended(mut self) -> Ended {
        let console = self.console.until_end();
        let status = self.child.wait().expect("status").code();
        let errors = self.errors.until_end();
        let json = fs::read(self.sandbox.path(&format!("{}.json", self.name)));
        let json = json.unwrap_or_else(|error| panic!("no report: {error}\n{errors}\n{console}"));
        let report: Report = serde_json::from_slice(&json).expect("a report");
        assert_eq!(report.engine, Engine::under_test().name());
        Ended { status, console, errors, report }
    }

    /// Ends it as the power does when it fails.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("status");
        complain(&self.console.until_end());
    }
}

impl Drop for Vm<'_> {
    fn drop(&mut self) {
        // Ended already, or the test has failed: either is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// The guest did all that it was asked, and powered off.
    pub(crate) fn well(self) -> Self {
        complain(&self.console);
        assert_eq!(self.status, Some(0), "{}\n{}", self.errors, self.console);
        assert_eq!(self.report.outcome, "poweroff");
        self
    }

    /// Somebody stopped it.
    pub(crate) fn stopped(self) -> Self {
        complain(&self.console);
        assert_eq!(self.status, Some(0), "{}\n{}", self.errors, self.console);
        assert_eq!(self.report.outcome, "stopped");
        self
    }
}

/// What programs printed: on a slow host the kernel has a word about its clocks now and then.
fn without_kernel_messages(printed: &str) -> String {
    let is_kernels = |line: &&str| {
        let time = line.strip_prefix('[').and_then(|rest| rest.split_once("] "));
        time.is_some_and(|(time, _)| time.trim_start().parse::<f64>().is_ok())
    };
    let lines = printed.lines().filter(|line| !is_kernels(line));
    lines.collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

#[test]
fn kernel_messages_are_left_out() {
    let printed = "one\r\n[   20.216041] clocksource: Long readout interval\r\n[a] two\r\n";
    assert_eq!(without_kernel_messages(printed), "one\n[a] two");
}

fn complain(console: &str) {
    let complaints = complaints(console);
    assert!(complaints.is_empty(), "the kernel complains: {complaints:#?}\n{console}");
}
