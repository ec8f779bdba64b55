//! A network of a test's own, so that the host's is not touched.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::kit;

/// A network namespace; this thread, and what it starts, is in it. It goes when all of them have ended.
pub(crate) struct Ground {
    holder: Child,
}

impl Ground {
    /// None where only somebody with more privileges can have one.
    pub(crate) fn enter() -> Option<Self> {
        File::options().read(true).write(true).open("/dev/net/tun").ok()?;
        let path = kit::busybox();
        let hold = "echo made; exec \"$0\" sleep 86400";
        let mut command = Command::new(&path);
        command.args(["unshare", "-n", &path, "sh", "-c", hold, &path]);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut holder = command.spawn().expect("busybox runs");
        let mut line = String::new();
        let said = holder.stdout.take().expect("standard output");
        BufReader::new(said).read_line(&mut line).expect("a line");
        let ground = Self { holder };
        if line != "made\n" {
            return None;
        }
        let space =
            File::open(format!("/proc/{}/ns/net", ground.holder.id())).expect("its network");
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(space.as_fd(), network).expect("entered");
        script("\"$B\" ip link set lo up");
        Some(ground)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // Gone already is fine.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Runs a script for busybox's shell in this thread's network; `$B` is busybox. It must succeed.
pub(crate) fn script(text: &str) {
    let path = kit::busybox();
    let mut command = Command::new(&path);
    let output = command.args(["sh", "-ec", text]).env("B", path).output().expect("busybox runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}: {said}");
}
