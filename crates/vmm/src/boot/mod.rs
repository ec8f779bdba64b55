//! From a kernel file to the first instruction: what firmware and boot loader do on a PC.
//!
//! [`prepare`] reads a stock kernel (a bzImage as distributions install it, or an ELF vmlinux), unpacks
//! it, writes it into guest memory together with the initrd, the command line, the zero page and the ACPI
//! tables, and returns a [`BootPlan`]: plain data that says how the boot processor enters the kernel.
//!
//! ```text
//!  kernel file ──KernelImage::parse──▶ ELF vmlinux, setup header, version
//!                     detect, check            │ unpack
//!  initrd, command line, Platform ─────────────┤
//!                                              ▼
//!                                            load ──▶ BootMemory::write: kernel, initrd,
//!                                              │      command line, zero page, page tables,
//!                                              ▼      GDT, ACPI tables   (layout.rs)
//!                                          BootPlan: rip, rsi, rsp, cr3, gdt
//! ```
//!
//! The kernel's own decompressor never runs: the VMM unpacks on the host, which saves the guest some
//! hundred million instructions, and enters the vmlinux's `startup_64` by the convention of the 64-bit
//! boot protocol. So the kernel lies where it was linked to (no KASLR; the zero page says so, and the
//! kernel then leaves its memory layout unrandomised too).
//!
//! What it is *not*: no firmware (no BIOS calls, no EFI, no SMBIOS, no real mode on the boot processor),
//! no loader for other systems, and not the place where devices are built: the ACPI tables describe a
//! [`Platform`] at the addresses of [`layout`], and whoever builds the machine puts the devices there.
//!
//! Files come from strangers, so every length, offset and address in them is checked before use, and
//! what unpacking may produce is bounded by the guest's memory. Nothing here makes a system call except
//! [`prepare`], which reads the two files.
//!
//! # Example
//!
//! ```
//! use std::ops::Range;
//! use vmm::boot::{self, BootError, BootMemory, KernelImage, Platform};
//!
//! struct Ram(Vec<u8>);
//!
//! impl BootMemory for Ram {
//!     fn ram_ranges(&self) -> Vec<Range<u64>> {
//!         boot::layout::ram_ranges(self.0.len() as u64)
//!     }
//!     fn write(&mut self, gpa: u64, bytes: &[u8]) -> Result<(), BootError> {
//!         let start = gpa as usize;
//!         self.0[start..start + bytes.len()].copy_from_slice(bytes);
//!         Ok(())
//!     }
//! }
//!
//! let error = KernelImage::parse(b"#!/bin/sh\n".to_vec(), 64 << 20).unwrap_err();
//! assert!(error.to_string().ends_with("found a script"));
//!
//! # let mut vmlinux = vec![0; 0x1000];
//! # vmlinux[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0");
//! # let mut put = |at: usize, value: u64| vmlinux[at..at + 8].copy_from_slice(&value.to_le_bytes());
//! # [(24, 0x100_0000), (32, 64), (54, 0x1_0038), (64, 1), (80, 0xffff_ffff_8100_0000),
//! #  (88, 0x100_0000), (96, 0x1000), (104, 0x1000)].map(|(at, value)| put(at, value));
//! let kernel = KernelImage::parse(vmlinux, 64 << 20)?;
//! let platform = Platform { vcpus: 2, virtio_devices: 1, serial: true, pvpanic: true };
//! let mut ram = Ram(vec![0; 64 << 20]);
//! let plan = boot::load(&kernel, None, "console=ttyS0", &platform, &mut ram)?;
//! assert_eq!(plan.entry, 0x100_0000);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod acpi;
mod bzimage;
mod contents;
mod e820;
mod elf;
mod entry;
mod error;
mod file;
mod image;
mod initrd;
pub mod layout;
mod little_endian;
mod unpack;
mod zero_page;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::Path;

pub use acpi::Platform;
pub use bzimage::SetupHeader;
pub use contents::Initrd;
pub use elf::{Segment, Vmlinux};
pub use entry::{CODE_SELECTOR, DATA_SELECTOR, TASK_SELECTOR};
pub use error::{BootError, ImageError, InitrdLimit};
pub use image::{ImageFormat, KernelImage};
pub use unpack::Compression;

use x86::{DescriptorTable, Gpr, VcpuState};
use zero_page::ZeroPage;

/// The largest kernel file that is read: a vmlinux with all debugging information stays below.
const KERNEL_FILE_MAX: u64 = 2 << 30;
/// What a kernel wants beyond its own image to get to its first program, for advice in errors.
const KERNEL_HEADROOM_MIB: u64 = 32;

/// Guest memory as the loader needs it.
///
/// It reads as zero before the first write: what the kernel expects to be zero is not written.
pub trait BootMemory {
    /// The ranges of RAM, ascending, in the shape that [`layout::ram_ranges`] gives.
    fn ram_ranges(&self) -> Vec<Range<u64>>;

    /// Writes `bytes` at the guest-physical address `gpa`.
    ///
    /// The loader only asks for what lies within one of the ranges. A failure of the host's is a
    /// [`BootError::Memory`].
    fn write(&mut self, gpa: u64, bytes: &[u8]) -> Result<(), BootError>;
}

/// What is to be booted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BootSource<'a> {
    /// Path of a bzImage or vmlinux.
    pub kernel: &'a Path,
    /// Path of an initramfs image.
    pub initrd: Option<&'a Path>,
    /// The kernel's command line.
    pub cmdline: &'a str,
}

/// How the boot processor enters the kernel, and what was loaded where.
///
/// [`BootPlan::vcpu_state`] puts it into a processor's state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BootPlan {
    /// RIP: the kernel's `startup_64`.
    pub entry: u64,
    /// RSI: the zero page.
    pub zero_page: u64,
    /// RSP: the top of 4 KiB of stack.
    pub stack_top: u64,
    /// CR3: tables that map the lowest 4 GiB to themselves.
    pub page_tables: u64,
    /// GDTR: base.
    pub gdt_base: u64,
    /// GDTR: highest valid offset.
    pub gdt_limit: u16,
    /// The ACPI root pointer, which the zero page names too.
    pub rsdp: u64,
    /// From the kernel's lowest address to its highest.
    pub kernel: Range<u64>,
    /// Where the initrd is.
    pub initrd: Option<Range<u64>>,
    /// The version that a bzImage names.
    pub kernel_version: Option<String>,
}

impl BootPlan {
    /// The boot processor's state at the kernel's first instruction: 64-bit mode with interrupts off, CS
    /// [`CODE_SELECTOR`] and the data segments [`DATA_SELECTOR`], all flat; TR [`TASK_SELECTOR`], a busy
    /// TSS; no IDT, so that an exception before the kernel has one of its own ends in a triple fault.
    #[must_use]
    pub fn vcpu_state(&self) -> VcpuState {
        let mut state = VcpuState::long_mode();
        state.rip = self.entry;
        state.gpr[Gpr::Rsi as usize] = self.zero_page;
        state.gpr[Gpr::Rsp as usize] = self.stack_top;
        state.cr3 = self.page_tables;
        state.gdtr = DescriptorTable { base: self.gdt_base, limit: self.gdt_limit };
        state.idtr = DescriptorTable::default();
        state.tr = entry::task_segment();
        state
    }
}

/// Reads the files that `source` names and loads them; see [`load`].
pub fn prepare(
    source: &BootSource<'_>,
    platform: &Platform,
    memory: &mut dyn BootMemory,
) -> Result<BootPlan, BootError> {
    let ram = memory.ram_ranges().iter().map(|range| range.end.saturating_sub(range.start)).sum();
    let kernel = file::read("kernel", source.kernel, KERNEL_FILE_MAX)?;
    let damaged = |error| BootError::Kernel { path: source.kernel.to_owned(), source: error };
    let kernel = KernelImage::parse(kernel, ram).map_err(damaged)?;
    // Beyond 4 GiB no kernel can take it: the placement then says so, with its size.
    let open = |path| file::open("initrd", path, layout::DEVICE_HOLE_END);
    let mut initrd = source.initrd.map(open).transpose()?;
    let initrd = initrd.as_mut().map(|(file, bytes)| Initrd { bytes: *bytes, content: file });
    load(&kernel, initrd, source.cmdline, platform, memory).map_err(|error| match error {
        BootError::Image(error) => damaged(error),
        BootError::InitrdRead(error) => BootError::Read {
            what: "initrd",
            path: source.initrd.unwrap_or(Path::new("")).to_owned(),
            source: error,
        },
        other => other,
    })
}

/// Writes everything that `kernel` needs into `memory` and says how to enter it.
///
/// On an error, `memory` may have been written in part.
pub fn load(
    kernel: &KernelImage,
    mut initrd: Option<Initrd<'_>>,
    cmdline: &str,
    platform: &Platform,
    memory: &mut dyn BootMemory,
) -> Result<BootPlan, BootError> {
    let ram = memory.ram_ranges();
    let memory_map = e820::memory_map(&ram)?;
    let extent = kernel.vmlinux().extent();
    let initrd_range = place(kernel, initrd.as_ref().map(|initrd| initrd.bytes), ram[0].end)?;
    check_cmdline(cmdline, kernel.header().cmdline_size())?;
    let tables = acpi::tables(platform)?;
    let zero_page = ZeroPage {
        header: kernel.header(),
        memory_map: &memory_map,
        cmdline: layout::CMDLINE_START,
        initrd: initrd_range.clone(),
        rsdp: layout::ACPI_START,
    };

    kernel.write_segments(memory)?;
    if let (Some(initrd), Some(range)) = (&mut initrd, &initrd_range) {
        initrd.write(range.start, memory)?;
    }
    memory.write(layout::CMDLINE_START, cmdline.as_bytes())?;
    memory.write(layout::CMDLINE_START + cmdline.len() as u64, &[0])?;
    memory.write(layout::ZERO_PAGE, &zero_page.to_bytes())?;
    memory.write(layout::PAGE_TABLES, &entry::page_tables())?;
    memory.write(layout::GDT_START, &entry::gdt())?;
    memory.write(layout::ACPI_START, &tables)?;
    memory.write(layout::RESET_VECTOR, &entry::reset_code())?;

    Ok(BootPlan {
        entry: kernel.vmlinux().entry,
        zero_page: layout::ZERO_PAGE,
        stack_top: layout::STACK_TOP,
        page_tables: layout::PAGE_TABLES,
        gdt_base: layout::GDT_START,
        gdt_limit: entry::GDT_LIMIT,
        rsdp: layout::ACPI_START,
        kernel: extent,
        initrd: initrd_range,
        kernel_version: kernel.version().map(str::to_owned),
    })
}

/// Finds room for kernel and initrd in low RAM, which ends at `ram_end`.
fn place(
    kernel: &KernelImage,
    initrd_bytes: Option<u64>,
    ram_end: u64,
) -> Result<Option<Range<u64>>, BootError> {
    let Range { start, end } = kernel.vmlinux().extent();
    if end > ram_end {
        return Err(BootError::TooLittleMemory { start, end, ram_end });
    }
    let addr_max = kernel.header().initrd_addr_max();
    initrd_bytes.map(|bytes| initrd::place(bytes, end, ram_end, addr_max)).transpose()
}

fn check_cmdline(cmdline: &str, kernel_limit: usize) -> Result<(), BootError> {
    if let Some(position) = cmdline.bytes().position(|byte| byte == 0) {
        return Err(BootError::CmdlineNul { position });
    }
    let limit = kernel_limit.min(layout::CMDLINE_SIZE as usize - 1);
    if cmdline.len() > limit {
        return Err(BootError::CmdlineTooLong { length: cmdline.len(), limit });
    }
    Ok(())
}
