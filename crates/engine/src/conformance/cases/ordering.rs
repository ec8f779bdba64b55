//! Memory ordering of two processors (SDM volume 3, 8.2): total store order.
//!
//! The litmus tests run without a meeting in each round: every store writes a larger number, every
//! load is kept, and what must not have happened is looked for afterwards.

use super::prelude::*;

cases!("ordering": store_buffer_fence, store_buffer_exchange, store_buffer_locked, message_passing,
    message_passing_strings, own_stores, reads_never_go_back);

const ROUNDS: u64 = 50_000;
/// Rounds between two meetings, a power of two.
const BATCH: u32 = 4096;
const START: u64 = DATA + 0x800;
const X: u64 = DATA;
const Y: u64 = DATA + 0x40;
/// What each vCPU loaded, a word a round.
const SEEN: [u64; 2] = [0x40_0000, 0x80_0000];

/// For RBX from 1 to `ROUNDS`, once both have started. RDI moves over this vCPU's list.
fn rounds(a: &mut CodeAssembler, id: usize, body: impl Fn(&mut CodeAssembler) -> Asm) -> Asm {
    let (mut again, mut apart) = (a.create_label(), a.create_label());
    a.xor(r11d, r11d)?;
    a.meet(START)?;
    a.mov(ebx, 1)?;
    a.mov(edi, SEEN[id] as u32)?;
    a.set_label(&mut again)?;
    a.zero_bytes()?;
    body(a)?;
    a.add(rdi, 8)?;
    a.inc(rbx)?;
    a.test(ebx, BATCH - 1)?;
    a.jnz(apart)?;
    a.meet(START)?;
    a.set_label(&mut apart)?;
    a.cmp(rbx, ROUNDS as i32)?;
    a.jle(again)?;
    a.meet(START)
}

/// The words that vCPU `id` kept; element `n` is of round `n + 1`.
fn seen(rig: &Rig, id: usize) -> Vec<u64> {
    let bytes = rig.bytes(SEEN[id], ROUNDS as usize * 8);
    bytes
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")))
        .collect()
}

/// Each stores to its word, then looks at the other's.
fn store_buffer(engine: &dyn Engine, store: impl Fn(&mut CodeAssembler, u64) -> Asm) {
    let side = |a: &mut CodeAssembler, id: usize| {
        let (own, other) = if id == 0 { (X, Y) } else { (Y, X) };
        rounds(a, id, |a| {
            store(a, own)?;
            a.mov(rax, qword_ptr(other))?;
            a.mov(qword_ptr(rdi), rax)
        })
    };
    let mut rig = Rig::with_two(engine, |a| side(a, 0), |a| side(a, 1));
    rig.run_all();
    let (first, second) = (seen(&rig, 0), seen(&rig, 1));
    // In round i the first saw the second's store of round s and not that of round s + 1. So the
    // second, when it looked in round s + 1, came later, and must have seen the first's round i.
    for (mine, theirs) in [(&first, &second), (&second, &first)] {
        for (index, &s) in mine.iter().enumerate() {
            if let Some(&answer) = theirs.get(s as usize) {
                let round = index as u64 + 1;
                assert!(answer >= round, "round {round} saw {s}, and round {} saw {answer}", s + 1);
            }
        }
    }
}

fn store_buffer_fence(engine: &dyn Engine) {
    store_buffer(engine, |a, own| {
        a.mov(qword_ptr(own), rbx)?;
        a.mfence()
    });
}

fn store_buffer_exchange(engine: &dyn Engine) {
    store_buffer(engine, |a, own| {
        a.mov(rax, rbx)?;
        a.xchg(qword_ptr(own), rax)
    });
}

/// A locked instruction elsewhere orders too.
fn store_buffer_locked(engine: &dyn Engine) {
    store_buffer(engine, |a, own| {
        a.mov(qword_ptr(own), rbx)?;
        a.lock().or(dword_ptr(rsp - 64), 0)
    });
}

/// Stores are seen in order: who sees the flag sees the data.
fn message_passing(engine: &dyn Engine) {
    let mut rig = Rig::with_two(
        engine,
        |a| {
            rounds(a, 0, |a| {
                a.mov(qword_ptr(X), rbx)?;
                a.mov(qword_ptr(Y), rbx)
            })
        },
        |a| {
            rounds(a, 1, |a| {
                a.mov(rcx, qword_ptr(Y))?;
                a.mov(rax, qword_ptr(X))?;
                a.sub(rax, rcx)?;
                a.mov(qword_ptr(rdi), rax)
            })
        },
    );
    rig.run_all();
    assert!(seen(&rig, 1).iter().all(|&lead| lead as i64 >= 0), "flag seen before data");
}

/// A string instruction's stores come before the store after it.
fn message_passing_strings(engine: &dyn Engine) {
    let mut rig = Rig::with_two(
        engine,
        |a| {
            rounds(a, 0, |a| {
                a.mov(r8, rdi)?;
                a.mov(edi, window(0) as u32)?;
                a.mov(ecx, 8)?;
                a.mov(rax, rbx)?;
                a.rep().stosq()?;
                a.mov(rdi, r8)?;
                a.mov(qword_ptr(Y), rbx)
            })
        },
        |a| {
            rounds(a, 1, |a| {
                a.mov(rcx, qword_ptr(Y))?;
                a.mov(rax, qword_ptr(window(0) + 56))?;
                a.sub(rax, rcx)?;
                a.mov(qword_ptr(rdi), rax)
            })
        },
    );
    rig.run_all();
    assert!(seen(&rig, 1).iter().all(|&lead| lead as i64 >= 0), "flag seen before data");
}

/// A processor sees its own stores at once, and no other's value in between that is older.
fn own_stores(engine: &dyn Engine) {
    let side = |a: &mut CodeAssembler, id: usize| {
        let own = X + id as u64 * 8;
        rounds(a, id, |a| {
            a.mov(qword_ptr(own), rbx)?;
            a.mov(rax, qword_ptr(own))?;
            a.sub(rax, rbx)?;
            a.mov(qword_ptr(rdi), rax)
        })
    };
    let mut rig = Rig::with_two(engine, |a| side(a, 0), |a| side(a, 1));
    rig.run_all();
    assert!((0..2).all(|id| seen(&rig, id).iter().all(|&difference| difference == 0)));
}

/// A word that only grows is never seen to shrink, and an aligned one never in halves.
fn reads_never_go_back(engine: &dyn Engine) {
    let mut rig = Rig::with_two(
        engine,
        |a| {
            rounds(a, 0, |a| {
                a.mov(rax, rbx)?;
                a.shl(rax, 32)?;
                a.or(rax, rbx)?;
                a.mov(qword_ptr(X), rax)
            })
        },
        |a| {
            rounds(a, 1, |a| {
                a.mov(rax, qword_ptr(X))?;
                a.mov(qword_ptr(rdi), rax)
            })
        },
    );
    rig.run_all();
    let words = seen(&rig, 1);
    assert!(words.is_sorted(), "went back");
    assert!(words.iter().all(|word| word >> 32 == word & 0xffff_ffff), "torn");
}
