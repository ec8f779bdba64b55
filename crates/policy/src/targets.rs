//! How much memory each VM is to have.
//!
//! A VM that has P bytes, of which A are in use, pays for each page that it uses 1, for each idle one k = 1 / (1 - tax)
//! (OSDI 2002, section 5.1). Memory goes from who has the fewest shares for what it pays to who has the most, until all
//! have the same, λ to the share. So what a VM is to have follows from λ:
//!
//! ```text
//!   P                      _,-' slope 1/k: it pays for idle memory
//!   |               _,-'
//!   A  . . . . . .,'
//!   |          ,'   slope 1: all of it is in use
//!   0 -------'-------------------------- λ × shares
//! ```
//!
//! within its reservation and its limit; and λ is what makes all of them fit. The published policy has the fraction of
//! idle memory in place of A; that comes to the same where it rests, but A stays what it is while memory moves, so that
//! nothing overshoots.

use crate::curve::Curve;
use crate::facts::VmFacts;
use crate::{GRAIN, Settings};

/// What a VM may have by what is promised to it and to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) least: u64,
    pub(crate) most: u64,
}

impl Bounds {
    pub(crate) fn of(vm: &VmFacts) -> Self {
        Self { least: vm.reservation, most: vm.limit }
    }
}

/// Half of what a VM has by the published policy is its own whatever curves say: a guest that misses on purpose cannot
/// have more than the other half of its neighbours'.
const CURVES_REACH: u64 = 2;

/// By shares, reservations, limits and the tax, in the order of `vms`: in all at most `supply`, or all reservations.
pub(crate) fn published(vms: &[VmFacts], supply: u64, settings: &Settings) -> Vec<u64> {
    let bounds: Vec<Bounds> = vms.iter().map(Bounds::of).collect();
    fill(vms, &bounds, supply, settings.tax, has_all)
}

/// The same, but for VMs whose curve is known: among them memory goes where it saves the most misses, weighed by shares.
/// What saves none goes by shares and tax.
pub(crate) fn by_curves(
    vms: &[VmFacts],
    published: &[u64],
    supply: u64,
    settings: &Settings,
) -> Vec<u64> {
    let mut bounds: Vec<Bounds> = Vec::with_capacity(vms.len());
    for (vm, &published) in vms.iter().zip(published) {
        bounds.push(match vm.curve {
            // What it has is not touched, nor added to.
            None => Bounds { least: published, most: published },
            Some(_) => {
                // Nor what it could not give.
                let least = (published / CURVES_REACH).max(vm.floor().min(published));
                Bounds { least: vm.reservation.max(least), most: vm.limit }
            }
        });
    }
    let mut left = supply.saturating_sub(bounds.iter().map(|bounds| bounds.least).sum());
    let mut pieces = Vec::new();
    for (index, vm) in vms.iter().enumerate() {
        let Bounds { least, most } = bounds[index];
        let weight = f64::from(vm.shares);
        let of_vm = vm.curve.iter().flat_map(|curve: &Curve| curve.pieces(least, most));
        let worth = of_vm.filter(|piece| piece.saved > 0.0);
        pieces.extend(worth.map(|piece| (piece.saved * weight, index, piece.bytes)));
    }
    // Those of one VM are in order already, and stay so: the sort is stable and what they save falls.
    pieces.sort_by(|one, other| other.0.total_cmp(&one.0));
    // Who are worth the same have the same part of what is left.
    for same in pieces.chunk_by(|one, other| one.0.total_cmp(&other.0).is_eq()) {
        let wanted: u64 = same.iter().map(|(_, _, bytes)| bytes).sum();
        let given = wanted.min(left);
        for (_, index, bytes) in same {
            let part = u128::from(*bytes) * u128::from(given) / u128::from(wanted.max(1));
            bounds[*index].least += part as u64;
            left -= part as u64;
        }
    }
    fill(vms, &bounds, supply, settings.tax, has_all)
}

/// What each could have beyond what it is `due`, by shares and tax, while others do not have what they are due.
pub(crate) fn lent(vms: &[VmFacts], due: &[u64], supply: u64, settings: &Settings) -> Vec<u64> {
    let bounds = |(vm, due): (&VmFacts, &u64)| Bounds { least: *due, most: vm.limit };
    let bounds: Vec<Bounds> = vms.iter().zip(due).map(bounds).collect();
    // It may take no more before anybody looks again, and what it cannot give it keeps.
    let takes = |vm: &VmFacts, bytes: u64| {
        let keeps = vm.floor().min(vm.left()).min(vm.resident);
        bytes.min(vm.soon().max(vm.reservation)).max(keeps)
    };
    fill(vms, &bounds, supply, settings.tax, takes)
}

/// It has all that it is to have.
fn has_all(_: &VmFacts, bytes: u64) -> u64 {
    bytes
}

/// What each is to have where all have the same for their shares, within `bounds`. Who is to have so many bytes has `takes` of
/// them: those are what there is to give.
fn fill(
    vms: &[VmFacts],
    bounds: &[Bounds],
    supply: u64,
    tax: f64,
    takes: impl Fn(&VmFacts, u64) -> u64,
) -> Vec<u64> {
    let idle_costs = 1.0 / (1.0 - tax);
    let wants = |vm: &VmFacts, bounds: &Bounds, lambda: f64| {
        let (due, active) = (lambda * f64::from(vm.shares), vm.used() as f64);
        let has = if due <= active { due } else { active + (due - active) / idle_costs };
        // Not beyond what u64 has: a limit is below that.
        (has.min(bounds.most as f64) as u64).clamp(bounds.least, bounds.most)
    };
    let all =
        |lambda: f64| vms.iter().zip(bounds).map(move |(vm, bounds)| wants(vm, bounds, lambda));
    let taken =
        |lambda: f64| -> u64 { all(lambda).zip(vms).map(|(bytes, vm)| takes(vm, bytes)).sum() };
    let enough = |vm: &VmFacts| vm.limit as f64 * idle_costs / f64::from(vm.shares);
    let (mut low, mut high) = (0.0, vms.iter().map(enough).fold(1.0, f64::max));
    if taken(high) <= supply {
        low = high;
    }
    // As exact as a byte of the largest host: 2^52.
    for _ in 0..64 {
        let middle = low.midpoint(high);
        if taken(middle) <= supply { low = middle } else { high = middle }
    }
    let whole = |(bytes, bounds): (u64, &Bounds)| match bytes {
        limit if limit == bounds.most => limit,
        bytes => (bytes / GRAIN * GRAIN).max(bounds.least),
    };
    all(low).zip(bounds).map(whole).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn vm(shares: u32, limit: u64, active: u64) -> VmFacts {
        let (limit, active) = (limit * MIB, active * MIB);
        VmFacts { shares, limit, memory: limit, resident: limit, active, ..VmFacts::default() }
    }

    fn mib(targets: Vec<u64>) -> Vec<u64> {
        targets.into_iter().map(|bytes| bytes / MIB).collect()
    }

    fn with_tax(tax: f64) -> Settings {
        Settings { tax, ..Settings::default() }
    }

    /// OSDI 2002, figure 7: two VMs of 256 MB on a host that has 360 for them, one idle; the idle one keeps what the
    /// tax leaves it.
    #[test]
    fn a_tax_takes_from_who_is_idle() {
        let vms = [vm(1000, 256, 10), vm(1000, 256, 250)];
        assert_eq!(mib(published(&vms, 360 * MIB, &with_tax(0.0))), [180, 180]);
        assert_eq!(mib(published(&vms, 360 * MIB, &with_tax(0.75))), [104, 256]);
    }

    #[test]
    fn shares_reservations_and_limits_hold() {
        let vms = [vm(3000, 1000, 1000), vm(1000, 1000, 1000)];
        assert_eq!(mib(published(&vms, 1000 * MIB, &with_tax(0.75))), [750, 250]);
        let reserved = [vms[0].clone(), VmFacts { reservation: 400 * MIB, ..vms[1].clone() }];
        assert_eq!(mib(published(&reserved, 1000 * MIB, &with_tax(0.0))), [600, 400]);
        // More than there is: the reservations stay.
        assert_eq!(mib(published(&reserved, 100 * MIB, &with_tax(0.0))), [0, 400]);
        let limited = [VmFacts { limit: 300 * MIB, ..vms[0].clone() }, vms[1].clone()];
        assert_eq!(mib(published(&limited, 1000 * MIB, &with_tax(0.0))), [300, 700]);
        assert_eq!(mib(published(&limited, 4000 * MIB, &with_tax(0.99))), [300, 1000]);
        assert_eq!(published(&[], MIB, &with_tax(0.0)), []);
    }

    #[test]
    fn memory_goes_where_it_saves_misses() {
        let curve = |points: &[(u64, f64)]| {
            let points = points.iter().map(|(mib, misses)| (mib * MIB, *misses)).collect();
            Some(Curve::new(points).expect("a curve"))
        };
        let steep = VmFacts { curve: curve(&[(0, 9000.0), (300, 0.0)]), ..vm(1000, 400, 400) };
        let flat = VmFacts { curve: curve(&[(0, 10.0), (400, 9.0)]), ..vm(1000, 400, 400) };
        let unknown = vm(1000, 400, 400);
        let vms = [steep, flat, unknown];
        let settings = with_tax(0.75);
        let plain = published(&vms, 600 * MIB, &settings);
        assert_eq!(mib(plain.clone()), [200, 200, 200]);
        // The flat one keeps half; the steep one has no use for more than 300.
        let targets = by_curves(&vms, &plain, 600 * MIB, &settings);
        assert_eq!(mib(targets), [300, 100, 200]);
        // It could not give more than 50.
        let full = VmFacts { unreclaimable: 125 * MIB, ..vms[1].clone() };
        let vms = [vms[0].clone(), full, vms[2].clone()];
        let targets = by_curves(&vms, &plain, 600 * MIB, &settings);
        assert_eq!(mib(targets), [250, 150, 200]);
    }
}
