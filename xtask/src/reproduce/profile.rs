//! Row `profile`: short programs in a guest, with blocks translated when they have run often, when they are going to,
//! and when an earlier run says so.

use super::{Outcome, RowArgs, digits, folder};
use crate::bench::median;
use crate::dots::{DotRow, Dots};
use crate::kit::{self, Kit};
use crate::machine::{Event, Guest, Next, Running, Vmm, build_fathom};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A guest that takes longer hangs.
const LONGEST: Duration = Duration::from_secs(300);
/// How often a program is run in one guest: the first time is its start-up.
const REPEATS: usize = 4;

/// An oracle that gains less, as a part, gains nothing that could be told from noise.
const GAIN_MIN: f64 = 0.05;

/// How blocks become hot.
const POLICIES: [&str; 4] = ["counters", "programs", "predict", "oracle"];
/// Those that predict.
const PREDICTORS: [&str; 2] = ["programs", "predict"];

struct Subject {
    name: &'static str,
    /// Run in the guest, from the disk; nothing but the boot where there is none.
    program: Option<&'static str>,
}

const SUBJECTS: [Subject; 4] = [
    Subject { name: "boot", program: None },
    Subject { name: "shell", program: Some(SHELL) },
    Subject { name: "python3", program: Some("/usr/bin/python3 -c 'print(sum(range(1000)))'") },
    Subject { name: "sqlite3", program: Some(SQLITE) },
];
const SHELL: &str =
    "/bin/bash -c 'for n in 1 2 3 4 5; do echo $n | cut -c1 | cat; done; ls /usr/bin | wc -l'";
const SQLITE: &str = "/usr/bin/sqlite3 :memory: 'create table t(n); insert into t values(1),(2),(3); \
     select count(*), sum(n) from t;'";

/// All figures.
#[derive(Serialize)]
pub(super) struct Profiles {
    runs: u64,
    subjects: Vec<Figures>,
    troubles: Vec<String>,
}

/// Of one subject, medians by policy.
#[derive(Serialize)]
struct Figures {
    name: &'static str,
    policies: BTreeMap<&'static str, Medians>,
    /// Of what the oracle gains over counters, the part that a predictor gains, by figure.
    recovered: BTreeMap<&'static str, BTreeMap<&'static str, f64>>,
    told: BTreeMap<&'static str, Told>,
}

/// Which blocks a predictor had translated, beside those that counters translate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct Told {
    /// Of the predictor's, the part that counters translate too.
    right: f64,
    /// Of the counters', the part that the predictor has translated.
    found: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct Medians {
    /// Processor time from the start of the program's first run to its end; of the boot, to /init.
    start_seconds: f64,
    /// Of a later run.
    steady_seconds: Option<f64>,
    interpreted: f64,
    translated_blocks: f64,
    foreseen_blocks: f64,
    /// Of code, stubs and bookkeeping.
    bytes: f64,
}

/// One guest.
#[derive(Clone, Copy, Debug)]
struct Sample {
    start: f64,
    steady: Option<f64>,
    made: Made,
}

/// Of the report, what is shown.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct Made {
    instructions_interpreted: u64,
    blocks_translated: u64,
    blocks_foreseen: u64,
    code_bytes: u64,
    stub_bytes: u64,
    bookkeeping_bytes: u64,
}

#[derive(Deserialize)]
struct Report {
    translation: Made,
}

pub(super) fn measure(args: &RowArgs) -> Result<Profiles> {
    let disk = if args.quick { kit::GuestArgs::default() } else { kit::GuestArgs::with_disk() };
    let kit = kit::prepare(&disk)?;
    build_fathom()?;
    let subjects = if args.quick { &SUBJECTS[..1] } else { &SUBJECTS[..] };
    let mut samples: Vec<BTreeMap<&str, Vec<Sample>>> = vec![BTreeMap::new(); subjects.len()];
    for run in 0..args.runs() as usize {
        for (subject, samples) in subjects.iter().zip(&mut samples) {
            if run == 0 {
                // What the oracle knows.
                record(&kit, subject, "counters")?;
            }
            for turn in 0..POLICIES.len() {
                let policy = POLICIES[(run + turn) % POLICIES.len()];
                let sample = sample(&kit, subject, &switches(subject, policy)?)?;
                eprintln!(
                    "run {} of {}: {:8} {policy:9} {:.3} s, {} instructions interpreted",
                    run + 1,
                    args.runs(),
                    subject.name,
                    sample.start,
                    sample.made.instructions_interpreted
                );
                samples.entry(policy).or_default().push(sample);
            }
        }
    }
    let mut figures = Vec::new();
    for (subject, samples) in subjects.iter().zip(samples) {
        let counted = read(&profile(subject, "counters")?)?;
        let mut told = BTreeMap::new();
        for policy in PREDICTORS {
            record(&kit, subject, policy)?;
            told.insert(policy, Told::of(&read(&profile(subject, policy)?)?, &counted));
        }
        figures.push(Figures::of(subject.name, &samples, told));
    }
    Ok(Profiles { runs: args.runs(), subjects: figures, troubles: Vec::new() })
}

/// Where the profile of what `policy` has translated is.
fn profile(subject: &Subject, policy: &str) -> Result<PathBuf> {
    Ok(folder()?.join(format!("profile-{}-{policy}.txt", subject.name)))
}

/// Writes it.
fn record(kit: &Kit, subject: &Subject, policy: &str) -> Result<()> {
    let file = profile(subject, policy)?;
    sample(kit, subject, &format!("profile={policy},profile-out={}", file.display())).map(drop)
}

/// A line a block.
fn read(profile: &Path) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(profile).with_context(|| format!("read {}", profile.display()));
    Ok(text?.lines().map(str::to_owned).collect())
}

fn switches(subject: &Subject, policy: &str) -> Result<String> {
    Ok(match policy {
        "oracle" => format!("profile={}", profile(subject, "counters")?.display()),
        policy => format!("profile={policy}"),
    })
}

fn sample(kit: &Kit, subject: &Subject, switches: &str) -> Result<Sample> {
    let report = folder()?.join("profile-report.json");
    let mut words = "quiet fathom.modules=none fathom.run=boot".to_owned();
    if let Some(program) = subject.program {
        words = format!("quiet{}", format!(" \"fathom.run=disk:{program}\"").repeat(REPEATS));
    }
    let mut guest = Guest::new(kit, &words).named("reproduce-profile", &report).translate(switches);
    if subject.program.is_some() {
        guest = guest.disk(&kit.disk());
    }
    let times = follow(guest.start(Vmm::Fathom)?)?;
    let text = fs::read_to_string(&report).with_context(|| format!("read {}", report.display()))?;
    let made = serde_json::from_str::<Report>(&text)?.translation;
    let (start, steady) = split(&times, subject.program.is_some())?;
    Ok(Sample { start, steady, made })
}

/// The VMM's processor time when /init began and whenever a program ended: who else uses the processors is not in it.
fn follow(mut running: Running) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    loop {
        match running.next(LONGEST.saturating_sub(running.elapsed())) {
            Next::Event(event) if marks(&event) => {
                if event.is("exit") && event.number("status") != 0 {
                    bail!(running.complaint(&format!("had {} fail", event.text("program"))));
                }
                times.push(processor_seconds(running.pid())?);
            }
            Next::Event(_) => {}
            Next::Quiet => bail!(running.complaint("is still at work")),
            Next::Ended => {
                running.check_end()?;
                return Ok(times);
            }
        }
    }
}

fn marks(event: &Event) -> bool {
    event.is("init") || event.is("exit")
}

/// Of all its threads, which the kernel counts in nanoseconds (Documentation/scheduler/sched-stats.rst).
pub(super) fn processor_seconds(pid: u32) -> Result<f64> {
    let folder = format!("/proc/{pid}/task");
    let mut nanoseconds = 0;
    for task in fs::read_dir(&folder).with_context(|| format!("read {folder}"))? {
        // A thread may have ended meanwhile.
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        let first = text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
        nanoseconds += first.unwrap_or(0);
    }
    Ok(nanoseconds as f64 / 1e9)
}

/// The first run's time, and the median of the later ones'.
fn split(times: &[f64], has_program: bool) -> Result<(f64, Option<f64>)> {
    if !has_program {
        return Ok((*times.first().context("the guest did not come to /init")?, None));
    }
    if times.len() != REPEATS + 1 {
        bail!("{} of {REPEATS} runs of a program ended", times.len().saturating_sub(1));
    }
    let took: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    Ok((took[0], median(took[1..].to_vec())))
}

impl Figures {
    fn of(
        name: &'static str,
        samples: &BTreeMap<&str, Vec<Sample>>,
        told: BTreeMap<&'static str, Told>,
    ) -> Self {
        let policies =
            POLICIES.iter().filter_map(|&policy| Some((policy, Medians::of(samples.get(policy)?))));
        let policies: BTreeMap<_, _> = policies.collect();
        let of = |policy: &str, figure: fn(&Medians) -> f64| {
            let [counters, predicted, oracle] =
                ["counters", policy, "oracle"].map(|policy| policies.get(policy).map(figure));
            let gain = counters? - oracle?;
            (gain > GAIN_MIN * counters?).then_some((counters? - predicted?) / gain)
        };
        let parts = |policy| {
            let parts = FIGURES.map(|(name, figure)| (name, of(policy, figure)));
            parts.into_iter().filter_map(|(name, part)| Some((name, part?))).collect()
        };
        let recovered = PREDICTORS.map(|policy| (policy, parts(policy))).into();
        Self { name, recovered, told, policies }
    }
}

/// What it is called, and where it is.
type Figure = (&'static str, fn(&Medians) -> f64);

/// Which figures an oracle gains in.
const FIGURES: [Figure; 3] = [
    ("start-up", |medians| medians.start_seconds),
    ("steady", |medians| medians.steady_seconds.unwrap_or(0.0)),
    ("interpreted", |medians| medians.interpreted),
];

impl Told {
    fn of(predicted: &BTreeSet<String>, counted: &BTreeSet<String>) -> Self {
        let both = predicted.intersection(counted).count() as f64;
        let part = |all: &BTreeSet<_>| both / all.len().max(1) as f64;
        Self { right: part(predicted), found: part(counted) }
    }
}

impl Made {
    fn bytes(&self) -> u64 {
        self.code_bytes + self.stub_bytes + self.bookkeeping_bytes
    }
}

impl Medians {
    fn of(samples: &[Sample]) -> Self {
        let of = |figure: &dyn Fn(&Sample) -> f64| {
            median(samples.iter().map(figure).collect()).unwrap_or(0.0)
        };
        Self {
            start_seconds: of(&|sample| sample.start),
            steady_seconds: median(samples.iter().filter_map(|sample| sample.steady).collect()),
            interpreted: of(&|sample| sample.made.instructions_interpreted as f64),
            translated_blocks: of(&|sample| sample.made.blocks_translated as f64),
            foreseen_blocks: of(&|sample| sample.made.blocks_foreseen as f64),
            bytes: of(&|sample| sample.made.bytes() as f64),
        }
    }
}

impl Outcome for Profiles {
    const NAME: &'static str = "profile";
    const PAPER: &'static str = "Namjoshi and Kulkarni, \"Novel online profiling for virtual machines\" (2010): counters \
        alone lose 14.5 % against an ideal offline profile; a loop's trip count, known before it runs, wins it back";
    const RUN: &'static str = "a Debian guest to /init, and programs of its disk, four times each: the processor time \
        of Fathom for the boot or the first run (start-up) and for a later one (steady). Blocks are translated when \
        they have run often (counters), also when a program runs them again soon (programs), or anybody does, or when \
        a loop's trips ahead make up for it (predict), or when an earlier run translated them (oracle)";

    fn table(&self) -> String {
        let mut table = format!(
            "medians of {} runs\n\n{:18}{:>12}{:>12}{:>14}{:>12}{:>10}{:>8}\n",
            self.runs,
            "",
            "start-up ms",
            "steady ms",
            "interpreted",
            "translated",
            "foreseen",
            "MB"
        );
        for subject in &self.subjects {
            for (policy, medians) in
                POLICIES.iter().filter_map(|p| subject.policies.get_key_value(p))
            {
                let ms = |seconds: f64| format!("{:.1}", seconds * 1e3);
                let steady = medians.steady_seconds.map_or("-".into(), ms);
                let _ = writeln!(
                    table,
                    "{:8} {policy:9}{:>12}{steady:>12}{:>14}{:>12}{:>10}{:>8.1}",
                    subject.name,
                    ms(medians.start_seconds),
                    medians.interpreted,
                    medians.translated_blocks,
                    medians.foreseen_blocks,
                    medians.bytes / 1e6
                );
            }
        }
        table += "\nof the oracle's advantage over counters, % recovered (goal: 80 %; - where that is less than 5 %);\n\
                  of the blocks translated, % that counters translate, and of those, % translated\n\n";
        let _ = writeln!(
            table,
            "{:18}{:>12}{:>12}{:>14}{:>12}{:>10}",
            "", "start-up", "steady", "interpreted", "right", "found"
        );
        for subject in &self.subjects {
            for (policy, recovered) in &subject.recovered {
                let part = |name| digits(recovered.get(name).map(|part| part * 100.0));
                let told = subject.told.get(policy).copied().unwrap_or_default();
                let _ = writeln!(
                    table,
                    "{:8} {policy:9}{:>12}{:>12}{:>14}{:>12}{:>10}",
                    subject.name,
                    part("start-up"),
                    part("steady"),
                    part("interpreted"),
                    digits(Some(told.right * 100.0)),
                    digits(Some(told.found * 100.0))
                );
            }
        }
        table
    }

    fn picture(&self) -> Dots {
        let row = |subject: &Figures| {
            let seconds = |policy| subject.policies.get(policy).map(|m: &Medians| m.start_seconds);
            let base = seconds("counters");
            let figures = POLICIES[1..].iter().map(|policy| Some(seconds(policy)? / base?));
            DotRow { name: subject.name.to_owned(), figures: figures.collect() }
        };
        Dots {
            title: "Start-up time, times that with counters alone".into(),
            unit: "logarithmic; left is faster".into(),
            series: POLICIES[1..].iter().map(|policy| (*policy).to_owned()).collect(),
            rows: self.subjects.iter().map(row).collect(),
        }
    }

    fn troubles(&self) -> &[String] {
        &self.troubles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(start: f64, interpreted: u64) -> Sample {
        let made = Made { instructions_interpreted: interpreted, ..Made::default() };
        Sample { start, steady: Some(start / 2.0), made }
    }

    fn profiles() -> Profiles {
        let samples = BTreeMap::from([
            ("counters", vec![sample(1.0, 400), sample(9.0, 400), sample(1.1, 400)]),
            ("predict", vec![sample(0.8, 150)]),
            ("oracle", vec![sample(0.7, 100)]),
        ]);
        let told = BTreeMap::from([("predict", Told { right: 0.5, found: 0.875 })]);
        let subjects = vec![Figures::of("boot", &samples, told)];
        Profiles { runs: 3, subjects, troubles: Vec::new() }
    }

    #[test]
    fn what_is_recovered_is_a_part_of_the_oracles_gain() {
        let profiles = profiles();
        let recovered = &profiles.subjects[0].recovered["predict"];
        assert!(
            (recovered["start-up"] - 0.75).abs() < 1e-9
                && (recovered["interpreted"] - 250.0 / 300.0).abs() < 1e-9
        );
        let table = profiles.table();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let expected = words("boot predict 75.0 75.0 83.3 50.0 87.5");
        assert!(table.lines().any(|line| words(line) == expected), "{table}");
        assert!(
            table
                .lines()
                .any(|line| line.starts_with("boot     counters       1100.0       550.0")),
            "{table}"
        );
    }

    #[test]
    fn without_a_gain_nothing_is_recovered() {
        let same = BTreeMap::from(POLICIES.map(|policy| (policy, vec![sample(1.0, 5)])));
        let figures = Figures::of("boot", &same, BTreeMap::new());
        assert!(figures.recovered.values().all(BTreeMap::is_empty));
    }

    #[test]
    fn what_is_told_is_compared_by_block() {
        let blocks = |text: &str| text.chars().map(String::from).collect();
        assert_eq!(
            Told::of(&blocks("abcd"), &blocks("abx")),
            Told { right: 0.5, found: 2.0 / 3.0 }
        );
        assert_eq!(Told::of(&blocks(""), &blocks("")), Told::default());
    }

    #[test]
    fn the_first_run_is_told_from_later_ones() {
        let (start, steady) = split(&[1.0, 3.0, 3.5, 4.25, 4.75], true).unwrap();
        assert_eq!((start, steady), (2.0, Some(0.5)));
        assert!(split(&[1.0, 2.0], true).is_err());
        assert_eq!(split(&[1.5], false).unwrap(), (1.5, None));
        assert!(split(&[], false).is_err());
    }

    #[test]
    fn processor_time_is_counted() {
        let own = std::process::id();
        let before = processor_seconds(own).unwrap();
        let sum = (0..30_000_000_u64).fold(0_u64, |sum, n| std::hint::black_box(sum ^ n));
        assert!(processor_seconds(own).unwrap() > before, "{sum}");
    }
}
