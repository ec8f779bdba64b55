//! What the user may write.

mod agent;
mod cgroup;
mod disk;
mod estimate;
mod gdb;
mod host_cache;
mod identity;
pub(crate) mod net;
mod pool;
mod reclaim;
mod serve;
mod store;
mod translate;
mod vsock;

pub(crate) use agent::{AgentArguments, AgentVerb};
pub(crate) use identity::IdentityArguments;
pub(crate) use reclaim::ReclaimArguments;
pub(crate) use serve::{BalanceArguments, ServeArguments};
pub(crate) use store::{PullArguments, PushArguments};

use std::path::PathBuf;
use std::time::Duration;

pub(crate) use pool::{DockArguments, PoolArguments, PoolCommand, PoolPlace};

use clap::{Args, Parser, Subcommand, ValueEnum};
use snapshot::Compression;
use vmm::RestoreMode;
use vmm::config::{
    Bytes, ConsoleConfig, CpuModel, DEFAULT_CMDLINE, DiskConfig, EngineChoice, EstimateLogConfig,
    GdbConfig, HostCacheConfig, NetConfig, TranslationConfig, VmConfig, VsockConfig,
};

const EXAMPLES: &str = "\
Example:
  fathom run --kernel vmlinuz --initrd initrd.img --memory 512M --cpus 2 --name web
  fathom top

Environment:
  FATHOM_LOG       what to log on standard error: error, warn (default), info, debug, trace,
                   or by crate, such as vmm=debug,warn
  XDG_RUNTIME_DIR  sockets of running VMs are in its directory fathom; without it, in /tmp/fathom-UID";

const RUN_AFTER: &str = "\
Exit status:
  0  the guest powered off, or was stopped
  1  the host failed
  2  bad usage, such as a file that is not there
  3  the guest's kernel panicked

On a terminal all keys go to the guest. Ctrl-A x stops the VM; Ctrl-A Ctrl-A sends one Ctrl-A.

Example:
  fathom run --kernel /boot/vmlinuz --initrd initrd.img --memory 512M --cpus 2 \\
      --disk root.img,overlay=changes.cow --net passt,tcp=8080:80 --name web
  fathom run --kernel vmlinuz --initrd initrd.img --memory 256M --disk root.img,overlay=changes.cow \\
      --host-cache 256M,policy=eviction --report report.json
  fathom run --kernel vmlinuz --engine translate --translate hot=1,no-links --translate-stats";

const LIST_AFTER: &str = "\
Example:
  fathom list
  fathom list --json";

const TOP_AFTER: &str = "\
Keys: q leaves, the arrows move, Enter shows one VM: what its memory was over time, how long it has been idle, its
miss-ratio curve; Esc leads back.

CACHE is what the guest has of its disks (run --insight on), FREE what it never used or has given back, IDLE what the host holds and
the guest has not touched for a minute, EVICT/s how many blocks of its disks a second it had to forget and may
want again. What is not known shows -.

A VM begins to watch its working set when it is asked, and stops a minute after it was asked last. So a
window shows - until it has passed once.

Example:
  fathom top
  fathom top --once --json";

const EXPLAIN_AFTER: &str = "\
Nothing in the guest is asked or changed. To know what is idle the VM's accesses are watched for a minute from
the first question on: asked again, it knows more.

Example:
  fathom explain web
  fathom explain web --json";

const CURVE_AFTER: &str = "\
The curve is learnt from blocks of disks that the guest had evicted and read again, from its start on, if it was
started with --insight on: it says what more memory would have saved.

Example:
  fathom curve web
  fathom curve web --svg web.svg
  fathom curve web --json";

const INSPECT_AFTER: &str = "\
The guest's memory is read while it runs, and nothing in it is changed: the figures are those of about one
moment. `fathom pause` before gives a still picture. Linux 6.1 and later tells all; what is missing is said.

Example:
  fathom inspect web
  fathom inspect web --json
  fathom inspect web --symbol start_kernel
  fathom inspect web --type task_struct.comm";

const PAUSE_AFTER: &str = "\
Example:
  fathom pause web";

const RESUME_AFTER: &str = "\
Example:
  fathom resume web";

const STOP_AFTER: &str = "\
The guest is not asked: as far as it can tell, the power fails. What it has flushed to its disks is there.

Example:
  fathom stop web";

const SAVE_AFTER: &str = "\
The guest stands while it is written. Without --stop it goes on then, and what it writes to a disk that is not
read-only makes the snapshot useless: use --stop, or an overlay that is copied beside it.

Example:
  fathom save web web.snapshot --stop
  fathom restore web.snapshot
  fathom save web web.later --incremental web.snapshot --compress zstd";

const RESTORE_AFTER: &str = "\
The VM is as it was, with the disks, networks and sockets that it had, which nobody else may have now. Its clocks
show the time of day, its random numbers are new where the kernel knows of generations (CONFIG_VMGENID), its
networks announce themselves; connections over vsock and passt are gone. What the guest was shown of the processor
must be here: --cpu-model common lets it go on on the other engine. A reboot of the guest starts from its kernel's file.
From an object store a process beside it reads, with the AWS_ variables as of `push`, which the VM's process has not.

Exit status: as of `run`.

Example:
  fathom save web web.snapshot --stop
  fathom restore web.snapshot
  fathom restore s3://backups/web --mode lazy
  fathom restore web.snapshot --name web2 --engine translate --console web2.log";

const CLONE_AFTER: &str = "\
The guest stands for milliseconds, however much memory it has: from then on its memory is in common with the clones',
and each has pages of its own only of what it writes. A clone is a VM like any other: list, stop, save, clone it. It has
its own
  name      NAME-1, NAME-2, ... or as --name says
  disks     those that are written: an overlay beside the parent's, FILE.CLONE. An image that the parent writes to
            directly cannot be kept from changing under its clones: run the parent with --disk IMAGE,overlay=FILE
  vsock     the parent's path and its name, PATH.CLONE; the address is the next one that the parent's clones leave
  network   a passt without forwarded ports. A TAP interface or a socket of passt cannot be had twice: refused
Its random numbers are new where the kernel knows of generations (CONFIG_VMGENID), and its clocks go on.

Cloned a second time, what the VM has written since is copied, while it stands, and all of its memory before that.

Example:
  fathom clone web --count 8
  fathom clone web --name test --output logs --json";

const ACTIVATE_AFTER: &str = "\
The snapshot's memory is mapped, and is in the host's page cache once, however many VMs lie over it; each has pages of its
own only of what it writes. It is checked before they start, and must stay as it is while they run: `fathom save --replace`
does not touch it. Names, disks, vsock and network are as of `fathom clone`. A disk that was written after the save is refused.

A name without a slash, where no such path is, is that of a substrate (`fathom dock`).

Example:
  fathom dock web
  fathom activate web --count 20
  fathom save web web.snapshot --stop
  fathom activate web.snapshot --count 20
  fathom activate web.snapshot --name test --output logs --json
  fathom activate web.snapshot --count 3 --memory 128M --hostname web{n} --address 192.168.77.{n+9}/24,gateway=192.168.77.1
  fathom activate --cluster shop.toml

What a VM is told about itself goes through the agent in its guest (docs/snapshots.md); --memory does not need one.
{n} is the number of the VM, from 1 on, and {n+9} and {n-1} count from there.";

const LEARN_PROCESS_AFTER: &str = "\
Example:
  fathom learn-process is started by fathom restore";

const CLONE_PROCESS_AFTER: &str = "\
Example:
  fathom clone-process is started by fathom clone";

const BALLOON_AFTER: &str = "\
The guest gives up memory at its own pace, as much as it can spare; `fathom top` shows how far it has come.

Example:
  fathom balloon web 128M     take 128 MiB from the guest
  fathom balloon web 0        give all of it back
  fathom balloon web          show what is taken";

const DOCTOR_AFTER: &str = "\
Exit status: 0, or 1 if VMs cannot run here.

Example:
  fathom doctor
  fathom doctor --json";

/// Runs unmodified Linux guests, with or without KVM, and knows what they do with their memory
#[derive(Debug, Parser)]
#[command(name = "fathom", version, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// `fathom clone-process` alone.
#[derive(Debug, Parser)]
struct CloneProcess {
    #[command(flatten)]
    arguments: CloneProcessArguments,
}

impl Arguments {
    /// What this process was given. That of a clone runs a hundred times beside itself, and memory that it once had for the
    /// options of all other commands would stay its own.
    pub(crate) fn read() -> Result<Self, clap::Error> {
        let mut given = std::env::args_os().skip(1);
        if given.next().is_none_or(|command| command != "clone-process") {
            return Self::try_parse();
        }
        let CloneProcess { arguments } = CloneProcess::try_parse_from(std::env::args_os().skip(1))?;
        Ok(Self { command: Command::CloneProcess(arguments) })
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a VM until it ends
    #[command(after_help = RUN_AFTER)]
    Run(Box<RunArguments>),
    /// List the VMs that are running
    #[command(after_help = LIST_AFTER)]
    List(ListArguments),
    /// Watch the memory and CPU of every VM that is running
    #[command(after_help = TOP_AFTER)]
    Top(TopArguments),
    /// Account for every byte of a VM's memory: what it is, why it is there, what it would cost to take it
    #[command(after_help = EXPLAIN_AFTER)]
    Explain(PictureArguments),
    /// Show how many misses a VM would have with more memory
    #[command(after_help = CURVE_AFTER)]
    Curve(CurveArguments),
    /// Show what a guest's Linux kernel says of its memory and processes
    #[command(after_help = INSPECT_AFTER)]
    Inspect(InspectArguments),
    /// Stop the vCPUs of a VM until it is resumed
    #[command(after_help = PAUSE_AFTER)]
    Pause(VmArgument),
    /// Let a paused VM go on
    #[command(after_help = RESUME_AFTER)]
    Resume(VmArgument),
    /// End a VM
    #[command(after_help = STOP_AFTER)]
    Stop(VmArgument),
    /// Write a VM down while it stands, to go on later or elsewhere
    #[command(after_help = SAVE_AFTER)]
    Save(SaveArguments),
    /// Run a VM that was saved until it ends
    #[command(after_help = RESTORE_AFTER)]
    Restore(RestoreArguments),
    /// Make copies of a running VM, which go on from where it is and have its memory in common with it
    #[command(after_help = CLONE_AFTER)]
    Clone(CloneArguments),
    /// Start VMs that go on from a substrate or a snapshot, with its memory in common
    #[command(after_help = ACTIVATE_AFTER)]
    Activate(ActivateArguments),
    /// Keep a VM in memory, small and with others, to be started from there
    #[command(after_help = pool::DOCK_AFTER)]
    Dock(DockArguments),
    /// List what is kept in memory and what it costs
    #[command(after_help = pool::POOL_AFTER)]
    Pool(PoolArguments),
    /// Put a snapshot into an object store, or a folder of snapshots
    #[command(after_help = store::PUSH_AFTER)]
    Push(PushArguments),
    /// Get a snapshot from an object store
    #[command(after_help = store::PULL_AFTER)]
    Pull(PullArguments),
    /// Ask the agent in a guest, over vsock
    #[command(after_help = agent::AFTER)]
    Agent(AgentArguments),
    /// The process that keeps what a restore learns
    #[command(hide = true, after_help = LEARN_PROCESS_AFTER)]
    LearnProcess(LearnProcessArguments),
    /// The process of a clone
    #[command(hide = true, after_help = CLONE_PROCESS_AFTER)]
    CloneProcess(CloneProcessArguments),
    /// Take memory from a VM, or give it back
    #[command(after_help = BALLOON_AFTER)]
    Balloon(BalloonArguments),
    /// Take memory from a VM whose guest does not give it
    #[command(after_help = reclaim::AFTER)]
    Reclaim(ReclaimArguments),
    /// Keep many VMs on this host: start them, start them again, and move memory to those that use it
    #[command(after_help = serve::AFTER)]
    Serve(ServeArguments),
    /// Show which VM is to have how much memory, and why
    #[command(after_help = serve::BALANCE_AFTER)]
    Balance(BalanceArguments),
    /// Say what this machine can do, and what mends what it cannot
    #[command(after_help = DOCTOR_AFTER)]
    Doctor(DoctorArguments),
}

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// Kernel: a bzImage of any compression, or an ELF vmlinux
    #[arg(long, value_name = "PATH")]
    kernel: PathBuf,
    /// Initial RAM disk
    #[arg(long, value_name = "PATH")]
    initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "STR", default_value = DEFAULT_CMDLINE, allow_hyphen_values = true)]
    cmdline: String,
    /// Memory of the guest: bytes, or with K, M, G or T
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    pub(crate) memory: Bytes,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// The processor that the guest sees: full is all that the engine has, common what a guest can use on
    /// either engine
    #[arg(long, value_enum, default_value_t = CpuModelArgument::Full)]
    cpu_model: CpuModelArgument,
    /// A raw image or block device; may be given several times. With `ro` it is never written; with an
    /// overlay, what the guest writes goes there, so that many VMs can share one image
    #[arg(long = "disk", value_name = "PATH[,ro][,overlay=PATH][,no-host-cache]", value_parser = disk::parse)]
    disks: Vec<DiskConfig>,
    /// A cache of the disks' blocks in the VM's process, so large, beside what the guest caches itself. policy=eviction:
    /// a block enters when the guest is seen to evict it, so that it is in one of the two; policy=demand: when the guest
    /// reads it. Disks are read and written past the host's page cache where they can be; a report says which
    #[arg(
        long,
        value_name = "SIZE[,policy=eviction|demand]",
        value_parser = host_cache::parse
    )]
    host_cache: Option<HostCacheConfig>,
    /// A network interface; may be given several times. tap= is a TAP interface of the host. passt needs no
    /// privileges: Fathom starts it, or connects to one that listens at SOCKET; tcp= and udp= forward a port
    /// of the host to the guest. `user` is passt by another name
    #[arg(
        long = "net",
        value_name = "tap=NAME|passt[=SOCKET][,mac=..][,mtu=..][,tcp=..]",
        value_parser = net::parse
    )]
    nets: Vec<NetConfig>,
    /// What runs the guest: KVM, our translator, or the faster of the two that works here
    #[arg(long, value_enum, default_value_t = EngineArgument::Auto)]
    engine: EngineArgument,
    /// How the translator works, for finding its faults; on engine translate only
    #[arg(long, value_name = "KEY[=VALUE],...", value_parser = translate::parse, long_help = translate::help())]
    translate: Option<TranslationConfig>,
    /// Print on standard error, at the end, what was translated and how often its code was left. A report has it
    /// anyway
    #[arg(long)]
    pub(crate) translate_stats: bool,
    /// Name of the VM, for the other commands [default: vm- and the process id]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Guest's serial console: stdio, none, or a file that takes its output
    #[arg(long, value_name = "stdio|PATH|none", default_value = "stdio", value_parser = console)]
    console: ConsoleConfig,
    /// Write a report of the run, in JSON, when it ends
    #[arg(long, value_name = "PATH")]
    report: Option<PathBuf>,
    /// Write which blocks of its disks come into the guest's memory and leave it, as inferred from outside: a line of
    /// JSON each
    #[arg(long, value_name = "PATH")]
    cache_log: Option<PathBuf>,
    /// Whether the guest's page cache is followed from its start on, for `top`, `explain` and `curve`, which know of
    /// working sets and free memory anyway. It takes host CPU time by what the guest reads from its disks
    #[arg(long, value_enum, default_value_t = Insight::Off)]
    insight: Insight,
    /// For experiments: classify the guest's frames
    #[arg(long, hide = true)]
    classes: bool,
    /// Write what the estimators of the guest's working set find, a line of JSON a second; for experiments, not beside
    /// --report
    #[arg(long, value_name = "PATH[,methods=METHODS][,accesses=PATH]", value_parser = estimate::parse, hide = true)]
    estimate_log: Option<EstimateLogConfig>,
    /// Await gdb on a UNIX socket made here, before the guest's first instruction; with `nowait`, at any
    /// time. `gdb -ex 'target remote SOCKET'` attaches
    #[arg(long, value_name = "SOCKET[,nowait]", value_parser = gdb::parse)]
    gdb: Option<GdbConfig>,
    /// Sockets between guest and host. The guest is at address N, 3 or more. The host connects to PATH, writes
    /// `CONNECT PORT` and a line feed, and reads `OK` and a port when the guest has taken the call. The guest
    /// reaches port P of the host where a program listens at PATH_P
    #[arg(long, value_name = "cid=N,socket=PATH", value_parser = vsock::parse)]
    vsock: Option<VsockConfig>,
    /// Whether the VM's process gives up, before the guest runs, what it will not need: all files but those
    /// named here, new privileges, inherited descriptors
    #[arg(long, value_enum, default_value_t = Confinement::On)]
    pub(crate) confine: Confinement,
    /// For root: first make CHROOT the root directory and become user UID and group GID. All other paths are
    /// those in there, so kernel, initrd and disks have to be there and readable by that user. Devices are made
    /// there; the API's socket is in CHROOT/run/fathom (XDG_RUNTIME_DIR=CHROOT/run fathom list)
    #[arg(long, value_name = "UID:GID:CHROOT")]
    pub(crate) jail: Option<confine::Jail>,
    /// Limit what the VM's process takes of the host: memory, guest memory included, and processor time, such as
    /// vms,memory=1G,cpus=1.5. Its control group, of version 1 or 2, is PARENT/NAME and stays afterwards
    #[arg(long, value_name = "PARENT[,memory=SIZE][,cpus=N]", value_parser = cgroup::parse)]
    pub(crate) cgroup: Option<confine::Cgroup>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Confinement {
    On,
    /// For finding faults of Fathom only
    Off,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Insight {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum EngineArgument {
    Auto,
    Kvm,
    Translate,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CpuModelArgument {
    Common,
    Full,
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Print JSON: an array with one object a VM
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TopArguments {
    /// Print one table and leave
    #[arg(long)]
    pub(crate) once: bool,
    /// Print JSON: an array with one object a VM, on one line an interval
    #[arg(long)]
    pub(crate) json: bool,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    pub(crate) interval: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct PictureArguments {
    /// Name of the VM
    pub(crate) name: String,
    /// Print JSON: an object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CurveArguments {
    /// Name of the VM
    pub(crate) name: String,
    /// Write a picture of it instead
    #[arg(long, value_name = "PATH")]
    pub(crate) svg: Option<PathBuf>,
    /// Print JSON: an object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArguments {
    /// Name of the VM
    pub(crate) name: String,
    /// Show where a symbol of the kernel is, or which one an address (0x...) is in
    #[arg(long, value_name = "NAME|ADDRESS", conflicts_with = "structure")]
    pub(crate) symbol: Option<String>,
    /// Show the size of a structure of the kernel, or size and offset of a member
    #[arg(long = "type", value_name = "STRUCTURE[.MEMBER]")]
    pub(crate) structure: Option<String>,
    /// For experiments: classes as they are inferred against those of the kernel
    #[arg(long, hide = true)]
    pub(crate) classes: bool,
    /// Print JSON: an object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VmArgument {
    /// Name of the VM
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct SaveArguments {
    /// Name of the VM
    pub(crate) name: String,
    /// Where the snapshot is made, a folder; nothing may be there
    pub(crate) path: PathBuf,
    /// End the VM once it is saved, before its guest moves again
    #[arg(long)]
    pub(crate) stop: bool,
    /// Let its guest go on while its memory of this moment is written
    #[arg(long, conflicts_with = "stop")]
    pub(crate) live: bool,
    /// How its memory is compressed: lz4 for speed, zstd for size
    #[arg(long, value_enum, default_value_t = CompressArgument::None)]
    pub(crate) compress: CompressArgument,
    /// With --compress: put frames together that the guest's programs reach one after the other, instead of by number
    #[arg(long, requires = "compress", conflicts_with = "live")]
    pub(crate) together: bool,
    /// Save only what differs from this snapshot, which is needed to restore then
    #[arg(long, value_name = "PARENT")]
    pub(crate) incremental: Option<PathBuf>,
    /// How long it is watched before, in milliseconds, which memory the guest uses: what a restore brings first
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = clap::value_parser!(u32).range(..=60_000))]
    pub(crate) watch: u32,
    /// How long it is watched after it goes on, in milliseconds, which memory the guest touches first: a restore brings
    /// that before all else
    #[arg(long, value_name = "MS", default_value_t = 2000, conflicts_with = "stop", value_parser = clap::value_parser!(u32).range(..=60_000))]
    pub(crate) trace: u32,
    /// Save also the contents of memory that the guest's kernel calls free
    #[arg(long)]
    pub(crate) all: bool,
    /// Replace the snapshot that is there, once this one is whole
    #[arg(long)]
    pub(crate) replace: bool,
    /// Print JSON: sizes, frames by kind, how long it took
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum ModeArgument {
    Eager,
    Lazy,
    WorkingSet,
}

impl From<ModeArgument> for RestoreMode {
    fn from(argument: ModeArgument) -> Self {
        match argument {
            ModeArgument::Eager => Self::Eager,
            ModeArgument::Lazy => Self::Lazy,
            ModeArgument::WorkingSet => Self::WorkingSet,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum CompressArgument {
    None,
    Lz4,
    Zstd,
}

impl From<CompressArgument> for Compression {
    fn from(argument: CompressArgument) -> Self {
        match argument {
            CompressArgument::None => Self::None,
            CompressArgument::Lz4 => Self::Lz4,
            CompressArgument::Zstd => Self::Zstd,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArguments {
    /// The snapshot: a folder, or s3://BUCKET/NAME, file:///FOLDER/NAME
    pub(crate) path: PathBuf,
    /// Name of the VM, for the other commands [default: the one it had]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// What runs the guest [default: what ran it]
    #[arg(long, value_enum)]
    engine: Option<EngineArgument>,
    /// Guest's serial console: stdio, none, or a file that takes its output
    #[arg(long, value_name = "stdio|PATH|none", default_value = "stdio", value_parser = console)]
    console: ConsoleConfig,
    /// Write a report of the run, in JSON, when it ends
    #[arg(long, value_name = "PATH")]
    report: Option<PathBuf>,
    /// The guest stands until `fathom resume`
    #[arg(long)]
    pub(crate) paused: bool,
    /// When its memory comes: all before it runs, each frame when it is needed, or first what it needed before
    #[arg(long, value_enum, default_value_t = ModeArgument::WorkingSet)]
    pub(crate) mode: ModeArgument,
    /// Write what the guest needs first into the snapshot, for the next restore
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "true|false")]
    pub(crate) learn: bool,
    /// Whether the VM's process gives up what it will not need, as of `run`
    #[arg(long, value_enum, default_value_t = Confinement::On)]
    pub(crate) confine: Confinement,
    /// Descriptor of the process that reads the store
    #[arg(long, hide = true, value_name = "FD")]
    pub(crate) store: Option<i32>,
    /// How long ago the command began, in nanoseconds
    #[arg(long, hide = true, value_name = "NS")]
    pub(crate) begun: Option<u64>,
}

impl RestoreArguments {
    /// The configuration of a VM that was `saved`, as it is wanted now.
    pub(crate) fn config(self, saved: &VmConfig) -> VmConfig {
        let mut config = saved.clone();
        config.name = self.name.or(config.name);
        config.engine = self.engine.map_or(config.engine, EngineChoice::from);
        (config.console, config.report) = (self.console, self.report);
        config
    }
}

#[derive(Debug, Args)]
pub(crate) struct CloneArguments {
    /// Name of the VM
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) how: CloneHow,
}

#[derive(Debug, Args)]
pub(crate) struct ActivateArguments {
    /// Name of a substrate (`fathom pool`), or the path or URL of a snapshot. One that was saved with --compress or
    /// --incremental, or is in a store, is read into memory first
    #[arg(required_unless_present = "cluster")]
    pub(crate) path: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) place: PoolPlace,
    /// A folder for copies of the disks' overlays: NAME and the overlay's name [default: beside the overlays. Of a
    /// substrate that is in memory, and nobody removes them]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) disks: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) how: CloneHow,
    #[command(flatten)]
    pub(crate) identity: IdentityArguments,
    /// Start the VMs that this file describes, each with the addresses of all (docs/snapshots.md has an example)
    #[arg(long, value_name = "FILE.toml", conflicts_with_all = ["path", "count", "clone_name", "identity"])]
    pub(crate) cluster: Option<PathBuf>,
}

/// How VMs are started that have memory in common.
#[derive(Debug, Args)]
pub(crate) struct CloneHow {
    /// How many
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) count: u32,
    /// Its name; of several, what their names begin with [default: the VM's; then a number follows in any case]
    #[arg(long = "name", value_name = "NAME")]
    pub(crate) clone_name: Option<String>,
    /// A folder for what they print: NAME.console, and NAME.log for messages about them [default: it is dropped]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) output: Option<PathBuf>,
    /// They stand until `fathom resume`
    #[arg(long)]
    pub(crate) paused: bool,
    /// Whether their processes give up what they will not need, as of `run`
    #[arg(long, value_enum, default_value_t = Confinement::On)]
    pub(crate) confine: Confinement,
    /// Print JSON: an object
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `fathom restore` gives a process that it starts.
#[derive(Debug, Args)]
pub(crate) struct LearnProcessArguments {
    /// The snapshot
    pub(crate) path: PathBuf,
}

/// What `fathom clone` gives a process that it starts.
#[derive(Debug, Args)]
pub(crate) struct CloneProcessArguments {
    /// Where messages go
    #[arg(long, value_name = "PATH")]
    pub(crate) log: Option<PathBuf>,
    /// Descriptor of what its memory has in place of the image's
    #[arg(long, value_name = "FD")]
    pub(crate) layer: Option<i32>,
    /// Descriptor of what it stands for until it ends
    #[arg(long, value_name = "FD")]
    pub(crate) gate: Option<i32>,
    /// Descriptor of what says which frames are elsewhere than in the image
    #[arg(long, value_name = "FD", conflicts_with = "layer")]
    pub(crate) extents: Option<i32>,
    /// Descriptors of the files that it means
    #[arg(long, value_name = "FD")]
    pub(crate) shared: Vec<i32>,
    /// As of `clone`
    #[arg(long)]
    pub(crate) paused: bool,
    /// As of `clone`
    #[arg(long, value_enum, default_value_t = Confinement::On)]
    pub(crate) confine: Confinement,
}

#[derive(Debug, Args)]
pub(crate) struct BalloonArguments {
    /// Name of the VM
    pub(crate) name: String,
    /// How much memory to take from the guest in all; without it, show what is taken
    pub(crate) size: Option<Bytes>,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArguments {
    /// Print JSON: an object with an array of checks
    #[arg(long)]
    pub(crate) json: bool,
}

impl From<EngineArgument> for EngineChoice {
    fn from(argument: EngineArgument) -> Self {
        match argument {
            EngineArgument::Auto => Self::Auto,
            EngineArgument::Kvm => Self::Kvm,
            EngineArgument::Translate => Self::Translate,
        }
    }
}

impl From<RunArguments> for VmConfig {
    fn from(arguments: RunArguments) -> Self {
        let RunArguments { kernel, initrd, cmdline, memory, cpus, disks, nets, .. } = arguments;
        let engine = EngineChoice::from(arguments.engine);
        let cpu_model = match arguments.cpu_model {
            CpuModelArgument::Common => CpuModel::Common,
            CpuModelArgument::Full => CpuModel::Full,
        };
        let (name, console, report) = (arguments.name, arguments.console, arguments.report);
        let cmdline = Some(cmdline);
        let translation = arguments.translate.unwrap_or_default();
        let translation = TranslationConfig { stats: arguments.translate_stats, ..translation };
        Self {
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
            cache_log: arguments.cache_log,
            insight: arguments.insight == Insight::On,
            host_cache: arguments.host_cache,
            classes: arguments.classes,
            estimate_log: arguments.estimate_log,
            gdb: arguments.gdb,
            vsock: arguments.vsock,
            translation,
        }
    }
}

fn console(text: &str) -> Result<ConsoleConfig, String> {
    match text {
        "stdio" => Ok(ConsoleConfig::Stdio),
        "none" => Ok(ConsoleConfig::None),
        "" => Err("write stdio, none or a path".to_owned()),
        path => Ok(ConsoleConfig::File(path.into())),
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.1..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "write seconds, 0.1 to 3600".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn config(line: &str) -> VmConfig {
        let arguments = Arguments::try_parse_from(line.split(' ')).expect("arguments");
        let Command::Run(run) = arguments.command else { panic!("{line} does not run") };
        (*run).into()
    }

    #[test]
    fn clap_finds_the_definitions_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_with_an_example() {
        for command in Arguments::command().get_subcommands() {
            let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let example = format!("fathom {}", command.get_name());
            assert!(after.contains("Example:") && after.contains(&example), "{example}");
            assert!(command.get_about().is_some());
        }
    }

    #[test]
    fn what_is_asked_is_what_is_configured() {
        let config = config(
            "fathom run --kernel k --initrd i --cmdline -quiet --memory 1G --cpus 2 --disk a \
             --net passt,mtu=1500 --net tap=tap0 --cpu-model common --disk b,ro --engine translate --name web \
             --console none --report r.json --gdb g --vsock cid=3,socket=v --translate interpret \
             --translate-stats --insight on",
        );
        assert_eq!(config.kernel, PathBuf::from("k"));
        assert_eq!(config.initrd, Some(PathBuf::from("i")));
        assert_eq!(config.cmdline.as_deref(), Some("-quiet"));
        assert_eq!((config.memory, config.cpus), (Bytes(1 << 30), 2));
        assert_eq!(config.cpu_model, CpuModel::Common);
        assert_eq!(config.disks.len(), 2);
        assert!(config.disks[1].read_only);
        assert_eq!((config.nets.len(), config.nets[0].mtu), (2, Some(1500)));
        assert_eq!(config.engine, EngineChoice::Translate);
        assert_eq!(config.name.as_deref(), Some("web"));
        assert_eq!(config.console, ConsoleConfig::None);
        assert_eq!(config.report, Some(PathBuf::from("r.json")));
        assert_eq!(config.gdb, Some(GdbConfig { socket: "g".into(), wait: true }));
        assert_eq!(config.vsock, Some(VsockConfig::new(3, "v")));
        assert!(config.translation.interpret && config.translation.stats && config.insight);
    }

    #[test]
    fn the_least_is_a_kernel() {
        let config = config("fathom run --kernel k");
        assert_eq!((config.memory, config.cpus), (Bytes(256 << 20), 1));
        assert_eq!(config.console, ConsoleConfig::Stdio);
        assert_eq!((config.engine, config.cpu_model), (EngineChoice::Auto, CpuModel::Full));
        assert_eq!(config.translation, TranslationConfig::default());
        assert!(!config.insight);
    }

    #[test]
    fn intervals_are_sane() {
        assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
        for text in ["0", "-1", "NaN", "inf", "1s", "", "1e9"] {
            assert!(interval(text).is_err(), "{text}");
        }
    }
}
