//! The image of memory: frame n at byte n * 4096 of a file with holes for what is zero.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use memory::{DeviceView, FRAME_SIZE, Frame, GuestMemory, ReadView};

/// Frames that are written and read by one call.
const CHUNK: u32 = 256;

/// Writes what is in `memory`; how many frames had something in them. Nobody writes to it meanwhile.
pub(super) fn write(memory: &Arc<GuestMemory>, file: &File) -> io::Result<u32> {
    file.set_len(0)?;
    file.set_len(memory.bytes())?;
    let view = ReadView::new(Arc::clone(memory));
    let frames = memory.layout().frames();
    let mut chunk = vec![0; CHUNK as usize * FRAME_SIZE];
    let mut written = 0;
    for first in (0..frames).step_by(CHUNK as usize) {
        let count = CHUNK.min(frames - first) as usize;
        for (index, frame) in chunk.chunks_exact_mut(FRAME_SIZE).take(count).enumerate() {
            let gpa =
                memory.gpa_of(Frame(first + index as u32)).ok_or(io::ErrorKind::InvalidInput)?;
            view.read(gpa, frame).map_err(io::Error::other)?;
        }
        written += write_runs(file, first, &chunk[..count * FRAME_SIZE])?;
    }
    file.sync_all()?;
    Ok(written)
}

/// Writes those frames of `chunk` that are not zero, neighbours together.
fn write_runs(file: &File, first: u32, chunk: &[u8]) -> io::Result<u32> {
    let is_zero = |frame: &[u8]| frame.iter().all(|&byte| byte == 0);
    let mut written = 0;
    let mut start = 0;
    while start < chunk.len() {
        let rest = chunk[start..].chunks_exact(FRAME_SIZE);
        let len = rest.take_while(|frame| !is_zero(frame)).count() * FRAME_SIZE;
        if len > 0 {
            let at = u64::from(first) * FRAME_SIZE as u64 + start as u64;
            file.write_all_at(&chunk[start..start + len], at)?;
            written += (len / FRAME_SIZE) as u32;
        }
        // The one behind the run is zero.
        start += len + FRAME_SIZE;
    }
    Ok(written)
}

/// Reads all of it into `memory`, which is untouched.
pub(super) fn read(memory: &Arc<GuestMemory>, file: &File) -> io::Result<()> {
    let view = DeviceView::new(Arc::clone(memory));
    let frames = memory.layout().frames();
    let mut chunk = vec![0; CHUNK as usize * FRAME_SIZE];
    for first in (0..frames).step_by(CHUNK as usize) {
        let count = CHUNK.min(frames - first) as usize;
        let bytes = &mut chunk[..count * FRAME_SIZE];
        file.read_exact_at(bytes, u64::from(first) * FRAME_SIZE as u64)?;
        for (index, frame) in bytes.chunks_exact(FRAME_SIZE).enumerate() {
            if frame.iter().any(|&byte| byte != 0) {
                let frame_number = Frame(first + index as u32);
                let gpa = memory.gpa_of(frame_number).ok_or(io::ErrorKind::InvalidInput)?;
                view.write(gpa, frame).map_err(io::Error::other)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use memory::Gpa;

    use super::*;

    #[test]
    fn memory_goes_over_and_zeros_take_no_space() {
        // Above the device hole, too, and an odd end.
        let bytes = (3 << 30) + 3 * FRAME_SIZE as u64;
        let memory = Arc::new(GuestMemory::with_bytes(bytes).expect("memory"));
        let view = DeviceView::new(Arc::clone(&memory));
        let places = [0u64, 0x1000, 0x0ff_f000, 0x100_0000, (4 << 30) + 0x2000];
        for gpa in places {
            view.write(Gpa(gpa + 7), &gpa.wrapping_add(1).to_le_bytes()).expect("written");
        }
        view.write(Gpa(0x5000), &[0]).expect("touched");
        let file = tempfile::tempfile().expect("a file");
        assert_eq!(write(&memory, &file).expect("written"), places.len() as u32);
        let metadata = file.metadata().expect("attributes");
        assert_eq!(metadata.len(), bytes);
        let blocks = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
        assert!(blocks <= 16 * FRAME_SIZE as u64, "{blocks} bytes on disk");

        let other = Arc::new(GuestMemory::with_bytes(bytes).expect("memory"));
        read(&other, &file).expect("read");
        assert_eq!(other.counts().resident, places.len() as u32);
        for gpa in places {
            let mut word = [0; 8];
            ReadView::new(Arc::clone(&other)).read(Gpa(gpa + 7), &mut word).expect("read");
            assert_eq!(u64::from_le_bytes(word), gpa.wrapping_add(1));
        }
        file.set_len(bytes - 1).expect("cut");
        let shorter = Arc::new(GuestMemory::with_bytes(bytes).expect("memory"));
        assert_eq!(read(&shorter, &file).expect_err("cut").kind(), io::ErrorKind::UnexpectedEof);
    }
}
