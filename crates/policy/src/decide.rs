//! The verdict: who gets how much, what is taken by which means, and why.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::facts::{Facts, FactsError, Settings, VmFacts};
use crate::state::MemoryState;
use crate::{GRAIN, targets};

/// What is to be done, and what for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// How short of memory the host is.
    pub state: MemoryState,
    /// What targets are made of: the host's limit, without what is to stay free and what VMs take beyond their guests'
    /// memory.
    pub supply: u64,
    /// In the order of the facts.
    pub vms: Vec<VmVerdict>,
}

/// What is to be done with a VM. Sizes are bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmVerdict {
    /// Which.
    pub name: String,
    /// By shares, reservation, limit and tax alone.
    pub published: u64,
    /// By its curve, where that is known and followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_curve: Option<u64>,
    /// What its guest is to have. Its balloon is to hold the rest of its memory. More than it is due where nobody else needs it,
    /// or its guest could not work with less ([`VmFacts::floor`]).
    pub target: u64,
    /// The part of what it has that its guest does not use: 0 to 1.
    pub idle: f64,
    /// What its last [`MARGIN`] bytes up to the target save, in misses a second, where its curve is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marginal: Option<f64>,
    /// What the host does, beside setting the balloon.
    pub actions: Vec<Action>,
    /// Why the target is what it is.
    pub reason: Reason,
}

/// [`VmVerdict::marginal`] is of so much.
pub const MARGIN: u64 = 16 << 20;

/// What the host does with a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Takes its coldest frames, so many bytes of them, without its guest's help.
    Reclaim(u64),
    /// Its vCPUs stand until it has no more than its target.
    Stop,
}

/// Why a target is what it is. It reads as a part of a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The host has enough: nothing is taken.
    Enough,
    /// It has all that it may have.
    Limit,
    /// Its shares would come to less than its reservation.
    Reservation,
    /// By its shares, of what all compete for.
    Shares,
    /// By its shares, and so much of what it has is idle, which costs so many times as much.
    Idle {
        /// 0 to 1.
        part: f64,
        /// k = 1 / (1 - tax).
        costs: f64,
    },
    /// Memory saves more misses here than elsewhere, or fewer.
    Curve {
        /// Bytes more than by shares and tax; fewer, if negative.
        more: i64,
    },
    /// More than it is due, which nobody needs now: bytes.
    Lent {
        /// Bytes.
        more: u64,
    },
    /// Its guest could not work with less, though it is due less.
    Floor,
    /// It differs too little from what was asked before.
    Kept,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enough => write!(f, "the host has enough: nothing is taken"),
            Self::Limit => write!(f, "it has all that it may have"),
            Self::Reservation => write!(f, "its reservation; its shares come to less"),
            Self::Shares => write!(f, "its shares of what all compete for"),
            Self::Idle { part, costs } => {
                write!(
                    f,
                    "{:.0} % of it is idle, which costs {costs:.1} times as much",
                    part * 100.0
                )
            }
            Self::Curve { more } => {
                let mib = more.unsigned_abs() >> 20;
                if *more < 0 {
                    write!(f, "{mib} MiB save more misses elsewhere")
                } else {
                    write!(f, "{mib} MiB more save more misses here than elsewhere")
                }
            }
            Self::Lent { more } => {
                write!(f, "{} MiB more than it is due, which nobody needs now", more >> 20)
            }
            Self::Floor => {
                write!(f, "its guest's programs and kernel have that, and cannot give it")
            }
            Self::Kept => write!(f, "as before: it would change by too little"),
        }
    }
}

/// Decides.
///
/// # Errors
/// Facts or settings that cannot be; nothing is decided then, and what was decided before stands.
pub fn decide(facts: &Facts, settings: &Settings) -> Result<Verdict, FactsError> {
    settings.check()?;
    facts.check()?;
    let (host, vms) = (&facts.host, &facts.vms[..]);
    let state = settings.thresholds.state(host.state, host.free, host.limit);
    let overhead: u64 = vms.iter().map(|vm| vm.overhead).sum();
    let supply = host.limit.saturating_sub(settings.thresholds.reserve(host.limit) + overhead);
    let published = targets::published(vms, supply, settings);
    let follows = settings.curves && vms.iter().any(|vm| vm.curve.is_some());
    let wanted = if follows {
        targets::by_curves(vms, &published, supply, settings)
    } else {
        published.clone()
    };
    let due = due(vms, &wanted, state, supply, settings);
    let chosen = choose(facts, &due, state, supply, settings);
    let mut verdicts = Vec::with_capacity(vms.len());
    for (index, vm) in vms.iter().enumerate() {
        let target = chosen[index];
        let curve = vm.curve.as_ref();
        verdicts.push(VmVerdict {
            name: vm.name.clone(),
            published: published[index],
            by_curve: curve.filter(|_| follows).map(|_| wanted[index]),
            target,
            idle: vm.idle(),
            marginal: curve
                .map(|curve| curve.misses(target.saturating_sub(MARGIN)) - curve.misses(target)),
            actions: Vec::new(),
            reason: reason(vm, target, wanted[index], published[index], state, settings),
        });
    }
    take(facts, settings, state, &due, &mut verdicts);
    Ok(Verdict { state, supply, vms: verdicts })
}

/// What is wanted; where the host is short, only what is worth a change.
fn due(
    vms: &[VmFacts],
    wanted: &[u64],
    state: MemoryState,
    supply: u64,
    settings: &Settings,
) -> Vec<u64> {
    if state <= MemoryState::Soft {
        return wanted.to_vec();
    }
    let all = kept(vms, wanted, settings);
    if all.iter().sum::<u64>() <= supply {
        return all;
    }
    // What is kept must not add up to more than there is.
    all.into_iter().zip(wanted).map(|(kept, wanted)| kept.min(*wanted)).collect()
}

/// What balloons leave by now, where it differs too little.
fn kept(vms: &[VmFacts], wanted: &[u64], settings: &Settings) -> Vec<u64> {
    let kept = |(vm, wanted): (&VmFacts, &u64)| {
        let differs = vm.left().abs_diff(*wanted) as f64;
        if differs <= settings.slack * vm.limit as f64 {
            vm.left().max(vm.reservation)
        } else {
            *wanted
        }
    };
    vms.iter().zip(wanted).map(kept).collect()
}

/// The targets: what is due, and what else is allowed in this state.
fn choose(
    facts: &Facts,
    due: &[u64],
    state: MemoryState,
    supply: u64,
    settings: &Settings,
) -> Vec<u64> {
    let vms = &facts.vms;
    // Who has no more than its floor is left alone by its balloon: the host takes by other means, if it must.
    let at_least = |(vm, bytes): (&VmFacts, &u64)| vm.floor().min(vm.left()).max(*bytes);
    let all_at_least = |all: &[u64]| -> Vec<u64> { vms.iter().zip(all).map(at_least).collect() };
    // What others are due and do not have is of use to those who have all of theirs, and take more.
    let goals = || -> Vec<u64> {
        let lent = targets::lent(vms, due, supply, settings);
        let goal = |index: usize| lent[index].min(vms[index].soon()).max(due[index]);
        (0..vms.len()).map(goal).collect()
    };
    match state {
        MemoryState::High => raised(facts, all_at_least(due), &goals(), settings),
        MemoryState::Soft => {
            let mut goals = goals();
            // Lent is only what is free.
            for ((goal, vm), due) in goals.iter_mut().zip(vms).zip(due) {
                *goal = (*goal).min(vm.left().max(*due));
            }
            kept(vms, &given_back(facts, all_at_least(&goals), settings), settings)
        }
        MemoryState::Hard => all_at_least(due),
        MemoryState::Low => due.to_vec(),
    }
}

/// Balloons take nothing, and give `targets`; and of `goals`, which are beyond that, as much as is free before balloons must take:
/// then those who have more than their own goals give it.
fn raised(facts: &Facts, mut targets: Vec<u64>, goals: &[u64], settings: &Settings) -> Vec<u64> {
    let Facts { host, vms } = facts;
    for (target, vm) in targets.iter_mut().zip(vms) {
        *target = vm.left().max(*target);
    }
    let raised: Vec<usize> =
        (0..vms.len()).filter(|&index| goals[index] > targets[index]).collect();
    let mut shares: u64 = raised.iter().map(|&index| u64::from(vms[index].shares)).sum();
    let mut free = settings.thresholds.free_of_balloons(host.free, host.limit);
    for index in raised {
        let vm = &vms[index];
        let part = (u128::from(free) * u128::from(vm.shares) / u128::from(shares)) as u64;
        // From what it has: it is not lent twice before it has taken it. A grain at least: who waits must come to have it.
        let has = (vm.resident.saturating_add(part) / GRAIN * GRAIN).max(targets[index] + GRAIN);
        let target = has.min(goals[index]);
        free = free.saturating_sub(target.saturating_sub(vm.resident));
        shares -= u64::from(vm.shares);
        targets[index] = target;
    }
    targets
}

/// Who have more than they are due give back in proportion to that, as much as is to be free, and no more: balloons that
/// took all of it would have the host lend it again at once.
fn given_back(facts: &Facts, wanted: Vec<u64>, settings: &Settings) -> Vec<u64> {
    let Facts { host, vms } = facts;
    let pairs = || vms.iter().zip(wanted.iter().copied());
    // What others may now take; what balloons have not given yet of what they were asked for.
    let taken: u64 =
        pairs().map(|(vm, wanted)| wanted.saturating_sub(vm.left().max(vm.resident))).sum();
    let is_coming = vms.iter().filter(|vm| vm.balloon.works);
    let coming: u64 = is_coming.map(|vm| vm.resident.saturating_sub(vm.left())).sum();
    let reserve = settings.thresholds.reserve(host.limit);
    let needed = (reserve + taken).saturating_sub(host.free + coming);
    let over = |vm: &VmFacts, wanted: u64| vm.resident.min(vm.left()).saturating_sub(wanted);
    let all: u64 = pairs().map(|(vm, wanted)| over(vm, wanted)).sum();
    let part = (needed as f64 / all.max(1) as f64).min(1.0);
    let target = |(vm, wanted): (&VmFacts, u64)| {
        let over = over(vm, wanted);
        let given = ((over as f64 * part) as u64).next_multiple_of(GRAIN).min(over);
        wanted + (over - given)
    };
    pairs().map(target).collect()
}

fn reason(
    vm: &VmFacts,
    target: u64,
    wanted: u64,
    published: u64,
    state: MemoryState,
    settings: &Settings,
) -> Reason {
    if state == MemoryState::High && target > wanted {
        return Reason::Enough;
    }
    if target == vm.limit {
        return Reason::Limit;
    }
    if target > wanted && target == vm.floor().min(vm.left()) {
        return Reason::Floor;
    }
    if target > wanted && target != vm.left() {
        return Reason::Lent { more: target - wanted };
    }
    if target != wanted {
        return Reason::Kept;
    }
    if wanted != published {
        return Reason::Curve { more: wanted.wrapping_sub(published).cast_signed() };
    }
    if target == vm.reservation {
        return Reason::Reservation;
    }
    if target > vm.used() && settings.tax > 0.0 && vm.idle() > 0.0 {
        return Reason::Idle { part: vm.idle(), costs: 1.0 / (1.0 - settings.tax) };
    }
    Reason::Shares
}

/// What balloons do not do: where there is none that works; or all of it, when there is no time to wait for them.
fn take(
    facts: &Facts,
    settings: &Settings,
    state: MemoryState,
    due: &[u64],
    verdicts: &mut [VmVerdict],
) {
    if state == MemoryState::High {
        return;
    }
    let host = facts.host;
    // While balloons have time, what they are to take; then all that is not due.
    let over = |index: usize, verdict: &VmVerdict| {
        let least = if state == MemoryState::Soft { verdict.target } else { due[index] };
        facts.vms[index].resident.saturating_sub(least.min(verdict.target))
    };
    // So much makes the state soft again; the balloons do the rest.
    let mut needed = match state {
        MemoryState::High | MemoryState::Soft => 0,
        MemoryState::Hard | MemoryState::Low => {
            settings.thresholds.reserve(host.limit).saturating_sub(host.free)
        }
    };
    let mut order: Vec<usize> = (0..verdicts.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(over(index, &verdicts[index])));
    for index in order {
        let vm = &facts.vms[index];
        let over = over(index, &verdicts[index]);
        let reclaimed = if vm.balloon.works { over.min(needed) } else { over };
        needed = needed.saturating_sub(reclaimed);
        if reclaimed > 0 {
            verdicts[index].actions.push(Action::Reclaim(reclaimed));
        }
        if state == MemoryState::Low && over as f64 > settings.slack * vm.limit as f64 {
            verdicts[index].actions.push(Action::Stop);
        }
    }
}
