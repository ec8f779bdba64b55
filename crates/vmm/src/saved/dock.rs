//! A saved machine among others in memory: from there VMs go on, as often as one wants, and contents that several have are
//! stored once.

use std::path::{Path, PathBuf};

use memory::{FRAME_SIZE, FrameRange};
use snapshot::{Description, Kind, Left, Options, Sharing, SnapshotError, Writer};

use super::keep::{Kept, describe};
use super::{MachineState, Saved, SavedError, capture, cloned};

impl MachineState {
    /// Whether VMs can go on from it as often as one wants.
    ///
    /// # Errors
    /// What only one of them can have, and what to do.
    pub fn check_common(&self) -> Result<(), SavedError> {
        let path = || self.config.name.clone().unwrap_or_default();
        cloned::check_config(&self.config)
            .map_err(|what| SavedError::NotCommon { path: path(), what })
    }

    /// Gives it these overlays, copies of those that it had, in the order of the disks that have one.
    ///
    /// # Errors
    /// One of them cannot be looked at.
    pub fn set_overlays(&mut self, overlays: &[PathBuf]) -> Result<(), SavedError> {
        let disks = self.config.disks.iter_mut().zip(&mut self.disks);
        let with_overlay =
            disks.filter_map(|(disk, known)| disk.overlay.as_mut().map(|overlay| (overlay, known)));
        for ((overlay, known), path) in with_overlay.zip(overlays) {
            let found = capture::identity(path);
            *known = found.map_err(std::io::Error::other).map_err(SavedError::file(path))?;
            overlay.clone_from(path);
        }
        Ok(())
    }

    /// Whether the files of its disks are as its guest knows them.
    fn check_files(&self) -> Result<(), SavedError> {
        for known in &self.disks {
            let found = capture::identity(&known.path);
            let found =
                found.map_err(std::io::Error::other).map_err(SavedError::file(&known.path))?;
            if found != *known {
                let what = "it has been written since the VM was saved".to_owned();
                return Err(SavedError::Disk { path: known.path.clone(), what });
            }
        }
        Ok(())
    }

    pub(super) fn to_json(&self) -> Result<Vec<u8>, SavedError> {
        serde_json::to_vec(self).map_err(|error| SavedError::field("config", error))
    }
}

impl Saved {
    /// Writes it once more, at `path`: plain, without a parent, and with its contents in common with others. `amend`
    /// changes its state.
    ///
    /// # Errors
    /// It cannot be read or written, or has contents on a disk; or `amend`'s. There is nothing at `path` then.
    pub fn copy_to(
        &self,
        path: &Path,
        sharing: Sharing,
        amend: impl FnOnce(&mut MachineState) -> Result<(), SavedError>,
    ) -> Result<Kept, SavedError> {
        let snapshot = &self.snapshot;
        self.state.check_files()?;
        let options = Options { sharing: Some(sharing), ..Options::new(*snapshot.layout()) };
        let writer = Writer::create(path, options)?;
        let mut lane = writer.lane()?;
        let mut contents = [0; FRAME_SIZE];
        for run in snapshot.runs() {
            let frames = FrameRange { first: run.first, count: run.count };
            match run.kind {
                Kind::Zero => writer.leave(frames, Left::Zero)?,
                Kind::Free => writer.leave(frames, Left::Free)?,
                Kind::Ballooned => writer.leave(frames, Left::Ballooned)?,
                Kind::Stored | Kind::Parent | Kind::Disk(_) => {
                    for frame in frames.frames() {
                        snapshot.read(frame, &mut contents)?;
                        lane.write(frame, &contents)?;
                    }
                }
            }
        }
        lane.finish()?;
        let mut state = self.state.clone();
        amend(&mut state)?;
        let agent = snapshot.manifest().vm.agent;
        let description = Description { agent, ..describe(&state) };
        let saved = writer.finish(description, &state.to_json()?, &[]);
        saved.map(|saved| Kept::of(&saved)).map_err(|error: SnapshotError| error.into())
    }
}
