//! The generation of a VM: 128 random bits that change when a guest goes on from a saved state, so that two guests that
//! were one do not draw the same random numbers (Microsoft, "Virtual Machine Generation ID"; Linux
//! `drivers/virt/vmgenid.c`, which reseeds its generator when it is notified).

use engine::Vm;
use memory::{DeviceView, Gpa};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::boot::layout::{EVENT_GSI, GENERATION_ID, GENERATION_ID_SIZE};
use crate::error::VmError;

/// Before the guest's first instruction.
pub(crate) fn begin(view: &DeviceView) -> Result<(), VmError> {
    let mut id = [0; GENERATION_ID_SIZE as usize];
    // As many come whole: getrandom(2).
    rustix::io::retry_on_intr(|| getrandom(&mut id, GetRandomFlags::empty()))
        .map_err(|errno| VmError::Host("draw a generation".into(), errno.into()))?;
    view.write(Gpa(GENERATION_ID), &id).map_err(|error| {
        VmError::Host("write the VM's generation".into(), std::io::Error::other(error))
    })
}

/// Before the guest goes on from a saved state: it is notified.
pub(crate) fn renew(view: DeviceView, vm: &dyn Vm) -> Result<(), VmError> {
    begin(&view)?;
    vm.pulse_irq(EVENT_GSI);
    Ok(())
}
