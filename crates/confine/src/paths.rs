//! Which paths stay reachable: Landlock.
//!
//! A rule holds for the file or directory that is at a path now, by whatever path it is reached later. So
//! what a VM writes must exist before, and a file that is replaced under its name is another file, which
//! the VM cannot open when its guest reboots.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, PathFdError,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus,
    Scope, make_bitflags,
};

use crate::{ConfineError, Missing};

/// The newest version whose every right we have thought about. Older kernels enforce what they know.
const VERSION: ABI = ABI::V9;

/// A path that stays reachable, and for what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PathRule {
    /// A file or directory that is there.
    pub path: PathBuf,
    /// What may be done with it.
    pub need: Need,
}

/// What may be done with a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// A file that is read.
    Read,
    /// A file that is read and written in place, such as a disk.
    ReadWrite,
    /// A file that is written from its beginning, such as a report.
    Output,
    /// A device that is opened and asked to do things.
    Device,
    /// A directory in which sockets are made and removed, with the lock files beside them.
    SocketDirectory,
    /// A UNIX socket to connect to, or a directory of such.
    Connect,
}

impl PathRule {
    /// `path` may be used as `need` says.
    pub fn new(path: impl Into<PathBuf>, need: Need) -> Self {
        Self { path: path.into(), need }
    }
}

impl Need {
    fn rights(self) -> BitFlags<AccessFs> {
        match self {
            Self::Read => AccessFs::ReadFile.into(),
            Self::ReadWrite => make_bitflags!(AccessFs::{ReadFile | WriteFile}),
            Self::Output => make_bitflags!(AccessFs::{WriteFile | Truncate}),
            Self::Device => make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev}),
            Self::SocketDirectory => make_bitflags!(AccessFs::{MakeSock | RemoveFile}),
            Self::Connect => AccessFs::ResolveUnix.into(),
        }
    }
}

/// Leaves `paths`, what the process knows of itself in /proc, and no network but UNIX sockets. Tells if the
/// kernel cannot.
pub(crate) fn restrict(paths: &[PathRule]) -> Result<Option<Missing>, ConfineError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(VERSION))?
        .handle_access(AccessNet::from_all(VERSION))?
        .scope(Scope::from_all(VERSION))?
        .create()?;
    for PathRule { path, need } in paths {
        rules = allow(rules, path, need.rights())?;
    }
    // CPU times and resident memory of status and report; the KVM engine's map of pages.
    rules = allow(rules, Path::new("/proc/self"), Need::Read.rights())?;
    keep_own_directory_in_proc()?;
    Ok(missing(&rules.restrict_self()?))
}

fn allow(
    rules: RulesetCreated,
    path: &Path,
    rights: BitFlags<AccessFs>,
) -> Result<RulesetCreated, ConfineError> {
    let opened = PathFd::new(path).map_err(|error| {
        let source = match error {
            PathFdError::OpenCall { source, .. } => source,
            other => std::io::Error::other(other),
        };
        ConfineError::Path { path: path.to_owned(), source }
    })?;
    Ok(rules.add_rule(PathBeneath::new(opened, rights))?)
}

/// The rule is for an object of procfs, which the kernel may forget and make anew while nobody has it open:
/// the new one would be without the rule.
fn keep_own_directory_in_proc() -> Result<(), ConfineError> {
    static KEPT: OnceLock<File> = OnceLock::new();
    let directory = File::open("/proc/self").map_err(ConfineError::host("open /proc/self"))?;
    // Whoever was first holds the same directory.
    let _ = KEPT.set(directory);
    Ok(())
}

fn missing(status: &RestrictionStatus) -> Option<Missing> {
    if status.ruleset != RulesetStatus::NotEnforced {
        return None;
    }
    let reason = match status.landlock {
        LandlockStatus::NotEnabled => "turned off at boot",
        _ => "not in this kernel",
    };
    let why = format!("{reason}: the process can open whatever its user can");
    Some(Missing { wall: "Landlock", why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_not_there_is_named() {
        let error = restrict(&[PathRule::new("/nowhere/disk.img", Need::ReadWrite)]);
        let error = error.expect_err("not there").to_string();
        assert_eq!(
            error,
            "keep /nowhere/disk.img reachable: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn only_what_writes_may_write() {
        for need in [Need::Read, Need::SocketDirectory, Need::Connect] {
            assert!(!need.rights().contains(AccessFs::WriteFile), "{need:?}");
        }
        for need in [Need::Read, Need::ReadWrite, Need::Output, Need::Device, Need::SocketDirectory]
        {
            let never = make_bitflags!(AccessFs::{Execute | MakeReg | MakeSym | MakeDir | Refer});
            assert!(!need.rights().intersects(never), "{need:?}");
        }
    }
}
