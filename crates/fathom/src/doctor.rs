//! `fathom doctor`: what this machine can do, and the command that mends what it cannot.

mod checks;
mod host;

use std::process::ExitCode;

use serde::Serialize;

use crate::arguments::DoctorArguments;
use crate::failure::{Failure, HOST_FAILURE, SUCCESS};
use crate::list::print;
use host::Host;

/// What was found out about one thing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    /// What there is.
    detail: String,
    /// What mends it, where something does.
    remedy: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// There, and usable by this user.
    Ok,
    /// There in part.
    Partial,
    /// Not there: something that Fathom can use it must do without.
    Missing,
    /// Not to be found out from here.
    Unknown,
    /// Not there, and no VM runs without it.
    Fatal,
}

#[derive(Serialize)]
struct Diagnosis {
    checks: Vec<Check>,
}

pub(crate) fn doctor(arguments: &DoctorArguments) -> Result<ExitCode, Failure> {
    let checks = checks::all(&Host::here());
    let healthy = checks.iter().all(|check| check.status != Status::Fatal);
    if arguments.json {
        print(&(serde_json::to_string(&Diagnosis { checks }).map_err(Failure::host)? + "\n"));
    } else {
        print(&text(&checks));
    }
    Ok(ExitCode::from(if healthy { SUCCESS } else { HOST_FAILURE }))
}

fn text(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Check { name, status, detail, remedy } in checks {
        let status = status.name();
        text += &format!("{name:<width$}  {status:<7}  {detail}\n");
        if let Some(remedy) = remedy {
            text += &format!("{:<width$}           -> {remedy}\n", "");
        }
    }
    text
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Partial => "partial",
            Self::Missing => "missing",
            Self::Unknown => "unknown",
            Self::Fatal => "FATAL",
        }
    }
}

impl Check {
    fn new(name: &'static str, status: Status, detail: impl Into<String>) -> Self {
        Self { name, status, detail: detail.into(), remedy: None }
    }

    fn mend(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}
