//! A guest of the kit in Fathom, QEMU or User-Mode Linux.

mod running;

pub(crate) use running::{Event, Next, Running};

use crate::command::run;
use crate::kit::lab::Qemu;
use crate::kit::{Kernel, Kit};
use crate::workspace;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;

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
    memory_mib: u64,
    disks: Vec<Disk>,
    /// A QEMU other than the kit's.
    qemu: Option<Qemu>,
    /// For Fathom only: the VM's name and the report to write.
    named: Option<(String, PathBuf)>,
    /// For Fathom only: `--translate`.
    translate: Option<String>,
    /// For Fathom only: whatever else.
    options: Vec<String>,
}

struct Disk {
    path: PathBuf,
    writable: bool,
    /// For Fathom only: where writes go.
    overlay: Option<PathBuf>,
    /// For Fathom only: no part of a host cache.
    uncached: bool,
}

/// Guests have so much memory unless said otherwise.
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
            memory_mib: MEMORY_MIB,
            disks: Vec::new(),
            qemu: None,
            named: None,
            translate: None,
            options: Vec::new(),
        }
    }

    pub(crate) fn initramfs(self, path: &Path) -> Self {
        Self { initramfs: path.to_owned(), ..self }
    }

    pub(crate) fn memory(self, memory_mib: u64) -> Self {
        Self { memory_mib, ..self }
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

    /// For Fathom only: a raw disk of which what the guest writes goes to another file.
    pub(crate) fn overlay(mut self, path: &Path, overlay: &Path) -> Self {
        let overlay = Some(overlay.to_owned());
        self.disks.push(Disk { path: path.to_owned(), writable: true, overlay, uncached: false });
        self
    }

    /// For Fathom only: a raw disk that the guest may write to, and that is no part of a host cache.
    pub(crate) fn uncached_disk(mut self, path: &Path) -> Self {
        let path = path.to_owned();
        self.disks.push(Disk { path, writable: true, overlay: None, uncached: true });
        self
    }

    fn with_disk(mut self, path: &Path, writable: bool) -> Self {
        self.disks.push(Disk { path: path.to_owned(), writable, overlay: None, uncached: false });
        self
    }

    pub(crate) fn qemu_program(self, qemu: Option<Qemu>) -> Self {
        Self { qemu, ..self }
    }

    pub(crate) fn named(self, name: &str, report: &Path) -> Self {
        Self { named: Some((name.to_owned(), report.to_owned())), ..self }
    }

    pub(crate) fn translate(self, how: &str) -> Self {
        Self { translate: Some(how.to_owned()), ..self }
    }

    /// For Fathom only: more words of its command line.
    pub(crate) fn options(self, options: &[String]) -> Self {
        Self { options: options.to_vec(), ..self }
    }

    /// Start it. The console is read in the background from now on.
    pub(crate) fn start(&self, vmm: Vmm) -> Result<Running> {
        let mut running = Running::start(vmm.name(), self.command(vmm)?)?;
        running.has_processes = vmm == Vmm::UserMode;
        Ok(running)
    }

    /// What would be started.
    pub(crate) fn command(&self, vmm: Vmm) -> Result<Command> {
        Ok(match vmm {
            Vmm::Fathom => self.fathom("translate"),
            Vmm::FathomKvm => self.fathom("kvm"),
            Vmm::Qemu => self.qemu(&QEMU_TCG, &clock_words(self.cpus))?,
            Vmm::QemuKvm => self.qemu(&QEMU_KVM, "")?,
            Vmm::UserMode => self.user_mode()?,
        })
    }

    fn fathom(&self, engine: &str) -> Command {
        let mut command = Command::new(fathom_program());
        command.arg("run").arg("--kernel").arg(&self.kernel).arg("--initrd").arg(&self.initramfs);
        command.args(["--cmdline", &self.cmdline, "--engine", engine]);
        command.args(["--memory", &format!("{}M", self.memory_mib)]);
        command.args(["--cpus", &self.cpus.to_string()]);
        for Disk { path, writable, overlay, uncached } in &self.disks {
            let read_only = if *writable { "" } else { ",ro" };
            let uncached = if *uncached { ",no-host-cache" } else { "" };
            let overlay = overlay.as_ref().map(|file| format!(",overlay={}", file.display()));
            let overlay = overlay.unwrap_or_default();
            command.arg("--disk").arg(format!("{}{read_only}{overlay}{uncached}", path.display()));
        }
        if let Some((name, report)) = &self.named {
            command.args(["--name", name]).arg("--report").arg(report);
        }
        if let Some(how) = &self.translate {
            command.args(["--translate", how]);
        }
        command.args(&self.options);
        command
    }

    /// `words` are for the guest's kernel.
    fn qemu(&self, machine: &[&str], words: &str) -> Result<Command> {
        let mut command = match &self.qemu {
            Some(qemu) => qemu.command(),
            None => Kit::open()?.qemu()?.command(),
        };
        command.args(machine).args(["-m", &self.memory_mib.to_string()]);
        command.args(["-smp", &self.cpus.to_string()]);
        command.args(["-nodefaults", "-no-user-config"]);
        command.args(["-nographic", "-serial", "stdio", "-no-reboot"]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initramfs);
        command.args(["-append", &format!("{}{words}", self.cmdline)]);
        for (number, Disk { path, writable, .. }) in self.disks.iter().enumerate() {
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
        command.arg(format!("mem={}M", self.memory_mib));
        command.arg(format!("initrd={}", self.initramfs.display()));
        command.args(["con=null", "con0=null,fd:1", "ssl=null"]);
        let sockets = std::env::temp_dir().join("fathom-uml");
        command.arg(format!("uml_dir={}", sockets.display()));
        for (number, Disk { path, writable, .. }) in self.disks.iter().enumerate() {
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

/// Build Fathom as it is measured; where only checks count (`FATHOM_PROFILE=dev`), as its tests have it, whose build is
/// there already.
pub(crate) fn build_fathom() -> Result<()> {
    let profile = profile();
    eprintln!("building fathom ({profile})");
    let mut cargo = workspace::cargo();
    if profile == "dev" {
        return run(cargo.args(["test", "--workspace", "--no-run", "--quiet"]));
    }
    // With the program beside it that has the object stores.
    let packages = ["--package", "fathom", "--package", "objects"];
    run(cargo.args(["build", "--profile", &profile]).args(packages))
}

pub(crate) fn fathom_program() -> PathBuf {
    let profile = profile();
    // Cargo's folder for it has another name.
    let folder = if profile == "dev" { "debug" } else { &profile };
    workspace::target().join(folder).join("fathom")
}

/// The profile of Cargo that Fathom is built with.
pub(crate) fn profile() -> String {
    std::env::var("FATHOM_PROFILE").unwrap_or_else(|_| "release".to_owned())
}
