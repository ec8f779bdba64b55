//! Process 1: bring the machine up, do the work, end the machine.

use crate::network::Address;
use crate::report::emit;
use crate::request::{End, Request};
use crate::{sys, work};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Never returns: when process 1 ends, the kernel panics.
pub(crate) fn run() -> ! {
    // Nothing before this line, so that "boot to /init" means the kernel's own time.
    emit("init", &[]);
    mount_all();
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let request = Request::from_cmdline(&cmdline);
    if request.load_modules {
        load_modules(Path::new("/modules"));
    }
    if let Some(address) = Address::from_cmdline(&cmdline) {
        address.configure();
    }
    if request.agent && has_vsock() {
        start_agent();
    }
    let done = std::panic::catch_unwind(|| work::run_all(&request)).unwrap_or(false);
    sys::sync();
    emit("end", &[("ok", done.into())]);
    end(request.end)
}

fn mount_all() {
    let mounts = [
        ("proc", "/proc", "proc"),
        ("sysfs", "/sys", "sysfs"),
        ("devtmpfs", "/dev", "devtmpfs"),
        ("tmpfs", "/tmp", "tmpfs"),
    ];
    for (source, target, kind) in mounts {
        if let Err(error) = sys::mount(source, target, kind, 0) {
            emit(
                "mount",
                &[("target", target.into()), ("error", error.to_string().as_str().into())],
            );
        }
    }
}

/// Load every module named in `order`. One that fails is told and passed over: a kernel with
/// something built in, or a machine without a device, still does most of the work.
fn load_modules(folder: &Path) {
    let order = fs::read_to_string(folder.join("order")).unwrap_or_default();
    let mut count = 0_u64;
    for name in order.lines() {
        match fs::File::open(folder.join(name)).and_then(|file| sys::load_module(&file)) {
            Ok(()) => count += 1,
            Err(error) => {
                let error = error.to_string();
                emit("module", &[("name", name.into()), ("error", error.as_str().into())]);
            }
        }
    }
    emit("modules", &[("loaded", count.into())]);
}

/// Whether the machine has a device of the kind that the agent listens on: virtio's number 19.
fn has_vsock() -> bool {
    let devices = fs::read_dir("/sys/bus/virtio/devices").into_iter().flatten().flatten();
    let mut kinds = devices.map(|device| fs::read_to_string(device.path().join("device")));
    kinds.any(|kind| kind.is_ok_and(|kind| kind.trim() == "0x0013"))
}

/// It runs beside the work, until the machine ends.
fn start_agent() {
    let mut command = Command::new("/bin/agent");
    if let Err(error) = command.stdin(Stdio::null()).spawn() {
        emit("agent", &[("error", error.to_string().as_str().into())]);
    }
}

fn end(how: End) -> ! {
    let refused = match how {
        End::PowerOff => sys::reboot(libc::RB_POWER_OFF),
        End::Reboot => sys::reboot(libc::RB_AUTOBOOT),
        End::Halt => sys::reboot(libc::RB_HALT_SYSTEM),
        End::Panic => fs::write("/proc/sysrq-trigger", "c"),
        End::Stay => Ok(()),
    };
    if let Err(error) = refused {
        emit("end", &[("error", error.to_string().as_str().into())]);
    }
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
