//! Benchmarks: two things side by side in one run, so that the machine's own speed cancels out.

mod boot;
mod engines;
mod epoch;
mod host;
mod lab_boot;
mod lab_measure;
mod mips;

pub(crate) use host::{Others, children_cpu_seconds};

use anyhow::{Result, ensure};
use clap::Subcommand;

use crate::machine::profile;

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Debian's kernel to /init: Fathom and QEMU's translator, by turns
    Boot(boot::BootArgs),
    /// Work of many kinds: as an ordinary process, in Fathom, QEMU's translator and User-Mode Linux
    Engines(engines::EnginesArgs),
    /// Boot, idleness and memory on KVM: Fathom and QEMU's microvm, by turns, in the lab
    LabBoot(lab_boot::LabBootArgs),
    /// Integer loops of a known number of instructions
    Mips(mips::MipsArgs),
    /// What measuring the working set costs the guest
    Epoch(epoch::EpochArgs),
}

pub(crate) fn run(bench: &Bench) -> Result<()> {
    ensure!(profile() != "dev", "FATHOM_PROFILE=dev: what is measured is built for release");
    match bench {
        Bench::Boot(args) => boot::run(args),
        Bench::Engines(args) => engines::run(args),
        Bench::LabBoot(args) => lab_boot::run(args),
        Bench::Mips(args) => mips::run(args),
        Bench::Epoch(args) => epoch::run(args),
    }
}

/// The middle one; of an even number, the upper of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Whether a guest's clock tells the same time as the host's, but for a share of it and for what telling takes. A
/// time that was not taken agrees with none.
pub(crate) fn agree(guest: f64, host: f64, tolerance: f64, slack_seconds: f64) -> bool {
    (host - guest).abs() <= slack_seconds + tolerance * host
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(Vec::new()), None);
    }
}
