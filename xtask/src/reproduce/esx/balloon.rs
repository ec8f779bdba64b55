//! A guest whose balloon holds a part of its memory beside one that has only the rest (figure 2 of the paper), with the
//! same file load.

use super::super::digits;
use super::super::place::Place;
use super::wait;
use crate::bench::median;
use crate::command::output;
use crate::kit::Kit;
use crate::machine::{Guest, MEMORY_MIB, fathom_program};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// What is left of [`MEMORY_MIB`].
const SIZES_MIB: [u64; 3] = [112, 144, 176];
const QUICK_MIB: [u64; 1] = [144];
const NAME: &str = "ballooned";
const GIVES_LONGEST: Duration = Duration::from_secs(120);
/// How much more a ballooned guest may read from its disk, percent: it has page structures for all its memory, and
/// less for files by that.
const READ_MOST: f64 = 10.0;

#[derive(Serialize)]
pub(super) struct Figures {
    memory_mib: u64,
    sizes: Vec<Size>,
}

/// Of each the ballooned one first, then the one that was configured so; medians.
#[derive(Serialize)]
struct Size {
    mib: u64,
    reads_per_second: [f64; 2],
    /// From the disk, in the time that was measured.
    disk_mib: [f64; 2],
}

#[derive(Clone, Copy)]
struct Done {
    reads_per_second: f64,
    disk_mib: f64,
}

/// `fathom list --json`, as far as it is used.
#[derive(Deserialize)]
struct Listed {
    name: String,
    ballooned_bytes: u64,
}

pub(super) fn measure(place: &Place, kit: &Kit, quick: bool) -> Result<Figures> {
    let (sizes, turns, reads) =
        if quick { (&QUICK_MIB[..], 1, 8_000) } else { (&SIZES_MIB[..], 3, 30_000) };
    let mut figures = Vec::new();
    for &mib in sizes {
        let mut done = [const { Vec::new() }; 2];
        for _ in 0..turns {
            done[0].push(run(place, kit, MEMORY_MIB, MEMORY_MIB - mib, reads)?);
            done[1].push(run(place, kit, mib, 0, reads)?);
        }
        let middle = |of: fn(&Done) -> f64| {
            let one = |runs: &Vec<Done>| median(runs.iter().map(of).collect()).unwrap_or_default();
            [one(&done[0]), one(&done[1])]
        };
        let reads_per_second = middle(|done| done.reads_per_second);
        figures.push(Size { mib, reads_per_second, disk_mib: middle(|done| done.disk_mib) });
    }
    Ok(Figures { memory_mib: MEMORY_MIB, sizes: figures })
}

fn run(place: &Place, kit: &Kit, memory: u64, ballooned: u64, reads: u64) -> Result<Done> {
    let folder = tempfile::tempdir()?;
    let guest = Guest::new(kit, "quiet fathom.run=sh").memory(memory).disk(&kit.loads_disk()?);
    let command = guest.named(NAME, &folder.path().join("report")).command(place.vmm())?;
    let mount = "mkdir /d; mount -t ext4 -o ro /dev/vda /d; mount -t proc proc /d/proc";
    let mut running = super::start_shell(command, folder.path(), mount)?;
    if ballooned > 0 {
        balloon(folder.path(), ballooned)?;
    }
    running.say(&work(reads))?;
    let begin = wait(&mut running, "begin")?;
    let end = wait(&mut running, "end")?;
    let seconds = end.at.saturating_sub(begin.at).as_secs_f64();
    let disk_kib = end.number("kib").saturating_sub(begin.number("kib"));
    Ok(Done { reads_per_second: reads as f64 / seconds, disk_mib: disk_kib as f64 / 1024.0 })
}

/// Parts of 16 KiB of the disk's large files, some far more often than others, without readahead; so many to fill the
/// cache, and as many that count.
fn work(reads: u64) -> String {
    let program = [
        "import os,sys,random,json",
        "random.seed(5)",
        "w=sorted(os.path.join(d,n) for d,_,f in os.walk(sys.prefix) for n in f)",
        "w=[p for p in w if os.path.isfile(p) and os.path.getsize(p)>1000000 and not os.path.islink(p)]",
        "o=[os.open(p,0) for p in w]",
        "[os.posix_fadvise(f,0,0,1) for f in o]",
        "b=[(f,k) for f in o for k in range(os.fstat(f).st_size//16384)]",
        "random.shuffle(b)",
        "r=lambda:[os.pread(f,16384,k*16384) and 0 for f,k in (b[int(len(b)*random.random()**2)] for i in range(N))]",
        "v=lambda:int(open(\"/proc/vmstat\").read().split(\"pgpgin \")[1].split()[0])",
        "e=lambda n:print(\"@fathom \"+json.dumps({\"event\":n,\"kib\":v()}),flush=True)",
        "r();e(\"begin\");r();e(\"end\")",
    ];
    let program = program.join(";").replace("range(N)", &format!("range({reads})"));
    format!("chroot /d /usr/bin/python3 -c '{program}'")
}

/// Has the guest give so much, all of it.
fn balloon(sockets: &Path, mib: u64) -> Result<()> {
    let fathom = |words: &[&str]| {
        let mut command = Command::new(fathom_program());
        output(command.env("XDG_RUNTIME_DIR", sockets).args(words))
    };
    fathom(&["balloon", NAME, &format!("{mib}M")])?;
    let begun = Instant::now();
    loop {
        let listed: Vec<Listed> = serde_json::from_str(&fathom(&["list", "--json"])?)?;
        let vm = listed.iter().find(|vm| vm.name == NAME).context("the guest does not run")?;
        if vm.ballooned_bytes >= mib * MIB {
            return Ok(());
        }
        if begun.elapsed() > GIVES_LONGEST {
            bail!("the balloon holds {} of {mib} MiB", vm.ballooned_bytes / MIB);
        }
        sleep(Duration::from_millis(100));
    }
}

/// The first by the second, in percent.
fn more([one, other]: [f64; 2]) -> f64 {
    100.0 * (one / other - 1.0)
}

impl Figures {
    pub(super) fn table(&self) -> String {
        let mut table = format!(
            "balloon: a guest of {} MiB with a balloon beside one without that memory; reads of 16 KiB, some files more \
             often\n{:>6}{:>12}{:>12}{:>9}{:>12}{:>12}{:>9}\n",
            self.memory_mib, "MiB", "reads/s", "configured", "", "disk MiB", "configured", ""
        );
        for size in &self.sizes {
            let [rate, disk] = [size.reads_per_second, size.disk_mib];
            table += &format!(
                "{:>6}{:>12}{:>12}{:>+7.1} %{:>12}{:>12}{:>+7.1} %\n",
                size.mib,
                digits(Some(rate[0])),
                digits(Some(rate[1])),
                more(rate),
                digits(Some(disk[0])),
                digits(Some(disk[1])),
                more(disk)
            );
        }
        table + "published: 1.4 to 4.4 % slower than a guest configured so (dbench); aim: 2 %\n"
    }

    /// Of what is counted; no time.
    pub(super) fn troubles(&self) -> Vec<String> {
        let far = self.sizes.iter().filter(|size| {
            let more = more(size.disk_mib);
            // Nothing read by either is no figure.
            !more.is_finite() || more.abs() > READ_MOST
        });
        let told = far.map(|size| {
            let more = more(size.disk_mib);
            let mib = size.mib;
            format!("balloon: with {mib} MiB {more:+.1} % are read from the disk, not within {READ_MOST} %")
        });
        told.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(disk_mib: [f64; 2]) -> Figures {
        let size = Size { mib: 144, reads_per_second: [98.0, 100.0], disk_mib };
        Figures { memory_mib: 256, sizes: vec![size] }
    }

    #[test]
    fn what_a_ballooned_guest_reads_more_is_told() {
        assert!(figures([105.0, 100.0]).troubles().is_empty());
        assert_eq!(figures([112.0, 100.0]).troubles().len(), 1);
        assert_eq!(figures([0.0, 0.0]).troubles().len(), 1);
        assert!(figures([105.0, 100.0]).table().contains("-2.0 %"));
    }

    #[test]
    fn what_the_shell_is_told_is_one_line_without_a_quote_inside() {
        let work = work(7);
        assert!(!work.contains('\n') && work.matches('\'').count() == 2, "{work}");
        assert!(work.contains("range(7)") && !work.contains("range(N)"));
    }
}
