//! Guest RAM as the boot loader sees it.

use std::ops::Range;
use std::sync::Arc;

use memory::{DeviceView, Gpa, GuestMemory};

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
