//! Which blocks a cache below the guest's should have: those that the guest reads, or those that it evicts.
//!
//! Guests run the same loads with `--host-cache` of several sizes and both policies. Beside the hit rate that Fathom counts
//! is what could be had: the guest's kernel tells, event by event, which block came into its cache and which one was
//! evicted, and two caches of the same size are fed with that. The *ideal* is an exclusive LRU which knows of each eviction at
//! once and correctly; the *optimum* drops what is wanted latest (Belady, 1966), which of all exclusive caches has the most
//! hits.

use super::super::place::Place;
use super::super::{Outcome, RowArgs, publish};
use super::disks::{Disks, FileSystem};
use super::truth::{Block, Kind, Recording, Truth};
use crate::dots::{DotRow, Dots};
use crate::kit::{self, Kit};
use crate::machine::Guest;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Of the guest program.
const LOADS: [&str; 3] = ["loop", "skew", "database"];
/// On KVM, of one size.
const KVM_LOADS: [&str; 1] = ["skew"];
const SIZES_MIB: [u64; 3] = [32, 64, 96];
/// Small, so that caches beside it are, too.
const MEMORY_MIB: u64 = 96;
const LONGEST: Duration = Duration::from_secs(600);
const BLOCKS_A_MIB: usize = 256;
/// The scratch disk is the first, that for what is traced the second.
const SCRATCH: u32 = 0;
const WORDS: &str = "quiet fathom.scratch=/dev/vda fathom.trace=/dev/vdb fathom.swap=/dev/vdc";

/// Of the ideal, at least; and where `quick` only asks whether it works: on a host with other work, evictions come late.
const OF_IDEAL: f64 = 0.9;
const OF_IDEAL_QUICK: f64 = 0.75;
/// No two runs of a guest are the same.
const NOISE: f64 = 0.01;

/// What to do, of the row's arguments.
pub(super) struct Asked {
    pub(super) place: Place,
    pub(super) quick: bool,
    pub(super) check: bool,
    pub(super) json: Option<PathBuf>,
}

pub(super) fn run(asked: &Asked) -> Result<()> {
    let place = &asked.place;
    let kit = place.kit(&kit::GuestArgs::default())?;
    let disks = Disks::prepare(&kit, FileSystem::Ext4)?;
    if place.is_in_lab() {
        return place.run_in_lab(&kit, &disks.files(), asked.json.as_deref());
    }
    let loads: &[_] = if asked.place.is_kvm() { &KVM_LOADS } else { &LOADS };
    let one_size = asked.quick || asked.place.is_kvm();
    let sizes: &[_] = if one_size { &SIZES_MIB[1..2] } else { &SIZES_MIB };
    let mut placement = Placement::default();
    for load in loads {
        for &size_mib in sizes {
            let of =
                |policy| place.attempt(|| measure(place, &kit, &disks, load, size_mib, policy));
            let (demand, eviction) = (of("demand")?, of("eviction")?);
            let row = Row { load: (*load).to_owned(), size_mib, demand, eviction };
            placement.add(row, if asked.quick { OF_IDEAL_QUICK } else { OF_IDEAL });
        }
    }
    let json = place.json(asked.json.as_deref()).map(Path::to_owned);
    let args = RowArgs { runs: 1, quick: asked.quick, json };
    publish(&placement, &args)?;
    ensure!(!asked.check || placement.troubles.is_empty(), "{}", placement.troubles.join("; "));
    Ok(())
}

/// One guest.
#[derive(Serialize, Debug)]
struct Measured {
    /// Blocks that the guest read.
    reads: u64,
    hits: u64,
    counts: BTreeMap<String, u64>,
    /// The host's page cache has the disk, too.
    page_cache: bool,
    /// By what the guest's kernel says of this very run.
    known_reads: u64,
    known_evictions: u64,
    ideal_hits: u64,
    optimal_hits: u64,
    seconds: f64,
}

impl Measured {
    fn rate(&self) -> f64 {
        part(self.hits, self.reads)
    }

    fn ideal(&self) -> f64 {
        part(self.ideal_hits, self.known_reads)
    }

    fn optimum(&self) -> f64 {
        part(self.optimal_hits, self.known_reads)
    }
}

fn part(of: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { of as f64 / all as f64 }
}

/// Of `fathom run --report`.
#[derive(Deserialize)]
struct Report {
    host_cache: HostCache,
}

#[derive(Deserialize)]
struct HostCache {
    counts: BTreeMap<String, u64>,
    disks: Vec<Disk>,
}

#[derive(Deserialize)]
struct Disk {
    page_cache: bool,
}

fn measure(
    place: &Place,
    kit: &Kit,
    disks: &Disks,
    load: &str,
    size_mib: u64,
    policy: &str,
) -> Result<Measured> {
    eprintln!("{load}, {size_mib} MiB, {policy}");
    let trace = disks.fresh()?;
    let folder = tempfile::tempdir()?;
    let report = folder.path().join("report.json");
    let options = ["--host-cache".to_owned(), format!("{size_mib}M,policy={policy}")];
    let guest = Guest::new(kit, &format!("{WORDS} fathom.run=cache:{load}"))
        .initramfs(&disks.initramfs)
        .memory(MEMORY_MIB)
        .overlay(&disks.scratch, &disks.overlay)
        .uncached_disk(&trace)
        .writable_disk(&disks.swap)
        .named("placement", &report)
        .options(&options);
    let events = guest.start(place.vmm())?.finish(place.patience(LONGEST))?;
    if let Some(event) = events.iter().find(|event| !event.text("error").is_empty()) {
        bail!("load {load}: {}", event.text("error"));
    }
    let recording = Recording::read(&trace).with_context(|| format!("load {load}"))?;
    let text = fs::read_to_string(&report).with_context(|| report.display().to_string())?;
    let Report { host_cache: HostCache { counts, disks } } = serde_json::from_str(&text)?;
    let count = |name| counts.get(name).copied().unwrap_or_default();
    let (hits, reads) = (count("hits"), count("hits") + count("misses"));
    let steps = steps(&recording.events);
    let capacity = size_mib as usize * BLOCKS_A_MIB;
    let known_reads = steps.iter().filter(|step| matches!(step, Step::Read(_))).count() as u64;
    Ok(Measured {
        reads,
        hits,
        page_cache: disks.first().is_some_and(|disk| disk.page_cache),
        known_reads,
        known_evictions: steps.len() as u64 - known_reads,
        ideal_hits: exclusive_lru(&steps, capacity),
        optimal_hits: optimum(&steps, capacity),
        seconds: recording.seconds(),
        counts,
    })
}

/// What a cache below the guest's is to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Read(Block),
    Evict(Block),
}

fn steps(events: &[Truth]) -> Vec<Step> {
    let step = |event: &Truth| {
        let block = event.block.filter(|block| block.disk == SCRATCH)?;
        match event.kind {
            Kind::Insert => Some(Step::Read(block)),
            Kind::Evict => Some(Step::Evict(block)),
            Kind::Drop | Kind::Move { .. } => None,
        }
    };
    events.iter().filter_map(step).collect()
}

/// Hits of a cache that has what was evicted last.
fn exclusive_lru(steps: &[Step], capacity: usize) -> u64 {
    let (mut by_age, mut ages, mut hits) = (BTreeMap::new(), HashMap::new(), 0);
    for (now, step) in steps.iter().enumerate() {
        match step {
            Step::Read(block) => {
                if let Some(age) = ages.remove(block) {
                    by_age.remove(&age);
                    hits += 1;
                }
            }
            Step::Evict(block) => {
                if let Some(age) = ages.insert(*block, now) {
                    by_age.remove(&age);
                }
                by_age.insert(now, *block);
                if by_age.len() > capacity
                    && let Some((_, oldest)) = by_age.pop_first()
                {
                    ages.remove(&oldest);
                }
            }
        }
    }
    hits
}

/// Hits of a cache that has, of what was evicted, what is read soonest.
fn optimum(steps: &[Step], capacity: usize) -> u64 {
    // When each evicted block is read next.
    let (mut next, mut wanted) = (HashMap::new(), vec![None; steps.len()]);
    for (now, step) in steps.iter().enumerate().rev() {
        match step {
            Step::Read(block) => _ = next.insert(*block, now),
            Step::Evict(block) => wanted[now] = next.remove(block),
        }
    }
    let (mut cached, mut hits) = (BTreeSet::new(), 0);
    for (now, wanted) in wanted.into_iter().enumerate() {
        hits += u64::from(cached.remove(&now));
        cached.extend(wanted);
        if cached.len() > capacity {
            cached.pop_last();
        }
    }
    hits
}

#[derive(Serialize, Debug)]
struct Row {
    load: String,
    size_mib: u64,
    demand: Measured,
    eviction: Measured,
}

#[derive(Serialize, Debug, Default)]
struct Placement {
    rows: Vec<Row>,
    troubles: Vec<String>,
}

impl Placement {
    fn add(&mut self, row: Row, of_ideal: f64) {
        let Row { load, size_mib, demand, eviction } = &row;
        let mut trouble =
            |text: String| self.troubles.push(format!("{load}, {size_mib} MiB: {text}"));
        if eviction.rate() < of_ideal * eviction.ideal() {
            trouble(format!("{:.1} % of the ideal", 100.0 * eviction.rate() / eviction.ideal()));
        }
        if eviction.rate() < demand.rate() - NOISE {
            trouble("fewer hits than by demand".to_owned());
        }
        if demand.page_cache || eviction.page_cache {
            trouble("the host's page cache has the disk as well".to_owned());
        }
        self.rows.push(row);
    }
}

impl Outcome for Placement {
    const NAME: &'static str = "geiger-placement";
    const PAPER: &'static str = "eviction-based placement beats demand placement wherever caches are of similar size \
                                 (Wong and Wilkes 2002; Chen, Zhou and Li 2003; Geiger 2006)";
    const RUN: &'static str = "guests of 96 MiB; hits of what they read, percent";

    fn table(&self) -> String {
        let mut table = format!("{:10}", "");
        for column in [
            "host MiB", "reads", "demand", "eviction", "ideal", "of ideal", "optimum", "evicted",
            "inserted", "too late", "crowded",
        ] {
            let _ = write!(table, "{column:>9}");
        }
        for Row { load, size_mib, demand, eviction } in &self.rows {
            let _ = write!(table, "\n{load:10}{size_mib:>9}{:>9}", eviction.reads);
            let of_ideal =
                if eviction.ideal() > 0.0 { eviction.rate() / eviction.ideal() } else { 1.0 };
            for part in
                [demand.rate(), eviction.rate(), eviction.ideal(), of_ideal, eviction.optimum()]
            {
                let _ = write!(table, "{:>9.1}", 100.0 * part);
            }
            let count = |name| eviction.counts.get(name).copied().unwrap_or_default();
            let counts = ["inserted_by_eviction", "too_late", "crowded_out"].map(count);
            let _ = write!(table, "{:>9}", eviction.known_evictions);
            counts.iter().for_each(|count| _ = write!(table, "{count:>9}"));
        }
        table + "\n"
    }

    fn picture(&self) -> Dots {
        let row = |row: &Row| {
            let figures = [
                row.demand.rate(),
                row.eviction.rate(),
                row.eviction.ideal(),
                row.eviction.optimum(),
            ];
            DotRow {
                name: format!("{} {} MiB", row.load, row.size_mib),
                figures: figures.map(|part| (part > 0.001).then_some(100.0 * part)).into(),
            }
        };
        Dots {
            title: "Hits of a cache below the guest's".into(),
            unit: "hits in a hundred reads".into(),
            series: ["demand", "eviction", "ideal LRU", "optimum"].map(Into::into).into(),
            rows: self.rows.iter().map(row).collect(),
        }
    }

    fn troubles(&self) -> &[String] {
        &self.troubles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(block: u64) -> Step {
        Step::Read(Block { disk: 0, block })
    }

    fn evict(block: u64) -> Step {
        Step::Evict(Block { disk: 0, block })
    }

    #[test]
    fn a_loop_is_lrus_worst_case() {
        // One block in the guest, three in the loop.
        let mut steps = Vec::new();
        for round in 0..10u64 {
            for block in 0..3 {
                if round + block > 0 {
                    steps.push(evict((block + 2) % 3));
                }
                steps.push(read(block));
            }
        }
        let hits = |capacity| (exclusive_lru(&steps, capacity), optimum(&steps, capacity));
        assert_eq!(hits(0), (0, 0));
        let (lru, best) = hits(1);
        assert_eq!((lru, best), (0, 9));
        // A block is evicted before another is read: for a moment all three are below.
        assert_eq!((hits(2), hits(3)), ((0, 18), (27, 27)));
    }

    #[test]
    fn the_optimum_is_the_best_of_all_choices() {
        // All subsets of evictions that are kept, by trying.
        let steps = [
            evict(1),
            evict(2),
            read(1),
            evict(3),
            evict(1),
            read(2),
            read(3),
            evict(2),
            read(1),
            evict(3),
            read(2),
            read(3),
            evict(9),
        ];
        let evictions: Vec<usize> =
            (0..steps.len()).filter(|&at| matches!(steps[at], Step::Evict(_))).collect();
        for capacity in 0..4 {
            let best = (0..1u32 << evictions.len())
                .filter_map(|kept| {
                    let keeps = |at| {
                        let number = evictions.iter().position(|&other| other == at);
                        number.is_some_and(|number| kept >> number & 1 != 0)
                    };
                    let (mut cached, mut hits) = (BTreeSet::new(), 0);
                    for (at, step) in steps.iter().enumerate() {
                        match step {
                            Step::Read(block) => hits += u64::from(cached.remove(&block.block)),
                            Step::Evict(block) if keeps(at) => _ = cached.insert(block.block),
                            Step::Evict(_) => {}
                        }
                        if cached.len() > capacity {
                            return None;
                        }
                    }
                    Some(hits)
                })
                .max();
            assert_eq!(Some(optimum(&steps, capacity)), best, "{capacity}");
        }
    }
}
