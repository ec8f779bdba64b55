//! Running other programs: from the initramfs, from a disk, or a shell to talk to.

use crate::report::emit;
use crate::sys;
use std::io::Result;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

const DISK_FOLDER: &str = "/disk";
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Run a program and tell how it ended.
pub(super) fn run(words: &[String]) -> bool {
    let Some((program, args)) = words.split_first() else {
        return failed("", "no program given");
    };
    tell(program, command(program, args).status())
}

/// Mount the disk and run a program that lies on it, with the disk as its root folder.
pub(super) fn run_from_disk(words: &[String], disk: &Path) -> bool {
    let Some((program, args)) = words.split_first() else {
        return failed("", "no program given");
    };
    let root = match Root::new(disk) {
        Ok(root) => root,
        Err(error) => return failed(program, &format!("mount {}: {error}", disk.display())),
    };
    let mut command = command(program, args);
    root.enter(&mut command);
    tell(program, command.status())
}

/// A shell on the console, with job control.
pub(super) fn shell() -> bool {
    // Links for every applet, so that commands are found by name.
    let _ = Command::new("/bin/busybox").args(["--install", "-s", "/bin"]).status();
    // The console device itself cannot control a session: take the terminal behind it.
    let active = std::fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let name = active.split_whitespace().last().unwrap_or("console");
    let script = format!("exec setsid -c sh </dev/{name} >/dev/{name} 2>&1");
    tell("sh", command("/bin/busybox", &["sh".into(), "-c".into(), script]).status())
}

pub(crate) fn command(program: &str, args: &[String]) -> Command {
    let mut command = Command::new(program);
    let environment = [("PATH", SEARCH_PATH), ("HOME", "/"), ("TERM", "linux"), ("LC_ALL", "C")];
    command.args(args).env_clear().envs(environment);
    command
}

/// A root folder for programs, ready with `/proc`, `/dev` and a `/tmp` in memory.
pub(crate) struct Root(PathBuf);

impl Root {
    /// On a disk, or a folder that holds what the disk would. Once mounted it stays mounted, for
    /// the next program.
    pub(crate) fn new(place: &Path) -> Result<Self> {
        if place.is_dir() {
            let root = Self(place.to_owned());
            if !root.has_processes() {
                sys::own_mounts()?;
                root.mount("tmpfs", "tmp", "tmpfs", 0)?;
                root.mount("/dev", "dev", "", libc::MS_BIND | libc::MS_REC)?;
                root.mount("/proc", "proc", "", libc::MS_BIND | libc::MS_REC)?;
            }
            return Ok(root);
        }
        let root = Self(DISK_FOLDER.into());
        if !root.has_processes() {
            wait_for(place);
            let disk = place.to_string_lossy();
            sys::mount(&disk, DISK_FOLDER, "ext4", 0)
                .or_else(|_| sys::mount(&disk, DISK_FOLDER, "ext4", libc::MS_RDONLY))?;
            for (kind, folder) in
                [("proc", "proc"), ("sysfs", "sys"), ("devtmpfs", "dev"), ("tmpfs", "tmp")]
            {
                root.mount(kind, folder, kind, 0)?;
            }
        }
        Ok(root)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.0
    }

    /// Have a program see it as its root folder.
    pub(crate) fn enter(&self, command: &mut Command) {
        let folder = self.0.clone();
        // SAFETY: chroot and chdir are async-signal-safe, and all that runs between fork and exec.
        unsafe {
            command.pre_exec(move || {
                std::os::unix::fs::chroot(&folder)?;
                std::env::set_current_dir("/")
            });
        }
    }

    fn has_processes(&self) -> bool {
        self.0.join("proc/self").exists()
    }

    fn mount(&self, source: &str, folder: &str, kind: &str, flags: libc::c_ulong) -> Result<()> {
        sys::mount(source, &self.0.join(folder).to_string_lossy(), kind, flags)
    }
}

/// Devices appear a moment after their driver.
pub(crate) fn wait_for(path: &Path) {
    const LONGEST: Duration = Duration::from_secs(10);
    let start = Instant::now();
    while path.starts_with("/dev") && !path.exists() && start.elapsed() < LONGEST {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn tell(program: &str, status: std::io::Result<ExitStatus>) -> bool {
    let status = match status {
        Ok(status) => status,
        Err(error) => return failed(program, &error.to_string()),
    };
    // As a shell has it: a death by signal n is status 128 + n.
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    emit("exit", &[("program", program.into()), ("status", code.into())]);
    status.success()
}

fn failed(program: &str, why: &str) -> bool {
    emit("exit", &[("program", program.into()), ("status", 127.into()), ("error", why.into())]);
    false
}
