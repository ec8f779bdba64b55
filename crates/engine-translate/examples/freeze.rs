//! What it costs a guest that its memory is frozen and copied: how long it stands, and how much slower it writes.
//!
//! `cargo run --release -p engine-translate --example freeze`
//!
//! The guest writes eight bytes to each page of 256 MiB, again and again. A pass of its before the freeze is compared
//! with the one during which a thread copies all of memory, and with the next. Times are of a host that has other
//! things to do, too: take the smallest of several runs.

#![allow(missing_docs, clippy::unwrap_used, reason = "a program that prints figures")]

use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use engine::conformance::payload::Payload;
use engine::conformance::rig::Rig;
use engine_translate::TranslateEngine;
use iced_x86::code_asm::*;
use memory::{Access, FRAME_SIZE, Frame, Frozen, GuestMemory, Keep};

/// Where the guest writes.
const FROM: u64 = 64 << 20;
const PAGES: u32 = 256 << 8;

/// Passes before the freeze, the last of which counts, and all of them.
const BEFORE: u32 = 5;
const PASSES: u32 = BEFORE + 3;

fn main() {
    for (gib, copies) in [(1, false), (1, true), (4, false), (4, true)] {
        measure(gib, copies);
    }
}

fn measure(gib: u64, copies: bool) {
    let memory = GuestMemory::with_bytes(gib << 30).unwrap();
    for frame in (0..(gib << 18) as u32).map(Frame) {
        let page = memory.resolve(frame, Access::Write).unwrap();
        // SAFETY: a resident page; nobody discards.
        unsafe { page.as_ptr().add(8).write_volatile(1) };
    }
    let engine = TranslateEngine::new().unwrap();
    let mut rig = Rig::with_memory(memory, &engine, |a| {
        let (mut pass, mut page) = (a.create_label(), a.create_label());
        a.mov(r8d, PASSES)?;
        a.set_label(&mut pass)?;
        a.mov(ebx, FROM as u32)?;
        a.mov(ecx, PAGES)?;
        a.set_label(&mut page)?;
        a.add(qword_ptr(rbx), 1)?;
        a.add(rbx, FRAME_SIZE as i32)?;
        a.dec(ecx)?;
        a.jnz(page)?;
        a.ask(1)?;
        a.dec(r8d)?;
        a.jnz(pass)
    });
    let memory = Arc::clone(&rig.memory);
    let seen = Mutex::new(Seen::default());
    rig.run_asking(&|_| {
        let mut seen = seen.lock().unwrap();
        let now = Instant::now();
        let last = seen.last.replace(now);
        seen.passes.extend(last.map(|last| now - last));
        if seen.passes.len() as u32 == BEFORE {
            seen.freeze(&memory, copies);
            seen.last = Some(Instant::now());
        }
    });
    let mut seen = seen.into_inner().unwrap();
    let [before, during, after] = seen.passes[BEFORE as usize - 1..][..3] else { unreachable!() };
    let kept = seen.frozen.as_ref().map_or(0, |frozen| frozen.kept());
    let copied = seen.copying.take().map(|copying| copying.join().unwrap());
    println!(
        "{gib} GiB: stands for {:?}; a pass takes {before:?} before, {during:?} during, {after:?} after; {kept} kept; \
         copied in {copied:?}",
        seen.stood
    );
}

#[derive(Default)]
struct Seen {
    last: Option<Instant>,
    passes: Vec<Duration>,
    stood: Duration,
    frozen: Option<Arc<Frozen>>,
    copying: Option<JoinHandle<Duration>>,
}

impl Seen {
    fn freeze(&mut self, memory: &Arc<GuestMemory>, copies: bool) {
        let since = Instant::now();
        let frozen = Arc::new(memory.freeze(Box::new(Nowhere)).unwrap());
        self.stood = since.elapsed();
        self.frozen = Some(Arc::clone(&frozen));
        self.copying = copies.then(|| thread::spawn(move || copy(&frozen)));
    }
}

fn copy(frozen: &Frozen) -> Duration {
    let since = Instant::now();
    let mut contents = [0; FRAME_SIZE];
    for frame in (0..frozen.memory().layout().frames()).map(Frame) {
        frozen.take(frame, &mut contents).unwrap();
    }
    since.elapsed()
}

/// As a queue that never is full.
struct Nowhere;

impl Keep for Nowhere {
    fn keep(&self, _: Frame, contents: &[u8; FRAME_SIZE]) {
        drop(std::hint::black_box(Box::new(*contents)));
    }
}
