//! The thread that runs the working set's estimators, and writes down what each of them finds; for experiments.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use confine::Thread;
use insight::estimate::{
    AccessCurve, AccessCurveConfig, EstimatorSetConfig, Sampling, SamplingConfig,
};
use insight::{Demand, DemandFacts, Estimate, EstimatorSet, MissRatioCurve, demand};
use memory::{GuestMemory, Tracer};
use serde::Serialize;

use crate::config::EstimateMethods;

/// Between two looks at all accesses, where they are written down.
const ACCESS_TICK: Duration = Duration::from_millis(2);
/// Accesses of that time, at most.
const ACCESS_CAPACITY: usize = 1 << 17;
/// In the log of accesses: what follows is the time, in 64 bits.
const MARK: u32 = u32::MAX;
/// There: an interval of the estimators ends, which on a busy host is longer than it should be.
const INTERVAL_END: u32 = u32::MAX - 1;
/// As ESX, but for the period, which is shorter than an experiment's phases, and ten times as many frames: here one
/// costs a look at the table.
const SAMPLING: SamplingConfig =
    SamplingConfig { frames: 1000, period: Duration::from_secs(3), slow: 0.2, fast: 0.6, seed: 1 };
/// Frames whose order is kept.
const ORDER: usize = 1 << 16;
/// Epochs between two lines with a curve.
const CURVE_EVERY: u64 = 10;

/// Runs for one machine. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct EstimateLog {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Where to.
#[derive(Clone, Debug)]
pub(crate) struct EstimateFiles {
    pub(crate) estimates: Arc<File>,
    pub(crate) methods: EstimateMethods,
    /// Every access there, as numbers of frames in 32 bits, little-endian.
    pub(crate) accesses: Option<Arc<File>>,
}

/// A line of the log: what is known at an epoch's end.
#[derive(Serialize)]
struct Line {
    /// Since 1970.
    unix_ns: u64,
    resident_bytes: u64,
    estimates: BTreeMap<&'static str, Estimate>,
    /// Part of the frames of sampling's last period that was accessed.
    last_sample: Option<f64>,
    demand: Demand,
    references_per_second: Option<f64>,
    rate: Option<f64>,
    curve: Option<MissRatioCurve>,
    /// Spent by this thread up to now.
    busy_ns: u64,
}

impl EstimateLog {
    pub(crate) fn start(memory: Arc<GuestMemory>, files: EstimateFiles) -> io::Result<Self> {
        // Events of disks go to nobody: somebody who wants them has listened before.
        memory.listen(1);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let builder = thread::Builder::new().name("estimate".into());
        let body = move || {
            let written = Run::new(memory, &files).run(&stopped);
            if let Err(error) = written {
                tracing::error!("estimate log: {error}: nothing more is written to it");
            }
        };
        let thread = confine::spawn(builder, Thread::WorkingSet, body)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for EstimateLog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It ends by itself unless it panicked, and then there is nothing to save.
            let _ = thread.join();
        }
    }
}

struct Run<'a> {
    memory: Arc<GuestMemory>,
    set: EstimatorSet,
    log: BufWriter<&'a File>,
    accesses: Option<BufWriter<&'a File>>,
    epochs: u64,
    observed: Duration,
    busy: Duration,
}

impl<'a> Run<'a> {
    fn new(memory: Arc<GuestMemory>, files: &'a EstimateFiles) -> Self {
        let accesses = files.accesses.as_deref().map(BufWriter::new);
        if accesses.is_some() {
            memory.open_trace(Tracer::Log, ACCESS_CAPACITY);
            memory.arm_all(Tracer::Log);
        }
        Self {
            set: EstimatorSet::new(Arc::clone(&memory), set_of(files.methods)),
            memory,
            log: BufWriter::new(&*files.estimates),
            accesses,
            epochs: 0,
            observed: Duration::ZERO,
            busy: Duration::ZERO,
        }
    }

    fn run(mut self, stop: &AtomicBool) -> io::Result<()> {
        let (mut last, mut looked) = (Instant::now(), Instant::now());
        let tick = if self.accesses.is_some() { ACCESS_TICK } else { EstimatorSet::INTERVAL };
        while !stop.load(Ordering::SeqCst) {
            // What it spends itself is not added to the interval.
            thread::park_timeout(tick.saturating_sub(looked.elapsed()));
            looked = Instant::now();
            self.note_accesses()?;
            let elapsed = looked - last;
            if elapsed >= EstimatorSet::INTERVAL {
                if let Some(log) = &mut self.accesses {
                    log.write_all(&INTERVAL_END.to_le_bytes())?;
                }
                last = looked;
                self.observed += elapsed;
                if self.set.tick(elapsed) {
                    self.epochs += 1;
                    self.write(self.epochs.is_multiple_of(CURVE_EVERY))?;
                }
            }
            self.busy += looked.elapsed();
        }
        self.write(true)?;
        self.log.flush()?;
        self.accesses.as_mut().map_or(Ok(()), Write::flush)
    }

    /// All accesses since the last time, and what time it is.
    fn note_accesses(&mut self) -> io::Result<()> {
        let Some(log) = &mut self.accesses else { return Ok(()) };
        let mut told = Vec::new();
        while told.len() < ACCESS_CAPACITY
            && let Some(frame) = self.memory.take_touch(Tracer::Log)
        {
            log.write_all(&frame.0.to_le_bytes())?;
            told.push(frame);
        }
        log.write_all(&MARK.to_le_bytes())?;
        log.write_all(&unix_ns().to_le_bytes())?;
        if !told.is_empty() {
            self.memory.arm(Tracer::Log, told);
            self.memory.forget_translations();
        }
        Ok(())
    }

    fn write(&mut self, with_curve: bool) -> io::Result<()> {
        let curve = self.set.curve();
        let known = curve.and_then(AccessCurve::curve);
        let references = curve.and_then(AccessCurve::references_per_second);
        let census = self.set.census().latest();
        let facts = DemandFacts {
            allocation_bytes: self.memory.bytes(),
            resident_bytes: self.memory.resident_bytes(),
            working_set_bytes: census.map_or(0, |sample| sample.working_set_60s_bytes),
            observed_seconds: census.map_or(0.0, |_| self.observed.as_secs_f64()),
            curve: known.as_ref(),
            references_per_second: references.unwrap_or(0.0),
            sampled_references: curve.map_or(0.0, |curve| curve.references() * curve.rate()),
            refaults_per_second: 0.0,
        };
        let estimates = self.set.estimators().filter_map(|one| Some((one.name(), one.estimate()?)));
        let line = Line {
            unix_ns: unix_ns(),
            resident_bytes: facts.resident_bytes,
            estimates: estimates.collect(),
            last_sample: self.set.sampling().and_then(Sampling::last_period),
            demand: demand(&facts),
            references_per_second: references,
            rate: curve.map(AccessCurve::rate),
            curve: known.filter(|_| with_curve),
            busy_ns: self.busy.as_nanos() as u64,
        };
        serde_json::to_writer(&mut self.log, &line)?;
        self.log.write_all(b"\n")?;
        // Who looks at a VM that runs, or was killed, sees all of it.
        self.log.flush()
    }
}

fn set_of(methods: EstimateMethods) -> EstimatorSetConfig {
    let none = EstimatorSetConfig {
        sampling: None,
        scan: None,
        order: None,
        curve: None,
        ..EstimatorSetConfig::default()
    };
    let scan = Some(Duration::from_secs(3));
    let curve = Some(AccessCurveConfig { half_life: None, ..AccessCurveConfig::default() });
    match methods {
        EstimateMethods::Census => none,
        EstimateMethods::Sampling => EstimatorSetConfig { sampling: Some(SAMPLING), ..none },
        EstimateMethods::Scan => EstimatorSetConfig { scan, ..none },
        EstimateMethods::Order => EstimatorSetConfig { order: Some(ORDER), ..none },
        EstimateMethods::Curve => EstimatorSetConfig { curve, ..none },
        EstimateMethods::Default => {
            EstimatorSetConfig { sampling: Some(SAMPLING), scan, curve, ..none }
        }
        EstimateMethods::All => {
            EstimatorSetConfig { sampling: Some(SAMPLING), scan, order: Some(ORDER), curve, ..none }
        }
    }
}

fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
