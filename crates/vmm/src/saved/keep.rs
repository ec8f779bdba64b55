//! A machine that is sent, written into a snapshot: by the process of who asked, with its rights and on its time.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use memory::{DiskBlock, FRAME_SIZE, Frame, FrameRange, RamLayout};
use snapshot::{
    Compression, Cpu, Description, Disk, DiskBlocks, DiskFile, Kind as Stored, Lane, Left, Options,
    Sharing, Snapshot, SnapshotError, Time, Totals, Writer,
};

use super::images::Images;
use super::stream::Stream;
use super::wire::{CONTENTS_MAX, HEADER, Header, KEPT, Kind, ORIGIN, decode_origin};
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
    /// With what it has contents in common, if they are to be stored once.
    pub sharing: Option<Sharing>,
    /// Whether an agent in the guest has made it ready to be started many times.
    pub agent: bool,
}

/// A new snapshot, until it is whole. Dropped before that, it leaves nothing behind.
pub struct Draft {
    writer: Writer,
    parent: Option<Arc<Snapshot>>,
    memory: RamLayout,
    lanes: Vec<Stream>,
    path: String,
    agent: bool,
    /// Where frames may have been read from.
    images: OnceLock<Arc<Images>>,
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
    /// Bytes that others have, or that it has twice, and that are not in it.
    pub shared_bytes: u64,
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
        Self::create_by(path, memory_bytes, options, |path, how| Writer::create(path, how))
    }

    /// The same on a file system that refuses.
    #[cfg(test)]
    pub(super) fn create_refused(
        path: &Path,
        memory_bytes: u64,
        options: DraftOptions,
        host: &snapshot::testing::Refusing,
    ) -> Result<(Self, Vec<OwnedFd>), SavedError> {
        let create = |path: &Path, how| Writer::create_refused(path, how, host);
        Self::create_by(path, memory_bytes, options, create)
    }

    fn create_by(
        path: &Path,
        memory_bytes: u64,
        options: DraftOptions,
        create: impl FnOnce(&Path, Options) -> Result<Writer, SnapshotError>,
    ) -> Result<(Self, Vec<OwnedFd>), SavedError> {
        let refused = |what: String| SavedError::Damaged { path: path.to_owned(), what };
        let layout = RamLayout::new(memory_bytes).map_err(|error| refused(error.to_string()))?;
        let DraftOptions { compression, parent, lanes, sharing, agent } = options;
        let how = Options { compression, parent: parent.clone(), sharing, ..Options::new(layout) };
        // Contents that VMs are to have in common are all in memory.
        let images = if how.sharing.is_some() {
            OnceLock::from(Arc::new(Images::that_can_be_read(&[])))
        } else {
            OnceLock::new()
        };
        let writer = create(path, how)?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..lanes.max(1) {
            let (near, far) = UnixStream::pair().map_err(SavedError::file(path))?;
            ours.push(Stream::from(near));
            theirs.push(OwnedFd::from(far));
        }
        let path = path.display().to_string();
        Ok((Self { writer, parent, memory: layout, lanes: ours, path, agent, images }, theirs))
    }

    /// Has reads and writes of its sockets fail.
    #[cfg(test)]
    pub(super) fn plant(&mut self, faults: &super::stream::faults::Faults) {
        self.lanes.iter_mut().for_each(|lane| lane.faults = faults.clone());
    }

    /// Takes what the VM sends, and makes the snapshot whole.
    ///
    /// # Errors
    /// The VM failed or sent what cannot be, or the host refuses. There is no snapshot then, and what was at its path
    /// before is there still; the VM learns of it.
    pub fn keep(self, progress: &Progress) -> Result<Kept, SavedError> {
        self.keep_as(progress, |_| Ok(()))
    }

    /// The same; `amend` changes the state before it is written. The guest stands meanwhile, unless it was saved live, and
    /// its disks are as it knows them.
    ///
    /// # Errors
    /// As of [`Draft::keep`], or `amend`'s.
    pub fn keep_as(
        self,
        progress: &Progress,
        amend: impl FnOnce(&mut MachineState) -> Result<(), SavedError>,
    ) -> Result<Kept, SavedError> {
        let Self { writer, parent, memory, lanes, path, agent, images } = self;
        let take = |stream: &Stream| -> Result<Taken, SavedError> {
            let lane = writer.lane()?;
            let (writer, parent, path) = (&writer, parent.as_deref(), path.as_str());
            let images = &images;
            Taking { memory, writer, parent, images, stream, path, progress }.take(lane)
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
        if let Some(images) = images.into_inner() {
            writer.set_disks(images);
        }
        let mut json = machine.ok_or_else(|| SavedError::Stream("no state came".into()))?;
        let mut state = open::parse_state(Path::new(&path), &json)?;
        let sent = state.clone();
        amend(&mut state)?;
        if state != sent {
            json = state.to_json()?;
        }
        let description = Description { agent, ..describe(&state) };
        let saved = writer.finish(description, &json, &needed)?;
        // It is whole, whoever listens.
        let _ = (&lanes[0]).write_all(&[KEPT]);
        Ok(Kept::of(&saved))
    }
}

impl Kept {
    pub(super) fn of(saved: &snapshot::Saved) -> Self {
        if let Some(old) = &saved.old {
            tracing::warn!("{}: the old snapshot could not be removed: remove it", old.display());
        }
        let (image_bytes, shared_bytes) = (saved.image_bytes, saved.shared_bytes);
        Self { frames: saved.frames, image_bytes, shared_bytes }
    }
}

/// A lane that fails lets the VM know at once: it may be blocked on it.
fn hang_up_after<T>(
    stream: &Stream,
    take: impl Fn(&Stream) -> Result<T, SavedError>,
) -> Result<T, SavedError> {
    let taken = take(stream);
    if taken.is_err() {
        stream.hang_up();
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
    /// Where frames may have been read from.
    images: &'a OnceLock<Arc<Images>>,
    stream: &'a Stream,
    path: &'a str,
    progress: &'a Progress,
}

impl Taking<'_> {
    /// Until the end of the stream.
    fn take(&self, mut lane: Lane) -> Result<Taken, SavedError> {
        let mut taken = Taken::default();
        let mut contents = vec![0; CONTENTS_MAX as usize * FRAME_SIZE];
        let mut origins: Vec<(FrameRange, DiskBlock)> = Vec::new();
        let mut from = io::BufReader::with_capacity(HEADER, self.stream);
        loop {
            let header = Header::read(&mut from).map_err(broken)?;
            let frames = header.frames();
            match header.kind {
                Kind::Contents => {
                    let contents = &mut contents[..header.follows()];
                    from.read_exact(contents).map_err(broken)?;
                    for (frame, page) in frames.frames().zip(contents.as_chunks().0) {
                        let origin = origins.iter().find(|(frames, _)| frames.contains(frame));
                        let origin = origin.map(|(frames, at)| DiskBlock {
                            block: at.block.saturating_add(u64::from(frame.0 - frames.first.0)),
                            ..*at
                        });
                        self.store(&mut lane, frame, page, origin)?;
                    }
                    origins.clear();
                }
                Kind::Zero => self.writer.leave(frames, Left::Zero)?,
                Kind::Free => self.writer.leave(frames, Left::Free)?,
                Kind::Ballooned => self.writer.leave(frames, Left::Ballooned)?,
                Kind::Disks => {
                    let mut json = vec![0; header.follows()];
                    from.read_exact(&mut json).map_err(broken)?;
                    let paths: Vec<Option<PathBuf>> = serde_json::from_slice(&json)
                        .map_err(|error| SavedError::Stream(format!("disks: {error}")))?;
                    self.images.get_or_init(|| Arc::new(Images::that_can_be_read(&paths)));
                    continue;
                }
                Kind::Origin => {
                    let mut origin = [0; ORIGIN];
                    from.read_exact(&mut origin).map_err(broken)?;
                    if origins.len() == CONTENTS_MAX as usize {
                        let what = "more origins than frames";
                        return Err(SavedError::Stream(what.to_owned()));
                    }
                    origins.extend(decode_origin(origin).map(|origin| (frames, origin)));
                    continue;
                }
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

    /// Whether the image has these contents there: what the VM says, and its guest made it do, is not relied on.
    fn is_there(&self, block: DiskBlock, page: &[u8; FRAME_SIZE]) -> bool {
        let mut on_disk = [0; FRAME_SIZE];
        let images = self.images.get();
        images.is_some_and(|images| images.read(block, &mut on_disk).is_ok()) && on_disk == *page
    }

    fn store(
        &self,
        lane: &mut Lane,
        frame: Frame,
        page: &[u8; FRAME_SIZE],
        origin: Option<DiskBlock>,
    ) -> Result<(), SavedError> {
        if let Some(block) = origin.filter(|block| self.is_there(*block, page)) {
            return Ok(self.writer.leave_on_disk(frame, block, page)?);
        }
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
pub(super) fn describe(state: &MachineState) -> Description {
    let disks = state.config.disks.iter().zip(&state.disks);
    let disk = |(config, written): (&crate::config::DiskConfig, &DiskIdentity)| {
        let file = disk_file;
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
        agent: false,
    }
}

/// As a manifest has it.
pub(super) fn disk_file(identity: &DiskIdentity) -> DiskFile {
    DiskFile {
        path: identity.path.display().to_string(),
        bytes: identity.len,
        modified: time(identity.modified_ns),
        generation: 0,
    }
}

fn time(unix_ns: u64) -> Time {
    let (seconds, nanoseconds) = (unix_ns / 1_000_000_000, unix_ns % 1_000_000_000);
    Time { seconds: i64::try_from(seconds).unwrap_or(i64::MAX), nanoseconds: nanoseconds as u32 }
}
