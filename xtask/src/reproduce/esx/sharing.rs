//! Identical guests and what they have alike (section 4.3 of the paper, figure 4): what is shared and saved, against all
//! that could be, and beside the host kernel's KSM for the same guests of QEMU.

use super::super::digits;
use super::super::place::Place;
use super::super::wss::draw_lines;
use super::daemon::Daemon;
use super::frames::{Alike, Census, cpu_seconds, thread_seconds};
use super::ksm::{Ksm, merged};
use super::{say_until, wait};
use crate::kit::Kit;
use crate::machine::{Guest, MEMORY_MIB, Running, Vmm, fathom_program};
use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const GUESTS: [usize; 5] = [1, 2, 4, 6, 10];
const QUICK_GUESTS: [usize; 3] = [1, 2, 3];
/// Of files that each reads, which stay in its cache.
const FILES_MIB: u64 = 40;
/// Of what can be saved.
const PART: f64 = 0.95;
const LOOK: Duration = Duration::from_millis(500);
/// What does not grow by more than this part for so long is all that it will be.
const GROWS: f64 = 0.002;
const STAYS: Duration = Duration::from_secs(20);
const QUICK_STAYS: Duration = Duration::from_secs(10);
const SETTLE_LONGEST: Duration = Duration::from_secs(180);
/// What the scanner takes when there is nothing more to find.
const STEADY: Duration = Duration::from_secs(10);
/// A VM counts what it shares while it goes on.
const COUNTS_ALIKE: f64 = 0.02;
/// QEMU's microvm without KVM hangs now and then before it prints anything.
const BOOT_TRIES: usize = 3;
/// Ten identical guests of the paper, in percent of their memory.
const PUBLISHED: &str = "published, ten identical guests with Linux: some 67 % shared, 60 % reclaimed; one: 5 MB, of which 55 % zeros\n";

#[derive(Serialize)]
pub(super) struct Figures {
    memory_mib: u64,
    ours: Vec<Row>,
    ksm: Vec<Row>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_ksm: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Row {
    guests: usize,
    alike: Alike,
    /// What the VMs themselves say that they share, MiB; not known of KSM.
    told: Option<f64>,
    /// Since the scanner began, until it had saved [`PART`] of what it saved in the end.
    seconds: f64,
    /// Of the scanner until then, and of the VMs' threads that work for it.
    cpu_seconds: [f64; 2],
    /// Both when all was found, in percent of a processor.
    steady_percent: f64,
}

/// `fathom list --json`, as far as it is used.
#[derive(Deserialize)]
struct Listed {
    #[serde(default)]
    shared_bytes: u64,
}

pub(super) fn measure(place: &Place, kit: &Kit, quick: bool, pictures: &Path) -> Result<Figures> {
    let counts = if quick { &QUICK_GUESTS[..] } else { &GUESTS[..] };
    let stays = if quick { QUICK_STAYS } else { STAYS };
    let mut figures = Figures { memory_mib: MEMORY_MIB, ours: vec![], ksm: vec![], no_ksm: None };
    for &count in counts {
        figures
            .ours
            .push(ours(place.vmm(), kit, count, stays).with_context(|| told(count, "fathom"))?);
    }
    for &count in counts {
        match Ksm::on() {
            Ok(ksm) => figures
                .ksm
                .push(by_ksm(&ksm, kit, count, stays).with_context(|| told(count, "KSM"))?),
            Err(error) => {
                figures.no_ksm = Some(format!("{error:#}"));
                break;
            }
        }
    }
    draw(&figures, &pictures.join("esx-sharing.svg"))?;
    Ok(figures)
}

fn told(count: usize, how: &str) -> String {
    format!("{count} guests that share by {how}")
}

/// Guests that have done their work and idle.
struct Guests {
    running: Vec<Running>,
    /// What is in their files and in the program's memory: the same of all.
    sum: u64,
    /// Last: it goes when they have ended.
    folder: TempDir,
}

impl Guests {
    fn start(vmm: Vmm, kit: &Kit, count: usize) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let start = |number: usize| -> Result<Running> {
            let report = folder.path().join(format!("{number}.report"));
            let guest = Guest::new(kit, "quiet fathom.run=sh").disk(&kit.loads_disk()?);
            let guest = guest.named(&format!("g{number}"), &report);
            let mut command = guest.command(vmm)?;
            command.env("XDG_RUNTIME_DIR", folder.path());
            Running::start_listening("guest", command)
        };
        let mount = "mkdir /d; mount -t ext4 -o ro /dev/vda /d";
        // All boot at once.
        let mut running = (0..count).map(start).collect::<Result<Vec<_>>>()?;
        for (number, guest) in running.iter_mut().enumerate() {
            let mut ready = say_until(guest, mount, "shell");
            for _ in 1..BOOT_TRIES {
                if ready.is_ok() || vmm != Vmm::Qemu {
                    break;
                }
                *guest = start(number)?;
                ready = say_until(guest, mount, "shell");
            }
            ready?;
            guest.say(&work())?;
        }
        let mut sums = Vec::new();
        for guest in &mut running {
            sums.push(wait(guest, "loaded")?.number("sum"));
        }
        ensure!(
            sums.iter().all(|&sum| sum == sums[0] && sum > 0),
            "guests are not alike: {sums:?}"
        );
        Ok(Self { running, sum: sums[0], folder })
    }

    fn pids(&self) -> Vec<u32> {
        self.running.iter().map(Running::pid).collect()
    }

    /// They have in memory what they had: nobody has got another's frames.
    fn proof(&mut self) -> Result<()> {
        for guest in &mut self.running {
            guest.say("")?;
        }
        for guest in &mut self.running {
            let sum = wait(guest, "again")?.number("sum");
            ensure!(sum == self.sum, "a guest has {sum} in its memory, where it had {}", self.sum);
        }
        Ok(())
    }

    /// CPU time of their processes that is not their vCPUs'.
    fn seconds(&self) -> f64 {
        let of = |pid| cpu_seconds(pid) - thread_seconds(pid, |name| name.starts_with("vcpu"));
        self.pids().into_iter().map(of).sum()
    }
}

/// Reads files and makes texts, says what comes of all, and does so again when it hears something.
fn work() -> String {
    let program = [
        "import os,sys,json,zlib,itertools",
        "w=sorted(os.path.join(d,n) for d,_,f in os.walk(sys.prefix) for n in f)",
        "w=[p for p in w if os.path.isfile(p) and not os.path.islink(p)]",
        "a=itertools.accumulate(map(os.path.getsize,w))",
        "o=[p for p,c in zip(w,a) if c<FILES<<20]",
        "t=[str(i)*9 for i in range(60000)]",
        "z=lambda:zlib.crc32(repr([zlib.crc32(open(p,\"rb\").read()) for p in o]+t).encode())",
        "e=lambda n:print(\"@fathom \"+json.dumps({\"event\":n,\"sum\":z()}),flush=True)",
        "e(\"loaded\");input();e(\"again\");input()",
    ];
    let program = program.join(";").replace("FILES", &FILES_MIB.to_string());
    format!("chroot /d /usr/bin/python3 -c '{program}'")
}

fn ours(vmm: Vmm, kit: &Kit, count: usize, stays: Duration) -> Result<Row> {
    let mut guests = Guests::start(vmm, kit, count)?;
    let daemon = Daemon::start(guests.folder.path(), &["--memory", "1T", "--share"])?;
    let (scanner, vms) = (daemon.pid(), guests.seconds());
    let cpu = || [thread_seconds(scanner, |name| name == "share"), guests.seconds() - vms];
    let saved = || daemon.figure("fathom_host_shared_saved_bytes").unwrap_or(0.0);
    let (seconds, cpu_seconds, steady_percent) = settle(saved, cpu, stays)?;
    let mut census = Census::default();
    guests.pids().into_iter().try_for_each(|pid| census.add_fathom(pid))?;
    let mut list = Command::new(fathom_program());
    list.env("XDG_RUNTIME_DIR", guests.folder.path()).args(["list", "--json"]);
    let listed: Vec<Listed> = serde_json::from_str(&crate::command::output(&mut list)?)?;
    let told = listed.iter().map(|vm| vm.shared_bytes as f64 / f64::from(1 << 20)).sum();
    guests.proof()?;
    daemon.end()?;
    Ok(Row {
        guests: count,
        alike: census.alike(),
        told: Some(told),
        seconds,
        cpu_seconds,
        steady_percent,
    })
}

fn by_ksm(ksm: &Ksm, kit: &Kit, count: usize, stays: Duration) -> Result<Row> {
    // It works from when the first of them has memory: what it did until all have done theirs is not measured.
    Ksm::stop()?;
    let mut guests = Guests::start(Vmm::Qemu, kit, count)?;
    Ksm::go()?;
    let pids = guests.pids();
    let before = cpu_seconds(ksm.scanner);
    let cpu = || [cpu_seconds(ksm.scanner) - before, 0.0];
    let saved = || pids.iter().filter_map(|&pid| merged(pid)).sum::<u64>() as f64;
    let (seconds, cpu_seconds, steady_percent) = settle(saved, cpu, stays)?;
    let mut census = Census::default();
    pids.iter().try_for_each(|&pid| census.add_qemu(pid, MEMORY_MIB << 20))?;
    guests.proof()?;
    Ok(Row {
        guests: count,
        alike: census.alike(),
        told: None,
        seconds,
        cpu_seconds,
        steady_percent,
    })
}

/// Until what is saved stays: when [`PART`] of it was there, what that took, and what it takes from then on.
fn settle(
    saved: impl Fn() -> f64,
    cpu: impl Fn() -> [f64; 2],
    stays: Duration,
) -> Result<(f64, [f64; 2], f64)> {
    let begun = Instant::now();
    let mut looks = Vec::new();
    loop {
        sleep(LOOK);
        looks.push(Look { at: begun.elapsed(), saved: saved(), cpu: cpu() });
        if has_settled(&looks, stays) {
            break;
        }
        ensure!(
            begun.elapsed() < SETTLE_LONGEST,
            "what is saved does not come to rest: {:?}",
            looks.last()
        );
    }
    let (since, before) = (Instant::now(), cpu());
    sleep(STEADY);
    let took: f64 = cpu().iter().sum::<f64>() - before.iter().sum::<f64>();
    let steady_percent = 100.0 * took / since.elapsed().as_secs_f64();
    let reached = reached(&looks).context("nothing was seen")?;
    Ok((reached.at.as_secs_f64(), reached.cpu, steady_percent))
}

#[derive(Clone, Copy, Debug)]
struct Look {
    at: Duration,
    saved: f64,
    cpu: [f64; 2],
}

/// Something was saved, and no more since long.
fn has_settled(looks: &[Look], stays: Duration) -> bool {
    let Some(last) = looks.last() else { return false };
    let before = last.at.checked_sub(stays);
    let before = before.and_then(|at| looks.iter().rfind(|look| look.at <= at));
    before.is_some_and(|before| before.saved > 0.0 && last.saved <= before.saved * (1.0 + GROWS))
}

fn reached(looks: &[Look]) -> Option<Look> {
    let end = looks.last()?.saved;
    looks.iter().find(|look| look.saved >= PART * end).copied()
}

fn draw(figures: &Figures, file: &Path) -> Result<()> {
    let line = |rows: &[Row], of: fn(&Alike) -> f64| {
        let points = rows.iter().map(|row| (row.guests as f64, of(&row.alike)));
        points.collect::<Vec<_>>()
    };
    let mut series = vec![
        ("guests have", line(&figures.ours, |alike| alike.has)),
        ("could be saved", line(&figures.ours, |alike| alike.most)),
        ("shared", line(&figures.ours, |alike| alike.shared)),
        ("saved", line(&figures.ours, |alike| alike.saved)),
    ];
    if !figures.ksm.is_empty() {
        series.push(("saved by KSM", line(&figures.ksm, |alike| alike.saved)));
    }
    draw_lines(file, "Identical guests", ["guests", "MiB"], &series)
        .map_err(|error| anyhow!("draw {}: {error}", file.display()))
}

impl Row {
    /// Of what can be saved, in percent; nothing where that is nothing.
    fn part(&self) -> Option<f64> {
        (self.alike.most > 0.0).then(|| 100.0 * self.alike.saved / self.alike.most)
    }

    fn line(&self, name: &str) -> String {
        let Alike { has, shared, saved, most, zeros, .. } = self.alike;
        let percent = |mib: f64| format!("{:.1}", 100.0 * mib / has);
        let mut line = format!("{name:<8}{:>6}", self.guests);
        for mib in [has, shared, saved, most, zeros] {
            line += &format!("{mib:>9.1}");
        }
        for text in [percent(shared), percent(saved), percent(most), digits(self.part())] {
            line += &format!("{text:>9}");
        }
        let [scanner, vms] = self.cpu_seconds;
        line + &format!(
            "{:>8.1}{scanner:>9.2}{vms:>8.2}{:>8.1}\n",
            self.seconds, self.steady_percent
        )
    }
}

impl Figures {
    pub(super) fn table(&self) -> String {
        let mut table = format!(
            "sharing: identical guests of {} MiB that have read {FILES_MIB} MiB of files; MiB, then percent of what they \
             have; the scanner's time\n{:<8}{:>6}",
            self.memory_mib, "", "guests"
        );
        for column in [
            "has", "shared", "saved", "could be", "zeros", "shared", "saved", "could be", "of that",
        ] {
            table += &format!("{column:>9}");
        }
        table += &format!("{:>8}{:>9}{:>8}{:>8}\n", "95 % s", "CPU s", "in VMs", "then %");
        self.ours.iter().for_each(|row| table += &row.line("fathom"));
        self.ksm.iter().for_each(|row| table += &row.line("KSM"));
        if let Some(why) = &self.no_ksm {
            table += &format!("KSM: not measured: {why}\n");
        }
        table + PUBLISHED
    }

    /// Of what is counted; no time. Of ours only.
    pub(super) fn troubles(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        for row in &self.ours {
            let guests = row.guests;
            if row.part().is_none_or(|part| part < 100.0 * PART) {
                let Alike { saved, most, .. } = row.alike;
                troubles.push(format!(
                    "sharing: {guests} guests: {saved:.1} MiB are saved of {most:.1}, less than {:.0} %",
                    100.0 * PART
                ));
            }
            let told = row.told.unwrap_or_default();
            let mapped = row.alike.mapped;
            if (told - mapped).abs() > COUNTS_ALIKE * mapped {
                troubles.push(format!(
                    "sharing: {guests} guests say that they share {told:.1} MiB, and have {mapped:.1} of pools"
                ));
            }
        }
        troubles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(saved: f64, told: f64) -> Row {
        let alike =
            Alike { has: 200.0, shared: 120.0, saved, most: 100.0, zeros: 10.0, mapped: 125.0 };
        Row { guests: 2, alike, told: Some(told), ..Row::default() }
    }

    fn figures(row: Row) -> Figures {
        Figures { memory_mib: MEMORY_MIB, ours: vec![row], ksm: Vec::new(), no_ksm: None }
    }

    #[test]
    fn too_little_saved_and_frames_that_nobody_knows_of_are_told() {
        assert!(figures(row(97.0, 125.0)).troubles().is_empty());
        assert_eq!(figures(row(94.0, 125.0)).troubles().len(), 1);
        assert_eq!(figures(row(97.0, 110.0)).troubles().len(), 1);
        assert_eq!(figures(Row::default()).troubles().len(), 1);
        assert!(figures(row(97.0, 125.0)).table().contains("97.0"));
    }

    #[test]
    fn what_does_not_grow_any_more_has_settled() {
        let look = |seconds: u64, saved: f64| Look {
            at: Duration::from_secs(seconds),
            saved,
            cpu: [0.0; 2],
        };
        let looks =
            [look(0, 0.0), look(10, 60.0), look(20, 99.0), look(30, 100.0), look(40, 100.1)];
        let stays = Duration::from_secs(10);
        assert!(!has_settled(&looks[..1], stays) && !has_settled(&looks[..4], stays));
        assert!(has_settled(&looks, stays));
        assert!(!has_settled(&[look(0, 0.0), look(60, 0.0)], stays), "nothing was saved yet");
        assert_eq!(reached(&looks).map(|look| look.at.as_secs()), Some(20));
        assert!(reached(&[]).is_none());
    }

    #[test]
    fn what_the_shell_is_told_is_one_line_without_a_quote_inside() {
        let work = work();
        assert!(!work.contains('\n') && work.matches('\'').count() == 2, "{work}");
        assert!(work.contains("c<40<<20"), "{work}");
    }
}
