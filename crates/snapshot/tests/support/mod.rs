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
    }
}
