//! How fast a snapshot is written and read, beside `cp` of a file with the same contents: GiB of guest memory
//! a second by the clock / of processor time on one thread, medians, and the space taken.
//!
//! `cargo bench -p snapshot [-- [FOLDER [FILE]]]`: in FOLDER (else where temporary files are), of FILE's first 512 MiB,
//! say an image of a guest's memory (else made up: a third text, a third pointers, a sixth noise, a sixth zeros).
//! What is read is in the page cache. Writing includes that it is durable; `cp` is followed by `sync`.

#![allow(missing_docs, clippy::unwrap_used, reason = "a program that prints figures")]

use std::hint::black_box;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use memory::{FRAME_SIZE, Frame, RamLayout};
use snapshot::{Batch, Compression, Cpu, Description, Options, Snapshot, Time, Writer};

const BYTES_MAX: usize = 512 << 20;
const ROUNDS: usize = 5;
const WORDS: [&str; 8] =
    ["memory ", "of ", "a guest", " is ", "mostly, ", "like this:\n", "0x", "\0\0\0\0\0"];

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let folder = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(folder).unwrap();
    let mut bytes = arguments.next().map_or_else(made_up, |path| std::fs::read(path).unwrap());
    bytes.truncate(BYTES_MAX);
    bytes.truncate(bytes.len() / FRAME_SIZE * FRAME_SIZE);
    let pages = bytes.as_chunks().0;
    println!("{} MiB of guest memory", bytes.len() >> 20);
    println!(
        "{:8} {:>12} {:>12} {:>12} {:>12} {:>10}",
        "", "write", "read, image", "read, frame", "working set", "space"
    );

    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    std::fs::write(&from, &bytes).unwrap();
    let copy = || {
        assert!(Command::new("cp").arg(&from).arg(&to).status().unwrap().success());
        std::fs::File::open(&to).unwrap().sync_all().unwrap();
    };
    let remove_copy = || drop(std::fs::remove_file(&to));
    let copied = rate(bytes.len(), remove_copy, copy);
    let read = rate(bytes.len(), || (), || drop(black_box(std::fs::read(&from).unwrap())));
    let space = 100.0 * (to.metadata().unwrap().blocks() * 512) as f64 / bytes.len() as f64;
    println!("{:8} {copied:>12} {read:>12} {:>12} {:>12} {space:>9.1}%", "cp", "-", "-");
    std::fs::remove_file(&from).unwrap();
    std::fs::remove_file(&to).unwrap();
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        measure(folder.path(), pages, compression);
    }
}

fn measure(folder: &Path, pages: &[[u8; FRAME_SIZE]], compression: Compression) {
    let (path, bytes) = (folder.join("saved"), pages.len() * FRAME_SIZE);
    // An eighth of it is the working set, from all over.
    let order: Vec<Frame> = (0..pages.len() as u32 / 8).map(|n| Frame(n * 8)).collect();
    let save = || {
        let layout = RamLayout::new(bytes as u64).unwrap();
        let writer =
            Writer::create(&path, Options { compression, ..Options::new(layout) }).unwrap();
        let mut lane = writer.lane().unwrap();
        for (frame, page) in (0..).map(Frame).zip(pages) {
            lane.write(frame, page).unwrap();
        }
        lane.finish().unwrap();
        writer.finish(description(), b"{}", &[]).unwrap();
    };
    let write = rate(bytes, || drop(std::fs::remove_dir_all(&path)), save);
    let space = space_of(&path);
    let mut snapshot = Snapshot::open(&path).unwrap();
    let mut batch = Batch::new();
    let image = rate(
        bytes,
        || (),
        || {
            for place in snapshot.places() {
                snapshot.read_place(place, &mut batch).unwrap();
                black_box(batch.iter().count());
            }
        },
    );
    let mut page = [0; FRAME_SIZE];
    let frames = rate(
        bytes,
        || (),
        || {
            for frame in 0..pages.len() as u32 {
                snapshot.read(Frame(frame), &mut page).unwrap();
                black_box(&page);
            }
        },
    );
    snapshot::WorkingSet::replace(&snapshot, &order, compression).unwrap();
    snapshot = Snapshot::open(&path).unwrap();
    let set = snapshot.working_set().unwrap().unwrap();
    let set_bytes = set.frames().len() * FRAME_SIZE;
    let working_set = rate(
        set_bytes,
        || (),
        || {
            for chunk in 0..set.chunks() {
                set.read(chunk, &mut batch).unwrap();
                black_box(batch.iter().count());
            }
        },
    );
    let (name, space) =
        (format!("{compression:?}").to_lowercase(), 100.0 * space as f64 / bytes as f64);
    println!("{name:8} {write:>12} {image:>12} {frames:>12} {working_set:>12} {space:>9.1}%");
}

/// Bytes on the disk of all files in a directory.
fn space_of(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).unwrap();
    entries.map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512).sum()
}

/// What `run` does with `bytes`, the medians of GiB a second: by the clock, and of processor time, which says more on a
/// machine that does other things. What `prepare` does is not counted: a file system may take long to remove a file.
fn rate(bytes: usize, prepare: impl Fn(), mut run: impl FnMut()) -> String {
    let (mut by_clock, mut by_processor) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        prepare();
        let (start, used) = (Instant::now(), processor_time());
        run();
        let gib = bytes as f64 / f64::from(1 << 30);
        by_clock.push(gib / start.elapsed().as_secs_f64());
        by_processor.push(gib / (processor_time() - used));
    }
    by_clock.sort_by(f64::total_cmp);
    by_processor.sort_by(f64::total_cmp);
    format!("{:.2}/{:.2}", by_clock[ROUNDS / 2], by_processor[ROUNDS / 2])
}

/// Seconds that this process and its children have used (fields 14 to 17 of proc_pid_stat(5)).
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    fields.skip(11).take(4).map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
}

fn made_up() -> Vec<u8> {
    let mut bytes = vec![0; BYTES_MAX];
    let mut state = 1u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for (n, page) in bytes.as_chunks_mut::<FRAME_SIZE>().0.iter_mut().enumerate() {
        let words = page.as_chunks_mut::<8>().0;
        match n % 6 {
            0 | 1 => {
                let text: String = (0..1024).map(|_| WORDS[random() as usize % 8]).collect();
                page.copy_from_slice(&text.as_bytes()[..FRAME_SIZE]);
            }
            2 | 3 => words.iter_mut().enumerate().for_each(|(n, word)| {
                let pointer = 0xffff_8880_0000_0000 | (random() % (1 << 28)) & !63;
                *word = (if n % 4 == 0 { pointer } else { random() % 3 }).to_le_bytes();
            }),
            4 => words.iter_mut().for_each(|word| *word = random().to_le_bytes()),
            _ => {}
        }
    }
    bytes
}

fn description() -> Description {
    Description {
        saved_at: Time { seconds: 0, nanoseconds: 0 },
        writer: "bench".into(),
        engine: "none".into(),
        cpu: Cpu::default(),
        vcpus: 1,
        machine_version: 1,
        disks: Vec::new(),
        generation: None,
        agent: false,
    }
}
