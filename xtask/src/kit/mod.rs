//! The guest kit: kernel, modules, busybox, our guest program, initramfs and disk image.
//!
//! Everything lies in `.kit/` at the workspace root, or in `$FATHOM_KIT`, and is made once:
//!
//! ```text
//! .kit/kernel/vmlinuz       Debian's cloud kernel         .kit/full/vmlinuz   linux-image-amd64
//! .kit/kernel/modules/      NAME.ko, and their lists      .kit/full/modules/
//! .kit/busybox              statically linked
//! .kit/guest                our guest program, statically linked
//! .kit/agent                our agent, statically linked: it also runs in other guests
//! .kit/initramfs.cpio       /init is the guest program; with the cloud kernel's modules
//! .kit/initramfs-full.cpio  the same for linux-image-amd64
//! .kit/disk.img             ext4 with Debian's bash, coreutils, gzip, python3, sqlite3, stress-ng,
//!                           /check.sh, which shows that they work, and /stress.sh for the last
//! .kit/initramfs-xfs.cpio   initramfs.cpio with the module for XFS, and
//! .kit/xfsprogs/            Debian's programs for it, once an experiment asks
//! .kit/lab/kernel/          the cloud kernel again, with the modules of a host
//! .kit/lab/qemu/            QEMU with all that it needs, where the host has none
//! .kit/bench/compiler.img   as disk.img, and gcc; this and the next, once a benchmark asks
//! .kit/bench/loads.img      as that, and redis
//! .kit/bench/sources.img    with gcc, grep and the kernel's headers
//! .kit/bench/compiler/      what is on it, for programs of the host
//! .kit/bench/linux          Debian's User-Mode Linux
//! .kit/bench/qemu-backports/  QEMU of Debian's backports, with all that it needs
//! .kit/apt/                 package lists and downloads, ours alone
//! ```

mod apt;
mod bench;
pub(crate) mod cpio;
mod disk;
mod initramfs;
pub(crate) mod lab;
mod modules;
mod program;
mod xfs;

use crate::workspace;
use anyhow::{Context, Result, bail};
use apt::Apt;
use modules::Wanted;
use std::fs;
use std::path::{Path, PathBuf};

/// What `cargo xtask guest` takes.
#[derive(clap::Args, Default)]
pub(crate) struct GuestArgs {
    /// Also fetch linux-image-amd64, the kernel for ordinary machines
    #[arg(long)]
    full: bool,
    /// Also build a disk image with Debian's bash, coreutils, gzip, python3, sqlite3 and stress-ng
    #[arg(long)]
    disk: bool,
    /// Fetch everything anew, to follow Debian's updates
    #[arg(long)]
    refresh: bool,
    /// A kernel of your own (bzImage or ELF), for hosts without apt
    #[arg(long, value_name = "PATH", requires = "modules")]
    kernel: Option<PathBuf>,
    /// The /lib/modules/VERSION folder that belongs to --kernel
    #[arg(long, value_name = "PATH", requires = "kernel")]
    modules: Option<PathBuf>,
    /// A statically linked busybox, for hosts without apt
    #[arg(long, value_name = "PATH")]
    busybox: Option<PathBuf>,
}

impl GuestArgs {
    pub(crate) fn with_disk() -> Self {
        Self { disk: true, ..Self::default() }
    }

    /// What tests need: everything.
    pub(crate) fn everything() -> Self {
        Self { full: true, disk: true, ..Self::default() }
    }
}

/// A kernel with the modules that a guest needs.
pub(crate) struct Kernel {
    folder: PathBuf,
}

impl Kernel {
    pub(crate) fn image(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// One `NAME.ko` each, and their names in load order: in `order` what every guest loads, in `later`
    /// what some do, in `apart` what no initramfs has of itself.
    pub(crate) fn modules(&self) -> PathBuf {
        self.folder.join("modules")
    }

    /// Whether it is here, with what is wanted of its modules by now.
    fn is_complete(&self, wanted: &[Wanted]) -> bool {
        let kept = fs::read_to_string(self.wanted());
        self.image().is_file() && kept.is_ok_and(|kept| kept == names(wanted))
    }

    /// The names of the modules that it was installed for.
    fn wanted(&self) -> PathBuf {
        self.folder.join("wanted")
    }

    /// Put a kernel and its modules in place, whole or not at all.
    fn install(&self, image: &Path, modules: &Path, wanted: &[Wanted]) -> Result<()> {
        let names = names(wanted);
        let modules = modules::gather(modules, wanted)?;
        let parent = self.folder.parent().context("a kernel lies in the kit")?;
        let new = tempfile::tempdir_in(parent)?;
        copy(image, &new.path().join("vmlinuz"))?;
        fs::create_dir(new.path().join("modules"))?;
        let mut lists = LISTS.map(|list| (list, String::new()));
        for module in &modules {
            let name = format!("{}.ko", module.name);
            fs::write(new.path().join("modules").join(&name), &module.content)?;
            for (_, names) in lists.iter_mut().filter(|(list, _)| *list == module.need.list()) {
                *names += &format!("{name}\n");
            }
        }
        for (list, names) in lists {
            fs::write(new.path().join("modules").join(list), names)?;
        }
        fs::write(new.path().join("wanted"), names)?;
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder)?;
        }
        let new = new.keep();
        fs::rename(&new, &self.folder)
            .with_context(|| format!("put the kernel into {}", self.folder.display()))
    }
}

/// Of modules, by who loads them.
const LISTS: [&str; 3] = ["order", "later", "apart"];

/// One a line.
fn names(wanted: &[Wanted]) -> String {
    wanted.iter().fold(String::new(), |names, (name, _)| names + name + "\n")
}

/// The kit's folder and what lies in it.
pub(crate) struct Kit {
    folder: PathBuf,
}

impl Kit {
    /// The kit of this workspace; its folder is made if missing.
    pub(crate) fn open() -> Result<Self> {
        let folder = std::env::var_os("FATHOM_KIT")
            .map_or_else(|| workspace::root().join(".kit"), PathBuf::from);
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let folder = folder.canonicalize()?;
        Ok(Self { folder })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn kernel(&self) -> Kernel {
        Kernel { folder: self.folder.join("kernel") }
    }

    /// linux-image-amd64.
    pub(crate) fn full_kernel(&self) -> Kernel {
        Kernel { folder: self.folder.join("full") }
    }

    pub(crate) fn initramfs(&self) -> PathBuf {
        self.folder.join("initramfs.cpio")
    }

    /// An ext4 file system, not to be written to: give a guest an overlay.
    pub(crate) fn disk(&self) -> PathBuf {
        self.folder.join("disk.img")
    }

    /// The kernel of the lab's machine.
    pub(crate) fn lab_kernel(&self) -> Kernel {
        Kernel { folder: self.folder.join("lab/kernel") }
    }

    pub(crate) fn full_initramfs(&self) -> PathBuf {
        self.folder.join("initramfs-full.cpio")
    }

    pub(crate) fn busybox(&self) -> PathBuf {
        self.folder.join("busybox")
    }

    /// What `/init` is, for the host to run too.
    pub(crate) fn guest_program(&self) -> PathBuf {
        self.folder.join("guest")
    }

    /// `/bin/agent`, for other guests too.
    pub(crate) fn agent(&self) -> PathBuf {
        self.folder.join("agent")
    }

    fn apt(&self) -> Result<Apt> {
        Apt::open(&self.folder.join("apt"))
    }
}

/// Make everything that is missing; quick when nothing is.
pub(crate) fn prepare(args: &GuestArgs) -> Result<Kit> {
    let kit = Kit::open()?;
    fetch_kernel(&kit, args)?;
    fetch_busybox(&kit, args)?;
    program::build("guest", &kit.guest_program())?;
    program::build("agent", &kit.agent())?;
    initramfs::build(&kit.initramfs(), &kit.kernel().modules(), &kit)?;
    if args.full {
        fetch_full_kernel(&kit, args)?;
    }
    if kit.full_kernel().image().is_file() {
        initramfs::build(&kit.full_initramfs(), &kit.full_kernel().modules(), &kit)?;
    }
    if args.refresh {
        kit.forget_bench()?;
    }
    if args.disk {
        disk::build(&kit, &disk::COMMON, &kit.disk(), args.refresh)?;
    }
    eprintln!("kit: ready in {}", kit.folder.display());
    Ok(kit)
}

fn fetch_kernel(kit: &Kit, args: &GuestArgs) -> Result<()> {
    let kernel = kit.kernel();
    if let (Some(image), Some(modules)) = (&args.kernel, &args.modules) {
        return kernel.install(image, modules, &modules::GUEST);
    }
    if kernel.is_complete(&modules::GUEST) && !args.refresh {
        return Ok(());
    }
    install_package(kit, "linux-image-cloud-amd64", &kernel, &modules::GUEST)
}

fn fetch_full_kernel(kit: &Kit, args: &GuestArgs) -> Result<()> {
    let kernel = kit.full_kernel();
    if kernel.is_complete(&modules::GUEST) && !args.refresh {
        return Ok(());
    }
    install_package(kit, "linux-image-amd64", &kernel, &modules::GUEST)
}

fn install_package(
    kit: &Kit,
    meta_package: &str,
    kernel: &Kernel,
    wanted: &[Wanted],
) -> Result<()> {
    let apt = kit.apt()?;
    let package = apt.first_dependency(meta_package)?;
    eprintln!("kit: {meta_package} is {package}");
    let files = apt.download(&[package])?;
    let unpacked = tempfile::tempdir_in(&kit.folder)?;
    for deb in &files {
        apt::unpack(deb, unpacked.path())?;
    }
    let image = only_entry(&unpacked.path().join("boot"), "vmlinuz-")?;
    // Debian 13 and later keep modules under usr/lib.
    let modules = ["lib/modules", "usr/lib/modules"].map(|dir| unpacked.path().join(dir));
    let modules = modules.iter().find(|dir| dir.is_dir()).context("the package has no modules")?;
    kernel.install(&image, &only_entry(modules, "")?, wanted)
}

fn fetch_busybox(kit: &Kit, args: &GuestArgs) -> Result<()> {
    if let Some(busybox) = &args.busybox {
        return copy(busybox, &kit.busybox());
    }
    if kit.busybox().is_file() && !args.refresh {
        return Ok(());
    }
    let files = kit.apt()?.download(&["busybox-static".to_owned()])?;
    let unpacked = tempfile::tempdir_in(&kit.folder)?;
    for deb in &files {
        apt::unpack(deb, unpacked.path())?;
    }
    let places = ["bin/busybox", "usr/bin/busybox"].map(|file| unpacked.path().join(file));
    let busybox = places.iter().find(|file| file.is_file()).context("no busybox in its package")?;
    copy(busybox, &kit.busybox())
}

/// The one entry of `folder` whose name starts so.
fn only_entry(folder: &Path, start: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(start) {
            found.push(entry.path());
        }
    }
    match <[PathBuf; 1]>::try_from(found) {
        Ok([one]) => Ok(one),
        Err(found) => bail!("{}: {} entries {start}*, not one", folder.display(), found.len()),
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("copy {} to {}", from.display(), to.display()))
}

/// Write unless the file holds just that already, and never half of it.
fn write_changed(file: &Path, content: &[u8]) -> Result<()> {
    if fs::read(file).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let new = file.with_extension("new");
    fs::write(&new, content).with_context(|| format!("write {}", new.display()))?;
    fs::rename(&new, file).with_context(|| format!("replace {}", file.display()))
}
