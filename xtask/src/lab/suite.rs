//! All that must pass on real KVM: the suite for engines, and guests end to end.

use super::machine::{Crashed, MEMORY_MIB, Outcome, Processors};
use super::programs::{Part, Programs};
use super::{LabArgs, borrowed, direct, in_machine, new_image};
use crate::kit::{self, GuestArgs, Kit};
use anyhow::{Result, bail};
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

/// At what one machine has to do. A host full of others' work may be too slow for what a guest's kernel waits for.
const ATTEMPTS: usize = 3;
/// With less time left there is no other: the machine's start and a guest's take most of it.
const ATTEMPT_MIN: Duration = Duration::from_secs(120);
/// As many machines at once have little left to wait for one another.
const MACHINES_MAX: usize = 4;
/// Of the host's memory, beside the machine's own, for QEMU and what it translates.
const BESIDE_MIB: u32 = 1024;

pub(super) fn run(args: &LabArgs) -> Result<ExitCode> {
    let parts = if args.only.is_empty() { Part::ALL.to_vec() } else { args.only.clone() };
    let kit = prepare(&parts)?;
    let environment = kvm_environment(&kit, args);
    let mut built = Vec::new();
    for part in parts {
        built.push((part, Programs::build(part, &args.filters, args.whole)?));
    }
    let started = Instant::now();
    let outcome = if direct::has_kvm() && !args.emulated {
        eprintln!("lab: this host's processor has virtualization: tests run on it directly");
        let steps = built.iter().flat_map(|(_, programs)| programs.steps(&environment));
        direct::run(&steps.collect::<Vec<_>>(), Duration::from_secs(args.timeout))?
    } else {
        let tests = built.iter().map(|(_, programs)| programs.count()).sum();
        let machines = machines(args.processors).min(tests);
        eprintln!("lab: {tests} tests run on KVM, in machines of QEMU's translator: {machines}");
        side_by_side(&kit, args, &built, &environment, machines)?
    };
    Ok(conclude(&outcome, started.elapsed()))
}

type Environment = [(String, OsString)];
type Built = [(Part, Programs)];

/// For how many machines at once this host has processors and memory.
fn machines(processors: Processors) -> usize {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let by_memory = available_mib(&info).unwrap_or(0) / (MEMORY_MIB + BESIDE_MIB);
    (threads / processors as usize).min(by_memory as usize).clamp(1, MACHINES_MAX)
}

/// proc_meminfo(5): `MemAvailable:    2048 kB`.
fn available_mib(meminfo: &str) -> Option<u32> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    u32::try_from(kib >> 10).ok()
}

/// The chosen tests, dealt to so many machines.
fn side_by_side(
    kit: &Kit,
    args: &LabArgs,
    built: &Built,
    environment: &Environment,
    machines: usize,
) -> Result<Outcome> {
    let outcomes = thread::scope(|scope| {
        let run = |number| {
            let share = |programs: &Programs| programs.share(number, machines);
            let share: Vec<_> = built.iter().map(|(part, all)| (*part, share(all))).collect();
            scope.spawn(move || with_more_attempts(kit, args, &share, environment))
        };
        let running: Vec<_> = (0..machines).map(run).collect();
        let outcomes = running.into_iter().map(|machine| match machine.join() {
            Ok(outcome) => outcome,
            Err(_) => bail!("what runs a machine of the lab panicked"),
        });
        outcomes.collect::<Result<Vec<_>>>()
    });
    Ok(outcomes?.into_iter().reduce(Outcome::with).unwrap_or_default())
}

/// The tests chosen of `built`, in a machine of QEMU's translator.
fn emulated(
    kit: &Kit,
    args: &LabArgs,
    built: &Built,
    environment: &Environment,
    limit: Duration,
) -> Result<Outcome> {
    let parts: Vec<_> = built.iter().map(|(part, _)| *part).collect();
    let steps = built.iter().flat_map(|(_, programs)| programs.steps(environment));
    let steps: Vec<_> = steps.collect();
    let mut image = new_image(kit, args)?;
    let programs = steps.iter().filter_map(|step| step.words.first()).map(PathBuf::from);
    let helpers = built.iter().flat_map(|(_, programs)| programs.helpers.iter().cloned());
    for file in programs.chain(helpers).chain(guest_files(kit, &parts)?) {
        image.add(&file)?;
    }
    in_machine(kit, image, &steps, limit, args.processors)
}

/// The same, and further attempts: at all of it if the machine crashed, else at the tests that failed; what fails each
/// time has failed. All of them together have `args.timeout`.
fn with_more_attempts(
    kit: &Kit,
    args: &LabArgs,
    built: &Built,
    environment: &Environment,
) -> Result<Outcome> {
    let end = Instant::now() + Duration::from_secs(args.timeout);
    let left = || end.saturating_duration_since(Instant::now());
    let (mut outcome, made) =
        unless_it_crashes(ATTEMPTS, left, |left| emulated(kit, args, built, environment, left))?;
    for _ in made..ATTEMPTS {
        let names = outcome.tests.failures.clone();
        let failed = outcome.steps.iter().filter(|(_, status)| *status != 0).count();
        // A program that ended without saying which test it was in gets no other attempt.
        if failed == 0 || names.len() < failed || left() < ATTEMPT_MIN {
            break;
        }
        eprintln!("\n*** lab: another attempt at {} ***\n", names.join(", "));
        let again = |programs: &Programs| programs.only(|name| names.iter().any(|n| n == name));
        let again: Vec<_> = built.iter().map(|(part, all)| (*part, again(all))).collect();
        // One that crashes or takes too long changes nothing of what was seen before.
        let more = match emulated(kit, args, &again, environment, left()) {
            Err(error) if error.is::<Crashed>() => {
                eprintln!("\n*** lab: {error:#} ***\n");
                continue;
            }
            more => more?,
        };
        if more.tests.passed + more.tests.failed >= names.len() as u64 {
            outcome.take_attempt(more);
        }
    }
    Ok(outcome)
}

/// The outcome, and the number of the attempt that gave it.
fn unless_it_crashes(
    attempts: usize,
    left: impl Fn() -> Duration,
    attempt: impl Fn(Duration) -> Result<Outcome>,
) -> Result<(Outcome, usize)> {
    let mut made = 1;
    loop {
        match attempt(left()) {
            Err(error) if error.is::<Crashed>() && made < attempts && left() > ATTEMPT_MIN => {
                eprintln!("\n*** lab: another attempt, since {error:#} ***\n");
                made += 1;
            }
            outcome => return Ok((outcome?, made)),
        }
    }
}

/// Guests need all of the guest kit, others nothing of it.
fn prepare(parts: &[Part]) -> Result<Kit> {
    if has_guests(parts) { kit::prepare(&GuestArgs::everything()) } else { Kit::open() }
}

fn has_guests(parts: &[Part]) -> bool {
    parts.iter().any(|part| matches!(part, Part::Guest | Part::Soak))
}

fn guest_files(kit: &Kit, parts: &[Part]) -> Result<Vec<PathBuf>> {
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

    #[test]
    fn another_attempt_counts_for_what_had_failed() {
        let step = |name: &str, status| (name.to_owned(), status);
        let mut first = outcome(&[], 7);
        first.steps = vec![step("a", 0), step("b", 101)];
        first.tests.failed = 1;
        let mut second = outcome(&[], 1);
        second.steps = vec![step("b", 0)];
        first.take_attempt(second);
        assert_eq!(first.steps, [step("a", 0), step("b", 0)]);
        assert_eq!((first.tests.passed, first.tests.failed), (8, 0));
    }

    #[test]
    fn outcomes_of_shares_become_one() {
        let one = || Outcome { steps: vec![("a".into(), 0), ("b".into(), 101)], ..outcome(&[], 3) };
        let other = Outcome { steps: vec![("a".into(), 1), ("c".into(), 0)], ..outcome(&[], 4) };
        let both = one().with(other);
        let steps =
            [("a", 1), ("b", 101), ("c", 0)].map(|(name, status)| (name.to_owned(), status));
        assert_eq!((both.steps.as_slice(), both.tests.passed), (steps.as_slice(), 7));
    }

    #[test]
    fn available_memory_is_read() {
        let text = "MemTotal:       24000000 kB\nMemAvailable:    2099200 kB\n";
        assert_eq!(available_mib(text), Some(2050));
        assert_eq!(available_mib("MemAvailable: much\n"), None);
        assert!((1..=MACHINES_MAX).contains(&machines(Processors::Two)));
    }

    #[test]
    fn a_machine_that_crashes_is_started_again_so_many_times() {
        let crash = || Err(Crashed::for_test().into());
        let calls = std::cell::Cell::new(0);
        let fails_until = |last: usize| {
            calls.set(0);
            unless_it_crashes(
                ATTEMPTS,
                || 2 * ATTEMPT_MIN,
                |_| {
                    calls.set(calls.get() + 1);
                    if calls.get() < last { crash() } else { Ok(outcome(&[0], 1)) }
                },
            )
        };
        assert_eq!(fails_until(1).unwrap().1, 1);
        assert_eq!(fails_until(ATTEMPTS).unwrap().1, ATTEMPTS);
        assert!(fails_until(ATTEMPTS + 1).is_err());
        assert_eq!(calls.get(), ATTEMPTS);
        let late = unless_it_crashes(ATTEMPTS, || Duration::ZERO, |_| crash());
        assert!(late.is_err(), "there is no time for another");
        let other = unless_it_crashes(
            ATTEMPTS,
            || 2 * ATTEMPT_MIN,
            |_| {
                calls.set(0);
                Err(anyhow::anyhow!("no image"))
            },
        );
        assert!(other.is_err());
    }

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
