//! Page sizes, and the ways to invalidate cached translations.

use super::prelude::*;

cases!(
    "translation": two_mib, one_gib, split, invlpg, invlpg_small, invlpg_large, cr3_reload, cr3_switch,
    made_present, global_pages, pcid, pcid_keep, pcid_rules, invpcid, high_half, alias,
);

const W: u64 = paging::PRESENT | paging::WRITABLE | paging::USER;
const BIG: u64 = W | paging::LARGE;

/// A 2 MiB page elsewhere than at its own address, up to its last byte.
fn two_mib(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(eax, dword_ptr(0xa0_0000))?;
        a.log_eax()?;
        a.mov(eax, dword_ptr(0xbf_fffc))?;
        a.log_eax()?;
        a.mov(dword_ptr(0xb0_0000), 3)?;
        // Across its end, into the next one.
        a.mov(rax, qword_ptr(0xbf_fffc))?;
        a.log_rax()
    });
    rig.set_word(DIRECTORY + 5 * 8, 0x40_0000 | BIG);
    rig.set_word(DIRECTORY + 6 * 8, 0x80_0000 | BIG);
    rig.set_word(0x40_0000, 1);
    rig.set_word(0x5f_fff8, 2 << 32);
    rig.set_word(0x80_0000, 4);
    assert_eq!(rig.run().log, [1, 2, 2, 4]);
    assert_eq!(rig.word(0x50_0000), 3);
}

fn one_gib(engine: &dyn Engine) {
    if cpuid(engine, 0x8000_0001, 0)[3] & 1 << 26 == 0 {
        skip("no 1 GiB pages");
    }
    let base = 8u64 << 30;
    let mut rig = Rig::with(engine, |a| {
        a.mov(rbx, base + 0x90_0000)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.log_eax()?;
        a.mov(qword_ptr(rbx + 8), 6)?;
        a.mov(rbx, base + MMIO)?;
        a.fault(|a| a.mov(eax, dword_ptr(rbx)))
    });
    rig.set_word(PDPT + 8 * 8, BIG);
    rig.set_word(0x90_0000, 5);
    let record = rig.run();
    assert_eq!(record.log, [5]);
    assert_eq!(record.faults(), [Fault::page(base + MMIO, 0)]);
    assert_eq!(rig.word(0x90_0008), 6);
    let bits = rig.word(PDPT + 8 * 8) & (paging::ACCESSED | paging::DIRTY);
    assert_eq!(bits, paging::ACCESSED | paging::DIRTY);
}

/// A large page becomes a table of small ones.
fn split(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(eax, dword_ptr(0x60_0000))?;
        a.log_eax()?;
        a.mov(dword_ptr(DIRECTORY + 3 * 8), (DATA | W) as u32)?;
        a.invlpg(ptr(0x60_0000))?;
        a.mov(eax, dword_ptr(0x60_0000))?;
        a.log_eax()?;
        a.fault(|a| a.mov(eax, dword_ptr(0x60_1000)))
    });
    rig.set_word(0x60_0000, 1);
    rig.set_word(DATA, window(7) | W);
    rig.set_word(window(7), 2);
    let record = rig.run();
    assert_eq!(record.log, [1, 2]);
    assert_eq!(record.faults(), [Fault::page(0x60_1000, 0)]);
}

/// Logs the word at `address`.
fn look(a: &mut CodeAssembler, address: u64) -> Asm {
    a.mov(eax, dword_ptr(address))?;
    a.log_eax()
}

/// Maps page 5 of the window to `gpa`, without invalidating.
fn remap(a: &mut CodeAssembler, gpa: u64, bits: u64) -> Asm {
    a.mov(dword_ptr(window_entry(5)), (gpa | bits) as u32)
}

/// Pages 5 and 6 hold 5 and 6.
fn two_pages(rig: &Rig) {
    rig.set_word(window(5), 5);
    rig.set_word(window(6), 6);
}

fn invlpg(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        look(a, window(5))?;
        remap(a, window(6), W)?;
        a.invlpg(ptr(window(5) + 0x123))?;
        look(a, window(5))?;
        remap(a, window(6), 0)?;
        a.invlpg(ptr(window(5)))?;
        a.fault(|a| a.mov(eax, dword_ptr(window(5))))?;
        // An address that is not canonical is no fault.
        a.mov(rax, 1u64 << 63)?;
        a.invlpg(ptr(rax))
    });
    two_pages(&rig);
    let record = rig.run();
    assert_eq!(record.log, [5, 6]);
    assert_eq!(record.faults(), [Fault::page(window(5), 0)]);
}

/// The same where no large page is near, which an engine may treat apart.
fn invlpg_small(engine: &dyn Engine) {
    let base = 1u64 << 39;
    let mut rig = Rig::with(engine, |a| {
        a.mov(rbx, base + 5 * 4096)?;
        a.mov(eax, dword_ptr(rbx))?;
        a.log_eax()?;
        remap(a, window(6), W)?;
        a.invlpg(ptr(rbx))?;
        a.mov(eax, dword_ptr(rbx))?;
        a.log_eax()?;
        // For fetches too.
        a.call(rbx)?;
        a.log_eax()?;
        remap(a, window(7), W)?;
        a.invlpg(ptr(rbx))?;
        a.call(rbx)?;
        a.log_eax()
    });
    for page in 5..8 {
        // mov al, page; ret
        rig.write(window(page), &[0xb0, page as u8, 0xc3, 0]);
    }
    rig.set_word(PML4 + 8, DATA | W);
    rig.set_word(DATA, (DATA + 0x1000) | W);
    rig.set_word(DATA + 0x1000, WINDOW_TABLE | W);
    let word = |page: u32| 0xc3_00b0 | page << 8;
    assert_eq!(rig.run().log, [word(5), word(6), word(6) & !0xff | 6, word(6) & !0xff | 7]);
}

/// Any address inside a large page invalidates all of it.
fn invlpg_large(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        look(a, 0x60_0000)?;
        look(a, 0x7f_f000)?;
        a.mov(dword_ptr(DIRECTORY + 3 * 8), (0x80_0000 | BIG) as u32)?;
        a.invlpg(ptr(0x67_8000))?;
        look(a, 0x60_0000)?;
        look(a, 0x7f_f000)
    });
    for (at, value) in [(0x60_0000, 1), (0x7f_f000, 2), (0x80_0000, 3), (0x9f_f000, 4)] {
        rig.set_word(at, value);
    }
    assert_eq!(rig.run().log, [1, 2, 3, 4]);
}

fn cr3_reload(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        look(a, window(5))?;
        remap(a, window(6), W)?;
        a.reload_cr3()?;
        look(a, window(5))
    });
    two_pages(&rig);
    assert_eq!(rig.run().log, [5, 6]);
}

/// A second PML4 whose lowest 2 MiB are as ever, and whose window shows the page after.
fn second_tables(rig: &Rig) -> u64 {
    let [pml4, pdpt, directory, table] = [0, 1, 2, 3].map(|n| DATA + n * 0x1000);
    rig.set_word(pml4, pdpt | W);
    rig.set_word(pdpt, directory | W);
    rig.set_word(directory, BIG);
    rig.set_word(directory + 8, table | W);
    rig.set_word(table + 5 * 8, window(6) | W);
    pml4
}

fn cr3_switch(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(ebx, PML4 as u32)?;
        a.mov(ecx, DATA as u32)?;
        for _ in 0..3 {
            look(a, window(5))?;
            a.mov(cr3, rcx)?;
            look(a, window(5))?;
            a.mov(cr3, rbx)?;
        }
        Ok(())
    });
    two_pages(&rig);
    second_tables(&rig);
    assert_eq!(rig.run().log, [5, 6, 5, 6, 5, 6]);
}

/// What is not present is not cached: to map it needs no invalidation.
fn made_present(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.fault(|a| a.mov(eax, dword_ptr(window(5))))?;
        remap(a, window(6), W)?;
        look(a, window(5))
    });
    two_pages(&rig);
    rig.map_window(5, 0, 0);
    assert_eq!(rig.run().log, [6]);
}

/// A global translation goes by INVLPG, and by a change of CR4.PGE.
fn global_pages(engine: &dyn Engine) {
    let global = W | paging::GLOBAL;
    let mut rig = Rig::with(engine, |a| {
        look(a, window(5))?;
        remap(a, window(6), global)?;
        a.invlpg(ptr(window(5)))?;
        look(a, window(5))?;
        remap(a, window(7), global)?;
        a.clear_cr4(x86::cr4::PGE)?;
        a.set_cr4(x86::cr4::PGE)?;
        look(a, window(5))?;
        // With PGE clear the bit means nothing.
        a.clear_cr4(x86::cr4::PGE)?;
        look(a, window(5))?;
        remap(a, window(5), global)?;
        a.reload_cr3()?;
        look(a, window(5))?;
        a.set_cr4(x86::cr4::PGE)?;
        look(a, window(5))
    });
    two_pages(&rig);
    rig.set_word(window(7), 7);
    rig.map_window(5, window(5), global);
    assert_eq!(rig.run().log, [5, 6, 7, 7, 5, 5]);
}

fn require_pcid(engine: &dyn Engine) {
    if cpuid(engine, 1, 0)[2] & 1 << 17 == 0 {
        skip("no PCID");
    }
}

/// Contexts do not see each other's translations; a MOV to CR3 flushes the context it enters.
fn pcid(engine: &dyn Engine) {
    require_pcid(engine);
    let mut rig = Rig::with(engine, |a| {
        a.set_cr4(x86::cr4::PCIDE)?;
        a.mov(ebx, PML4 as u32 | 1)?;
        a.mov(ecx, DATA as u32 | 2)?;
        for _ in 0..2 {
            a.mov(cr3, rbx)?;
            look(a, window(5))?;
            a.mov(cr3, rcx)?;
            look(a, window(5))?;
        }
        remap(a, window(7), W)?;
        a.mov(cr3, rbx)?;
        look(a, window(5))?;
        a.mov(rax, cr3)?;
        a.log_eax()?;
        a.mov(eax, PML4 as u32)?;
        a.mov(cr3, rax)?;
        a.clear_cr4(x86::cr4::PCIDE)?;
        look(a, window(5))
    });
    two_pages(&rig);
    rig.set_word(window(7), 7);
    second_tables(&rig);
    assert_eq!(rig.run().log, [5, 6, 5, 6, 7, PML4 as u32 | 1, 7]);
}

/// With bit 63 set translations may survive, but only those of the context, and INVLPG ends them.
fn pcid_keep(engine: &dyn Engine) {
    require_pcid(engine);
    let keep = 1u64 << 63;
    let mut rig = Rig::with(engine, |a| {
        a.set_cr4(x86::cr4::PCIDE)?;
        a.mov(rbx, keep | PML4 | 1)?;
        a.mov(rcx, keep | DATA | 2)?;
        for _ in 0..3 {
            a.mov(cr3, rbx)?;
            look(a, window(5))?;
            a.mov(cr3, rcx)?;
            look(a, window(5))?;
        }
        a.mov(cr3, rbx)?;
        remap(a, window(7), W)?;
        a.invlpg(ptr(window(5)))?;
        look(a, window(5))?;
        a.mov(rax, cr3)?;
        a.log_rax()?;
        a.mov(eax, PML4 as u32)?;
        a.mov(cr3, rax)
    });
    two_pages(&rig);
    rig.set_word(window(7), 7);
    second_tables(&rig);
    assert_eq!(rig.run().log, [5, 6, 5, 6, 5, 6, 7, PML4 as u32 | 1, 0]);
}

/// CR4.PCIDE can be set only with PCID 0; without it bit 63 of CR3 is reserved.
fn pcid_rules(engine: &dyn Engine) {
    require_pcid(engine);
    let mut rig = Rig::with(engine, |a| {
        a.mov(rax, 1u64 << 63 | PML4)?;
        a.fault(|a| a.mov(cr3, rax))?;
        a.mov(eax, PML4 as u32 | 0x18)?;
        a.mov(cr3, rax)?;
        a.mov(rax, cr4)?;
        a.or(rax, x86::cr4::PCIDE as i32)?;
        a.fault(|a| a.mov(cr4, rax))?;
        a.reload_cr3()
    });
    assert_eq!(rig.run().faults(), [Fault::new(Vector::GP); 2]);
}

fn invpcid(engine: &dyn Engine) {
    require_pcid(engine);
    if cpuid(engine, 7, 0)[1] & 1 << 10 == 0 {
        skip("no INVPCID");
    }
    let descriptor = DATA + 0x8000;
    let global = W | paging::GLOBAL;
    let mut rig = Rig::with(engine, |a| {
        a.set_cr4(x86::cr4::PCIDE)?;
        // An address; a context; all with global ones; all.
        for (kind, bits) in [(0, W), (1, W), (2, global), (3, W)] {
            for page in [6, 5] {
                remap(a, window(page), bits)?;
                a.mov(ecx, kind)?;
                a.invpcid(rcx, ptr(descriptor))?;
                look(a, window(5))?;
            }
        }
        a.mov(ecx, 4)?;
        a.fault(|a| a.invpcid(rcx, ptr(descriptor)))
    });
    two_pages(&rig);
    rig.set_word(descriptor, 0);
    rig.set_word(descriptor + 8, window(5));
    let record = rig.run();
    // Before type 1 the translation is as type 0 left it; before type 2 it is not global.
    assert_eq!(record.log, [6, 5, 6, 5, 6, 5, 6, 5]);
    assert_eq!(record.faults(), [Fault::new(Vector::GP)]);
}

/// The upper half of linear memory, by its own entry.
fn high_half(engine: &dyn Engine) {
    let base = 0xffff_ff80_0000_0000u64;
    let mut rig = Rig::with(engine, |a| {
        a.mov(rbx, base + window(5))?;
        a.mov(eax, dword_ptr(rbx))?;
        a.log_eax()?;
        a.mov(dword_ptr(rbx + 0x1000), 9)
    });
    two_pages(&rig);
    rig.set_word(PML4 + 511 * 8, PDPT | W);
    assert_eq!(rig.run().log, [5]);
    assert_eq!(rig.word(window(6)), 9);
}

/// Two addresses of one page are one memory.
fn alias(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(dword_ptr(window(5)), 1)?;
        look(a, window(6))?;
        a.inc(dword_ptr(window(6)))?;
        look(a, window(5))?;
        a.lock().inc(dword_ptr(window(5)))?;
        look(a, window(6))
    });
    rig.map_window(6, window(5), W);
    assert_eq!(rig.run().log, [1, 2, 3]);
}
