//! Model-specific registers: each that the model lists, and those that are not there.

use x86::cpuid::Table;
use x86::model::{FEATURES, Kind, MSRS, MsrRule, feature, is_amd, msr_rule, saved_msrs};
use x86::{Msr, msr};

use super::prelude::*;
use crate::error::EngineError;

cases!(
    "msrs": values_at_reset, written_and_read, saved_and_loaded, constants, refused_values, unknown,
    hidden, tsc_adjust, nothing_is_lost,
);

/// The leaves with feature bits, as a payload sees them.
fn table(engine: &dyn Engine) -> Table {
    let mut table = Table::default();
    let mut places: Vec<_> = FEATURES.iter().map(|row| (row.at.function, row.at.index)).collect();
    places.push((0, 0));
    places.sort_unstable();
    places.dedup();
    for (function, index) in places {
        table.put(function, index, cpuid(engine, function, index));
    }
    table
}

fn present(engine: &dyn Engine) -> Vec<&'static MsrRule> {
    let table = table(engine);
    MSRS.iter().filter(|rule| rule.is_present(&table)).collect()
}

/// Those that are the same on every host.
fn is_fixed(rule: &MsrRule) -> bool {
    !matches!(rule.first, msr::TSC | msr::BIOS_SIGN_ID | msr::ARCH_CAPABILITIES)
        && matches!(rule.kind, Kind::Saved | Kind::Constant)
        // A hypervisor above KVM may keep AMD's to itself.
        && !matches!(rule.first, msr::HWCR | msr::DE_CFG | msr::DEBUGCTL)
}

/// Reads all of `indices` and logs them.
fn log_all(a: &mut CodeAssembler, indices: &[u32]) -> Asm {
    for &index in indices {
        a.read_msr(index)?;
        a.log_rax()?;
    }
    Ok(())
}

fn pairs(log: &[u32]) -> Vec<u64> {
    log.chunks_exact(2).map(|half| u64::from(half[0]) | u64::from(half[1]) << 32).collect()
}

fn assert_values(indices: &[u32], found: &[u64], expected: &[u64]) {
    assert_eq!(found.len(), expected.len());
    for ((index, found), expected) in indices.iter().zip(found).zip(expected) {
        assert_eq!(found, expected, "msr {index:#x}: {found:#x}, expected {expected:#x}");
    }
}

fn values_at_reset(engine: &dyn Engine) {
    let rules: Vec<_> = present(engine).into_iter().filter(|rule| is_fixed(rule)).collect();
    let indices: Vec<_> = rules.iter().flat_map(|rule| rule.indices()).collect();
    let expected: Vec<_> =
        rules.iter().flat_map(|rule| rule.indices().map(|_| rule.reset_of(0))).collect();
    let mut rig = Rig::with(engine, |a| log_all(a, &indices));
    assert_values(&indices, &pairs(&rig.run().log), &expected);
}

/// A value that a guest can write, and another than after a reset; `None` where there is none.
pub(super) fn sample(index: u32, amd: bool) -> Option<u64> {
    const WRITE_BACK: u64 = 0x0606_0606_0606_0606;
    Some(match index {
        msr::TSC_ADJUST => 0x10_0000_0000,
        // IBRS, which every processor with the register has.
        msr::SPEC_CTRL => 1,
        msr::SYSENTER_CS => 0x10,
        // AMD's have 32 bits: SYSENTER is not there in long mode (APM volume 2, 6.1.2).
        msr::SYSENTER_ESP | msr::SYSENTER_EIP if amd => 0x8000_3000,
        msr::SYSENTER_ESP | msr::SYSENTER_EIP => 0xffff_8000_0000_3000,
        msr::MISC_ENABLE => 0,
        msr::MTRR_DEF_TYPE => 0xc06,
        msr::MTRR_FIX64K..msr::PAT => WRITE_BACK - u64::from(index & 1),
        msr::MTRR_VARIABLE..msr::MTRR_FIX64K if index & 1 == 0 => 0x8000_0001,
        msr::MTRR_VARIABLE..msr::MTRR_FIX64K => 0x8_0000_0800 + u64::from(index) * 0x1000,
        msr::PAT => 0x0007_0105_0600_0406,
        msr::STAR => 0x0023_0010_0000_0000,
        msr::LSTAR | msr::CSTAR => 0xffff_8000_0000_1000 + u64::from(index),
        msr::SFMASK => 0x4_7700,
        msr::KERNEL_GS_BASE => 0xffff_8888_0000_0000,
        msr::TSC_AUX => 0x1001,
        msr::KVM_SYSTEM_TIME_NEW => DATA | 1,
        _ => return None,
    })
}

fn samples(engine: &dyn Engine) -> (Vec<u32>, Vec<u64>) {
    let table = table(engine);
    let amd = is_amd(&table);
    saved_msrs(&table).into_iter().filter_map(|index| Some((index, sample(index, amd)?))).unzip()
}

fn written_and_read(engine: &dyn Engine) {
    let (indices, values) = samples(engine);
    let mut rig = Rig::with(engine, |a| {
        for (&index, &value) in indices.iter().zip(&values) {
            a.write_msr(index, value)?;
        }
        log_all(a, &indices)
    });
    assert_values(&indices, &pairs(&rig.run().log), &values);
    let state = rig.vcpus[0].state().expect("state");
    let saved = |index: &u32| state.msrs.iter().find(|entry| entry.index == *index);
    let found: Vec<_> = indices.iter().filter_map(saved).map(|entry| entry.value).collect();
    assert_values(&indices, &found, &values);
}

fn saved_and_loaded(engine: &dyn Engine) {
    let (indices, values) = samples(engine);
    let mut rig = Rig::with(engine, |a| log_all(a, &indices));
    let mut state = Rig::state(0, rig.vcpus[0].state().expect("state"));
    let msrs = indices.iter().zip(&values).map(|(&index, &value)| Msr { index, value });
    state.msrs = msrs.collect();
    rig.vcpus[0].set_state(&state).expect("set state");
    assert_values(&indices, &pairs(&rig.run().log), &values);
}

/// Writes `cases` one after the other, and expects #GP each time.
fn assert_refused(engine: &dyn Engine, cases: &[(u32, u64)]) {
    let mut rig = Rig::with(engine, |a| {
        for &(index, value) in cases {
            a.mov(eax, value as u32)?;
            a.mov(edx, (value >> 32) as u32)?;
            a.mov(ecx, index)?;
            a.fault(|a| a.wrmsr())?;
        }
        Ok(())
    });
    let faults = rig.run().faults();
    assert_eq!(faults, vec![Fault::new(Vector::GP); cases.len()], "{cases:x?}");
}

fn constants(engine: &dyn Engine) {
    let constant = |rule: &&MsrRule| {
        rule.kind == Kind::Constant
            && matches!(rule.first, msr::MTRR_CAP | msr::ARCH_CAPABILITIES | msr::PLATFORM_INFO)
    };
    let cases: Vec<_> =
        present(engine).iter().filter(|r| constant(r)).map(|r| (r.first, 0)).collect();
    assert_refused(engine, &cases);
}

fn refused_values(engine: &dyn Engine) {
    let saved = saved_msrs(&table(engine));
    let mut cases = vec![
        (msr::APIC_BASE, 0xfee0_0d01),
        (msr::APIC_BASE, 1 << 60),
        (msr::MISC_FEATURES_ENABLES, 1),
        (msr::PAT, 0x0007_0406_0007_0402),
        (msr::PAT, 8 << 56),
        (msr::MTRR_DEF_TYPE, 0x802),
        (msr::MTRR_DEF_TYPE, 0x1000),
        (msr::MTRR_VARIABLE, 0x8000_0107),
        (msr::MTRR_VARIABLE, 1 << 63),
        (msr::MTRR_VARIABLE + 1, 0x400),
        (msr::MTRR_FIX64K, 2),
        (msr::MTRR_FIX4K + 7, 7 << 56),
        (msr::SPEC_CTRL, 1 << 63),
    ];
    cases.retain(|(index, _)| {
        saved.contains(index) || msr_rule(*index).is_some_and(|rule| rule.kind == Kind::Constant)
    });
    assert_refused(engine, &cases);
}

/// Numbers that no processor here has: #GP to read, #GP to write.
fn unknown(engine: &dyn Engine) {
    refused_both_ways(engine, &[0x1234_5678, 0x210, 0x24f, 0xc000_0200, 0x4b56_4dff, u32::MAX]);
}

/// Registers of features that the model hides.
fn hidden(engine: &dyn Engine) {
    let table = table(engine);
    let has = |name: &str| feature(name).is_some_and(|feature| table.has(feature.at));
    let mut gone = vec![
        // IA32_UMWAIT_CONTROL, IA32_TSX_CTRL, IA32_BNDCFGS, IA32_XFD.
        0xe1, 0x122, 0xd90, 0x1c4,
    ];
    for (name, index) in [("xsaves", msr::XSS), ("kvm_clocksource", msr::KVM_SYSTEM_TIME_NEW)] {
        if !has(name) {
            gone.push(index);
        }
    }
    if has("hypervisor") {
        // KVM's old clock, asynchronous page faults, steal time.
        gone.extend([0x11, 0x12, 0x4b56_4d02, 0x4b56_4d03]);
    }
    refused_both_ways(engine, &gone);
}

fn refused_both_ways(engine: &dyn Engine, indices: &[u32]) {
    let mut rig = Rig::with(engine, |a| {
        for &index in indices {
            a.mov(ecx, index)?;
            a.fault(|a| a.rdmsr())?;
            a.xor(eax, eax)?;
            a.xor(edx, edx)?;
            a.mov(ecx, index)?;
            a.fault(|a| a.wrmsr())?;
        }
        Ok(())
    });
    let faults = rig.run().faults();
    assert_eq!(faults, vec![Fault::new(Vector::GP); indices.len() * 2], "{indices:x?}");
}

/// IA32_TSC_ADJUST is what has been added to the TSC by writes to either (SDM volume 3, 18.17.3).
fn tsc_adjust(engine: &dyn Engine) {
    const STEP: u64 = 1 << 48;
    if !table(engine).has(feature("tsc_adjust").expect("listed").at) {
        skip("no TSC_ADJUST");
    }
    let mut rig = Rig::with(engine, |a| {
        a.write_msr(msr::TSC_ADJUST, STEP)?;
        log_all(a, &[msr::TSC])?;
        a.write_msr(msr::TSC, STEP * 3)?;
        log_all(a, &[msr::TSC, msr::TSC_ADJUST])?;
        a.write_msr(msr::TSC_ADJUST, 0)?;
        log_all(a, &[msr::TSC])
    });
    let log = pairs(&rig.run().log);
    let steps: Vec<_> = log.iter().map(|value| (value + STEP / 2) / STEP).collect();
    assert_eq!(steps, [1, 3, 3, 0], "{log:x?}");
}

/// A register that the processor does not have may be in a state with what it holds at reset; with another
/// value the state is refused.
fn nothing_is_lost(engine: &dyn Engine) {
    let mut rig = Rig::new(engine, 1);
    let fresh = Rig::state(0, rig.vcpus[0].state().expect("state"));
    let with = |index, value| {
        let mut state = fresh.clone();
        state.msrs.push(Msr { index, value });
        state
    };
    for (index, value) in [(0x1234_5678, 1), (0xd90, 0x1000)] {
        assert!(rig.vcpus[0].set_state(&with(index, 0)).is_ok(), "{index:#x}");
        let refused = rig.vcpus[0].set_state(&with(index, value));
        assert!(matches!(refused, Err(EngineError::State(_))), "{index:#x}: {refused:?}");
    }
}
