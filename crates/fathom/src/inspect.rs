//! `fathom inspect`: what a guest's kernel says of its memory and processes.

use std::process::ExitCode;
use std::time::Duration;

use api::{KernelInfo, KernelSymbol, KernelType, SocketDirectory};
use serde::Serialize;

use crate::arguments::InspectArguments;
use crate::failure::{Failure, SUCCESS};
use crate::list::print;
use crate::text::{self, line};

/// Classes in the order in which they are shown, and what they are called there.
const CLASSES: [(&str, &str); 13] = [
    ("free", "free"),
    ("cpu_free", "free, kept by a CPU"),
    ("file_cache", "file cache"),
    ("shared_memory", "shared memory, tmpfs"),
    ("anonymous", "anonymous"),
    ("swap_cache", "anonymous, in swap too"),
    ("huge", "huge pages"),
    ("page_table", "page tables"),
    ("slab", "slab"),
    ("reserved", "kernel, since its start"),
    ("kernel", "kernel, other"),
    ("offline", "balloon"),
    ("unknown", "unknown"),
];

/// All of memory is looked at, by a host that may be slow.
const CLASSES_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) fn inspect(arguments: &InspectArguments) -> Result<ExitCode, Failure> {
    let client = SocketDirectory::open()?.client(&arguments.name);
    let json = arguments.json;
    if arguments.classes {
        let client = client.with_timeout(CLASSES_TIMEOUT);
        print(&text_of(&client.classes()?, true, |_| String::new())?);
        return Ok(ExitCode::from(SUCCESS));
    }
    let answer = match (&arguments.symbol, &arguments.structure) {
        (Some(wanted), _) => text_of(&client.kernel_symbol(wanted)?, json, symbol)?,
        (None, Some(wanted)) => text_of(&client.kernel_type(wanted)?, json, structure)?,
        (None, None) => text_of(&client.kernel()?, json, shown)?,
    };
    print(&answer);
    Ok(ExitCode::from(SUCCESS))
}

fn text_of<T: Serialize>(
    answer: &T,
    json: bool,
    text: fn(&T) -> String,
) -> Result<String, Failure> {
    if json {
        return Ok(serde_json::to_string(answer).map_err(Failure::host)? + "\n");
    }
    Ok(text(answer))
}

fn symbol(symbol: &KernelSymbol) -> String {
    let past = if symbol.offset > 0 { format!("+{:#x}", symbol.offset) } else { String::new() };
    format!("{:#x} {}{past}\n", symbol.address.saturating_add(symbol.offset), line(&symbol.name))
}

fn structure(member: &KernelType) -> String {
    let whole = member.bits.is_multiple_of(8) && member.bit_offset.is_multiple_of(8);
    match whole {
        true => format!("{} bytes at {}\n", member.bits / 8, member.bit_offset / 8),
        false => format!("{} bits at bit {}\n", member.bits, member.bit_offset),
    }
}

fn shown(kernel: &KernelInfo) -> String {
    let parts = [head(kernel), classes(kernel), processes(kernel)];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
}

fn head(kernel: &KernelInfo) -> String {
    let count = |count: Option<u64>, what: &str| match count {
        Some(count) => format!(", {count} {what}"),
        None => String::new(),
    };
    let (symbols, types) = (count(kernel.symbols, "symbols"), count(kernel.types, "types"));
    let mut lines = vec![
        format!("Linux {}, moved by {:#x}", line(&kernel.release), kernel.kaslr_offset),
        format!("found by its note at {:#x}{symbols}{types}", kernel.note_address),
    ];
    lines.extend(kernel.missing.iter().map(|missing| format!("missing: {}", line(missing))));
    lines.join("\n") + "\n"
}

fn classes(kernel: &KernelInfo) -> String {
    if kernel.class_bytes.is_empty() {
        return String::new();
    }
    let mut rows = vec![vec!["MEMORY".to_owned(), "MIB".to_owned()]];
    let mut row = |name: &str, bytes: u64| {
        rows.push(vec![name.to_owned(), format!("{:.1}", bytes as f64 / f64::from(1 << 20))]);
    };
    for (class, name) in CLASSES {
        if let Some(&bytes) = kernel.class_bytes.get(class).filter(|&&bytes| bytes > 0) {
            row(name, bytes);
        }
    }
    row("all", kernel.class_bytes.values().fold(0, |sum, &bytes| sum.saturating_add(bytes)));
    text::table(&rows)
}

fn processes(kernel: &KernelInfo) -> String {
    if kernel.processes.is_empty() {
        return String::new();
    }
    let mut rows = vec![["NAME", "PID", "PAGE TABLE"].map(str::to_owned).to_vec()];
    rows.extend(kernel.processes.iter().map(|process| {
        let page_table = process.page_table.map_or("-".to_owned(), |gpa| format!("{gpa:#x}"));
        vec![line(&process.name), process.pid.to_string(), page_table]
    }));
    let mut table = text::table(&rows);
    let more = kernel.process_count.saturating_sub(kernel.processes.len() as u64);
    if more > 0 {
        table += &format!("and {more} more\n");
    }
    table
}
