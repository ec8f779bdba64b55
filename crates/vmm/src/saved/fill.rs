//! The contents of a saved machine's memory, put back.

use std::sync::{Arc, Mutex, PoisonError};

use memory::{DeviceView, GuestMemory};
use snapshot::{Batch, Snapshot};

use super::SavedError;
use crate::restore::together;

/// Puts all of it into `memory`, which is untouched.
pub(super) fn eagerly(memory: &Arc<GuestMemory>, snapshot: &Snapshot) -> Result<(), SavedError> {
    let places = Mutex::new(snapshot.places());
    let next = || places.lock().unwrap_or_else(PoisonError::into_inner).next();
    let view = DeviceView::new(Arc::clone(memory));
    together(|| {
        let mut batch = Batch::new();
        while let Some(place) = next() {
            snapshot.read_place(place, &mut batch)?;
            for (frame, contents) in batch.iter() {
                let refused = |error: &dyn std::fmt::Display| SavedError::Stream(error.to_string());
                let gpa = memory.gpa_of(frame).ok_or_else(|| refused(&"past the end of memory"))?;
                view.write(gpa, contents).map_err(|error| refused(&error))?;
            }
        }
        Ok(())
    })
}
