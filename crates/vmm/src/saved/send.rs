//! A machine that stands, sent to who keeps it.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use insight::kernel::FreeFrames;
use memory::{
    DiskBlock, FRAME_SIZE, Frame, FrameRange, FrameState, FreezeError, Frozen, GuestMemory,
    ReadError, ReadView, is_zero,
};

use super::MachineState;
use super::live::{self, KeptFrames};
use super::stream::Stream;
use super::wire::{CONTENTS_MAX, HEADER, Header, KEPT, Kind, encode_origin};

/// Frames that a lane takes at once, as many as are told in one go of a plain image's order.
/// A multiple of the largest block that a kernel calls free.
const TAKE: u32 = 1024;
/// Bytes of frames that the guest has overwritten and that have not been sent yet, at most.
const QUEUE: usize = 64 << 20;

/// Where a machine is sent.
#[derive(Debug)]
pub struct SaveLanes(Vec<Stream>);

impl SaveLanes {
    /// More are refused: a machine has no use for them.
    pub const MAX: usize = 16;

    /// From sockets that came with a request.
    ///
    /// # Errors
    /// There are none, or too many.
    pub fn new(sockets: Vec<OwnedFd>) -> Result<Self, String> {
        match sockets.len() {
            1..=Self::MAX => {
                let streams = sockets.into_iter().map(UnixStream::from);
                Ok(Self(streams.map(Stream::from).collect()))
            }
            found => Err(format!("{found} sockets came along, expected 1 to {}", Self::MAX)),
        }
    }

    /// Has reads and writes fail.
    #[cfg(test)]
    pub(super) fn plant(&mut self, faults: &super::stream::faults::Faults) {
        self.0.iter_mut().for_each(|lane| lane.faults = faults.clone());
    }

    /// Sends all frames, one thread a lane; how many had contents. Nobody writes to memory meanwhile.
    pub(super) fn send(&self, memory: &Arc<GuestMemory>, known: &Known) -> io::Result<u32> {
        self.send_disks(&known.images)?;
        let frames = memory.layout().frames();
        let together = Together::new(&known.together, frames);
        let next = AtomicU32::new(0);
        let stored = AtomicU32::new(0);
        let run = |lane: &Stream| -> io::Result<()> {
            let mut lane = Lane::new(lane, memory, known);
            while let Some(piece) = together.take() {
                lane.send_in_order(piece)?;
            }
            loop {
                let first = next.fetch_add(TAKE, Ordering::Relaxed);
                if first >= frames {
                    break;
                }
                lane.send(first..frames.min(first + TAKE), &together)?;
            }
            stored.fetch_add(lane.stored, Ordering::Relaxed);
            Ok(())
        };
        let done = thread::scope(|scope| {
            let start = |(number, lane)| {
                let builder = thread::Builder::new().name(format!("save{number}"));
                builder.spawn_scoped(scope, move || run(lane))
            };
            let threads: Vec<_> = self.0.iter().enumerate().map(start).collect();
            let ended = threads.into_iter().map(|thread| {
                let gone = |_| Err(io::Error::other("a thread that saves has panicked"));
                thread?.join().unwrap_or_else(gone)
            });
            // All of them, whichever fails.
            ended.fold(Ok(()), io::Result::and)
        });
        done?;
        Ok(stored.into_inner())
    }

    /// Sends the memory as it was when it was frozen, while the guest goes on; how many frames had contents, and the
    /// state of that moment. The guest is held up no more then.
    pub(crate) fn send_frozen(&self, frozen: FrozenMachine) -> io::Result<(u32, MachineState)> {
        let FrozenMachine { frozen, kept, left, known, state } = frozen;
        let left = &left;
        let memory = frozen.memory();
        let given: Vec<AtomicBool> = left.iter().map(|_| AtomicBool::new(false)).collect();
        self.send_disks(&known.images)?;
        let mut lanes: Vec<Lane<'_>> =
            self.0.iter().map(|lane| Lane::new(lane, memory, &known)).collect();
        let given = &given;
        let sinks = lanes.iter_mut().map(|lane| {
            move |frame: Frame, contents: &[u8; FRAME_SIZE]| {
                // Of one that is free or in the balloon nobody wants them.
                if left[frame.index()] == Kind::Zero {
                    lane.give(frame, contents)?;
                    given[frame.index()].store(true, Ordering::Relaxed);
                }
                Ok(())
            }
        });
        live::copy(&frozen, &kept, sinks.collect()).map_err(io::Error::other)?;
        lanes.iter_mut().try_for_each(Lane::flush)?;
        for (number, (given, &kind)) in given.iter().zip(left).enumerate() {
            if !given.load(Ordering::Relaxed) {
                lanes[0].leave(kind, Frame(number as u32))?;
            }
        }
        lanes[0].flush_without()?;
        let stored = lanes.iter().map(|lane| lane.stored).sum();
        Ok((stored, state))
    }

    /// On each lane, since frames of any may be from any disk.
    fn send_disks(&self, images: &[Option<PathBuf>]) -> io::Result<()> {
        if images.iter().all(Option::is_none) {
            return Ok(());
        }
        let json = serde_json::to_vec(images)?;
        let header = Header { kind: Kind::Disks, first: 0, count: json.len() as u32 };
        self.0.iter().try_for_each(|mut lane| {
            header.write(lane)?;
            lane.write_all(&json)
        })
    }

    /// What the guest needs first, in that order, and the state; all frames have been sent.
    pub(crate) fn send_last(&self, needed: &[Frame], state: &MachineState) -> io::Result<()> {
        let json = serde_json::to_vec(state)?;
        let mut first = io::BufWriter::new(self.first());
        for run in FrameRange::coalesce(needed, u32::MAX) {
            Header::of(Kind::Needed, run).write(&mut first)?;
        }
        Header { kind: Kind::Machine, first: 0, count: json.len() as u32 }.write(&mut first)?;
        first.write_all(&json)?;
        first.flush()?;
        self.0.iter().try_for_each(|lane| Header::END.write(lane))
    }

    /// Waits until it is kept.
    pub(crate) fn wait_until_kept(&self) -> io::Result<()> {
        let mut answer = [0];
        match self.first().read_exact(&mut answer) {
            Ok(()) if answer == [KEPT] => Ok(()),
            Ok(()) => Err(io::Error::new(io::ErrorKind::InvalidData, "a strange answer")),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(io::Error::other("who asked for it has not kept it"))
            }
            Err(error) => Err(error),
        }
    }

    fn first(&self) -> &Stream {
        &self.0[0]
    }
}

/// What is known of the guest's memory when it is sent.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// By which its kernel's free frames are known, whose contents are nobody's.
    pub(crate) free: Option<Mutex<FreeFrames>>,
    /// Of each disk the image, if what was read from there can be read there again.
    pub(crate) images: Vec<Option<PathBuf>>,
    /// Frames that are sent first, in this order, each once.
    pub(crate) together: Vec<Frame>,
}

impl Known {
    /// For a thread.
    fn free(&self) -> Option<FreeFrames> {
        let free = self.free.as_ref()?;
        Some(free.lock().unwrap_or_else(PoisonError::into_inner).anew())
    }
}

/// Frames that are sent first, a piece to who asks next.
struct Together<'a> {
    order: &'a [Frame],
    listed: Vec<bool>,
    next: AtomicUsize,
}

impl<'a> Together<'a> {
    /// Of `frames` frames.
    fn new(order: &'a [Frame], frames: u32) -> Self {
        let mut listed = vec![false; if order.is_empty() { 0 } else { frames as usize }];
        for frame in order {
            listed[frame.index()] = true;
        }
        Self { order, listed, next: AtomicUsize::new(0) }
    }

    fn take(&self) -> Option<&'a [Frame]> {
        let first = self.next.fetch_add(TAKE as usize, Ordering::Relaxed);
        let end = self.order.len().min(first.saturating_add(TAKE as usize));
        self.order.get(first..end).filter(|piece| !piece.is_empty())
    }

    fn has(&self, frame: Frame) -> bool {
        self.listed.get(frame.index()) == Some(&true)
    }
}

/// A machine of one moment, whose guest goes on. Dropped, it holds nobody up any more.
pub(crate) struct FrozenMachine {
    frozen: Frozen,
    kept: Arc<KeptFrames>,
    /// As what each frame is told that has no contents: those of free ones are nobody's.
    left: Vec<Kind>,
    known: Known,
    state: MachineState,
}

impl FrozenMachine {
    /// Of a machine that stands, and may go on when this returns.
    pub(super) fn new(
        memory: &Arc<GuestMemory>,
        known: &Known,
        state: MachineState,
    ) -> Result<Self, FreezeError> {
        let frames = memory.layout().frames();
        let free = known.free().map_or(Vec::new(), |free| free.in_buddy(0..frames));
        let kind = |number: u32| match memory.facts(Frame(number)).map(|facts| facts.state) {
            Some(FrameState::Ballooned) => Kind::Ballooned,
            Some(FrameState::Resident | FrameState::Absent(_))
                if free.get(number as usize) == Some(&true) =>
            {
                Kind::Free
            }
            _ => Kind::Zero,
        };
        let left = (0..frames).map(kind).collect();
        let (keeper, kept) = live::queue(QUEUE);
        let frozen = memory.freeze(Box::new(keeper))?;
        let known = Known { images: known.images.clone(), ..Known::default() };
        Ok(Self { frozen, kept, left, known, state })
    }
}

/// One stream, and what is to go on it.
struct Lane<'a> {
    free: Option<FreeFrames>,
    images: &'a [Option<PathBuf>],
    to: &'a Stream,
    memory: &'a Arc<GuestMemory>,
    view: ReadView,
    /// A header and the contents of neighbours.
    contents: Vec<u8>,
    first: u32,
    held: u32,
    /// Neighbours without contents.
    without: Option<Header>,
    stored: u32,
}

impl<'a> Lane<'a> {
    fn new(to: &'a Stream, memory: &'a Arc<GuestMemory>, known: &'a Known) -> Self {
        let contents = vec![0; HEADER + CONTENTS_MAX as usize * FRAME_SIZE];
        let view = ReadView::new(Arc::clone(memory));
        Self {
            free: known.free(),
            images: &known.images,
            to,
            memory,
            view,
            contents,
            first: 0,
            held: 0,
            without: None,
            stored: 0,
        }
    }

    /// These, whatever their numbers.
    fn send_in_order(&mut self, frames: &[Frame]) -> io::Result<()> {
        for &frame in frames {
            // That its kernel has freed it since is no harm: then it is saved in vain.
            self.send_one(frame, false)?;
        }
        self.flush()?;
        self.flush_without()
    }

    /// Those that are not listed.
    fn send(&mut self, frames: Range<u32>, listed: &Together<'_>) -> io::Result<()> {
        let in_buddy = |free: &FreeFrames| free.in_buddy(frames.clone());
        let free = self.free.as_ref().map_or(Vec::new(), in_buddy);
        for (index, number) in frames.enumerate() {
            if !listed.has(Frame(number)) {
                self.send_one(Frame(number), free.get(index) == Some(&true))?;
            }
        }
        self.flush()?;
        self.flush_without()
    }

    fn send_one(&mut self, frame: Frame, is_free: bool) -> io::Result<()> {
        match self.memory.facts(frame).map(|facts| facts.state) {
            Some(FrameState::Ballooned) => self.leave(Kind::Ballooned, frame),
            Some(FrameState::Untouched) | None => self.leave(Kind::Zero, frame),
            Some(_) if is_free => self.leave(Kind::Free, frame),
            Some(FrameState::Resident | FrameState::Absent(_)) => self.take(frame),
        }
    }

    /// Its contents, unless it is all zeros.
    fn take(&mut self, frame: Frame) -> io::Result<()> {
        let gpa = self.memory.gpa_of(frame).ok_or(io::ErrorKind::InvalidInput)?;
        let at = self.room_for(frame)?;
        let page = self.contents[at..].first_chunk_mut().ok_or(io::ErrorKind::InvalidInput)?;
        loop {
            match self.view.read(gpa, page) {
                // Unless it has been fetched since.
                Err(ReadError::Absent(_)) => {
                    if self.memory.read_absent(frame, page).map_err(io::Error::other)? {
                        break;
                    }
                }
                read => break read.map_err(io::Error::other)?,
            }
        }
        if is_zero(page) {
            return self.leave(Kind::Zero, frame);
        }
        self.held += 1;
        self.stored += 1;
        Ok(())
    }

    /// These contents.
    fn give(&mut self, frame: Frame, contents: &[u8; FRAME_SIZE]) -> io::Result<()> {
        let at = self.room_for(frame)?;
        self.contents[at..at + FRAME_SIZE].copy_from_slice(contents);
        self.held += 1;
        self.stored += 1;
        Ok(())
    }

    /// Where the contents of the next frame go: behind its neighbour's.
    fn room_for(&mut self, frame: Frame) -> io::Result<usize> {
        if self.held == CONTENTS_MAX || (self.held > 0 && self.first + self.held != frame.0) {
            self.flush()?;
        }
        if self.held == 0 {
            self.first = frame.0;
        }
        Ok(HEADER + self.held as usize * FRAME_SIZE)
    }

    fn leave(&mut self, kind: Kind, frame: Frame) -> io::Result<()> {
        match &mut self.without {
            Some(run) if run.kind == kind && run.first + run.count == frame.0 => run.count += 1,
            _ => {
                self.flush_without()?;
                self.without = Some(Header { kind, first: frame.0, count: 1 });
            }
        }
        Ok(())
    }

    fn flush_without(&mut self) -> io::Result<()> {
        self.without.take().map_or(Ok(()), |run| run.write(self.to))
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.held == 0 {
            return Ok(());
        }
        let frames = FrameRange { first: Frame(self.first), count: std::mem::take(&mut self.held) };
        self.tell_origins(frames)?;
        let header = Header::of(Kind::Contents, frames);
        self.contents[..HEADER].copy_from_slice(&header.encode());
        (&mut &*self.to).write_all(&self.contents[..HEADER + header.follows()])
    }

    /// Where these may have been read from.
    fn tell_origins(&self, frames: FrameRange) -> io::Result<()> {
        let mut told = Vec::new();
        let mut tell = |run: Option<(FrameRange, DiskBlock)>| {
            if let Some((frames, block)) = run {
                told.extend_from_slice(&Header::of(Kind::Origin, frames).encode());
                told.extend_from_slice(&encode_origin(block));
            }
        };
        let mut run: Option<(FrameRange, DiskBlock)> = None;
        for frame in frames.frames() {
            let origin = self.memory.origin(frame);
            let is_known =
                |at: &DiskBlock| self.images.get(usize::from(at.disk)).is_some_and(Option::is_some);
            let Some(block) = origin.filter(is_known) else { continue };
            if let Some((frames, first)) = &mut run
                && frames.first.0 + frames.count == frame.0
                && *first
                    == (DiskBlock {
                        block: block.block - u64::from(frames.count).min(block.block),
                        ..block
                    })
            {
                frames.count += 1;
                continue;
            }
            tell(run.replace((FrameRange { first: frame, count: 1 }, block)));
        }
        tell(run);
        (&mut &*self.to).write_all(&told)
    }
}
