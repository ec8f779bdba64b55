//! Lines of bounded length.

use std::fmt;
use std::io::{self, ErrorKind, Read};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::LINE_MAX;

const CHUNK: usize = 4096;

/// Why there is no line.
#[derive(Debug)]
pub enum LineError {
    /// It is longer than [`LINE_MAX`].
    TooLong,
    /// The stream ended in the middle of one.
    Cut,
    /// It is not what it should be.
    Malformed(serde_json::Error),
    /// The stream failed.
    Io(io::Error),
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "a line of more than {LINE_MAX} bytes"),
            Self::Cut => write!(f, "the stream ended within a line"),
            Self::Malformed(error) => write!(f, "not a line of this protocol: {error}"),
            Self::Io(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for LineError {}

impl From<io::Error> for LineError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// One object, with a line feed.
///
/// # Errors
/// It is too long.
pub fn to_line(value: &impl Serialize) -> Result<Vec<u8>, LineError> {
    let mut line = serde_json::to_vec(value).map_err(LineError::Malformed)?;
    line.push(b'\n');
    if line.len() > LINE_MAX { Err(LineError::TooLong) } else { Ok(line) }
}

/// The object of a line.
///
/// # Errors
/// It is another one, or none.
pub fn from_line<T: DeserializeOwned>(line: &[u8]) -> Result<T, LineError> {
    serde_json::from_slice(line).map_err(LineError::Malformed)
}

/// A stream, line by line.
#[derive(Debug)]
pub struct Lines<R> {
    stream: R,
    /// What came behind the last line.
    ahead: Vec<u8>,
}

impl<R> Lines<R> {
    /// From where `stream` is.
    pub fn new(stream: R) -> Self {
        Self { stream, ahead: Vec::new() }
    }

    /// The stream, to write to.
    pub fn stream(&mut self) -> &mut R {
        &mut self.stream
    }
}

impl<R: Read> Lines<R> {
    /// The next line without its line feed; `None` at the end of the stream. `before_read` may set a time
    /// limit, or end it by an error: it is called before each read.
    ///
    /// # Errors
    /// The line is longer than `max`, or cut short, or reading failed.
    pub fn next(
        &mut self,
        max: usize,
        mut before_read: impl FnMut(&R) -> io::Result<()>,
    ) -> Result<Option<Vec<u8>>, LineError> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.ahead[searched..].iter().position(|&byte| byte == b'\n') {
                let end = searched + at;
                if end >= max {
                    return Err(LineError::TooLong);
                }
                let rest = self.ahead.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.ahead, rest);
                line.pop();
                return Ok(Some(line));
            }
            searched = self.ahead.len();
            if searched >= max {
                return Err(LineError::TooLong);
            }
            before_read(&self.stream)?;
            let mut chunk = [0; CHUNK];
            match self.stream.read(&mut chunk) {
                Ok(0) if self.ahead.is_empty() => return Ok(None),
                Ok(0) => return Err(LineError::Cut),
                Ok(count) => self.ahead.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8], max: usize) -> (Vec<Vec<u8>>, Option<LineError>) {
        let mut lines = Lines::new(bytes);
        let mut found = Vec::new();
        loop {
            match lines.next(max, |_| Ok(())) {
                Ok(Some(line)) => found.push(line),
                Ok(None) => return (found, None),
                Err(error) => return (found, Some(error)),
            }
        }
    }

    #[test]
    fn lines_come_one_by_one() {
        let (found, error) = lines(b"a\n\nbcd\n", 4);
        assert_eq!(found, [b"a".to_vec(), vec![], b"bcd".to_vec()]);
        assert!(error.is_none());
        // Longer than what is read at a time.
        let long = [vec![b'x'; 3 * CHUNK], vec![b'\n'], vec![b'y'], vec![b'\n']].concat();
        assert_eq!(lines(&long, LINE_MAX).0.len(), 2);
    }

    #[test]
    fn a_line_that_is_too_long_or_cut_is_none() {
        assert!(matches!(lines(b"abcd\n", 4).1, Some(LineError::TooLong)));
        assert!(matches!(lines(&[b'x'; 3 * CHUNK], CHUNK).1, Some(LineError::TooLong)));
        let (found, error) = lines(b"a\nb", 4);
        assert_eq!((found.len(), matches!(error, Some(LineError::Cut))), (1, true));
    }

    #[test]
    fn whoever_reads_can_give_up() {
        let mut lines = Lines::new(io::repeat(b'x'));
        let mut left = 3;
        let late = |_: &io::Repeat| {
            left -= 1;
            if left == 0 { Err(ErrorKind::TimedOut.into()) } else { Ok(()) }
        };
        let error = lines.next(LINE_MAX, late).expect_err("given up");
        assert!(matches!(error, LineError::Io(error) if error.kind() == ErrorKind::TimedOut));
    }
}
