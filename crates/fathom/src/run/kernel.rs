//! The guest's kernel as the API shows it.

use api::{ControlError, GuestProcess, KernelInfo, KernelSymbol, KernelType};
use insight::kernel::{Kernel, KernelError, KernelPages, Symbols, Types};
use memory::FRAME_SIZE;

/// Processes in an answer, which has its bound: 4096 take half of it.
const PROCESSES_MAX: usize = 4096;

/// All that is shown of it at once.
pub(super) fn info(kernel: &Kernel) -> KernelInfo {
    let (pages, processes) = (kernel.pages(), kernel.processes());
    let mut missing = kernel.missing();
    // What has its reason in what is missing anyway is not said twice.
    if missing.is_empty() {
        let errors = [pages.as_ref().err(), processes.as_ref().err()];
        missing.extend(errors.into_iter().flatten().map(ToString::to_string));
    }
    let processes = processes.unwrap_or_default();
    missing.extend(processes.cut.iter().map(|reason| format!("further processes: {reason}")));
    let counts = pages.as_ref().map(KernelPages::counts);
    let bytes = |frames| frames * FRAME_SIZE as u64;
    let process_count = processes.list.len() as u64;
    let processes = processes.list.into_iter().take(PROCESSES_MAX).map(|process| GuestProcess {
        pid: process.pid,
        name: process.name,
        page_table: process.page_table.map(|gpa| gpa.0),
    });
    KernelInfo {
        release: kernel.note().release().to_owned(),
        kaslr_offset: kernel.note().kaslr_offset(),
        note_address: kernel.note_at().0,
        symbols: kernel.symbols().ok().map(Symbols::len).map(|count| count as u64),
        types: kernel.types().ok().map(Types::len).map(|count| count as u64),
        class_bytes: counts
            .into_iter()
            .flatten()
            .map(|(class, frames)| (class.name().to_owned(), bytes(frames)))
            .collect(),
        cached_files: pages.as_ref().ok().map(|pages| pages.files().len() as u64),
        processes: processes.collect(),
        process_count,
        missing,
    }
}

/// A symbol by its name, or the one that an address (`0x...`) is in.
pub(super) fn symbol(kernel: &Kernel, wanted: &str) -> Result<KernelSymbol, ControlError> {
    let symbols = kernel.symbols().map_err(failed)?;
    let found = match wanted.strip_prefix("0x") {
        Some(digits) => {
            let bad = |_| ControlError::Invalid(format!("`{wanted}` is not an address"));
            let address = u64::from_str_radix(digits, 16).map_err(bad)?;
            let symbol = symbols.symbol_at(address);
            symbol.map(|(name, offset)| KernelSymbol { name, address: address - offset, offset })
        }
        None => symbols.address_of(wanted).map(|address| KernelSymbol {
            name: wanted.to_owned(),
            address,
            offset: 0,
        }),
    };
    found.ok_or_else(|| ControlError::Invalid(format!("guest kernel: no symbol `{wanted}`")))
}

/// A structure, or a member of one: `page`, `page.lru.next`.
pub(super) fn type_of(kernel: &Kernel, wanted: &str) -> Result<KernelType, ControlError> {
    let types = kernel.types().map_err(failed)?;
    let found = match wanted.split_once('.') {
        None => types
            .size_of(wanted)
            .map(|bytes| KernelType { bit_offset: 0, bits: (bytes as u64).saturating_mul(8) }),
        Some((structure, member)) => types
            .member(structure, member)
            .map(|member| KernelType { bit_offset: member.bit_offset.into(), bits: member.bits }),
    };
    found.ok_or_else(|| {
        ControlError::Invalid(format!("guest kernel: no structure or member `{wanted}`"))
    })
}

fn failed(error: KernelError) -> ControlError {
    ControlError::State(format!("guest kernel: {error}"))
}
