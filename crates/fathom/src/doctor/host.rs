//! What is asked of the host, so that the checks can be tested on hosts that we do not have.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::thread;

use landlock::{AccessFs, LandlockStatus, Ruleset, RulesetAttr};
use memory::{UserFaults, open_userfaultfd};
use rustix::fs::{Access, MemfdFlags, access, memfd_create};

/// A host: its files below `root`, and the answers of its kernel.
pub(super) struct Host {
    root: PathBuf,
    /// As in PATH.
    search: OsString,
    pub(super) kernel_faults: io::Result<()>,
    pub(super) user_faults: io::Result<()>,
    pub(super) memfd: io::Result<()>,
    pub(super) kvm: Kvm,
    pub(super) landlock: Landlock,
    pub(super) cpu: Vec<(&'static str, bool)>,
}

/// What came of a short guest on /dev/kvm.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Kvm {
    Runs,
    Fails { why: String, remedy: &'static str },
}

/// What the kernel says of Landlock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Landlock {
    Version(i32),
    NotEnabled,
    NotInKernel,
    Unknown(String),
}

impl Host {
    pub(super) fn here() -> Self {
        Self {
            root: PathBuf::from("/"),
            search: std::env::var_os("PATH").unwrap_or_default(),
            kernel_faults: open_userfaultfd(UserFaults::All).map(drop),
            user_faults: open_userfaultfd(UserFaults::UserMode).map(drop),
            memfd: memfd_create("fathom-doctor", MemfdFlags::CLOEXEC).map(drop).map_err(Into::into),
            kvm: kvm(),
            landlock: landlock(),
            cpu: cpu(),
        }
    }

    /// A host of files below `root`, whose kernel grants everything.
    #[cfg(test)]
    pub(super) fn at(root: &std::path::Path) -> Self {
        Self {
            root: root.to_owned(),
            search: "/usr/local/bin:/usr/bin".into(),
            kernel_faults: Ok(()),
            user_faults: Ok(()),
            memfd: Ok(()),
            kvm: Kvm::Runs,
            landlock: Landlock::Version(6),
            cpu: vec![("avx2", true)],
        }
    }

    /// A small file, without the white space around it; `None` if it is not there or not for us.
    pub(super) fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok().map(|text| text.trim().to_owned())
    }

    pub(super) fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.parse().ok()
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// Where `name` is in PATH, if it can be run.
    pub(super) fn program(&self, name: &str) -> Option<String> {
        let folders = std::env::split_paths(&self.search).map(|folder| folder.join(name));
        let mut paths = folders.filter_map(|path| path.into_os_string().into_string().ok());
        paths.find(|path| access(self.path(path), Access::EXEC_OK).is_ok())
    }

    /// Opens for reading and writing, as a device is used.
    pub(super) fn open_device(&self, path: &str) -> io::Result<()> {
        File::options().read(true).write(true).open(self.path(path)).map(drop)
    }

    /// `path` is absolute.
    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

fn kvm() -> Kvm {
    match engine_kvm::probe() {
        Ok(()) => Kvm::Runs,
        Err(error) => Kvm::Fails { why: error.to_string(), remedy: error.remedy() },
    }
}

/// Only the act of confining oneself tells the version. Landlock confines the calling thread, so it is one
/// that ends at once.
fn landlock() -> Landlock {
    let confine = || {
        let rules = Ruleset::default().handle_access(AccessFs::Execute)?;
        let status = rules.create()?.restrict_self()?.landlock;
        Ok::<_, landlock::RulesetError>(match status {
            LandlockStatus::Available { effective_abi, kernel_abi } => {
                Landlock::Version(kernel_abi.unwrap_or(effective_abi as i32))
            }
            LandlockStatus::NotEnabled => Landlock::NotEnabled,
            LandlockStatus::NotImplemented => Landlock::NotInKernel,
        })
    };
    match thread::spawn(confine).join() {
        Ok(Ok(landlock)) => landlock,
        Ok(Err(error)) => Landlock::Unknown(error.to_string()),
        Err(_) => Landlock::Unknown("the probe failed".to_owned()),
    }
}

/// Host instructions that the translator lets guests use when the host has them.
fn cpu() -> Vec<(&'static str, bool)> {
    macro_rules! detect {
        ($($feature:tt),+) => { vec![$(($feature, std::is_x86_feature_detected!($feature))),+] };
    }
    detect!(
        "sse4.2",
        "popcnt",
        "cmpxchg16b",
        "xsave",
        "xsavec",
        "avx",
        "avx2",
        "fma",
        "f16c",
        "bmi1",
        "bmi2",
        "lzcnt",
        "movbe",
        "aes",
        "pclmulqdq",
        "sha",
        "rdrand",
        "rdseed"
    )
}
