//! All that must pass on real KVM: the suite for engines, and guests end to end.

use super::machine::Outcome;
use super::programs::{Part, Programs};
use super::{LabArgs, borrowed, direct, in_machine, new_image};
use crate::kit::{self, GuestArgs, Kit};
use anyhow::Result;
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::{Duration, Instant};

pub(super) fn run(args: &LabArgs) -> Result<ExitCode> {
    let parts = if args.only.is_empty() { Part::ALL.to_vec() } else { args.only.clone() };
    let kit = prepare(&parts)?;
    let directly = direct::has_kvm() && !args.emulated;
    let environment = kvm_environment(&kit, args);
    let (mut steps, mut helpers) = (Vec::new(), Vec::new());
    for part in &parts {
        let programs = Programs::build(*part)?;
        steps.extend(programs.steps(&args.filters, &environment));
        helpers.extend(programs.helpers);
    }
    let (started, limit) = (Instant::now(), Duration::from_secs(args.timeout));
    let outcome = if directly {
        eprintln!("lab: this host's processor has virtualization: tests run on it directly");
        direct::run(&steps, limit)?
    } else {
        eprintln!("lab: tests run on KVM in a machine of QEMU's translator");
        let mut image = new_image(&kit, args)?;
        let programs = steps.iter().filter_map(|step| step.words.first()).map(Into::into);
        for file in programs.chain(helpers).chain(guest_files(&kit, &parts)?) {
            image.add(&file)?;
        }
        in_machine(&kit, image, &steps, limit)?
    };
    Ok(conclude(&outcome, started.elapsed()))
}

/// Guests need all of the guest kit, others nothing of it.
fn prepare(parts: &[Part]) -> Result<Kit> {
    if has_guests(parts) { kit::prepare(&GuestArgs::everything()) } else { Kit::open() }
}

fn has_guests(parts: &[Part]) -> bool {
    parts.iter().any(|part| matches!(part, Part::Guest | Part::Soak))
}

fn guest_files(kit: &Kit, parts: &[Part]) -> Result<Vec<std::path::PathBuf>> {
    if !has_guests(parts) {
        return Ok(Vec::new());
    }
    let mut files = borrowed::files()?;
    files.extend([kit.kernel().image(), kit.full_kernel().image(), kit.disk(), kit.busybox()]);
    files.extend([kit.initramfs(), kit.full_initramfs()]);
    Ok(files)
}

/// Tests must have KVM here, and say so if they have not.
fn kvm_environment(kit: &Kit, args: &LabArgs) -> Vec<(String, OsString)> {
    let set = |name: &str, value: OsString| (name.to_owned(), value);
    let mut environment = vec![
        set("FATHOM_ENGINE", "kvm".into()),
        set("FATHOM_REQUIRE_KVM", "1".into()),
        set("FATHOM_KIT", kit.folder().into()),
    ];
    environment.extend(super::environment(&args.env));
    environment
}

/// Say what became of each, and fail if anything failed or nothing ran.
fn conclude(outcome: &Outcome, took: Duration) -> ExitCode {
    eprintln!("\nlab: {} s in all", took.as_secs());
    for (name, status) in &outcome.steps {
        let verdict = if *status == 0 { "ok".to_owned() } else { format!("FAILED, {status}") };
        eprintln!("lab: {name:30} {verdict}");
    }
    let tests = &outcome.tests;
    eprintln!("lab: {} tests passed, {} failed, on KVM", tests.passed, tests.failed);
    if tests.passed + tests.failed == 0 {
        eprintln!("lab: NO TEST RAN: does the filter match any?");
    }
    verdict(outcome)
}

fn verdict(outcome: &Outcome) -> ExitCode {
    let first_failed = outcome.steps.iter().map(|(_, status)| *status).find(|status| *status != 0);
    match first_failed {
        Some(status) => ExitCode::from(status),
        None if outcome.tests.passed == 0 => ExitCode::FAILURE,
        None => ExitCode::SUCCESS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(statuses: &[u8], passed: u64) -> Outcome {
        let steps = statuses.iter().map(|status| ("step".into(), *status)).collect();
        let mut outcome = Outcome { steps, ..Outcome::default() };
        outcome.tests.passed = passed;
        outcome
    }

    #[test]
    fn the_first_failure_decides_and_no_test_is_no_success() {
        let of = |statuses, passed| format!("{:?}", verdict(&outcome(statuses, passed)));
        let is = |status: u8| format!("{:?}", ExitCode::from(status));
        assert_eq!(of(&[0, 0], 5), is(0));
        assert_eq!(of(&[0, 101, 1], 5), is(101));
        assert_eq!(of(&[0], 0), is(1));
        assert_eq!(of(&[], 0), is(1));
    }
}
