//! Which file a frame of the page cache belongs to.

use std::collections::HashMap;

use super::super::address::AddressSpace;
use super::super::types::Types;

/// Files that are told apart; frames of further ones belong to an unknown one.
const FILES_MAX: usize = 1 << 20;
/// `S_IFMT`, `S_IFBLK`: the kind of a file in its mode.
const KIND: u32 = 0o170_000;
const BLOCK_DEVICE: u32 = 0o060_000;
/// A device's number: 12 bits of major, 20 of minor (include/linux/kdev_t.h).
const MINOR_BITS: u32 = 20;

/// A file with contents in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CachedFile {
    /// Address of its `struct address_space`; 0 stands for all files beyond the first million.
    pub mapping: u64,
    /// What the kernel says of it; `None` where its types are not known.
    pub inode: Option<Inode>,
}

/// An inode of the guest's kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inode {
    /// Address of its `struct inode`.
    pub address: u64,
    /// Its number within the file system.
    pub number: u64,
    /// Major and minor number of the device: that of the file system, or of the block device that it is.
    pub device: (u32, u32),
    /// The contents are those of a block device itself: metadata of a file system, as a rule.
    pub is_block_device: bool,
}

/// Where things are in an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct InodeLayout {
    host: u64,
    mapping: u64,
    number: u64,
    super_block: u64,
    device: u64,
    own_device: u64,
    mode: u64,
}

impl InodeLayout {
    fn of(types: &Types) -> Option<Self> {
        let offset = |name, path| types.offset(name, path).map(|offset| offset as u64);
        Some(Self {
            host: offset("address_space", "host")?,
            mapping: offset("inode", "i_mapping")?,
            number: offset("inode", "i_ino")?,
            super_block: offset("inode", "i_sb")?,
            device: offset("super_block", "s_dev")?,
            own_device: offset("inode", "i_rdev")?,
            mode: offset("inode", "i_mode")?,
        })
    }
}

/// The files met so far.
#[derive(Debug)]
pub(in super::super) struct Files {
    layout: Option<InodeLayout>,
    files: Vec<CachedFile>,
    /// By mapping; `None`: what is there is no mapping.
    known: HashMap<u64, Option<u32>>,
}

impl Files {
    pub(in super::super) fn new(types: Option<&Types>) -> Self {
        let layout = types.and_then(InodeLayout::of);
        Self { layout, files: Vec::new(), known: HashMap::new() }
    }

    /// Whether inodes are known.
    pub(in super::super) fn knows_inodes(&self) -> bool {
        self.layout.is_some()
    }

    pub(super) fn all(&self) -> &[CachedFile] {
        &self.files
    }

    pub(super) fn file(&self, number: u32) -> &CachedFile {
        &self.files[number as usize]
    }

    /// The number of the file that `mapping` is of; `None` if it is of none.
    pub(super) fn of(&mut self, space: &AddressSpace, mapping: u64) -> Option<u32> {
        if let Some(&known) = self.known.get(&mapping) {
            return known;
        }
        if self.known.len() >= FILES_MAX {
            // A guest with so many, or one that lies: further ones are one.
            return Some(self.add(0, None));
        }
        let number = match self.layout {
            None => Some(self.add(mapping, None)),
            Some(layout) => {
                inode(space, &layout, mapping).map(|inode| self.add(mapping, Some(inode)))
            }
        };
        self.known.insert(mapping, number);
        number
    }

    fn add(&mut self, mapping: u64, inode: Option<Inode>) -> u32 {
        let file = CachedFile { mapping, inode };
        if mapping == 0 && self.files.last() == Some(&file) {
            return self.files.len() as u32 - 1;
        }
        self.files.push(file);
        self.files.len() as u32 - 1
    }
}

/// The inode of a mapping, if the two lead to each other. Drivers put pointers of their own in the same place.
fn inode(space: &AddressSpace, layout: &InodeLayout, mapping: u64) -> Option<Inode> {
    let word = |base: u64, offset: u64| space.u64(base.checked_add(offset)?).ok();
    let half = |base: u64, offset: u64| space.u32(base.checked_add(offset)?).ok();
    let address = word(mapping, layout.host)?;
    if word(address, layout.mapping)? != mapping {
        return None;
    }
    let is_block_device = half(address, layout.mode)? & KIND == BLOCK_DEVICE;
    let device = match is_block_device {
        true => half(address, layout.own_device)?,
        false => half(word(address, layout.super_block)?, layout.device)?,
    };
    Some(Inode {
        address,
        number: word(address, layout.number)?,
        device: (device >> MINOR_BITS, device & ((1 << MINOR_BITS) - 1)),
        is_block_device,
    })
}
