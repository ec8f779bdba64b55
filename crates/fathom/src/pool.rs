//! `fathom pool`: substrates, which are snapshots in a folder in memory, with overlays of their disks beside them.
//!
//! ```text
//!   /dev/shm/fathom-1000/            0700, ours; locked by who docks or removes
//!       web/                         a snapshot: docs/formats/snapshot.md
//!       web.disk-0                   the overlay of its first disk that has one
//!       db/shared-1                  web/memory by another name
//! ```

mod list;

use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use rustix::fs::FlockOperation;
use rustix::process::geteuid;
use snapshot::{Sharing, Snapshot};

use crate::arguments::{PoolArguments, PoolCommand, PoolPlace};
use crate::failure::{Failure, SUCCESS};

/// A name with more bytes is refused: other names are made of it.
const NAME_MAX: usize = 100;

pub(crate) fn pool(arguments: &PoolArguments) -> Result<ExitCode, Failure> {
    let pool = Pool::open(&arguments.place)?;
    match &arguments.command {
        None => list::list(&pool, arguments.json)?,
        Some(PoolCommand::Remove { name }) => pool.lock()?.remove(name)?,
    }
    Ok(ExitCode::from(SUCCESS))
}

/// The folder of substrates.
pub(crate) struct Pool {
    path: PathBuf,
}

/// The same, for one process at a time.
pub(crate) struct LockedPool {
    pool: Pool,
    _lock: File,
}

/// Where what somebody calls `path` is: a path, or a substrate, whose name comes with it.
pub(crate) fn find(path: &Path, place: &PoolPlace) -> Result<(PathBuf, Option<String>), Failure> {
    let mut components = path.components();
    let name = match (components.next(), components.next()) {
        (Some(Component::Normal(name)), None) => name.to_str(),
        _ => None,
    };
    let is_there = path.symlink_metadata().is_ok();
    let Some(name) = name.filter(|_| !is_there && !path.to_string_lossy().contains('/')) else {
        return Ok((path.to_owned(), None));
    };
    let pool = Pool::open(place)?;
    let found = pool.path_of(name)?;
    if found.symlink_metadata().is_err() {
        let at = pool.path.display();
        let what =
            format!("{name}: no such path, and no such substrate in {at}: see `fathom pool`");
        return Err(Failure::Usage(what));
    }
    Ok((found, Some(name.to_owned())))
}

impl Pool {
    /// Makes it if need be.
    pub(crate) fn open(place: &PoolPlace) -> Result<Self, Failure> {
        let path = match (&place.pool, std::env::var_os("FATHOM_POOL")) {
            (Some(path), _) => path.clone(),
            (None, Some(path)) if !path.is_empty() => path.into(),
            _ => format!("/dev/shm/fathom-{}", geteuid().as_raw()).into(),
        };
        let at =
            |error: std::io::Error| Failure::Usage(format!("pool {}: {error}", path.display()));
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(at(error)),
            _ => {}
        }
        let found = path.symlink_metadata().map_err(at)?;
        if !found.is_dir() || found.uid() != geteuid().as_raw() || found.mode() & 0o077 != 0 {
            let what = "not a folder that is yours alone (mode 0700): give another one with --pool";
            return Err(Failure::Usage(format!("pool {}: {what}", path.display())));
        }
        let path = path.canonicalize().map_err(at)?;
        Ok(Self { path })
    }

    /// Waits until nobody else docks or removes.
    pub(crate) fn lock(self) -> Result<LockedPool, Failure> {
        let lock = File::open(&self.path).map_err(Failure::host)?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(Failure::host)?;
        Ok(LockedPool { pool: self, _lock: lock })
    }

    /// Where a substrate is, or would be.
    pub(crate) fn path_of(&self, name: &str) -> Result<PathBuf, Failure> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.+@".contains(c);
        let good = !name.is_empty() && name.len() <= NAME_MAX && name.chars().all(is_plain);
        if !good || name.starts_with(['.', '-']) || name.ends_with(".new") {
            let what = "letters, digits and -_.+@, not .new at the end";
            return Err(Failure::Usage(format!("substrate `{name}`: a name has {what}")));
        }
        Ok(self.path.join(name))
    }

    /// Names of what is there, damaged or not.
    fn names(&self) -> Result<Vec<String>, Failure> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(Failure::host)? {
            let entry = entry.map_err(Failure::host)?;
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if let (true, Ok(name)) = (is_folder, entry.file_name().into_string())
                && self.path_of(&name).is_ok()
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// The overlay of its disk `number`, among those that have one.
    pub(crate) fn overlay_of(&self, name: &str, number: usize) -> PathBuf {
        self.path.join(format!("{name}.disk-{number}"))
    }

    /// Overlays that are there, or left there by a crash.
    fn overlays(&self, name: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let beginning = format!("{name}.disk-");
        let files = entries.map(|entry| entry.path()).filter(|path| path.is_file());
        let is_overlay = |path: &PathBuf| {
            let file = path.file_name().and_then(|file| file.to_str());
            file.and_then(|file| file.strip_prefix(&beginning)).is_some_and(is_number)
        };
        files.filter(is_overlay).collect()
    }
}

impl LockedPool {
    /// What a new substrate may have in common with those that are there.
    pub(crate) fn sharing(&self) -> Result<Sharing, Failure> {
        let names = self.pool.names()?;
        // One that is damaged has nothing to give.
        let open = |name: &String| Snapshot::open(self.pool.path.join(name)).ok().map(Arc::new);
        Ok(Sharing::new(names.iter().filter_map(open).collect()))
    }

    /// Where a new one goes, once what a crash has left of its overlays is removed.
    pub(crate) fn place_for(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.pool.path_of(name)?;
        if path.symlink_metadata().is_ok() {
            let what = "is there already: `fathom pool remove` it, or give another name with --as";
            return Err(Failure::Usage(format!("substrate {name} {what}")));
        }
        for left in self.pool.overlays(name) {
            fs::remove_file(left).map_err(Failure::host)?;
        }
        Ok(path)
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    fn remove(&self, name: &str) -> Result<(), Failure> {
        let path = self.pool.path_of(name)?;
        if path.symlink_metadata().is_err() {
            let at = self.pool.path.display();
            return Err(Failure::Usage(format!("no substrate {name} in {at}: see `fathom pool`")));
        }
        snapshot::remove(&path).map_err(Failure::host)?;
        self.pool.overlays(name).iter().try_for_each(fs::remove_file).map_err(Failure::host)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn place(path: &Path) -> PoolPlace {
        PoolPlace { pool: Some(path.to_owned()) }
    }

    #[test]
    fn a_pool_is_ours_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("pool");
        let pool = Pool::open(&place(&path)).expect("made");
        assert_eq!(fs::metadata(&pool.path).expect("made").mode() & 0o777, 0o700);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).expect("changed");
        let refused = |path: &Path| match Pool::open(&place(path)) {
            Err(Failure::Usage(line)) => line,
            other => panic!("{:?}", other.map(|pool| pool.path)),
        };
        assert!(refused(&path).contains("not a folder that is yours alone"));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        assert!(refused(&link).contains("not a folder that is yours alone"));
        let nowhere = folder.path().join("a/b");
        assert!(refused(&nowhere).contains("No such file"), "{}", refused(&nowhere));
    }

    #[test]
    fn names_are_file_names_of_substrates() {
        let folder = tempfile::tempdir().expect("a folder");
        let pool = Pool::open(&place(&folder.path().join("pool"))).expect("made");
        for good in ["web", "web-1", "a.b", "x@y+z_1"] {
            assert_eq!(pool.path_of(good).expect(good), pool.path.join(good));
        }
        for bad in ["", ".", "..", "a/b", "-x", "web.new", "a b", "é", &"x".repeat(101)] {
            assert!(pool.path_of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_that_is_no_path_is_a_substrates() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = place(&folder.path().join("pool"));
        let absolute = folder.path().join("x");
        assert_eq!(find(&absolute, &place).expect("a path"), (absolute.clone(), None));
        assert_eq!(find(Path::new("./x"), &place).expect("a path"), ("./x".into(), None));
        let missing = find(Path::new("web-that-is-nowhere"), &place).expect_err("nowhere");
        assert!(missing.to_string().contains("no such substrate"), "{missing}");
        let pool = Pool::open(&place).expect("made");
        fs::create_dir(pool.path.join("web-that-is-somewhere")).expect("made");
        let (path, name) = find(Path::new("web-that-is-somewhere"), &place).expect("found");
        assert_eq!((path.parent(), name.is_some()), (Some(&*pool.path), true));
    }

    #[test]
    fn what_a_crash_has_left_is_cleared_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let pool = Pool::open(&place(&folder.path().join("pool"))).expect("made");
        let names = ["web.disk-0", "web.disk-12", "web.disk-0.web-1", "web.disk-", "web2.disk-0"];
        names.iter().for_each(|name| fs::write(pool.path.join(name), "x").expect("written"));
        let locked = pool.lock().expect("locked");
        locked.place_for("web").expect("free");
        let left = |name: &&str| locked.pool.path.join(name).exists();
        let left: Vec<_> = names.into_iter().filter(left).collect();
        assert_eq!(left, ["web.disk-0.web-1", "web.disk-", "web2.disk-0"]);
    }
}
