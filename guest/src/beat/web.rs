//! An application of the web in Python with its data in memory, asked for one page after the other.

use super::{Load, checksum, patiently, server};
use crate::random::Random;
use crate::work::program::Root;
use std::io::{BufRead, BufReader, Error, Read, Result, Write};
use std::os::unix::net::UnixStream;

const APPLICATION: &str = include_str!("web.py");
const PAGES: usize = 100_000;
/// A beat.
const REQUESTS: usize = 6;

pub(super) struct Web {
    stream: BufReader<UnixStream>,
    random: Random,
}

impl Web {
    pub(super) fn start(root: &Root, nonce: u64) -> Result<Self> {
        server(root, "python3", &["-c", APPLICATION, &nonce.to_string()]).spawn()?;
        let socket = root.folder().join("tmp/web");
        let stream = BufReader::new(patiently(|| UnixStream::connect(&socket))?);
        Ok(Self { stream, random: Random::new() })
    }

    fn page(&mut self, page: &str) -> Result<Vec<u8>> {
        // In one write: a request in two would be two turns of the server's.
        let request = format!("GET /{page} HTTP/1.1\r\nHost: guest\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut length = None;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(Error::other("the application is gone"));
            }
            match line.trim_end().split_once(": ") {
                Some(("Content-Length", bytes)) => length = bytes.parse().ok(),
                _ if line.trim_end().is_empty() => break,
                _ => {}
            }
        }
        let mut body = vec![0; length.ok_or_else(|| Error::other("an answer without length"))?];
        self.stream.read_exact(&mut body)?;
        Ok(body)
    }
}

impl Load for Web {
    fn beat(&mut self) -> Result<()> {
        for _ in 0..REQUESTS {
            let page = self.random.below(PAGES).to_string();
            let body = self.page(&page)?;
            if !body.starts_with(format!("<h1>{page}</h1>").as_bytes()) {
                return Err(Error::other(format!("page {page} is another")));
            }
        }
        Ok(())
    }

    fn proof(&mut self) -> Result<u64> {
        Ok(checksum(&self.page("proof")?))
    }
}
