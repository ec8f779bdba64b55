//! One engine, started once, doing its workloads one after the other.

use super::{Engine, Workload};
use crate::bench::agree;
use crate::bench::host::Others;
use crate::kit::Kit;
use crate::kit::lab::Qemu;
use crate::machine::{Event, Guest, Next, Running};
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Where and how much.
pub(super) struct Place {
    /// An image with Debian's programs.
    pub(super) disk: Option<PathBuf>,
    /// What is on it, for ordinary processes.
    pub(super) root: Option<PathBuf>,
    /// A disk to read and write.
    pub(super) scratch: PathBuf,
    /// Percent.
    pub(super) scale: u64,
    pub(super) limit: Duration,
    /// A QEMU other than the kit's.
    pub(super) qemu: Option<PathBuf>,
}

impl Place {
    pub(super) fn add_programs(&mut self, kit: &Kit, is_native: bool) -> Result<()> {
        let disk = kit.compiler_disk()?;
        if is_native {
            self.root = Some(kit.unpacked_disk(&disk)?);
        }
        self.disk = Some(disk);
        Ok(())
    }
}

/// One workload, done once.
#[derive(Debug)]
pub(super) struct Measurement {
    pub(super) name: String,
    /// By the guest's clock.
    pub(super) seconds: f64,
    /// By ours: from the line that said begin to the one that said end.
    pub(super) host_seconds: f64,
    pub(super) checksum: String,
}

pub(super) struct Session {
    pub(super) engine: Engine,
    cpus: u64,
    pub(super) measurements: Vec<Measurement>,
    /// How many of the host's processors others kept busy meanwhile.
    others: f64,
    /// What was not done, and why.
    notes: Vec<String>,
}

/// A time may differ by so much between the two clocks: lines take a while to arrive.
const CLOCK_TOLERANCE: f64 = 0.05;
const CLOCK_SLACK_SECONDS: f64 = 0.03;
/// All times together, more exactly: what lines take is little beside them.
const CLOCK_TOLERANCE_TOGETHER: f64 = 0.02;
/// From here on others are in the way; two vCPUs that wait for each other by spinning, as Linux
/// does, wait for whole time slices then.
const OTHERS_MAX: f64 = 0.2;
/// QEMU's microvm without KVM hangs now and then before it prints anything.
const BOOT_TRIES: usize = 5;
const BOOT_LONGEST: Duration = Duration::from_secs(40);

/// What the guest program has to offer.
pub(super) fn list(kit: &Kit) -> Result<Vec<Workload>> {
    let mut command = Command::new(kit.guest_program());
    command.arg("bench:list");
    let events = Running::start("native", command)?.finish(Duration::from_secs(10))?;
    let workloads = events.iter().filter(|event| event.is("workload"));
    let workloads: Vec<Workload> = workloads
        .map(|event| Workload {
            name: event.text("name").to_owned(),
            group: event.text("group").to_owned(),
            cpus: event.number("cpus"),
        })
        .collect();
    if workloads.is_empty() {
        bail!("{} lists no workloads", kit.guest_program().display());
    }
    Ok(workloads)
}

pub(super) fn run(kit: &Kit, engine: Engine, cpus: u64, names: &[&str], place: &Place) -> Session {
    let mut session =
        Session { engine, cpus, measurements: Vec::new(), others: 0.0, notes: Vec::new() };
    let done = Others::from_now().and_then(|others| {
        let done = session.follow(kit, names, place);
        session.others = others.processors()?;
        done
    });
    if let Err(error) = done {
        session.notes.push(format!("{error:#}"));
    }
    session
}

impl Session {
    fn follow(&mut self, kit: &Kit, names: &[&str], place: &Place) -> Result<()> {
        let (mut running, first) = self.begin(kit, names, place)?;
        let mut begun: Option<Event> = None;
        let mut next = first;
        loop {
            match next {
                Next::Event(event) if event.is("bench") => self.notice(event, &mut begun),
                Next::Event(event) if event.is("module") || event.is("unknown") => {
                    self.notes.push(format!("{}: {}", event.text("name"), event.text("error")));
                }
                Next::Event(_) => {}
                Next::Quiet => {
                    let name = begun.as_ref().map_or("nothing", |event| event.text("name"));
                    let what = format!("was still at {name} after {:?}", place.limit);
                    bail!(running.complaint(&what));
                }
                Next::Ended => return running.check_end(),
            }
            next = running.next(place.limit.saturating_sub(running.elapsed()));
        }
    }

    /// Start it, again if it does not get to its work; with its first sign of life.
    fn begin(&mut self, kit: &Kit, names: &[&str], place: &Place) -> Result<(Running, Next)> {
        let mut tries = 1;
        loop {
            let mut running = self.start(kit, names, place)?;
            match running.next(BOOT_LONGEST) {
                Next::Quiet if tries < BOOT_TRIES => {
                    self.notes.push("hung before /init and was started again".into());
                    tries += 1;
                }
                first => return Ok((running, first)),
            }
        }
    }

    fn start(&self, kit: &Kit, names: &[&str], place: &Place) -> Result<Running> {
        let work = format!("bench:{}", names.join(","));
        let Some(vmm) = self.engine.vmm() else {
            let mut command = Command::new(kit.guest_program());
            command.arg(work).arg(format!("scale={}", place.scale));
            let root = place.root.as_deref().unwrap_or(Path::new("/nowhere"));
            command.arg(format!("root={}", root.display()));
            command.arg(format!("scratch={}", place.scratch.display()));
            return Running::start("native", command);
        };
        let [scratch, root] = match self.engine {
            Engine::Uml => ["/dev/ubda", "/dev/ubdb"],
            _ => ["/dev/vda", "/dev/vdb"],
        };
        let root = if place.disk.is_some() { root } else { "/nowhere" };
        let words = format!(
            "quiet fathom.run={work} fathom.scale={} fathom.root={root} fathom.scratch={scratch}",
            place.scale
        );
        let qemu = match self.engine {
            Engine::Qemu => place.qemu.clone().map(Qemu::Host),
            Engine::QemuBackports => Some(kit.backports_qemu()?),
            _ => None,
        };
        let guest = Guest::new(kit, &words).cpus(self.cpus).qemu_program(qemu);
        let mut guest = guest.writable_disk(&place.scratch);
        if let Some(disk) = &place.disk {
            guest = guest.disk(disk);
        }
        guest.start(vmm)
    }

    fn notice(&mut self, event: Event, begun: &mut Option<Event>) {
        let name = event.text("name");
        match event.text("state") {
            "begin" => *begun = Some(event),
            "end" => {
                let host = begun.take().filter(|begun| begun.text("name") == name);
                let host_seconds =
                    host.map_or(f64::NAN, |begun| (event.at - begun.at).as_secs_f64());
                self.measurements.push(Measurement {
                    name: name.to_owned(),
                    seconds: event.number("nanoseconds") as f64 / 1e9,
                    host_seconds,
                    checksum: event.text("checksum").to_owned(),
                });
            }
            state => self.notes.push(format!("{name} {state}: {}", event.text("error"))),
        }
    }

    /// One line.
    pub(super) fn summary(&self) -> String {
        let (guest, host) = self.seconds();
        format!(
            "{:9} {} vCPU: {:3} workloads, {:7.3} s by its clock, {:7.3} s by ours",
            self.engine.name(),
            self.cpus,
            self.measurements.len(),
            guest,
            host,
        )
    }

    /// All together, by its clock and by ours.
    fn seconds(&self) -> (f64, f64) {
        let sum = |time: fn(&Measurement) -> f64| {
            self.measurements.iter().map(time).fold(0.0, |sum, seconds| sum + seconds)
        };
        (sum(|m| m.seconds), sum(|m| m.host_seconds))
    }

    /// What is to be complained of: work not done, and clocks that disagree.
    pub(super) fn troubles(&self) -> Vec<String> {
        let clocks = self.measurements.iter().map(|m| (m.name.as_str(), m.seconds, m.host_seconds));
        let clocks = clocks
            .filter(|&(_, guest, host)| !agree(guest, host, CLOCK_TOLERANCE, CLOCK_SLACK_SECONDS));
        let (guest, host) = self.seconds();
        let together = (!agree(guest, host, CLOCK_TOLERANCE_TOGETHER, CLOCK_SLACK_SECONDS))
            .then_some(("all", guest, host));
        let clocks = clocks.chain(together).map(|(name, guest, host)| {
            format!("{name}: {guest:.3} s by its clock, {host:.3} s by ours")
        });
        let busy = (self.others > OTHERS_MAX).then(|| {
            format!("others kept {:.1} processors of this host busy meanwhile", self.others)
        });
        let all = self.notes.iter().cloned().chain(busy).chain(clocks);
        all.map(|what| format!("{}, {} vCPU: {what}", self.engine.name(), self.cpus)).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn session(engine: Engine, measured: &[(&str, f64, &str)]) -> Session {
        let measurements = measured.iter().map(|&(name, seconds, checksum)| Measurement {
            name: name.into(),
            seconds,
            host_seconds: seconds,
            checksum: checksum.into(),
        });
        let measurements = measurements.collect();
        Session { engine, cpus: 1, measurements, others: 0.0, notes: Vec::new() }
    }

    #[test]
    fn a_clock_that_runs_slow_is_complained_of() {
        let mut session = session(Engine::Fathom, &[("alu", 1.0, "1"), ("fib", 0.01, "2")]);
        assert!(session.troubles().is_empty());
        session.measurements[0].host_seconds = 1.03;
        session.measurements[1].host_seconds = 0.03;
        assert!(session.troubles().is_empty());
        session.measurements[0].host_seconds = 1.07;
        assert_eq!(
            session.troubles(),
            ["fathom, 1 vCPU: all: 1.010 s by its clock, 1.100 s by ours"]
        );
        session.measurements[0].host_seconds = 1.2;
        let troubles = session.troubles();
        assert_eq!(troubles[0], "fathom, 1 vCPU: alu: 1.000 s by its clock, 1.200 s by ours");
        session.measurements[1].host_seconds = f64::NAN;
        assert_eq!(session.troubles().len(), 3);
    }
}
