//! The kernel in a raw image of a guest's RAM, of which the first byte is at address 0:
//!
//! ```text
//! kernel_image IMAGE                     what was found, frames by class, processes
//! kernel_image IMAGE symbols             address and name of each symbol, as /proc/kallsyms has them
//! kernel_image IMAGE files               frames in memory of each file
//! kernel_image IMAGE STRUCTURE [MEMBER]  size of a structure; offset and size of a member, in bytes
//! ```
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use insight::kernel::Kernel;
use memory::{DeviceView, FRAME_SIZE, Gpa, GuestMemory, ReadView};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [image, question @ ..] = &arguments[..] else {
        return Err("name an image of RAM".into());
    };
    let view = ReadView::new(Arc::new(load(image)?));
    let start = Instant::now();
    let kernel = Kernel::find(&view)?;
    let found = start.elapsed();
    match question {
        [] => show(&kernel, found)?,
        ["symbols"] => kernel.symbols()?.iter().for_each(|(va, name)| println!("{va:016x} {name}")),
        ["files"] => files(&kernel)?,
        [structure] => println!("{:?}", kernel.types()?.size_of(structure)),
        [structure, member, ..] => println!("{:?}", kernel.types()?.member(structure, member)),
    }
    Ok(())
}

fn load(path: &str) -> Result<GuestMemory, Box<dyn Error>> {
    let image = std::fs::read(path)?;
    let memory = Arc::new(GuestMemory::with_bytes(image.len() as u64)?);
    let view = DeviceView::new(Arc::clone(&memory));
    for (at, frame) in (0..).step_by(FRAME_SIZE).zip(image.chunks(FRAME_SIZE)) {
        if frame.iter().any(|&byte| byte != 0) {
            view.write(Gpa(at), frame)?;
        }
    }
    drop(view);
    Arc::into_inner(memory).ok_or_else(|| "the memory is in use".into())
}

fn show(kernel: &Kernel, found: std::time::Duration) -> Result<(), Box<dyn Error>> {
    println!("{} at {}, found in {found:?}", kernel.note().release(), kernel.note_at());
    println!("missing: {:?}", kernel.missing());
    let start = Instant::now();
    let pages = kernel.pages()?;
    println!("pages in {:?}", start.elapsed());
    for (class, frames) in pages.counts() {
        println!("{:14} {frames}", class.name());
    }
    for process in kernel.processes()?.list {
        println!("{:5} {}", process.pid, process.name);
    }
    Ok(())
}

fn files(kernel: &Kernel) -> Result<(), Box<dyn Error>> {
    let pages = kernel.pages()?;
    let mut frames: BTreeMap<u64, (String, u64)> = BTreeMap::new();
    for cached in pages.cached() {
        let file = || format!("{:?}", cached.file.inode);
        frames.entry(cached.file.mapping).or_insert_with(|| (file(), 0)).1 += 1;
    }
    for (file, frames) in frames.values() {
        println!("{frames:6} {file}");
    }
    Ok(())
}
