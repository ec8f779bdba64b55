//! Take memory and give it back: what free-page reporting and the balloon must see.

use crate::report::emit;
use crate::sys::Mapping;
use std::time::Duration;

/// Touch `mib` of memory, free it, and wait, so that the host can watch it leave.
pub(super) fn run(mib: u64, wait: Duration) -> bool {
    let bytes = mib << 20;
    says("begin", bytes);
    let Ok(memory) = Mapping::new(bytes as usize, libc::PROT_READ | libc::PROT_WRITE) else {
        says("no address space", bytes);
        return false;
    };
    memory.touch_every_page(1);
    says("touched", bytes);
    std::thread::sleep(wait / 2);
    drop(memory);
    says("freed", bytes);
    std::thread::sleep(wait);
    says("end", bytes);
    true
}

fn says(state: &str, bytes: u64) {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    emit(
        "alloc-free",
        &[
            ("state", state.into()),
            ("bytes", bytes.into()),
            ("free_bytes", meminfo_bytes(&info, "MemFree").into()),
            ("available_bytes", meminfo_bytes(&info, "MemAvailable").into()),
        ],
    );
}

/// A line of `/proc/meminfo` is `MemFree:   1234 kB`.
fn meminfo_bytes(info: &str, name: &str) -> u64 {
    let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let info = "MemTotal:  10 kB\nMemFree:   3 kB\n";
        assert_eq!(meminfo_bytes(info, "MemFree"), 3072);
        assert_eq!(meminfo_bytes(info, "Mem"), 0);
    }
}
