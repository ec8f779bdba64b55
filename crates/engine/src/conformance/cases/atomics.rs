//! Locked instructions of two processors on the same words.

use super::prelude::*;

cases!(
    "atomics": increments, fetch_and_add, compare_exchange, exchange_lock, bit_lock, misaligned,
    across_line, sixteen_bytes, sixteen_bytes_alone, eight_bytes, mixed_sizes, across_pages,
);

const EACH: i32 = 100_000;
const BATCHES: i32 = 20;
const START: u64 = DATA + 0x800;
const WORD: u64 = DATA;

/// Runs `body` `EACH` times on each of two vCPUs, which meet before each batch.
fn both(engine: &dyn Engine, body: impl Fn(&mut CodeAssembler) -> Asm) -> Rig {
    let payload = |a: &mut CodeAssembler| {
        let (mut batch, mut again) = (a.create_label(), a.create_label());
        a.xor(r11d, r11d)?;
        a.set_label(&mut batch)?;
        a.meet(START)?;
        a.mov(r12d, EACH / BATCHES)?;
        a.set_label(&mut again)?;
        a.zero_bytes()?;
        body(a)?;
        a.dec(r12d)?;
        a.jnz(again)?;
        a.cmp(r11d, 2 * BATCHES)?;
        a.jb(batch)?;
        a.meet(START)
    };
    let mut rig = Rig::with_two(engine, payload, payload);
    rig.run_all();
    rig
}

fn increments(engine: &dyn Engine) {
    let rig = both(engine, |a| {
        a.lock().inc(qword_ptr(WORD))?;
        a.lock().add(word_ptr(WORD + 8), 1)?;
        a.lock().inc(byte_ptr(WORD + 16))?;
        a.lock().dec(dword_ptr(WORD + 24))?;
        a.lock().xor(dword_ptr(WORD + 32), 1)
    });
    let total = 2 * EACH as u64;
    assert_eq!(rig.word(WORD), total);
    assert_eq!(rig.word(WORD + 8), total & 0xffff);
    assert_eq!(rig.word(WORD + 16), total & 0xff);
    assert_eq!(rig.word(WORD + 24), u64::from(0u32.wrapping_sub(total as u32)));
    assert_eq!(rig.word(WORD + 32), 0);
}

/// Each old value is seen once.
fn fetch_and_add(engine: &dyn Engine) {
    let rig = both(engine, |a| {
        a.mov(eax, 1)?;
        a.lock().xadd(qword_ptr(WORD), rax)?;
        // The slot of this number is taken once.
        a.inc(byte_ptr(rax + 0x40_0000))
    });
    assert_eq!(rig.word(WORD), 2 * EACH as u64);
    assert!(rig.bytes(0x40_0000, 2 * EACH as usize).iter().all(|&times| times == 1));
}

fn compare_exchange(engine: &dyn Engine) {
    let rig = both(engine, |a| {
        let mut again = a.create_label();
        a.mov(eax, dword_ptr(WORD))?;
        a.set_label(&mut again)?;
        a.lea(ecx, ptr(rax + 3))?;
        a.lock().cmpxchg(dword_ptr(WORD), ecx)?;
        a.jnz(again)
    });
    assert_eq!(rig.word(WORD), 6 * EACH as u64);
}

/// XCHG is locked without a prefix; what it guards is ordinary.
fn exchange_lock(engine: &dyn Engine) {
    let rig = both(engine, |a| {
        let (mut again, mut taken) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.mov(eax, 1)?;
        a.xchg(dword_ptr(WORD), eax)?;
        a.test(eax, eax)?;
        a.jz(taken)?;
        a.pause()?;
        a.jmp(again)?;
        a.set_label(&mut taken)?;
        a.mov(rbx, qword_ptr(WORD + 64))?;
        a.inc(rbx)?;
        a.mov(qword_ptr(WORD + 64), rbx)?;
        a.mov(dword_ptr(WORD), 0)
    });
    assert_eq!(rig.word(WORD + 64), 2 * EACH as u64);
}

fn bit_lock(engine: &dyn Engine) {
    let rig = both(engine, |a| {
        let (mut again, mut taken) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.lock().bts(dword_ptr(WORD), 5)?;
        a.jnc(taken)?;
        a.pause()?;
        a.jmp(again)?;
        a.set_label(&mut taken)?;
        a.inc(qword_ptr(WORD + 64))?;
        a.lock().btr(dword_ptr(WORD), 5)
    });
    assert_eq!(rig.word(WORD + 64), 2 * EACH as u64);
}

/// Not aligned, inside one cache line.
fn misaligned(engine: &dyn Engine) {
    let rig = both(engine, |a| {
        a.lock().inc(dword_ptr(WORD + 3))?;
        a.lock().inc(qword_ptr(WORD + 17))?;
        a.lock().inc(word_ptr(WORD + 33))
    });
    let total = 2 * EACH as u64;
    assert_eq!(rig.word(WORD + 3), total);
    assert_eq!(rig.word(WORD + 17), total);
    assert_eq!(rig.word(WORD + 33) & 0xffff, total & 0xffff);
}

fn across_line(engine: &dyn Engine) {
    let rig = both(engine, |a| a.lock().inc(qword_ptr(WORD + 61)));
    assert_eq!(rig.word(WORD + 61), 2 * EACH as u64);
}

/// Across two pages that lie apart in physical memory.
fn across_pages(engine: &dyn Engine) {
    let payload = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(r12d, 2000)?;
        a.set_label(&mut again)?;
        a.lock().inc(dword_ptr(window(6) - 2))?;
        a.dec(r12d)?;
        a.jnz(again)?;
        a.lock().inc(qword_ptr(START))?;
        a.wait_for(START, 2)
    };
    let mut rig = Rig::with_two(engine, payload, payload);
    rig.map_window(6, window(9), paging::PRESENT | paging::WRITABLE);
    // So that the carry goes across.
    rig.write(window(6) - 2, &[0xff, 0xff]);
    rig.run_all();
    let low = rig.bytes(window(6) - 2, 2);
    let high = rig.bytes(window(9), 2);
    assert_eq!(u32::from_le_bytes([low[0], low[1], high[0], high[1]]), 0xffff + 4000);
}

fn require_cx16(engine: &dyn Engine) {
    if cpuid(engine, 1, 0)[2] & 1 << 13 == 0 {
        skip("no CMPXCHG16B");
    }
}

/// Both halves change together.
fn sixteen_bytes(engine: &dyn Engine) {
    require_cx16(engine);
    let rig = both(engine, |a| {
        let mut again = a.create_label();
        a.mov(rax, qword_ptr(WORD))?;
        a.mov(rdx, qword_ptr(WORD + 8))?;
        a.set_label(&mut again)?;
        a.lea(rbx, ptr(rax + 1))?;
        a.lea(rcx, ptr(rdx - 1))?;
        a.lock().cmpxchg16b(xmmword_ptr(WORD))?;
        a.jnz(again)
    });
    let total = 2 * EACH as u64;
    assert_eq!([rig.word(WORD), rig.word(WORD + 8)], [total, 0u64.wrapping_sub(total)]);
}

/// What it loads, what it leaves, and that it wants 16-byte alignment.
fn sixteen_bytes_alone(engine: &dyn Engine) {
    require_cx16(engine);
    let mut rig = Rig::with(engine, |a| {
        a.mov(eax, 1)?;
        a.mov(edx, 3)?;
        a.mov(ebx, 0x11)?;
        a.mov(ecx, 0x22)?;
        a.cmpxchg16b(xmmword_ptr(DATA))?;
        a.setz(sil)?;
        a.mov(rdi, rdx)?;
        a.log_eax()?;
        a.mov(eax, edi)?;
        a.log_eax()?;
        a.movzx(eax, sil)?;
        a.log_eax()?;
        a.mov(eax, 1)?;
        a.mov(edx, 2)?;
        a.lock().cmpxchg16b(xmmword_ptr(DATA))?;
        a.setz(al)?;
        a.movzx(eax, al)?;
        a.log_eax()?;
        a.fault(|a| a.cmpxchg16b(xmmword_ptr(DATA + 8)))
    });
    rig.set_word(DATA, 1);
    rig.set_word(DATA + 8, 2);
    let record = rig.run();
    assert_eq!(record.log, [1, 2, 0, 1]);
    assert_eq!(record.faults(), [Fault::new(Vector::GP)]);
    assert_eq!([rig.word(DATA), rig.word(DATA + 8)], [0x11, 0x22]);
}

fn eight_bytes(engine: &dyn Engine) {
    let rig = both(engine, |a| {
        let mut again = a.create_label();
        a.mov(eax, dword_ptr(WORD))?;
        a.mov(edx, dword_ptr(WORD + 4))?;
        a.set_label(&mut again)?;
        a.lea(ebx, ptr(rax + 1))?;
        a.lea(ecx, ptr(rdx - 1))?;
        a.lock().cmpxchg8b(qword_ptr(WORD))?;
        a.jnz(again)
    });
    let total = 2 * EACH as u32;
    assert_eq!(rig.word(WORD), u64::from(0u32.wrapping_sub(total)) << 32 | u64::from(total));
}

/// Operations of different sizes on one word lose nothing of each other.
fn mixed_sizes(engine: &dyn Engine) {
    let rig = both(engine, |a| {
        a.lock().add(qword_ptr(WORD), 1)?;
        a.lock().inc(byte_ptr(WORD + 7))?;
        a.lock().add(word_ptr(WORD + 4), 2)
    });
    let total = 2 * EACH as u64;
    let bytes = total & 0xff;
    assert_eq!(rig.word(WORD), total + (((2 * total) & 0xffff) << 32) + (bytes << 56));
}
