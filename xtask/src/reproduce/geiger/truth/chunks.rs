//! What the guest wrote to the disk for events: chunks of a page that says what follows, and 15 pages of that
//! (guest/src/cache/drain.rs).

use super::PAGE;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::Read;
use std::path::Path;

const MAGIC: &[u8] = b"FATHOMPC";
const CHUNK: usize = 16 * PAGE;
const EVENTS: u32 = 1;
const TEXT: u32 = 2;
const LAST: u32 = 3;

/// All that the guest wrote.
#[derive(Default)]
pub(super) struct Written {
    /// Pages of each processor's ring buffer, in the order in which they were read.
    pub(super) rings: Vec<Vec<u8>>,
    pub(super) text: String,
}

impl Written {
    pub(super) fn read(disk: &Path) -> Result<Self> {
        let file = File::open(disk).with_context(|| format!("open {}", disk.display()))?;
        Self::from(file).with_context(|| format!("{}", disk.display()))
    }

    fn from(mut source: impl Read) -> Result<Self> {
        let (mut written, mut text) = (Self::default(), Vec::new());
        let mut chunk = vec![0; CHUNK];
        loop {
            source.read_exact(&mut chunk).context("what the guest wrote has no end")?;
            let (head, body) = chunk.split_at(PAGE);
            if !head.starts_with(MAGIC) {
                bail!("what the guest wrote has no end: did it run to its own?");
            }
            let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| head[at + byte]));
            let (cpu, length) = (number(12) as usize, number(16) as usize);
            let body = body.get(..length).context("a chunk is longer than it can be")?;
            match number(8) {
                EVENTS => written.ring(cpu)?.extend(body),
                TEXT => text.extend(body),
                LAST => break,
                kind => bail!("a chunk is of kind {kind}"),
            }
        }
        written.text = String::from_utf8(text).context("the guest's text is none")?;
        Ok(written)
    }

    fn ring(&mut self, cpu: usize) -> Result<&mut Vec<u8>> {
        /// As many processors as a guest may have.
        const MOST: usize = 4096;
        if cpu >= MOST {
            bail!("events of processor {cpu}");
        }
        let length = self.rings.len().max(cpu + 1);
        self.rings.resize_with(length, Vec::new);
        Ok(&mut self.rings[cpu])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(kind: u32, cpu: u32, body: &[u8]) -> Vec<u8> {
        let mut chunk = MAGIC.to_vec();
        for number in [kind, cpu, body.len() as u32] {
            chunk.extend(number.to_le_bytes());
        }
        chunk.resize(PAGE, 0);
        chunk.extend(body);
        chunk.resize(CHUNK, 0);
        chunk
    }

    #[test]
    fn chunks_are_put_together_by_what_they_hold() {
        let disk = [
            chunk(1, 1, b"one"),
            chunk(1, 0, b"a"),
            chunk(1, 1, b"two"),
            chunk(2, 0, b"te"),
            chunk(2, 0, b"xt"),
            chunk(3, 0, b""),
            vec![7; CHUNK],
        ];
        let written = Written::from(disk.concat().as_slice()).unwrap();
        assert_eq!(written.rings, [b"a".to_vec(), b"onetwo".to_vec()]);
        assert_eq!(written.text, "text");
    }

    #[test]
    fn an_end_that_is_missing_is_told() {
        assert!(Written::from(chunk(2, 0, b"x").as_slice()).is_err());
        assert!(Written::from([chunk(2, 0, b"x"), vec![0; CHUNK]].concat().as_slice()).is_err());
        let mut long = chunk(1, 0, b"");
        long[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Written::from(long.as_slice()).is_err());
    }
}
