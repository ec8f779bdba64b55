//! The curve above what a guest has: predicted by the blocks that it reads again, against the same work with more memory.

use super::super::place::Place;
use crate::kit::Kit;
use crate::machine::Guest;
use anyhow::{Context, Result, bail};
use insight::{Ghosts, MissRatioCurve};
use memory::DiskBlock;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use std::time::Duration;

const LONGEST: Duration = Duration::from_secs(900);
/// The first is where the others are predicted from.
const SIZES_MIB: [u64; 6] = [96, 112, 128, 144, 168, 200];
/// Pages of the curve, and blocks kept in mind.
const MOST: usize = 1 << 16;
/// Of each new page the kernel keeps a `struct page` of 64 bytes.
const LEFT_OF_PAGE: f64 = 1.0 - 64.0 / 4096.0;
/// Parts of 16 KiB of the large files on the disk, some far more often than others, without readahead.
const WORK: &str = "quiet \"fathom.run=disk:/usr/bin/python3 -c 'import os,sys,random; random.seed(5); \
     w=sorted(os.path.join(d,n) for d,_,f in os.walk(sys.prefix) for n in f); w=[p for p in w if \
     os.path.isfile(p) and os.path.getsize(p)>1000000 and not os.path.islink(p)]; o=[os.open(p,0) for p in w]; \
     [os.posix_fadvise(f,0,0,1) for f in o]; b=[(f,k) for f in o for k in \
     range(os.fstat(f).st_size//16384)]; random.shuffle(b); \
     print(len(b),sum(len(os.pread(f,16384,k*16384)) for f,k in (b[int(len(b)*random.random()**2)] for i \
     in range(60000))))'\"";

/// With one size of memory.
#[derive(Serialize)]
pub(super) struct Above {
    memory_mib: u64,
    /// Blocks that came into the cache.
    misses: u64,
    /// By those of the first size, as they were, and as predicted there.
    part: f64,
    predicted: f64,
}

/// A line of `fathom run --cache-log`.
#[derive(Deserialize)]
struct Line {
    change: Change,
    disk: u8,
    block: u64,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Change {
    Insert,
    Evict,
    Drop,
    Move,
}

pub(super) fn measure(place: &Place, kit: &Kit, folder: &Path) -> Result<Vec<Above>> {
    let log = folder.join("cache");
    let mut first: Option<(u64, MissRatioCurve)> = None;
    let mut found = Vec::new();
    for memory_mib in SIZES_MIB {
        let options = ["--cache-log".to_owned(), log.display().to_string()];
        let guest = Guest::new(kit, WORK).memory(memory_mib).options(&options);
        let events =
            guest.disk(&kit.loads_disk()?).start(place.vmm())?.finish(place.patience(LONGEST))?;
        if !events.iter().any(|event| event.is("exit") && event.number("status") == 0) {
            bail!("the program that reads did not end well");
        }
        let (misses, curve) = follow(&log)?;
        let (misses_then, curve) = first.get_or_insert((misses, curve));
        let more = ((memory_mib - SIZES_MIB[0]) << 8) as f64 * LEFT_OF_PAGE;
        found.push(Above {
            memory_mib,
            misses,
            part: misses as f64 / (*misses_then).max(1) as f64,
            predicted: curve.miss_ratio(more as u64),
        });
    }
    Ok(found)
}

/// How many blocks came in, and the curve of those that came again.
fn follow(log: &Path) -> Result<(u64, MissRatioCurve)> {
    let text = fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
    let (mut ghosts, mut misses) = (Ghosts::of_all(MOST, 4096), 0);
    for line in text.lines() {
        let Line { change, disk, block } = serde_json::from_str(line)?;
        let block = DiskBlock { disk, block };
        match change {
            Change::Insert => {
                misses += 1;
                ghosts.inserted(block);
            }
            Change::Evict => ghosts.evicted(block),
            Change::Drop => ghosts.dropped(block),
            Change::Move => {}
        }
    }
    Ok((misses, ghosts.curve().context("nothing came into the cache")?))
}

/// The mean distance of predictions from what came, over the sizes that were predicted.
pub(super) fn error(found: &[Above]) -> Option<f64> {
    let predicted = found.get(1..).filter(|rest| !rest.is_empty())?;
    let off: f64 = predicted.iter().map(|one| (one.part - one.predicted).abs()).sum();
    Some(off / predicted.len() as f64)
}

pub(super) fn table(found: &[Above]) -> String {
    let Some(error) = error(found) else { return String::new() };
    let mut table = "\nmemory MiB    misses      part predicted\n".to_owned();
    for one in found {
        table += &format!(
            "{:>10}{:>10}{:>10.3}{:>10.3}\n",
            one.memory_mib, one.misses, one.part, one.predicted
        );
    }
    table + &format!("above the allocation: off by {error:.4} in the middle\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_of_what_was_predicted() {
        let one = |part, predicted| Above { memory_mib: 1, misses: 1, part, predicted };
        assert_eq!(error(&[one(1.0, 1.0)]), None);
        let off = error(&[one(1.0, 1.0), one(0.5, 0.6), one(0.1, 0.1)]).unwrap();
        assert!((off - 0.05).abs() < 1e-9);
    }

    #[test]
    fn a_log_gives_depths() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log");
        let line = |change, block| {
            format!(
                "{{\"at_ns\":1,\"change\":\"{change}\",\"frame\":3,\"disk\":0,\"block\":{block}}}\n"
            )
        };
        let lines = [line("insert", 1), line("evict", 1), line("evict", 2), line("insert", 1)];
        fs::write(&file, lines.concat()).unwrap();
        let (misses, curve) = follow(&file).unwrap();
        assert_eq!(misses, 2);
        // One was never seen before, one would have been there with two pages more.
        assert_eq!(curve.miss_ratio(MOST as u64), 0.5);
    }
}
