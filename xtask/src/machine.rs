//! Running a guest of the kit in Fathom, QEMU or User-Mode Linux, and reading what its program
//! says.

use crate::command::run;
use crate::kit::lab::Qemu;
use crate::kit::{Kernel, Kit};
use crate::workspace;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Which program runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vmm {
    /// `target/release/fathom run --engine translate`
    Fathom,
    /// Debian's QEMU with its own translator
    Qemu,
    /// `target/release/fathom run --engine kvm`
    FathomKvm,
    /// Debian's QEMU with KVM
    QemuKvm,
    /// Debian's User-Mode Linux, which brings its own kernel and is no machine at all
    UserMode,
}

impl Vmm {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fathom => "fathom",
            Self::Qemu => "qemu tcg",
            Self::FathomKvm => "fathom kvm",
            Self::QemuKvm => "qemu kvm",
            Self::UserMode => "uml",
        }
    }
}

/// A guest of the kit.
pub(crate) struct Guest {
    kernel: PathBuf,
    initramfs: PathBuf,
    cmdline: String,
    cpus: u64,
    disks: Vec<Disk>,
    /// A QEMU other than the kit's.
    qemu: Option<Qemu>,
    /// For Fathom only: the VM's name and the report to write.
    named: Option<(String, PathBuf)>,
}

struct Disk {
    path: PathBuf,
    writable: bool,
}

/// Guests of benchmarks and demo have so much memory.
pub(crate) const MEMORY_MIB: u64 = 256;

const QEMU_TCG: [&str; 6] = ["-M", "microvm,acpi=on", "-accel", "tcg", "-cpu", "max"];
/// The settings by which it boots fastest, tried out one against the other: with ACPI, which is
/// also what Fathom has; without, Linux spends more time on looking for what is not there.
const QEMU_KVM: [&str; 6] = [
    "-M",
    "microvm,acpi=on,x-option-roms=off,pit=off,pic=off,rtc=on,isa-serial=on,auto-kernel-cmdline=on",
    "-accel",
    "kvm",
    "-cpu",
    "host",
];

/// A serial console, a reboot that ends the VMM.
const CMDLINE: &str = "console=ttyS0 panic=-1 reboot=t";

impl Guest {
    /// With the kit's cloud kernel and initramfs, and `words` for the guest program.
    pub(crate) fn new(kit: &Kit, words: &str) -> Self {
        let kernel: Kernel = kit.kernel();
        let cmdline = format!("{CMDLINE} {words}");
        Self {
            kernel: kernel.image(),
            initramfs: kit.initramfs(),
            cmdline,
            cpus: 1,
            disks: Vec::new(),
            qemu: None,
            named: None,
        }
    }

    pub(crate) fn cpus(self, cpus: u64) -> Self {
        Self { cpus, ..self }
    }

    /// A raw disk, read only.
    pub(crate) fn disk(self, path: &Path) -> Self {
        self.with_disk(path, false)
    }

    /// A raw disk that the guest may write to.
    pub(crate) fn writable_disk(self, path: &Path) -> Self {
        self.with_disk(path, true)
    }

    fn with_disk(mut self, path: &Path, writable: bool) -> Self {
        self.disks.push(Disk { path: path.to_owned(), writable });
        self
    }

    pub(crate) fn qemu_program(self, qemu: Option<Qemu>) -> Self {
        Self { qemu, ..self }
    }

    pub(crate) fn named(self, name: &str, report: &Path) -> Self {
        Self { named: Some((name.to_owned(), report.to_owned())), ..self }
    }

    /// Start it. The console is read in the background from now on.
    pub(crate) fn start(&self, vmm: Vmm) -> Result<Running> {
        let command = match vmm {
            Vmm::Fathom => self.fathom("translate"),
            Vmm::FathomKvm => self.fathom("kvm"),
            Vmm::Qemu => self.qemu(&QEMU_TCG, &clock_words(self.cpus))?,
            Vmm::QemuKvm => self.qemu(&QEMU_KVM, "")?,
            Vmm::UserMode => self.user_mode()?,
        };
        let mut running = Running::start(vmm.name(), command)?;
        running.has_processes = vmm == Vmm::UserMode;
        Ok(running)
    }

    fn fathom(&self, engine: &str) -> Command {
        let mut command = Command::new(fathom_program());
        command.arg("run").arg("--kernel").arg(&self.kernel).arg("--initrd").arg(&self.initramfs);
        command.args(["--cmdline", &self.cmdline, "--engine", engine]);
        command.args(["--memory", &format!("{MEMORY_MIB}M")]);
        command.args(["--cpus", &self.cpus.to_string()]);
        for Disk { path, writable } in &self.disks {
            let read_only = if *writable { "" } else { ",ro" };
            command.arg("--disk").arg(format!("{}{read_only}", path.display()));
        }
        if let Some((name, report)) = &self.named {
            command.args(["--name", name]).arg("--report").arg(report);
        }
        command
    }

    /// `words` are for the guest's kernel.
    fn qemu(&self, machine: &[&str], words: &str) -> Result<Command> {
        let mut command = match &self.qemu {
            Some(qemu) => qemu.command(),
            None => Kit::open()?.qemu()?.command(),
        };
        command.args(machine).args(["-m", &MEMORY_MIB.to_string()]);
        command.args(["-smp", &self.cpus.to_string()]);
        command.args(["-nodefaults", "-no-user-config"]);
        command.args(["-nographic", "-serial", "stdio", "-no-reboot"]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initramfs);
        command.args(["-append", &format!("{}{words}", self.cmdline)]);
        for (number, Disk { path, writable }) in self.disks.iter().enumerate() {
            let read_only = if *writable { "off" } else { "on" };
            let drive = format!(
                "id=d{number},file={},format=raw,if=none,readonly={read_only}",
                path.display()
            );
            command.args(["-drive", &drive]);
            command.args(["-device", &format!("virtio-blk-device,drive=d{number}")]);
        }
        Ok(command)
    }

    /// A kernel that is a process, with processes of the host as its own.
    fn user_mode(&self) -> Result<Command> {
        let mut command = Command::new(Kit::open()?.user_mode_linux()?);
        command.arg(format!("mem={MEMORY_MIB}M"));
        command.arg(format!("initrd={}", self.initramfs.display()));
        command.args(["con=null", "con0=null,fd:1", "ssl=null"]);
        let sockets = std::env::temp_dir().join("fathom-uml");
        command.arg(format!("uml_dir={}", sockets.display()));
        for (number, Disk { path, writable }) in self.disks.iter().enumerate() {
            let read_only = if *writable { "" } else { "r" };
            command.arg(format!("ubd{number}{read_only}={}", path.display()));
        }
        // The modules of the initramfs are another kernel's; this one has what it needs built in.
        let words = self.cmdline.split(' ').filter(|word| !word.starts_with("console="));
        command.args(words).arg("fathom.modules=none");
        Ok(command)
    }
}

/// What the guest of QEMU's translator must be told of its clock. Of several processors' counters
/// Linux finds there that they differ, which they do not, and takes its ticks for a clock, which
/// come late or never on a busy host.
fn clock_words(cpus: u64) -> String {
    let reliable = if cpus > 1 { " tsc=reliable" } else { "" };
    known_clock_rate() + reliable
}

/// QEMU's microvm without KVM has only the PIT for its guest to measure the time-stamp counter
/// by, which fails on a busy host and hangs the boot. Its counter is the host's: where the host
/// is itself a VM, the clock rate it tells is the counter's.
fn known_clock_rate() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        line.split_once(':').map(|(_, value)| value.trim())
    };
    let is_vm = value("flags").is_some_and(|flags| flags.contains(" hypervisor"));
    match value("cpu MHz").and_then(|mhz| mhz.parse::<f64>().ok()) {
        Some(mhz) if is_vm => format!(" tsc_early_khz={:.0}", mhz * 1000.0),
        _ => String::new(),
    }
}

/// Build Fathom as it is measured.
pub(crate) fn build_fathom() -> Result<()> {
    eprintln!("building fathom (release)");
    run(workspace::cargo().args(["build", "--release", "--package", "fathom"]))
}

pub(crate) fn fathom_program() -> PathBuf {
    workspace::target().join("release/fathom")
}

/// What the guest program said: an object with `event` and more.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// Since the VMM was started.
    pub(crate) at: Duration,
    fields: Value,
}

impl Event {
    /// The kernel's own messages may stand before it on the same line.
    fn parse(at: Duration, line: &str) -> Option<Self> {
        let (_, json) = line.split_once("@fathom ")?;
        let fields: Value = serde_json::from_str(json.trim_end()).ok()?;
        fields.get("event")?.as_str()?;
        Some(Self { at, fields })
    }

    pub(crate) fn is(&self, event: &str) -> bool {
        self.text("event") == event
    }

    /// A field that is a text; empty if there is none such.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.fields.get(name).and_then(Value::as_str).unwrap_or("")
    }

    /// A field that is a number; 0 if there is none such.
    pub(crate) fn number(&self, name: &str) -> u64 {
        self.fields.get(name).and_then(Value::as_u64).unwrap_or(0)
    }
}

/// A guest that runs; stopped when dropped.
pub(crate) struct Running {
    name: &'static str,
    child: Child,
    /// Of its own, which it ends if it is asked to end and not if it is killed.
    has_processes: bool,
    started: Instant,
    lines: Receiver<(Instant, String)>,
    errors: Receiver<(Instant, String)>,
    console: Vec<String>,
}

/// What [`Running::next`] has to say.
pub(crate) enum Next {
    Event(Event),
    /// Nothing within the time given.
    Quiet,
    /// The console is closed.
    Ended,
}

impl Running {
    /// Start a program that talks as the guest program does, or holds it. What it prints is read
    /// in the background from now on.
    pub(crate) fn start(name: &'static str, mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command.spawn().with_context(|| {
            format!("start {}: is it built?", command.get_program().to_string_lossy())
        })?;
        let lines = read_lines(child.stdout.take().context("the guest has a console")?);
        let errors = read_lines(child.stderr.take().context("the guest has an error output")?);
        Ok(Self { name, child, has_processes: false, started, lines, errors, console: Vec::new() })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Wait for the guest program to say something, `patience` at most.
    pub(crate) fn next(&mut self, patience: Duration) -> Next {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok((when, line)) => {
                    let event = Event::parse(when - self.started, &line);
                    self.console.push(line);
                    if let Some(event) = event {
                        return Next::Event(event);
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Next::Quiet,
                Err(RecvTimeoutError::Disconnected) => return Next::Ended,
            }
        }
    }

    /// Gather events until the guest ends; an error with the last of the console if it does not
    /// end well or within `limit`.
    pub(crate) fn finish(mut self, limit: Duration) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        loop {
            match self.next(limit.saturating_sub(self.elapsed())) {
                Next::Event(event) => events.push(event),
                Next::Ended => break,
                Next::Quiet => bail!(self.complaint(&format!("did not end within {limit:?}"))),
            }
        }
        self.check_end()?;
        Ok(events)
    }

    /// After [`Next::Ended`]: an error unless the program's exit status says all was well.
    pub(crate) fn check_end(&mut self) -> Result<()> {
        let status = self.child.wait()?;
        if !status.success() {
            bail!(self.complaint(&format!("ended with {status}")));
        }
        Ok(())
    }

    pub(crate) fn complaint(&self, what: &str) -> String {
        let errors: Vec<String> = self.errors.try_iter().map(|(_, line)| line).collect();
        let last = &self.console[self.console.len().saturating_sub(15)..];
        let shown = [last, errors.as_slice()].concat().join("\n  ");
        format!("{}: the guest {what}; it said last:\n  {shown}", self.name)
    }
}

/// One that was asked to end may take so long.
const LAST_WORDS: Duration = Duration::from_secs(2);

impl Running {
    fn ask_to_end(&mut self) {
        let asked = Instant::now();
        while let (Ok(None), true) = (self.child.try_wait(), asked.elapsed() < LAST_WORDS) {
            // Still there and not waited for, so the number is no other process's.
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.has_processes {
            self.ask_to_end();
        }
        // Ended already, or to be ended: either is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Read on a thread, each line with the time of its arrival; the channel closes at the end.
fn read_lines(source: impl Read + Send + 'static) -> Receiver<(Instant, String)> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(source);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send((Instant::now(), text)).is_err() {
                return;
            }
            line.clear();
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_found_behind_a_message_of_the_kernel() {
        let line = "[    1.5] clocksource: @fathom {\"event\":\"phase\",\"mib\":30}\r\n";
        let event = Event::parse(Duration::ZERO, line).unwrap();
        assert!(event.is("phase"));
        assert_eq!((event.number("mib"), event.number("none"), event.text("name")), (30, 0, ""));
    }

    #[test]
    fn what_is_torn_is_no_event() {
        assert!(Event::parse(Duration::ZERO, "@fathom {\"event\":\"pha").is_none());
        assert!(Event::parse(Duration::ZERO, "@fathom {\"name\":1}").is_none());
    }
}
