//! What `deviations/list.txt` says of the lab's processor, shown on that processor without KVM. Where QEMU is
//! not installed, this says so, loudly.

mod bare;
mod deviations;

use std::sync::Arc;

use bare::Bare;
use deviations::Kind;
use engine::conformance::layout::Gate;
use engine::conformance::record::Fault;
use engine::conformance::rig::Rig;
use x86::{Event, Exception, Vector};

/// Topics whose other cases a bare processor passes, so that it is known to work.
const PASSED: [&str; 2] = ["double_fault", "segments"];

fn is_testable() -> bool {
    let there = Bare::is_there();
    if !there {
        eprintln!("NOT TESTED: deviations of QEMU's translator: apt-get install qemu-system-x86");
    }
    there
}

#[test]
fn listed_cases_fail_without_kvm_and_others_do_not() {
    if !is_testable() {
        return;
    }
    let mut expected: Vec<_> = deviations::all();
    expected.retain(|deviation| deviation.kind == Kind::Bare);
    for deviation in &expected {
        println!("deviates {}: {}", deviation.case, deviation.why);
    }
    let listed = |case: &str| expected.iter().any(|deviation| deviation.case == case);
    let other = |case: &str| PASSED.contains(&case.split('/').next().unwrap_or_default());
    let report = engine::conformance::run(Arc::new(Bare), |case| listed(case) || other(case));
    let mut failed: Vec<_> = report.failures.iter().map(|(case, _)| *case).collect();
    failed.sort_unstable();
    let mut expected: Vec<_> = expected.iter().map(|deviation| deviation.case).collect();
    expected.sort_unstable();
    assert_eq!(failed, expected, "{:#?}", report.failures);
}

/// #DE by VMRUN, whose gate is not present: a double fault (SDM volume 3, table 6-5), but #NP here.
#[test]
fn an_injected_exception_is_no_first_one() {
    if !is_testable() {
        return;
    }
    let mut rig = Rig::with(&Bare, iced_x86::code_asm::CodeAssembler::nop);
    rig.set_gate(0, Gate { present: false, ..Gate::stub(0) });
    let mut state = Rig::state(0, rig.vcpus[0].state().expect("state"));
    state.event =
        Some(Event::Exception(Exception { vector: Vector::DE, error_code: 0, address: 0 }));
    // Where the stub goes on.
    state.gpr[x86::Gpr::R15 as usize] = state.rip;
    rig.vcpus[0].set_state(&state).expect("set state");
    let vectors: Vec<_> = rig.run().faults().iter().map(|fault: &Fault| fault.vector).collect();
    assert_eq!(vectors, [Vector::NP.0]);
}
