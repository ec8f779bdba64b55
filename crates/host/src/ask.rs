//! What is known of all VMs: each is asked, all at once.

use std::fs;
use std::thread;
use std::time::Duration;

use api::{Client, ClientError, DirectoryError, SocketDirectory, VmStatus};
use policy::{Balloon, VmFacts};

use crate::config::Memory;
use crate::merge::is_the_kernels;

/// A VM that does not answer should not hold up the others for long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// VMs asked at a time.
const ASKED_AT_ONCE: usize = 32;

/// Asks every VM that runs, all at once. Those that ended meanwhile are left out.
///
/// # Errors
/// The directory cannot be read.
pub fn ask_each(
    directory: &SocketDirectory,
    question: fn(&Client) -> Result<VmStatus, ClientError>,
) -> Result<Vec<Result<VmStatus, ClientError>>, DirectoryError> {
    let names = directory.names()?;
    let ask = |name: &str| question(&directory.client(name).with_timeout(ANSWER_TIMEOUT));
    let mut answers = Vec::with_capacity(names.len());
    for some in names.chunks(ASKED_AT_ONCE) {
        thread::scope(|scope| {
            let threads: Vec<_> = some.iter().map(|name| scope.spawn(|| ask(name))).collect();
            answers.extend(threads.into_iter().filter_map(|thread| thread.join().ok()));
        });
    }
    answers.retain(|answer| {
        !matches!(answer, Err(ClientError::NotRunning { .. } | ClientError::Gone { .. }))
    });
    Ok(answers)
}

/// What [`policy`] wants to know of a VM. `works`: its balloon does.
///
/// What the guest uses is what it touched in the last minute, counted from outside; in the last ten seconds while it has not
/// been watched for a minute, and before that all of it.
#[must_use]
pub fn facts(status: &VmStatus, memory: Memory, works: bool) -> VmFacts {
    let configured = status.configured_bytes;
    let used = status.working_set;
    let used = used.window_60s_bytes.or(used.window_10s_bytes).unwrap_or(status.resident_bytes);
    let limit = memory.limit.unwrap_or(configured).min(configured);
    VmFacts {
        name: status.name.clone(),
        shares: memory.shares,
        // One beyond what the guest has is kept by giving it all.
        reservation: memory.reservation.min(limit),
        limit,
        memory: configured,
        overhead: overhead(status),
        resident: status.resident_bytes,
        active: used,
        unreclaimable: status.memory_use.unreclaimable_bytes.unwrap_or(0),
        balloon: Balloon {
            works,
            asked: status.balloon_target_bytes,
            held: status.ballooned_bytes,
        },
        curve: None,
    }
}

/// What the VM's process has in memory of its own beyond its guest's: translated code, tables, buffers. The program itself is in
/// the host's page cache once. Guest memory is shared memory; on KVM it is anonymous until somebody looks at it.
fn overhead(status: &VmStatus) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", status.pid)).unwrap_or_default();
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    // What the kernel has merged is anonymous memory of each that has it.
    let merged = if is_the_kernels(status) { status.shared_bytes } else { 0 };
    let guest = status.resident_bytes + merged;
    own_bytes(kib("RssAnon:") << 10, kib("RssShmem:") << 10, guest)
}

/// Of shared memory only what is mapped is counted there, and who looks at a guest on KVM has it unmapped again and again. The two
/// are not of one moment: half of the guest's is far from both.
fn own_bytes(anonymous: u64, shared: u64, resident: u64) -> u64 {
    let is_anonymous = shared < resident / 2 && anonymous >= resident / 2;
    if is_anonymous { anonymous.saturating_sub(resident) } else { anonymous }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_not_counted_as_the_processs_own() {
        // (RssAnon, RssShmem, the guest's), and what is the process's own: of the translator, of KVM before anybody looked and a
        // moment later, and of KVM whose memory has moved to a file and is not mapped now.
        for (anonymous, shared, resident, own) in
            [(30, 100, 110, 30), (130, 0, 110, 20), (108, 0, 110, 0), (20, 3, 110, 20)]
        {
            assert_eq!(own_bytes(anonymous, shared, resident), own, "{anonymous} {shared}");
        }
    }
}
