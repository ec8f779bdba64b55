//! The lab's machine: an x86 PC in QEMU's translator, whose processor has AMD's virtualization.
//!
//! ```text
//! xtask ── socket control ── ready, alive, start NAME, end STATUS NAME, done ── root.sh
//!       ────────────────────── a line each 250 ms ───────────────────── read and forgotten
//!       ── socket out, err ── what the steps print ────────────────────── their pipes
//!       ── file results ───── what a step wrote to /lab/results ───────
//!       ── socket kernel ──── what Linux complains about ──────────────── ttyS0
//! ```

use super::control::{Progress, Said};
use super::image::Image;
use super::port::{Socket, comma, copy, lines};
use super::tally::Tally;
use crate::kit::Kit;
use crate::kit::cpio::CpioWriter;
use anyhow::{Context, Result, bail};
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// SVM with nested paging. Without XSAVE: QEMU's SVM does not intercept XSETBV, so that KVM and the guest would
/// disagree about XCR0, and the guest would change the host's.
const PROCESSOR: &str = "max,+svm,-xsave";

/// Memory for the machine and all guests in it.
pub(super) const MEMORY_MIB: u32 = 3072;
/// With two, QEMU's processor (7.2 and 10.0 alike) mixes up what belongs to a guest and to its host, once in some
/// hundred starts or some ten minutes of two busy vCPUs: the guest resets, or is to go on at the host's
/// instruction pointer with the host's CR3, or the machine's own kernel panics with the guest's GS base. With one
/// that was not seen in 360 starts. Two machines of one at once take less time for all tests than one of two.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub(crate) enum Processors {
    #[default]
    #[value(name = "1")]
    One = 1,
    #[value(name = "2")]
    Two = 2,
}

/// To its first step; ten times what a busy machine takes.
const BOOT_MAX: Duration = Duration::from_secs(240);
/// It says each 15 s that it runs: one whose processors both stand still does not end by itself.
const SILENCE_MAX: Duration = Duration::from_secs(240);
/// The machine is sent a line so often. QEMU's processor (before 10.2) sets and clears the requests for its interrupts
/// without a lock where a guest ends: a timer's interrupt may be lost, and a machine of one processor whose guest is
/// busy then stands for ever. Whatever comes next has the processor look at all that wait.
const PULSE: Duration = Duration::from_millis(250);
/// After the last step.
const POWEROFF_MAX: Duration = Duration::from_secs(60);
/// Lines of the kernel that an error shows.
const TAIL_LINES: usize = 30;

/// Of the time-stamp counter Linux believes only on a list of processors that it is the same on
/// all; here it is, for QEMU has but one.
const CMDLINE: &str =
    "console=ttyS0 loglevel=5 panic=-1 mitigations=off nokaslr audit=0 tsc=reliable";
const PORTS: [&str; 3] = ["control", "out", "err"];

/// What became of the steps.
#[derive(Default)]
pub(super) struct Outcome {
    /// Name and exit status.
    pub(super) steps: Vec<(String, u8)>,
    pub(super) tests: Tally,
    /// Of the machine's kernel.
    pub(super) complaints: Vec<String>,
}

impl Outcome {
    /// Takes up what became of the tests that had failed, and of nothing else.
    pub(super) fn take_attempt(&mut self, next: Outcome) {
        for (name, status) in next.steps {
            self.steps.iter_mut().filter(|step| step.0 == name).for_each(|step| step.1 = status);
        }
        self.tests.passed += next.tests.passed;
        self.tests.failed = next.tests.failed;
        self.tests.failures = next.tests.failures;
    }

    /// With what became of other tests, whose steps may have the same names: the first failure counts.
    pub(super) fn with(mut self, other: Outcome) -> Self {
        for (name, status) in other.steps {
            match self.steps.iter_mut().find(|step| step.0 == name) {
                Some(step) if step.1 == 0 => step.1 = status,
                Some(_) => {}
                None => self.steps.push((name, status)),
            }
        }
        self.tests.passed += other.tests.passed;
        self.tests.failed += other.tests.failed;
        self.tests.failures.extend(other.tests.failures);
        self
    }
}

/// The machine ended before its last step, or did not come to it.
#[derive(Debug)]
pub(super) struct Crashed(String);

#[cfg(test)]
impl Crashed {
    pub(super) fn for_test() -> Self {
        Self("it crashed".into())
    }
}

impl std::error::Error for Crashed {}

impl fmt::Display for Crashed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A machine that runs; killed when dropped.
pub(super) struct Machine {
    qemu: Process,
    /// Until the machine has its files open: nothing is left then even if this program is killed.
    image: Option<Image>,
    started: Instant,
    said: Receiver<String>,
    out: JoinHandle<Tally>,
    err: JoinHandle<Tally>,
    kernel: Receiver<String>,
}

impl Machine {
    /// Start it on `image`; what programs there have for `results` is written to that file.
    pub(super) fn start(
        kit: &Kit,
        image: Image,
        processors: Processors,
        results: Option<&Path>,
    ) -> Result<Self> {
        // A socket's path must be short, and the workspace's may be long.
        let sockets = tempfile::Builder::new().prefix("lab-").tempdir()?;
        let mut command = hardware(kit, &image, processors)?;
        let kernel = Socket::new(sockets.path(), "kernel")?;
        command.args(["-chardev", &kernel.chardev(), "-serial", "chardev:kernel"]);
        command.args(["-device", "virtio-serial-pci"]);
        let ports = PORTS.map(|name| Socket::new(sockets.path(), name));
        let [control, out, err] = ports;
        let (control, out, err) = (control?, out?, err?);
        for (port, name) in [&control, &out, &err].iter().zip(PORTS) {
            let device = format!("virtserialport,chardev={name},name={name}");
            command.args(["-chardev", &port.chardev(), "-device", &device]);
        }
        if let Some(file) = results {
            let file = format!("file,id=results,path={}", comma(&std::path::absolute(file)?));
            command.args(["-chardev", &file]);
            command.args(["-device", "virtserialport,chardev=results,name=results"]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let started = Instant::now();
        let mut qemu = Process(command.spawn().context("start QEMU")?);
        let kernel = lines(kernel.accept(&mut qemu.0)?);
        let control = control.accept(&mut qemu.0)?;
        let said = lines(control.try_clone()?);
        beat(control);
        let out = copy(out.accept(&mut qemu.0)?, io::stdout());
        let err = copy(err.accept(&mut qemu.0)?, io::stderr());
        let image = Some(image);
        Ok(Self { qemu, image, started, said, out, err, kernel })
    }

    /// Wait for the last step.
    ///
    /// Fails if the machine does not come up, stands still, ends before its last step, or takes longer than `limit`.
    pub(super) fn finish(mut self, limit: Duration) -> Result<Outcome> {
        let mut progress = Progress::default();
        while !progress.done {
            let allowed = if progress.ready { limit } else { limit.min(BOOT_MAX) };
            let left = allowed.saturating_sub(self.started.elapsed());
            match self.said.recv_timeout(left.min(SILENCE_MAX)) {
                Ok(line) => match Said::parse(line.trim_end()) {
                    Some(said) => {
                        self.image = None;
                        progress.hear(said);
                    }
                    None => bail!("the lab's machine said {line:?}, which means nothing"),
                },
                Err(RecvTimeoutError::Timeout) => {
                    let what = if left > SILENCE_MAX {
                        format!("stood still for {} s, ", SILENCE_MAX.as_secs())
                    } else {
                        format!("took more than {} s, ", allowed.as_secs())
                    };
                    let complaint = self.complaint(&(what + &progress.place()));
                    // One guest that its processor has broken may leave it broken for all others.
                    if progress.ready {
                        bail!(Crashed(complaint));
                    }
                    bail!(complaint);
                }
                // It may have panicked: QEMU ends then.
                Err(RecvTimeoutError::Disconnected) => {
                    bail!(Crashed(self.complaint(&format!("ended {}", progress.place()))));
                }
            }
        }
        self.qemu.end_within(POWEROFF_MAX);
        let tests = self.out.join().unwrap_or_default();
        // Only that it is all written matters.
        let _ = self.err.join();
        let complaints = self.kernel.iter().filter(|line| is_complaint(line)).collect();
        Ok(Outcome { steps: progress.ended, tests, complaints })
    }

    fn complaint(mut self, what: &str) -> String {
        self.qemu.end_within(Duration::ZERO);
        let _ = (self.out.join(), self.err.join());
        let lines: Vec<String> = self.kernel.iter().collect();
        let last = lines[lines.len().saturating_sub(TAIL_LINES)..].concat();
        format!("the lab's machine {what}; its kernel said last:\n{last}")
    }
}

/// Sends the machine its [`PULSE`] until QEMU has ended. Without anybody at the control port the machine powers off.
fn beat(mut control: UnixStream) {
    thread::spawn(move || {
        while control.write_all(b"\n").is_ok() {
            thread::sleep(PULSE);
        }
    });
}

/// What Linux prints when it finds itself wrong.
fn is_complaint(line: &str) -> bool {
    ["WARNING:", "BUG:", "Oops", "rcu: INFO:", "INFO: task", "TSC rate"]
        .iter()
        .any(|word| line.contains(word))
}

/// All of QEMU's arguments but the ports'.
fn hardware(kit: &Kit, image: &Image, processors: Processors) -> Result<Command> {
    let initramfs = image.scratch().join("initramfs");
    fs::write(&initramfs, initramfs_content(kit)?)?;
    let mut command = kit.qemu()?.command();
    command.args(["-M", "q35,usb=off", "-accel", "tcg,thread=multi", "-cpu", PROCESSOR]);
    command.args(["-smp", &(processors as u32).to_string(), "-m", &MEMORY_MIB.to_string()]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.arg("-kernel").arg(kit.lab_kernel().image()).arg("-initrd").arg(&initramfs);
    command.args(["-append", CMDLINE]);
    let drive = format!("file={},format=raw,if=virtio,cache=unsafe", comma(&image.build()?));
    command.args(["-drive", &drive]);
    Ok(command)
}

/// QEMU; killed when dropped.
struct Process(Child);

impl Process {
    /// Wait for its end, then see to it.
    fn end_within(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline && matches!(self.0.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(20));
        }
        // Its exit status says nothing that is not known.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end_within(Duration::ZERO);
    }
}

/// Busybox, the modules in order, and the script that loads them.
fn initramfs_content(kit: &Kit) -> Result<Vec<u8>> {
    let modules = kit.lab_kernel().modules();
    let mut cpio = CpioWriter::new(Vec::new());
    for folder in ["bin", "dev", "modules", "root", "sys"] {
        cpio.directory(folder)?;
    }
    cpio.character_device("dev/console", (5, 1))?;
    cpio.character_device("dev/kmsg", (1, 11))?;
    cpio.file("bin/busybox", 0o755, &fs::read(kit.busybox())?)?;
    let order = fs::read_to_string(modules.join("order"))?;
    for name in order.lines() {
        cpio.file(&format!("modules/{name}"), 0o644, &fs::read(modules.join(name))?)?;
    }
    cpio.file("modules/order", 0o644, order.as_bytes())?;
    cpio.file("init", 0o755, include_bytes!("init.sh"))?;
    Ok(cpio.finish()?)
}
