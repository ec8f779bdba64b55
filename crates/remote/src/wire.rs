//! What goes between a VM's process and the one that reads the store for it: questions one way, answers the other. The
//! socket is of sequenced packets (unix(7)): whichever end dies, in the middle of whatever, none is ever cut in two, and who
//! comes in the place of the one that read the store goes on.
//!
//! A question is a packet that begins with 24 bytes, little-endian:
//!
//! | bytes | |
//! |---|---|
//! | 0 to 3 | number, which its answer has, too |
//! | 4 | 1: open, answered by the part's length, 8 bytes; 2: read; 3: learnt, what the guest needs first, not answered |
//! | 5 | 0: the snapshot itself, 1: its parent, ... |
//! | 6 | which part: its place in [`snapshot::PARTS`] |
//! | 7 | 1: nobody waits for it yet; 0 |
//! | 8 to 15 | read from here; of 3, where in what was learnt the piece belongs that follows |
//! | 16 to 19 | so many bytes, at most [`READ_MAX`]; of 3, of all that was learnt, at most [`LEARNT_MAX`] |
//! | 20 to 23 | 0 |
//!
//! What was learnt are frame numbers of 4 bytes, behind the 24 bytes, at most [`PIECE`] bytes in one packet.
//!
//! An answer is one or more packets of 16 bytes and at most [`PIECE`] bytes of contents each: number, how it went, how many
//! bytes the whole answer has, where in it these are, in order. Where it failed, they are a message. Those of several
//! answers come mixed. How it went is [`AGAIN`] in a packet that is no answer: another process reads the store now, and what
//! was not answered is to be asked for again.

use std::io::{self, ErrorKind};

/// Bytes that are read by one question at most.
pub const READ_MAX: u32 = 1 << 20;
/// Bytes of what was learnt: of a working set of 64 GiB.
pub const LEARNT_MAX: u32 = 64 << 20;
/// Bytes of a message.
pub const MESSAGE_MAX: usize = 1 << 12;
/// Bytes of contents in one packet. Some fit into a socket of the usual size.
pub const PIECE: usize = 60 << 10;
/// Bytes at the beginning of a question.
pub const QUESTION: usize = 24;
/// Bytes at the beginning of an answer.
pub const ANSWER: usize = 16;
/// No packet is longer.
pub const PACKET: usize = PIECE + QUESTION;
/// See the module.
pub const AGAIN: u32 = u32::MAX;
/// It went well.
const WELL: u32 = 0;
/// How it went, by number from 1 on.
const KINDS: [ErrorKind; 6] = [
    ErrorKind::Other,
    ErrorKind::NotFound,
    ErrorKind::PermissionDenied,
    ErrorKind::UnexpectedEof,
    ErrorKind::TimedOut,
    ErrorKind::InvalidInput,
];

/// What is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ask {
    /// The length of a part.
    Open,
    /// Bytes of it.
    Read {
        /// From here.
        offset: u64,
        /// So many.
        bytes: u32,
    },
    /// Nothing: something is told.
    Learnt {
        /// Where the piece belongs that follows.
        offset: u64,
        /// Of all pieces.
        bytes: u32,
    },
}

/// The first bytes of a question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Question {
    /// Which its answer has, too.
    pub number: u32,
    /// 0: the snapshot itself, 1: its parent.
    pub generation: u8,
    /// Its place in [`snapshot::PARTS`].
    pub part: u8,
    /// Nobody waits for it yet: it comes after what somebody waits for.
    pub ahead: bool,
    /// What is wanted.
    pub ask: Ask,
}

/// The first bytes of a packet of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The question's.
    pub number: u32,
    /// `None`: it went well.
    pub failed: Option<ErrorKind>,
    /// Of the whole answer.
    pub bytes: u32,
    /// Where in it this packet's are.
    pub at: u32,
}

/// What comes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Said<'a> {
    /// See [`AGAIN`].
    Again,
    /// A piece of an answer.
    Piece(Answer, &'a [u8]),
}

fn invalid(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word))
}

impl Question {
    /// As it goes over the socket.
    #[must_use]
    pub fn encode(&self) -> [u8; QUESTION] {
        let (kind, offset, bytes) = match self.ask {
            Ask::Open => (1, 0, 0),
            Ask::Read { offset, bytes } => (2, offset, bytes),
            Ask::Learnt { offset, bytes } => (3, offset, bytes),
        };
        let mut encoded = [0; QUESTION];
        encoded[..4].copy_from_slice(&self.number.to_le_bytes());
        encoded[4..8].copy_from_slice(&[kind, self.generation, self.part, self.ahead.into()]);
        encoded[8..16].copy_from_slice(&offset.to_le_bytes());
        encoded[16..20].copy_from_slice(&bytes.to_le_bytes());
        encoded
    }

    /// What a packet says, and what follows the question in it.
    ///
    /// # Errors
    /// It is no question.
    pub fn decode(packet: &[u8]) -> io::Result<(Self, &[u8])> {
        let (head, rest) = packet
            .split_first_chunk::<QUESTION>()
            .ok_or_else(|| invalid(format!("a question of {} bytes", packet.len())))?;
        let offset = head[8..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let bytes = word(head, 16);
        let ask = match head[4] {
            1 => Ask::Open,
            2 if bytes <= READ_MAX => Ask::Read { offset, bytes },
            2 => return Err(invalid(format!("{bytes} bytes asked for, at most {READ_MAX}"))),
            3 if bytes <= LEARNT_MAX => Ask::Learnt { offset, bytes },
            3 => return Err(invalid(format!("{bytes} bytes learnt, at most {LEARNT_MAX}"))),
            other => return Err(invalid(format!("question of kind {other}"))),
        };
        if !rest.is_empty() && !matches!(ask, Ask::Learnt { .. }) {
            return Err(invalid(format!("{} bytes behind a question", rest.len())));
        }
        let [generation, part, ahead] = [head[5], head[6], head[7]];
        Ok((Self { number: word(head, 0), generation, part, ahead: ahead != 0, ask }, rest))
    }
}

impl Answer {
    /// As it goes over the socket.
    #[must_use]
    pub fn encode(&self) -> [u8; ANSWER] {
        let place = |kind| KINDS.iter().position(|known| *known == kind).unwrap_or(0);
        let failed = self.failed.map_or(WELL, |kind| place(kind) as u32 + 1);
        words([self.number, failed, self.bytes, self.at])
    }
}

impl<'a> Said<'a> {
    /// What a packet says.
    ///
    /// # Errors
    /// It is nothing that can be.
    pub fn decode(packet: &'a [u8]) -> io::Result<Self> {
        let (head, rest) = packet
            .split_first_chunk::<ANSWER>()
            .ok_or_else(|| invalid(format!("an answer of {} bytes", packet.len())))?;
        let [number, how, bytes, at] = [0, 4, 8, 12].map(|place| word(head, place));
        let failed = match how {
            AGAIN => return Ok(Self::Again),
            WELL => None,
            number => {
                let kind = KINDS.get(number as usize - 1);
                Some(*kind.ok_or_else(|| invalid(format!("answer of kind {number}")))?)
            }
        };
        if bytes > READ_MAX {
            return Err(invalid(format!("answer of {bytes} bytes, at most {READ_MAX}")));
        }
        let end = u64::from(at) + rest.len() as u64;
        if end > u64::from(bytes) {
            return Err(invalid(format!("bytes up to {end} of an answer of {bytes}")));
        }
        Ok(Self::Piece(Answer { number, failed, bytes, at }, rest))
    }
}

/// The packet that says that another process reads now.
#[must_use]
pub fn again() -> [u8; ANSWER] {
    words([0, AGAIN, 0, 0])
}

fn words(words: [u32; 4]) -> [u8; ANSWER] {
    let mut encoded = [0; ANSWER];
    for (place, word) in encoded.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *place = word.to_le_bytes();
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let ask = Ask::Read { offset: 1 << 40, bytes: READ_MAX };
        let question = Question { number: 7, generation: 3, part: 4, ahead: true, ask };
        assert_eq!(Question::decode(&question.encode()).expect("read"), (question, &[][..]));
        let open = Question { ask: Ask::Open, ahead: false, ..question };
        assert_eq!(Question::decode(&open.encode()).expect("read"), (open, &[][..]));
        let learnt = Question { ask: Ask::Learnt { offset: 4, bytes: 8 }, ..question };
        let packet = [&learnt.encode()[..], &[1, 2, 3, 4]].concat();
        assert_eq!(Question::decode(&packet).expect("read"), (learnt, &[1, 2, 3, 4][..]));
        for failed in KINDS.map(Some).into_iter().chain([None]) {
            let answer = Answer { number: 9, failed, bytes: 12, at: 8 };
            let packet = [&answer.encode()[..], &[5; 4]].concat();
            let said = Said::decode(&packet).expect("read");
            assert_eq!(said, Said::Piece(answer, &[5; 4]));
        }
        assert_eq!(Said::decode(&again()).expect("read"), Said::Again);
    }

    #[test]
    fn what_cannot_be_is_an_error() {
        let ask = Ask::Read { offset: 0, bytes: READ_MAX + 1 };
        let much = Question { number: 0, generation: 0, part: 0, ahead: false, ask };
        Question::decode(&much.encode()).expect_err("too much");
        let much = Question { ask: Ask::Learnt { offset: 0, bytes: LEARNT_MAX + 1 }, ..much };
        Question::decode(&much.encode()).expect_err("too much");
        let open = Question { ask: Ask::Open, ..much }.encode();
        Question::decode(&open[1..]).expect_err("too short");
        Question::decode(&[&open[..], &[0]].concat()).expect_err("more behind it");
        Question::decode(&[9; QUESTION]).expect_err("no such kind");
        Said::decode(&[9; ANSWER]).expect_err("no such kind");
        Said::decode(&[0; ANSWER - 1]).expect_err("too short");
        let answer = Answer { number: 0, failed: None, bytes: READ_MAX + 1, at: 0 };
        Said::decode(&answer.encode()).expect_err("too much");
        let answer = Answer { number: 0, failed: None, bytes: 4, at: u32::MAX };
        let packet = [&answer.encode()[..], &[1]].concat();
        Said::decode(&packet).expect_err("past its end");
    }
}
