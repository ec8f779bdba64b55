//! `fathom agent`.

use clap::{Args, Subcommand};

pub(super) const AFTER: &str = "\
The guest needs a vsock device and the agent: guests of our kit have it, others take a file (docs/snapshots.md).

Exit status of run: the program's; 128 and its number if a signal ended it; 124 if its time was up.

Example:
  fathom run --kernel vmlinuz --initrd initrd.img --vsock cid=3,socket=web.vsock --name web
  fathom agent web facts
  fathom agent web run -- uname -r
  fathom agent web run --timeout 2.5 --json -- sh -c 'cat /proc/loadavg'";

#[derive(Debug, Args)]
pub(crate) struct AgentArguments {
    /// Name of the VM
    pub(crate) name: String,
    #[command(subcommand)]
    pub(crate) verb: AgentVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AgentVerb {
    /// Show what the guest is: its name, its kernel, processors and interfaces
    Facts {
        /// Print JSON: an object
        #[arg(long)]
        json: bool,
    },
    /// Run a program in the guest, as root, without input
    Run {
        /// It is killed after so many seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = seconds)]
        timeout: f64,
        /// Print JSON: an object with its output, its errors and how it ended
        #[arg(long)]
        json: bool,
        /// The program and its arguments
        #[arg(required = true, last = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.001..=86_400.0).contains(seconds));
    seconds.ok_or_else(|| format!("`{text}` is no time: write seconds, 0.001 to 86400"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_bounded() {
        assert_eq!(super::seconds("2.5"), Ok(2.5));
        for text in ["", "0", "-1", "NaN", "inf", "1e9", "1s"] {
            assert!(super::seconds(text).is_err(), "{text}");
        }
    }
}
