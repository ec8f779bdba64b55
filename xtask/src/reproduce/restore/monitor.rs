//! The ways to restore a guest, each by the monitor that saved it.

use super::beats::{self, Outside, Proof, Usual};
use super::cache::{self, Cache};
use super::fathom::{self, Inside, Mode};
use super::guests::Subject;
use super::qemu;
use crate::kit::Kit;
use crate::machine::{Next, Running};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// QEMU's microvm without KVM hangs now and then before it prints anything.
const BOOT_TRIES: usize = 4;
const BOOT_LONGEST: Duration = Duration::from_secs(40);

/// Who reads nothing for so long has read all that it wants to.
const SETTLED: Duration = Duration::from_secs(1);
const SETTLE_LONGEST: Duration = Duration::from_secs(20);

/// Where snapshots and sockets are.
pub(super) struct Place<'a> {
    pub(super) kit: &'a Kit,
    pub(super) folder: PathBuf,
    /// Names of sockets are short.
    pub(super) sockets: TempDir,
    /// More words for `fathom save`.
    pub(super) compress: Vec<String>,
    /// How long a guest is followed by its beats.
    pub(super) follow: Duration,
    /// Whether there is to be a snapshot of a guest that went on.
    pub(super) live: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Monitor {
    Fathom,
    Qemu(qemu::Kind),
}

/// One column of the experiment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) monitor: Monitor,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Ours(Mode),
    File(qemu::Kind),
    /// Pages are fetched from a QEMU that has them in its memory.
    Postcopy(qemu::Kind),
}

impl Way {
    /// Those that are there, or those of them that are named.
    pub(super) fn named(names: &[String]) -> Result<Vec<Self>> {
        let ours = Mode::ALL.map(|mode| Self { monitor: Monitor::Fathom, how: How::Ours(mode) });
        let [stream, mapped] = [qemu::Kind::Stream, qemu::Kind::Mapped];
        let peers = [
            (stream, How::File(stream)),
            (mapped, How::File(mapped)),
            (stream, How::Postcopy(stream)),
        ];
        let peers = peers.map(|(kind, how)| Self { monitor: Monitor::Qemu(kind), how });
        let all: Vec<Self> = ours.into_iter().chain(peers).collect();
        if names.is_empty() {
            return Ok(all);
        }
        let find = |name: &String| {
            let known = || all.iter().map(Self::name).collect::<Vec<_>>().join(", ");
            let way = all.iter().find(|way| way.name() == name).cloned();
            way.with_context(|| format!("no mode is called {name}: there are {}", known()))
        };
        names.iter().map(find).collect()
    }

    /// Whether it is of a guest that went on after its save.
    pub(super) fn is_live(&self) -> bool {
        self.how == How::Ours(Mode::Trace)
    }

    pub(super) fn name(&self) -> &'static str {
        match self.how {
            How::Ours(mode) => mode.name(),
            How::File(kind) => qemu::name(kind),
            How::Postcopy(_) => "qemu-postcopy",
        }
    }
}

/// A guest that was saved in the middle of its work.
pub(super) struct Saved {
    path: PathBuf,
    /// Of Fathom: a live one of the same guest, if there is to be one.
    live: PathBuf,
    /// Of Fathom: the same after a restore that was learnt from.
    learnt: OnceCell<PathBuf>,
    proof: Proof,
    pub(super) usual: Usual,
    /// The same as after a restore, of the guest before it was saved: what is measured of a guest that is left alone.
    pub(super) undisturbed: Outside,
    pub(super) bytes: u64,
    pub(super) seconds: f64,
}

/// What came of one restore.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Sample {
    pub(super) outside: Outside,
    /// Beats since the command, for the picture.
    pub(super) beats_seconds: Vec<f64>,
    /// By the host's kernel, of the monitor's process while it was followed.
    pub(super) bytes_from_disk: u64,
    pub(super) inside: Option<Inside>,
}

impl Monitor {
    pub(super) fn save(self, place: &Place<'_>, subject: &Subject) -> Result<Saved> {
        let mut running = self.start(place, subject)?;
        beats::ready(&mut running)?;
        // Asked for first: it touches all of the guest's memory.
        let proof = beats::proof(&mut running)?;
        let before = beats::follow(&mut running, place.follow)?;
        let usual = Usual::of(&before)?;
        let undisturbed = beats::follow(&mut running, place.follow)?;
        let zero = *before.last().context("a guest that beats")?;
        let undisturbed: Vec<Duration> = undisturbed.iter().map(|beat| *beat - zero).collect();
        let path = self.path(place, subject)?;
        let live = path.with_extension("live");
        if self == Self::Fathom && place.live {
            remove(&live)?;
            fathom::save_live(place, &live)?;
        }
        let begun = running.elapsed();
        match self {
            Self::Fathom => fathom::save(place, &mut running, &path),
            Self::Qemu(kind) => qemu::save(place, &mut running, &path, kind),
        }?;
        let seconds = (running.elapsed() - begun).as_secs_f64();
        let undisturbed = Outside::of(usual, &undisturbed);
        let bytes = cache::size(&path)?;
        let learnt = OnceCell::new();
        Ok(Saved { path, live, learnt, proof, usual, undisturbed, bytes, seconds })
    }

    /// Again if it does not get to its first word, but for Fathom, which may not fail so.
    fn start(self, place: &Place<'_>, subject: &Subject) -> Result<Running> {
        let mut tries = 1;
        loop {
            let mut running = match self {
                Self::Fathom => return fathom::start(place, subject),
                Self::Qemu(kind) => qemu::start(place, subject, kind),
            }?;
            match running.next(BOOT_LONGEST) {
                Next::Quiet if tries < BOOT_TRIES => tries += 1,
                _ => return Ok(running),
            }
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Fathom => "fathom",
            Self::Qemu(kind) => qemu::name(kind),
        }
    }

    /// Removes what it has saved.
    pub(super) fn forget(self, place: &Place<'_>, subject: &Subject) -> Result<()> {
        let path = self.path(place, subject)?;
        ["learnt", "live"].iter().try_for_each(|of| remove(&path.with_extension(of)))
    }

    /// Where nothing is.
    fn path(self, place: &Place<'_>, subject: &Subject) -> Result<PathBuf> {
        let path = place.folder.join(format!("{}.{}", subject.name(), self.name()));
        if path.is_dir() {
            fs::remove_dir_all(&path)?;
        } else if path.exists() {
            fs::remove_file(&path)?;
        }
        Ok(path)
    }
}

impl Saved {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Restored once when first asked for, as a user would without a word about it.
    fn learnt(&self, place: &Place<'_>) -> Result<&PathBuf> {
        if let Some(path) = self.learnt.get() {
            return Ok(path);
        }
        let twin = fathom::twin(&self.path)?;
        let mut running = fathom::restore(place, &twin, Mode::Scan, true)?;
        beats::follow(&mut running, place.follow)?;
        fathom::end(place, &mut running)?;
        Ok(self.learnt.get_or_init(|| twin))
    }
}

impl Way {
    /// Has the guest prove that it is the one that was saved.
    pub(super) fn restore(
        &self,
        place: &Place<'_>,
        subject: &Subject,
        saved: &Saved,
        cache: Cache,
    ) -> Result<Sample> {
        let path = match self.how {
            How::Ours(Mode::Learnt) => saved.learnt(place)?,
            How::Ours(Mode::Trace) => &saved.live,
            _ => &saved.path,
        };
        let mut files = vec![path.clone()];
        files.extend(subject.disk(place.kit)?);
        cache.prepare(&files)?;
        // Dropped, and so ended, when all is done.
        let source;
        let mut running = match self.how {
            How::Ours(mode) => fathom::restore(place, path, mode, false)?,
            How::Postcopy(kind) => {
                source = qemu::Source::start(place, subject, path, kind)?;
                source.restore(place, subject)?
            }
            How::File(kind) => qemu::restore(place, subject, path, kind)?,
        };
        let beats = beats::follow(&mut running, place.follow)?;
        let bytes_from_disk = io(&running, "read_bytes: ")?;
        if self.monitor == Monitor::Fathom {
            settle(&running)?;
        }
        let proof = beats::proof(&mut running)?;
        if proof != saved.proof {
            let what = format!("is another than was saved: {proof:?}, not {:?}", saved.proof);
            bail!(running.complaint(&what));
        }
        let inside = match self.monitor {
            Monitor::Fathom => fathom::end(place, &mut running)?,
            Monitor::Qemu(_) => None,
        };
        let outside = Outside::of(saved.usual, &beats);
        let beats_seconds = beats.iter().map(Duration::as_secs_f64).collect();
        Ok(Sample { outside, beats_seconds, bytes_from_disk, inside })
    }
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    Ok(())
}

/// Waits until nothing is read any more: the proof needs all memory, and its faults are none of the load's.
fn settle(running: &Running) -> Result<()> {
    let begun = running.elapsed();
    let mut before = io(running, "rchar: ")?;
    while running.elapsed() < begun + SETTLE_LONGEST {
        std::thread::sleep(SETTLED);
        let now = io(running, "rchar: ")?;
        if now == before {
            return Ok(());
        }
        before = now;
    }
    Ok(())
}

/// A figure of what a process has read (Documentation/filesystems/proc.rst, 3.3): `rchar` by any call, `read_bytes` from
/// a disk.
fn io(running: &Running, figure: &str) -> Result<u64> {
    let file = format!("/proc/{}/io", running.pid());
    let text = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(figure));
    line.and_then(|bytes| bytes.parse().ok()).with_context(|| format!("{file} says {text}"))
}
