//! The report that `fathom run --report` writes, as far as the demo needs it.
//!
//! Read with patience: a field that is missing is a figure that is not shown.

use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Report {
    pub(super) engine: String,
    pub(super) wall_seconds: f64,
    pub(super) cpu_seconds: f64,
    pub(super) guest_instructions: Option<u64>,
    pub(super) exits: BTreeMap<String, u64>,
    pub(super) frames: BTreeMap<String, u64>,
    pub(super) working_set: Vec<Sample>,
    pub(super) host_resident_bytes: Option<u64>,
}

/// The working set at one moment, over windows that end there.
#[derive(Deserialize, Default, Clone, Copy)]
#[serde(default)]
pub(super) struct Sample {
    /// Since the VM was started.
    pub(super) t_seconds: f64,
    pub(super) resident_bytes: Option<u64>,
    pub(super) window_1s_bytes: Option<u64>,
    pub(super) window_10s_bytes: Option<u64>,
    pub(super) window_60s_bytes: Option<u64>,
}

/// A larger difference is not a start but a mistake.
const SHIFT_MAX: f64 = 5.0;

impl Report {
    /// The VM's clock starts when the VM does, ours when its process does, which has a kernel to
    /// unpack first: shift the samples so that both end together.
    pub(super) fn align(&mut self, process_seconds: f64) {
        let shift = process_seconds - self.wall_seconds;
        if (0.0..SHIFT_MAX).contains(&shift) {
            self.working_set.iter_mut().for_each(|sample| sample.t_seconds += shift);
        }
    }

    pub(super) fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("read {}: did fathom write it?", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("read {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_shifted_by_the_time_to_start() {
        let mut report = Report { wall_seconds: 10.0, ..Report::default() };
        report.working_set.push(Sample { t_seconds: 1.0, ..Sample::default() });
        report.align(10.5);
        assert_eq!(report.working_set[0].t_seconds, 1.5);
        report.align(100.0);
        assert_eq!(report.working_set[0].t_seconds, 1.5);
    }

    #[test]
    fn missing_and_unknown_fields_do_no_harm() {
        let text = r#"{"engine":"translate","new":1,
            "working_set":[{"t_seconds":1.0,"window_1s_bytes":4096,"window_10s_bytes":null}]}"#;
        let report: Report = serde_json::from_str(text).unwrap();
        assert_eq!(report.engine, "translate");
        assert_eq!(report.working_set[0].window_1s_bytes, Some(4096));
        assert_eq!(report.working_set[0].window_10s_bytes, None);
        assert_eq!(report.guest_instructions, None);
    }
}
