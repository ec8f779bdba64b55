//! What the messages carry.

use std::collections::BTreeMap;

use insight::FrameClass;
use insight::picture::Picture;
use serde::{Deserialize, Serialize};

/// Answer to `GET /fathom/version`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Version {
    /// Version of the program that runs the VM.
    pub fathom_version: String,
}

/// Answer to `GET /fathom/vm`, and one row of `fathom top`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct VmStatus {
    /// Name of the VM.
    pub name: String,
    /// Process that runs it.
    pub pid: u32,
    /// Engine that runs it.
    pub engine: String,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Whether the guest runs.
    pub state: RunState,
    /// Time since the guest was started.
    pub uptime_seconds: f64,
    /// Size of guest RAM.
    pub configured_bytes: u64,
    /// Guest RAM that takes host memory; at most `configured_bytes`.
    pub resident_bytes: u64,
    /// Guest RAM that the balloon holds.
    pub ballooned_bytes: u64,
    /// What the balloon was asked to hold.
    pub balloon_target_bytes: u64,
    /// What the guest used lately.
    pub working_set: WorkingSet,
    /// What it uses its memory for.
    #[serde(default)]
    pub memory_use: MemoryUse,
    /// Host CPU time that its vCPUs took, all together.
    pub guest_cpu_seconds: f64,
    /// The same since the last time that somebody asked; 100 is one host CPU.
    pub guest_cpu_percent: f64,
    /// Times that a vCPU left guest code for the VMM, by kind.
    pub exits: BTreeMap<String, u64>,
    /// The cache of disk blocks in the VM's process; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_cache: Option<HostCache>,
}

/// A cache of disk blocks in a VM's process, below the guest's own. Counts are of blocks of 4 KiB, over all reboots.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HostCache {
    /// When a block enters: `demand`, `eviction`.
    pub policy: String,
    /// What it may take for contents.
    pub size_bytes: u64,
    /// What it has.
    pub cached_bytes: u64,
    /// Evicted blocks that it is about to read.
    pub waiting: u64,
    /// What has happened, by name: `hits`, `misses` and others.
    pub counts: BTreeMap<String, u64>,
    /// What is below it.
    pub disks: Vec<HostCacheDisk>,
}

/// A disk below a host cache.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HostCacheDisk {
    /// Its image.
    pub path: String,
    /// The host's page cache has its contents, too.
    pub page_cache: bool,
    /// Why, if it was to be bypassed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Whether a guest runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// vCPUs run.
    #[default]
    Running,
    /// vCPUs stand still until resumed.
    Paused,
    /// The guest has ended; its process is about to.
    Ended,
}

/// Memory that the guest used, over three windows that end now. Absent while there is no full answer: the
/// VM begins to watch when somebody asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct WorkingSet {
    /// Used in the last second.
    pub window_1s_bytes: Option<u64>,
    /// Used in the last ten seconds.
    pub window_10s_bytes: Option<u64>,
    /// Used in the last minute.
    pub window_60s_bytes: Option<u64>,
}

/// What a guest uses its memory for, as far as that is known: the rest is absent. `GET /fathom/vm/memory` has it all.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryUse {
    /// Blocks of disks.
    pub cache_bytes: Option<u64>,
    /// Programs' own.
    pub anonymous_bytes: Option<u64>,
    /// The kernel's own, page tables too.
    pub kernel_bytes: Option<u64>,
    /// Not used: never, or given back, but not in the balloon.
    pub free_bytes: Option<u64>,
    /// Held by the host and not accessed for a minute.
    pub idle_bytes: Option<u64>,
    /// What could be had again by keeping equal pages once.
    pub shareable_bytes: Option<u64>,
    /// Blocks that left the cache and may be wanted again, of the last ten seconds.
    pub evictions_per_second: Option<f64>,
}

impl From<&Picture> for MemoryUse {
    fn from(picture: &Picture) -> Self {
        let free =
            || picture.part(FrameClass::Free).bytes + picture.part(FrameClass::Untouched).bytes;
        Self {
            cache_bytes: picture.cache.map(|_| picture.part(FrameClass::FileCache).bytes),
            anonymous_bytes: picture.anonymous_bytes(),
            kernel_bytes: picture.kernel_bytes(),
            free_bytes: (picture.memory_bytes > 0).then(free),
            idle_bytes: picture.idle_bytes(60),
            shareable_bytes: picture.shareable_bytes(),
            evictions_per_second: picture.cache.map(|cache| cache.evictions_per_second),
        }
    }
}

/// Answer to `GET /fathom/vm/kernel`: what the guest's Linux kernel says of itself. All of it is the guest's word.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct KernelInfo {
    /// Its release, as `uname -r` has it.
    pub release: String,
    /// How far it has moved itself from where it was linked.
    pub kaslr_offset: u64,
    /// Guest physical address of the note by which it was found.
    pub note_address: u64,
    /// Symbols in its own table; absent if that could not be read.
    pub symbols: Option<u64>,
    /// Types in its description of them; absent if that could not be read.
    pub types: Option<u64>,
    /// Guest memory by what the kernel uses it for; empty if that could not be told.
    pub class_bytes: BTreeMap<String, u64>,
    /// Files of which something is in memory.
    pub cached_files: Option<u64>,
    /// Its processes, the first 4096.
    pub processes: Vec<GuestProcess>,
    /// How many processes there are in all, as far as they could be counted.
    pub process_count: u64,
    /// What could not be read and why, one line each.
    pub missing: Vec<String>,
}

/// A process of the guest.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct GuestProcess {
    /// Its number.
    pub pid: u32,
    /// Its name: at most 15 characters.
    pub name: String,
    /// Guest physical address of its page tables; absent for a thread of the kernel.
    pub page_table: Option<u64>,
}

/// Answer to `GET /fathom/vm/kernel/symbols/NAME` or `.../0xADDRESS`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct KernelSymbol {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: u64,
    /// How far behind it the address is that was asked for.
    pub offset: u64,
}

/// Answer to `GET /fathom/vm/kernel/types/STRUCTURE` or `.../STRUCTURE.MEMBER`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct KernelType {
    /// Of a member, from the structure's first bit.
    pub bit_offset: u64,
    /// Size in bits.
    pub bits: u64,
}

/// Body of `PUT /fathom/vm/balloon`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonTarget {
    /// How much memory the balloon is to take from the guest; 0 gives all of it back.
    pub target_bytes: u64,
}

/// Body of `PUT /fathom/vm/save`. With its first byte come descriptors (SCM_RIGHTS), 1 to 16: of connected stream
/// sockets, on which the VM sends its memory and state as `vmm::saved` says, and is answered that it is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaveRequest {
    /// Whether the VM ends once it is kept, without the guest having moved again.
    #[serde(default)]
    pub stop: bool,
    /// Also the contents of frames that the guest's kernel calls free.
    #[serde(default)]
    pub all: bool,
    /// So long before the guest stands, it is watched what it uses: what it will need first.
    #[serde(default)]
    pub watch_milliseconds: u32,
}

/// Answer to it.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct SaveReport {
    /// How long the guest stood.
    pub pause_seconds: f64,
    /// Size of its memory.
    pub memory_bytes: u64,
    /// What of it was not zero, and sent.
    pub sent_bytes: u64,
}

/// Body of every answer that is not a success.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fault {
    /// One line: what was wrong, what to do.
    pub fault_message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_keeps_its_names() {
        let json = serde_json::to_value(VmStatus::default()).expect("json");
        let mut names: Vec<_> = json.as_object().expect("object").keys().cloned().collect();
        names.sort();
        assert_eq!(
            names,
            [
                "balloon_target_bytes",
                "ballooned_bytes",
                "configured_bytes",
                "engine",
                "exits",
                "guest_cpu_percent",
                "guest_cpu_seconds",
                "memory_use",
                "name",
                "pid",
                "resident_bytes",
                "state",
                "uptime_seconds",
                "vcpus",
                "working_set",
            ]
        );
        assert_eq!(json["state"], "running");
        assert!(json["working_set"]["window_60s_bytes"].is_null());
    }

    #[test]
    fn the_kernel_keeps_its_names() {
        let kernel =
            KernelInfo { processes: vec![GuestProcess::default()], ..KernelInfo::default() };
        let json = serde_json::to_value(kernel).expect("json");
        let names = |json: &serde_json::Value| {
            let mut names: Vec<_> = json.as_object().expect("object").keys().cloned().collect();
            names.sort();
            names.join(" ")
        };
        assert_eq!(
            names(&json),
            "cached_files class_bytes kaslr_offset missing note_address process_count processes \
             release symbols types"
        );
        assert_eq!(names(&json["processes"][0]), "name page_table pid");
    }

    #[test]
    fn a_balloon_target_is_exactly_that() {
        let read = serde_json::from_str::<BalloonTarget>;
        assert_eq!(read(r#"{"target_bytes":4096}"#).expect("target").target_bytes, 4096);
        for bad in ["", "{}", r#"{"target_bytes":-1}"#, r#"{"target_bytes":1,"x":2}"#, "[4096.5]"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
