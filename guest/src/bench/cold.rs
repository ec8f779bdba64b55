//! Code that runs once: what it costs to meet an instruction for the first time.

use super::{Job, Random, Workload, mix};
use crate::sys::{Mapping, PAGE};
use std::io::Result;

pub(super) const WORKLOADS: [Workload; 1] =
    [Workload { name: "cold-code", group: "cold", amount: 8_192, cpus: 1, run: cold }];

/// Blocks in a function.
const BLOCKS: usize = 32;
/// A block at its longest is so long.
const BLOCK_BYTES: usize = 40;

/// Functions that are made and then called, each once. Amount: functions of 32 blocks.
fn cold(job: &Job<'_>) -> Result<()> {
    let code = functions(job.amount as usize);
    let writable = libc::PROT_READ | libc::PROT_WRITE;
    let memory = Mapping::new(code.bytes.len().next_multiple_of(PAGE), writable)?;
    // SAFETY: the mapping is at least as long as the code, and nothing else knows it.
    unsafe { memory.pointer().copy_from_nonoverlapping(code.bytes.as_ptr(), code.bytes.len()) };
    // SAFETY: nobody writes to it from now on.
    unsafe { memory.protect(0, code.bytes.len(), libc::PROT_READ | libc::PROT_EXEC)? };
    job.measure(|| {
        let value = code.starts.iter().fold(1, |value, start| {
            // SAFETY: a whole function of the C convention begins there; it uses registers only
            // that a caller does not expect back.
            let function: extern "C" fn(u64) -> u64 =
                unsafe { std::mem::transmute(memory.pointer().add(*start)) };
            function(value)
        });
        Ok(mix(value, code.starts.len() as u64))
    })
}

struct Code {
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

fn functions(count: usize) -> Code {
    let mut code =
        Code { bytes: Vec::with_capacity(count * (BLOCKS + 1) * BLOCK_BYTES), starts: Vec::new() };
    let mut random = Random::new();
    for _ in 0..count {
        code.starts.push(code.bytes.len());
        code.bytes.extend([0x48, 0x89, 0xf8]); // mov rax, rdi
        for _ in 0..BLOCKS {
            block(&mut code.bytes, &mut random);
        }
        code.bytes.push(0xc3); // ret
    }
    code
}

/// Arithmetic on rax with numbers of its own, then a jump that is taken or not over an
/// instruction.
fn block(code: &mut Vec<u8>, random: &mut Random) {
    let mut number = || (random.next() >> 20) as u32;
    code.extend([0x48, 0x05]); // add rax, number
    code.extend(number().to_le_bytes());
    code.extend([0x48, 0xc1, 0xc0, number() as u8 % 31 + 1]); // rol rax, number
    code.push(0xba); // mov edx, number
    code.extend(number().to_le_bytes());
    code.extend([0x48, 0x01, 0xd0]); // add rax, rdx
    code.extend([0x48, 0x35]); // xor rax, number
    code.extend(number().to_le_bytes());
    code.extend([0xa8, 1 << (number() % 8)]); // test al, one bit
    code.extend([0x74, 0x03]); // jz past the next
    code.extend([0x48, 0xff, 0xc0]); // inc rax
}
