//! Taking translations back from those who cache them.

use crate::address::{Epoch, Frame, FrameRange, Gpa};

/// Translations that must no longer be used.
#[derive(Clone, Copy, Debug)]
pub enum Revocation<'a> {
    /// The contents of these frames are about to go. Also drop code decoded from them. Must be
    /// complete on return.
    Frames(&'a [FrameRange]),
    /// Every frame. Must be complete on return.
    All,
    /// A new epoch began: forget all translations, so that the first access of each frame in it
    /// is seen. May be asynchronous: each vCPU does it at its next safe point. Decoded code stays
    /// valid.
    Epoch(Epoch),
    /// The translations that [`crate::EventStream::note_access`] called traced, or more: so that the next access to
    /// each of these frames is seen. Asynchronous, as an epoch.
    Traced,
    /// The translations through which a watched frame is accessed without its being told, or more. Asynchronous, as an
    /// epoch.
    Watched,
}

impl Revocation<'_> {
    /// Whether it is only so that accesses are seen: nothing goes wrong where one is not.
    pub fn is_asynchronous(&self) -> bool {
        matches!(self, Revocation::Epoch(_) | Revocation::Traced | Revocation::Watched)
    }

    /// Whether a translation to `frame` is revoked.
    pub fn covers(&self, frame: Frame) -> bool {
        match self {
            Revocation::Frames(ranges) => ranges.iter().any(|range| range.contains(frame)),
            Revocation::All | Revocation::Epoch(_) | Revocation::Traced | Revocation::Watched => {
                true
            }
        }
    }
}

/// The engine's side of revocation: it caches what [`crate::GuestMemory::resolve`] answered.
///
/// Both methods may be called on any thread, a vCPU's own too (a device that runs in the vCPU's
/// exit handler discards frames). Hence two rules. A vCPU that is not inside guest code holds no
/// [`crate::HostPage`] and counts as having let go; its stale translations may be dropped before
/// it next enters. And a vCPU that waits inside `resolve` is still inside guest code: the memory
/// never makes it wait for a revocation, so that neither waits for the other.
pub trait MappingObserver: Send + Sync {
    /// Returns when no vCPU uses, and none will use again without a new `resolve`, a translation
    /// to what is revoked (what is asynchronous may return at once). Running code decoded from a frame is a use of it.
    fn revoke(&self, revoked: Revocation<'_>);

    /// Tells the table, through [`crate::GuestMemory::note`], of accesses that the guest made
    /// since the last report and that the table does not know of. An engine whose guests reach
    /// frames without `resolve` finds them here; others have nothing to tell.
    fn report(&self) {}

    /// As [`MappingObserver::report`], just before the epoch ends: what the guest accesses from now
    /// on is for the next report to tell, also where it was told already.
    fn end_epoch(&self) {}

    /// These frames are about to become absent: the guest's next access to each must come to
    /// `resolve`. An error says why that cannot be had, and the frames stay as they are.
    fn before_absent(&self, frames: &[FrameRange]) -> Result<(), String> {
        let _ = frames;
        Ok(())
    }

    /// From now on, and until [`MappingObserver::unprotect`], the guest's next write to each frame comes to
    /// [`crate::GuestMemory::resolve`] with [`crate::Access::Write`] before it is done. No vCPU runs. An error says
    /// why that cannot be had; then nothing is protected.
    fn write_protect(&self) -> Result<(), String> {
        self.revoke(Revocation::All);
        Ok(())
    }

    /// Writes to these frames need not come any more. Some may be protected no longer, or never have been.
    fn unprotect(&self, frames: FrameRange) {
        let _ = frames;
    }

    /// RAM was anonymous and is a file now, mapped where the guest accesses it. No vCPU runs.
    fn moved_to_file(&self) {}

    /// Whether guests reach frames without `resolve`, so that a frame which the table takes for
    /// untouched or ballooned may have a page all the same.
    fn maps_by_itself(&self) -> bool {
        false
    }

    /// A device wrote `len` bytes at `gpa`, within one frame that is marked as code. Called after
    /// the bytes are in memory.
    fn code_written(&self, gpa: Gpa, len: usize);
}
