//! VM processes: started, seen to end, started again.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use api::SocketDirectory;

use crate::config::{Configuration, Restart, VmFile};

/// How a VM's process is started: the program that this is, and its subcommand.
#[derive(Clone, Debug)]
pub struct Launch {
    /// `fathom`.
    pub program: PathBuf,
    /// Where what VMs print is appended to: `NAME.log`.
    pub logs: PathBuf,
}

/// A VM that ends is started again after so long, doubled each time that it does not last
const AGAIN_FIRST: Duration = Duration::from_secs(1);
/// up to this
const AGAIN_MOST: Duration = Duration::from_secs(60);
/// or until it has run for so long.
const LASTS: Duration = Duration::from_secs(60);

/// Status of `fathom run` by which it says that what it was asked cannot be: it would not be another time.
const BAD_USAGE: i32 = 2;

/// What is known of VMs that files say there are to be.
#[derive(Debug, Default)]
pub(crate) struct Vms {
    known: BTreeMap<String, Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Where this daemon has started it.
    child: Option<Child>,
    /// When it was started, or found.
    since: Option<Instant>,
    /// It is not started before.
    not_before: Option<Instant>,
    /// How long it is waited next.
    wait: Option<Duration>,
    /// It ended in a way that it is not started again after; until its file changes.
    rests: Option<VmFile>,
    /// It has run and ended, and was not started since.
    has_ended: bool,
    /// How often it was started after that.
    restarts: u64,
}

impl Vms {
    /// How often each that a file says there is to be was started again.
    pub(crate) fn restarts(&self) -> BTreeMap<String, u64> {
        self.known.iter().map(|(name, known)| (name.clone(), known.restarts)).collect()
    }

    /// Starts what is to run and does not; `may` says whether there is room for it, or why not.
    pub(crate) fn keep_up(
        &mut self,
        configuration: &Configuration,
        directory: &SocketDirectory,
        launch: &Launch,
        now: Instant,
        mut may: impl FnMut(&str, &VmFile) -> Result<(), String>,
    ) {
        self.known.retain(|name, known| {
            // A VM without a file goes on, as one that somebody else has started; its process is still ours to reap.
            configuration.vms.contains_key(name) || known.child.is_some()
        });
        for (name, file) in &configuration.vms {
            let known = self.known.entry(name.clone()).or_default();
            known.reap(name, file, now);
            if known.child.is_some() {
                continue;
            }
            if directory.is_running(name) {
                if known.since.is_none() {
                    tracing::info!(vm = name, "found running");
                    known.since = Some(now);
                }
                continue;
            }
            if known.since.take().is_some() {
                // Not a child of ours: nobody tells how it ended.
                known.ended(name, file, None, now);
            }
            if known.rests.as_ref().is_some_and(|rested| rested != file) {
                let (has_ended, restarts) = (known.has_ended, known.restarts);
                *known = Known { has_ended, restarts, ..Known::default() };
            }
            if known.rests.is_some() || known.not_before.is_some_and(|then| now < then) {
                continue;
            }
            let started = may(name, file)
                .and_then(|()| start(name, file, launch).map_err(|error| error.to_string()));
            match started {
                Ok(child) => {
                    tracing::info!(vm = name, pid = child.id(), "started");
                    known.child = Some(child);
                    known.restarts += u64::from(std::mem::take(&mut known.has_ended));
                    known.since = Some(now);
                }
                Err(why) => {
                    tracing::error!(vm = name, "not started: {why}");
                    known.put_off(now);
                }
            }
        }
        for (name, known) in &mut self.known {
            if !configuration.vms.contains_key(name)
                && let Some(child) = &mut known.child
                && !matches!(child.try_wait(), Ok(None))
            {
                known.child = None;
            }
        }
    }
}

impl Known {
    fn reap(&mut self, name: &str, file: &VmFile, now: Instant) {
        let Some(child) = &mut self.child else { return };
        match child.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => {
                self.child = None;
                self.ended(name, file, Some(status), now);
            }
            Err(error) => tracing::warn!(vm = name, "wait for its process: {error}"),
        }
    }

    fn ended(&mut self, name: &str, file: &VmFile, status: Option<ExitStatus>, now: Instant) {
        self.has_ended = true;
        let lasted = self.since.take().is_some_and(|since| now - since >= LASTS);
        if lasted {
            self.wait = None;
        }
        let words = status.map_or_else(|| "ended".to_owned(), |status| status.to_string());
        // Of a process that was not ours it is not known: a VM that is to run is rather started once too often.
        let failed = status.is_none_or(|status| !status.success());
        let again = match file.restart {
            Restart::Never => false,
            Restart::OnFailure => failed,
            Restart::Always => true,
        };
        if again && status.and_then(|status| status.code()) != Some(BAD_USAGE) {
            self.put_off(now);
            let seconds = self.not_before.map_or(0.0, |then| (then - now).as_secs_f64());
            tracing::warn!(vm = name, "{words}: started again in {seconds} s");
        } else {
            tracing::info!(vm = name, "{words}: it rests until its file changes");
            self.rests = Some(file.clone());
        }
    }

    fn put_off(&mut self, now: Instant) {
        let wait = self.wait.unwrap_or(AGAIN_FIRST);
        self.not_before = Some(now + wait);
        self.wait = Some((wait * 2).min(AGAIN_MOST));
    }
}

/// In a group of its own: what ends the daemon from a terminal does not end it.
fn start(name: &str, file: &VmFile, launch: &Launch) -> io::Result<Child> {
    let log = launch.logs.join(format!("{name}.log"));
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(log)?;
    let mut command = Command::new(&launch.program);
    command.arg("run").arg(format!("--name={name}")).args(&file.arguments);
    command.current_dir(file.path.parent().unwrap_or(Path::new(".")));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    command.spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_counted_how_often_a_vm_is_started_again() {
        let folder = tempfile::tempdir().expect("folder");
        let sockets = SocketDirectory::at(folder.path().join("fathom")).expect("directory");
        let vms = folder.path().join("vms");
        std::fs::create_dir(&vms).expect("a folder");
        std::fs::write(vms.join("web.toml"), "[run]\n").expect("written");
        let (configuration, errors) =
            Configuration::read(&vms, &Configuration::default()).expect("read");
        assert!(errors.is_empty(), "{errors:?}");
        // One whose guest fails at once.
        let launch = Launch { program: "/bin/false".into(), logs: folder.path().to_owned() };
        let (mut known, mut now) = (Vms::default(), Instant::now());
        let mut started = 0;
        let bound = now + Duration::from_secs(600);
        while known.restarts().get("web") != Some(&2) {
            known.keep_up(&configuration, &sockets, &launch, now, |_, _| {
                started += 1;
                Ok(())
            });
            // Its clock is ours; its process ends when it ends.
            now += Duration::from_millis(500);
            std::thread::sleep(Duration::from_millis(5));
            assert!(now < bound, "{known:?}");
        }
        assert_eq!(started, 3);
    }
}
