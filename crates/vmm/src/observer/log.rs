//! Which blocks come and go, a line of JSON each.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use insight::CacheEvent;
use serde::Serialize;

/// The file, until writing to it fails.
#[derive(Debug)]
pub(super) struct CacheLog {
    file: Option<BufWriter<Arc<File>>>,
}

/// A line of the log.
#[derive(Serialize)]
struct Line {
    at_ns: u64,
    change: insight::CacheChange,
    frame: u32,
    disk: u8,
    block: u64,
}

impl CacheLog {
    pub(super) fn new(file: Arc<File>) -> Self {
        Self { file: Some(BufWriter::new(file)) }
    }

    pub(super) fn write(&mut self, events: &[CacheEvent]) {
        self.attempt(|file| events.iter().try_for_each(|event| write_line(file, event)));
    }

    pub(super) fn flush(&mut self) {
        self.attempt(Write::flush);
    }

    fn attempt(&mut self, act: impl FnOnce(&mut BufWriter<Arc<File>>) -> io::Result<()>) {
        if let Some(Err(error)) = self.file.as_mut().map(act) {
            tracing::error!("cache log: {error}: nothing more is written to it");
            self.file = None;
        }
    }
}

fn write_line(log: &mut impl Write, event: &CacheEvent) -> io::Result<()> {
    let CacheEvent { at, change, frame, block } = *event;
    let at_ns = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
    let line = Line { at_ns, change, frame: frame.0, disk: block.disk, block: block.block };
    serde_json::to_writer(&mut *log, &line)?;
    log.write_all(b"\n")
}
