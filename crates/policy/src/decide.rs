//! The verdict: who gets how much, what is taken by which means, and why.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::facts::{Facts, FactsError, Settings, VmFacts};
use crate::state::MemoryState;
use crate::targets;

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
    /// What its guest is to have. Its balloon is to hold the rest of its memory.
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
    let chosen = choose(vms, &wanted, state, supply, settings);
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
    take(facts, settings, state, &mut verdicts);
    Ok(Verdict { state, supply, vms: verdicts })
}

/// The targets: what is wanted, where that is worth a change and allowed in this state.
fn choose(
    vms: &[VmFacts],
    wanted: &[u64],
    state: MemoryState,
    supply: u64,
    settings: &Settings,
) -> Vec<u64> {
    let pairs = || vms.iter().zip(wanted.iter().copied());
    if state == MemoryState::High {
        // Balloons give back, and take nothing.
        return pairs().map(|(vm, wanted)| wanted.max(vm.left())).collect();
    }
    let kept = |vm: &VmFacts, wanted: u64| {
        let differs = vm.left().abs_diff(wanted) as f64;
        if differs <= settings.slack * vm.limit as f64 {
            vm.left().max(vm.reservation)
        } else {
            wanted
        }
    };
    let all: Vec<u64> = pairs().map(|(vm, wanted)| kept(vm, wanted)).collect();
    if all.iter().sum::<u64>() <= supply {
        return all;
    }
    // What is kept must not add up to more than there is.
    pairs().map(|(vm, wanted)| kept(vm, wanted).min(wanted)).collect()
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
    if target != wanted {
        return Reason::Kept;
    }
    if wanted != published {
        return Reason::Curve { more: wanted.wrapping_sub(published).cast_signed() };
    }
    if target == vm.reservation {
        return Reason::Reservation;
    }
    if target > vm.active && settings.tax > 0.0 && vm.idle() > 0.0 {
        return Reason::Idle { part: vm.idle(), costs: 1.0 / (1.0 - settings.tax) };
    }
    Reason::Shares
}

/// What balloons do not do: where there is none that works; or all of it, when there is no time to wait for them.
fn take(facts: &Facts, settings: &Settings, state: MemoryState, verdicts: &mut [VmVerdict]) {
    if state == MemoryState::High {
        return;
    }
    let host = facts.host;
    let over = |vm: &VmFacts, verdict: &VmVerdict| vm.resident.saturating_sub(verdict.target);
    // So much makes the state soft again; the balloons do the rest.
    let mut needed = match state {
        MemoryState::High | MemoryState::Soft => 0,
        MemoryState::Hard | MemoryState::Low => {
            settings.thresholds.reserve(host.limit).saturating_sub(host.free)
        }
    };
    let mut order: Vec<usize> = (0..verdicts.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(over(&facts.vms[index], &verdicts[index])));
    for index in order {
        let vm = &facts.vms[index];
        let over = over(vm, &verdicts[index]);
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
