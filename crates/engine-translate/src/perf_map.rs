//! Names of generated code for Linux perf: a line a piece, `START SIZE NAME`, numbers in hexadecimal
//! (tools/perf/Documentation/jit-interface.txt of Linux).

use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

/// See the module. Shared by the VMs of an engine.
#[derive(Debug)]
pub(crate) struct PerfMap(Arc<File>);

impl PerfMap {
    pub(crate) fn new(file: Arc<File>) -> Self {
        Self(file)
    }

    pub(crate) fn add(&self, range: Range<usize>, name: impl Display) {
        let line = format!("{:x} {:x} {name}\n", range.start, range.len());
        // One write, so that vCPUs do not mix theirs. Whoever finds less in the map has a full disk.
        let _ = (&*self.0).write_all(line.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    #[test]
    fn lines_are_as_perf_reads_them() {
        let mut file = tempfile::tempfile().expect("file");
        let map = PerfMap::new(Arc::new(file.try_clone().expect("file")));
        map.add(0x7f00..0x7f30, "guest_1000+8");
        map.add(0x10..0x20, "fathom_enter");
        let mut text = String::new();
        file.rewind().expect("start");
        file.read_to_string(&mut text).expect("text");
        assert_eq!(text, "7f00 30 guest_1000+8\n10 10 fathom_enter\n");
    }
}
