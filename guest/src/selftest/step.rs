//! Single stepping by the trap flag: a trap after each instruction, and where there is none.

use super::signal::steps;
use super::{Test, Verdict};
use std::arch::asm;

pub(super) const TESTS: &[Test] = &[
    ("single-step", single_step),
    ("single-step-string", single_step_string),
    ("single-step-syscall", single_step_syscall),
    ("single-step-branch", single_step_branch),
];

/// Set the trap flag, run `$body`, clear it. Gives the address of the label before the body;
/// the first trap is after the first instruction of the body.
macro_rules! stepped {
    ([$($body:literal),+] $(, $($operand:tt)*)?) => {{
        let start: u64;
        // SAFETY: the stack is left as it was; the handler only notes and returns.
        unsafe {
            asm!(
                "lea {start}, [rip + 2f]",
                "pushfq",
                "or qword ptr [rsp], 0x100",
                "popfq",
                "2:",
                $($body,)+
                "pushfq",
                "and qword ptr [rsp], 0xfffffffffffffeff",
                "popfq",
                start = out(reg) start,
                $($($operand)*)?
            )
        }
        start
    }};
}

/// Where the traps were, counted from the start of the body. After the body come `pushfq`,
/// `and` and `popfq`, each with a trap behind it: the flag is judged as the instruction begins.
fn places(traps: &[u64], start: u64) -> Vec<u64> {
    traps.iter().map(|trap| trap.wrapping_sub(start)).collect()
}

fn expect(seen: &[u64], expected: &[u64]) -> Verdict {
    Verdict::of(seen == expected, &format!("traps at {seen:?}, not {expected:?}"))
}

fn single_step() -> Verdict {
    let mut start = 0;
    // Lengths: 1, 2, 7, 4; then pushfq 1, and 8, popfq 1.
    let traps = steps(|| {
        start = stepped!(
            ["nop", "xor ecx, ecx", "mov rcx, 0x12345", ".byte 0x0f, 0x1f, 0x40, 0x00"],
            out("rcx") _,
        );
    });
    expect(&places(&traps, start), &[1, 3, 10, 14, 15, 23, 24])
}

/// One trap for every repetition, and `rip` still at the instruction until the last.
fn single_step_string() -> Verdict {
    let mut start = 0;
    let (from, mut to) = ([7_u8; 4], [0_u8; 4]);
    let traps = steps(|| {
        start = stepped!(
            ["rep movsb"],
            inout("rsi") from.as_ptr() => _,
            inout("rdi") to.as_mut_ptr() => _,
            inout("rcx") 4_u64 => _,
        );
    });
    let copied = Verdict::of(to == from, "not copied");
    Verdict::all([expect(&places(&traps, start), &[0, 0, 0, 2, 3, 11, 12]), copied])
}

/// The flag lives through a system call, and the kernel is not stepped. Whether there is a trap
/// between the call and the instruction after it differs between processors and kernels.
fn single_step_syscall() -> Verdict {
    let mut start = 0;
    let traps = steps(|| {
        start = stepped!(
            ["nop", "syscall", "nop", "nop"],
            inout("rax") libc::SYS_getppid => _,
            out("rcx") _,
            out("r11") _,
        );
    });
    let seen = places(&traps, start);
    let (before, after) = (seen.first() == Some(&1), seen.contains(&5));
    Verdict::of(before && after && seen.len() <= 8, &format!("traps at {seen:?}"))
}

/// Taken and untaken branches, calls and returns.
fn single_step_branch() -> Verdict {
    let mut start = 0;
    // 0: test 3, 3: jz +2 (taken) 2, 5: ud2 2, 7: jnz 2 (not taken), 9: call +2 5, 14: jmp +1 2,
    // 16: ret 1, 17: the end.
    let traps = steps(|| {
        start = stepped!([
            "xor eax, eax; nop",
            ".byte 0x74, 0x02",
            "ud2",
            ".byte 0x75, 0xfc",
            ".byte 0xe8, 0x02, 0x00, 0x00, 0x00",
            ".byte 0xeb, 0x01",
            "ret"
        ], out("eax") _,);
    });
    expect(&places(&traps, start), &[2, 3, 7, 9, 16, 14, 17, 18, 26, 27])
}
