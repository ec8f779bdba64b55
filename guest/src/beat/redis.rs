//! redis, with 200 MiB of values that depend on the nonce; a client asks for one after the other, for some far more
//! often than for others.

use super::{Load, mix, patiently, server};
use crate::random::Random;
use crate::work::program::Root;
use std::io::{BufRead, BufReader, Error, Read, Result, Write};
use std::os::unix::net::UnixStream;

const KEYS: u64 = 204_800;
const VALUE_WORDS: usize = 128;
/// A beat.
const QUERIES: usize = 40;
/// On their way at once while it is filled or read as a whole.
const BATCH: u64 = 256;

pub(super) struct Redis {
    stream: BufReader<UnixStream>,
    nonce: u64,
    random: Random,
}

impl Redis {
    pub(super) fn start(root: &Root, nonce: u64) -> Result<Self> {
        let args = ["--port", "0", "--unixsocket", "/tmp/redis", "--save", ""];
        server(root, "redis-server", &args).spawn()?;
        let socket = root.folder().join("tmp/redis");
        let stream = BufReader::new(patiently(|| UnixStream::connect(&socket))?);
        let mut redis = Self { stream, nonce, random: Random::new() };
        redis.fill()?;
        Ok(redis)
    }

    fn fill(&mut self) -> Result<()> {
        for first in (0..KEYS).step_by(BATCH as usize) {
            let mut request = Vec::new();
            for key in first..first + BATCH {
                let name = key.to_string();
                let value = self.value(key);
                write!(request, "*3\r\n$3\r\nSET\r\n${}\r\n{name}\r\n", name.len())?;
                write!(request, "${}\r\n", value.len())?;
                request.extend(value);
                request.extend(b"\r\n");
            }
            self.stream.get_mut().write_all(&request)?;
            for _ in 0..BATCH {
                self.expect_line("+OK")?;
            }
        }
        Ok(())
    }

    fn value(&self, key: u64) -> Vec<u8> {
        let mut random = Random::from_seed(mix(self.nonce, key) | 1);
        (0..VALUE_WORDS).flat_map(|_| random.next().to_le_bytes()).collect()
    }

    fn ask(&mut self, keys: impl Iterator<Item = u64> + Clone) -> Result<()> {
        let mut request = Vec::new();
        for key in keys.clone() {
            let name = key.to_string();
            write!(request, "*2\r\n$3\r\nGET\r\n${}\r\n{name}\r\n", name.len())?;
        }
        self.stream.get_mut().write_all(&request)?;
        for key in keys {
            let expected = self.value(key);
            self.expect_line(&format!("${}", expected.len()))?;
            let mut value = vec![0; expected.len()];
            self.stream.read_exact(&mut value)?;
            self.expect_line("")?;
            if value != expected {
                return Err(Error::other(format!("the value of {key} is another")));
            }
        }
        Ok(())
    }

    fn expect_line(&mut self, expected: &str) -> Result<()> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        match line.trim_end() == expected {
            true => Ok(()),
            false => Err(Error::other(format!("redis said {line:?}, not {expected:?}"))),
        }
    }
}

impl Load for Redis {
    fn beat(&mut self) -> Result<()> {
        for _ in 0..QUERIES {
            // The cube of what is uniform: half of all queries are for an eighth of the keys.
            let part = self.random.below(1 << 20) as f64 / f64::from(1 << 20);
            let key = (part * part * part * KEYS as f64) as u64;
            self.ask(std::iter::once(key))?;
        }
        Ok(())
    }

    fn proof(&mut self) -> Result<u64> {
        for first in (0..KEYS).step_by(BATCH as usize) {
            self.ask(first..first + BATCH)?;
        }
        // All were as they must be.
        Ok(mix(self.nonce, KEYS))
    }
}
