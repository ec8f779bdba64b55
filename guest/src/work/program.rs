//! Running other programs: from the initramfs, from a disk, or a shell to talk to.

use crate::report::emit;
use crate::sys;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

const DISK: &str = "/dev/vda";
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
pub(super) fn run_from_disk(words: &[String]) -> bool {
    let Some((program, args)) = words.split_first() else {
        return failed("", "no program given");
    };
    if let Err(error) = mount_disk() {
        return failed(program, &format!("mount {DISK}: {error}"));
    }
    let mut command = command(program, args);
    // SAFETY: chroot and chdir are async-signal-safe, and all that runs between fork and exec.
    unsafe {
        command.pre_exec(|| {
            std::os::unix::fs::chroot(DISK_FOLDER)?;
            std::env::set_current_dir("/")
        });
    }
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

fn command(program: &str, args: &[String]) -> Command {
    let mut command = Command::new(program);
    let environment = [("PATH", SEARCH_PATH), ("HOME", "/"), ("TERM", "linux"), ("LC_ALL", "C")];
    command.args(args).env_clear().envs(environment);
    command
}

/// Once mounted it stays mounted, for the next program.
fn mount_disk() -> std::io::Result<()> {
    if Path::new(DISK_FOLDER).join("proc/self").exists() {
        return Ok(());
    }
    wait_for(Path::new(DISK), Duration::from_secs(10));
    sys::mount(DISK, DISK_FOLDER, "ext4", 0)
        .or_else(|_| sys::mount(DISK, DISK_FOLDER, "ext4", libc::MS_RDONLY))?;
    for (kind, folder) in
        [("proc", "proc"), ("sysfs", "sys"), ("devtmpfs", "dev"), ("tmpfs", "tmp")]
    {
        sys::mount(kind, &format!("{DISK_FOLDER}/{folder}"), kind, 0)?;
    }
    Ok(())
}

/// Devices appear a moment after their driver.
fn wait_for(path: &Path, longest: Duration) {
    let start = Instant::now();
    while !path.exists() && start.elapsed() < longest {
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
