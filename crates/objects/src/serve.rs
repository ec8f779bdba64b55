//! The process that has the store: answers questions of one VM until it hangs up.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use memory::Frame;
use remote::wire::{self, Answer, Ask, MESSAGE_MAX, PACKET, PIECE, Question};
use snapshot::PARTS;
use tokio::runtime::Runtime;
use tokio::sync::{OnceCell, Semaphore};

use crate::blocks::{Blocks, Urgency};
use crate::error::{Failure, ObjectsError};
use crate::layout::{self, Generation, Packed, Part, Piece};
use crate::location::Location;
use crate::pull::keep_learnt;

/// Who asks is told that there is no answer yet after so long, and asks again: meanwhile its VM stands and can be
/// paused and ended, which it could not while a thread of it hangs in a question. The fetch itself goes on.
const PATIENCE: Duration = Duration::from_secs(2);
/// Questions that are looked after at a time.
const AT_A_TIME: usize = 64;

/// What is read of the store on one thread more than these two is not faster.
pub(crate) fn runtime() -> Result<Runtime, ObjectsError> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(|error| ObjectsError::Host("start threads", error))
}

/// Hears something.
pub type Tell = Box<dyn Fn(&str) + Send + Sync>;

/// Who else has answered over the socket.
pub enum Place {
    /// Nobody. Before the first answer it hears of which snapshot and ancestors they will all be, by their identities.
    First(Tell),
    /// One that has died: what it has not answered is asked for again. It had told that, if it came so far.
    After(Option<String>),
}

/// Answers what comes over `socket`, of a [`remote::pair`], about the snapshot at `location` and its ancestors, and nothing
/// else of the store. A store that cannot be opened is an answer, too. Returns when the other end has gone.
///
/// # Errors
/// The host refuses a thread, or what comes is no question.
pub fn serve(location: &Location, socket: OwnedFd, place: Place) -> Result<(), ObjectsError> {
    let runtime = runtime()?;
    let socket = Arc::new(File::from(socket));
    if let Place::After(_) = place {
        let said = (&*socket).write(&wire::again());
        said.map_err(|error| ObjectsError::Host("say that it has begun", error))?;
    }
    let service = Arc::new(Service {
        location: location.clone(),
        place,
        opened: OnceCell::new(),
        answering: Mutex::default(),
        socket: Arc::clone(&socket),
    });
    // Before anybody asks. Where it fails, who asks tries again, and is told why.
    runtime.spawn({
        let service = Arc::clone(&service);
        async move { drop(service.opened().await) }
    });
    let room = Arc::new(Semaphore::new(AT_A_TIME));
    let mut learning = Learning::default();
    let mut packet = vec![0; PACKET];
    let asked = loop {
        let (question, more) = match read_question(&socket, &mut packet) {
            Ok(Some(question)) => question,
            Ok(None) => break Ok(()),
            Err(error) => break Err(ObjectsError::Host("read a question", error)),
        };
        let service = Arc::clone(&service);
        if let Ask::Learnt { offset, bytes } = question.ask {
            match learning.add(offset, bytes, more) {
                Ok(None) => {}
                Ok(Some(learnt)) => {
                    learning.kept.push(runtime.spawn(async move { service.keep(learnt).await }));
                }
                Err(error) => break Err(ObjectsError::Host("read a question", error)),
            }
            continue;
        }
        let turn = runtime.block_on(Arc::clone(&room).acquire_owned());
        runtime.spawn(async move {
            let come = service.come(&question).await;
            // Who has gone wants no answer.
            let _ = service.answer(question.number, come);
            drop(turn);
        });
    };
    // The VM has ended, perhaps, and what it learnt is not yet kept. Nobody hears how that goes.
    for kept in learning.kept {
        match runtime.block_on(kept) {
            Ok(Err(error)) => tracing::warn!("{error}: what was learnt is lost"),
            Err(error) => tracing::warn!("{error}: what was learnt is lost"),
            Ok(Ok(())) => {}
        }
    }
    runtime.shutdown_background();
    asked
}

/// `None` at the end.
fn read_question<'a>(
    socket: &File,
    packet: &'a mut [u8],
) -> io::Result<Option<(Question, &'a [u8])>> {
    let bytes = loop {
        match (&mut &*socket).read(packet) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // It ended with answers that it had not read.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break 0,
            read => break read?,
        }
    };
    if bytes == 0 { Ok(None) } else { Question::decode(&packet[..bytes]).map(Some) }
}

/// What the guest needs first, as it comes in pieces.
#[derive(Default)]
struct Learning {
    come: Vec<u8>,
    kept: Vec<tokio::task::JoinHandle<Result<(), Failure>>>,
}

impl Learning {
    /// All of it, once it is there. Of who is told the rest of what another one was told, nothing.
    fn add(&mut self, offset: u64, bytes: u32, piece: &[u8]) -> io::Result<Option<Vec<u8>>> {
        // One restore learns once; more is of a VM that was broken into.
        if !self.kept.is_empty() {
            return Err(io::Error::new(ErrorKind::InvalidData, "learnt twice"));
        }
        if offset != self.come.len() as u64 {
            return Ok(None);
        }
        self.come.extend_from_slice(piece);
        let whole = self.come.len() >= bytes as usize;
        Ok(whole.then(|| std::mem::take(&mut self.come)))
    }
}

struct Service {
    location: Location,
    place: Place,
    opened: OnceCell<Opened>,
    /// One answer at a time.
    answering: Mutex<()>,
    socket: Arc<File>,
}

struct Opened {
    blocks: Arc<Blocks>,
    generations: Vec<Generation>,
}

impl Service {
    async fn opened(&self) -> Result<&Opened, Failure> {
        let open = || async {
            let opened = Opened::open(&self.location).await;
            let opened = opened.map_err(|error| match error {
                ObjectsError::Store { operation, url, failure } => {
                    Failure::new(failure.kind, format!("{operation} {url}: {failure}"))
                }
                other => Failure::new(ErrorKind::Other, other.to_string()),
            })?;
            let identities = opened.identities();
            match &self.place {
                Place::First(tell) => tell(&identities),
                Place::After(Some(before)) if *before != identities => {
                    let what = "another snapshot is there now: put the one back that this VM is of";
                    return Err(Failure::new(
                        ErrorKind::Other,
                        format!("{}: {what}", self.location),
                    ));
                }
                Place::After(_) => {}
            }
            Ok(opened)
        };
        self.opened.get_or_try_init(open).await
    }

    async fn come(&self, question: &Question) -> Result<Bytes, Failure> {
        let Ask::Read { .. } = question.ask else { return self.come_of(question).await };
        tokio::time::timeout(PATIENCE, self.come_of(question)).await.unwrap_or_else(|_| {
            let what = format!("no answer of the store within {} s", PATIENCE.as_secs());
            Err(Failure::new(ErrorKind::TimedOut, what))
        })
    }

    async fn come_of(&self, question: &Question) -> Result<Bytes, Failure> {
        let opened = self.opened().await?;
        let generation = opened.generations.get(usize::from(question.generation));
        let part = generation.and_then(|it| it.parts.get(usize::from(question.part))?.as_ref());
        let part = part.ok_or_else(|| Failure::new(ErrorKind::NotFound, "no such part"))?;
        match question.ask {
            Ask::Open => {
                opened.expect(part);
                Ok(Bytes::copy_from_slice(&part.bytes().to_le_bytes()))
            }
            // Has come elsewhere.
            Ask::Learnt { .. } => Ok(Bytes::new()),
            Ask::Read { offset, bytes } => {
                let end = offset.checked_add(u64::from(bytes));
                if end.is_none_or(|end| end > part.bytes()) {
                    return Err(Failure::new(ErrorKind::UnexpectedEof, "past the part's end"));
                }
                let urgency = if question.ahead { Urgency::Ahead } else { Urgency::Demand };
                opened.read(part, offset, u64::from(bytes), urgency).await
            }
        }
    }

    /// On a thread that may wait for the store.
    async fn keep(&self, learnt: Vec<u8>) -> Result<(), Failure> {
        let location = self.location.clone();
        let kept = tokio::task::spawn_blocking(move || {
            let words = learnt.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
            keep_learnt(&location, &words.map(Frame).collect::<Vec<_>>())
        });
        let failed = |what: String| Failure::new(ErrorKind::Other, what);
        let kept = kept.await.map_err(|error| failed(error.to_string()))?;
        kept.map_err(|error| failed(error.to_string()))
    }

    fn answer(&self, number: u32, come: Result<Bytes, Failure>) -> io::Result<()> {
        let (failed, bytes) = match come {
            Ok(bytes) => (None, bytes),
            Err(Failure { kind, message }) => {
                let message: String = message.chars().take(MESSAGE_MAX / 4).collect();
                (Some(kind), message.into())
            }
        };
        let mut at = 0;
        loop {
            let piece = &bytes[at..bytes.len().min(at + PIECE)];
            let head = Answer { number, failed, bytes: bytes.len() as u32, at: at as u32 };
            let packet = [&head.encode()[..], piece].concat();
            // Only for as long: who waits for less than others does not wait for all of theirs.
            let turn = self.answering.lock().unwrap_or_else(PoisonError::into_inner);
            (&*self.socket).write_all(&packet)?;
            drop(turn);
            at += piece.len();
            if at == bytes.len() {
                return Ok(());
            }
        }
    }
}

impl Opened {
    async fn open(location: &Location) -> Result<Self, ObjectsError> {
        let store = location.store()?;
        let generations = layout::generations(&*store, location).await?;
        let opened = Self { blocks: Blocks::new(store), generations };
        // All that is read before a guest runs, at once. What of the memory is wanted is not known yet.
        let first = opened.generations.first().into_iter().flat_map(|first| &first.parts);
        for (part, name) in first.zip(PARTS) {
            if let Some(part) = part.as_ref().filter(|_| name != layout::MEMORY) {
                opened.expect(part);
            }
        }
        Ok(opened)
    }

    /// It will be read from its beginning.
    fn expect(&self, part: &Part) {
        if let Part::Object(object) = part {
            self.blocks.want_first(object);
        }
    }

    /// Which snapshot it is, and which its ancestors are.
    fn identities(&self) -> String {
        let identities = self.generations.iter().map(|generation| generation.id.to_string());
        identities.collect::<Vec<_>>().join(",")
    }

    async fn read(
        &self,
        part: &Part,
        offset: u64,
        bytes: u64,
        urgency: Urgency,
    ) -> Result<Bytes, Failure> {
        match part {
            Part::Here(all) => Ok(all.slice(offset as usize..(offset + bytes) as usize)),
            Part::Object(object) => self.blocks.read(object, offset..offset + bytes, urgency).await,
            Part::Packed(packed) => self.read_packed(packed, offset, bytes, urgency).await,
        }
    }

    async fn read_packed(
        &self,
        packed: &Packed,
        offset: u64,
        bytes: u64,
        urgency: Urgency,
    ) -> Result<Bytes, Failure> {
        let mut read = Vec::with_capacity(bytes as usize);
        for piece in packed.pieces(offset, bytes) {
            match piece {
                Piece::Hole(bytes) => read.resize(read.len() + bytes as usize, 0),
                Piece::Packed { at, bytes } => {
                    let come = self.blocks.read(&packed.object, at..at + bytes, urgency).await?;
                    read.extend_from_slice(&come);
                }
            }
        }
        Ok(read.into())
    }
}
