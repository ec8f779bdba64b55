//! The system call, and instructions for it.

use super::Result;
use std::fs;
use std::io::Error;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const MAP_CREATE: i64 = 0;
const MAP_LOOKUP: i64 = 1;
const PROG_LOAD: i64 = 5;
const PROG_TEST_RUN: i64 = 10;
const MAP_TYPE_ARRAY: u32 = 2;
const PROG_TYPE_SOCKET_FILTER: u32 = 1;

/// One instruction (Documentation/bpf/instruction-set.rst).
pub(super) fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> u64 {
    let mut bytes = [code, from << 4 | to, 0, 0, 0, 0, 0, 0];
    bytes[2..4].copy_from_slice(&offset.to_le_bytes());
    bytes[4..].copy_from_slice(&immediate.to_le_bytes());
    u64::from_le_bytes(bytes)
}

/// Eight bytes into a register take two instructions; `from` may say that it is a map.
pub(super) fn load_8(to: u8, from: u8, value: u64) -> [u64; 2] {
    [instruction(0x18, to, from, 0, value as i32), instruction(0, 0, 0, 0, (value >> 32) as i32)]
}

/// A map of one number, shared by all processors.
pub(super) struct Counter(OwnedFd);

impl Counter {
    pub(super) fn new() -> Result<Self> {
        let mut attributes = Attributes::default();
        for (at, value) in [(0, MAP_TYPE_ARRAY), (4, 4), (8, 8), (12, 1)] {
            attributes.set_4(at, value);
        }
        Ok(Self(attributes.call(MAP_CREATE, "make a map")?))
    }

    pub(super) fn fd(&self) -> u64 {
        self.0.as_raw_fd() as u64
    }

    pub(super) fn value(&self) -> Result<u64> {
        let (key, mut value) = (0_u32, 0_u64);
        let mut attributes = Attributes::default();
        attributes.set_4(0, self.fd() as u32);
        attributes.set_8(8, &raw const key as u64);
        attributes.set_8(16, &raw mut value as u64);
        attributes.done(MAP_LOOKUP, "look into a map")?;
        // The kernel wrote it, by an address that the compiler has seen as a number only.
        Ok(std::hint::black_box(value))
    }
}

/// A program that was verified and, if that is asked for, compiled.
pub(super) struct Program(OwnedFd);

impl Program {
    pub(super) fn load(code: &[u64]) -> Result<Self> {
        let mut attributes = Attributes::default();
        attributes.set_4(0, PROG_TYPE_SOCKET_FILTER);
        attributes.set_4(4, code.len() as u32);
        attributes.set_8(8, code.as_ptr() as u64);
        attributes.set_8(16, c"GPL".as_ptr() as u64);
        Ok(Self(attributes.call(PROG_LOAD, "load a program")?))
    }

    /// Run it so often on some packet; returns what it returned last.
    pub(super) fn run(&self, times: u32) -> Result<u32> {
        let packet = [0_u8; 64];
        let mut attributes = Attributes::default();
        for (at, value) in [(0, self.0.as_raw_fd() as u32), (8, packet.len() as u32), (32, times)] {
            attributes.set_4(at, value);
        }
        attributes.set_8(16, packet.as_ptr() as u64);
        attributes.done(PROG_TEST_RUN, "run a program")?;
        Ok(attributes.at_4(4))
    }

    /// How often the kernel says that it ran, and whether it is compiled.
    pub(super) fn told(&self) -> Result<(u64, bool)> {
        let file = format!("/proc/self/fdinfo/{}", self.0.as_raw_fd());
        let text = fs::read_to_string(&file).map_err(|error| format!("read {file}: {error}"))?;
        let value = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name));
            value.and_then(|value| value.trim().parse::<u64>().ok()).ok_or(text.clone())
        };
        Ok((value("run_cnt:")?, value("prog_jited:")? == 1))
    }
}

/// `union bpf_attr`.
#[derive(Default)]
struct Attributes([u64; 16]);

impl Attributes {
    fn set_8(&mut self, at: usize, value: u64) {
        self.0[at / 8] = value;
    }

    fn set_4(&mut self, at: usize, value: u32) {
        self.0[at / 8] |= u64::from(value) << (at % 8 * 8);
    }

    fn at_4(&self, at: usize) -> u32 {
        (self.0[at / 8] >> (at % 8 * 8)) as u32
    }

    fn done(&mut self, command: i64, what: &str) -> Result<i64> {
        let size = size_of_val(&self.0);
        // SAFETY: the attributes name memory that lasts through the call, and is as long as they say.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), size) };
        if result < 0 { Err(format!("{what}: {}", Error::last_os_error())) } else { Ok(result) }
    }

    /// A command that makes a descriptor.
    fn call(&mut self, command: i64, what: &str) -> Result<OwnedFd> {
        let fd = self.done(command, what)?;
        // SAFETY: made just now, for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
    }
}
