//! A VM that stands for as long as the lab's machine runs.
//!
//! With its first VM, and with the last one's end, KVM switches a hook of the scheduler's, for which Linux writes into
//! the scheduler's code while the other processor runs it. QEMU's translator before version 8.1 may keep what it read
//! there in between, a breakpoint that is gone by now: that processor then meets it forever, with the lock of its
//! run queue held, and soon the other one waits for that. Tests that start VMs one after the other came to it once
//! in some hundred. While there is a VM nothing is switched; its vCPU does the same for the hooks of KVM's own APIC.

use anyhow::{Context, Result};
use kvm_ioctls::Kvm;
use std::convert::Infallible;
use std::thread;

/// Stand until the machine ends.
pub(crate) fn stand() -> Result<Infallible> {
    let kvm = Kvm::new().context("open /dev/kvm")?;
    let vm = kvm.create_vm().context("make the VM that stands")?;
    vm.create_irq_chip().context("make the interrupt controllers of the VM that stands")?;
    let _vcpu = vm.create_vcpu(0).context("make the vCPU of the VM that stands")?;
    println!("standing");
    loop {
        thread::park();
    }
}
