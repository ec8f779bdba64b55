//! Accessed and dirty bits: set exactly when they must (SDM volume 3, 4.8).

use super::prelude::*;

cases!(
    "accessed_dirty": reads, writes, write_after_read, fetch, refused_write, crossing_write,
    failed_exchange, upper_levels, large_page, set_by_guest, cleared_again,
);

const A: u64 = paging::ACCESSED;
const D: u64 = paging::DIRTY;
const W: u64 = paging::PRESENT | paging::WRITABLE | paging::USER;

/// A and D of a window page.
fn bits(rig: &Rig, page: u64) -> u64 {
    rig.word(window_entry(page)) & (A | D)
}

/// Runs a payload with pages 5 and 6 of the window clean, and answers their A and D.
fn after(engine: &dyn Engine, write: impl FnOnce(&mut CodeAssembler) -> Asm) -> [u64; 2] {
    let mut rig = Rig::with(engine, write);
    rig.map_window(5, window(5), W);
    rig.map_window(6, window(6), W);
    rig.run();
    [bits(&rig, 5), bits(&rig, 6)]
}

fn reads(engine: &dyn Engine) {
    assert_eq!(after(engine, |a| a.mov(al, byte_ptr(window(5)))), [A, 0]);
    assert_eq!(after(engine, |a| a.mov(eax, dword_ptr(window(6) - 2))), [A, A]);
    assert_eq!(after(engine, |a| a.cmp(byte_ptr(window(6)), 1)), [0, A]);
}

fn writes(engine: &dyn Engine) {
    assert_eq!(after(engine, |a| a.mov(byte_ptr(window(5)), al)), [A | D, 0]);
    assert_eq!(after(engine, |a| a.inc(byte_ptr(window(5)))), [A | D, 0]);
    let strings = after(engine, |a| {
        a.mov(esi, window(5) as u32)?;
        a.mov(edi, window(6) as u32)?;
        a.mov(ecx, 100)?;
        a.rep().movsb()
    });
    assert_eq!(strings, [A, A | D]);
}

/// The translation is cached by the read, and yet the write sets D.
fn write_after_read(engine: &dyn Engine) {
    let both = after(engine, |a| {
        a.mov(al, byte_ptr(window(5)))?;
        a.mov(al, byte_ptr(window(6)))?;
        a.mov(byte_ptr(window(5)), al)
    });
    assert_eq!(both, [A | D, A]);
}

fn fetch(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(eax, window(5) as u32)?;
        a.call(rax)
    });
    rig.map_window(5, window(5), W);
    rig.write(window(5), &[0xc3]);
    rig.run();
    assert_eq!(bits(&rig, 5), A);
}

fn refused_write(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(al, byte_ptr(window(5)))?;
        a.fault(|a| a.mov(byte_ptr(window(5)), al))
    });
    rig.map_window(5, window(5), W & !paging::WRITABLE);
    assert_eq!(rig.run().faults(), [Fault::page(window(5), 3)]);
    assert_eq!(bits(&rig, 5), A);
}

fn crossing_write(engine: &dyn Engine) {
    assert_eq!(after(engine, |a| a.mov(dword_ptr(window(6) - 1), eax)), [A | D, A | D]);
}

/// A comparison that fails is a write still.
fn failed_exchange(engine: &dyn Engine) {
    let both = after(engine, |a| {
        a.mov(eax, 1)?;
        a.lock().cmpxchg(dword_ptr(window(5)), ecx)
    });
    assert_eq!(both, [A | D, 0]);
}

/// Entries above the leaf get A and never D.
fn upper_levels(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(rax, 1u64 << 39)?;
        a.mov(byte_ptr(rax), al)
    });
    let tables = [DATA, DATA + 0x1000, DATA + 0x2000];
    rig.set_word(PML4 + 8, tables[0] | W);
    rig.set_word(tables[0], tables[1] | W);
    rig.set_word(tables[1], tables[2] | W);
    rig.set_word(tables[2], (DATA + 0x3000) | W);
    rig.run();
    let entries =
        [PML4 + 8, tables[0], tables[1], tables[2]].map(|entry| rig.word(entry) & (A | D));
    assert_eq!(entries, [A, A, A, A | D]);
}

fn large_page(engine: &dyn Engine) {
    let entry = DIRECTORY + 3 * 8;
    let mut rig = Rig::with(engine, |a| {
        a.mov(al, byte_ptr(0x60_0000))?;
        a.ask(0)?;
        a.mov(byte_ptr(0x70_0000), al)
    });
    rig.set_word(entry, 0x60_0000 | W | paging::LARGE);
    let view = rig.view.clone();
    let read = move || {
        let mut bytes = [0; 8];
        view.read(memory::Gpa(entry), &mut bytes).expect("inside RAM");
        u64::from_le_bytes(bytes) & (A | D)
    };
    rig.run_asking(&|_| assert_eq!(read(), A));
    assert_eq!(rig.word(entry) & (A | D), A | D);
}

/// Where the guest has set the bits, the entry is left alone.
fn set_by_guest(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(al, byte_ptr(window(5)))?;
        a.mov(byte_ptr(window(6)), al)
    });
    let entry = window(5) | W | A | D | 7 << 9 | 1 << 58;
    rig.set_word(window_entry(5), entry);
    rig.map_window(6, window(6), W | 5 << 9 | 1 << 57);
    rig.run();
    assert_eq!(rig.word(window_entry(5)), entry);
    assert_eq!(rig.word(window_entry(6)), window(6) | W | A | D | 5 << 9 | 1 << 57);
}

/// The guest clears them, invalidates, and they are set again.
fn cleared_again(engine: &dyn Engine) {
    let entry = window_entry(5);
    let mut rig = Rig::with(engine, |a| {
        for _ in 0..2 {
            a.mov(byte_ptr(window(5)), 1)?;
            a.mov(eax, dword_ptr(entry))?;
            a.and(eax, (A | D) as u32)?;
            a.log_eax()?;
            a.and(dword_ptr(entry), !(A | D) as u32)?;
            a.invlpg(ptr(window(5)))?;
        }
        a.mov(al, byte_ptr(window(5)))
    });
    rig.map_window(5, window(5), W);
    assert_eq!(rig.run().log, [(A | D) as u32; 2]);
    assert_eq!(bits(&rig, 5), A);
}
