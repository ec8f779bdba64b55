//! From a request to a call. One module an API: ours under `/fathom/`; Firecracker's will join here.

mod fathom;

use crate::http::{Fail, Request};

pub(crate) use fathom::FathomCall;

/// What a request asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    Fathom(FathomCall),
    /// For Prometheus.
    Metrics,
}

/// Finds the call of a request.
pub(crate) fn route(request: &Request) -> Result<Call, Fail> {
    let path = request.path.strip_prefix('/').ok_or_else(|| no_such_path(&request.path))?;
    // A query is not part of any path of ours; those that come with one have it ignored.
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    let segments: Vec<&str> = path.split('/').collect();
    match segments.split_first() {
        Some((&"fathom", rest)) => fathom::route(rest, request).map(Call::Fathom),
        Some((&"metrics", [])) if request.method == "GET" => Ok(Call::Metrics),
        Some((&"metrics", [])) => Err(wrong_method(request, "GET")),
        _ => Err(no_such_path(&request.path)),
    }
}

pub(crate) fn no_such_path(path: &str) -> Fail {
    let shown: String = path.chars().take(80).flat_map(char::escape_debug).collect();
    Fail::new(404, format!("no such path: {shown}"))
}

pub(crate) fn wrong_method(request: &Request, right: &str) -> Fail {
    let shown: String = request.method.chars().take(16).collect();
    Fail::new(405, format!("method {shown} is not for this path: use {right}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{BalloonTarget, CloneRequest, ReclaimRequest, SaveRequest};

    fn ask(method: &str, path: &str, body: &str) -> Result<Call, u16> {
        let request = Request {
            method: method.to_owned(),
            path: path.to_owned(),
            body: body.as_bytes().to_vec(),
            keep_alive: true,
            host: None,
        };
        route(&request).map_err(|fail| fail.status)
    }

    #[test]
    fn every_path_has_its_call() {
        for (method, path, call) in [
            ("GET", "/fathom/version", FathomCall::Version),
            ("GET", "/fathom/vm", FathomCall::Status),
            ("GET", "/fathom/vm?pretty", FathomCall::Status),
            ("GET", "/fathom/vm/memory", FathomCall::Memory),
            ("GET", "/fathom/vm/curve", FathomCall::Curve),
            ("GET", "/fathom/vm/kernel", FathomCall::Kernel),
            (
                "GET",
                "/fathom/vm/kernel/symbols/_stext",
                FathomCall::KernelSymbol("_stext".to_owned()),
            ),
            (
                "GET",
                "/fathom/vm/kernel/types/page.lru",
                FathomCall::KernelType("page.lru".to_owned()),
            ),
            ("PUT", "/fathom/vm/watch", FathomCall::Watch),
            ("PUT", "/fathom/vm/pause", FathomCall::Pause),
            ("PUT", "/fathom/vm/resume", FathomCall::Resume),
            ("PUT", "/fathom/vm/stop", FathomCall::Stop),
        ] {
            assert_eq!(ask(method, path, ""), Ok(Call::Fathom(call)), "{path}");
        }
        assert_eq!(ask("GET", "/metrics?name", ""), Ok(Call::Metrics));
        let target = BalloonTarget { target_bytes: 7 };
        let request = SaveRequest { stop: true, ..SaveRequest::default() };
        assert_eq!(
            ask("PUT", "/fathom/vm/save", r#"{"stop":true}"#),
            Ok(Call::Fathom(FathomCall::Save(request)))
        );
        assert_eq!(
            ask("PUT", "/fathom/vm/clone", "{}"),
            Ok(Call::Fathom(FathomCall::Clone(CloneRequest {})))
        );
        assert_eq!(
            ask("PUT", "/fathom/vm/balloon", r#"{"target_bytes":7}"#),
            Ok(Call::Fathom(FathomCall::Balloon(target)))
        );
        let request = ReclaimRequest { bytes: 7, ..ReclaimRequest::default() };
        assert_eq!(
            ask("PUT", "/fathom/vm/reclaim", r#"{"bytes":7}"#),
            Ok(Call::Fathom(FathomCall::Reclaim(request)))
        );
    }

    #[test]
    fn the_rest_is_refused_by_kind() {
        for path in
            ["", "/", "*", "//fathom/vm", "/fathom", "/fathom/", "/fathom/vm/", "/vm", "/metrics/"]
        {
            assert_eq!(ask("GET", path, ""), Err(404), "{path}");
        }
        assert_eq!(ask("DELETE", "/fathom/vm", ""), Err(405));
        assert_eq!(ask("GET", "/fathom/vm/stop", ""), Err(405));
        assert_eq!(ask("PUT", "/fathom/vm/memory", ""), Err(405));
        assert_eq!(ask("PUT", "/metrics", ""), Err(405));
        assert_eq!(ask("PUT", "/fathom/vm/balloon", "7"), Err(400));
        assert_eq!(ask("GET", "/fathom/vm/save", "{}"), Err(405));
        assert_eq!(ask("PUT", "/fathom/vm/save", r#"{"halt":true}"#), Err(400));
        assert_eq!(ask("GET", "/fathom/vm/reclaim", "{}"), Err(405));
        assert_eq!(ask("PUT", "/fathom/vm/reclaim", r#"{"bytes":-7}"#), Err(400));
        assert_eq!(ask("GET", "/fathom/vm/share", "{}"), Err(405));
        assert_eq!(ask("PUT", "/fathom/vm/share", r#"{"switch":[[1]]}"#), Err(400));
        assert_eq!(ask("GET", "/fathom/vm/clone", "{}"), Err(405));
        assert_eq!(ask("PUT", "/fathom/vm/clone", r#"{"count":2}"#), Err(400));
    }
}
