//! The interrupt line a device drives.

/// An edge-triggered interrupt line.
///
/// Called from vCPU threads and from the I/O thread, while the device holds its own lock: an
/// implementation must not call back into a device.
pub trait IrqLine: Send + Sync {
    /// Raises one edge. Edges that come faster than the guest takes them may merge.
    fn trigger(&self);
}

impl<F: Fn() + Send + Sync> IrqLine for F {
    fn trigger(&self) {
        self();
    }
}
