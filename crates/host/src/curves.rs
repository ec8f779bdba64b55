//! What VMs' miss-ratio curves say, as the policy wants it: misses a second.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use api::{CurveOf, MemoryCurve, Picture, RunState, SocketDirectory, VmStatus};
use policy::Curve;

/// A curve moves slowly, and a picture of a guest's memory costs more than its status.
const PERIOD: Duration = Duration::from_secs(10);
/// A VM that does not answer should not hold up the others for long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// VMs asked at a time.
const ASKED_AT_ONCE: usize = 32;
/// Of a new rate so much counts: one burst of misses should not move memory.
const NEW: f64 = 0.5;
/// Fewer misses a second are none: what they are worth is noise.
const FEWEST: f64 = 1.0;

/// Curves of VMs that run, as they were known last.
#[derive(Debug, Default)]
pub(crate) struct Curves {
    known: BTreeMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    asked: Instant,
    /// Misses a second, averaged over the latest looks.
    rate: f64,
    curve: Option<Curve>,
}

impl Curves {
    pub(crate) fn of(&self, name: &str) -> Option<Curve> {
        self.known.get(name)?.curve.clone()
    }

    /// Asks those of `running` whose curve is old, all at once.
    pub(crate) fn look(&mut self, sockets: &SocketDirectory, running: &[VmStatus], now: Instant) {
        self.known.retain(|name, _| running.iter().any(|vm| vm.name == *name));
        let is_due = |vm: &&VmStatus| {
            let before = self.known.get(&vm.name);
            is_seen(vm) && before.is_none_or(|known| now - known.asked >= PERIOD)
        };
        let due: Vec<&VmStatus> = running.iter().filter(is_due).collect();
        for (name, picture) in ask(sockets, &due) {
            let before = self.known.get(&name).map(|known| known.rate);
            let picture = picture.unwrap_or_default();
            let seen = picture.cache.map_or(0.0, |cache| cache.inserts_per_second);
            let rate = before.map_or(seen, |before| before + NEW * (seen - before));
            // One that has been still since its last burst has no use for what it read then.
            let curve = misses(&picture.curve, rate.min(seen));
            self.known.insert(name, Known { asked: now, rate, curve });
        }
    }
}

/// Curves of VMs that run, asked now.
pub fn curves(sockets: &SocketDirectory, running: &[VmStatus]) -> BTreeMap<String, Curve> {
    let mut curves = Curves::default();
    curves.look(sockets, running, Instant::now());
    let known = curves.known.into_iter();
    known.filter_map(|(name, known)| Some((name, known.curve?))).collect()
}

/// Its disk reads are seen (`--insight on`), and it does something.
fn is_seen(vm: &VmStatus) -> bool {
    vm.memory_use.cache_bytes.is_some() && vm.state == RunState::Running
}

fn ask(sockets: &SocketDirectory, vms: &[&VmStatus]) -> Vec<(String, Option<Picture>)> {
    let ask = |name: &str| {
        let picture = sockets.client(name).with_timeout(ANSWER_TIMEOUT).memory();
        picture.inspect_err(|error| tracing::debug!("{error}")).ok()
    };
    let mut answers = Vec::with_capacity(vms.len());
    for some in vms.chunks(ASKED_AT_ONCE) {
        thread::scope(|scope| {
            let one = |vm: &&VmStatus| {
                let name = vm.name.clone();
                scope.spawn(move || (name.clone(), ask(&name)))
            };
            let threads: Vec<_> = some.iter().map(one).collect();
            answers.extend(threads.into_iter().filter_map(|thread| thread.join().ok()));
        });
    }
    answers
}

/// Misses a second by size, of a guest that has `rate` with what it has now. `None`: nothing is known that could decide.
///
/// A curve of misses says nothing of less memory than the guest has. There it is taken to fall as steeply as it does at the
/// steepest beyond: curves of what is used again flatten out with size (their convex hull does), and a guest should not lose
/// memory because nothing is known of it.
fn misses(curve: &MemoryCurve, rate: f64) -> Option<Curve> {
    if !(FEWEST..f64::INFINITY).contains(&rate) {
        return None;
    }
    let points = &curve.points;
    let now = match curve.of {
        CurveOf::Misses => 1.0,
        CurveOf::References => ratio_at(curve)?,
    };
    // None of today's misses could be of a guest that has none by its curve.
    let scale = Some(rate / now).filter(|scale| scale.is_finite())?;
    let rounded = |misses: f64| (misses * 1000.0).round() / 1000.0;
    let known = points.iter().map(|point| (point.bytes, rounded(point.miss_ratio * scale)));
    let known: Vec<(u64, f64)> = known.collect();
    let known_curve = Curve::new(known.clone()).ok()?;
    if curve.of == CurveOf::References {
        return Some(known_curve);
    }
    let (first, most) = *known.first()?;
    let slope = |&(bytes, misses): &(u64, f64)| (most - misses) / (bytes - first) as f64;
    let steepest = known.iter().skip(1).map(slope).fold(0.0, f64::max);
    if steepest <= 0.0 {
        return None;
    }
    if first == 0 {
        return Some(known_curve);
    }
    let without = (0, rounded(most + steepest * first as f64));
    Curve::new([without].into_iter().chain(known).collect()).ok()
}

/// The miss ratio with what the guest has, by the last point that is not beyond.
fn ratio_at(curve: &MemoryCurve) -> Option<f64> {
    let points = curve.points.iter();
    Some(points.take_while(|point| point.bytes <= curve.allocation_bytes).last()?.miss_ratio)
}

#[cfg(test)]
mod tests {
    use api::CurvePoint;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn curve(of: CurveOf, has: u64, points: &[(u64, f64)]) -> MemoryCurve {
        let point = |&(mib, miss_ratio): &(u64, f64)| CurvePoint { bytes: mib * MIB, miss_ratio };
        let points = points.iter().map(point).collect();
        MemoryCurve { allocation_bytes: has * MIB, of, points, recommendation: None }
    }

    #[test]
    fn a_curve_of_misses_goes_on_below_as_it_begins() {
        let known = curve(CurveOf::Misses, 100, &[(100, 1.0), (150, 0.5), (300, 0.5)]);
        let misses = misses(&known, 40.0).expect("a curve");
        let at = [0, 50, 100, 150, 900].map(|mib| misses.misses(mib * MIB));
        assert_eq!(at, [80.0, 60.0, 40.0, 20.0, 20.0]);
    }

    #[test]
    fn a_curve_of_references_is_scaled_by_what_is_missed_now() {
        let known = curve(CurveOf::References, 100, &[(0, 1.0), (100, 0.25), (200, 0.0)]);
        let misses = misses(&known, 10.0).expect("a curve");
        let at = [0, 100, 200].map(|mib| misses.misses(mib * MIB));
        assert_eq!(at, [40.0, 10.0, 0.0]);
    }

    #[test]
    fn what_decides_nothing_is_no_curve() {
        let flat = curve(CurveOf::Misses, 100, &[(100, 1.0), (200, 1.0)]);
        assert_eq!(misses(&flat, 40.0), None, "it may use well what it has");
        let falling = curve(CurveOf::Misses, 100, &[(100, 1.0), (200, 0.0)]);
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(misses(&falling, rate), None, "{rate}");
        }
        assert!(misses(&falling, FEWEST).is_some());
        let without = curve(CurveOf::References, 100, &[(0, 1.0), (100, 0.0)]);
        assert_eq!(misses(&without, 40.0), None, "it cannot miss with what it has");
        // A VM may say anything.
        for points in [&[][..], &[(1, f64::NAN)], &[(2, 1.0), (1, 0.0)], &[(1, 1.0), (1, 0.0)]] {
            for of in [CurveOf::Misses, CurveOf::References] {
                assert_eq!(misses(&curve(of, 1, points), 40.0), None, "{points:?}");
            }
        }
    }
}
