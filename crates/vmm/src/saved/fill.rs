//! The contents of a saved machine's memory, put back.

use std::io;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;

use memory::{DeviceView, GuestMemory};
use snapshot::{Batch, Snapshot};

use super::SavedError;

/// Puts all of it into `memory`, which is untouched.
pub(super) fn eagerly(memory: &Arc<GuestMemory>, snapshot: &Snapshot) -> Result<(), SavedError> {
    let places = Mutex::new(snapshot.places());
    let next = || places.lock().unwrap_or_else(PoisonError::into_inner).next();
    let view = DeviceView::new(Arc::clone(memory));
    let work = || -> Result<(), SavedError> {
        let mut batch = Batch::new();
        while let Some(place) = next() {
            snapshot.read_place(place, &mut batch)?;
            for (frame, contents) in batch.iter() {
                let refused =
                    |error: &dyn std::fmt::Display| SavedError::Stream(error.to_string());
                let gpa = memory.gpa_of(frame).ok_or_else(|| refused(&"past the end of memory"))?;
                view.write(gpa, contents).map_err(|error| refused(&error))?;
            }
        }
        Ok(())
    };
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(4);
    thread::scope(|scope| {
        let started: Vec<_> = (0..threads)
            .map(|number| {
                thread::Builder::new().name(format!("fill{number}")).spawn_scoped(scope, work)
            })
            .collect();
        let gone = |_| Err(SavedError::Stream("a thread that reads has panicked".into()));
        let no_thread = |source: io::Error| SavedError::Stream(format!("start a thread: {source}"));
        let ended = started
            .into_iter()
            .map(|thread| thread.map_err(no_thread)?.join().unwrap_or_else(gone));
        ended.fold(Ok(()), Result::and)
    })
}
