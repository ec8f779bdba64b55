//! Anonymous memory, and its move to a file under a guest that stands.

use std::sync::Arc;

use memory::{Discard, Frame, FrameState};

use super::prelude::*;
use crate::traits::Tracking;

cases!("backing": anonymous, given_back, moved, tracked_once_moved);

fn frame(gpa: u64) -> Frame {
    Frame((gpa >> 12) as u32)
}

/// Guest and devices see each other's writes; what has contents is resident.
fn anonymous(engine: &dyn Engine) {
    let mut rig = Rig::anonymous(engine, |a| {
        a.mov(eax, dword_ptr(window(5)))?;
        a.log_eax()?;
        a.mov(dword_ptr(window(6)), 8)?;
        a.log(0)
    });
    rig.set_word(window(5), 7);
    assert_eq!(rig.run().log, [7, 0]);
    assert_eq!(rig.word(window(6)) as u32, 8);
    rig.memory.catch_up();
    let facts = rig.memory.facts(frame(window(6))).expect("inside RAM");
    assert_eq!(facts.state, FrameState::Resident);
    assert!(rig.memory.is_anonymous());
}

/// A frame that is given back reads as zeros, before the move and after it.
fn given_back(engine: &dyn Engine) {
    let mut rig = Rig::anonymous(engine, |a| {
        for value in [1, 2] {
            a.mov(dword_ptr(window(5)), 7)?;
            a.mov(dword_ptr(window(6)), 9)?;
            a.ask(value)?;
            a.mov(eax, dword_ptr(window(5)))?;
            a.log_eax()?;
            a.mov(eax, dword_ptr(window(6)))?;
            a.log_eax()?;
        }
        Ok(())
    });
    let memory = Arc::clone(&rig.memory);
    let record = rig.run_asking(&|value| {
        if value == 2 {
            memory.move_to_file().expect("moved");
        }
        let done = memory.discard([frame(window(5))], Discard::Balloon).expect("given back");
        assert_eq!((done.discarded, done.kept), (1, 0));
    });
    assert_eq!(record.log, [0, 9, 0, 9]);
}

/// Contents stay, translations that a vCPU holds lead to them, and devices see what it writes next.
fn moved(engine: &dyn Engine) {
    let mut rig = Rig::anonymous(engine, |a| {
        a.mov(dword_ptr(window(5)), 7)?;
        a.mov(dword_ptr(window(6)), 8)?;
        a.ask(1)?;
        a.inc(dword_ptr(window(5)))?;
        a.mov(eax, dword_ptr(window(6)))?;
        a.log_eax()?;
        a.ask(2)?;
        a.mov(eax, dword_ptr(window(6)))?;
        a.log_eax()
    });
    let (memory, view) = (Arc::clone(&rig.memory), rig.view.clone());
    let record = rig.run_asking(&|value| {
        if value == 1 {
            memory.move_to_file().expect("moved");
            return;
        }
        let mut word = [0; 4];
        view.read(memory::Gpa(window(5)), &mut word).expect("read");
        assert_eq!(u32::from_le_bytes(word), 8);
        view.write(memory::Gpa(window(6)), &77u32.to_le_bytes()).expect("written");
    });
    assert_eq!(record.log, [8, 77]);
}

/// Once in a file, epochs tell what was accessed and written, as of a file from the start.
fn tracked_once_moved(engine: &dyn Engine) {
    let can = engine.capabilities();
    if can.access_tracking == Tracking::None || can.write_tracking == Tracking::None {
        skip("no tracking");
    }
    let mut rig = Rig::anonymous(engine, |a| {
        for page in 3..7 {
            a.mov(dword_ptr(window(page)), page as u32)?;
        }
        a.ask(1)?;
        a.mov(al, byte_ptr(window(4)))?;
        a.mov(byte_ptr(window(6)), al)?;
        a.ask(2)
    });
    let memory = Arc::clone(&rig.memory);
    rig.run_asking(&|value| {
        if value == 1 {
            memory.move_to_file().expect("moved");
            memory.advance_epoch();
            return;
        }
        memory.catch_up();
        let now = memory.epoch();
        let fact = |page| {
            let facts = memory.facts(frame(window(page))).expect("inside RAM");
            (facts.accessed == now, facts.written == now)
        };
        let told = [3, 4, 5, 6].map(fact);
        assert_eq!(told, [(false, false), (true, false), (false, false), (true, true)]);
    });
}
