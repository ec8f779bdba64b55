//! What single threads of the shapes do: a few instructions each, named after what they do.

use std::arch::asm;

/// Given the addresses of two words of which each has 128 bytes to itself, what the thread has seen.
pub(super) type Thread = unsafe fn(x: *mut u64, y: *mut u64) -> [u64; 2];

/// A thread of these instructions: X is at RDI, Y at RSI; RAX and RDX, which begin as 0, are what is seen.
/// RCX and R8 are free, R9 is 1, and the vector registers and the x87 stack too.
macro_rules! thread {
    ($name:ident, $($line:literal),+) => {
        #[inline(never)]
        pub(super) unsafe fn $name(x: *mut u64, y: *mut u64) -> [u64; 2] {
            let (first, second);
            // SAFETY: only the two words and the lines that are theirs are touched, as the caller lets us.
            unsafe {
                asm!(
                    $($line),+,
                    inout("rdi") x => _, inout("rsi") y => _,
                    inout("rax") 0_u64 => first, inout("rdx") 0_u64 => second,
                    inout("r9") 1_u64 => _, out("rcx") _, out("r8") _, out("xmm0") _, out("xmm1") _,
                    out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                    out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                );
            }
            [first, second]
        }
    };
}

thread!(store_x, "mov qword ptr [rdi], 1");
thread!(store_y, "mov qword ptr [rsi], 1");
thread!(store_2_x, "mov qword ptr [rdi], 2");
thread!(store_x_y, "mov qword ptr [rdi], 1", "mov qword ptr [rsi], 1");
thread!(store_2_x_y, "mov qword ptr [rdi], 2", "mov qword ptr [rsi], 1");
thread!(store_x_2_y, "mov qword ptr [rdi], 1", "mov qword ptr [rsi], 2");
thread!(store_y_2_x, "mov qword ptr [rsi], 1", "mov qword ptr [rdi], 2");
thread!(store_2_y_2_x, "mov qword ptr [rsi], 2", "mov qword ptr [rdi], 2");
thread!(store_x_twice, "mov qword ptr [rdi], 1", "mov qword ptr [rdi], 2");
thread!(load_x_y, "mov rax, [rdi]", "mov rdx, [rsi]");
thread!(load_y_x, "mov rax, [rsi]", "mov rdx, [rdi]");
thread!(load_x_twice, "mov rax, [rdi]", "mov rdx, [rdi]");
thread!(load_x_store_y, "mov rax, [rdi]", "mov qword ptr [rsi], 1");
thread!(load_y_store_x, "mov rax, [rsi]", "mov qword ptr [rdi], 1");
thread!(load_x_store_x, "mov rax, [rdi]", "mov qword ptr [rdi], 1");
thread!(load_x_store_2_x, "mov rax, [rdi]", "mov qword ptr [rdi], 2");
thread!(store_x_load_x, "mov qword ptr [rdi], 1", "mov rax, [rdi]");
thread!(store_2_x_load_x, "mov qword ptr [rdi], 2", "mov rax, [rdi]");
thread!(store_x_load_y, "mov qword ptr [rdi], 1", "mov rax, [rsi]");
thread!(store_y_load_x, "mov qword ptr [rsi], 1", "mov rax, [rdi]");
thread!(store_2_y_load_x, "mov qword ptr [rsi], 2", "mov rax, [rdi]");
thread!(store_x_load_x_y, "mov qword ptr [rdi], 1", "mov rax, [rdi]", "mov rdx, [rsi]");
thread!(store_y_load_y_x, "mov qword ptr [rsi], 1", "mov rax, [rsi]", "mov rdx, [rdi]");

// A load may not pass an earlier store if one of these is between them.
thread!(store_x_mfence_load_y, "mov qword ptr [rdi], 1", "mfence", "mov rax, [rsi]");
thread!(store_y_mfence_load_x, "mov qword ptr [rsi], 1", "mfence", "mov rax, [rdi]");
thread!(store_2_y_mfence_load_x, "mov qword ptr [rsi], 2", "mfence", "mov rax, [rdi]");
thread!(store_x_mfence_store_y, "mov qword ptr [rdi], 1", "mfence", "mov qword ptr [rsi], 1");
thread!(
    store_x_locked_load_y,
    "mov qword ptr [rdi], 1",
    "lock or dword ptr [rsp], 0",
    "mov rax, [rsi]"
);
thread!(
    store_y_locked_load_x,
    "mov qword ptr [rsi], 1",
    "lock or dword ptr [rsp], 0",
    "mov rax, [rdi]"
);
thread!(exchange_x_load_y, "xchg [rdi], r9", "mov rax, [rsi]");
thread!(exchange_y_load_x, "xchg [rsi], r9", "mov rax, [rdi]");
thread!(add_x_load_y, "lock xadd [rdi], r9", "mov rax, [rsi]");
thread!(add_y_load_x, "lock xadd [rsi], r9", "mov rax, [rdi]");
// CPUID drains the store buffer as each instruction that serializes does (9.3).
thread!(
    store_x_cpuid_load_y,
    "mov qword ptr [rdi], 1",
    "mov r8, rbx",
    "cpuid",
    "mov rbx, r8",
    "mov rax, [rsi]",
    "xor edx, edx"
);
thread!(
    store_y_cpuid_load_x,
    "mov qword ptr [rsi], 1",
    "mov r8, rbx",
    "cpuid",
    "mov rbx, r8",
    "mov rax, [rdi]",
    "xor edx, edx"
);
// So does IRET, here to the next instruction, with flags, stack and selectors as they are.
thread!(
    store_x_iret_load_y,
    "mov qword ptr [rdi], 1",
    "mov r8, rsp",
    "mov ecx, ss",
    "push rcx",
    "push r8",
    "pushfq",
    "mov ecx, cs",
    "push rcx",
    "lea rcx, [rip + 2f]",
    "push rcx",
    "iretq",
    "2:",
    "mov rax, [rsi]"
);
thread!(
    store_y_iret_load_x,
    "mov qword ptr [rsi], 1",
    "mov r8, rsp",
    "mov ecx, ss",
    "push rcx",
    "push r8",
    "pushfq",
    "mov ecx, cs",
    "push rcx",
    "lea rcx, [rip + 2f]",
    "push rcx",
    "iretq",
    "2:",
    "mov rax, [rdi]"
);

// Other kinds of stores: what comes after them is not seen before them.
thread!(
    string_store_x_store_y,
    "mov ecx, 16",
    "mov eax, 1",
    "rep stosq",
    "mov qword ptr [rsi], 1",
    "xor eax, eax"
);
thread!(load_y_end_of_x, "mov rax, [rsi]", "mov rdx, [rdi + 120]");
thread!(
    string_copy_x_store_y,
    "mov r8, rsi",
    "sub rsp, 256",
    "lea rcx, [rsp + 128]",
    "mov [rcx], r9",
    "mov [rcx + 120], r9",
    "mov rsi, rcx",
    "mov ecx, 128",
    "rep movsb",
    "mov qword ptr [r8], 1",
    "add rsp, 256"
);
thread!(streaming_store_x_store_y, "movnti [rdi], r9", "sfence", "mov qword ptr [rsi], 1");
thread!(vector_store_x_y, "movq xmm0, r9", "movdqa [rdi], xmm0", "movdqu [rsi], xmm0");
thread!(
    vector_load_y_x,
    "movdqa xmm0, [rsi]",
    "movdqu xmm1, [rdi]",
    "movq rax, xmm0",
    "movq rdx, xmm1"
);
thread!(x87_store_x_y, "fld1", "fistp qword ptr [rdi]", "fld1", "fistp qword ptr [rsi]");
thread!(
    push_store_x_y,
    "mov r8, rsp",
    "lea rsp, [rdi + 8]",
    "push r9",
    "mov rsp, r8",
    "mov [rsi], r9"
);
thread!(increment_x_y, "inc qword ptr [rdi]", "add qword ptr [rsi], 1");
