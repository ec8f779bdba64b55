//! An offline profile: which blocks were translated in an earlier run.
//!
//! A line a block, 16 hexadecimal digits: a hash of its bytes and of its place in its page. The same code is known
//! again wherever in memory it lies.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::Arc;

/// Blocks that were translated in an earlier run.
#[derive(Clone, Debug, Default)]
pub struct Profile(HashSet<u64>);

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It cannot be read.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// It was not written by an engine of this kind.
    #[error(
        "line {line} is {text:?}: a profile has 16 hexadecimal digits a line, as profile-out writes them"
    )]
    Line {
        /// From 1.
        line: usize,
        /// What stands there instead.
        text: String,
    },
}

/// Lines are no longer, line feed included.
const LINE: u64 = 17;

impl Profile {
    /// As [`TranslateEngine::with_profile_out`](crate::TranslateEngine::with_profile_out) wrote it.
    ///
    /// # Errors
    /// See [`ProfileError`].
    pub fn read(source: impl Read) -> Result<Self, ProfileError> {
        let mut source = BufReader::new(source);
        let (mut keys, mut text, mut line) = (HashSet::new(), Vec::new(), 0);
        loop {
            line += 1;
            text.clear();
            if source.by_ref().take(LINE).read_until(b'\n', &mut text)? == 0 {
                return Ok(Self(keys));
            }
            let key = str::from_utf8(&text).ok().and_then(|text| text.strip_suffix('\n'));
            let key = key.filter(|digits| digits.len() == 16 && !digits.starts_with('+'));
            let key = key.and_then(|digits| u64::from_str_radix(digits, 16).ok());
            let text = || String::from_utf8_lossy(&text).into_owned();
            keys.insert(key.ok_or_else(|| ProfileError::Line { line, text: text() })?);
        }
    }

    pub(crate) fn has(&self, key: u64) -> bool {
        self.0.contains(&key)
    }
}

/// Writes a profile. Shared by the VMs of an engine.
#[derive(Debug)]
pub(crate) struct Recorder(Arc<File>);

impl Recorder {
    pub(crate) fn new(file: Arc<File>) -> Self {
        Self(file)
    }

    pub(crate) fn add(&self, key: u64) {
        // One write, so that vCPUs do not mix theirs. Whoever finds less in it has a full disk.
        let _ = (&*self.0).write_all(format!("{key:016x}\n").as_bytes());
    }
}

/// Stands for `code` at physical address `start`, in whichever page (FNV-1a, 64 bits: of a hundred thousand blocks
/// no two are alike by chance).
pub(crate) fn key(start: u64, code: &[u8]) -> u64 {
    let place = (start as u16 & 0xfff).to_le_bytes();
    place.iter().chain(code).fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Seek;

    use super::*;

    #[test]
    fn what_is_recorded_is_known_again() {
        let mut file = tempfile::tempfile().expect("file");
        let recorder = Recorder::new(Arc::new(file.try_clone().expect("file")));
        let keys = [key(0x1234, b"code"), key(0x2234, b"code"), key(0x1235, b"code"), 7];
        keys.iter().for_each(|&key| recorder.add(key));
        file.rewind().expect("start");
        let profile = Profile::read(file).expect("profile");
        assert_eq!(keys[0], keys[1], "the page does not count");
        assert_ne!(keys[0], keys[2], "the place in it does");
        assert!(keys.iter().all(|&key| profile.has(key)) && profile.0.len() == 3);
        assert!(!profile.has(key(0x1234, b"codf")));
    }

    #[test]
    fn what_is_no_profile_is_refused() {
        let wrong = [
            "x\n",
            "0123456789abcde\n",
            "0123456789abcdef",
            "0123456789abcdef0\n",
            "+123456789abcdef\n",
        ];
        for text in wrong {
            let text = format!("0123456789abcdef\n{text}");
            let error = Profile::read(text.as_bytes()).expect_err(&text).to_string();
            assert!(error.starts_with("line 2 is"), "{error}");
        }
        assert!(Profile::read(&b""[..]).is_ok());
    }
}
