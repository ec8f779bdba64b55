//! A snapshot of a store that is read by this process itself: to copy it, or to say what was learnt of it.

use std::thread;

use memory::Frame;
use object_store::ObjectStoreExt;
use remote::Remote;
use snapshot::{Snapshot, WorkingSet};

use crate::error::ObjectsError;
use crate::layout::{self, WORKING_SET};
use crate::location::Location;
use crate::serve::{Place, runtime, serve};

/// The snapshot at `location`, open and checked as one in a directory is.
///
/// # Errors
/// The store cannot be read, or there is no snapshot that is whole.
pub fn open(location: &Location) -> Result<Snapshot, ObjectsError> {
    let host = |what| move |error| ObjectsError::Host(what, error);
    let (near, far) = remote::pair().map_err(host("make a socket"))?;
    let serving = location.clone();
    let served = thread::Builder::new().name("store".into()).spawn(move || {
        if let Err(error) = serve(&serving, far, Place::First(Box::new(|_| {}))) {
            tracing::warn!("{error}");
        }
    });
    // It ends when the snapshot is dropped.
    served.map_err(host("start a thread"))?;
    let remote = Remote::new(near, location.to_string());
    Ok(Snapshot::open_store(Box::new(remote))?)
}

/// Puts `frames` into the store as the working set of the snapshot at `location`, in the place of the one that is there;
/// nothing where that has the same frames already.
///
/// # Errors
/// The store cannot be read or written; what was there is there then.
pub(crate) fn keep_learnt(location: &Location, frames: &[Frame]) -> Result<(), ObjectsError> {
    let snapshot = open(location)?;
    let sorted = |frames: &[Frame]| {
        let mut frames = frames.to_vec();
        frames.sort_unstable();
        frames.dedup();
        frames
    };
    // One that cannot be read is replaced.
    let known = snapshot.working_set().ok().flatten();
    if known.is_some_and(|known| sorted(known.frames()) == sorted(frames)) {
        return Ok(());
    }
    let compression = snapshot.manifest().memory.compression;
    let bytes = WorkingSet::make(&snapshot, frames, compression)?;
    let runtime = runtime()?;
    let store = location.store()?;
    runtime.block_on(async {
        let generations = layout::generations(&*store, location).await?;
        // The name may have been given to another one meanwhile.
        let same = generations.first().filter(|first| first.id == snapshot.manifest().id);
        let Some(first) = same else {
            let why = "another snapshot has taken its place: what was learnt is not of it".into();
            return Err(ObjectsError::Refused { url: location.to_string(), why });
        };
        let path = first.folder.clone().join(WORKING_SET);
        let put = store.put(&path, bytes.into()).await;
        put.map_err(ObjectsError::store("write", format!("{}/{WORKING_SET}", first.location)))?;
        Ok(())
    })
}
