//! What the process may use, and what it leaves behind when it dies.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::ConfineError;

/// More than the largest VM opens: 64 vCPUs, 16 disks, some thousands of connections.
const DESCRIPTORS: u64 = 8192;

/// Private anonymous memory, ELF headers and private huge pages: core(5). Not shared memory, which guest
/// RAM is. By this and not by a limit of 0: that would not hold where core dumps go to a program.
const COREDUMP_FILTER: &str = "0x31";

pub(crate) fn keep_guest_memory_out_of_core_dumps() -> Result<(), ConfineError> {
    match fs::write("/proc/self/coredump_filter", COREDUMP_FILTER) {
        // A kernel that writes no core dumps has no such file.
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ConfineError::host("keep guest memory out of core dumps")(error))
        }
        _ => Ok(()),
    }
}

/// Both limits, so that the lower one cannot be raised again.
pub(crate) fn limit_descriptors() -> Result<(), ConfineError> {
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let limit = Some(hard.min(DESCRIPTORS));
    setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit })
        .map_err(ConfineError::host("limit open files"))
}
