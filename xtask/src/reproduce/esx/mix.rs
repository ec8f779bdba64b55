//! Five guests that are promised twice what the host has, from when they boot at once, through a change of their loads
//! and a spike: by the daemon, by equal parts, by swap alone, and with nothing but free-page reporting. The last has as much as
//! it takes: what the others are slower than that is what their lack of memory costs.

use super::super::digits;
use super::super::place::Place;
use super::super::wss::draw_lines;
use super::daemon::Daemon;
use super::{say_until, wait};
use crate::command::output;
use crate::kit::Kit;
use crate::machine::{Event, Guest, Next, Running, Vmm, fathom_program};
use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const MIB: f64 = (1 << 20) as f64;
const MEMORY_MIB: u64 = 512;
/// Half of what all are promised, with 24 MiB for each one's process.
const HOST_MIB: u64 = 1340;
const PROCESS_MIB: u64 = 24;
/// What each does before the change and after it; the last one has a shell.
const LOADS: [&[&str]; 4] = [&["redis"], &["web"], &["sqlite3", "build"], &["build", "sqlite3"]];
const IDLE: usize = LOADS.len();
const NAMES: [&str; 5] = ["redis", "web", "sqlite3", "build", "idle"];
/// What the idle one has read, and what it then needs at once.
const READ_MIB: u64 = 420;
const SPIKE_MIB: u64 = 150;
const PHASES: [&str; 3] = ["loads", "others", "spike"];
/// Of a phase.
const WINDOW: Duration = Duration::from_secs(20);
const QUICK_WINDOW: Duration = Duration::from_secs(8);
const LOOK: Duration = Duration::from_secs(1);
const SPIKE_LONGEST: Duration = Duration::from_secs(60);
const READY_LONGEST: Duration = Duration::from_secs(120);
/// The guest's driver does not begin.
const NO_BALLOON: &str = "initcall_blacklist=virtio_balloon_driver_init";

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Way {
    /// No limit: guests tell what they do not use.
    Reporting,
    /// `fathom serve --memory --swap`
    Daemon,
    /// Each guest has a fifth of the host.
    Parts,
    /// The same daemon, for guests without a balloon: the host takes the coldest frames, and writes them.
    Swap,
}

const WAYS: [Way; 4] = [Way::Reporting, Way::Daemon, Way::Parts, Way::Swap];

#[derive(Serialize)]
pub(super) struct Figures {
    memory_mib: u64,
    host_mib: u64,
    runs: Vec<Run>,
}

#[derive(Clone, Debug, Serialize)]
struct Run {
    way: Way,
    /// Until all had begun their loads.
    boot_seconds: f64,
    /// By phase, of guests that work.
    beats_per_second: [[f64; 4]; 3],
    /// Until the idle guest had the memory of its spike.
    spike_seconds: Option<f64>,
    /// At any time, with guests' processes.
    most_mib: f64,
    /// In the three phases.
    mib_seconds: f64,
    /// Of those five that did not live to the end, why.
    killed: Vec<String>,
}

/// `fathom balance --dry-run --json`, as far as it is used.
#[derive(Deserialize)]
struct Board {
    facts: Facts,
}

#[derive(Deserialize)]
struct Facts {
    vms: Vec<VmFacts>,
}

#[derive(Deserialize)]
struct VmFacts {
    resident: u64,
    overhead: u64,
}

pub(super) fn measure(place: &Place, kit: &Kit, quick: bool, pictures: &Path) -> Result<Figures> {
    let window = if quick { QUICK_WINDOW } else { WINDOW };
    let (mut runs, mut series) = (Vec::new(), Vec::new());
    for way in WAYS {
        let mut scene = Scene::new(place.vmm(), kit, way).with_context(|| way.name())?;
        runs.push(scene.run(window).with_context(|| way.name())?);
        series.push((way.name(), scene.series));
    }
    let file = pictures.join("esx-mix.svg");
    draw_lines(&file, "Five guests: what they have in all", ["seconds", "MiB"], &series)
        .map_err(|error| anyhow!("draw {}: {error}", file.display()))?;
    Ok(Figures { memory_mib: MEMORY_MIB, host_mib: HOST_MIB, runs })
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Reporting => "reporting",
            Self::Daemon => "daemon",
            Self::Parts => "parts",
            Self::Swap => "swap",
        }
    }

    fn has_daemon(self) -> bool {
        matches!(self, Self::Daemon | Self::Swap)
    }

    /// Of `fathom run`. The daemon is to know what guests use their memory for.
    fn options(self) -> Vec<String> {
        let words: &[&str] = if self.has_daemon() { &["--insight", "on"] } else { &[] };
        words.iter().map(ToString::to_string).collect()
    }

    /// What each guest is told it has.
    fn memory_mib(self) -> u64 {
        if self == Self::Parts { HOST_MIB / NAMES.len() as u64 - PROCESS_MIB } else { MEMORY_MIB }
    }
}

/// One of the five.
struct Member {
    running: Running,
    is_ready: bool,
    beats: u64,
    /// It has what its spike needs.
    spiked: bool,
    killed: Option<String>,
}

impl Member {
    fn is_awaited(&self) -> bool {
        !self.is_ready && self.killed.is_none()
    }

    /// All that it has said.
    fn listen(&mut self) {
        while self.killed.is_none() {
            match self.running.next(Duration::ZERO) {
                Next::Event(event) => self.hear(&event),
                Next::Quiet => return,
                Next::Ended => self.killed = Some("has ended".into()),
            }
        }
    }

    fn hear(&mut self, event: &Event) {
        // A driver that does not begin is told by another event, and may be meant.
        if event.is("beat") && !event.text("error").is_empty() {
            self.killed = Some(event.text("error").to_owned());
        }
        self.is_ready |= event.is("ready");
        self.beats += u64::from(event.is("beat"));
        self.spiked |= event.is("spiked");
    }
}

struct Scene {
    way: Way,
    members: Vec<Member>,
    daemon: Option<Daemon>,
    since: Instant,
    /// When the idle one had the memory of its spike.
    spike_at: Option<Instant>,
    /// Seconds, and what all have.
    series: Vec<(f64, f64)>,
    /// Last: it goes when all have ended.
    folder: TempDir,
}

impl Scene {
    /// All boot at once; a daemon is there before.
    fn new(vmm: Vmm, kit: &Kit, way: Way) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let store = folder.path().join("swap");
        fs::create_dir(&store)?;
        let (memory, swap) = (format!("{HOST_MIB}M"), store.to_string_lossy());
        let options = ["--memory", &memory, "--swap", &swap];
        let daemon =
            way.has_daemon().then(|| Daemon::start(folder.path(), &options)).transpose()?;
        let mut members = Vec::new();
        for (number, name) in NAMES.into_iter().enumerate() {
            let guest = Guest::new(kit, &words(number, way)).memory(way.memory_mib());
            let guest = guest
                .options(&way.options())
                .disk(&kit.loads_disk()?)
                .named(name, &folder.path().join(name));
            let mut command = guest.command(vmm)?;
            command.env("XDG_RUNTIME_DIR", folder.path());
            let running = Running::start_listening("fathom", command)?;
            members.push(Member {
                running,
                is_ready: false,
                beats: 0,
                spiked: false,
                killed: None,
            });
        }
        Ok(Self {
            way,
            members,
            daemon,
            since: Instant::now(),
            spike_at: None,
            series: Vec::new(),
            folder,
        })
    }

    fn run(&mut self, window: Duration) -> Result<Run> {
        let idle = &mut self.members[IDLE];
        // A disk that nobody has open is not in the cache any more.
        say_until(&mut idle.running, "exec 3</dev/vda", "shell")?;
        idle.running.say(&format!(
            "dd if=/dev/vda of=/dev/null bs=1M count={READ_MIB}; {}",
            super::says("read")
        ))?;
        wait(&mut idle.running, "read")?;
        idle.is_ready = true;
        self.ready()?;
        let boot_seconds = self.since.elapsed().as_secs_f64();
        let mut beats_per_second = [[0.0; 4]; 3];
        let mut mib_seconds = 0.0;
        let mut spike = None;
        for (phase, beats) in beats_per_second.iter_mut().enumerate() {
            match phase {
                1 => self.change()?,
                2 => spike = self.spike().then(Instant::now),
                _ => {}
            }
            let (rates, integral) = self.phase(window)?;
            *beats = rates;
            mib_seconds += integral;
        }
        let spike_seconds = self.spiked(spike)?;
        let killed = self.members.iter().zip(NAMES);
        let killed = killed
            .filter_map(|(member, name)| Some(format!("{name}: {}", member.killed.as_ref()?)));
        let killed = killed.collect();
        if let Some(daemon) = self.daemon.take() {
            daemon.end()?;
        }
        let most_mib = self.series.iter().map(|point| point.1).fold(0.0, f64::max);
        let way = self.way;
        Ok(Run {
            way,
            boot_seconds,
            beats_per_second,
            spike_seconds,
            most_mib,
            mib_seconds,
            killed,
        })
    }

    /// Until each that lives has begun its load. One that does not is no better than one that was killed.
    fn ready(&mut self) -> Result<()> {
        let begun = Instant::now();
        while self.members.iter().any(Member::is_awaited) && begun.elapsed() < READY_LONGEST {
            self.look()?;
            sleep(LOOK);
        }
        for member in self.members.iter_mut().filter(|member| member.is_awaited()) {
            member.killed = Some("its load does not begin".into());
        }
        Ok(())
    }

    /// Those that have another load go on to it.
    fn change(&mut self) -> Result<()> {
        for (member, _) in self.members.iter_mut().zip(LOADS).filter(|(_, loads)| loads.len() > 1) {
            if member.killed.is_none() && member.running.say("end").is_ok() {
                member.is_ready = false;
            }
        }
        self.ready()
    }

    /// Whether it could be told.
    fn spike(&mut self) -> bool {
        let program = "import time,json;b=bytearray(SPIKE<<20);b[::4096]=b\"1\"*(SPIKE<<8);\
                       print(\"@fathom \"+json.dumps({\"event\":\"spiked\"}),flush=True);time.sleep(9)";
        let program = program.replace("SPIKE", &SPIKE_MIB.to_string());
        let mount = "mkdir -p /d; mount -t ext4 -o ro /dev/vda /d";
        self.members[IDLE]
            .running
            .say(&format!("{mount}; chroot /d /usr/bin/python3 -c '{program}'"))
            .is_ok()
    }

    /// How long it took, if it came; it is looked for still.
    fn spiked(&mut self, begun: Option<Instant>) -> Result<Option<f64>> {
        let Some(begun) = begun else { return Ok(None) };
        while self.spike_at.is_none() && begun.elapsed() < SPIKE_LONGEST {
            self.look()?;
            sleep(LOOK / 10);
        }
        Ok(self.spike_at.map(|at| (at - begun).as_secs_f64()))
    }

    /// Beats a second, and MiB s.
    fn phase(&mut self, window: Duration) -> Result<([f64; 4], f64)> {
        self.look()?;
        let before: Vec<u64> = self.members.iter().map(|member| member.beats).collect();
        let (begun, first) = (Instant::now(), self.series.len() - 1);
        while begun.elapsed() < window {
            sleep(LOOK.min(window.saturating_sub(begun.elapsed())));
            self.look()?;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let rate = |number: usize| (self.members[number].beats - before[number]) as f64 / seconds;
        Ok(([0, 1, 2, 3].map(rate), integral(&self.series[first..])))
    }

    /// What they say, and what they have.
    fn look(&mut self) -> Result<()> {
        self.members.iter_mut().for_each(Member::listen);
        if self.spike_at.is_none() && self.members[IDLE].spiked {
            self.spike_at = Some(Instant::now());
        }
        let mut command = Command::new(fathom_program());
        command.env("XDG_RUNTIME_DIR", self.folder.path());
        command.args(["balance", "--dry-run", "--json", "--memory", &format!("{HOST_MIB}M")]);
        let board: Board = serde_json::from_str(&output(&mut command)?)?;
        let has = board.facts.vms.iter().map(|vm| (vm.resident + vm.overhead) as f64 / MIB);
        self.series.push((self.since.elapsed().as_secs_f64(), has.sum()));
        Ok(())
    }
}

/// For the guest program.
fn words(number: usize, way: Way) -> String {
    let loads = LOADS.get(number).map_or(String::new(), |loads| {
        loads.iter().map(|load| format!(" fathom.run=beat:{load}")).collect()
    });
    let loads = if loads.is_empty() { " fathom.run=sh".into() } else { loads };
    let balloon = if way == Way::Swap { NO_BALLOON } else { "" };
    format!("quiet {balloon}{loads}")
}

/// Of a line through these points.
fn integral(points: &[(f64, f64)]) -> f64 {
    points.windows(2).map(|two| (two[1].0 - two[0].0) * f64::midpoint(two[0].1, two[1].1)).sum()
}

impl Run {
    /// How much longer a beat of this guest takes than in `other`, in the mean of the phases, percent. Nothing where it
    /// had none.
    fn slower(&self, other: &Self, guest: usize) -> Option<f64> {
        let phases = self.beats_per_second.iter().zip(&other.beats_per_second);
        let longer = phases.map(|(own, other)| other[guest] / own[guest]);
        let mean = longer.sum::<f64>() / PHASES.len() as f64;
        (mean.is_finite() && mean > 0.0).then_some(100.0 * (mean - 1.0))
    }
}

impl Figures {
    /// With as much memory as it takes.
    fn enough(&self) -> Option<&Run> {
        self.runs.iter().find(|run| run.way == Way::Reporting)
    }

    pub(super) fn table(&self) -> String {
        let promised = self.memory_mib * NAMES.len() as u64;
        let mut table = format!(
            "mix: five guests of {} MiB, {promised} in all, on a host that has {} MiB for them and their processes; beats a \
             second over {}, and how much longer a beat takes than with enough memory\n{:<10}{:>6}",
            self.memory_mib,
            self.host_mib,
            PHASES.join(", "),
            "",
            "boot",
        );
        NAMES[..IDLE].iter().for_each(|name| table += &format!("{name:>18}"));
        table += &format!("{:>9}{:>10}{:>12}{:>8}\n", "spike s", "most MiB", "GiB s", "killed");
        for run in &self.runs {
            table += &format!("{:<10}{:>5.0}s", run.way.name(), run.boot_seconds);
            for guest in 0..IDLE {
                let mean = run.beats_per_second.iter().map(|phase| phase[guest]).sum::<f64>();
                let slower = self.enough().and_then(|enough| run.slower(enough, guest));
                let slower = slower.map_or("-".into(), |slower| format!("{slower:+.0} %"));
                table += &format!("{:>9}{slower:>9}", digits(Some(mean / PHASES.len() as f64)));
            }
            table += &format!(
                "{:>9}{:>10.0}{:>12.1}{:>8}\n",
                digits(run.spike_seconds),
                run.most_mib,
                run.mib_seconds / 1024.0,
                run.killed.len()
            );
        }
        for run in &self.runs {
            run.killed.iter().for_each(|why| table += &format!("{}: {why}\n", run.way.name()));
        }
        table
            + "published: five on 1 GB, promised 60 % more, pages written after the boot below 20 MB; aim: 8 % slower at most, \
                 and 20 % less memory-time than with reporting alone\n"
    }

    /// Of what is counted, where the daemon has to do with it; no time.
    pub(super) fn troubles(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        for run in self.runs.iter().filter(|run| run.way == Way::Daemon) {
            if run.most_mib > self.host_mib as f64 {
                troubles
                    .push(format!("mix: {:.0} MiB are in use of {}", run.most_mib, self.host_mib));
            }
            troubles.extend(run.killed.iter().map(|why| format!("mix: {why}")));
        }
        troubles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(way: Way, rate: f64, most_mib: f64) -> Run {
        Run {
            way,
            boot_seconds: 1.0,
            beats_per_second: [[rate; 4]; 3],
            spike_seconds: Some(1.0),
            most_mib,
            mib_seconds: 1024.0,
            killed: Vec::new(),
        }
    }

    #[test]
    fn a_limit_that_is_passed_and_a_guest_that_is_killed_are_told() {
        let with = |daemon: Run| {
            let runs = vec![run(Way::Reporting, 10.0, 2000.0), daemon];
            Figures { memory_mib: MEMORY_MIB, host_mib: HOST_MIB, runs }
        };
        let good = with(run(Way::Daemon, 8.0, 1300.0));
        assert!(good.troubles().is_empty());
        assert!(good.table().contains("+25 %"), "{}", good.table());
        assert_eq!(with(run(Way::Daemon, 8.0, 1400.0)).troubles().len(), 1);
        let killed = Run { killed: vec!["redis: gone".into()], ..run(Way::Daemon, 0.0, 900.0) };
        assert_eq!(with(killed.clone()).troubles().len(), 1);
        assert_eq!(killed.slower(&run(Way::Reporting, 10.0, 1.0), 0), None);
    }

    #[test]
    fn memory_counts_by_the_time_that_it_is_had() {
        let points = [(0.0, 10.0), (1.0, 20.0), (3.0, 20.0)];
        assert!((integral(&points) - 55.0).abs() < 1e-9);
        assert!(integral(&points[..1]).abs() < 1e-9);
    }

    #[test]
    fn guests_are_told_their_loads_in_order() {
        assert_eq!(words(3, Way::Parts), "quiet  fathom.run=beat:build fathom.run=beat:sqlite3");
        assert_eq!(words(IDLE, Way::Swap), format!("quiet {NO_BALLOON} fathom.run=sh"));
    }
}
