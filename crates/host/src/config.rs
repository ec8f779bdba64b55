//! What VMs there are to be: a directory with a file for each.
//!
//! ```toml
//! # web.toml: the VM `web`
//! owner = "shop"              # shares frames with VMs of the same owner, and those that say none with each other
//!
//! [run]                       # options of `fathom run`, without their dashes
//! kernel = "vmlinuz"
//! initrd = "initrd.img"
//! memory = "512M"
//! cpus = 2
//! disk = ["root.img,overlay=web.cow"]
//!
//! [memory]                    # all of it may be left out
//! shares = 2000               # 1000
//! reservation = "64M"         # none
//! limit = "400M"              # all
//!
//! [start]
//! restart = "on-failure"      # never, on-failure, always
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;
use toml::Value;
use vmm::config::Bytes;

/// Memory of a VM that says nothing, as of `fathom run`: bytes.
const SIZE: u64 = 256 << 20;
/// A file with more bytes is none of ours.
const BYTES_MAX: u64 = 1 << 20;

/// The VMs of a directory.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// By name.
    pub vms: BTreeMap<String, VmFile>,
}

/// What a file says of its VM.
#[derive(Clone, Debug, PartialEq)]
pub struct VmFile {
    /// Where it was read.
    pub path: PathBuf,
    /// Arguments of `fathom run`.
    pub arguments: Vec<String>,
    /// What it may have.
    pub memory: Memory,
    /// Whose it is: it shares frames with VMs of the same owner only.
    pub owner: Option<String>,
    /// Whether it is started again.
    pub restart: Restart,
}

/// What a VM may have of the host's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Its weight against others.
    pub shares: u32,
    /// Bytes that it has whatever others need.
    pub reservation: u64,
    /// Bytes that it has at most; `None`: all that its guest was told of.
    pub limit: Option<u64>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { shares: 1000, reservation: 0, limit: None }
    }
}

/// Whether a VM is started again when it has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Never.
    Never,
    /// When its process failed or its guest panicked. A guest that powers itself off, or is stopped, stays so.
    #[default]
    OnFailure,
    /// However it ended.
    Always,
}

/// A file that says what cannot be. What it said before stays in force.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The host refused.
    #[error("{path}: {source}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Not TOML, or not ours.
    #[error("{path}:{line}: {what}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// One line.
        what: String,
    },
    /// What it says cannot be.
    #[error("{path}: {what}")]
    Value {
        /// The file.
        path: PathBuf,
        /// What, and what could.
        what: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    owner: Option<String>,
    run: toml::Table,
    #[serde(default)]
    memory: RawMemory,
    #[serde(default)]
    start: RawStart,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawMemory {
    shares: Option<u32>,
    reservation: Option<String>,
    limit: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawStart {
    restart: Restart,
}

impl Configuration {
    /// All files `*.toml` of `directory`. Of those that are wrong the one in `before` stays, and the error says so.
    ///
    /// # Errors
    /// The directory cannot be read; nothing is known then.
    pub fn read(directory: &Path, before: &Self) -> Result<(Self, Vec<ConfigError>), ConfigError> {
        let failed = |source| ConfigError::Read { path: directory.to_owned(), source };
        let (mut vms, mut errors) = (BTreeMap::new(), Vec::new());
        for entry in fs::read_dir(directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let Some(name) = name_of(&path) else { continue };
            match VmFile::read(&path) {
                Ok(file) => {
                    vms.insert(name, file);
                }
                Err(error) => {
                    errors.push(error);
                    if let Some(file) = before.vms.get(&name) {
                        vms.insert(name, file.clone());
                    }
                }
            }
        }
        Ok((Self { vms }, errors))
    }

    /// By which it is seen that a file came, went or changed.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub(crate) fn stamp(directory: &Path) -> io::Result<Vec<(PathBuf, u64, Option<SystemTime>)>> {
        let mut stamp = Vec::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if name_of(&path).is_some() {
                let metadata = fs::metadata(&path);
                let of = |metadata: &fs::Metadata| (metadata.len(), metadata.modified().ok());
                let (bytes, modified) = metadata.as_ref().map_or((0, None), of);
                stamp.push((path, bytes, modified));
            }
        }
        stamp.sort();
        Ok(stamp)
    }
}

fn name_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_suffix(".toml")?;
    (!name.is_empty() && !name.starts_with('.')).then(|| name.to_owned())
}

impl VmFile {
    /// What its guest is told it has, as `fathom run` takes it: bytes.
    pub(crate) fn size(&self) -> u64 {
        let mut said = self.arguments.iter().rev();
        let said = said.find_map(|argument| argument.strip_prefix("--memory="));
        said.and_then(bytes).unwrap_or(SIZE)
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Read { path: path.to_owned(), source };
        if fs::metadata(path).map_err(failed)?.len() > BYTES_MAX {
            let what = format!("more than {BYTES_MAX} bytes");
            return Err(ConfigError::Value { path: path.to_owned(), what });
        }
        Self::parse(path, &fs::read_to_string(path).map_err(failed)?)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text).map_err(|error: toml::de::Error| {
            let before = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = 1 + text.as_bytes()[..before].iter().filter(|&&byte| byte == b'\n').count();
            let what = error.message().lines().next().unwrap_or("not TOML").to_owned();
            ConfigError::Syntax { path: path.to_owned(), line, what }
        })?;
        let wrong = |what: String| ConfigError::Value { path: path.to_owned(), what };
        let mut arguments = Vec::new();
        for (option, value) in &raw.run {
            if option == "name" {
                return Err(wrong("[run] name: the file's name is the VM's".to_owned()));
            }
            add(&mut arguments, option, value)
                .map_err(|what| wrong(format!("[run] {option}: {what}")))?;
        }
        let size = |name: &str, text: &Option<String>| match text {
            None => Ok(None),
            Some(text) => bytes(text).map(Some).ok_or_else(|| {
                wrong(format!("[memory] {name} = \"{text}\": write a size such as \"256M\""))
            }),
        };
        let memory = Memory {
            shares: raw.memory.shares.unwrap_or(1000),
            reservation: size("reservation", &raw.memory.reservation)?.unwrap_or(0),
            limit: size("limit", &raw.memory.limit)?,
        };
        if memory.shares == 0 {
            return Err(wrong("[memory] shares = 0: at least 1 is needed".to_owned()));
        }
        if memory.limit.is_some_and(|limit| limit < memory.reservation) {
            let what = "[memory] a reservation beyond the limit could never be kept".to_owned();
            return Err(wrong(what));
        }
        let restart = raw.start.restart;
        let owner = raw.owner;
        Ok(Self { path: path.to_owned(), arguments, memory, owner, restart })
    }
}

/// `cpus = 2` is `--cpus=2`, `true` an option without a value, a list the option several times.
fn add(arguments: &mut Vec<String>, option: &str, value: &Value) -> Result<(), String> {
    let plain = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        other => Err(format!("{} is no value of an option", other.type_str())),
    };
    match value {
        Value::Boolean(true) => arguments.push(format!("--{option}")),
        Value::Boolean(false) => {}
        Value::Array(values) => {
            for value in values {
                arguments.push(format!("--{option}={}", plain(value)?));
            }
        }
        value => arguments.push(format!("--{option}={}", plain(value)?)),
    }
    Ok(())
}

/// `64M`, `1G`, `4096`, as `fathom run` takes them, within what hosts have.
fn bytes(text: &str) -> Option<u64> {
    text.parse().ok().map(|Bytes(bytes)| bytes).filter(|bytes| *bytes < 1 << 50)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<VmFile, String> {
        VmFile::parse(Path::new("web.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_says_how_a_vm_is_run() {
        let text = "owner = \"shop\"\n[run]\nkernel = \"vmlinuz\"\ncpus = 2\ndisk = [\"a\", \"b,ro\"]\ninsight = \"on\"\n\
            paused = true\nquick = false\n[memory]\nshares = 2000\nreservation = \"64M\"\n[start]\nrestart = \"always\"\n";
        let file = parse(text).expect("right");
        let mut arguments = file.arguments.clone();
        arguments.sort();
        let expected =
            ["--cpus=2", "--disk=a", "--disk=b,ro", "--insight=on", "--kernel=vmlinuz", "--paused"];
        assert_eq!(arguments, expected);
        assert_eq!(file.memory, Memory { shares: 2000, reservation: 64 << 20, limit: None });
        assert_eq!((file.restart, file.owner.as_deref()), (Restart::Always, Some("shop")));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let cases = [
            ("", "web.toml:1: missing field `run`"),
            ("[run]\nkernel = \n", "web.toml:2: "),
            ("[run]\n[memory]\nshare = 3\n", "web.toml:3: unknown field `share`"),
            ("[run]\nname = \"x\"\n", "the file's name is the VM's"),
            ("[run]\ncpus = { a = 1 }\n", "[run] cpus: table is no value"),
            ("[run]\n[memory]\nshares = 0\n", "shares = 0"),
            ("[run]\n[memory]\nlimit = \"1X\"\n", "limit = \"1X\": write a size"),
            ("[run]\n[memory]\nlimit = \"1M\"\nreservation = \"2M\"\n", "could never be kept"),
            ("[run]\n[start]\nrestart = \"perhaps\"\n", "web.toml:3: unknown variant"),
        ];
        for (text, expected) in cases {
            let error = parse(text).expect_err(text);
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        assert_eq!(bytes("99999999999G"), None);
        assert_eq!(["1K", "7", "G", "", "-1M"].map(bytes), [Some(1024), Some(7), None, None, None]);
    }

    #[test]
    fn a_file_that_becomes_wrong_leaves_what_it_said() {
        let folder = tempfile::tempdir().expect("folder");
        let write = |text| fs::write(folder.path().join("web.toml"), text).expect("written");
        fs::write(folder.path().join("notes.txt"), "not ours").expect("written");
        write("[run]\ncpus = 1\n");
        let (first, errors) =
            Configuration::read(folder.path(), &Configuration::default()).expect("read");
        assert!(errors.is_empty() && first.vms.len() == 1);
        write("[run\n");
        let (second, errors) = Configuration::read(folder.path(), &first).expect("read");
        assert_eq!(second.vms["web"], first.vms["web"]);
        assert_eq!(errors.len(), 1);
        assert!(Configuration::read(Path::new("/nowhere"), &first).is_err());
    }
}
