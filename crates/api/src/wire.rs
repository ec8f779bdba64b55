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
    /// What it waits for, where something outside keeps it from going on: say its snapshot, which cannot be read now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
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
    /// What the host has taken of its memory; absent where it was never asked to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reclaim: Option<ReclaimStatus>,
    /// Of its memory, what is in pages that other guests may have, too; not part of what is resident.
    #[serde(default, skip_serializing_if = "is_none")]
    pub shared_bytes: u64,
    /// Where the host connects to it by vsock; absent where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<std::path::PathBuf>,
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
    /// What its kernel cannot give to a balloon.
    pub unreclaimable_bytes: Option<u64>,
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
            unreclaimable_bytes: picture.unreclaimable_bytes(),
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

fn is_none(bytes: &u64) -> bool {
    *bytes == 0
}

/// Body of `PUT /fathom/vm/share`, of the daemon: frames that guests share. To attach, two descriptors come with its first byte
/// (SCM_RIGHTS): of the pool, a sealed memfd, and of an outbox of 1 MiB.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShareRequest {
    /// So many frames are to be looked at: 16,384 at most.
    pub scan: u32,
    /// Contents of these frames go to the outbox, in order: of 256 at most.
    pub give: Vec<u32>,
    /// Frames, each with the slot of the pool that may have its contents: 1024 at most.
    pub switch: Vec<(u32, u32)>,
    /// The host's kernel is to share frames, without a pool: those that are worth it are marked for it (madvise(2),
    /// MADV_MERGEABLE), or, if false, none any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub merge: Option<bool>,
}

/// Answer to it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ShareReport {
    /// There is a pool; without, nothing was done.
    pub attached: bool,
    /// Its memory is being saved or cloned: nothing was done.
    pub busy: bool,
    /// Frames that are worth it, each with a fingerprint of its contents.
    pub candidates: Vec<(u32, u64)>,
    /// Which were given.
    pub given: Vec<bool>,
    /// What became of each that was to be switched.
    pub switched: Vec<Switch>,
    /// Slots that frames had and do not have any more, each as often.
    pub released: Vec<u32>,
    /// Frames that are shared now.
    pub shared_frames: u32,
    /// Frames that are marked for the kernel.
    pub marked_frames: u32,
}

/// What became of a frame that was to be shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// It is shared.
    Shared,
    /// It has other contents than the slot.
    Differs,
    /// It is in use.
    Busy,
    /// As many are shared as may be.
    Full,
}

/// Body of `PUT /fathom/vm/balloon`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonTarget {
    /// How much memory the balloon is to take from the guest; 0 gives all of it back.
    pub target_bytes: u64,
}

/// Body of `PUT /fathom/vm/reclaim`: the host takes memory that the guest does not give, the coldest frames first. With its
/// first byte may come a descriptor (SCM_RIGHTS), once: of an empty file for what is nowhere else, open for reading and writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReclaimRequest {
    /// So much from now on, whatever was asked before; 0 ends it.
    pub bytes: u64,
    /// At most so much in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// The file may have so many bytes in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_limit_bytes: Option<u64>,
}

/// What has come of it since the guest was started or rebooted.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ReclaimStatus {
    /// Asked for, and not taken yet.
    pub wanted_bytes: u64,
    /// Taken: the sum of the next four.
    pub taken_bytes: u64,
    /// Written to the store.
    pub written_bytes: u64,
    /// Zeros.
    pub zero_bytes: u64,
    /// Dropped: the image of a disk has it.
    pub disk_bytes: u64,
    /// Dropped: the store had it already.
    pub unchanged_bytes: u64,
    /// Came back since somebody wanted it.
    pub returned_bytes: u64,
    /// Came along with that.
    pub prefetched_bytes: u64,
    /// Frames in the store.
    pub slots: u64,
    /// What the store takes.
    pub store_bytes: u64,
    /// What it may take; absent where there is no store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store_limit_bytes: Option<u64>,
    /// Why not all was taken that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
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
    /// The guest stands only until its memory is frozen, and goes on while that is sent.
    #[serde(default)]
    pub live: bool,
    /// So long before the guest stands, it is watched what it uses: what it will need first.
    #[serde(default)]
    pub watch_milliseconds: u32,
    /// So long after the guest goes on, if it does, it is watched what it touches first.
    #[serde(default)]
    pub trace_milliseconds: u32,
    /// Frames that the guest's programs reach one after the other come one after the other.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub together: bool,
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
    /// How its working set was found.
    #[serde(default)]
    pub working_set: WorkingSetSources,
}

/// By which estimators a working set was found, each frame counted for the first that found it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct WorkingSetSources {
    /// Touched after the guest went on.
    pub traced_frames: u32,
    /// Used while it was watched before it stood.
    pub scanned_frames: u32,
    /// In blocks of memory of which much was used.
    pub dense_frames: u32,
}

/// Body of `PUT /fathom/vm/clone`. With its first byte come two descriptors (SCM_RIGHTS), open for reading and writing:
/// of the file that takes the machine's state, and of an empty memfd that can be sealed, for memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneRequest {}

/// Answer to it. With its first byte come descriptors of what clones lie over, which nobody can write to: an image of
/// memory, and where it was cloned before, perhaps a layer on it.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct CloneReport {
    /// How long the guest stood.
    pub pause_seconds: f64,
    /// Size of its memory.
    pub memory_bytes: u64,
    /// What of it was copied while it stood: nothing for the first clone, later what it has written since.
    pub copied_bytes: u64,
    /// It stands until it is resumed, so that the overlays of its disks can be copied as they are now.
    #[serde(default)]
    pub stands: bool,
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
