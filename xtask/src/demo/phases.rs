//! What the guest says it touches, against what Fathom saw.

use super::report::Sample;
use crate::machine::Event;

/// One phase of the workload, in seconds since the VMM was started.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Phase {
    pub(super) name: String,
    /// What the program touches.
    pub(super) bytes: u64,
    /// What the kernel touches for it: page tables, page structs.
    pub(super) kernel_bytes: u64,
    pub(super) begin: f64,
    /// Everything has been touched once.
    pub(super) steady: f64,
    pub(super) end: f64,
    /// Since when nothing else has been touched.
    quiet_since: f64,
}

/// A phase with its measured working set.
pub(super) struct Row {
    pub(super) phase: Phase,
    /// What the guest touches besides, doing the same with next to nothing.
    pub(super) base: u64,
    pub(super) measured: Option<u64>,
}

/// Deviation that counts as right: the larger of both.
const TOLERANCE_PERCENT: u64 = 3;
const TOLERANCE_BYTES: u64 = 1 << 20;

impl Row {
    /// What a perfect measurement would say.
    pub(super) fn truth(&self) -> u64 {
        self.phase.bytes + self.phase.kernel_bytes + self.base
    }

    pub(super) fn deviation(&self) -> Option<i64> {
        Some(self.measured?.cast_signed() - self.truth().cast_signed())
    }

    pub(super) fn is_right(&self) -> bool {
        let allowed = (self.truth() * TOLERANCE_PERCENT / 100).max(TOLERANCE_BYTES);
        self.deviation().is_some_and(|deviation| deviation.unsigned_abs() <= allowed)
    }
}

/// Follows the guest's events.
#[derive(Default)]
pub(super) struct Phases {
    pub(super) done: Vec<Phase>,
    pub(super) current: Option<Phase>,
    /// From start to end of the VMM's process.
    pub(super) process_seconds: f64,
    /// When the last phase stopped touching what it touched.
    active_until: f64,
}

impl Phases {
    /// Take notice of an event; the phase that it is about, if it is about one.
    pub(super) fn notice(&mut self, event: &Event) -> Option<&Phase> {
        if event.is("file") {
            self.learn_of_file(event.number("kernel_bytes"));
        }
        if !event.is("phase") {
            return None;
        }
        let now = event.at.as_secs_f64();
        match event.text("state") {
            "begin" => {
                self.current = Some(Phase {
                    name: event.text("name").to_owned(),
                    bytes: event.number("bytes"),
                    kernel_bytes: event.number("kernel_bytes"),
                    begin: now,
                    steady: now,
                    end: now,
                    quiet_since: self.active_until,
                });
                self.current.as_ref()
            }
            "steady" => {
                let phase = self.current.as_mut()?;
                phase.steady = now;
                Some(phase)
            }
            _ => {
                let mut phase = self.current.take()?;
                phase.end = now;
                self.active_until = phase.active_until();
                self.done.push(phase);
                self.done.last()
            }
        }
    }

    /// Told after the phases that read it.
    fn learn_of_file(&mut self, kernel_bytes: u64) {
        for phase in self.done.iter_mut().filter(|phase| !phase.is_base() && phase.reads()) {
            phase.kernel_bytes = kernel_bytes;
        }
    }
}

/// For so long after a phase the guest's kernel is busy reporting the memory that it freed.
const REPORTING: f64 = 3.0;
/// What the guest says reaches us a moment later, and the VM's clock starts a moment after ours.
const SLACK: f64 = 0.2;

impl Phase {
    /// Where there is little room.
    pub(super) fn short_title(&self) -> String {
        if self.name == "reread" { "read again".into() } else { self.title() }
    }

    #[cfg(test)]
    pub(super) fn for_tests(name: &str, bytes: u64, seconds: std::ops::Range<f64>) -> Self {
        let (begin, end) = (seconds.start, seconds.end);
        let (name, kernel_bytes) = (name.to_owned(), 0);
        Self { name, bytes, kernel_bytes, begin, steady: begin, end, quiet_since: begin }
    }

    /// For people.
    pub(super) fn title(&self) -> String {
        let mib = self.bytes >> 20;
        match self.name.as_str() {
            "read" => format!("read {mib} MiB"),
            "reread" => format!("read {mib} MiB again"),
            "sample" => "read a little".into(),
            "resample" => "and again".into(),
            name if mib == 0 => name.to_owned(),
            name => format!("{name} {mib} MiB"),
        }
    }

    /// Others are judged by it, or nothing is.
    pub(super) fn is_base(&self) -> bool {
        self.base().is_none()
    }

    fn is_idle(&self) -> bool {
        self.bytes == 0
    }

    /// The file is read once and then left alone; memory is touched to the end.
    fn reads(&self) -> bool {
        self.window() == 10
    }

    fn active_until(&self) -> f64 {
        match (self.is_idle(), self.reads()) {
            (true, _) => self.begin + REPORTING,
            (_, true) => self.steady,
            _ => self.end,
        }
    }

    /// Windows of 1 s that lie in the steady part; each holds many passes over the memory.
    fn within_second(&self, sample: &Sample) -> Option<u64> {
        let from = sample.t_seconds - 1.0;
        let inside = from >= self.steady + SLACK && sample.t_seconds <= self.end - SLACK;
        sample.window_1s_bytes.filter(|_| inside)
    }

    /// Windows of 10 s that hold the one pass over the file, and nothing before it.
    fn within_ten(&self, sample: &Sample) -> Option<u64> {
        let from = sample.t_seconds - 10.0;
        let whole = from <= self.begin - SLACK && sample.t_seconds >= self.steady + SLACK;
        let inside = from >= self.quiet_since + SLACK && sample.t_seconds <= self.end - SLACK;
        sample.window_10s_bytes.filter(|_| whole && inside)
    }

    /// The phase that does the same with next to nothing.
    fn base(&self) -> Option<&'static str> {
        match self.name.as_str() {
            "touch" => Some("idle"),
            "read" => Some("sample"),
            "reread" => Some("resample"),
            _ => None,
        }
    }

    /// Seconds that the windows span by which it is judged.
    fn window(&self) -> u64 {
        if ["read", "reread", "sample", "resample"].contains(&self.name.as_str()) { 10 } else { 1 }
    }

    fn measured(&self, samples: &[Sample], window: u64) -> Option<u64> {
        let figures = samples.iter().filter_map(|sample| match window {
            1 => self.within_second(sample),
            _ => self.within_ten(sample),
        });
        middle(figures.collect())
    }
}

/// One row for each phase that others are judged by, then one for each phase that is judged.
pub(super) fn compare(phases: &[Phase], samples: &[Sample]) -> Vec<Row> {
    let row = |phase: &Phase, base| Row {
        phase: phase.clone(),
        base,
        measured: phase.measured(samples, phase.window()),
    };
    let beyond = |row: &Row| {
        row.measured.unwrap_or(0).saturating_sub(row.phase.bytes + row.phase.kernel_bytes)
    };
    let bases: Vec<Row> = phases
        .iter()
        .filter(|phase| BASES.contains(&phase.name.as_str()))
        .map(|phase| row(phase, 0))
        .map(|row| Row { base: beyond(&row), ..row })
        .collect();
    let judged = phases.iter().filter_map(|phase| {
        let base = bases.iter().find(|base| Some(base.phase.name.as_str()) == phase.base())?;
        Some(row(phase, base.base))
    });
    let judged: Vec<Row> = judged.collect();
    bases.into_iter().chain(judged).collect()
}

/// Phases whose working set is a base of others'.
const BASES: [&str; 3] = ["idle", "sample", "resample"];

fn middle(mut figures: Vec<u64>) -> Option<u64> {
    figures.sort_unstable();
    figures.get(figures.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn phase(name: &str, mib: u64, begin: f64, steady: f64, end: f64, quiet_since: f64) -> Phase {
        let bytes = mib * MIB;
        Phase { name: name.into(), bytes, kernel_bytes: 0, begin, steady, end, quiet_since }
    }

    /// One sample a second: what a perfect census would give.
    fn samples(one: impl Fn(f64) -> u64, ten: impl Fn(f64) -> u64) -> Vec<Sample> {
        (1..60)
            .map(|second| {
                let t_seconds = f64::from(second) + 0.1;
                Sample {
                    t_seconds,
                    resident_bytes: None,
                    window_1s_bytes: Some(one(t_seconds) * MIB),
                    window_10s_bytes: Some(ten(t_seconds) * MIB),
                    window_60s_bytes: None,
                }
            })
            .collect()
    }

    #[test]
    fn a_steady_phase_is_judged_by_seconds_inside_it() {
        let phases =
            [phase("idle", 0, 0.0, 0.0, 12.0, 0.0), phase("touch", 30, 12.0, 13.0, 21.0, 0.0)];
        let seen = samples(|t| if t > 14.0 && t < 21.0 { 32 } else { 2 }, |_| 99);
        let rows = compare(&phases, &seen);
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[1].truth(), rows[1].measured), (32 * MIB, Some(32 * MIB)));
        assert!(rows.iter().all(Row::is_right));
    }

    #[test]
    fn reading_is_judged_by_windows_that_hold_it_and_nothing_else() {
        let phases =
            [phase("sample", 1, 10.0, 11.0, 19.0, 5.0), phase("read", 40, 24.0, 26.0, 33.0, 21.0)];
        // A window that reaches back before 21 s would see more.
        let ten = |t| if t < 21.0 { 4 } else { 90 };
        let seen = samples(|_| 2, |t| if t < 31.0 { ten(t) } else { 43 });
        let rows = compare(&phases, &seen);
        assert_eq!(rows[0].base, 3 * MIB);
        assert_eq!((rows[1].measured, rows[1].truth()), (Some(43 * MIB), 43 * MIB));
    }

    #[test]
    fn a_wrong_measurement_is_seen() {
        let row = |measured| Row {
            phase: phase("touch", 98, 0.0, 0.0, 9.0, 0.0),
            base: 2 * MIB,
            measured,
        };
        assert!(row(Some(103 * MIB)).is_right());
        assert!(!row(Some(104 * MIB)).is_right());
        assert!(!row(None).is_right());
    }
}
