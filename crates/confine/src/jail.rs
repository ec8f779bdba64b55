//! A root directory of the VM's own, and a user who owns nothing else.
//!
//! ```text
//!   new mount namespace, nothing of it seen outside
//!   ROOT/dev    a small file system with the devices that a VM needs, the user's own
//!   ROOT/proc   this process and no other
//!   ROOT/run    where the API's socket goes
//!   ROOT becomes the root; the old one is unmounted; the user becomes UID:GID, for good
//! ```
//! What a VM needs of files is put into ROOT beforehand, by whoever starts it.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
    unmount,
};
use rustix::process::{DumpableBehavior, chdir, geteuid, pivot_root, set_dumpable_behavior};
use rustix::thread::{
    Gid, Uid, UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    unshare_unsafe,
};

/// Of these, those that the host has.
const DEVICES: [&str; 3] = ["kvm", "net/tun", "null"];

/// `UID:GID:CHROOT`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Jail {
    uid: u32,
    gid: u32,
    root: PathBuf,
}

/// Why there is no jail.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JailError {
    /// The text is none.
    #[error("{0:?}: expected UID:GID:CHROOT, such as 1001:1001:/srv/jail/web")]
    Text(String),
    /// It would stop nobody.
    #[error("user {0}: root can leave a jail: give a user id of the VM's own")]
    Root(u32),
    /// Only root can make it.
    #[error("a jail is made by root, and this is user {0}: start it as root, or leave --jail out")]
    NotRoot(u32),
    /// The directory cannot be a root.
    #[error("jail {root}: {why}")]
    Directory {
        /// As given.
        root: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The host refused.
    #[error("jail {root}: {action}: {source}")]
    Host {
        /// As given.
        root: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

impl FromStr for Jail {
    type Err = JailError;

    fn from_str(text: &str) -> Result<Self, JailError> {
        let parse = || {
            let (uid, rest) = text.split_once(':')?;
            let (gid, root) = rest.split_once(':')?;
            let root = PathBuf::from(root);
            let (uid, gid) = (uid.parse::<u32>().ok()?, gid.parse::<u32>().ok()?);
            // The last one stands for none.
            let good = uid != u32::MAX && gid != u32::MAX && root.is_absolute();
            good.then_some(Self { uid, gid, root })
        };
        let jail = parse().ok_or_else(|| JailError::Text(text.to_owned()))?;
        if jail.uid == 0 || jail.gid == 0 {
            return Err(JailError::Root(0));
        }
        Ok(jail)
    }
}

impl Jail {
    /// Where, in the jail, the directory of API sockets is.
    pub const SOCKETS: &str = "/run/fathom";

    /// Moves this process into the jail. It must have one thread only, since each has a user of its own.
    ///
    /// # Errors
    /// See [`JailError`]. The process may be half inside: give up.
    pub fn enter(&self) -> Result<(), JailError> {
        self.check()?;
        self.make_directories()?;
        // SAFETY: no file descriptor table is left, only the mount namespace; and there is one thread.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.map_err(self.host("leave the mounts"))?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .map_err(self.host("make the mounts private"))?;
        // A root must be a mount.
        mount_bind_recursive(&self.root, &self.root).map_err(self.host("mount it on itself"))?;
        self.mount_devices()?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("proc", self.root.join("proc"), "proc", flags, c"hidepid=2")
            .map_err(self.host("mount proc"))?;
        self.change_root()?;
        self.change_user()
    }

    fn check(&self) -> Result<(), JailError> {
        let user = geteuid();
        if !user.is_root() {
            return Err(JailError::NotRoot(user.as_raw()));
        }
        let wrong = |why: String| JailError::Directory { root: self.root.clone(), why };
        let found = fs::symlink_metadata(&self.root).map_err(|error| wrong(error.to_string()))?;
        if !found.is_dir() {
            return Err(wrong("it is no directory".to_owned()));
        }
        // Whoever can write there could put a link in the place of what is made there by root.
        if found.uid() != 0 || found.mode() & 0o022 != 0 {
            return Err(wrong(
                "it can be written by others: chown root it, and chmod go-w".to_owned(),
            ));
        }
        if found.mode() & 0o001 == 0 {
            return Err(wrong("the VM's user may not enter it: chmod a+x it".to_owned()));
        }
        Ok(())
    }

    fn make_directories(&self) -> Result<(), JailError> {
        for name in ["dev", "proc", "run", &Self::SOCKETS[1..]] {
            let path = self.root.join(name);
            match fs::create_dir(&path) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(self.host("make directories")(error));
                }
                _ => {}
            }
            // Not through a link that was there.
            let found = fs::symlink_metadata(&path).map_err(self.host("make directories"))?;
            if !found.is_dir() {
                let why = format!("/{name} in it is no directory");
                return Err(JailError::Directory { root: self.root.clone(), why });
            }
        }
        let sockets = self.root.join(&Self::SOCKETS[1..]);
        chown(&sockets, Some(self.uid), Some(self.gid))
            .and_then(|()| fs::set_permissions(&sockets, fs::Permissions::from_mode(0o700)))
            .map_err(self.host("make the directory of sockets"))
    }

    fn mount_devices(&self) -> Result<(), JailError> {
        let place = self.root.join("dev");
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
        mount("tmpfs", &place, "tmpfs", flags, c"size=64k,mode=0755")
            .map_err(self.host("mount a place for devices"))?;
        for name in DEVICES {
            let Ok(found) = fs::metadata(Path::new("/dev").join(name)) else { continue };
            let device = place.join(name);
            let parent = device.parent().unwrap_or(&place);
            fs::create_dir_all(parent).map_err(self.host("make devices"))?;
            let mode = Mode::RUSR | Mode::WUSR;
            mknodat(CWD, &device, FileType::CharacterDevice, mode, found.rdev())
                .map_err(self.host("make devices"))?;
            chown(&device, Some(self.uid), Some(self.gid)).map_err(self.host("make devices"))?;
        }
        Ok(())
    }

    /// The old root is stacked upon the new one, then taken off: pivot_root(2), "pivot_root(".", ".")".
    fn change_root(&self) -> Result<(), JailError> {
        chdir(&self.root).map_err(self.host("go there"))?;
        pivot_root(".", ".").map_err(self.host("make it the root"))?;
        unmount(".", UnmountFlags::DETACH).map_err(self.host("leave the old root"))?;
        chdir("/").map_err(self.host("go there"))
    }

    /// With the last user id that is root's go all capabilities: capabilities(7).
    fn change_user(&self) -> Result<(), JailError> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        set_thread_groups(&[]).map_err(self.host("leave groups"))?;
        set_thread_res_gid(gid, gid, gid).map_err(self.host("change the group"))?;
        set_thread_res_uid(uid, uid, uid).map_err(self.host("change the user"))?;
        // Else /proc/self would be root's from now on.
        set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(self.host("own /proc/self"))
    }

    fn host<E: Into<io::Error>>(&self, action: &'static str) -> impl FnOnce(E) -> JailError {
        let root = self.root.clone();
        move |source| JailError::Host { root, action, source: source.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jail_is_two_numbers_and_an_absolute_path() {
        let jail: Jail = "1001:1002:/srv/a:b".parse().expect("a jail");
        assert_eq!((jail.uid, jail.gid, jail.root), (1001, 1002, "/srv/a:b".into()));
        for text in ["", "1", "1:2", "1:2:", "1:2:srv", "a:2:/srv", "1:4294967295:/srv", "-1:2:/"] {
            assert!(matches!(text.parse::<Jail>(), Err(JailError::Text(_))), "{text}");
        }
        for text in ["0:5:/srv", "5:0:/srv"] {
            assert!(matches!(text.parse::<Jail>(), Err(JailError::Root(_))), "{text}");
        }
    }

    #[test]
    fn only_a_directory_of_roots_alone_will_do() {
        if !geteuid().is_root() {
            let error = "7:7:/".parse::<Jail>().expect("a jail").check().expect_err("not root");
            assert!(matches!(error, JailError::NotRoot(_)), "{error}");
            return;
        }
        let folder = tempfile::tempdir().expect("folder");
        let check = |name: &str| {
            let text = format!("7:7:{}", folder.path().join(name).display());
            text.parse::<Jail>().expect("a jail").check().map_err(|error| error.to_string())
        };
        assert!(check("nothing").expect_err("nothing").contains("No such file"));
        fs::write(folder.path().join("file"), "").expect("file");
        assert!(check("file").expect_err("a file").contains("no directory"));
        let open = folder.path().join("open");
        fs::create_dir(&open).expect("directory");
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("mode");
        assert!(check("open").expect_err("open to all").contains("by others"));
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).expect("mode");
        assert_eq!(check("open"), Ok(()));
        fs::set_permissions(&open, fs::Permissions::from_mode(0o700)).expect("mode");
        assert!(check("open").expect_err("closed").contains("may not enter"));
    }
}
