//! Socket filters, as old programs have them: the kernel compiles each when it is attached.

use super::{Result, Test, busy, expect, write};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

pub(super) const TESTS: &[Test] = &[("socket-filter", filter)];

pub(super) const COMPILE: &str = "/proc/sys/net/core/bpf_jit_enable";

/// Each filter takes other packets, and another part of them; compiled and interpreted they take the same.
fn filter(rounds: u64) -> Result<String> {
    let calls = busy::during(|| {
        for round in 0..rounds * 10 {
            write(COMPILE, if round % 4 == 3 { "0" } else { "1" })?;
            let divisor = round % 7 + 2;
            one(divisor as u32, (round % divisor) as u32, (round % 3 + 1) as u32)?;
        }
        write(COMPILE, "1")
    })?;
    Ok(format!("{} filters during {calls} calls", rounds * 10))
}

/// Take packets whose first byte has this remainder, and so many bytes of them.
fn one(divisor: u32, remainder: u32, length: u32) -> Result<()> {
    let failed = |error: std::io::Error| format!("a socket: {error}");
    let (sender, receiver) = UnixDatagram::pair().map_err(failed)?;
    receiver.set_nonblocking(true).map_err(failed)?;
    attach(&receiver, &program(divisor, remainder, length)).map_err(failed)?;
    let mut bytes = [0; 8];
    for byte in 0..40_u8 {
        sender.send(&[byte, 1, 2, 3]).map_err(failed)?;
        let taken = match receiver.recv(&mut bytes) {
            Ok(received) => received as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Err(failed(error)),
        };
        let wanted = if u32::from(byte) % divisor == remainder { length.into() } else { 0 };
        expect("bytes of a packet", taken, wanted)?;
        expect("first byte", bytes[0].into(), if taken == 0 { bytes[0] } else { byte }.into())?;
    }
    Ok(())
}

fn program(divisor: u32, remainder: u32, length: u32) -> [libc::sock_filter; 5] {
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    [
        // A = packet[0]; A %= divisor; if A != remainder skip one
        instruction(0x30, 0, 0, 0),
        instruction(0x94, 0, 0, divisor),
        instruction(0x15, 0, 1, remainder),
        instruction(0x06, 0, 0, length),
        instruction(0x06, 0, 0, 0),
    ]
}

fn attach(socket: &UnixDatagram, program: &[libc::sock_filter]) -> std::io::Result<()> {
    let program =
        libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program lasts through the call, which copies it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
