//! A store that another process reads: the VM's end of the socket.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use memory::Frame;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use snapshot::{PARTS, ReadAt, Store};

use crate::wire::{Answer, Ask, LEARNT_MAX, PACKET, PIECE, Question, READ_MAX, Said};

/// Who asks is told after so long that nothing came, and asks again: meanwhile its VM can be paused and ended. The process at
/// the other end says so itself before that, while it lives.
const LATE: Duration = Duration::from_secs(4);

/// Parts that are read by a few bytes here and there: what came of them is kept, in pieces of this size. They are a
/// 500th of guest memory.
const KEPT_PARTS: [&str; 2] = ["index", "chunks"];
const KEPT_BYTES: u64 = 1 << 16;

/// One snapshot of a store, or an ancestor of it.
pub struct Remote {
    line: Arc<Line>,
    /// 0: the one that was asked for.
    generation: u8,
    name: String,
}

impl Remote {
    /// The snapshot `name` that the process at the other end of `socket`, of a [`pair`], serves.
    pub fn new(socket: OwnedFd, name: impl Into<String>) -> Self {
        for timeout in [Timeout::Recv, Timeout::Send] {
            // Without it somebody waits for longer.
            let _ = set_socket_timeout(&socket, timeout, Some(LATE));
        }
        let line = Line {
            socket: File::from(socket),
            packet: Mutex::new(vec![0; PACKET].into()),
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        Self { line: Arc::new(line), generation: 0, name: name.into() }
    }

    /// What tells the process at the other end which frames the guest needs first. It makes a working set of them, for
    /// which nobody waits: a slow store does not hold up the end of a VM.
    pub fn learner(&self) -> impl FnOnce(&[Frame]) -> io::Result<()> + Send + use<> {
        let line = Arc::clone(&self.line);
        move |frames| {
            let most = LEARNT_MAX as usize / 4;
            let frames = frames.iter().take(most).flat_map(|frame| frame.0.to_le_bytes());
            let learnt: Vec<u8> = frames.collect();
            for (place, piece) in learnt.chunks(PIECE).enumerate() {
                let (offset, bytes) = ((place * PIECE) as u64, learnt.len() as u32);
                let ask = Ask::Learnt { offset, bytes };
                let told = Question { number: 0, generation: 0, part: 0, ahead: true, ask };
                line.say(&[&told.encode()[..], piece].concat())?;
            }
            Ok(())
        }
    }
}

/// The two ends.
///
/// # Errors
/// The host refuses.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

impl Store for Remote {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn ReadAt>> {
        let part =
            PARTS.iter().position(|part| *part == name).ok_or(io::ErrorKind::NotFound)? as u8;
        let bytes = self.line.ask(self.generation, part, Ask::Open)?;
        let bytes = bytes.try_into().map(u64::from_le_bytes);
        let bytes = bytes.map_err(|_| io::Error::other("a length that is none"))?;
        let kept = KEPT_PARTS.contains(&name).then(Mutex::default);
        let (line, generation) = (Arc::clone(&self.line), self.generation);
        Ok(Arc::new(RemotePart { line, generation, part, bytes, kept }))
    }

    fn parent(&self, path: &str) -> io::Result<Box<dyn Store>> {
        let generation = self.generation.checked_add(1).ok_or(io::ErrorKind::NotFound)?;
        let folder = self.name.rsplit_once('/').map_or("", |(folder, _)| folder);
        let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
        let name = format!("{folder}/{name}");
        Ok(Box::new(Self { line: Arc::clone(&self.line), generation, name }))
    }
}

struct RemotePart {
    line: Arc<Line>,
    generation: u8,
    part: u8,
    bytes: u64,
    /// By number of a piece.
    kept: Option<Mutex<HashMap<u64, Arc<Vec<u8>>>>>,
}

impl RemotePart {
    fn ask(&self, offset: u64, bytes: u32) -> io::Result<Vec<u8>> {
        let come = self.line.ask(self.generation, self.part, Ask::Read { offset, bytes })?;
        if come.len() != bytes as usize {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(come)
    }

    fn piece(
        &self,
        kept: &Mutex<HashMap<u64, Arc<Vec<u8>>>>,
        number: u64,
    ) -> io::Result<Arc<Vec<u8>>> {
        let known = || kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(piece) = known().get(&number) {
            return Ok(Arc::clone(piece));
        }
        let at = number * KEPT_BYTES;
        let piece = Arc::new(self.ask(at, (self.bytes - at).min(KEPT_BYTES) as u32)?);
        known().insert(number, Arc::clone(&piece));
        Ok(piece)
    }
}

impl ReadAt for RemotePart {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes)
    }

    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(into.len() as u64);
        if end.is_none_or(|end| end > self.bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut at = offset;
        let mut rest = into;
        while !rest.is_empty() {
            let (from, most) = match &self.kept {
                Some(_) => (at % KEPT_BYTES, KEPT_BYTES - at % KEPT_BYTES),
                None => (0, u64::from(READ_MAX)),
            };
            let (now, later) = rest.split_at_mut(rest.len().min(most as usize));
            match &self.kept {
                Some(kept) => {
                    let piece = self.piece(kept, at / KEPT_BYTES)?;
                    now.copy_from_slice(&piece[from as usize..][..now.len()]);
                }
                None => now.copy_from_slice(&self.ask(at, now.len() as u32)?),
            }
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }
}

/// The socket. Any number of threads ask; of those that wait, one reads answers for all.
struct Line {
    /// Read and written as a file: those calls every thread of a VM may make.
    socket: File,
    /// Who reads has it.
    packet: Mutex<Box<[u8]>>,
    state: Mutex<State>,
    changed: Condvar,
}

type Come = io::Result<Vec<u8>>;

#[derive(Default)]
struct State {
    /// The last question's.
    number: u32,
    /// By the question's number, what has come.
    asked: HashMap<u32, Coming>,
    /// Somebody reads.
    reading: bool,
    /// So often somebody else has begun to answer, who has not heard what was asked before that.
    again: u64,
    /// No more will come, and why.
    over: Option<String>,
}

#[derive(Default)]
struct Coming {
    bytes: Vec<u8>,
    whole: Option<Come>,
}

impl Line {
    fn say(&self, packet: &[u8]) -> io::Result<()> {
        loop {
            match (&self.socket).write(packet) {
                Ok(bytes) if bytes == packet.len() => return Ok(()),
                Ok(_) => return Err(io::Error::other("a packet was cut short")),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(gone(&error)),
            }
        }
    }

    /// Asks, and again where somebody else answers now.
    fn ask(&self, generation: u8, part: u8, ask: Ask) -> Come {
        let ahead = snapshot::is_ahead();
        loop {
            let (number, again) = {
                let mut state = self.state();
                state.number = state.number.wrapping_add(1);
                let number = state.number;
                state.asked.insert(number, Coming::default());
                (number, state.again)
            };
            let said = self.say(&Question { number, generation, part, ahead, ask }.encode());
            // Before a guest runs a store may take its time.
            let patient = ask == Ask::Open;
            let come =
                said.map_or_else(|error| Some(Err(error)), |()| self.wait(number, again, patient));
            self.state().asked.remove(&number);
            if let Some(come) = come {
                return come;
            }
        }
    }

    /// The answer to a question that was asked when it was `again`; `None` where it is to be asked once more.
    fn wait(&self, number: u32, again: u64, patient: bool) -> Option<Come> {
        let mut state = self.state();
        loop {
            if let Some(come) = state.asked.get_mut(&number).and_then(|coming| coming.whole.take())
            {
                return Some(come);
            }
            if let Some(why) = &state.over {
                return Some(Err(io::Error::new(io::ErrorKind::BrokenPipe, why.clone())));
            }
            if state.again != again {
                return None;
            }
            if state.reading {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.reading = true;
            drop(state);
            let mut packet = self.packet.lock().unwrap_or_else(PoisonError::into_inner);
            let read = (&self.socket).read(&mut packet);
            state = self.state();
            state.reading = false;
            let heard = read.and_then(|bytes| match bytes {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                _ => Ok(state.hear(Said::decode(&packet[..bytes])?)),
            });
            // Before another one reads, who needs it.
            drop(packet);
            match heard {
                // The next piece is this one's to read, too.
                Ok(false) => continue,
                Ok(true) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && patient => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.changed.notify_all();
                    return Some(Err(gone(&error)));
                }
                Err(error) => state.over = Some(gone(&error).to_string()),
            }
            self.changed.notify_all();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether that is something to those who wait.
    fn hear(&mut self, said: Said<'_>) -> bool {
        let (Answer { number, failed, bytes, at }, piece) = match said {
            Said::Again => {
                self.again += 1;
                return true;
            }
            Said::Piece(answer, piece) => (answer, piece),
        };
        // Nobody waits for it any more.
        let Some(coming) = self.asked.get_mut(&number) else { return false };
        if at as usize != coming.bytes.len() {
            coming.whole = Some(Err(io::Error::other("pieces of an answer out of order")));
            return true;
        }
        coming.bytes.extend_from_slice(piece);
        if coming.bytes.len() < bytes as usize {
            return false;
        }
        let come = std::mem::take(&mut coming.bytes);
        coming.whole = Some(match failed {
            None => Ok(come),
            Some(kind) => Err(io::Error::new(kind, String::from_utf8_lossy(&come).into_owned())),
        });
        true
    }
}

/// Where it has ended, who starts it again has, too: what it has not sent is lost to this VM.
fn gone(error: &io::Error) -> io::Error {
    let what = match error.kind() {
        io::ErrorKind::WouldBlock => {
            let what = format!(
                "no answer of the process that reads the store within {} s",
                LATE.as_secs()
            );
            return io::Error::new(io::ErrorKind::TimedOut, what);
        }
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset => {
            "the process that reads the store has ended: stop this VM, and restore it again"
                .to_owned()
        }
        _ => format!("the process that reads the store: {error}"),
    };
    io::Error::new(io::ErrorKind::BrokenPipe, what)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::wire;

    /// The end of a process that answers.
    struct Far(File);

    impl Far {
        fn next(&self) -> Question {
            let mut packet = [0; PACKET];
            let bytes = (&self.0).read(&mut packet).expect("read");
            Question::decode(&packet[..bytes]).expect("a question").0
        }

        fn say(&self, number: u32, failed: Option<io::ErrorKind>, bytes: &[u8]) {
            self.piece(Answer { number, failed, bytes: bytes.len() as u32, at: 0 }, bytes);
        }

        fn piece(&self, answer: Answer, piece: &[u8]) {
            let packet = [&answer.encode()[..], piece].concat();
            assert_eq!((&self.0).write(&packet).expect("said"), packet.len());
        }
    }

    /// A process that answers what it is told to, in the order given.
    fn served(answer: impl Fn(Far) + Send + 'static) -> Remote {
        let (near, far) = pair().expect("a pair");
        thread::spawn(move || answer(Far(far.into())));
        Remote::new(near, "s3://bucket/web")
    }

    #[test]
    fn answers_find_who_asked_in_any_order() {
        let remote = served(|far| {
            let opened = far.next();
            far.say(opened.number, None, &(1u64 << 30).to_le_bytes());
            let mut asked: Vec<Question> = (0..8).map(|_| far.next()).collect();
            asked.sort_by_key(|question| std::cmp::Reverse(question.number));
            // In two pieces each, and the pieces mixed.
            for at in [0, 60] {
                for question in &asked {
                    let Ask::Read { offset, bytes } = question.ask else { panic!("{question:?}") };
                    let answer = Answer { number: question.number, failed: None, bytes, at };
                    let length = (bytes - at).min(60) as usize;
                    far.piece(answer, &vec![offset as u8; length]);
                }
            }
        });
        let part = remote.open("memory").expect("open");
        thread::scope(|scope| {
            for byte in 0..8u8 {
                let part = &part;
                scope.spawn(move || {
                    let mut into = [0; 100];
                    part.read_exact_at(&mut into, u64::from(byte)).expect("read");
                    assert_eq!(into, [byte; 100]);
                });
            }
        });
    }

    #[test]
    fn an_error_is_of_its_kind_and_an_end_is_for_ever() {
        let remote = served(|far| {
            far.say(far.next().number, None, &100u64.to_le_bytes());
            far.say(far.next().number, Some(io::ErrorKind::TimedOut), b"no answer");
            far.say(far.next().number, None, &[1; 3]);
        });
        remote.open("no part").map(drop).expect_err("no such part");
        let part = remote.open("memory").expect("open");
        assert_eq!(part.len().expect("a length"), 100);
        let read = |bytes: usize, at| part.read_exact_at(&mut vec![0; bytes], at);
        let past = read(2, 99).expect_err("past the end");
        assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof);
        read(2, u64::MAX).expect_err("past the end");
        let late = read(4, 0).expect_err("no answer");
        assert_eq!((late.kind(), late.to_string()), (io::ErrorKind::TimedOut, "no answer".into()));
        read(4, 0).expect_err("three bytes of four");
        for _ in 0..2 {
            let over = read(4, 0).expect_err("gone").to_string();
            assert!(over.contains("has ended"), "{over}");
        }
    }

    /// Whoever answered has died with some questions read, half an answer given and other questions not yet read.
    #[test]
    fn who_comes_after_it_is_asked_again() {
        let remote = served(|far| {
            far.say(far.next().number, None, &(1u64 << 30).to_le_bytes());
            let asked: Vec<Question> = (0..4).map(|_| far.next()).collect();
            let [half, ..] = asked[..] else { panic!("{asked:?}") };
            far.piece(Answer { number: half.number, failed: None, bytes: 100, at: 0 }, &[9; 50]);
            assert_eq!((&far.0).write(&wire::again()).expect("said"), wire::ANSWER);
            for _ in 0..4 {
                let question = far.next();
                assert!(asked.iter().all(|before| before.number != question.number));
                let Ask::Read { offset, bytes } = question.ask else { panic!("{question:?}") };
                assert!(question.ahead == (offset == 3), "{question:?}");
                // Late, of the one before it.
                far.say(half.number, None, &[9; 100]);
                far.say(question.number, None, &vec![offset as u8; bytes as usize]);
            }
        });
        let part = remote.open("memory").expect("open");
        thread::scope(|scope| {
            for byte in 0..4u8 {
                let part = &part;
                scope.spawn(move || {
                    if byte == 3 {
                        snapshot::read_ahead();
                    }
                    let mut into = [0; 100];
                    part.read_exact_at(&mut into, u64::from(byte)).expect("read");
                    assert_eq!(into, [byte; 100]);
                });
            }
        });
    }
}
