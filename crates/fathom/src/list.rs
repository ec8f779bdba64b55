//! `fathom list`.

use std::process::ExitCode;

use api::{Client, ClientError, RunState, SocketDirectory, VmStatus};

use crate::arguments::ListArguments;
use crate::failure::{Failure, SUCCESS};
use crate::text;

pub(crate) fn list(arguments: &ListArguments) -> Result<ExitCode, Failure> {
    let answers = ask_all(&SocketDirectory::open()?)?;
    complain(&answers);
    let vms: Vec<VmStatus> = answers.into_iter().filter_map(Result::ok).collect();
    if arguments.json {
        print(&json_line(&vms)?);
    } else {
        print(&table(&vms));
    }
    Ok(ExitCode::from(SUCCESS))
}

/// Asks every running VM, all at once. Those that ended meanwhile are left out.
pub(crate) fn ask_all(
    directory: &SocketDirectory,
) -> Result<Vec<Result<VmStatus, ClientError>>, Failure> {
    Ok(host::ask_each(directory, Client::status)?)
}

/// The same, and has them measure their working sets.
pub(crate) fn watch_all(
    directory: &SocketDirectory,
) -> Result<Vec<Result<VmStatus, ClientError>>, Failure> {
    Ok(host::ask_each(directory, |client| client.watch().and_then(|()| client.status()))?)
}

/// Says which VMs did not answer.
pub(crate) fn complain(answers: &[Result<VmStatus, ClientError>]) {
    for error in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        eprintln!("fathom: {error}");
    }
}

pub(crate) fn json_line(vms: &[VmStatus]) -> Result<String, Failure> {
    Ok(serde_json::to_string(vms).map_err(Failure::host)? + "\n")
}

/// Prints; a reader who closed the pipe has seen enough.
pub(crate) fn print(text: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// One word: one that stands by itself, for want of something, is waiting.
pub(crate) fn state(vm: &VmStatus) -> &'static str {
    match vm.state {
        RunState::Paused if vm.waits_for.is_some() => "waiting",
        RunState::Running => "running",
        RunState::Paused => "paused",
        RunState::Ended => "ended",
    }
}

/// A line for a VM that waits for something.
pub(crate) fn waiting(vm: &VmStatus) -> Option<String> {
    let reclaim = || vm.reclaim.as_ref().and_then(|reclaim| reclaim.problem.as_ref());
    vm.waits_for.as_ref().or_else(reclaim).map(|what| format!("{}: {what}", vm.name))
}

fn table(vms: &[VmStatus]) -> String {
    let heads = ["NAME", "PID", "STATE", "ENGINE", "VCPUS", "MEMORY", "UPTIME"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(vms.iter().map(|vm| {
        vec![
            vm.name.clone(),
            vm.pid.to_string(),
            state(vm).to_owned(),
            vm.engine.clone(),
            vm.vcpus.to_string(),
            text::bytes(vm.configured_bytes),
            text::duration(vm.uptime_seconds),
        ]
    }));
    let waiting = vms.iter().filter_map(waiting).map(|line| line + "\n");
    text::table(&rows) + &waiting.collect::<String>()
}
