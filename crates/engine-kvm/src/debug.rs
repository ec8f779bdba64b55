//! A debugger's stops as KVM_SET_GUEST_DEBUG takes them.

use engine::{BreakOn, DebugControl, EngineError, HardwareBreakpoint};
use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP,
    KVM_GUESTDBG_USE_SW_BP, kvm_guest_debug,
};

/// Exact breakpoints, and bit 10, which reads as one (SDM volume 3, 18.2.4).
const DR7_FIXED: u64 = 1 << 9 | 1 << 10;

/// What to ask of KVM.
pub(crate) fn request(control: &DebugControl) -> Result<kvm_guest_debug, EngineError> {
    let mut asked = kvm_guest_debug::default();
    if !control.is_active() {
        return Ok(asked);
    }
    asked.control = KVM_GUESTDBG_ENABLE;
    if control.single_step {
        // Kernels before 5.16 do not know the second, and step into the handler of what waits.
        asked.control |= KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ;
    }
    if control.int3_stops {
        asked.control |= KVM_GUESTDBG_USE_SW_BP;
    }
    if control.breakpoints.iter().any(Option::is_some) {
        asked.control |= KVM_GUESTDBG_USE_HW_BP;
        asked.arch.debugreg[7] = DR7_FIXED;
    }
    for (index, breakpoint) in control.breakpoints.iter().enumerate() {
        if let Some(breakpoint) = breakpoint {
            asked.arch.debugreg[index] = breakpoint.address;
            asked.arch.debugreg[7] |= dr7(index, *breakpoint)?;
        }
    }
    Ok(asked)
}

/// The bits of DR7 for a breakpoint: local enable, kind, length.
fn dr7(index: usize, breakpoint: HardwareBreakpoint) -> Result<u64, EngineError> {
    let HardwareBreakpoint { address, on, size } = breakpoint;
    let length: u64 = match size {
        1 => 0,
        2 => 1,
        4 => 3,
        8 => 2,
        _ => {
            return Err(EngineError::Unsupported(format!(
                "a breakpoint of {size} bytes: 1, 2, 4 or 8"
            )));
        }
    };
    if !address.is_multiple_of(size.into()) || on == BreakOn::Execute && size != 1 {
        return Err(EngineError::Unsupported(format!(
            "a breakpoint of {size} bytes at {address:#x}: data must be aligned, code has size 1"
        )));
    }
    let kind: u64 = match on {
        BreakOn::Execute => 0,
        BreakOn::Write => 1,
        BreakOn::Access => 3,
    };
    Ok(1 << (2 * index) | (kind | length << 2) << (16 + 4 * index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breakpoints_become_debug_registers() {
        let mut control = DebugControl { int3_stops: true, ..DebugControl::default() };
        control.breakpoints[0] = Some(HardwareBreakpoint {
            address: 0xffff_8000_0000_1234,
            on: BreakOn::Execute,
            size: 1,
        });
        control.breakpoints[3] =
            Some(HardwareBreakpoint { address: 0x1000, on: BreakOn::Write, size: 8 });
        let asked = request(&control).expect("possible");
        let expected = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP | KVM_GUESTDBG_USE_HW_BP;
        assert_eq!(asked.control, expected);
        assert_eq!(asked.arch.debugreg[0], 0xffff_8000_0000_1234);
        assert_eq!(asked.arch.debugreg[3], 0x1000);
        assert_eq!(asked.arch.debugreg[7], 0x600 | 1 | 1 << 6 | 0b1001 << 28);
        assert_eq!(request(&DebugControl::default()).expect("possible").control, 0);
    }

    #[test]
    fn impossible_breakpoints_are_refused() {
        for (address, on, size) in [
            (0x1001, BreakOn::Write, 2),
            (0x1000, BreakOn::Access, 3),
            (0x1000, BreakOn::Execute, 4),
        ] {
            let mut control = DebugControl::default();
            control.breakpoints[1] = Some(HardwareBreakpoint { address, on, size });
            assert!(request(&control).is_err(), "{address:#x} {on:?} {size}");
        }
    }
}
