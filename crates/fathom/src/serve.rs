//! `fathom serve`: the daemon.

use std::net::TcpListener;
use std::os::fd::RawFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use api::SocketDirectory;
use host::{Host, HostError, HostOptions, Launch, SwapOptions};

use crate::arguments::ServeArguments;
use crate::clone::program;
use crate::failure::{Failure, SUCCESS};

/// Of this host, if nothing is said: the rest is for everything else.
const PART: f64 = 0.9;

pub(crate) fn serve(arguments: &ServeArguments) -> Result<ExitCode, Failure> {
    let settings = arguments.sharing.settings();
    settings.check().map_err(Failure::usage)?;
    let limit = arguments.sharing.memory.map_or_else(memory, |memory| memory.0);
    let directory = arguments.directory.as_deref().map(Path::canonicalize).transpose();
    let directory = directory.map_err(|error| {
        let path = arguments.directory.clone().unwrap_or_default();
        Failure::Usage(format!("{}: {error}", path.display()))
    })?;
    let sockets = SocketDirectory::open()?;
    let logs = directory.clone().unwrap_or_else(|| sockets.path().to_owned());
    let launch = Launch { program: program(), logs };
    let swap = arguments.swap.as_deref().map(|path| {
        let is_there = path.canonicalize().and_then(|path| {
            path.read_dir()?;
            Ok(path)
        });
        is_there.map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))
    });
    let swap_limit = arguments.swap_limit.map(|limit| limit.0);
    let swap = swap.transpose()?.map(|directory| SwapOptions { directory, limit: swap_limit });
    let options = HostOptions {
        directory,
        limit,
        settings,
        launch,
        swap,
        share: arguments.share,
        listen: arguments.listen,
        listener: handed_over()?,
    };
    let ends = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&ends)).map_err(Failure::host)?;
    }
    let mut host = Host::new(options, sockets).map_err(|error| match error {
        HostError::Running(_)
        | HostError::Config(_)
        | HostError::Listen { .. }
        | HostError::Listener(_) => Failure::usage(error),
        error => Failure::host(error),
    })?;
    tracing::info!("VMs may have {} in all", crate::text::bytes(limit));
    while !ends.load(Ordering::Relaxed) {
        let begun = Instant::now();
        host.step(begun);
        // A signal ends the wait: park would not.
        let rest = arguments.interval.saturating_sub(begun.elapsed());
        let mut slept = std::time::Duration::ZERO;
        while slept < rest && !ends.load(Ordering::Relaxed) {
            let piece = (rest - slept).min(std::time::Duration::from_millis(100));
            std::thread::sleep(piece);
            slept += piece;
        }
    }
    tracing::info!("ends; VMs go on");
    Ok(ExitCode::from(SUCCESS))
}

/// The socket that systemd listens on until somebody comes, where that is how the daemon is started: sd_listen_fds(3).
fn handed_over() -> Result<Option<TcpListener>, Failure> {
    /// The first of those that are handed over.
    const FIRST: RawFd = 3;
    let value = |name: &str| std::env::var(name).unwrap_or_default();
    // They are inherited further, but meant for one process.
    if value("LISTEN_PID").parse() != Ok(std::process::id()) {
        return Ok(None);
    }
    let count = value("LISTEN_FDS");
    if count != "1" {
        let what = format!("LISTEN_FDS: {count} sockets are handed over, and 1 is expected");
        return Err(Failure::Usage(what));
    }
    let socket = confine::inherited(FIRST).map_err(Failure::host)?;
    Ok(Some(TcpListener::from(socket)))
}

/// What VMs may have if nobody says it: bytes.
pub(crate) fn memory() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let meminfo = read("/proc/meminfo");
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok());
    let host = kib.unwrap_or(0) << 10;
    let groups = read("/proc/self/cgroup");
    let limits = groups.lines().filter_map(|line| {
        let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
        let path = match controllers {
            "" => format!("/sys/fs/cgroup{group}/memory.max"),
            "memory" => format!("/sys/fs/cgroup/memory{group}/memory.limit_in_bytes"),
            _ => return None,
        };
        read(&path).trim().parse::<u64>().ok()
    });
    (limits.chain([host]).min().unwrap_or(host) as f64 * PART) as u64
}
