//! Limits on what a VM's process takes of the host: a control group of its own, version 1 or 2.
//!
//! The group is `PARENT/NAME` below the place where the host has mounted the controller
//! (/proc/self/mountinfo). It stays when the VM has ended, since a process cannot remove the group that it is
//! in; the next VM of that name takes it again.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};

/// What a VM may take, and the group in which groups of VMs are.
#[derive(Clone, PartialEq, Debug)]
pub struct Cgroup {
    /// Relative, such as `vms`.
    pub parent: PathBuf,
    /// Bytes of the host's memory, guest memory among them.
    pub memory: Option<u64>,
    /// Processors' worth of time, such as 1.5.
    pub cpus: Option<f64>,
}

/// Why a limit does not hold.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// It is no path below another.
    #[error("control group {0}: expected a relative path such as vms, and a name without /")]
    Path(PathBuf),
    /// Less than a thousandth of a processor, or more than the kernel takes.
    #[error("{0} processors: expected from 0.001 to 100000")]
    Cpus(f64),
    /// The host has no such controller.
    #[error(
        "no control group limits {controller} on this host: mount one with it, or enable it (echo \
         +{controller} >cgroup.subtree_control, from the top down)"
    )]
    NoController {
        /// Its name.
        controller: &'static str,
    },
    /// The host refused.
    #[error("{path}: {source}: make {} writable for this user, or start as root", parent_of(path).display())]
    Host {
        /// What was made or written.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

fn parent_of(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// A limit, as either version takes it.
struct Limit {
    controller: &'static str,
    v1: Vec<(&'static str, String)>,
    v2: (&'static str, String),
}

/// cpu(5) and the kernel's admin-guide: time is dealt out in periods, in µs.
const PERIOD_US: f64 = 100_000.0;

impl Cgroup {
    /// Makes the group for the VM `name`, sets its limits and moves this process into it.
    ///
    /// # Errors
    /// See [`CgroupError`]. Some limits may hold already.
    pub fn enter(&self, name: &str) -> Result<(), CgroupError> {
        let mounts = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(mounts)
            .map_err(|source| CgroupError::Host { path: mounts.to_owned(), source })?;
        self.enter_in(&hierarchies(&text), name)
    }

    fn enter_in(&self, mounted: &[Hierarchy], name: &str) -> Result<(), CgroupError> {
        let plain = |path: &Path| {
            let mut parts = path.components();
            parts.all(|part| matches!(part, Component::Normal(_))) && !path.as_os_str().is_empty()
        };
        let group = self.parent.join(name);
        if !plain(&self.parent) || !plain(Path::new(name)) || name.contains('/') {
            return Err(CgroupError::Path(group));
        }
        for limit in self.limits()? {
            let hierarchy = Hierarchy::with(mounted, limit.controller)?;
            let group = hierarchy.make(&group, limit.controller)?;
            match hierarchy.version {
                Version::One(_) => {
                    limit
                        .v1
                        .iter()
                        .try_for_each(|(file, value)| write(&group.join(file), value))?;
                }
                Version::Two => write(&group.join(limit.v2.0), &limit.v2.1)?,
            }
            // In all its threads; there is one yet.
            write(&group.join("cgroup.procs"), &std::process::id().to_string())?;
        }
        Ok(())
    }

    fn limits(&self) -> Result<Vec<Limit>, CgroupError> {
        let mut limits = Vec::new();
        if let Some(bytes) = self.memory {
            limits.push(Limit {
                controller: "memory",
                v1: vec![("memory.limit_in_bytes", bytes.to_string())],
                v2: ("memory.max", bytes.to_string()),
            });
        }
        if let Some(cpus) = self.cpus {
            if !(0.001..=100_000.0).contains(&cpus) {
                return Err(CgroupError::Cpus(cpus));
            }
            // The kernel takes no quota below a millisecond: a longer period then.
            let period = if cpus < 0.01 { PERIOD_US * 10.0 } else { PERIOD_US };
            let quota = (cpus * period).round();
            limits.push(Limit {
                controller: "cpu",
                v1: vec![
                    ("cpu.cfs_period_us", period.to_string()),
                    ("cpu.cfs_quota_us", quota.to_string()),
                ],
                v2: ("cpu.max", format!("{quota} {period}")),
            });
        }
        Ok(limits)
    }
}

/// Where a tree of groups is mounted.
#[derive(PartialEq, Debug)]
struct Hierarchy {
    mount: PathBuf,
    version: Version,
}

#[derive(PartialEq, Debug)]
enum Version {
    /// With these controllers.
    One(Vec<String>),
    Two,
}

/// `36 35 98:0 /root /mount/point rw,relatime shared:1 - cgroup cgroup rw,memory`: proc_pid_mountinfo(5).
fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let parse = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mount = PathBuf::from(left.split(' ').nth(4)?);
        let mut right = right.split(' ');
        let version = match right.next()? {
            "cgroup2" => Version::Two,
            "cgroup" => Version::One(right.nth(1)?.split(',').map(str::to_owned).collect()),
            _ => return None,
        };
        Some(Hierarchy { mount, version })
    };
    mountinfo.lines().filter_map(parse).collect()
}

impl Hierarchy {
    /// A controller is in one hierarchy only.
    fn with<'a>(mounted: &'a [Self], controller: &'static str) -> Result<&'a Self, CgroupError> {
        let has = |hierarchy: &&Self| match &hierarchy.version {
            Version::One(controllers) => controllers.iter().any(|name| name == controller),
            Version::Two => lists(&hierarchy.mount.join("cgroup.controllers"), controller),
        };
        mounted.iter().find(has).ok_or(CgroupError::NoController { controller })
    }

    /// The group at `path` below the mount, made with all that are above it.
    fn make(&self, path: &Path, controller: &'static str) -> Result<PathBuf, CgroupError> {
        let mut group = self.mount.clone();
        for part in path {
            if self.version == Version::Two
                && !lists(&group.join("cgroup.subtree_control"), controller)
            {
                write(&group.join("cgroup.subtree_control"), &format!("+{controller}"))?;
            }
            group.push(part);
            match fs::create_dir(&group) {
                Err(source) if source.kind() != ErrorKind::AlreadyExists => {
                    return Err(CgroupError::Host { path: group, source });
                }
                _ => {}
            }
        }
        Ok(group)
    }
}

/// Whether a file of names has this one.
fn lists(path: &Path, name: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.split_whitespace().any(|found| found == name))
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    fs::write(path, value).map_err(|source| CgroupError::Host { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 30 0:23 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
26 25 0:24 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
27 25 0:25 / /sys/fs/cgroup/memory rw,relatime shared:10 - cgroup cgroup rw,memory
28 25 0:26 / /sys/fs/cgroup/unified rw,relatime shared:11 - cgroup2 cgroup2 rw,nsdelegate
";

    #[test]
    fn mounts_of_both_versions_are_found() {
        let found = hierarchies(HYBRID);
        let one =
            |names: &[&str]| Version::One(names.iter().map(|&name| name.to_owned()).collect());
        let expected = [
            ("/sys/fs/cgroup/cpu,cpuacct", one(&["rw", "cpu", "cpuacct"])),
            ("/sys/fs/cgroup/memory", one(&["rw", "memory"])),
            ("/sys/fs/cgroup/unified", Version::Two),
        ];
        let expected = expected.map(|(mount, version)| Hierarchy { mount: mount.into(), version });
        assert_eq!(found, expected);
        assert_eq!(Hierarchy::with(&found, "cpu").expect("a controller"), &found[0]);
        let error = Hierarchy::with(&found, "io").expect_err("no such controller");
        assert!(error.to_string().contains("+io >cgroup.subtree_control"), "{error}");
    }

    /// A folder that looks like a mount.
    fn tree(version: Version) -> (tempfile::TempDir, [Hierarchy; 1]) {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join("cgroup.controllers"), "cpu memory pids\n").expect("file");
        let mount = folder.path().to_owned();
        (folder, [Hierarchy { mount, version }])
    }

    fn limited(memory: Option<u64>, cpus: Option<f64>) -> Cgroup {
        Cgroup { parent: "vms".into(), memory, cpus }
    }

    #[test]
    fn version_two_gets_its_controllers_enabled_from_the_top_down() {
        let (folder, mounted) = tree(Version::Two);
        limited(Some(1 << 30), Some(1.5)).enter_in(&mounted, "web").expect("entered");
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).expect(name);
        assert_eq!(read("vms/web/memory.max"), "1073741824");
        assert_eq!(read("vms/web/cpu.max"), "150000 100000");
        assert_eq!(read("vms/web/cgroup.procs"), std::process::id().to_string());
        assert_eq!(read("cgroup.subtree_control"), "+cpu");
        assert_eq!(read("vms/cgroup.subtree_control"), "+cpu");
    }

    #[test]
    fn version_one_has_other_files() {
        let controllers = ["rw", "cpu", "memory"].map(str::to_owned).to_vec();
        let (folder, mounted) = tree(Version::One(controllers));
        limited(Some(4096), Some(0.005)).enter_in(&mounted, "web").expect("entered");
        let read = |name: &str| fs::read_to_string(folder.path().join("vms/web").join(name));
        assert_eq!(read("memory.limit_in_bytes").expect("limit"), "4096");
        assert_eq!(read("cpu.cfs_period_us").expect("period"), "1000000");
        assert_eq!(read("cpu.cfs_quota_us").expect("quota"), "5000");
    }

    #[test]
    fn what_is_no_group_or_no_limit_is_refused() {
        let (_folder, mounted) = tree(Version::Two);
        for parent in ["", "/vms", "../vms", "vms/../.."] {
            let group = Cgroup { parent: parent.into(), memory: Some(1), cpus: None };
            let refused = group.enter_in(&mounted, "web");
            assert!(matches!(refused, Err(CgroupError::Path(_))), "{parent}");
        }
        let refused = limited(Some(1), None).enter_in(&mounted, "..");
        assert!(matches!(refused, Err(CgroupError::Path(_))));
        for cpus in [0.0, -1.0, f64::NAN, 1e9] {
            let refused = limited(None, Some(cpus)).enter_in(&mounted, "web");
            assert!(matches!(refused, Err(CgroupError::Cpus(_))), "{cpus}");
        }
    }
}
