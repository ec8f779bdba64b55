//! Options of `fathom serve` and `fathom balance`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use policy::Settings;
use vmm::config::Bytes;

pub(super) const AFTER: &str = "\
DIR has a file NAME.toml for each VM:

  [run]                        # options of fathom run, without their dashes
  kernel = \"vmlinuz\"
  initrd = \"initrd.img\"
  memory = \"512M\"
  disk = [\"root.img,overlay=web.cow\"]

  [memory]                     # may be left out
  shares = 2000                # its weight against others; 1000
  reservation = \"64M\"          # what it has whatever others need; none
  limit = \"400M\"               # what it has at most; all

  [start]
  restart = \"on-failure\"       # never, on-failure, always

Files may be added and changed at any time. [memory] counts at once, [run] when the VM is started next. What a VM prints
is in DIR/NAME.log. VMs that somebody else started take part, with 1000 shares.

While VMs have less than --memory in all, nothing is taken from them. When 4 % or less of it are free, memory that guests
do not use goes to those that do, by balloons: by shares, and idle memory costs 1 / (1 - tax) times as much. With
--swap the host takes the coldest frames from a guest whose balloon does not give memory, and from all at 2 %. The daemon
may end at any time: VMs go on, and the next one finds them.

Example:
  fathom serve vms --memory 8G
  fathom serve vms --memory 8G --listen 127.0.0.1:7780      and a page at http://127.0.0.1:7780/
  fathom balance";

pub(super) const BALANCE_AFTER: &str = "\
SHARES is a VM's weight, IDLE what it has and does not use, PUBLISHED what shares, reservation, limit and tax come to,
TARGET what it is to have.

Example:
  fathom balance
  fathom balance --json
  fathom balance --dry-run --memory 2G --tax 0      what would be decided, without a daemon
  fathom balance --replay serve.log                 whether logged decisions still come out the same";

/// How memory is shared out.
#[derive(Debug, Args)]
pub(crate) struct SharingArguments {
    /// What VMs may have in all [default: nine tenths of the memory of this host, or of the control group]
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<Bytes>,
    /// How much of an idle page is taxed away: 0 to 0.99
    #[arg(long, value_name = "PART", default_value_t = 0.75)]
    tax: f64,
    /// Who gets a page: by shares and tax as published, or where it saves the most misses, of VMs whose curve is known
    #[arg(long, value_enum, default_value_t = Policy::Curves)]
    policy: Policy,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Policy {
    Published,
    Curves,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    /// Files of VMs; without, VMs that run are balanced
    #[arg(value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) sharing: SharingArguments,
    /// Take memory from guests that do not give it, and write what is in it to files in this folder
    #[arg(long, value_name = "DIR")]
    pub(crate) swap: Option<PathBuf>,
    /// These files may take so much in all, and VMs are started only if what they do not have reserved fits
    #[arg(long, value_name = "SIZE", requires = "swap")]
    pub(crate) swap_limit: Option<Bytes>,
    /// Have frames that guests of one owner have alike in one page: guests could find out by the time of a write that another has
    /// the same. On KVM by the host's kernel, where its KSM runs and all VMs have one owner
    #[arg(long)]
    pub(crate) share: bool,
    /// Show what is decided on a web page, too, to every user of this host; without, it is on the daemon's socket
    #[arg(long, value_name = "127.0.0.1:PORT", value_parser = loopback)]
    pub(crate) listen: Option<SocketAddr>,
    /// Time between decisions, in seconds: 0.1 to 60
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    pub(crate) interval: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct BalanceArguments {
    /// Decide here and now, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) sharing: SharingArguments,
    /// Decide again what a daemon's log says it decided, and compare
    #[arg(long, value_name = "LOG", conflicts_with = "dry_run")]
    pub(crate) replay: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl SharingArguments {
    pub(crate) fn settings(&self) -> Settings {
        let curves = matches!(self.policy, Policy::Curves);
        Settings { tax: self.tax, curves, ..Settings::default() }
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.1..=60.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "write 0.1 to 60".to_owned())
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<SocketAddr>().ok().filter(|address| address.ip().is_loopback());
    address.ok_or_else(|| {
        "write 127.0.0.1:PORT or [::1]:PORT: it is shown on this host only".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_shown_on_this_host_only() {
        for address in ["127.0.0.1:80", "127.1.2.3:0", "[::1]:7780"] {
            assert!(loopback(address).is_ok(), "{address}");
        }
        for address in
            ["0.0.0.0:80", "[::]:80", "10.0.0.1:80", "localhost:80", ":80", "80", "", "127.0.0.1"]
        {
            assert!(loopback(address).is_err(), "{address}");
        }
    }
}
