//! Driving a vCPU from stop to stop, as a debugger does.

use super::layout::CODE;
use super::payload::{DONE, LOG};
use super::rig::Rig;
use crate::debug::{BreakOn, DebugControl, DebugStop, HardwareBreakpoint};
use crate::exit::Exit;

/// After each instruction.
pub const STEP: DebugControl =
    DebugControl { single_step: true, int3_stops: false, breakpoints: [None; 4] };
/// At each INT3.
pub const INT3: DebugControl =
    DebugControl { single_step: false, int3_stops: true, breakpoints: [None; 4] };

/// Why it stopped, and the offset of RIP from the start of the payload.
pub type Stop = (DebugStop, i64);

/// At these breakpoints: address, access, size.
pub fn on(breakpoints: &[(u64, BreakOn, u8)]) -> DebugControl {
    let mut control = DebugControl::default();
    for (slot, &(address, on, size)) in control.breakpoints.iter_mut().zip(breakpoints) {
        *slot = Some(HardwareBreakpoint { address, on, size });
    }
    control
}

/// From the next run on.
pub fn set(rig: &mut Rig, control: &DebugControl) {
    rig.vcpus[0].set_debug(control).expect("this engine stops");
}

/// Runs to the next stop; `None`: the payload is done. Reads are answered with 0x5a, and `seen` gets every
/// other exit.
pub fn next(rig: &mut Rig, seen: &mut Vec<Exit>) -> Option<Stop> {
    let vcpu = &mut rig.vcpus[0];
    loop {
        let exit = vcpu.run().expect("the engine runs");
        match exit {
            Exit::PortWrite { port: DONE, .. } => return None,
            Exit::Debug(stop) => {
                let rip = vcpu.state().expect("state").rip;
                return Some((stop, rip.wrapping_sub(CODE) as i64));
            }
            Exit::PortRead { .. } | Exit::MmioRead { .. } => vcpu.complete_read(0x5a),
            Exit::TripleFault => panic!("triple fault"),
            _ => {}
        }
        seen.push(exit);
    }
}

/// All stops until the payload is done, and what it logged.
pub fn stops(rig: &mut Rig) -> (Vec<Stop>, Vec<u32>) {
    let mut seen = Vec::new();
    let stops = std::iter::from_fn(|| next(rig, &mut seen)).collect();
    (stops, logged(&seen))
}

/// What the payload logged, of its exits.
pub fn logged(exits: &[Exit]) -> Vec<u32> {
    let value = |exit: &Exit| match *exit {
        Exit::PortWrite { port: LOG, value, .. } => Some(value),
        _ => None,
    };
    exits.iter().filter_map(value).collect()
}
