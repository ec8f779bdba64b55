//! A passt of our own.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::virtio::net::{NetError, PortForward, Protocol};

const PROGRAM: &str = "passt";

/// Starts passt and returns our end of its socket, once it is ready.
///
/// It is told to serve one connection, which is there already: so it ends when our end is closed,
/// however this process ends. To be called before other threads start programs: they would inherit
/// passt's end.
pub(in crate::virtio::net) fn start(
    mtu: u16,
    forwards: &[PortForward],
) -> Result<UnixStream, NetError> {
    let (ours, theirs) = UnixStream::pair().map_err(NetError::host("make sockets for passt"))?;
    let mut words = memfd_create("fathom-passt", MemfdFlags::CLOEXEC)
        .map(File::from)
        .map_err(|errno| NetError::host("make a file for passt's messages")(errno.into()))?;
    let mut command = command(mtu, forwards, &theirs);
    let told = words.try_clone().map_err(NetError::host("share a file with passt"))?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(told);
    let theirs = OwnedFd::from(theirs);
    fcntl_setfd(&theirs, FdFlags::empty())
        .map_err(|errno| NetError::host("share a socket with passt")(errno.into()))?;
    // It goes into the background when it is ready, and its first process ends.
    match command.status() {
        Ok(status) if status.success() => Ok(ours),
        Ok(_) => Err(NetError::PasstRefuses { said: last_line(&mut words) }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(NetError::NoPasst),
        Err(error) => Err(NetError::host("start passt")(error)),
    }
}

fn command(mtu: u16, forwards: &[PortForward], socket: &UnixStream) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["--quiet", "--fd", &socket.as_raw_fd().to_string(), "--mtu", &mtu.to_string()]);
    for forward in forwards {
        command.args([forward.option(), &forward.specification()]);
    }
    command
}

impl PortForward {
    fn option(&self) -> &'static str {
        match self.protocol {
            Protocol::Tcp => "--tcp-ports",
            Protocol::Udp => "--udp-ports",
        }
    }

    fn specification(&self) -> String {
        format!("{}/{}:{}", self.address, self.host, self.guest)
    }
}

/// What it said last.
fn last_line(words: &mut File) -> String {
    let mut text = Vec::new();
    // Its words are a courtesy: without them it still refuses.
    let _ = words.rewind().and_then(|()| words.read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    let said = text.lines().map(str::trim).rfind(|line| !line.is_empty());
    said.unwrap_or("no reason given").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_passt_reads_them() {
        let forward = |protocol, address: &str| PortForward {
            protocol,
            address: address.parse().unwrap(),
            host: 8080,
            guest: 80,
        };
        let forwards = [forward(Protocol::Tcp, "127.0.0.1"), forward(Protocol::Udp, "::1")];
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let command = command(1500, &forwards, &theirs);
        let arguments: Vec<_> = command.get_args().map(|word| word.to_str().unwrap()).collect();
        let [.., mtu, tcp, first, udp, second] = arguments[..] else { panic!("{arguments:?}") };
        assert_eq!([mtu, tcp, first], ["1500", "--tcp-ports", "127.0.0.1/8080:80"]);
        assert_eq!([udp, second], ["--udp-ports", "::1/8080:80"]);
    }

    #[test]
    fn the_last_words_count() {
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(last_line(&mut file), "no reason given");
        io::Write::write_all(&mut file, b"warning: this\nInvalid port\n\n").unwrap();
        assert_eq!(last_line(&mut file), "Invalid port");
    }
}
