//! How much memory a VM would use well now.

use serde::Serialize;

use crate::curve::MissRatioCurve;

/// What is known. All of it is the guest's doing: a guest that lies asks for more or less than it needs.
#[derive(Clone, Debug)]
pub struct DemandFacts<'a> {
    /// What the VM has.
    pub allocation_bytes: u64,
    /// In use by the table; more than this is never needed at once without a miss.
    pub resident_bytes: u64,
    /// Accessed in the last minute, or since it is known.
    pub working_set_bytes: u64,
    /// Whose is known for so long, in seconds.
    pub observed_seconds: f64,
    /// Of the whole range of sizes, spliced, or of what lies below the allocation.
    pub curve: Option<&'a MissRatioCurve>,
    /// References by second, of which the curve's ratios are parts.
    pub references_per_second: f64,
    /// References in the sample behind the curve.
    pub sampled_references: f64,
    /// Blocks by second that were read again after they had been evicted.
    pub refaults_per_second: f64,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Demand {
    /// A multiple of 4096.
    pub bytes: u64,
    /// 0: a guess, 1: measured.
    pub confidence: f64,
    /// What decided.
    pub why: DemandReason,
}

/// Why it is as much as that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DemandReason {
    /// Nothing was measured: what it has.
    Unknown,
    /// What it accessed lately.
    WorkingSet,
    /// Less would miss more often than [`TOLERABLE_MISSES`].
    Curve,
    /// It reads again what it had to give up, and more memory would spare it that.
    Refaults,
    /// It does so, and what more memory would spare is not known.
    RefaultsWithoutCurve,
}

impl DemandReason {
    /// In a few words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Unknown => "nothing was measured yet: what it has",
            Self::WorkingSet => "it accessed no more lately",
            Self::Curve => "with less, it would miss what it uses again",
            Self::Refaults => {
                "it reads again what it had to give up, and this much would spare it that"
            }
            Self::RefaultsWithoutCurve => {
                "it reads again what it had to give up: somewhat more than it has"
            }
        }
    }
}

/// Misses by second, of a disk of some thousand, that need no memory against them.
pub const TOLERABLE_MISSES: f64 = 20.0;

/// For what the guest does not have yet but will: page tables, buffers. A part of the answer.
const ROOM: f64 = 1.0 / 32.0;

/// After so long a working set of a minute is known, and half as well after half of it.
const SETTLED_SECONDS: f64 = 60.0;

/// So many references make half of a curve's confidence.
const HALF_SURE: f64 = 1000.0;

const PAGE: f64 = 4096.0;

/// The least memory that holds the working set and misses no more often than [`TOLERABLE_MISSES`] beyond what no size
/// would spare, with some room.
#[must_use]
pub fn demand(facts: &DemandFacts<'_>) -> Demand {
    let seen = sane(facts.observed_seconds);
    if seen == 0.0 {
        return Demand {
            bytes: pages(facts.allocation_bytes as f64),
            confidence: 0.0,
            why: DemandReason::Unknown,
        };
    }
    let settled = (seen / SETTLED_SECONDS).min(1.0);
    let working_set = facts.working_set_bytes as f64;
    let refaults = sane(facts.refaults_per_second) > TOLERABLE_MISSES;
    let wanted = facts.curve.and_then(|curve| size_for(curve, sane(facts.references_per_second)));
    let sampled = sane(facts.sampled_references);
    let (bytes, confidence, why) = match wanted {
        Some(size) if size > working_set => {
            let beyond = size > facts.allocation_bytes as f64;
            let why = if beyond { DemandReason::Refaults } else { DemandReason::Curve };
            (size, settled * sampled / (sampled + HALF_SURE), why)
        }
        _ => (working_set, settled, DemandReason::WorkingSet),
    };
    // Reading again what was given up, a guest needs more than it has, whatever else is known.
    if refaults && bytes <= facts.allocation_bytes as f64 {
        let bytes = facts.allocation_bytes as f64 * (1.0 + 4.0 * ROOM);
        let why = DemandReason::RefaultsWithoutCurve;
        return Demand { bytes: pages(bytes), confidence: confidence / 2.0, why };
    }
    Demand { bytes: pages(bytes * (1.0 + ROOM)), confidence, why }
}

/// The least size, in bytes, with misses that are no more often than tolerable beyond those of the largest.
fn size_for(curve: &MissRatioCurve, references_per_second: f64) -> Option<f64> {
    if references_per_second <= 0.0 {
        return None;
    }
    let tolerable = TOLERABLE_MISSES / references_per_second;
    curve.pages_for(curve.floor() + tolerable).map(|pages| pages as f64 * PAGE)
}

/// Whole pages.
fn pages(bytes: f64) -> u64 {
    (bytes / PAGE).ceil() as u64 * PAGE as u64
}

/// No infinities, nothing below 0.
fn sane(figure: f64) -> f64 {
    if figure.is_finite() { figure.max(0.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn facts() -> DemandFacts<'static> {
        DemandFacts {
            allocation_bytes: 256 * MIB,
            resident_bytes: 200 * MIB,
            working_set_bytes: 64 * MIB,
            observed_seconds: 120.0,
            curve: None,
            references_per_second: 10_000.0,
            sampled_references: 1e6,
            refaults_per_second: 0.0,
        }
    }

    /// Everything hits from `pages` on.
    fn step_at(pages: u64) -> MissRatioCurve {
        let ratios = (0..=100_000 / 100).map(|at| if at * 100 < pages { 0.5 } else { 0.1 });
        MissRatioCurve::from_ratios(100, ratios.collect())
    }

    #[test]
    fn nothing_known_is_what_it_has() {
        let demand = demand(&DemandFacts { observed_seconds: 0.0, ..facts() });
        let expected = Demand { bytes: 256 * MIB, confidence: 0.0, why: DemandReason::Unknown };
        assert_eq!(demand, expected);
    }

    #[test]
    fn a_working_set_needs_itself_and_some_room() {
        let found = demand(&facts());
        assert_eq!((found.bytes, found.why), (66 * MIB, DemandReason::WorkingSet));
        assert_eq!(found.confidence, 1.0);
        let early = demand(&DemandFacts { observed_seconds: 30.0, ..facts() });
        assert_eq!(early.confidence, 0.5);
    }

    #[test]
    fn a_curve_asks_for_what_it_would_hit_in() {
        let curve = step_at(40_000);
        let found = demand(&DemandFacts { curve: Some(&curve), ..facts() });
        assert_eq!(found.why, DemandReason::Curve);
        let wanted = 40_000 * 4096;
        assert!((wanted..wanted * 11 / 10).contains(&found.bytes), "{}", found.bytes);
        // Few references miss rarely, however many of them.
        let slow = DemandFacts { curve: Some(&curve), references_per_second: 30.0, ..facts() };
        assert_eq!(demand(&slow).why, DemandReason::WorkingSet);
    }

    #[test]
    fn what_is_read_again_asks_for_more_than_there_is() {
        let curve = step_at(90_000);
        let thrashing = DemandFacts { refaults_per_second: 500.0, ..facts() };
        let known = demand(&DemandFacts { curve: Some(&curve), ..thrashing.clone() });
        assert_eq!(known.why, DemandReason::Refaults);
        assert!(known.bytes > 90_000 * 4096);
        let unknown = demand(&thrashing);
        assert_eq!(unknown.why, DemandReason::RefaultsWithoutCurve);
        assert!(unknown.bytes > 256 * MIB && unknown.confidence <= 0.5);
    }

    proptest! {
        #[test]
        fn whatever_the_facts_the_answer_is_sane(
            allocation in 0u64..1 << 45, working_set in 0u64..1 << 45, seconds in prop::num::f64::ANY,
            references in prop::num::f64::ANY, sampled in prop::num::f64::ANY,
            refaults in prop::num::f64::ANY, step in 0u64..100_000, with_curve: bool,
        ) {
            let curve = step_at(step);
            let found = demand(&DemandFacts {
                allocation_bytes: allocation,
                resident_bytes: allocation,
                working_set_bytes: working_set,
                observed_seconds: seconds,
                curve: with_curve.then_some(&curve),
                references_per_second: references,
                sampled_references: sampled,
                refaults_per_second: refaults,
            });
            prop_assert!((0.0..=1.0).contains(&found.confidence));
            prop_assert_eq!(found.bytes % 4096, 0);
            prop_assert!(found.bytes >= working_set.min(allocation));
        }
    }
}
