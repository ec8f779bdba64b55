//! What holds whatever the facts are.

use policy::{
    Action, Balloon, Curve, Facts, HostFacts, MemoryState, Reason, Settings, VmFacts, VmVerdict,
    decide,
};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn curves() -> impl Strategy<Value = Option<Curve>> {
    let steps = prop::collection::vec((1..64u64, 0.0..50.0f64), 1..12);
    prop::option::of(steps.prop_map(|steps| {
        let mut size = 0;
        let mut misses: f64 = steps.iter().map(|(_, saved)| saved).sum();
        let points = steps.into_iter().map(|(mib, saved)| {
            size += mib * MIB;
            misses = (misses - saved).max(0.0);
            (size, misses)
        });
        Curve::new(points.collect()).expect("a curve")
    }))
}

fn vms() -> impl Strategy<Value = VmFacts> {
    let floor = prop_oneof![Just(0.0), 0.0..=1.0f64];
    let sizes =
        (1..2048u64, 0.0..=1.0f64, 0.0..=0.5f64, 0.0..=1.0f64, 0.0..=1.2f64, 0.0..=1.0f64, floor);
    (sizes, 1..10_000u32, any::<bool>(), curves()).prop_map(|(sizes, shares, works, curve)| {
        let (memory, limit, reserved, resident, active, asked, floor) = sizes;
        let memory = memory * MIB;
        let part = |part: f64| (memory as f64 * part) as u64;
        let limit = part(limit);
        VmFacts {
            name: String::new(),
            shares,
            reservation: (limit as f64 * reserved) as u64,
            limit,
            memory,
            overhead: 8 * MIB,
            resident: part(resident),
            active: part(active),
            unreclaimable: part(resident * floor),
            balloon: Balloon { works, asked: part(asked), held: 0 },
            curve,
        }
    })
}

/// Of a host that has what it has promised.
fn facts() -> impl Strategy<Value = Facts> {
    let states = prop::sample::select(MemoryState::ALL.to_vec());
    (prop::collection::vec(vms(), 1..8), 0.0..2.0f64, 0.0..=1.0f64, states).prop_map(
        |(mut vms, more, free, state)| {
            for (index, vm) in vms.iter_mut().enumerate() {
                vm.name = format!("vm{index}");
            }
            let needed: u64 = vms.iter().map(|vm| vm.reservation + vm.overhead).sum();
            // With what is to stay free.
            let limit = ((needed + MIB) as f64 * (1.1 + more)) as u64;
            let free = (limit as f64 * free * free) as u64;
            Facts { host: HostFacts { limit, free, state }, vms }
        },
    )
}

fn settings() -> impl Strategy<Value = Settings> {
    (0.0..=0.99f64, any::<bool>(), 0.0..0.1f64).prop_map(|(tax, curves, slack)| Settings {
        tax,
        curves,
        slack,
        ..Settings::default()
    })
}

/// By shares and tax, or by its curve.
fn due(decided: &VmVerdict) -> u64 {
    decided.by_curve.unwrap_or(decided.published)
}

/// Two guests of 200 MiB that use all of it, on a host that has 260 for them: one is at the edge of its working set, the
/// other one scans more than it could ever have.
#[test]
fn memory_goes_where_misses_are_saved() {
    let curve = |points: &[(u64, f64)]| {
        let points = points.iter().map(|(mib, misses)| (mib * MIB, *misses));
        Curve::new(points.collect()).expect("a curve")
    };
    let fits = curve(&[(0, 2000.0), (180, 10.0), (200, 0.0)]);
    let scans = curve(&[(0, 500.0), (40, 400.0), (200, 380.0)]);
    let host = HostFacts { limit: 280 * MIB, free: 4 * MIB, ..HostFacts::default() };
    let facts = Facts { host, vms: vec![with_curve("fits", &fits), with_curve("scans", &scans)] };
    let [published, by_curves] = [false, true].map(|curves| {
        let settings = Settings { curves, ..Settings::default() };
        let verdict = decide(&facts, &settings).expect("facts that can be");
        let misses = fits.misses(verdict.vms[0].target) + scans.misses(verdict.vms[1].target);
        (verdict, misses)
    });
    assert_eq!(published.0.vms[0].target, published.0.vms[1].target);
    assert!(by_curves.0.vms[0].target >= 180 * MIB, "{:?}", by_curves.0);
    assert!(by_curves.1 < 0.6 * published.1, "{} of {}", by_curves.1, published.1);
    // What the last pages save is shown by either.
    assert!(published.0.vms[0].marginal > by_curves.0.vms[0].marginal);
}

/// One that uses all of its 200 MiB.
fn with_curve(name: &str, curve: &Curve) -> VmFacts {
    VmFacts {
        name: name.to_owned(),
        limit: 200 * MIB,
        memory: 200 * MIB,
        resident: 200 * MIB,
        active: 200 * MIB,
        balloon: Balloon { works: true, ..Balloon::default() },
        curve: Some(curve.clone()),
        ..VmFacts::default()
    }
}

/// What some are due and do not have.
fn with_spare() -> Facts {
    let vm = |name: &str, resident: u64, left: u64| VmFacts {
        name: name.to_owned(),
        limit: 512 * MIB,
        memory: 512 * MIB,
        resident: resident * MIB,
        active: 16 * MIB,
        balloon: Balloon { works: true, asked: (512 - left) * MIB, held: (512 - left) * MIB },
        ..VmFacts::default()
    };
    let vms = vec![vm("pressed", 325, 328), vm("one", 170, 335), vm("other", 100, 335)];
    let host = HostFacts { limit: 1000 * MIB, free: 405 * MIB, ..HostFacts::default() };
    Facts { host, vms }
}

/// Its guest takes what it is given.
fn act(facts: &mut Facts, verdict: &policy::Verdict, index: usize) {
    for (vm, decided) in facts.vms.iter_mut().zip(&verdict.vms) {
        vm.balloon.asked = vm.memory - decided.target;
        vm.resident = vm.resident.min(decided.target);
    }
    facts.vms[index].resident = verdict.vms[index].target;
    let used: u64 = facts.vms.iter().map(|vm| vm.resident).sum();
    facts.host.free = facts.host.limit.saturating_sub(used);
    facts.host.state = verdict.state;
}

#[test]
fn what_nobody_has_is_lent_to_who_is_pressed_and_only_what_others_need_is_taken_back() {
    let mut facts = with_spare();
    let settings = Settings::default();
    let decided = |facts: &Facts| decide(facts, &settings).expect("facts that can be");
    let verdict = decided(&facts);
    assert_eq!(verdict.state, MemoryState::High);
    let targets: Vec<u64> = verdict.vms.iter().map(|vm| vm.target / MIB).collect();
    assert_eq!(targets, [325 + 32, 335, 335]);
    for _ in 0..6 {
        let verdict = decided(&facts);
        act(&mut facts, &verdict, 0);
    }
    assert_eq!(facts.vms[0].resident, 512 * MIB);

    // The others grow until balloons are needed, and then by a little more at each look.
    facts.vms[1].resident += 165 * MIB;
    let mut has = 512;
    for _ in 0..12 {
        facts.vms[2].resident += 8 * MIB;
        facts.host.free = 1000 * MIB - facts.vms.iter().map(|vm| vm.resident).sum::<u64>();
        let verdict = decided(&facts);
        act(&mut facts, &verdict, 0);
        let now = facts.vms[0].resident / MIB;
        assert!(now <= has && has - now <= 100, "{now} of {has}: {verdict:?}");
        assert!(facts.host.free >= 25 * MIB, "{facts:?}");
        has = now;
    }
    assert!((350..450).contains(&has), "{has}");
}

/// A guest that does nothing but look for memory touches little.
#[test]
fn what_a_guest_cannot_give_is_not_idle() {
    let mut facts = with_spare();
    facts.vms[0].unreclaimable = 312 * MIB;
    (facts.host.limit, facts.host.free) = (700 * MIB, 50 * MIB);
    let settings = Settings::default();
    let verdict = decide(&facts, &settings).expect("facts that can be");
    // With 32 MiB for the files that it works with; the others have the rest.
    let due = |index: usize| verdict.vms[index].published / MIB;
    assert!(due(0) >= 344 && due(1) < 160, "{verdict:?}");

    // Due less than that, since others use all and there are more of them: its balloon leaves it what it has of it.
    facts.vms.iter_mut().for_each(|vm| vm.active = 400 * MIB);
    facts.host.free = 20 * MIB;
    let verdict = decide(&facts, &settings).expect("facts that can be");
    assert_eq!(verdict.state, MemoryState::Soft);
    let (pressed, other) = (&verdict.vms[0], &verdict.vms[1]);
    assert!(pressed.published < 230 * MIB, "{verdict:?}");
    assert_eq!(pressed.target, 328 * MIB, "{verdict:?}");
    assert!(other.target < 240 * MIB, "{verdict:?}");
    // The host takes it by other means, if it must.
    facts.host.free = 10 * MIB;
    let verdict = decide(&facts, &settings).expect("facts that can be");
    assert_eq!((verdict.state, verdict.vms[0].target), (MemoryState::Hard, 328 * MIB));
    assert_eq!(verdict.vms[0].reason, Reason::Floor);
    assert!(matches!(verdict.vms[0].actions[..], [Action::Reclaim(bytes)] if bytes >= 30 * MIB));
}

/// Nobody has more than another for being named first.
#[test]
fn who_are_worth_the_same_have_the_same() {
    let curve = Curve::new(vec![(0, 900.0), (200 * MIB, 100.0)]).expect("a curve");
    let host = HostFacts { limit: 280 * MIB, free: 4 * MIB, ..HostFacts::default() };
    let facts = Facts { host, vms: vec![with_curve("one", &curve), with_curve("two", &curve)] };
    let verdict = decide(&facts, &Settings::default()).expect("facts that can be");
    let [one, two] = [0, 1].map(|index| verdict.vms[index].target);
    assert!(one.abs_diff(two) <= policy::GRAIN, "{one} {two}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn nothing_is_given_twice_and_reservations_hold(facts in facts(), settings in settings()) {
        let verdict = decide(&facts, &settings).expect("facts that can be");
        let mut sum = 0;
        for (vm, verdict) in facts.vms.iter().zip(&verdict.vms) {
            prop_assert!(verdict.target >= vm.reservation, "{vm:?} {verdict:?}");
            prop_assert!(verdict.target <= vm.limit, "{vm:?} {verdict:?}");
            prop_assert!(verdict.published >= vm.reservation);
            sum += verdict.target;
        }
        // In better states what some are due and do not have is lent to others, and nobody has less than it can work with.
        let floors = facts.vms.iter().any(|vm| vm.unreclaimable > 0);
        if verdict.state == MemoryState::Low || verdict.state == MemoryState::Hard && !floors {
            prop_assert!(sum <= verdict.supply, "{sum} of {}", verdict.supply);
        }
        let published: u64 = verdict.vms.iter().map(|vm| vm.published).sum();
        prop_assert!(published <= verdict.supply);
    }

    #[test]
    fn what_is_taken_is_there_and_over_the_target(facts in facts(), settings in settings()) {
        let verdict = decide(&facts, &settings).expect("facts that can be");
        for (vm, decided) in facts.vms.iter().zip(&verdict.vms) {
            for action in &decided.actions {
                prop_assert!(verdict.state > MemoryState::High);
                match action {
                    Action::Reclaim(bytes) => {
                        prop_assert!(*bytes > 0 && decided.target.min(due(decided)) + bytes <= vm.resident);
                        prop_assert!(!vm.balloon.works || verdict.state >= MemoryState::Hard);
                    }
                    Action::Stop => prop_assert_eq!(verdict.state, MemoryState::Low),
                }
            }
        }
    }

    /// A hostile guest can say of itself what it wants: that it uses all, misses at every size, gives nothing.
    #[test]
    fn who_uses_all_has_its_share_whatever_others_say(facts in facts(), settings in settings()) {
        let mut facts = facts;
        // Without what keeps a target where it is almost.
        let settings = Settings { slack: 0.0, ..settings };
        facts.vms.iter_mut().for_each(|vm| vm.reservation = 0);
        facts.vms[0].active = facts.vms[0].memory;
        let verdict = decide(&facts, &settings).expect("facts that can be");
        let shares: u64 = facts.vms.iter().map(|vm| u64::from(vm.shares)).sum();
        let (vm, decided) = (&facts.vms[0], &verdict.vms[0]);
        let part = verdict.supply as f64 * f64::from(vm.shares) / shares as f64;
        let due = (part as u64).min(vm.limit);
        prop_assert!(decided.published + policy::GRAIN >= due, "{} of {due}", decided.published);
        // Curves reach half of that.
        prop_assert!(decided.target + policy::GRAIN >= due / 2, "{} of {due}", decided.target);
    }

    #[test]
    fn more_shares_are_not_less_memory(facts in facts(), settings in settings(), more in 1..10_000u32) {
        let before = decide(&facts, &settings).expect("facts that can be");
        let mut facts = facts;
        facts.vms[0].shares += more;
        let after = decide(&facts, &settings).expect("facts that can be");
        // To the grain by which it is rounded.
        prop_assert!(after.vms[0].published + policy::GRAIN >= before.vms[0].published);
        if let (Some(before), Some(after)) = (before.vms[0].by_curve, after.vms[0].by_curve) {
            prop_assert!(after + 8 * policy::GRAIN >= before, "{before} {after}");
        }
    }

    /// Guests do what they are asked, and use what they used: after some steps nothing moves any more. (Who has few shares
    /// takes what is lent to him in many, where one with many shares could have it, too, and does not take it.)
    #[test]
    fn constant_facts_come_to_rest(facts in facts(), settings in settings()) {
        let mut facts = facts;
        for vm in &mut facts.vms {
            vm.balloon.works = true;
        }
        let step = |facts: &mut Facts| {
            let verdict = decide(facts, &settings).expect("facts that can be");
            let mut used = 0;
            for (vm, verdict) in facts.vms.iter_mut().zip(&verdict.vms) {
                vm.balloon.asked = vm.memory - verdict.target;
                vm.resident = vm.resident.min(verdict.target).max(vm.active.min(verdict.target));
                used += vm.resident + vm.overhead;
            }
            facts.host.free = facts.host.limit.saturating_sub(used);
            facts.host.state = verdict.state;
            verdict
        };
        for _ in 0..400 {
            step(&mut facts);
        }
        let (before, after) = (step(&mut facts), step(&mut facts));
        let targets = |verdict: &policy::Verdict| -> Vec<u64> {
            verdict.vms.iter().map(|vm| vm.target).collect()
        };
        prop_assert_eq!(targets(&before), targets(&after));
        prop_assert_eq!(before.state, after.state);
    }

    #[test]
    fn a_verdict_is_replayed_from_its_log(facts in facts(), settings in settings()) {
        let verdict = decide(&facts, &settings).expect("facts that can be");
        let line = serde_json::to_string(&(&facts, &settings)).expect("a line");
        let (facts, settings): (Facts, Settings) = serde_json::from_str(&line).expect("the same");
        prop_assert_eq!(decide(&facts, &settings).expect("facts that can be"), verdict);
    }
}
