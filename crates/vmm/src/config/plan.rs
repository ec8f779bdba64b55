//! The checked configuration.

use std::path::{Path, PathBuf};

use super::files::{self, FileId};
use super::network;
use super::{
    Bytes, ConfigError, ConsoleConfig, CpuModel, DEFAULT_CMDLINE, DiskConfig, EngineChoice,
    EstimateLogConfig, GdbConfig, HostCacheConfig, NetConfig, NetPlan, ProfileConfig,
    TranslationOptions, VmConfig, VsockConfig,
};

const MEMORY_MIN: Bytes = Bytes(16 << 20);
const MEMORY_MAX: Bytes = Bytes(1 << 40);
const MEMORY_STEP: u64 = 4096;
const CPUS_MAX: u32 = 64;
/// Disks and network interfaces together: as many as there are interrupts for.
const DISKS_AND_NETS_MAX: usize = 16;
const SECTOR: u64 = 512;
/// A socket's path has 107 bytes; 43 are left for the directory, the slash and `.sock`.
const NAME_MAX: usize = 64;
/// COMMAND_LINE_SIZE of x86 Linux is 2048 with the closing zero.
const CMDLINE_MAX: usize = 2047;

/// A VM that can be started, as far as one can know without starting it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmPlan {
    /// Letters, digits, `.`, `-`, `_`; `1 <= len <= 64`.
    pub name: String,
    /// Was a readable, non-empty regular file.
    pub kernel: PathBuf,
    /// Was a readable, non-empty regular file smaller than memory.
    pub initrd: Option<PathBuf>,
    /// No control characters; `len <= 2047`.
    pub cmdline: String,
    /// `16 MiB <= memory <= 1 TiB`, a multiple of 4 KiB.
    pub memory: Bytes,
    /// `1 <= cpus <= 64`.
    pub cpus: u32,
    /// Which processor they show the guest.
    pub cpu_model: CpuModel,
    /// At most 16, with a vsock 15; no file that one of them writes is used twice.
    pub disks: Vec<DiskPlan>,
    /// With the disks at most 16, with a vsock 15; no two with the same address. Whether the host has them shows when they are
    /// opened, before the process is confined: see [`NetBackend`](super::NetBackend) for what it does later.
    pub nets: Vec<NetPlan>,
    /// The engine that will run it, and why that one.
    pub engine: EnginePlan,
    /// Where the serial console goes; a file was writable or could be created.
    pub console: ConsoleConfig,
    /// Was writable or could be created.
    pub report: Option<PathBuf>,
    /// Was writable or could be created.
    pub cache_log: Option<PathBuf>,
    /// Whether the guest's page cache is followed from its start on.
    pub insight: bool,
    /// 1 MiB or more, whole blocks, less than the host's memory; there is a disk.
    pub host_cache: Option<HostCacheConfig>,
    /// Whether the guest's frames are classified all the time.
    pub classes: bool,
    /// Its files were writable or could be created.
    pub estimate_log: Option<EstimateLogConfig>,
    /// The socket's name is short enough, its folder there; nothing is there that it must not replace.
    pub gdb: Option<GdbConfig>,
    /// Its numbers are in range; nobody listened at its path.
    pub vsock: Option<VsockConfig>,
    /// How the translator's engine works; as by default on another.
    pub translation: TranslationOptions,
    /// Names of its code are written for Linux perf.
    pub perf_map: bool,
    /// Its profile of an earlier run; is a file.
    pub profile: Option<PathBuf>,
    /// Where its profile of this run goes; was writable or could be created.
    pub profile_out: Option<PathBuf>,
    /// As asked.
    asked: VmConfig,
}

/// A disk that can be opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskPlan {
    /// The image or block device.
    pub path: PathBuf,
    /// Its length in bytes; a multiple of 512, not 0.
    pub length: u64,
    /// Where writes go.
    pub access: DiskAccess,
    /// The host cache, where there is one, is for this disk, too.
    pub host_cache: bool,
}

/// Where the guest's writes to a disk go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskAccess {
    /// Into the image.
    Write,
    /// Nowhere: the device refuses them.
    ReadOnly,
    /// Into this file, which exists or can be created; the image stays as it is.
    Overlay(PathBuf),
}

/// The engine that will run the guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EnginePlan {
    /// Which.
    pub kind: EngineKind,
    /// Why, in a few words for the user.
    pub reason: String,
}

/// The engines there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EngineKind {
    /// The processor itself, by /dev/kvm.
    Kvm,
    /// The x86-64 translator.
    Translate,
}

impl EngineKind {
    /// The name used on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Translate => "translate",
        }
    }
}

impl VmPlan {
    /// Checks a configuration. Creates no file; leaves nothing open.
    pub fn new(config: VmConfig) -> Result<Self, ConfigError> {
        let asked = config.clone();
        let engine = engine(config.engine)?;
        let name = name(config.name)?;
        let memory = memory(config.memory)?;
        let cpus = cpus(config.cpus)?;
        let cmdline = cmdline(config.cmdline)?;
        let mut uses = Uses::default();
        uses.add("kernel", &config.kernel, files::readable("kernel", &config.kernel)?.id, false)?;
        if let Some(path) = &config.initrd {
            uses.add("initrd", path, initrd(path, memory)?, false)?;
        }
        // A vsock takes the place of one.
        let places = DISKS_AND_NETS_MAX - usize::from(config.vsock.is_some());
        let disks = disks(config.disks, places, &mut uses)?;
        let nets = network::nets(config.nets, &name, disks.len(), places)?;
        config.host_cache.as_ref().map_or(Ok(()), |cache| cache.check(disks.len()))?;
        if let ConsoleConfig::File(path) = &config.console {
            uses.add_output("console", path)?;
        }
        if let Some(path) = &config.report {
            uses.add_output("report", path)?;
        }
        if let Some(path) = &config.cache_log {
            uses.add_output("cache-log", path)?;
        }
        if let Some(log) = &config.estimate_log {
            uses.add_output("estimate-log", &log.path)?;
            if let Some(path) = &log.accesses {
                uses.add_output("estimate-log accesses", path)?;
            }
        }
        if let Some(gdb) = &config.gdb {
            files::socket("gdb", &gdb.socket)?;
        }
        config.vsock.as_ref().map_or(Ok(()), VsockConfig::check)?;
        let translation = config.translation.options(engine.kind)?;
        let host_cache = config.host_cache;
        let perf_map = config.translation.perf_map;
        let profile = match config.translation.profile {
            Some(ProfileConfig::File(path)) => Some(path),
            _ => None,
        };
        if let Some(path) = &profile {
            uses.add("profile", path, files::readable("profile", path)?.id, false)?;
        }
        let profile_out = config.translation.profile_out;
        if let Some(path) = &profile_out {
            uses.add_output("profile-out", path)?;
        }
        let VmConfig { kernel, initrd, cpu_model, console, report, cache_log, .. } = config;
        let VmConfig { estimate_log, classes, insight, gdb, vsock, .. } = config;
        Ok(Self {
            name,
            kernel,
            initrd,
            cmdline,
            memory,
            cpus,
            cpu_model,
            disks,
            nets,
            engine,
            console,
            report,
            classes,
            cache_log,
            insight,
            host_cache,
            estimate_log,
            gdb,
            vsock,
            translation,
            perf_map,
            profile,
            profile_out,
            asked: pinned(asked),
        })
    }

    /// By disk, the image that is not written while the VM runs: one under an overlay, or one that the guest may only read.
    pub(crate) fn images_that_stay(&self) -> Vec<Option<PathBuf>> {
        let disks = self.asked.disks.iter();
        disks
            .map(|disk| (disk.read_only || disk.overlay.is_some()).then(|| disk.path.clone()))
            .collect()
    }

    /// What a VM like this is built from later: with the name and the addresses that were chosen, without what is
    /// only for this run (console, report, logs, debugger).
    pub(crate) fn as_saved(&self) -> VmConfig {
        let net = |net: &NetPlan| NetConfig {
            backend: net.backend.clone(),
            mac: Some(net.mac),
            mtu: net.mtu,
        };
        VmConfig {
            name: Some(self.name.clone()),
            nets: self.nets.iter().map(net).collect(),
            engine: match self.engine.kind {
                EngineKind::Kvm => EngineChoice::Kvm,
                EngineKind::Translate => EngineChoice::Translate,
            },
            console: ConsoleConfig::default(),
            report: None,
            cache_log: None,
            classes: false,
            estimate_log: None,
            gdb: None,
            ..self.asked.clone()
        }
    }
}

/// With absolute paths, for who is elsewhere later.
fn pinned(config: VmConfig) -> VmConfig {
    let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
    let disk = |disk: DiskConfig| DiskConfig {
        path: absolute(disk.path),
        overlay: disk.overlay.map(absolute),
        ..disk
    };
    VmConfig {
        kernel: absolute(config.kernel),
        initrd: config.initrd.map(absolute),
        disks: config.disks.into_iter().map(disk).collect(),
        vsock: config.vsock.map(|vsock| VsockConfig { path: absolute(vsock.path), ..vsock }),
        ..config
    }
}

impl DiskPlan {
    /// The file that the guest's writes change.
    pub(crate) fn written(&self) -> &Path {
        match &self.access {
            DiskAccess::Overlay(path) => path,
            DiskAccess::Write | DiskAccess::ReadOnly => &self.path,
        }
    }
}

/// What a VM of this process is called that has no name.
#[must_use]
pub fn default_name() -> String {
    format!("vm-{}", std::process::id())
}

/// Whether KVM can run a kernel is found out by running a short guest, which takes milliseconds.
fn engine(choice: EngineChoice) -> Result<EnginePlan, ConfigError> {
    let plan = |kind, reason: &str| EnginePlan { kind, reason: reason.to_owned() };
    Ok(match choice {
        EngineChoice::Translate => plan(EngineKind::Translate, "as asked"),
        EngineChoice::Kvm => match engine_kvm::probe() {
            Ok(()) => plan(EngineKind::Kvm, "as asked"),
            Err(source) => return Err(ConfigError::NoKvm { remedy: source.remedy(), source }),
        },
        EngineChoice::Auto => match engine_kvm::probe() {
            Ok(()) => plan(EngineKind::Kvm, "KVM runs guests here"),
            Err(error) => plan(EngineKind::Translate, &format!("no KVM: {error}")),
        },
    })
}

fn name(asked: Option<String>) -> Result<String, ConfigError> {
    let name = asked.unwrap_or_else(default_name);
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let all = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if first && all && name.len() <= NAME_MAX {
        return Ok(name);
    }
    Err(ConfigError::Name { name: name.escape_debug().collect(), max: NAME_MAX })
}

fn memory(memory: Bytes) -> Result<Bytes, ConfigError> {
    let sane = (MEMORY_MIN..=MEMORY_MAX).contains(&memory) && memory.0.is_multiple_of(MEMORY_STEP);
    if sane {
        return Ok(memory);
    }
    Err(ConfigError::Memory { memory, min: MEMORY_MIN, max: MEMORY_MAX })
}

fn cpus(cpus: u32) -> Result<u32, ConfigError> {
    if (1..=CPUS_MAX).contains(&cpus) {
        return Ok(cpus);
    }
    Err(ConfigError::Cpus { cpus, max: CPUS_MAX })
}

fn cmdline(asked: Option<String>) -> Result<String, ConfigError> {
    let cmdline = asked.unwrap_or_else(|| DEFAULT_CMDLINE.to_owned());
    if cmdline.len() > CMDLINE_MAX {
        return Err(ConfigError::CmdlineLength { length: cmdline.len(), max: CMDLINE_MAX });
    }
    match cmdline.bytes().position(|byte| byte.is_ascii_control()) {
        Some(at) => Err(ConfigError::CmdlineCharacter { at }),
        None => Ok(cmdline),
    }
}

fn initrd(path: &Path, memory: Bytes) -> Result<FileId, ConfigError> {
    let found = files::readable("initrd", path)?;
    if found.length >= memory.0 {
        let (path, length) = (path.to_owned(), found.length);
        return Err(ConfigError::InitrdTooLarge { path, length, memory });
    }
    Ok(found.id)
}

fn disks(
    asked: Vec<DiskConfig>,
    max: usize,
    uses: &mut Uses,
) -> Result<Vec<DiskPlan>, ConfigError> {
    if asked.len() > max {
        return Err(ConfigError::Disks { disks: asked.len(), max });
    }
    asked.into_iter().map(|config| disk(config, uses)).collect()
}

fn disk(config: DiskConfig, uses: &mut Uses) -> Result<DiskPlan, ConfigError> {
    let DiskConfig { path, read_only, overlay, no_host_cache } = config;
    let access = match overlay {
        Some(overlay) => DiskAccess::Overlay(overlay),
        None if read_only => DiskAccess::ReadOnly,
        None => DiskAccess::Write,
    };
    let write = access == DiskAccess::Write;
    let found = files::disk(&path, write)?;
    if !found.length.is_multiple_of(SECTOR) {
        return Err(ConfigError::DiskLength { path, length: found.length });
    }
    uses.add("disk", &path, found.id, write)?;
    if let DiskAccess::Overlay(overlay) = &access {
        uses.add_output("overlay", overlay)?;
    }
    Ok(DiskPlan { path, length: found.length, access, host_cache: !no_host_cache })
}

/// The files used so far, so that none that is written is used twice.
#[derive(Default)]
struct Uses(Vec<Use>);

struct Use {
    role: &'static str,
    target: Target,
    writes: bool,
}

#[derive(PartialEq)]
enum Target {
    There(FileId),
    ToCreate(PathBuf),
}

impl Uses {
    fn add(
        &mut self,
        role: &'static str,
        path: &Path,
        id: FileId,
        writes: bool,
    ) -> Result<(), ConfigError> {
        self.insert(path, Use { role, target: Target::There(id), writes })
    }

    /// A file that we write and perhaps create. `/dev/null`, a terminal or a pipe may be named twice.
    fn add_output(&mut self, role: &'static str, path: &Path) -> Result<(), ConfigError> {
        let target = match files::writable(role, path)? {
            Some(_) if role != "overlay" && !path.is_file() => return Ok(()),
            Some(id) => Target::There(id),
            None => Target::ToCreate(path.to_owned()),
        };
        self.insert(path, Use { role, target, writes: true })
    }

    fn insert(&mut self, path: &Path, new: Use) -> Result<(), ConfigError> {
        let clash =
            self.0.iter().find(|old| old.target == new.target && (old.writes || new.writes));
        if let Some(old) = clash {
            let (writer, other) =
                if new.writes { (new.role, old.role) } else { (old.role, new.role) };
            return Err(ConfigError::Shared { path: path.to_owned(), writer, other });
        }
        self.0.push(new);
        Ok(())
    }
}
