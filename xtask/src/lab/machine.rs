//! The lab's machine: an x86 PC in QEMU's translator, whose processor has AMD's virtualization.
//!
//! ```text
//! xtask ── socket control ── ready, start NAME, end STATUS NAME, done ── root.sh
//!       ── socket out, err ── what the steps print ────────────────────── their pipes
//!       ── socket kernel ──── what Linux complains about ──────────────── ttyS0
//! ```

use super::control::{Progress, Said};
use super::image::Image;
use crate::kit::Kit;
use crate::kit::cpio::CpioWriter;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Memory for the machine and all guests in it.
const MEMORY_MIB: u32 = 3072;
const CPUS: u32 = 2;
/// To its first step; ten times what a busy machine takes.
const BOOT_MAX: Duration = Duration::from_secs(240);
const POLL: Duration = Duration::from_millis(50);
/// Lines of the kernel that an error shows.
const TAIL_LINES: usize = 30;

/// Of the time-stamp counter Linux believes only on a list of processors that it is the same on
/// all; here it is, for QEMU has but one.
const CMDLINE: &str =
    "console=ttyS0 loglevel=4 panic=-1 mitigations=off nokaslr audit=0 tsc=reliable";
const PORTS: [&str; 3] = ["control", "out", "err"];

/// A machine that runs; killed when dropped.
pub(super) struct Machine {
    qemu: Process,
    /// Until the machine has its files open: nothing is left then even if this program is killed.
    image: Option<Image>,
    started: Instant,
    control: Receiver<String>,
    /// Keeps the control port open: without it, the machine powers off.
    _control: UnixStream,
    readers: Vec<JoinHandle<()>>,
    kernel: Receiver<String>,
}

impl Machine {
    /// Start it on `image`.
    pub(super) fn start(kit: &Kit, image: Image) -> Result<Self> {
        // A socket's path must be short, and the workspace's may be long.
        let sockets = tempfile::Builder::new().prefix("lab-").tempdir()?;
        let initramfs = image.scratch().join("initramfs");
        fs::write(&initramfs, initramfs_content(kit)?)?;
        let mut command = kit.qemu()?.command();
        command.args(["-M", "q35,usb=off", "-accel", "tcg,thread=multi", "-cpu", "max,+svm"]);
        command.args(["-smp", &CPUS.to_string(), "-m", &MEMORY_MIB.to_string()]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.arg("-kernel").arg(kit.lab_kernel().image()).arg("-initrd").arg(&initramfs);
        command.args(["-append", CMDLINE]);
        let drive = format!("file={},format=raw,if=virtio,cache=unsafe", comma(&image.build()?));
        command.args(["-drive", &drive, "-device", "virtio-serial-pci"]);
        let kernel = Socket::new(sockets.path(), "kernel")?;
        command.args(["-chardev", &kernel.chardev(), "-serial", "chardev:kernel"]);
        let mut ports = Vec::new();
        for name in PORTS {
            let port = Socket::new(sockets.path(), name)?;
            let device = format!("virtserialport,chardev={name},name={name}");
            command.args(["-chardev", &port.chardev(), "-device", &device]);
            ports.push(port);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let started = Instant::now();
        let mut qemu = Process(command.spawn().context("start QEMU")?);
        let kernel = kernel.accept(&mut qemu.0)?;
        let streams: Result<Vec<UnixStream>> =
            ports.into_iter().map(|port| port.accept(&mut qemu.0)).collect();
        let [control, out, err] =
            <[UnixStream; 3]>::try_from(streams?).expect("as many as there are ports");
        let (said, said_receiver) = channel();
        let (kernel_said, kernel_receiver) = channel();
        let readers = vec![
            send_lines(control.try_clone()?, said),
            copy(out, io::stdout()),
            copy(err, io::stderr()),
            send_lines(kernel, kernel_said),
        ];
        Ok(Self {
            qemu,
            image: Some(image),
            started,
            control: said_receiver,
            _control: control,
            readers,
            kernel: kernel_receiver,
        })
    }

    /// Wait for the last step; returns each step's name and exit status.
    ///
    /// Fails if the machine does not come up, ends before its last step, or takes longer than
    /// `limit`.
    pub(super) fn finish(mut self, limit: Duration) -> Result<Vec<(String, u8)>> {
        let mut progress = Progress::default();
        while !progress.done {
            let allowed = if progress.ready { limit } else { limit.min(BOOT_MAX) };
            match self.control.recv_timeout(allowed.saturating_sub(self.started.elapsed())) {
                Ok(line) => match Said::parse(line.trim_end()) {
                    Some(said) => {
                        self.image = None;
                        progress.hear(said);
                    }
                    None => bail!("the lab's machine said {line:?}, which means nothing"),
                },
                Err(RecvTimeoutError::Timeout) => {
                    let what = format!("took more than {} s, ", allowed.as_secs());
                    bail!(self.complaint(&(what + &progress.place())));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    // It may have panicked: QEMU ends then.
                    self.drain();
                    bail!(self.complaint(&format!("ended {}", progress.place())));
                }
            }
        }
        self.drain();
        Ok(progress.ended)
    }

    /// Wait until all that it said is read.
    fn drain(&mut self) {
        // Readers end when QEMU ends; its exit status says nothing that is not known.
        let _ = self.qemu.0.wait();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }

    fn complaint(&self, what: &str) -> String {
        let lines: Vec<String> = self.kernel.try_iter().collect();
        let last = lines[lines.len().saturating_sub(TAIL_LINES)..].concat();
        format!("the lab's machine {what}; its kernel said last:\n{last}")
    }
}

/// QEMU; killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already, or to be ended: either is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A socket that QEMU connects to.
struct Socket {
    name: String,
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    fn new(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(name);
        let listener =
            UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
        listener.set_nonblocking(true)?;
        Ok(Self { name: name.to_owned(), path, listener })
    }

    fn chardev(&self) -> String {
        format!("socket,id={},path={}", self.name, comma(&self.path))
    }

    /// Wait for QEMU, which connects before it runs anything.
    fn accept(self, qemu: &mut Child) -> Result<UnixStream> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(status) = qemu.try_wait()? {
                bail!("QEMU does not start: {status}");
            }
            thread::sleep(POLL);
        }
    }
}

/// In QEMU's options a comma ends a value unless there are two.
fn comma(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// Busybox, the modules in order, and the script that loads them.
fn initramfs_content(kit: &Kit) -> Result<Vec<u8>> {
    let modules = kit.lab_kernel().modules();
    let mut cpio = CpioWriter::new(Vec::new());
    for folder in ["bin", "dev", "modules", "root"] {
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

fn send_lines(stream: UnixStream, lines: Sender<String>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
            line.clear();
        }
    })
}

/// As it comes: a line may take its time.
fn copy(mut from: UnixStream, mut to: impl Write + Send + 'static) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            // Nobody may listen any more; the machine goes on.
            let _ = to.write_all(&bytes[..count]).and_then(|()| to.flush());
        }
    })
}
