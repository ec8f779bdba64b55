//! One connection: requests in turn, each answered.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::control::{ControlError, VmControl};
use crate::http::{Connection, Fail, ReadError, Request, read_request};
use crate::metrics;
use crate::route::{Call, FathomCall, route};
use crate::wire::{CloneReport, CloneRequest, ReclaimRequest, ShareReport, ShareRequest, Version};

/// Longest silence before a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time from the first byte of a request to its last.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until the peer leaves, errs, is silent for too long, or `stopping` is set.
pub(super) fn serve(stream: UnixStream, control: &dyn VmControl, stopping: &AtomicBool) {
    serve_with(stream, stopping, |connection, request, descriptors, keep_alive| {
        answer(connection, request, descriptors, control, keep_alive)
    });
}

/// The same, with `answer` for an answer: to a request, its descriptors, and whether the connection stays open.
pub(super) fn serve_with(
    stream: UnixStream,
    stopping: &AtomicBool,
    answer: impl Fn(&mut Connection, &Request, Vec<OwnedFd>, bool) -> io::Result<()>,
) {
    let mut connection = match Connection::new(stream) {
        Ok(connection) => connection,
        Err(error) => return tracing::warn!("api connection: {error}"),
    };
    // A peer that does not take its answer has lost it.
    while let Ok(true) = serve_one(&mut connection, stopping, &answer) {}
}

/// One request. `Ok(true)`: there may be another.
fn serve_one(
    connection: &mut Connection,
    stopping: &AtomicBool,
    answer: impl Fn(&mut Connection, &Request, Vec<OwnedFd>, bool) -> io::Result<()>,
) -> io::Result<bool> {
    let now = Instant::now();
    let request =
        match read_request(connection, now + IDLE_TIMEOUT, || Instant::now() + REQUEST_TIMEOUT) {
            Ok(request) => request,
            Err(error) => {
                if let Some(fail) = answer_to(error) {
                    connection.write_fail(&fail, false)?;
                }
                return Ok(false);
            }
        };
    let keep_alive = request.keep_alive && !stopping.load(Ordering::Acquire);
    let descriptors = connection.take_descriptors();
    answer(connection, &request, descriptors, keep_alive)?;
    Ok(keep_alive)
}

/// What a peer is told whose request could not be read. `None`: nobody is listening.
fn answer_to(error: ReadError) -> Option<Fail> {
    match error {
        ReadError::Refused(fail) => Some(fail),
        ReadError::Closed { partial: true } => {
            Some(Fail::new(400, "the request ended in the middle"))
        }
        ReadError::Timeout { partial: true } => {
            Some(Fail::new(408, "the request took too long to arrive"))
        }
        ReadError::Closed { partial: false } | ReadError::Timeout { partial: false } => None,
        ReadError::Io(error) => {
            tracing::debug!("api connection: {error}");
            None
        }
    }
}

fn answer(
    connection: &mut Connection,
    request: &Request,
    descriptors: Vec<OwnedFd>,
    control: &dyn VmControl,
    keep_alive: bool,
) -> io::Result<()> {
    let call = match route(request) {
        Ok(Call::Fathom(call)) => call,
        Ok(Call::Metrics) => {
            return match metrics::text(control) {
                Ok(text) => connection.write_text(metrics::CONTENT_TYPE, &text, keep_alive),
                Err(error) => connection.write_fail(&fail_of(&error), keep_alive),
            };
        }
        Err(fail) => return connection.write_fail(&fail, keep_alive),
    };
    let done = match call {
        FathomCall::Version => {
            let fathom_version = env!("CARGO_PKG_VERSION").to_owned();
            return connection.write_json(&Version { fathom_version }, keep_alive);
        }
        FathomCall::Status => match control.status() {
            Ok(status) => return connection.write_json(&status, keep_alive),
            Err(error) => Err(error),
        },
        FathomCall::Memory => match control.memory() {
            Ok(picture) => return connection.write_json(&picture, keep_alive),
            Err(error) => Err(error),
        },
        FathomCall::Curve => match control.memory() {
            Ok(picture) => return connection.write_json(&picture.curve, keep_alive),
            Err(error) => Err(error),
        },
        FathomCall::Kernel => match control.kernel() {
            Ok(kernel) => return connection.write_json(&kernel, keep_alive),
            Err(error) => Err(error),
        },
        FathomCall::KernelSymbol(name) => match control.kernel_symbol(&name) {
            Ok(symbol) => return connection.write_json(&symbol, keep_alive),
            Err(error) => Err(error),
        },
        FathomCall::Classes => match control.classes() {
            Ok(classes) => return connection.write_json(&classes, keep_alive),
            Err(error) => Err(error),
        },
        FathomCall::KernelType(name) => match control.kernel_type(&name) {
            Ok(kind) => return connection.write_json(&kind, keep_alive),
            Err(error) => Err(error),
        },
        FathomCall::Save(request) => match control.save(descriptors, request) {
            Ok(report) => return connection.write_json(&report, keep_alive),
            Err(error) => Err(error),
        },
        FathomCall::Clone(request) => match make_clonable(control, descriptors, request) {
            Ok((report, memory)) => {
                let memory: Vec<_> = memory.iter().map(OwnedFd::as_fd).collect();
                return connection.write_json_with(&report, &memory, keep_alive);
            }
            Err(error) => Err(error),
        },
        FathomCall::Share(request) => match share(control, descriptors, request) {
            Ok(report) => return connection.write_json(&report, keep_alive),
            Err(error) => Err(error),
        },
        FathomCall::Watch => control.watch(),
        FathomCall::Pause => control.pause(),
        FathomCall::Resume => control.resume(),
        FathomCall::Stop => control.stop(),
        FathomCall::Balloon(target) => control.set_balloon(target),
        FathomCall::Reclaim(request) => reclaim(control, descriptors, request),
    };
    match done {
        Ok(()) => connection.write_done(keep_alive),
        Err(error) => connection.write_fail(&fail_of(&error), keep_alive),
    }
}

fn reclaim(
    control: &dyn VmControl,
    descriptors: Vec<OwnedFd>,
    request: ReclaimRequest,
) -> Result<(), ControlError> {
    if descriptors.len() > 1 {
        let what = "one descriptor may come along, of a file for the store";
        return Err(ControlError::Invalid(what.to_owned()));
    }
    control.reclaim(request, descriptors.into_iter().next().map(File::from))
}

fn share(
    control: &dyn VmControl,
    descriptors: Vec<OwnedFd>,
    request: ShareRequest,
) -> Result<ShareReport, ControlError> {
    let attach = match <[OwnedFd; 2]>::try_from(descriptors) {
        Ok([pool, outbox]) => Some((pool, File::from(outbox))),
        Err(none) if none.is_empty() => None,
        Err(_) => {
            let what = "two descriptors may come along, of a pool and of an outbox";
            return Err(ControlError::Invalid(what.to_owned()));
        }
    };
    control.share(request, attach)
}

fn make_clonable(
    control: &dyn VmControl,
    descriptors: Vec<OwnedFd>,
    request: CloneRequest,
) -> Result<(CloneReport, Vec<OwnedFd>), ControlError> {
    let Ok([machine, memory]) = <[OwnedFd; 2]>::try_from(descriptors) else {
        let what =
            "two descriptors have to come along, of the machine's file and of one for memory";
        return Err(ControlError::Invalid(what.to_owned()));
    };
    control.make_clonable(File::from(machine), memory, request)
}

pub(super) fn fail_of(error: &ControlError) -> Fail {
    let status = match error {
        ControlError::Invalid(_) => 400,
        ControlError::State(_) => 409,
        ControlError::Failed(_) => 500,
    };
    Fail::new(status, error.to_string())
}
