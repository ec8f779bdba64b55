//! What the engine tells the frame table: accesses, writes, and the states of frames.
//!
//! In an epoch a vCPU accesses the frames of the code it runs and of its operands. A page walk reads the
//! tables that it goes through, and writes those in which it sets a bit; a translation that is cached in
//! the epoch needs no walk. So a table may be reported as accessed, and must be as written where it changed.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use memory::{Discard, Epoch, FRAME_SIZE, Frame, FrameState, Source, SourceError};

use super::prelude::*;
use crate::traits::Tracking;

cases!(
    "memory_facts": accesses, writes, each_epoch_anew, table_updates, strings, by_device,
    ballooned, discarded_under_translation, reported, absent_kinds, absent_table, absent_by_two,
    resident_states, failed_source, lost_contents, failed_delivery,
);

const READY: u64 =
    paging::PRESENT | paging::WRITABLE | paging::USER | paging::ACCESSED | paging::DIRTY;

fn frame(gpa: u64) -> Frame {
    Frame((gpa >> 12) as u32)
}

fn require_tracking(engine: &dyn Engine) {
    let can = engine.capabilities();
    if can.access_tracking == Tracking::None || can.write_tracking == Tracking::None {
        skip("no tracking");
    }
}

/// Frames of the tables that lead to the payload and the window.
fn tables() -> BTreeSet<Frame> {
    [PML4, PDPT, DIRECTORY, WINDOW_TABLE].into_iter().map(frame).collect()
}

/// Runs a payload between two ASKs; answers the frames it accessed and wrote in between, without the
/// payload's own frame and the tables.
fn touched(
    engine: &dyn Engine,
    prepare: impl FnOnce(&Rig),
    body: impl FnOnce(&mut CodeAssembler) -> Asm,
) -> [Vec<Frame>; 2] {
    require_tracking(engine);
    let mut rig = Rig::with(engine, |a| {
        a.ask(1)?;
        body(a)?;
        a.ask(2)
    });
    prepare(&rig);
    let memory = Arc::clone(&rig.memory);
    let result = Mutex::new([Vec::new(), Vec::new()]);
    let since = Mutex::new(Epoch::FIRST);
    rig.run_asking(&|value| {
        if value == 1 {
            *since.lock().expect("one thread") = memory.advance_epoch();
            return;
        }
        let since = *since.lock().expect("one thread");
        memory.catch_up();
        let accessed: Vec<_> = memory.accessed_since(since).collect();
        assert!(accessed.contains(&frame(CODE)), "the payload itself is not among {accessed:?}");
        let tables = tables();
        let other = |&frame: &Frame| !tables.contains(&frame) && frame != self::frame(CODE);
        let written: Vec<_> = memory.written_since(since).collect();
        assert!(written.iter().all(|frame| accessed.contains(frame)), "written, not accessed");
        *result.lock().expect("one thread") = [
            accessed.into_iter().filter(other).collect(),
            // The payload's page is not written, so it must not be told as such.
            written.into_iter().filter(|frame| !tables.contains(frame)).collect(),
        ];
    });
    result.into_inner().expect("one thread")
}

fn accesses(engine: &dyn Engine) {
    let frames = touched(
        engine,
        |_| {},
        |a| {
            a.mov(al, byte_ptr(window(3)))?;
            a.cmp(byte_ptr(window(9) + 5), 1)?;
            // Across two pages.
            a.mov(eax, dword_ptr(window(21) - 1))?;
            a.mov(al, byte_ptr(0x80_0000))
        },
    );
    let expected = [window(3), window(9), window(20), window(21), 0x80_0000].map(frame);
    assert_eq!(frames, [expected.to_vec(), vec![]]);
}

/// A read before the write does not hide it; a stack is memory too.
fn writes(engine: &dyn Engine) {
    let frames = touched(
        engine,
        |_| {},
        |a| {
            a.mov(al, byte_ptr(window(3)))?;
            a.mov(al, byte_ptr(window(4)))?;
            a.mov(byte_ptr(window(4)), al)?;
            a.lock().inc(dword_ptr(window(7)))?;
            a.push(rax)?;
            a.pop(qword_ptr(0x80_0000))
        },
    );
    let written = [STACK - 8, window(4), window(7), 0x80_0000].map(frame).to_vec();
    let accessed = [STACK - 8, window(3), window(4), window(7), 0x80_0000].map(frame).to_vec();
    assert_eq!(frames, [accessed, written]);
}

/// What was accessed and written before is told again in a new epoch, and only if it is.
fn each_epoch_anew(engine: &dyn Engine) {
    require_tracking(engine);
    let mut rig = Rig::with(engine, |a| {
        let mut again = a.create_label();
        a.mov(ebx, 4)?;
        a.mov(byte_ptr(window(3)), 1)?;
        a.mov(byte_ptr(window(4)), 1)?;
        a.set_label(&mut again)?;
        a.ask(1)?;
        a.mov(al, byte_ptr(window(3)))?;
        a.test(bl, 1)?;
        let mut even = a.create_label();
        a.jz(even)?;
        a.mov(byte_ptr(window(3)), 2)?;
        a.set_label(&mut even)?;
        a.ask(2)?;
        a.dec(ebx)?;
        a.jnz(again)
    });
    let memory = Arc::clone(&rig.memory);
    let seen = Mutex::new(Vec::new());
    rig.run_asking(&|value| {
        if value == 1 {
            memory.advance_epoch();
            return;
        }
        memory.catch_up();
        let now = memory.epoch();
        let facts = |gpa| memory.facts(frame(gpa)).expect("inside RAM");
        let (used, idle) = (facts(window(3)), facts(window(4)));
        let line = [used.accessed == now, used.written == now, idle.accessed == now];
        seen.lock().expect("one thread").push(line);
    });
    let (read, written) = ([true, false, false], [true, true, false]);
    assert_eq!(seen.into_inner().expect("one thread"), [read, written, read, written]);
}

/// A table in which the walk sets a bit has been written; one in which it need not, has not.
fn table_updates(engine: &dyn Engine) {
    require_tracking(engine);
    let exact = engine.capabilities().write_tracking == Tracking::Exact;
    for (bits, written) in [(READY & !paging::ACCESSED, true), (READY, false)] {
        let mut rig = Rig::with(engine, |a| {
            a.ask(1)?;
            a.mov(al, byte_ptr(window(3)))?;
            a.ask(2)
        });
        rig.map_window(3, window(3), bits);
        let memory = Arc::clone(&rig.memory);
        rig.run_asking(&|value| {
            if value == 1 {
                memory.advance_epoch();
                return;
            }
            memory.catch_up();
            let facts = memory.facts(frame(WINDOW_TABLE)).expect("inside RAM");
            // A processor may take every walk through a table for a write of it (AMD64 volume 2, 15.25.5).
            assert!(facts.written == memory.epoch() || !written, "entry bits {bits:#x}");
            if exact {
                assert_eq!(facts.written == memory.epoch(), written, "entry bits {bits:#x}");
            }
            assert!(facts.accessed == memory.epoch() || !written);
        });
    }
}

fn strings(engine: &dyn Engine) {
    let frames = touched(
        engine,
        |_| {},
        |a| {
            a.mov(esi, window(10) as u32)?;
            a.mov(edi, window(20) as u32 + 4)?;
            a.mov(ecx, 0x2000)?;
            a.rep().movsb()?;
            a.mov(edi, window(30) as u32)?;
            a.mov(ecx, 512)?;
            a.rep().stosq()?;
            // Nothing is moved, nothing touched.
            a.mov(edi, window(40) as u32)?;
            a.rep().movsb()
        },
    );
    let read = [window(10), window(11)];
    let written = [window(20), window(21), window(22), window(30)].map(frame).to_vec();
    let mut accessed: Vec<_> = read.map(frame).to_vec();
    accessed.extend(&written);
    assert_eq!(frames, [accessed, written]);
}

/// A device's accesses count like the guest's.
fn by_device(engine: &dyn Engine) {
    require_tracking(engine);
    let rig = Rig::new(engine, 1);
    let now = rig.memory.advance_epoch();
    rig.write(window(5) + 4090, &[1; 10]);
    rig.bytes(window(8), 1);
    let accessed: Vec<_> = rig.memory.accessed_since(now).collect();
    let written: Vec<_> = rig.memory.written_since(now).collect();
    assert_eq!(accessed, [window(5), window(6), window(8)].map(frame));
    assert_eq!(written, [window(5), window(6)].map(frame));
}

/// Frames given to the balloon leave; what touches them finds zeros, and they are resident again.
fn ballooned(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(eax, dword_ptr(window(5)))?;
        a.log_eax()?;
        a.mov(dword_ptr(window(6)), 2)?;
        a.ask(1)?;
        a.mov(eax, dword_ptr(window(5)))?;
        a.log_eax()?;
        a.mov(byte_ptr(window(6) + 1), 3)?;
        a.mov(eax, dword_ptr(window(6)))?;
        a.log_eax()?;
        a.ask(2)
    });
    rig.set_word(window(5), 1);
    let memory = Arc::clone(&rig.memory);
    let states =
        || [5, 6, 7].map(|page| memory.facts(frame(window(page))).expect("inside RAM").state);
    let record = rig.run_asking(&|value| {
        if value == 1 {
            let frames = [5, 6].map(|page| frame(window(page)));
            let done = memory.discard(frames, Discard::Balloon).expect("given back");
            assert_eq!((done.discarded, done.kept), (2, 0));
            let gone = FrameState::Ballooned;
            assert_eq!(states(), [gone, gone, FrameState::Untouched]);
        } else {
            memory.catch_up();
            let here = FrameState::Resident;
            assert_eq!(states(), [here, here, FrameState::Untouched]);
        }
    });
    assert_eq!(record.log, [1, 0, 0x300]);
}

/// A frame is given back while another thread's vCPU runs: its cached translation is no way to the page.
fn discarded_under_translation(engine: &dyn Engine) {
    let (read, given_back, found) = (DATA, DATA + 64, DATA + 128);
    let mut rig = Rig::with_two(
        engine,
        |a| {
            a.wait_for(read, 1)?;
            a.ask(1)?;
            a.mov(qword_ptr(given_back), 1)?;
            a.wait_for(found, 1)?;
            a.mov(eax, dword_ptr(found + 4))?;
            a.log_eax()
        },
        |a| {
            // It does not touch the frame meanwhile: that would take it back.
            a.mov(eax, dword_ptr(window(5)))?;
            a.mov(dword_ptr(read), eax)?;
            a.wait_for(given_back, 1)?;
            a.mov(eax, dword_ptr(window(5)))?;
            a.mov(dword_ptr(found + 4), eax)?;
            a.mov(dword_ptr(found), 1)?;
            a.done()
        },
    );
    rig.set_word(window(5), 1);
    let memory = Arc::clone(&rig.memory);
    let records = rig.run_all_asking(&|_| {
        let frames = [frame(window(5))];
        let done = memory.discard(frames, Discard::Reported).expect("given back");
        assert_eq!((done.discarded, done.kept), (1, 0));
    });
    assert_eq!(records[0].log, [0]);
}

/// Free-page reporting: untouched, and zeros.
fn reported(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(dword_ptr(window(5)), 7)?;
        a.ask(1)?;
        a.mov(eax, dword_ptr(window(5)))?;
        a.log_eax()
    });
    let memory = Arc::clone(&rig.memory);
    let record = rig.run_asking(&|_| {
        memory.discard([frame(window(5))], Discard::Reported).expect("given back");
        let facts = memory.facts(frame(window(5))).expect("inside RAM");
        assert_eq!(facts.state, FrameState::Untouched);
    });
    assert_eq!(record.log, [0]);
}

/// A source of frames full of their own number, in 64-bit words, that counts its fetches.
struct Numbers {
    fetches: Mutex<Vec<Frame>>,
    failures: AtomicU32,
}

impl Numbers {
    fn register(rig: &Rig, frames: impl IntoIterator<Item = Frame>) -> Arc<Self> {
        let source = Arc::new(Self { fetches: Mutex::default(), failures: AtomicU32::new(0) });
        let id = rig.memory.add_source(Arc::clone(&source) as Arc<dyn Source>).expect("a source");
        for frame in frames {
            // Only what has no contents can become absent.
            rig.memory.discard([frame], Discard::Reported).expect("given back");
            match rig.memory.make_absent([frame], id) {
                Ok(made) => assert_eq!(made, 1),
                Err(error) => skip(&error.to_string()),
            }
        }
        source
    }

    fn fetched(&self) -> Vec<Frame> {
        let mut fetches = self.fetches.lock().expect("no panic inside").clone();
        fetches.sort_unstable();
        fetches
    }
}

impl Source for Numbers {
    fn fetch(&self, frame: Frame, into: &mut [u8; FRAME_SIZE]) -> Result<(), SourceError> {
        if self.failures.load(Ordering::SeqCst) > 0 {
            self.failures.fetch_sub(1, Ordering::SeqCst);
            return Err(SourceError::Unavailable("the test says so".into()));
        }
        self.fetches.lock().expect("no panic inside").push(frame);
        for word in into.as_chunks_mut::<8>().0 {
            *word = u64::from(frame.0).to_le_bytes();
        }
        Ok(())
    }
}

/// Fetched by a read, a write, an instruction fetch; once each.
fn absent_kinds(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        for _ in 0..2 {
            a.mov(eax, dword_ptr(window(5)))?;
            a.log_eax()?;
            a.mov(byte_ptr(window(6) + 8), 0xee)?;
        }
        a.mov(eax, dword_ptr(window(6) + 8))?;
        a.log_eax()?;
        // Frame 0x207 as code: 07 is undefined.
        a.fault(|a| {
            a.mov(r13, window(7))?;
            a.jmp(r13)
        })
    });
    let frames = [5, 6, 7].map(|page| frame(window(page)));
    let source = Numbers::register(&rig, frames);
    let record = rig.run();
    assert_eq!(record.log, [0x205, 0x205, 0x2ee]);
    assert_eq!(record.faults(), [Fault::new(Vector::UD)]);
    assert_eq!(source.fetched(), frames);
}

/// A page table may be absent, like any memory.
fn absent_table(engine: &dyn Engine) {
    let table = Frame((DATA >> 12) as u32);
    let mut rig = Rig::with(engine, |a| a.fault(|a| a.mov(al, byte_ptr(0x80_0000))));
    rig.set_word(DIRECTORY + 4 * 8, DATA | READY & !paging::DIRTY);
    let source = Numbers::register(&rig, [table]);
    // Its entries are its number, 0x40: not present.
    assert_eq!(rig.run().faults(), [Fault::page(0x80_0000, 0)]);
    assert_eq!(source.fetched(), [table]);
}

/// Two vCPUs want the same frames at the same time: each is fetched once, and complete for both.
fn absent_by_two(engine: &dyn Engine) {
    const PAGES: u64 = 256;
    let payload = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.lock().inc(qword_ptr(DATA))?;
        a.wait_for(DATA, 2)?;
        a.mov(ebx, window(100) as u32)?;
        a.xor(esi, esi)?;
        a.mov(ecx, PAGES as u32)?;
        a.set_label(&mut again)?;
        a.mov(rax, qword_ptr(rbx + 4088))?;
        a.add(rsi, rax)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.add(rsi, rax)?;
        a.add(rbx, 4096)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.lock().add(qword_ptr(DATA + 64), rsi)?;
        a.lock().inc(qword_ptr(DATA))?;
        a.wait_for(DATA, 4)
    };
    let mut rig = Rig::with_two(engine, payload, payload);
    let frames: Vec<_> = (100..100 + PAGES).map(|page| frame(window(page))).collect();
    let source = Numbers::register(&rig, frames.iter().copied());
    rig.run_all();
    let sum: u64 = frames.iter().map(|frame| u64::from(frame.0)).sum();
    assert_eq!(rig.word(DATA + 64), 4 * sum);
    assert_eq!(source.fetched(), frames);
}

/// Nothing becomes resident but what is touched.
fn resident_states(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(al, byte_ptr(window(5)))?;
        a.mov(byte_ptr(window(6)), al)?;
        a.invlpg(ptr(window(8)))?;
        a.prefetcht0(byte_ptr(window(9)))?;
        a.nop()
    });
    let before = rig.memory.counts();
    rig.run();
    rig.memory.catch_up();
    let state = |page| rig.memory.facts(frame(window(page))).expect("inside RAM").state;
    assert_eq!([state(5), state(6)], [FrameState::Resident; 2]);
    assert_eq!([state(7), state(8)], [FrameState::Untouched; 2]);
    // The two, and the page of frames that the rig itself reads at the end.
    assert!(rig.memory.counts().resident <= before.resident + 3);
}

/// A source that fails has the vCPU come back as it was before the instruction, as often as it fails.
fn failed_source(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        let mut here = a.create_label();
        a.lea(r13, ptr(here))?;
        a.mov(eax, 0x77)?;
        a.set_label(&mut here)?;
        a.mov(eax, dword_ptr(window(5)))?;
        a.log_eax()
    });
    let wanted = frame(window(5));
    let source = Numbers::register(&rig, [wanted]);
    source.failures.store(5, Ordering::SeqCst);
    let exit = rig.vcpus[0].run().expect("the source may come back");
    assert_eq!(exit, Exit::Unavailable { frame: wanted });
    let state = rig.vcpus[0].state().expect("state");
    assert_eq!((state.gpr[0], state.rip), (0x77, state.gpr[13]));
    assert_eq!(rig.run().log, [0x205]);
    assert_eq!(source.fetched(), [wanted]);
}

/// Contents that are lost end the vCPU.
fn lost_contents(engine: &dyn Engine) {
    struct Corrupt;
    impl Source for Corrupt {
        fn fetch(&self, _: Frame, _: &mut [u8; FRAME_SIZE]) -> Result<(), SourceError> {
            Err(SourceError::Corrupt("the test says so".into()))
        }
    }
    let mut rig = Rig::with(engine, |a| a.mov(eax, dword_ptr(window(5))));
    let id = rig.memory.add_source(Arc::new(Corrupt)).expect("a source");
    rig.memory.discard([frame(window(5))], Discard::Reported).expect("given back");
    if let Err(error) = rig.memory.make_absent([frame(window(5))], id) {
        skip(&error.to_string());
    }
    let error = rig.vcpus[0].run().expect_err("the contents are lost");
    assert!(matches!(error, crate::error::EngineError::Memory(_)), "{error}");
    assert!(error.to_string().contains("corrupt: the test says so"), "{error}");
}

/// An interrupt whose frame has nowhere to go is delivered when it has, also where the state has moved meanwhile.
fn failed_delivery(engine: &dyn Engine) {
    let payload = |a: &mut CodeAssembler| {
        a.enable_apic()?;
        a.mov(rsp, window(7))?;
        a.write_msr(apic::SELF_IPI, 0x40)?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.cli()?;
        a.log(2)
    };
    for moves in [false, true] {
        let mut rig = Rig::with(engine, payload);
        let stack = frame(window(6));
        let source = Numbers::register(&rig, [stack]);
        source.failures.store(5, Ordering::SeqCst);
        let exit = rig.vcpus[0].run().expect("the source may come back");
        assert_eq!(exit, Exit::Unavailable { frame: stack });
        if moves {
            let state = rig.vcpus[0].state().expect("state");
            rig.vcpus[0].set_state(&state).expect("its own state");
        }
        assert_eq!(rig.run().log, [IRQ | 0x40, 2], "moves: {moves}");
        assert_eq!(source.fetched(), [stack]);
    }
}
