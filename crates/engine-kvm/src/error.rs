//! Errors of ioctls, with what was tried.

use std::io;

use engine::EngineError;

/// Turns the errno of a KVM call into the engine's error.
pub(crate) fn refused(
    action: impl Into<String>,
) -> impl FnOnce(vmm_sys_util::errno::Error) -> EngineError {
    let action = action.into();
    move |errno| EngineError::Host { action, source: io::Error::from_raw_os_error(errno.errno()) }
}

/// The same for other calls of the host.
pub(crate) fn host<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> EngineError {
    let action = action.into();
    move |error| EngineError::Host { action, source: error.into() }
}
