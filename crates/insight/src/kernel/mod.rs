//! The guest's Linux kernel, read in its own words.
//!
//! Optional, and never needed by what is inferred: it is the truth that inferences are checked against, and
//! what a user sees who asks. Where it is found, its word decides which frames are free ([`crate::classes`]), and
//! shows what leaves the page cache before its frame is used again. Nothing is installed in the guest and no debug
//! package is needed; a kernel of the 6 series carries all of it in its memory:
//!
//! ```text
//!  frames that begin like a note
//!        |  VMCOREINFO: release, where the image lies, its page tables, where kallsyms is
//!        v
//!  AddressSpace (init_top_pgt)  ---> kallsyms: symbols ---> __start_BTF: types ---> offsets
//!                                        |                                           |
//!                                        +--> vmemmap_base, init_task                v
//!                                                 +--------------> KernelPages, Processes
//! ```
//!
//! It only reads, by [`memory::ReadView`], has no clock, and stops no vCPU: what it answers is a moment's
//! picture, and the caller may pause the guest before. All that it reads is the guest's word. A guest that
//! lies gets an error or wrong facts; every loop and every buffer has a bound, said where it is
//! (docs/insight.md has them together).
//!
//! ```
//! use std::sync::Arc;
//! use insight::kernel::{Kernel, KernelError};
//! use memory::{GuestMemory, ReadView};
//!
//! let memory = Arc::new(GuestMemory::with_bytes(16 << 20)?);
//! let found = Kernel::find(&ReadView::new(memory));
//! assert!(matches!(found, Err(KernelError::NoNote { frames: 4096 })));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod address;
mod error;
mod layout;
mod note;
mod pages;
mod processes;
mod symbols;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod together;
mod types;

use memory::{Gpa, ReadView};

pub use address::AddressSpace;
pub use error::{AddressError, KernelError};
pub use note::Note;
pub use pages::{
    CachedFile, CachedFrame, FreeFrames, FreeLists, Inode, KernelPages, PageClass, PageUser,
};
pub use processes::{Process, Processes};
pub use symbols::Symbols;
pub use types::{Member, Types};

use layout::PageLayout;
use pages::{Files, ListPlaces};
use symbols::Places;

/// Notes that are looked at: a guest may fill its memory with them.
const NOTES_MAX: usize = 64;

/// A kernel in the guest's memory, as of when it was found.
#[derive(Debug)]
pub struct Kernel {
    view: ReadView,
    note: Note,
    note_at: Gpa,
    space: AddressSpace,
    symbols: Result<Symbols, KernelError>,
    types: Result<Types, KernelError>,
    layout: Result<PageLayout, KernelError>,
}

impl Kernel {
    /// Looks for the kernel in all of the guest's memory: a glance at the beginning of each frame, then its
    /// tables of symbols and types, some 10 MiB.
    ///
    /// # Errors
    /// There is no note, or none that agrees with the memory around it. What else is missing is said when it
    /// is asked for.
    pub fn find(view: &ReadView) -> Result<Self, KernelError> {
        let mut refused = None;
        for at in note::candidates(view).take(NOTES_MAX) {
            match note::read(view, at).and_then(|note| Self::at(view, at, note)) {
                Ok(kernel) => return Ok(kernel),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.unwrap_or(KernelError::NoNote { frames: view.layout().frames() }))
    }

    fn at(view: &ReadView, note_at: Gpa, note: Note) -> Result<Self, KernelError> {
        let space = address_space(view, &note)
            .map_err(|reason| KernelError::Refused { at: note_at, reason })?;
        let symbols = read_symbols(&space, &note);
        let types = symbols.as_ref().map_err(Clone::clone).and_then(|it| read_types(&space, it));
        let layout = PageLayout::new(&note, types.as_ref().ok());
        Ok(Self { view: view.clone(), note, note_at, space, symbols, types, layout })
    }

    /// What the kernel says of itself.
    pub fn note(&self) -> &Note {
        &self.note
    }

    /// Where it says that.
    pub fn note_at(&self) -> Gpa {
        self.note_at
    }

    /// Its addresses.
    pub fn space(&self) -> &AddressSpace {
        &self.space
    }

    /// Its symbols.
    pub fn symbols(&self) -> Result<&Symbols, KernelError> {
        self.symbols.as_ref().map_err(Clone::clone)
    }

    /// Its types.
    pub fn types(&self) -> Result<&Types, KernelError> {
        self.types.as_ref().map_err(Clone::clone)
    }

    /// What each frame is for. One pass over `struct page`, 64 bytes a frame.
    ///
    /// Without the kernel's types, by what the note tells of `struct page`: then frames that the kernel has
    /// reserved count as its others, and nothing is known of files but that they are files.
    ///
    /// # Errors
    /// The layout of `struct page`, or where they are, is not known.
    pub fn pages(&self) -> Result<KernelPages, KernelError> {
        let layout = self.layout.as_ref().map_err(Clone::clone)?;
        let vmemmap = self.space.u64(self.address_of("vmemmap_base")?)?;
        let files = Files::new(self.types.as_ref().ok());
        Ok(KernelPages::read(&self.view, &self.space, layout, vmemmap, files))
    }

    /// What tells free frames from others from now on, in little memory.
    ///
    /// # Errors
    /// As for [`Kernel::pages`].
    pub fn free_frames(&self) -> Result<FreeFrames, KernelError> {
        let layout = self.layout.clone()?;
        let vmemmap = self.space.u64(self.address_of("vmemmap_base")?)?;
        Ok(FreeFrames { view: self.view.clone(), space: self.space.anew(), layout, vmemmap })
    }

    /// The lists of free frames, to be walked from now on, in little memory.
    ///
    /// # Errors
    /// As for [`Kernel::pages`], and where the kernel's types are not known.
    pub fn free_lists(&self) -> Result<FreeLists, KernelError> {
        let places = ListPlaces::new(self.types()?, |name| self.address_of(name))?;
        Ok(FreeLists { frames: self.free_frames()?, places })
    }

    /// The guest's processes.
    ///
    /// # Errors
    /// The kernel's types or symbols are not known, or the list cannot be read at all.
    pub fn processes(&self) -> Result<Processes, KernelError> {
        processes::read(&self.space, self.types()?, self.address_of("init_task")?)
    }

    /// What could not be read, in words.
    pub fn missing(&self) -> Vec<String> {
        let symbols = self.symbols.as_ref().err().map(|error| format!("symbols: {error}"));
        let types = self.types.as_ref().err().map(|error| format!("types: {error}"));
        let layout = self.layout.as_ref().err().map(|error| format!("page classes: {error}"));
        let inodes = self.types.as_ref().is_ok_and(|types| !Files::new(Some(types)).knows_inodes());
        let inodes = inodes.then(|| "inodes: BTF has no complete inode".to_owned());
        [symbols, types, layout, inodes].into_iter().flatten().collect()
    }

    fn address_of(&self, name: &'static str) -> Result<u64, KernelError> {
        let unknown = || KernelError::Unknown { what: name, why: "no such symbol".to_owned() };
        self.symbols()?.address_of(name).ok_or_else(unknown)
    }
}

/// The kernel's own page tables, if they map the kernel where the note says that it is.
fn address_space(view: &ReadView, note: &Note) -> Result<AddressSpace, String> {
    const ROOTS: [&str; 2] = ["init_top_pgt", "swapper_pg_dir"];
    let root = ROOTS.iter().find_map(|name| note.symbol(name));
    let root = root.ok_or("it names no page tables")?;
    let gpa = note.image_gpa(root).ok_or("its page tables are outside the kernel's image")?;
    let five_levels = note.number("pgtable_l5_enabled").is_some_and(|enabled| enabled != 0);
    let space = AddressSpace::new(view.clone(), gpa, five_levels);
    let text = note.symbol("_stext").ok_or("it does not say where the kernel's code is")?;
    for va in [root, text] {
        let mapped = space.translate(va).map_err(|error| error.to_string())?;
        if Some(mapped) != note.image_gpa(va) {
            return Err(format!("its page tables map {va:#x} to {mapped}, not where it says"));
        }
    }
    Ok(space)
}

fn read_symbols(space: &AddressSpace, note: &Note) -> Result<Symbols, KernelError> {
    let unknown = |why: &str| KernelError::Unknown { what: "kallsyms", why: why.to_owned() };
    let places = Places::of(note)
        .ok_or_else(|| unknown("the note does not name it, as before Linux 6.0"))?;
    let text = note.symbol("_stext").ok_or_else(|| unknown("the note has no _stext"))?;
    Symbols::read(space, &places, ("_stext", text))
}

fn read_types(space: &AddressSpace, symbols: &Symbols) -> Result<Types, KernelError> {
    let unknown = |why: &str| KernelError::Unknown { what: "BTF", why: why.to_owned() };
    let start = symbols.address_of("__start_BTF").ok_or_else(|| unknown("no such symbol"))?;
    let mut header = [0; types::HEADER];
    space.read(start, &mut header)?;
    let len = Types::section_len(&header).ok_or_else(|| unknown("no header at its symbol"))?;
    let mut bytes = vec![0; len];
    space.read(start, &mut bytes)?;
    Types::parse(bytes)
}
