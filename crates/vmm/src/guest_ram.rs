//! Guest RAM as the boot loader and the balloon see it.

use std::ops::Range;
use std::sync::Arc;

use devices::virtio::balloon::{BalloonMemory, PageNumber, PageRange};
use memory::{DeviceView, Discard, FRAME_SIZE, Frame, Gpa, GuestMemory};

use crate::boot::{BootError, BootMemory};

/// The loader's view: it writes like a device, so that every frame it fills is accounted for.
pub(crate) struct LoaderRam(pub(crate) Arc<GuestMemory>);

impl BootMemory for LoaderRam {
    fn ram_ranges(&self) -> Vec<Range<u64>> {
        self.0.layout().ranges().map(|range| range.start.0..range.start.0 + range.bytes).collect()
    }

    fn write(&mut self, gpa: u64, bytes: &[u8]) -> Result<(), BootError> {
        let view = DeviceView::new(Arc::clone(&self.0));
        view.write(Gpa(gpa), bytes).map_err(|error| BootError::Memory {
            gpa,
            length: bytes.len() as u64,
            source: error.into(),
        })
    }
}

/// The balloon's view: what the guest gives up leaves this process.
pub(crate) struct BalloonRam(pub(crate) Arc<GuestMemory>);

impl BalloonRam {
    fn frames(&self, pages: impl Iterator<Item = u64>) -> Vec<Frame> {
        // Numbers come from the guest: those outside RAM name no frame.
        let gpa = |page: u64| page.checked_mul(FRAME_SIZE as u64);
        pages.filter_map(|page| self.0.frame_of(Gpa(gpa(page)?))).collect()
    }

    fn discard(&self, frames: Vec<Frame>, why: Discard) -> u64 {
        match self.0.discard(frames, why) {
            Ok(done) => u64::from(done.discarded),
            Err(error) => {
                tracing::warn!("give back guest memory: {error}");
                0
            }
        }
    }
}

impl BalloonMemory for BalloonRam {
    fn inflate(&mut self, pages: &[PageNumber]) -> u64 {
        self.discard(self.frames(pages.iter().map(|page| page.0)), Discard::Balloon)
    }

    fn deflate(&mut self, pages: &[PageNumber]) -> u64 {
        u64::from(self.0.return_from_balloon(self.frames(pages.iter().map(|page| page.0))))
    }

    fn report(&mut self, ranges: &[PageRange]) -> u64 {
        let ram_pages = self.0.bytes() / FRAME_SIZE as u64;
        // A range longer than RAM cannot be right; what follows its RAM part is ignored anyway.
        let pages = ranges.iter().flat_map(|range| {
            (range.first.0..).take(usize::try_from(range.count.min(ram_pages)).unwrap_or(0))
        });
        self.discard(self.frames(pages), Discard::Reported)
    }
}
