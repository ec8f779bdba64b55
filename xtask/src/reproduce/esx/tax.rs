//! An idle guest that has touched all its memory beside one that pages (figure 7 of the paper): the daemon moves memory
//! between them, first with tax 0, then with 0.75.

use super::super::digits;
use super::super::place::Place;
use super::super::wss::draw_lines;
use super::daemon::Daemon;
use super::{says, start_shell, wait};
use crate::bench::median;
use crate::command::output;
use crate::kit::Kit;
use crate::machine::{Guest, Next, Running, fathom_program};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
/// As published: two guests of 256 MB, and 360 MB for both.
const MEMORY_MIB: u64 = 256;
const BOTH_MIB: u64 = 360;
const TAXES: [f64; 2] = [0.0, 0.75];
/// What the idle guest has read once: all that its kernel leaves it, or nearly.
const READ_MIB: u64 = 200;
/// What the other reads again and again: more than an equal part leaves it, less than it has memory.
const PAGES_MIB: u64 = 150;
/// Used is what was touched in the last minute: until then the idle guest is not idle.
const FORGOTTEN: Duration = Duration::from_secs(70);
const LOOK: Duration = Duration::from_secs(1);
/// Targets that stay for so many looks, with the idle guest's balloon where it is to be, have settled.
const STAYS: usize = 10;
const SETTLE_LONGEST: Duration = Duration::from_secs(180);
/// A target is a multiple of this.
const GRAIN_MIB: f64 = 1.0;
/// How far shares may be from equal where nothing is taxed, percent.
const SHARES_MOST: f64 = 2.0;

/// Both guests.
const NAMES: [&str; 2] = ["idle", "pages"];

#[derive(Serialize)]
pub(super) struct Figures {
    memory_mib: u64,
    both_mib: u64,
    phases: Vec<Phase>,
}

/// A tax, from when targets had settled; MiB, of the idle guest and of the one that pages.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Phase {
    tax: f64,
    target_mib: [f64; 2],
    resident_mib: [f64; 2],
    active_mib: [f64; 2],
    /// Since the daemon began with this tax.
    settled_seconds: f64,
    rounds: usize,
    /// Of the guest that pages: what it reads.
    mib_per_second: Option<f64>,
}

/// `fathom balance --json`, as far as it is used.
#[derive(Deserialize)]
struct Board {
    pid: u32,
    facts: Facts,
    verdict: Verdict,
}

#[derive(Deserialize)]
struct Facts {
    vms: Vec<VmFacts>,
}

#[derive(Deserialize)]
struct VmFacts {
    name: String,
    resident: u64,
    active: u64,
}

#[derive(Deserialize)]
struct Verdict {
    supply: u64,
    vms: Vec<VmVerdict>,
}

#[derive(Deserialize)]
struct VmVerdict {
    name: String,
    target: u64,
}

/// Of both guests, MiB.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Look {
    target: [f64; 2],
    resident: [f64; 2],
    active: [f64; 2],
}

impl Board {
    fn look(&self) -> Result<Look> {
        let facts = |name: &str| self.facts.vms.iter().find(|vm| vm.name == name);
        let target = |name: &str| self.verdict.vms.iter().find(|vm| vm.name == name);
        let mib = |bytes: u64| bytes as f64 / MIB as f64;
        let of = |name: &str| -> Result<[f64; 3]> {
            let facts = facts(name).with_context(|| format!("`{name}` does not run"))?;
            let target = target(name).with_context(|| format!("nothing is decided of `{name}`"))?;
            Ok([mib(target.target), mib(facts.resident), mib(facts.active)])
        };
        let [idle, pages] = [of(NAMES[0])?, of(NAMES[1])?];
        let [target, resident, active] = [0, 1, 2].map(|column| [idle[column], pages[column]]);
        Ok(Look { target, resident, active })
    }
}

pub(super) fn measure(place: &Place, kit: &Kit, quick: bool, pictures: &Path) -> Result<Figures> {
    let (window, turns) =
        if quick { (Duration::from_secs(15), 1) } else { (Duration::from_secs(30), 3) };
    let (mut phases, mut lines) = (Vec::new(), [const { Vec::new() }; 4]);
    for _ in 0..turns {
        // Others each time: what an idle guest has given it does not take back, so that afterwards there is enough for both,
        // and nobody has to give anything whatever the tax.
        let mut scene = Scene::new(place, kit)?;
        let memory = scene.memory()?;
        for tax in TAXES {
            phases.push(scene.phase(tax, memory, window)?);
        }
        lines = std::mem::take(&mut scene.series);
    }
    let file = pictures.join("esx-tax.svg");
    let names = ["idle: target", "idle: has", "pages: target", "pages: has"];
    let series: Vec<_> = names.into_iter().zip(lines).collect();
    draw_lines(&file, "Tax 0, then 0.75", ["seconds", "MiB"], &series)
        .map_err(|error| anyhow!("draw {}: {error}", file.display()))?;
    Ok(Figures { memory_mib: MEMORY_MIB, both_mib: BOTH_MIB, phases })
}

/// Two guests with a folder of sockets for themselves.
struct Scene {
    _idle: Running,
    pages: Running,
    since: Instant,
    /// When the idle guest had read all.
    idle_since: Instant,
    series: [Vec<(f64, f64)>; 4],
    /// Last: it goes when the guests have ended.
    folder: TempDir,
}

impl Scene {
    fn new(place: &Place, kit: &Kit) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let guest = |name: &str, mib: u64| -> Result<Running> {
            let disk = folder.path().join(name).with_extension("disk");
            File::create(&disk)?.set_len((mib + 8) * MIB)?;
            let report = folder.path().join(name).with_extension("report");
            let guest = Guest::new(kit, "quiet fathom.run=sh").memory(MEMORY_MIB).disk(&disk);
            let command = guest.named(name, &report).command(place.vmm())?;
            // A disk that nobody has open is not in the cache any more.
            start_shell(command, folder.path(), "exec 3</dev/vda")
        };
        let mut idle = guest(NAMES[0], READ_MIB)?;
        idle.say(&format!("{}; {}", read(READ_MIB), says("read")))?;
        wait(&mut idle, "read")?;
        let idle_since = Instant::now();
        let mut pages = guest(NAMES[1], PAGES_MIB)?;
        pages.say(&format!("while :; do {}; {}; done", read(PAGES_MIB), says("round")))?;
        wait(&mut pages, "round")?;
        let series = [const { Vec::new() }; 4];
        Ok(Self { _idle: idle, pages, since: Instant::now(), idle_since, series, folder })
    }

    fn fathom(&self, words: &[&str]) -> Command {
        let mut command = Command::new(fathom_program());
        command.env("XDG_RUNTIME_DIR", self.folder.path()).args(words);
        command
    }

    /// What the daemon is to be told so that guests have [`BOTH_MIB`]: with what their processes take, and what is to stay
    /// free.
    fn memory(&self) -> Result<u64> {
        let mut memory = BOTH_MIB;
        for _ in 0..4 {
            let words = ["balance", "--dry-run", "--json", "--memory", &format!("{memory}M")];
            let board: Board = serde_json::from_str(&output(&mut self.fathom(&words))?)?;
            memory = (memory + BOTH_MIB).saturating_sub(board.verdict.supply / MIB);
        }
        Ok(memory)
    }

    fn phase(&mut self, tax: f64, memory: u64, window: Duration) -> Result<Phase> {
        let words = ["--policy", "published", "--memory", &format!("{memory}M")];
        let tax_words = ["--tax", &tax.to_string()];
        let daemon = Daemon::start(self.folder.path(), &[words.as_slice(), &tax_words].concat())?;
        let begun = Instant::now();
        let settled_seconds = self.settle(&daemon, begun)?;
        self.rounds(Duration::ZERO)?;
        let (measured, mut looks, mut ends) = (Instant::now(), Vec::new(), Vec::new());
        while measured.elapsed() < window || ends.len() < 2 {
            ensure!(measured.elapsed() < window + SETTLE_LONGEST, "the guest that pages stands");
            ends.extend(self.rounds(LOOK)?);
            looks.extend(self.look(daemon.pid())?);
        }
        daemon.end()?;
        let middle = |of: fn(&Look) -> [f64; 2]| {
            let one = |guest: usize| median(looks.iter().map(|look| of(look)[guest]).collect());
            [0, 1].map(|guest| one(guest).unwrap_or_default())
        };
        Ok(Phase {
            tax,
            target_mib: middle(|look| look.target),
            resident_mib: middle(|look| look.resident),
            active_mib: middle(|look| look.active),
            settled_seconds,
            rounds: ends.len() - 1,
            mib_per_second: rate(&ends),
        })
    }

    /// Until targets stay and memory is where it is to be; in seconds since `begun`.
    fn settle(&mut self, daemon: &Daemon, begun: Instant) -> Result<f64> {
        let mut last: Option<(Look, usize)> = None;
        loop {
            if begun.elapsed() > SETTLE_LONGEST {
                bail!("memory does not come to rest: {last:?}\n{}", daemon.said());
            }
            self.rounds(LOOK)?;
            let Some(look) = self.look(daemon.pid())? else { continue };
            let stays = match &last {
                Some((before, stays)) if near(before.target, look.target) => stays + 1,
                _ => 0,
            };
            let given = (0..2).all(|guest| look.resident[guest] <= look.target[guest] + 8.0);
            if stays >= STAYS && given && self.idle_since.elapsed() > FORGOTTEN {
                return Ok(begun.elapsed().as_secs_f64());
            }
            last = Some((look, stays));
        }
    }

    /// What was decided last by the daemon `pid`, if it has decided of both.
    fn look(&mut self, pid: u32) -> Result<Option<Look>> {
        let Ok(text) = output(&mut self.fathom(&["balance", "--json"])) else { return Ok(None) };
        let board: Board = serde_json::from_str(&text).context("what `fathom balance` says")?;
        if board.pid != pid {
            return Ok(None);
        }
        let look = board.look()?;
        let at = self.since.elapsed().as_secs_f64();
        let points = [look.target[0], look.resident[0], look.target[1], look.resident[1]];
        for (series, mib) in self.series.iter_mut().zip(points) {
            series.push((at, mib));
        }
        Ok(Some(look))
    }

    /// Ends of rounds of the guest that pages, until `patience` has passed.
    fn rounds(&mut self, patience: Duration) -> Result<Vec<Duration>> {
        let (begun, mut ends) = (Instant::now(), Vec::new());
        loop {
            match self.pages.next(patience.saturating_sub(begun.elapsed())) {
                Next::Event(event) if event.is("round") => ends.push(event.at),
                Next::Event(_) => {}
                Next::Quiet => return Ok(ends),
                Next::Ended => bail!(self.pages.complaint("has ended")),
            }
        }
    }
}

fn read(mib: u64) -> String {
    format!("dd if=/dev/vda of=/dev/null bs=1M count={mib} 2>/dev/null")
}

fn near(one: [f64; 2], other: [f64; 2]) -> bool {
    (0..2).all(|guest| (one[guest] - other[guest]).abs() <= 2.0 * GRAIN_MIB)
}

/// Of whole rounds.
fn rate(ends: &[Duration]) -> Option<f64> {
    let (first, last) = (ends.first()?, ends.last()?);
    let seconds = last.checked_sub(*first)?.as_secs_f64();
    let mib = (PAGES_MIB * (ends.len() as u64 - 1)) as f64;
    (seconds > 0.0).then(|| mib / seconds)
}

impl Figures {
    /// Of phases with this tax, in the middle.
    fn middle(&self, tax: f64, of: impl Fn(&Phase) -> Option<f64>) -> Option<f64> {
        let phases = self.phases.iter().filter(|phase| phase.tax.total_cmp(&tax).is_eq());
        median(phases.filter_map(of).collect())
    }

    /// Of what is read in a second with tax 0, in percent.
    fn gain(&self) -> Option<f64> {
        let rate = |tax| self.middle(tax, |phase| phase.mib_per_second);
        Some(100.0 * (rate(TAXES[1])? / rate(TAXES[0])? - 1.0))
    }

    pub(super) fn table(&self) -> String {
        let mut table = format!(
            "tax: two guests of {} MiB with {} MiB for both; one has read {READ_MIB} MiB and idles, the other reads \
             {PAGES_MIB} MiB again and again\n{:>6}{:>24}{:>24}\n",
            self.memory_mib, self.both_mib, "", "idle", "pages"
        );
        table += &format!("{:>6}", "tax");
        for column in ["target", "has", "uses", "target", "has", "uses"] {
            table += &format!("{column:>8}");
        }
        table += &format!("{:>8}{:>8}{:>8}\n", "settled", "rounds", "MiB/s");
        for phase in &self.phases {
            table += &format!("{:>6}", phase.tax);
            for guest in 0..2 {
                for mib in [phase.target_mib, phase.resident_mib, phase.active_mib] {
                    table += &format!("{:>8.0}", mib[guest]);
                }
            }
            table += &format!(
                "{:>7.0}s{:>8}{:>8}\n",
                phase.settled_seconds,
                phase.rounds,
                digits(phase.mib_per_second)
            );
        }
        let gain = self.gain().map_or("-".into(), |gain| format!("{gain:+.0} %"));
        table + &format!("gained by the tax, in the middle: {gain}; published: more than +30 %\n")
    }

    /// Of what is counted; no time.
    pub(super) fn troubles(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        for phase in self.phases.iter().filter(|phase| phase.tax.total_cmp(&0.0).is_eq()) {
            let [idle, pages] = phase.target_mib;
            let off = 100.0 * (idle - pages).abs() / idle.min(pages).max(GRAIN_MIB);
            if off > SHARES_MOST {
                troubles.push(format!(
                    "tax 0: {idle:.0} and {pages:.0} MiB for equal shares are {off:.1} % apart, not {SHARES_MOST}"
                ));
            }
        }
        let target = |tax| self.middle(tax, |phase| Some(phase.target_mib[1]));
        match (target(TAXES[0]), target(TAXES[1])) {
            (Some(none), Some(taxed)) if taxed > none => {}
            (none, taxed) => troubles.push(format!(
                "tax: the guest that pages is to have {} MiB without, {} with it",
                digits(none),
                digits(taxed)
            )),
        }
        troubles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(tax: f64, target_mib: [f64; 2], rate: f64) -> Phase {
        Phase { tax, target_mib, mib_per_second: Some(rate), ..Phase::default() }
    }

    fn figures(phases: &[Phase]) -> Figures {
        Figures { memory_mib: MEMORY_MIB, both_mib: BOTH_MIB, phases: phases.to_vec() }
    }

    #[test]
    fn shares_and_what_a_tax_moves_are_checked() {
        let good =
            figures(&[phase(0.0, [180.0, 180.0], 100.0), phase(0.75, [104.0, 256.0], 150.0)]);
        assert!(good.troubles().is_empty());
        assert!(good.gain().is_some_and(|gain| (gain - 50.0).abs() < 1e-9));
        assert!(good.table().contains("+50 %"));
        let bad = figures(&[phase(0.0, [200.0, 160.0], 1.0), phase(0.75, [200.0, 160.0], 1.0)]);
        assert_eq!(bad.troubles().len(), 2);
        assert_eq!(figures(&[]).troubles().len(), 1);
    }

    #[test]
    fn a_rate_is_of_whole_rounds() {
        let seconds = |seconds: &[u64]| seconds.iter().copied().map(Duration::from_secs).collect();
        let ends: Vec<Duration> = seconds(&[10, 13, 20]);
        assert_eq!(rate(&ends), Some(30.0));
        assert_eq!(rate(&ends[..1]), None);
    }

    #[test]
    fn a_board_has_both_guests_by_name() {
        let text = r#"{"pid":3,"at":1.0,"facts":{"host":{},"vms":[
            {"name":"idle","resident":2097152,"active":1048576},{"name":"pages","resident":4194304,"active":0}]},
            "verdict":{"state":"low","supply":9,"vms":[{"name":"idle","target":3145728},{"name":"pages","target":0}]}}"#;
        let board: Board = serde_json::from_str(text).unwrap();
        let look = board.look().unwrap();
        assert_eq!((look.target, look.resident), ([3.0, 0.0], [2.0, 4.0]));
        let none = Board { verdict: Verdict { supply: 0, vms: Vec::new() }, ..board };
        assert!(none.look().is_err());
    }
}
