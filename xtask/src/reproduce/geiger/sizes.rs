//! Misses with other sizes of memory: predicted from what a guest with little evicts and reads again, beside what the same
//! work misses in guests that have more.
//!
//! A miss is a block that comes into the cache. That of the least memory is by `--cache-log`, as a prediction has to be;
//! what really comes, with each size, is counted by what the guest's kernel says.

use super::super::place::Place;
use super::super::{folder, write_json, wss};
use super::disks::{Disks, FileSystem};
use super::programs;
use super::score::{self, Change, Inferred};
use super::truth::{self, Kind, Recording, Run};
use crate::kit::{self, Kit};
use anyhow::{Context, Result, anyhow, ensure};
use insight::{Ghosts, MissRatioCurve};
use memory::DiskBlock;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Single pages of a part of a file, some much more often than others; and a database larger than any of these.
const LOADS: [&str; 2] = ["skew:110", "sqlite3"];
/// The others are predicted from the first.
const SIZES_MIB: [u64; 6] = [96, 104, 112, 128, 144, 176];
/// Of each new page the kernel keeps a `struct page` of 64 bytes.
const LEFT_OF_PAGE: f64 = 1.0 - 64.0 / 4096.0;
const PAGES_A_MIB: f64 = 256.0;
/// Blocks kept in mind, and sizes told apart.
const MOST: usize = 1 << 16;
const STEPS: usize = 4096;
/// Of the part of misses, with `--check`.
const OFF_AT_MOST: f64 = 0.05;

/// With one size of memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Size {
    memory_mib: u64,
    misses: u64,
    /// By those of the first size: as it was, and as predicted.
    part: f64,
    predicted: f64,
}

/// Of one load.
#[derive(Debug, Serialize)]
struct Load {
    name: String,
    sizes: Vec<Size>,
    mean_error: f64,
}

pub(super) fn run(place: &Place, check: bool, json: Option<&PathBuf>) -> Result<()> {
    let kit = place.kit(&kit::GuestArgs::with_disk())?;
    let disks = Disks::prepare(&kit, FileSystem::Ext4)?;
    let pictures = folder()?;
    let mut loads = Vec::new();
    for name in LOADS {
        let (sizes, curve) = measure(place, &kit, &disks, name)?;
        let short = name.split(':').next().unwrap_or(name);
        draw(&pictures.join(format!("geiger-sizes-{short}.svg")), short, &sizes, &curve)?;
        let load = Load { name: short.to_owned(), mean_error: mean_error(&sizes), sizes };
        println!("{}", table(&load));
        loads.push(load);
    }
    println!("pictures: {}", pictures.join("geiger-sizes-*.svg").display());
    if let Some(file) = json {
        write_json(file, &loads)?;
    }
    let bad = loads.iter().find(|load| load.mean_error > OFF_AT_MOST);
    let bad = bad.filter(|_| check);
    ensure!(bad.is_none(), "predictions are off by more than {OFF_AT_MOST}: {bad:?}");
    Ok(())
}

fn measure(
    place: &Place,
    kit: &Kit,
    disks: &Disks,
    name: &str,
) -> Result<(Vec<Size>, MissRatioCurve)> {
    let logs = tempfile::tempdir()?;
    let log = logs.path().join("cache");
    let options = ["--cache-log".to_owned(), log.display().to_string()];
    let program = programs::named(name);
    let load = program.map_or_else(|| name.replace(':', ","), programs::Program::load);
    let disk = programs::disk(program, kit)?;
    let mut first = None;
    let mut sizes = Vec::new();
    for memory_mib in SIZES_MIB {
        let run = Run { place, load: &load, disk: &disk, memory_mib, cpus: 1, options: &options };
        let recording = truth::record(kit, disks, &run)?;
        let misses = misses(&recording);
        if first.is_none() {
            let lines = score::during(&recording, &score::read(&log)?);
            first = Some((misses, curve(&lines).context("nothing came into the cache")?));
        }
        let Some((misses_then, curve)) = &first else { continue };
        let part = misses as f64 / (*misses_then).max(1) as f64;
        let predicted = curve.miss_ratio(more_pages(memory_mib));
        sizes.push(Size { memory_mib, misses, part, predicted });
    }
    let (_, curve) = first.context("there are sizes")?;
    Ok((sizes, curve))
}

/// Blocks that came into the cache, as the kernel says.
fn misses(recording: &Recording) -> u64 {
    let window = recording.begin.tsc..recording.end.tsc;
    let came = recording.events.iter().filter(|event| {
        event.kind == Kind::Insert && event.block.is_some() && window.contains(&event.tsc)
    });
    came.count() as u64
}

/// Of the blocks that came again.
fn curve(lines: &[Inferred]) -> Option<MissRatioCurve> {
    let mut ghosts = Ghosts::of_all(MOST, STEPS);
    for line in lines {
        let disk = u8::try_from(line.disk).ok()?;
        let block = DiskBlock { disk, block: line.block };
        match line.change {
            Change::Insert => drop(ghosts.inserted(block)),
            Change::Evict => ghosts.evicted(block),
            Change::Drop => ghosts.dropped(block),
            Change::Move => {}
        }
    }
    ghosts.curve()
}

fn more_pages(memory_mib: u64) -> u64 {
    ((memory_mib - SIZES_MIB[0]) as f64 * PAGES_A_MIB * LEFT_OF_PAGE) as u64
}

/// Over the sizes that were predicted.
fn mean_error(sizes: &[Size]) -> f64 {
    let predicted = sizes.get(1..).unwrap_or_default();
    let off: f64 = predicted.iter().map(|size| (size.part - size.predicted).abs()).sum();
    off / predicted.len().max(1) as f64
}

fn table(load: &Load) -> String {
    let mut table = format!("{}\nmemory MiB    misses      part predicted\n", load.name);
    for size in &load.sizes {
        table += &format!(
            "{:>10}{:>10}{:>10.3}{:>10.3}\n",
            size.memory_mib, size.misses, size.part, size.predicted
        );
    }
    table + &format!("mean absolute error {:.4}\n", load.mean_error)
}

fn draw(file: &Path, load: &str, sizes: &[Size], curve: &MissRatioCurve) -> Result<()> {
    let last = more_pages(SIZES_MIB[SIZES_MIB.len() - 1]);
    let memory = |more: u64| SIZES_MIB[0] as f64 + more as f64 / LEFT_OF_PAGE / PAGES_A_MIB;
    let predicted = curve.points().filter(|point| point.0 <= last);
    let predicted = predicted.map(|(more, ratio)| (memory(more), ratio)).collect();
    let counted = sizes.iter().map(|size| (size.memory_mib as f64, size.part)).collect();
    let title = format!("Misses of `{load}` with more memory");
    let axes = ["memory, MiB", "part of the misses with the least memory"];
    wss::draw_lines(file, &title, axes, &[("counted", counted), ("predicted", predicted)])
        .map_err(|error| anyhow!("draw {}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(part: f64, predicted: f64) -> Size {
        Size { memory_mib: 96, misses: 1, part, predicted }
    }

    #[test]
    fn the_error_is_of_what_was_predicted() {
        assert_eq!(mean_error(&[size(1.0, 0.5)]), 0.0);
        let off = mean_error(&[size(1.0, 0.5), size(0.5, 0.6), size(0.1, 0.1)]);
        assert!((off - 0.05).abs() < 1e-9);
    }

    #[test]
    fn a_page_needs_a_little_more_than_its_size() {
        assert_eq!([96, 97, 160].map(more_pages), [0, 252, 16128]);
    }

    #[test]
    fn the_curve_is_of_what_comes_again() {
        let lines: Vec<Inferred> = [
            ("insert", 1),
            ("evict", 1),
            ("move", 5),
            ("evict", 2),
            ("insert", 1),
        ]
        .map(|(change, block)| {
            let line = format!(
                "{{\"at_ns\":1,\"change\":\"{change}\",\"frame\":3,\"disk\":0,\"block\":{block}}}"
            );
            serde_json::from_str(&line).unwrap()
        })
        .into();
        // One was never seen before, one would have been there with two pages more.
        assert_eq!(curve(&lines).unwrap().miss_ratio(1000), 0.5);
        assert_eq!(curve(&lines).unwrap().miss_ratio(0), 1.0);
    }
}
