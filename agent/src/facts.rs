//! What the guest is.

use agent_wire::Facts;
use rustix::system::{sysinfo, uname};
use rustix::time::{ClockId, clock_gettime};

use crate::{cpus, interfaces};

pub(crate) fn facts() -> Facts {
    let names = uname();
    let text = |name: &std::ffi::CStr| name.to_string_lossy().into_owned();
    let (cpus_present, cpus_online) = cpus::present_and_online();
    let memory = sysinfo();
    Facts {
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: [names.sysname(), names.release(), names.version()].map(text).join(" "),
        hostname: text(names.nodename()),
        cpus_online,
        cpus_present,
        memory_bytes: memory.totalram.saturating_mul(memory.mem_unit.into()),
        wall_clock_ns: wall_clock_ns(),
        interfaces: interfaces::facts(),
    }
}

/// Nanoseconds since 1970.
pub(crate) fn wall_clock_ns() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}
