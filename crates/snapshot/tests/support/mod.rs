//! What several tests need.

use snapshot::{Cpu, Description, Disk, DiskFile, Id, Time};

/// Of no machine that there is.
pub(crate) fn description() -> Description {
    let image = DiskFile {
        path: "/images/debian.raw".into(),
        bytes: 2 << 30,
        modified: Time { seconds: 1_700_000_000, nanoseconds: 999_999_999 },
        generation: 0,
    };
    let overlay = DiskFile { path: "/overlays/vm \"1\".ov".into(), generation: 7, ..image.clone() };
    Description {
        saved_at: Time { seconds: 1_790_000_000, nanoseconds: 1 },
        writer: "fathom 0.1.0".into(),
        engine: "translate".into(),
        cpu: Cpu { model: "base".into(), features: vec!["sse4_2".into(), "avx2".into()] },
        vcpus: 2,
        machine_version: 1,
        disks: vec![
            Disk { image: image.clone(), overlay: Some(overlay), read_only: false },
            Disk { image, overlay: None, read_only: true },
        ],
        generation: Some(Id([0xab; 16])),
        agent: false,
    }
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
#[allow(dead_code, reason = "not every program draws")]
pub(crate) fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// The most address space that this process has had, used or not (proc(5), `VmPeak`).
#[allow(dead_code, reason = "not every program measures")]
pub(crate) fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).expect("VmPeak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}
