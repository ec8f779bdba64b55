//! Single accesses to guest memory by host address.
//!
//! Guest bytes are accessed by other vCPUs and devices at any time, and at any alignment. Rust has no
//! load that is both, so these are instructions: exactly one each, which gives the guest the atomicity
//! and the ordering (TSO) that the same instruction has on hardware.

use std::arch::asm;

use translator::Word;

/// Reads `T` at `at`.
///
/// # Safety
/// `at .. at + T::SIZE` is mapped readable.
#[inline(always)]
pub(crate) unsafe fn load<T: Word>(at: usize) -> T {
    let value: u64;
    // SAFETY: the caller's promise; the instruction touches no other memory, no flags, no stack.
    unsafe {
        match T::SIZE {
            1 => {
                asm!("movzx {0:e}, byte ptr [{1}]", out(reg) value, in(reg) at, options(nostack, preserves_flags, readonly));
            }
            2 => {
                asm!("movzx {0:e}, word ptr [{1}]", out(reg) value, in(reg) at, options(nostack, preserves_flags, readonly));
            }
            4 => {
                asm!("mov {0:e}, dword ptr [{1}]", out(reg) value, in(reg) at, options(nostack, preserves_flags, readonly));
            }
            _ => {
                asm!("mov {0}, qword ptr [{1}]", out(reg) value, in(reg) at, options(nostack, preserves_flags, readonly));
            }
        }
    }
    T::cut(value)
}

/// Writes `value` at `at`.
///
/// # Safety
/// `at .. at + T::SIZE` is mapped writable, and no Rust reference to it exists.
#[inline(always)]
pub(crate) unsafe fn store<T: Word>(at: usize, value: T) {
    let value = value.zext();
    // SAFETY: the caller's promise; the instruction touches no other memory, no flags, no stack.
    unsafe {
        match T::SIZE {
            1 => {
                asm!("mov byte ptr [{1}], {0}", in(reg_byte) value as u8, in(reg) at, options(nostack, preserves_flags));
            }
            2 => {
                asm!("mov word ptr [{1}], {0:x}", in(reg) value, in(reg) at, options(nostack, preserves_flags));
            }
            4 => {
                asm!("mov dword ptr [{1}], {0:e}", in(reg) value, in(reg) at, options(nostack, preserves_flags));
            }
            _ => {
                asm!("mov qword ptr [{1}], {0}", in(reg) value, in(reg) at, options(nostack, preserves_flags));
            }
        }
    }
}

/// Locked compare-exchange of `T` at `at`, at any alignment; returns what was there.
///
/// # Safety
/// As for [`store`].
#[inline]
pub(crate) unsafe fn compare_exchange<T: Word>(at: usize, old: T, new: T) -> T {
    let mut found = old.zext();
    let new = new.zext();
    // SAFETY: the caller's promise; flags are declared clobbered by default.
    unsafe {
        match T::SIZE {
            1 => {
                asm!("lock cmpxchg byte ptr [{1}], {0}", in(reg_byte) new as u8, in(reg) at, inout("rax") found, options(nostack));
            }
            2 => {
                asm!("lock cmpxchg word ptr [{1}], {0:x}", in(reg) new, in(reg) at, inout("rax") found, options(nostack));
            }
            4 => {
                asm!("lock cmpxchg dword ptr [{1}], {0:e}", in(reg) new, in(reg) at, inout("rax") found, options(nostack));
            }
            _ => {
                asm!("lock cmpxchg qword ptr [{1}], {0}", in(reg) new, in(reg) at, inout("rax") found, options(nostack));
            }
        }
    }
    T::cut(found)
}

/// Locked compare-exchange of 16 bytes; returns what was there.
///
/// # Safety
/// As for [`store`], and `at` is a multiple of 16.
pub(crate) unsafe fn compare_exchange_16(at: usize, old: u128, new: u128) -> u128 {
    let (mut low, mut high) = (old as u64, (old >> 64) as u64);
    // RBX is LLVM's own: swap it in and out around the instruction.
    // SAFETY: the caller's promise; rbx is restored.
    unsafe {
        asm!(
            "xchg rsi, rbx",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            inout("rsi") new as u64 => _,
            in("rdi") at,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

/// Copies `len` bytes ascending, one after the other where the ranges overlap, as REP MOVSB does.
///
/// # Safety
/// `from` is mapped readable and `to` writable for `len` bytes.
pub(crate) unsafe fn copy(to: usize, from: usize, len: usize) {
    // SAFETY: the caller's promise; DF is clear in Rust code by the ABI.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack, preserves_flags));
    }
}

/// Stores the low `size` bytes of `value` `count` times, ascending.
///
/// # Safety
/// `at` is mapped writable for `size * count` bytes.
pub(crate) unsafe fn fill(at: usize, value: u64, size: usize, count: usize) {
    // SAFETY: the caller's promise; DF is clear in Rust code by the ABI.
    unsafe {
        match size {
            1 => {
                asm!("rep stosb", in("al") value as u8, inout("rcx") count => _, inout("rdi") at => _, options(nostack, preserves_flags));
            }
            2 => {
                asm!("rep stosw", in("ax") value as u16, inout("rcx") count => _, inout("rdi") at => _, options(nostack, preserves_flags));
            }
            4 => {
                asm!("rep stosd", in("eax") value as u32, inout("rcx") count => _, inout("rdi") at => _, options(nostack, preserves_flags));
            }
            _ => {
                asm!("rep stosq", in("rax") value, inout("rcx") count => _, inout("rdi") at => _, options(nostack, preserves_flags));
            }
        }
    }
}

/// Reads bytes, by words as far as it goes.
///
/// # Safety
/// As for [`load`], for the whole length.
pub(crate) unsafe fn load_bytes(host: usize, into: &mut [u8]) {
    let (words, rest) = into.as_chunks_mut::<8>();
    let behind = host + 8 * words.len();
    // SAFETY: the caller's promise; widest accesses first, so aligned vectors are read by eights.
    unsafe {
        for (index, word) in words.iter_mut().enumerate() {
            *word = load::<u64>(host + 8 * index).to_le_bytes();
        }
        for (index, byte) in rest.iter_mut().enumerate() {
            *byte = load::<u8>(behind + index);
        }
    }
}

/// Writes bytes, by words as far as it goes.
///
/// # Safety
/// As for [`store`], for the whole length.
pub(crate) unsafe fn store_bytes(host: usize, from: &[u8]) {
    let mut done = 0;
    while done < from.len() {
        let left = &from[done..];
        // SAFETY: the caller's promise.
        unsafe {
            if let Some(word) = left.first_chunk::<8>() {
                store(host + done, u64::from_le_bytes(*word));
                done += 8;
            } else {
                store(host + done, left[0]);
                done += 1;
            }
        }
    }
}
