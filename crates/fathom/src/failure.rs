//! How a command fails: one line on standard error, and a status.

use std::error::Error;
use std::process::ExitCode;

use api::{ClientError, DirectoryError};
use clap::error::ErrorKind;

/// The guest powered off, or the command did what it was asked.
pub(crate) const SUCCESS: u8 = 0;
/// The host, or a VM that was asked for something, failed.
pub(crate) const HOST_FAILURE: u8 = 1;
/// What was asked cannot be done.
pub(crate) const BAD_USAGE: u8 = 2;
/// The guest's kernel panicked.
pub(crate) const GUEST_PANIC: u8 = 3;

/// Why a command ends early; each message is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The user's to mend.
    #[error("{0}")]
    Usage(String),
    /// The host's fault, or a VM's.
    #[error("{0}")]
    Host(String),
}

impl Failure {
    pub(crate) fn usage(error: impl Error) -> Self {
        Self::Usage(with_causes(&error))
    }

    pub(crate) fn host(error: impl Error) -> Self {
        Self::Host(with_causes(&error))
    }

    /// Prints the line; the status of the process.
    pub(crate) fn report(&self) -> ExitCode {
        eprintln!("fathom: {self}");
        ExitCode::from(match self {
            Self::Usage(_) => BAD_USAGE,
            Self::Host(_) => HOST_FAILURE,
        })
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::host(error)
    }
}

impl From<DirectoryError> for Failure {
    fn from(error: DirectoryError) -> Self {
        match error {
            DirectoryError::InUse { .. }
            | DirectoryError::Name { .. }
            | DirectoryError::PathLength { .. } => Self::usage(error),
            DirectoryError::Unsafe { .. } | DirectoryError::Host { .. } => Self::host(error),
        }
    }
}

/// The error and what caused it, but for causes that it has in its own words already.
fn with_causes(error: &dyn Error) -> String {
    let mut line = remote::without_number(&error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = remote::without_number(&error.to_string());
        if !line.contains(&text) {
            line += ": ";
            line += &text;
        }
        cause = error.source();
    }
    line
}

/// Arguments that clap refused. Help goes to standard output as clap lays it out; a refusal becomes one line.
pub(crate) fn bad_arguments(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A reader who closed the pipe has seen enough.
            let _ = error.print();
            ExitCode::from(SUCCESS)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(BAD_USAGE)
        }
        _ => Failure::Usage(refusal(&error.to_string())).report(),
    }
}

/// clap's message is in paragraphs: what is wrong, tips, usage, where help is.
fn refusal(message: &str) -> String {
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut paragraphs = message.split("\n\n").map(one_line);
    let what = paragraphs.next().unwrap_or_default();
    let what = what.strip_prefix("error: ").unwrap_or(&what).to_owned();
    let tip = paragraphs.find(|paragraph| paragraph.starts_with("tip: "));
    let tip = tip.as_deref().and_then(|tip| tip.strip_prefix("tip: "));
    format!("{what}: {}", tip.unwrap_or("see --help"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::Arguments;

    fn refused(line: &str) -> String {
        let error = Arguments::try_parse_from(line.split(' ')).expect_err("bad arguments");
        let text = refusal(&error.to_string());
        assert!(!text.contains('\n'));
        text
    }

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("cannot boot x")]
        Silent(#[source] std::io::Error),
        #[error("open y: {0}: check it")]
        Telling(#[source] std::io::Error),
    }

    #[test]
    fn causes_are_told_once() {
        let cause = || std::io::Error::from_raw_os_error(2);
        let line = Failure::host(Outer::Silent(cause())).to_string();
        assert_eq!(line, "cannot boot x: No such file or directory");
        let line = Failure::usage(Outer::Telling(cause())).to_string();
        assert_eq!(line, "open y: No such file or directory: check it");
    }

    #[test]
    fn a_refusal_is_one_line_that_names_the_thing() {
        for (line, parts) in [
            ("fathom run", ["--kernel", "see --help"]),
            ("fathom run --kernel k --memory 12Q", ["`12Q` is not a size", "512M"]),
            ("fathom run --kernel k --memroy 1G", ["--memroy", "exists: '--memory'"]),
            ("fathom run --kernel k --cpus many", ["many", "--cpus"]),
            ("fathom run --kernel k --engine qemu", ["qemu", "translate"]),
            ("fathom run --kernel k --disk d,wr", ["`wr`", "overlay=PATH"]),
            ("fathom run --kernel k --vsock cid=3", ["socket", "cid=N,socket=PATH"]),
            ("fathom run --kernel k --net bridge", ["`bridge`", "tap=NAME"]),
            ("fathom pause", ["<NAME>", "see --help"]),
            ("fathom resme", ["resme", "exist: 'restore', 'resume'"]),
        ] {
            let text = refused(line);
            assert!(parts.iter().all(|part| text.contains(part)), "{line}: {text}");
        }
    }
}
