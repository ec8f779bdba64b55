//! A machine that is sent, written into a snapshot: by the process of who asked, with its rights and on its time.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use memory::{FRAME_SIZE, Frame, FrameRange, RamLayout};
use snapshot::{
    Compression, Cpu, Description, Disk, DiskFile, Kind as Stored, Lane, Left, Options, Snapshot,
    SnapshotError, Time, Totals, Writer,
};

use super::wire::{CONTENTS_MAX, HEADER, Header, KEPT, Kind};
use super::{DiskIdentity, MachineState, SavedError, open};

/// What a snapshot is to be.
#[derive(Clone, Debug, Default)]
pub struct DraftOptions {
    /// Of the memory image.
    pub compression: Compression,
    /// The snapshot that it adds to.
    pub parent: Option<Arc<Snapshot>>,
    /// How many streams; each is compressed on a thread of its own.
    pub lanes: usize,
}

/// A new snapshot, until it is whole. Dropped before that, it leaves nothing behind.
pub struct Draft {
    writer: Writer,
    parent: Option<Arc<Snapshot>>,
    memory: RamLayout,
    lanes: Vec<UnixStream>,
    path: String,
}

/// How far it is.
#[derive(Debug, Default)]
pub struct Progress {
    /// Frames that were told.
    pub frames: AtomicU32,
    /// Those of them that were written.
    pub written: AtomicU32,
}

/// A snapshot that is whole.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its frames by kind.
    pub frames: Totals,
    /// Bytes of its memory image, without holes.
    pub image_bytes: u64,
}

impl Draft {
    /// Begins a snapshot at `path` of a machine with so much memory. The sockets are for the VM: give them away.
    ///
    /// # Errors
    /// Something that is no snapshot is there, or the host refuses.
    pub fn create(
        path: &Path,
        memory_bytes: u64,
        options: DraftOptions,
    ) -> Result<(Self, Vec<OwnedFd>), SavedError> {
        let refused = |what: String| SavedError::Damaged { path: path.to_owned(), what };
        let layout = RamLayout::new(memory_bytes).map_err(|error| refused(error.to_string()))?;
        let DraftOptions { compression, parent, lanes } = options;
        let how = Options { compression, parent: parent.clone(), ..Options::new(layout) };
        let writer = Writer::create(path, how)?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..lanes.max(1) {
            let (near, far) = UnixStream::pair().map_err(SavedError::file(path))?;
            ours.push(near);
            theirs.push(OwnedFd::from(far));
        }
        let path = path.display().to_string();
        Ok((Self { writer, parent, memory: layout, lanes: ours, path }, theirs))
    }

    /// Takes what the VM sends, and makes the snapshot whole.
    ///
    /// # Errors
    /// The VM failed or sent what cannot be, or the host refuses. There is no snapshot then, and what was at its path
    /// before is there still; the VM learns of it.
    pub fn keep(self, progress: &Progress) -> Result<Kept, SavedError> {
        let Self { writer, parent, memory, lanes, path } = self;
        let take = |stream: &UnixStream| -> Result<Taken, SavedError> {
            let lane = writer.lane()?;
            let (writer, parent, path) = (&writer, parent.as_deref(), path.as_str());
            Taking { memory, writer, parent, stream, path, progress }.take(lane)
        };
        let taken = thread::scope(|scope| {
            let threads: Vec<_> =
                lanes.iter().map(|stream| scope.spawn(|| hang_up_after(stream, take))).collect();
            let gone = |_| Err(SavedError::Stream("a thread that saves has panicked".into()));
            let ended = threads.into_iter().map(|thread| thread.join().unwrap_or_else(gone));
            let (taken, failed): (Vec<_>, Vec<_>) = ended.partition(Result::is_ok);
            // What a lane says of the host tells more than that the other end has gone.
            let worst =
                failed.into_iter().filter_map(Result::err).min_by_key(SavedError::is_of_the_stream);
            worst.map_or(Ok(taken), Err)
        })?;
        let first = taken.into_iter().filter_map(Result::ok).find(|taken| taken.machine.is_some());
        let Taken { machine, needed } = first.unwrap_or_default();
        let json = machine.ok_or_else(|| SavedError::Stream("no state came".into()))?;
        let state = open::parse_state(Path::new(&path), &json)?;
        let saved = writer.finish(describe(&state), &json, &needed)?;
        // It is whole, whoever listens.
        let _ = (&lanes[0]).write_all(&[KEPT]);
        if let Some(old) = saved.old {
            tracing::warn!("{}: the old snapshot could not be removed: remove it", old.display());
        }
        Ok(Kept { frames: saved.frames, image_bytes: saved.image_bytes })
    }
}

/// A lane that fails lets the VM know at once: it may be blocked on it.
fn hang_up_after<T>(
    stream: &UnixStream,
    take: impl Fn(&UnixStream) -> Result<T, SavedError>,
) -> Result<T, SavedError> {
    let taken = take(stream);
    if taken.is_err() {
        // It is gone then, too.
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
    taken
}

/// What was on a lane beside frames.
#[derive(Default)]
struct Taken {
    machine: Option<Vec<u8>>,
    needed: Vec<Frame>,
}

struct Taking<'a> {
    memory: RamLayout,
    writer: &'a Writer,
    parent: Option<&'a Snapshot>,
    stream: &'a UnixStream,
    path: &'a str,
    progress: &'a Progress,
}

impl Taking<'_> {
    /// Until the end of the stream.
    fn take(&self, mut lane: Lane) -> Result<Taken, SavedError> {
        let mut taken = Taken::default();
        let mut contents = vec![0; CONTENTS_MAX as usize * FRAME_SIZE];
        let mut from = io::BufReader::with_capacity(HEADER, self.stream);
        loop {
            let header = Header::read(&mut from).map_err(broken)?;
            let frames = header.frames();
            match header.kind {
                Kind::Contents => {
                    let contents = &mut contents[..header.follows()];
                    from.read_exact(contents).map_err(broken)?;
                    for (frame, page) in frames.frames().zip(contents.as_chunks().0) {
                        self.store(&mut lane, frame, page)?;
                    }
                }
                Kind::Zero => self.writer.leave(frames, Left::Zero)?,
                Kind::Free => self.writer.leave(frames, Left::Free)?,
                Kind::Ballooned => self.writer.leave(frames, Left::Ballooned)?,
                Kind::Unchanged => self.writer.unchanged(frames)?,
                Kind::Machine => {
                    let mut json = vec![0; header.follows()];
                    from.read_exact(&mut json).map_err(broken)?;
                    taken.machine = Some(json);
                    continue;
                }
                Kind::Needed => {
                    let most = self.memory.frames() as usize;
                    if taken.needed.len() + frames.count as usize > most {
                        return Err(SavedError::Stream(format!("more than {most} frames needed")));
                    }
                    taken.needed.extend(frames.frames());
                    continue;
                }
                Kind::End => break,
            }
            self.progress.frames.fetch_add(frames.count, Ordering::Relaxed);
        }
        lane.finish()?;
        Ok(taken)
    }

    fn store(
        &self,
        lane: &mut Lane,
        frame: Frame,
        page: &[u8; FRAME_SIZE],
    ) -> Result<(), SavedError> {
        if let Some(parent) = self.parent
            && matches!(parent.kind(frame), Some(Stored::Stored | Stored::Parent))
        {
            let mut before = [0; FRAME_SIZE];
            // One that cannot be read is not relied on.
            if parent.read(frame, &mut before).is_ok() && before == *page {
                return Ok(self.writer.unchanged(FrameRange { first: frame, count: 1 })?);
            }
        }
        self.progress.written.fetch_add(1, Ordering::Relaxed);
        match lane.write(frame, page) {
            Err(SnapshotError::Bug(what)) => {
                Err(SavedError::Stream(format!("for {}: {what}", self.path)))
            }
            done => Ok(done?),
        }
    }
}

fn broken(error: io::Error) -> SavedError {
    SavedError::Stream(match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            "the VM stopped in the middle".to_owned()
        }
        _ => error.to_string(),
    })
}

/// What the manifest says of it.
fn describe(state: &MachineState) -> Description {
    let disks = state.config.disks.iter().zip(&state.disks);
    let disk = |(config, written): (&crate::config::DiskConfig, &DiskIdentity)| {
        let file = |identity: &DiskIdentity| DiskFile {
            path: identity.path.display().to_string(),
            bytes: identity.len,
            modified: time(identity.modified_ns),
            generation: 0,
        };
        let image = super::capture::identity(&config.path).ok();
        Disk {
            image: file(image.as_ref().unwrap_or(written)),
            overlay: config.overlay.is_some().then(|| file(written)),
            read_only: config.read_only,
        }
    };
    Description {
        saved_at: time(state.clock.unix_ns),
        writer: format!("fathom {}", env!("CARGO_PKG_VERSION")),
        engine: state.engine.clone(),
        cpu: Cpu { model: state.config.cpu_model.name().to_owned(), features: Vec::new() },
        vcpus: state.config.cpus,
        machine_version: state.version,
        disks: disks.map(disk).collect(),
        generation: None,
    }
}

fn time(unix_ns: u64) -> Time {
    let (seconds, nanoseconds) = (unix_ns / 1_000_000_000, unix_ns % 1_000_000_000);
    Time { seconds: i64::try_from(seconds).unwrap_or(i64::MAX), nanoseconds: nanoseconds as u32 }
}
