//! Kicks: never lost, and nothing is lost by them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::prelude::*;
use crate::traits::{Vcpu, Vm};

cases!("kicks": running, halted, waiting, before_run, keeps_exit);

/// Runs the vCPU on a thread and kicks it 1000 times; each kick is answered.
fn kicks(vcpu: &mut dyn Vcpu, vm: &Arc<dyn Vm>, id: u32) {
    const KICKS: u32 = 1000;
    let (sender, receiver) = std::sync::mpsc::channel();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                if vcpu.run().expect("the engine runs") == Exit::Kicked {
                    sender.send(()).expect("somebody counts");
                }
            }
        });
        for kick in 0..KICKS {
            vm.kick(id);
            let answered = receiver.recv_timeout(Duration::from_secs(10));
            if answered.is_err() {
                // Lost: a second one lets the thread end.
                stop.store(true, Ordering::SeqCst);
                vm.kick(id);
                panic!("kick {kick} was lost");
            }
        }
        stop.store(true, Ordering::SeqCst);
        vm.kick(id);
    });
}

fn running(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        a.inc(rax)?;
        a.jmp(here)
    });
    let Rig { board, vcpus } = &mut rig;
    kicks(&mut *vcpus[0], &board.vm, 0);
}

fn halted(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        a.hlt()?;
        a.jmp(here)
    });
    let Rig { board, vcpus } = &mut rig;
    kicks(&mut *vcpus[0], &board.vm, 0);
}

/// A vCPU that waits for its start-up IPI is kicked like any other.
fn waiting(engine: &dyn Engine) {
    let mut rig = Rig::new(engine, 2);
    let Rig { board, vcpus } = &mut rig;
    kicks(&mut *vcpus[1], &board.vm, 1);
    assert!(vcpus[1].state().expect("state").waiting_for_sipi);
}

/// Two kicks before the run are one, and nothing has been executed.
fn before_run(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| a.log(1));
    rig.vm.kick(0);
    rig.vm.kick(0);
    let vcpu = &mut rig.vcpus[0];
    assert_eq!(vcpu.run().expect("the engine runs"), Exit::Kicked);
    assert_eq!(vcpu.state().expect("state").rip, CODE);
    let next = vcpu.run().expect("the engine runs");
    assert_eq!(next, Exit::PortWrite { port: LOG, size: 4, value: 1 });
}

/// A kick during an exit does not lose the exit's answer, nor do the access twice.
fn keeps_exit(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(eax, dword_ptr(MMIO))?;
        a.log_eax()?;
        a.add(dword_ptr(MMIO), 5)?;
        a.in_(al, 0x70)?;
        a.log_eax()
    });
    let mut seen = Vec::new();
    loop {
        rig.vm.kick(0);
        let mut exit = Exit::Kicked;
        while exit == Exit::Kicked {
            exit = rig.vcpus[0].run().expect("the engine runs");
        }
        match exit {
            Exit::PortWrite { port: DONE, .. } => break,
            Exit::MmioRead { .. } => rig.vcpus[0].complete_read(0x11),
            Exit::PortRead { .. } => rig.vcpus[0].complete_read(0x22),
            _ => {}
        }
        seen.push(exit);
    }
    let log = |value| Exit::PortWrite { port: LOG, size: 4, value };
    let expected = [
        Exit::MmioRead { gpa: MMIO, size: 4 },
        log(0x11),
        Exit::MmioRead { gpa: MMIO, size: 4 },
        Exit::MmioWrite { gpa: MMIO, size: 4, value: 0x16 },
        Exit::PortRead { port: 0x70, size: 1 },
        log(0x22),
    ];
    assert_eq!(seen, expected);
}
