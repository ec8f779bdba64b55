//! A machine that stands, sent to who keeps it.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use insight::kernel::FreeFrames;
use memory::{
    Epoch, FRAME_SIZE, Frame, FrameRange, FrameState, FreezeError, Frozen, GuestMemory, ReadError,
    ReadView, is_zero,
};

use super::MachineState;
use super::live::{self, KeptFrames};
use super::wire::{CONTENTS_MAX, HEADER, Header, KEPT, Kind};

/// Frames that a lane takes at once, as many as are told in one go of a plain image's order.
/// A multiple of the largest block that a kernel calls free.
const TAKE: u32 = 1024;
/// Bytes of frames that the guest has overwritten and that have not been sent yet, at most.
const QUEUE: usize = 64 << 20;

/// Where a machine is sent.
#[derive(Debug)]
pub struct SaveLanes(Vec<UnixStream>);

impl SaveLanes {
    /// More are refused: a machine has no use for them.
    pub const MAX: usize = 16;

    /// From sockets that came with a request.
    ///
    /// # Errors
    /// There are none, or too many.
    pub fn new(sockets: Vec<OwnedFd>) -> Result<Self, String> {
        match sockets.len() {
            1..=Self::MAX => Ok(Self(sockets.into_iter().map(UnixStream::from).collect())),
            found => Err(format!("{found} sockets came along, expected 1 to {}", Self::MAX)),
        }
    }

    /// Sends all frames, one thread a lane, and then the state; how many frames had contents. Nobody writes to memory
    /// meanwhile.
    pub(super) fn send(
        &self,
        memory: &Arc<GuestMemory>,
        known: &Known,
        state: &MachineState,
    ) -> io::Result<u32> {
        let json = serde_json::to_vec(state)?;
        let next = AtomicU32::new(0);
        let stored = AtomicU32::new(0);
        let run = |lane: &UnixStream| -> io::Result<()> {
            let mut lane = Lane::new(lane, memory, known);
            let frames = memory.layout().frames();
            loop {
                let first = next.fetch_add(TAKE, Ordering::Relaxed);
                if first >= frames {
                    break;
                }
                lane.send(first..frames.min(first + TAKE))?;
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
        self.send_last(&known.needed(memory), &json)?;
        Ok(stored.into_inner())
    }

    /// Sends the memory as it was when it was `frozen`, while the guest goes on, and then the state of that moment; how
    /// many frames had contents.
    pub(crate) fn send_frozen(&self, frozen: &FrozenMachine) -> io::Result<u32> {
        let FrozenMachine { frozen, kept, left, needed, state } = frozen;
        let json = serde_json::to_vec(state)?;
        let memory = frozen.memory();
        let given: Vec<AtomicBool> = left.iter().map(|_| AtomicBool::new(false)).collect();
        let known = Known::default();
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
        live::copy(frozen, kept, sinks.collect()).map_err(io::Error::other)?;
        lanes.iter_mut().try_for_each(Lane::flush)?;
        for (number, (given, &kind)) in given.iter().zip(left).enumerate() {
            if !given.load(Ordering::Relaxed) {
                lanes[0].leave(kind, Frame(number as u32))?;
            }
        }
        lanes[0].flush_without()?;
        let stored = lanes.iter().map(|lane| lane.stored).sum();
        self.send_last(needed, &json)?;
        Ok(stored)
    }

    fn send_last(&self, needed: &[Frame], json: &[u8]) -> io::Result<()> {
        let mut first = io::BufWriter::new(self.first());
        for run in FrameRange::coalesce(needed, u32::MAX) {
            Header::of(Kind::Needed, run).write(&mut first)?;
        }
        Header { kind: Kind::Machine, first: 0, count: json.len() as u32 }.write(&mut first)?;
        first.write_all(json)?;
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

    fn first(&self) -> &UnixStream {
        &self.0[0]
    }
}

/// What is known of the guest's memory when it is sent.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// By which its kernel's free frames are known, whose contents are nobody's.
    pub(crate) free: Option<Mutex<FreeFrames>>,
    /// What was accessed in this epoch and later is what it needs first.
    pub(crate) since: Option<Epoch>,
}

impl Known {
    /// For a thread.
    fn free(&self) -> Option<FreeFrames> {
        let free = self.free.as_ref()?;
        Some(free.lock().unwrap_or_else(PoisonError::into_inner).anew())
    }

    fn needed(&self, memory: &GuestMemory) -> Vec<Frame> {
        let Some(since) = self.since else { return Vec::new() };
        let needed =
            |frame: &Frame| memory.facts(*frame).is_some_and(|facts| facts.accessed >= since);
        (0..memory.layout().frames()).map(Frame).filter(needed).collect()
    }
}

/// A machine of one moment, whose guest goes on. Dropped, it holds nobody up any more.
pub(crate) struct FrozenMachine {
    frozen: Frozen,
    kept: Arc<KeptFrames>,
    /// As what each frame is told that has no contents: those of free ones are nobody's.
    left: Vec<Kind>,
    needed: Vec<Frame>,
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
        let needed = known.needed(memory);
        let (keeper, kept) = live::queue(QUEUE);
        let frozen = memory.freeze(Box::new(keeper))?;
        Ok(Self { frozen, kept, left, needed, state })
    }
}

/// One stream, and what is to go on it.
struct Lane<'a> {
    free: Option<FreeFrames>,
    to: &'a UnixStream,
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
    fn new(to: &'a UnixStream, memory: &'a Arc<GuestMemory>, known: &Known) -> Self {
        let contents = vec![0; HEADER + CONTENTS_MAX as usize * FRAME_SIZE];
        let view = ReadView::new(Arc::clone(memory));
        Self {
            free: known.free(),
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

    fn send(&mut self, frames: Range<u32>) -> io::Result<()> {
        let in_buddy = |free: &FreeFrames| free.in_buddy(frames.clone());
        let free = self.free.as_ref().map_or(Vec::new(), in_buddy);
        for (index, number) in frames.enumerate() {
            let frame = Frame(number);
            let state = self.memory.facts(frame).map(|facts| facts.state);
            match state {
                Some(FrameState::Ballooned) => self.leave(Kind::Ballooned, frame)?,
                Some(FrameState::Untouched) | None => self.leave(Kind::Zero, frame)?,
                Some(_) if free.get(index) == Some(&true) => self.leave(Kind::Free, frame)?,
                Some(FrameState::Resident | FrameState::Absent(_)) => self.take(frame)?,
            }
        }
        self.flush()?;
        self.flush_without()
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
        let header = Header::of(Kind::Contents, frames);
        self.contents[..HEADER].copy_from_slice(&header.encode());
        (&mut &*self.to).write_all(&self.contents[..HEADER + header.follows()])
    }
}
