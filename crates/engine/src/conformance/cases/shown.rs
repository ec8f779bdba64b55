//! A processor that a guest was shown elsewhere, which has less than the one here.

use x86::VcpuState;
use x86::model::{CpuModel, Difference, FEATURES, Processor, Shown};

use super::moves::{WAIT, moved_showing, state_at_wait, write_wait};
use super::prelude::*;

moves!("shown": other_vcpus, vectors, vectors_without_xsave);

/// x87 and SSE: what a processor without XSAVE has by FXSAVE.
const LEGACY: u64 = 3;

/// The engine's own, without XSAVE and what needs it.
fn smaller(engine: &dyn Engine, vcpus: u32) -> Processor {
    let mut processor = Rig::showing(CpuModel::Common, engine, vcpus).vcpus[0].processor().clone();
    let mut without = vec!["xsave"];
    let mut at = 0;
    while at < without.len() {
        let name = without[at];
        let need_it = FEATURES.iter().filter(|feature| feature.needs.contains(&name));
        without.extend(need_it.map(|feature| feature.name));
        at += 1;
    }
    for feature in FEATURES.iter().filter(|feature| without.contains(&feature.name)) {
        processor.cpuid.clear(feature.at);
    }
    processor.cpuid.leaves.retain(|leaf| leaf.function != 0xd);
    processor
}

/// Each vCPU shows that processor, and is who it is; where it cannot be shown, it is known why.
fn other_vcpus(from: &dyn Engine, to: &dyn Engine) {
    let shown = smaller(from, 2);
    for (engine, is_there) in [(from, false), (to, true)] {
        let rig = Rig::showing(Shown::Elsewhere(shown.clone()), engine, 2);
        let differences = rig.vcpus[0].differences(&shown).expect("told");
        if is_there && differences.iter().any(Difference::is_fatal) {
            assert_ne!(rig.vcpus[0].processor(), &shown);
            continue;
        }
        assert_eq!(rig.vcpus[0].processor(), &shown);
        let second = rig.vcpus[1].processor();
        assert_eq!(second.cpuid.registers(1, 0)[1] >> 24, 1);
        assert_eq!(second.of_vcpu(0), shown);
    }
}

/// x87 and SSE registers go to another machine and come back, whatever the processor.
fn vectors(from: &dyn Engine, to: &dyn Engine) {
    go_and_come_back(CpuModel::Common.into(), from, to);
}

/// The same of a processor without XSAVE, of which no state has more.
fn vectors_without_xsave(from: &dyn Engine, to: &dyn Engine) {
    let shown = Shown::Elsewhere(smaller(from, 1));
    let (mut rig, mut state) = go_and_come_back(shown, from, to);
    assert_eq!(components(&state), LEGACY);
    assert!(state.xstate[576..].iter().all(|byte| *byte == 0));
    // What the processor does not have is refused by name.
    state.xstate[512] |= 4;
    let refused = rig.vcpus[0].set_state(&state).expect_err("it has no AVX").to_string();
    assert!(refused.contains("xstate components") && refused.contains("0x4"), "{refused}");
}

fn go_and_come_back(shown: Shown, from: &dyn Engine, to: &dyn Engine) -> (Rig, VcpuState) {
    let mut rig = Rig::showing(shown.clone(), from, 1);
    rig.load_payload(CODE, |a| {
        a.movups(xmm9, xmmword_ptr(DATA))?;
        a.fld(qword_ptr(DATA + 16))?;
        a.jmp(WAIT)
    });
    // It stores what it has, and waits again.
    rig.load(CODE1, |a| {
        a.movups(xmmword_ptr(DATA + 32), xmm9)?;
        a.fst(qword_ptr(DATA + 48))?;
        a.jmp(WAIT)
    });
    write_wait(&rig);
    let bytes: Vec<u8> = (0..16).map(|byte| byte ^ 0x5a).collect();
    rig.write(DATA, &bytes);
    rig.set_word(DATA + 16, 1.25f64.to_bits());
    let mut state = state_at_wait(&mut rig);
    for engine in [to, from] {
        // Without its bit a processor takes a component for being in its initial state (SDM volume 1, 13.8).
        assert_eq!(components(&state) & LEGACY, LEGACY);
        rig.write(DATA + 32, &[0; 32]);
        state.rip = CODE1;
        rig = moved_showing(shown.clone(), engine, &rig, &state);
        state = state_at_wait(&mut rig);
        assert_eq!(rig.bytes(DATA + 32, 16), bytes);
        assert_eq!(f64::from_bits(rig.word(DATA + 48)), 1.25);
    }
    (rig, state)
}

/// XSTATE_BV.
fn components(state: &VcpuState) -> u64 {
    u64::from_le_bytes(state.xstate[512..520].try_into().expect("8 bytes"))
}
