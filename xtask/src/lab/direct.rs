//! A host with virtualization of its own needs no lab's machine: the steps run here.

use super::machine::Outcome;
use super::port::copy;
use super::script::Step;
use anyhow::{Context, Result, bail};
use std::fs::{self, OpenOptions};
use std::io;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// As the shell has it, for a program that a signal ended.
const KILLED: u8 = 137;

/// Whether this host's KVM is the processor's own: other kinds of KVM (KVM_PVM, for one) boot no
/// unmodified kernel.
pub(super) fn has_kvm() -> bool {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    has_virtualization(&info) && OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

fn has_virtualization(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

/// Run all of them, one after the other.
pub(super) fn run(steps: &[Step], limit: Duration) -> Result<Outcome> {
    let deadline = Instant::now() + limit;
    let mut outcome = Outcome::default();
    for step in steps {
        let status = run_step(step, deadline, &mut outcome)?;
        outcome.steps.push((step.name.clone(), status));
    }
    Ok(outcome)
}

fn run_step(step: &Step, deadline: Instant, outcome: &mut Outcome) -> Result<u8> {
    let (program, arguments) = step.words.split_first().context("a step has a program")?;
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(&step.folder)
        .envs(step.environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", program.to_string_lossy()))?;
    let output = child.stdout.take().context("a step has an output")?;
    let reader = copy(output, io::stdout());
    loop {
        if let Some(status) = child.try_wait()? {
            let tests = reader.join().unwrap_or_default();
            outcome.tests.passed += tests.passed;
            outcome.tests.failed += tests.failed;
            return Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(KILLED));
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("{} did not end in time", step.name);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn virtualization_is_a_flag_of_its_own() {
        assert!(has_virtualization("processor: 0\nflags\t\t: fpu svm sse\n"));
        assert!(has_virtualization("flags\t\t: fpu vmx\n"));
        assert!(!has_virtualization("flags\t\t: fpu svm_lock\nbugs\t\t: vmx\n"));
        assert!(!has_virtualization(""));
    }

    #[test]
    fn steps_end_with_their_status_and_tests_are_counted() {
        let step = |script: &str| {
            let words = ["sh", "-c", script].map(Into::into).to_vec();
            let environment = vec![("PASSED".to_owned(), "3".into())];
            Step { environment, ..Step::new(script, Path::new("/"), words) }
        };
        let steps = [step("echo \"test result: ok. $PASSED passed; 0 failed;\""), step("exit 101")];
        let outcome = run(&steps, Duration::from_secs(600)).unwrap();
        let statuses: Vec<u8> = outcome.steps.iter().map(|(_, status)| *status).collect();
        assert_eq!((statuses, outcome.tests.passed), (vec![0, 101], 3));
    }
}
