//! How it fails: one line on standard error, and a status, both as of `fathom`, which has become this program.

use std::fmt::Display;
use std::process::ExitCode;

use objects::ObjectsError;
use snapshot::SnapshotError;

const HOST_FAILURE: u8 = 1;
const BAD_USAGE: u8 = 2;

pub(crate) struct Failure {
    line: String,
    status: u8,
}

impl Failure {
    /// The user's to mend.
    pub(crate) fn usage(what: impl Display) -> Self {
        Self { line: remote::without_number(&what.to_string()), status: BAD_USAGE }
    }

    /// The host's fault, or the store's.
    pub(crate) fn host(what: impl Display) -> Self {
        Self { line: remote::without_number(&what.to_string()), status: HOST_FAILURE }
    }

    pub(crate) fn report(&self) -> ExitCode {
        eprintln!("fathom: {}", self.line);
        ExitCode::from(self.status)
    }
}

/// Who is to mend it.
impl From<ObjectsError> for Failure {
    fn from(error: ObjectsError) -> Self {
        match error {
            ObjectsError::Snapshot(SnapshotError::Host { .. })
            | ObjectsError::Store { .. }
            | ObjectsError::Host(..) => Self::host(error),
            _ => Self::usage(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_no_number_of_the_host() {
        let error = std::io::Error::from_raw_os_error(2);
        let failure = Failure::from(ObjectsError::Host("open a part", error));
        assert_eq!(failure.line, "open a part: No such file or directory");
        assert_eq!(failure.status, HOST_FAILURE);
        let usage = Failure::from(objects::Location::parse("web").expect_err("no address"));
        assert_eq!(usage.status, BAD_USAGE);
    }
}
