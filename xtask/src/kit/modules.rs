//! The kernel modules a guest needs, in the order in which they must be loaded.
//!
//! Debian's packages hold no `modules.dep` (depmod writes it on installation), so dependencies
//! are read from each module's own `.modinfo` section.

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// What a guest under Fathom wants.
pub(super) const GUEST: [Wanted; 19] = [
    ("virtio_mmio", Need::Must),
    ("virtio_blk", Need::Must),
    ("virtio_rng", Need::Must),
    ("virtio_balloon", Need::Must),
    ("virtio_console", Need::Must),
    ("virtio_net", Need::Must),
    // A guest asks for its address by DHCP before it has one.
    ("af_packet", Need::Must),
    // With what it depends on: vsock and vmw_vsock_virtio_transport_common.
    ("vmw_vsock_virtio_transport", Need::Must),
    ("ext4", Need::Must),
    ("overlay", Need::May),
    ("pvpanic_mmio", Need::May),
    // ext4 asks for the checksum "crc32c" by name, not by symbol.
    ("crc32c_generic", Need::May),
    // Hashes, which the kernel checks when they are loaded, and the socket by which programs ask for them.
    ("algif_hash", Need::Later),
    ("rmd160", Need::Later),
    ("sha512_ssse3", Need::Later),
    // The kernel's own tests; in the cloud kernel there are none.
    ("test_static_key_base", Need::Later),
    ("test_static_keys", Need::Later),
    ("test_bpf", Need::Later),
    // For one experiment, and larger than all the others together.
    ("xfs", Need::Apart),
];

/// What the lab's machine wants: to reach its own disk and ports, and to be a host.
pub(super) const LAB: [Wanted; 10] = [
    ("virtio_pci", Need::Must),
    ("virtio_blk", Need::Must),
    ("virtio_console", Need::Must),
    ("ext4", Need::Must),
    ("crc32c_generic", Need::May),
    ("irqbypass", Need::Must),
    ("kvm", Need::Must),
    ("kvm_amd", Need::Must),
    ("tun", Need::Must),
    ("overlay", Need::May),
];

/// A module's name, and whether its user can do without.
pub(super) type Wanted = (&'static str, Need);

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Need {
    Must,
    May,
    /// Not loaded when the guest starts, but by what is to be done there. Comes after those.
    Later,
    /// As `Later`, but in an initramfs of its own, for those who ask. Comes last.
    Apart,
}

impl Need {
    /// In which list of a kernel's folder it is.
    pub(super) fn list(self) -> &'static str {
        match self {
            Self::Must | Self::May => "order",
            Self::Later => "later",
            Self::Apart => "apart",
        }
    }
}

/// A module, uncompressed.
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
    pub(super) need: Need,
}

/// Gather the wanted modules and all that they need from a `/lib/modules/VERSION` folder, in
/// load order.
pub(crate) fn gather(folder: &Path, wanted: &[Wanted]) -> Result<Vec<Module>> {
    let index = Index::read(folder)?;
    let mut order = Order { index: &index, done: BTreeSet::new(), modules: Vec::new() };
    for &(name, need) in wanted {
        if index.knows(name) {
            order.add(name, need)?;
        } else if need == Need::Must {
            bail!("{}: no module {name}: is this a /lib/modules/VERSION folder?", folder.display());
        }
    }
    Ok(order.modules)
}

/// Which modules there are: files, and those built into the kernel.
struct Index {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl Index {
    fn read(folder: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        collect(&folder.join("kernel"), &mut files)?;
        let list = folder.join("modules.builtin");
        let text = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
        let builtin = text.lines().filter_map(|line| module_name(Path::new(line))).collect();
        Ok(Self { files, builtin })
    }

    fn knows(&self, name: &str) -> bool {
        self.files.contains_key(name) || self.builtin.contains(name)
    }
}

struct Order<'a> {
    index: &'a Index,
    done: BTreeSet<String>,
    modules: Vec<Module>,
}

impl Order<'_> {
    /// Depth first: what a module needs comes before it. A cycle ends at `done`.
    fn add(&mut self, name: &str, need: Need) -> Result<()> {
        if self.index.builtin.contains(name) || !self.done.insert(name.to_owned()) {
            return Ok(());
        }
        let file = self.index.files.get(name).with_context(|| format!("no module {name}"))?;
        let content = read_module(file)?;
        for needed in dependencies(&content).with_context(|| format!("{}", file.display()))? {
            self.add(&needed, need)?;
        }
        self.modules.push(Module { name: name.to_owned(), content, need });
        Ok(())
    }
}

fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// `kernel/drivers/char/hw_random/virtio-rng.ko.xz` is the module `virtio_rng`.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let stem = [".ko", ".ko.xz", ".ko.zst"].iter().find_map(|end| file.strip_suffix(end))?;
    Some(stem.replace('-', "_"))
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    let raw = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let mut content = Vec::new();
    match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => {
            lzma_rust2::XzReader::new(raw.as_slice(), true).read_to_end(&mut content)?;
        }
        Some("zst") => content = zstd::decode_all(raw.as_slice())?,
        _ => content = raw,
    }
    Ok(content)
}

/// The names after `depends=` in the module's information section.
fn dependencies(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module).context("not an ELF module")?;
    let section = file.section_by_name(".modinfo").context("no .modinfo section")?;
    let data = section.data().context("bad .modinfo section")?;
    Ok(depends_in(data))
}

fn depends_in(modinfo: &[u8]) -> Vec<String> {
    let field = modinfo.split(|&b| b == 0).find_map(|field| field.strip_prefix(b"depends="));
    let text = String::from_utf8_lossy(field.unwrap_or_default()).into_owned();
    text.split(',').filter(|n| !n.is_empty()).map(|n| n.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_become_module_names() {
        let name = |path| module_name(Path::new(path));
        assert_eq!(name("kernel/hw_random/virtio-rng.ko").as_deref(), Some("virtio_rng"));
        assert_eq!(name("virtio_blk.ko.xz").as_deref(), Some("virtio_blk"));
        assert_eq!(name("modules.order"), None);
    }

    #[test]
    fn dependencies_come_from_the_information_section() {
        let info = b"license=GPL\0depends=virtio,virtio-ring\0retpoline=Y\0";
        assert_eq!(depends_in(info), ["virtio", "virtio_ring"]);
        assert!(depends_in(b"depends=\0").is_empty());
        assert!(depends_in(b"license=GPL\0").is_empty());
    }
}
