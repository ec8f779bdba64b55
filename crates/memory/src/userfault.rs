//! Whether the host lets this process take page faults itself: userfaultfd(2).

use std::io;
use std::os::fd::OwnedFd;

use rustix::mm::{UserfaultfdFlags, userfaultfd};

/// Which faults a descriptor from [`open_userfaultfd`] reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UserFaults {
    /// Those of user code only; any process may ask since Linux 5.11.
    UserMode,
    /// Those of the kernel on our behalf too, for example in `read` or in KVM; this needs a privilege
    /// or `vm.unprivileged_userfaultfd=1`.
    All,
}

/// UFFD_USER_MODE_ONLY of include/uapi/linux/userfaultfd.h.
const USER_MODE_ONLY: u32 = 1;

/// Opens a descriptor that reports faults of that kind. Nothing is registered with it.
///
/// # Errors
/// `ENOSYS`: not in this kernel. `EPERM`: not for this process.
pub fn open_userfaultfd(faults: UserFaults) -> io::Result<OwnedFd> {
    let mut flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    if faults == UserFaults::UserMode {
        flags |= UserfaultfdFlags::from_bits_retain(USER_MODE_ONLY);
    }
    // SAFETY: rustix calls this unsafe for what the descriptor can do to memory once ranges are
    // registered with it; opening it touches no memory, and this crate registers none.
    Ok(unsafe { userfaultfd(flags) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gets_all_faults_also_gets_fewer() {
        if open_userfaultfd(UserFaults::All).is_ok() {
            open_userfaultfd(UserFaults::UserMode).expect("allowed more, so allowed less");
        }
    }
}
