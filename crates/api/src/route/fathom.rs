//! Our own verbs.

use super::{no_such_path, wrong_method};
use crate::http::{Fail, Request};
use crate::wire::{BalloonTarget, CloneRequest, ReclaimRequest, SaveRequest, ShareRequest};

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum FathomCall {
    Version,
    Status,
    Memory,
    Curve,
    Kernel,
    KernelSymbol(String),
    KernelType(String),
    Classes,
    Watch,
    Pause,
    Resume,
    Stop,
    Balloon(BalloonTarget),
    Reclaim(ReclaimRequest),
    Share(ShareRequest),
    Save(SaveRequest),
    Clone(CloneRequest),
}

/// `rest`: the segments of the path after `/fathom/`.
pub(super) fn route(rest: &[&str], request: &Request) -> Result<FathomCall, Fail> {
    match rest {
        ["version"] => get(request, FathomCall::Version),
        ["vm"] => get(request, FathomCall::Status),
        ["vm", "memory"] => get(request, FathomCall::Memory),
        ["vm", "curve"] => get(request, FathomCall::Curve),
        ["vm", "kernel"] => get(request, FathomCall::Kernel),
        ["vm", "kernel", "symbols", name] => {
            get(request, FathomCall::KernelSymbol((*name).to_owned()))
        }
        ["vm", "kernel", "types", name] => get(request, FathomCall::KernelType((*name).to_owned())),
        ["vm", "classes", "check"] => get(request, FathomCall::Classes),
        ["vm", "watch"] => put(request, FathomCall::Watch),
        ["vm", "pause"] => put(request, FathomCall::Pause),
        ["vm", "resume"] => put(request, FathomCall::Resume),
        ["vm", "stop"] => put(request, FathomCall::Stop),
        ["vm", "balloon"] if request.method == "PUT" => balloon(request),
        ["vm", "balloon"] => Err(wrong_method(request, "PUT")),
        ["vm", "reclaim"] if request.method == "PUT" => reclaim(request),
        ["vm", "reclaim"] => Err(wrong_method(request, "PUT")),
        ["vm", "share"] if request.method == "PUT" => share(request),
        ["vm", "share"] => Err(wrong_method(request, "PUT")),
        ["vm", "save"] if request.method == "PUT" => save(request),
        ["vm", "save"] => Err(wrong_method(request, "PUT")),
        ["vm", "clone"] if request.method == "PUT" => clone(request),
        ["vm", "clone"] => Err(wrong_method(request, "PUT")),
        _ => Err(no_such_path(&request.path)),
    }
}

fn get(request: &Request, call: FathomCall) -> Result<FathomCall, Fail> {
    if request.method == "GET" { Ok(call) } else { Err(wrong_method(request, "GET")) }
}

fn put(request: &Request, call: FathomCall) -> Result<FathomCall, Fail> {
    if request.method == "PUT" { Ok(call) } else { Err(wrong_method(request, "PUT")) }
}

fn balloon(request: &Request) -> Result<FathomCall, Fail> {
    let target: BalloonTarget = serde_json::from_slice(&request.body).map_err(|error| {
        Fail::new(400, format!("body: {error}: send {{\"target_bytes\": NUMBER}}"))
    })?;
    Ok(FathomCall::Balloon(target))
}

fn reclaim(request: &Request) -> Result<FathomCall, Fail> {
    let request: ReclaimRequest = serde_json::from_slice(&request.body)
        .map_err(|error| Fail::new(400, format!("body: {error}: send {{\"bytes\": NUMBER}}")))?;
    Ok(FathomCall::Reclaim(request))
}

fn share(request: &Request) -> Result<FathomCall, Fail> {
    let request: ShareRequest = serde_json::from_slice(&request.body)
        .map_err(|error| Fail::new(400, format!("body: {error}: send {{\"scan\": NUMBER}}")))?;
    Ok(FathomCall::Share(request))
}

fn save(request: &Request) -> Result<FathomCall, Fail> {
    let request: SaveRequest = serde_json::from_slice(&request.body).map_err(|error| {
        Fail::new(400, format!("body: {error}: send {{\"stop\": false}} or {{\"stop\": true}}"))
    })?;
    Ok(FathomCall::Save(request))
}

fn clone(request: &Request) -> Result<FathomCall, Fail> {
    let request: CloneRequest = serde_json::from_slice(&request.body)
        .map_err(|error| Fail::new(400, format!("body: {error}: send {{}}")))?;
    Ok(FathomCall::Clone(request))
}
