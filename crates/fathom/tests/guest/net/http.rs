//! The host's end: a small HTTP server.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use crate::noise::Noise;

const CHUNK: usize = 64 << 10;

/// Serves until the test's process ends:
///
/// ```text
/// GET /noise/N   N bytes
/// GET /echo/X    X
/// PUT /sum       how many bytes came, and their checksum
/// ```
pub(super) struct Server {
    pub(super) port: u16,
    /// Bytes of bodies that have gone either way.
    moved: Arc<AtomicU64>,
}

impl Server {
    /// On a port of `address`, in this thread's network.
    pub(super) fn start(address: Ipv4Addr) -> Self {
        let listener = TcpListener::bind(SocketAddr::from((address, 0))).expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let moved = Arc::<AtomicU64>::default();
        let counter = Arc::clone(&moved);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let moved = Arc::clone(&counter);
                // Who asked may have left meanwhile: the guest's end tells whether it should have.
                thread::spawn(move || answer(&stream, &moved).ok());
            }
        });
        Self { port, moved }
    }

    /// Grows for as long as anything gets through.
    pub(super) fn moved(&self) -> &Arc<AtomicU64> {
        &self.moved
    }
}

fn answer(mut stream: &TcpStream, moved: &AtomicU64) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(CHUNK, stream);
    let (request, length) = head(&mut reader)?;
    let mut words = request.split([' ', '/']).filter(|word| !word.is_empty());
    match (words.next(), words.next(), words.next()) {
        (Some("GET"), Some("noise"), Some(count)) => {
            let count = count.parse().map_err(io::Error::other)?;
            begin(stream, count)?;
            let (mut noise, mut chunk) = (Noise::default(), [0; CHUNK]);
            for at in (0..count).step_by(CHUNK) {
                let chunk = &mut chunk[..CHUNK.min((count - at) as usize)];
                noise.fill(chunk);
                stream.write_all(chunk)?;
                moved.fetch_add(chunk.len() as u64, Relaxed);
            }
            Ok(())
        }
        (Some("GET"), Some("echo"), Some(text)) => {
            moved.fetch_add(text.len() as u64, Relaxed);
            reply(stream, text)
        }
        (Some("PUT"), Some("sum"), _) => {
            let (count, checksum) = sum(reader.take(length), moved)?;
            reply(stream, &format!("{count} {checksum}"))
        }
        _ => Err(io::Error::other(request)),
    }
}

/// The first line, and how long the body is.
fn head(reader: &mut impl BufRead) -> io::Result<(String, u64)> {
    let (mut request, mut length) = (String::new(), 0);
    reader.read_line(&mut request)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().to_ascii_lowercase().split_once(": ") {
            Some(("content-length", value)) => length = value.parse().map_err(io::Error::other)?,
            Some(_) => {}
            None => return Ok((request, length)),
        }
    }
}

fn begin(mut stream: &TcpStream, length: u64) -> io::Result<()> {
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")
}

fn reply(mut stream: &TcpStream, text: &str) -> io::Result<()> {
    begin(stream, text.len() as u64)?;
    stream.write_all(text.as_bytes())
}

fn sum(mut reader: impl Read, moved: &AtomicU64) -> io::Result<(u64, u32)> {
    let (mut count, mut hasher, mut chunk) = (0, crc32fast::Hasher::new(), vec![0; CHUNK]);
    loop {
        match reader.read(&mut chunk)? {
            0 => return Ok((count, hasher.finalize())),
            length => {
                hasher.update(&chunk[..length]);
                count += length as u64;
                moved.fetch_add(length as u64, Relaxed);
            }
        }
    }
}

/// The checksum of so much noise.
pub(super) fn checksum_of_noise(length: u64) -> u32 {
    sum(Noise::default().take(length), &AtomicU64::default()).expect("noise").1
}
