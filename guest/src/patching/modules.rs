//! Modules come and go: new code at addresses where other code was.

use super::{Result, SKIPPED, Test, busy, write};
use crate::sys;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub(super) const TESTS: &[Test] = &[
    ("module-rmd160", |rounds| hashes(rounds, "rmd160", &["rmd160"], RMD160_OF_ABC)),
    ("module-sha512", |rounds| {
        hashes(rounds, "sha512", &["sha512_generic", "sha512_ssse3"], SHA512_OF_ABC)
    }),
    ("module-static-keys", static_keys),
    ("module-test-bpf", test_bpf),
];

/// A. Bosselaers, "The hash function RIPEMD-160", the page of its test values.
const RMD160_OF_ABC: &str = "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc";
/// FIPS 180-2, C.1.
const SHA512_OF_ABC: &str = "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                             2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";

/// A module, unloaded when dropped.
struct Module {
    name: String,
}

impl Module {
    fn load(name: &str, parameters: &str) -> Result<Self> {
        let file = File::open(format!("/modules/{name}.ko"))
            .map_err(|error| format!("{name}: {error}"))?;
        sys::load_module_with(&file, parameters)
            .map_err(|error| format!("load {name}: {error}"))?;
        Ok(Self { name: name.to_owned() })
    }

    fn unload(self) -> Result<()> {
        let result = sys::unload_module(&self.name)
            .map_err(|error| format!("unload {}: {error}", self.name));
        std::mem::forget(self);
        result
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // What is wrong is known already.
        let _ = sys::unload_module(&self.name);
    }
}

/// Load, have it hash, unload. The kernel tests each against values of its own, and says so.
fn hashes(rounds: u64, algorithm: &str, names: &[&str], expected: &str) -> Result<String> {
    if !all_there(names) {
        return Ok(SKIPPED.to_owned() + "no such module");
    }
    let calls = busy::during(|| {
        for _ in 0..rounds.div_ceil(4) {
            let mut loaded = Vec::new();
            for name in ["af_alg", "algif_hash"].iter().chain(names) {
                loaded.push(Module::load(name, "")?);
            }
            let digest = hash(algorithm, b"abc").map_err(|error| format!("hash: {error}"))?;
            let digest = digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            if digest != expected {
                return Err(format!("{digest}, not {expected}"));
            }
            while let Some(module) = loaded.pop() {
                module.unload()?;
            }
        }
        Ok(())
    })?;
    Ok(format!("{} times during {calls} calls", rounds.div_ceil(4)))
}

/// The kernel's test of static keys, in code of modules: does not load if one is wrong.
fn static_keys(rounds: u64) -> Result<String> {
    if !all_there(&["test_static_key_base"]) {
        return Ok(SKIPPED.to_owned() + "no such module");
    }
    let calls = busy::during(|| {
        for _ in 0..rounds {
            let base = Module::load("test_static_key_base", "")?;
            Module::load("test_static_keys", "")?.unload()?;
            base.unload()?;
        }
        Ok(())
    })?;
    Ok(format!("{rounds} times during {calls} calls"))
}

/// The kernel's tests of BPF, compiled: does not load if one is wrong.
fn test_bpf(rounds: u64) -> Result<String> {
    if !all_there(&["test_bpf"]) {
        return Ok(SKIPPED.to_owned() + "no such module");
    }
    write("/proc/sys/net/core/bpf_jit_enable", "1")?;
    // What comes after are all values of all operands, which takes long.
    let ranges = ["test_range=0,350", "test_suite=test_tail_calls"];
    for range in ranges.into_iter().take(rounds.max(1) as usize) {
        Module::load("test_bpf", range)?.unload()?;
    }
    Ok(String::new())
}

/// Whether the kit has them for this kernel.
fn all_there(names: &[&str]) -> bool {
    names.iter().all(|name| fs::exists(format!("/modules/{name}.ko")).unwrap_or(false))
}

/// Ask the kernel, by its socket for that.
fn hash(algorithm: &str, data: &[u8]) -> std::io::Result<Vec<u8>> {
    // SAFETY: zeros are a valid address.
    let mut address: libc::sockaddr_alg = unsafe { std::mem::zeroed() };
    address.salg_family = libc::AF_ALG as u16;
    address.salg_type[..4].copy_from_slice(b"hash");
    address.salg_name[..algorithm.len()].copy_from_slice(algorithm.as_bytes());
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: an address of the length given; descriptors that are ours once the call gave them.
    let socket = unsafe {
        let socket = owned(libc::socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0))?;
        if libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        owned(libc::accept(socket.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut()))?
    };
    let mut file = File::from(socket);
    std::io::Write::write_all(&mut file, data)?;
    let mut digest = vec![0; 64];
    let length = std::io::Read::read(&mut file, &mut digest)?;
    digest.truncate(length);
    Ok(digest)
}

/// # Safety
/// A descriptor that nobody else closes, or negative.
unsafe fn owned(fd: libc::c_int) -> std::io::Result<OwnedFd> {
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
