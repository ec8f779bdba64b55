//! How fast the interpreter is on flat memory: `mips [SECONDS]`. Millions of instructions a second for
//! small loops, found through nothing but a table of blocks, so that handlers and the loop over a block
//! are what counts.

use std::time::{Duration, Instant};

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, *};
use oracle::interpret::{self, FlatMachine};
use oracle::native::Bitness;
use oracle::{State, arena};
use translator::decode::{BLOCK_LIMIT, decode_block};
use translator::{Block, Core, Mode, Outcome, Width};

fn main() -> Result<(), IcedError> {
    let seconds = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(1.0);
    let time = Duration::from_secs_f64(seconds);
    report("registers", registers()?, time);
    report("memory", memory()?, time);
    report("calls", calls()?, time);
    report("mixed", mixed()?, time);
    Ok(())
}

fn report(name: &str, code: Vec<u8>, time: Duration) {
    let mut state = State::new();
    state.gpr[4] = arena::DATA + 4096;
    state.gpr[6] = arena::DATA;
    let mut core = interpret::core(&state, Bitness::Bits64);
    let blocks = blocks(&code);
    let start = Instant::now();
    while start.elapsed() < time {
        for _ in 0..10_000 {
            step(&mut core, &blocks);
        }
    }
    let rate = core.cpu.retired as f64 / start.elapsed().as_secs_f64() / 1e6;
    println!("{name:10} {rate:7.1} MIPS");
}

fn step(core: &mut Core<FlatMachine>, blocks: &[Option<Block<FlatMachine>>]) {
    let offset = core.cpu.rip().wrapping_sub(arena::ENTRY) as usize;
    let block = blocks.get(offset).and_then(Option::as_ref).expect("the loop stays inside");
    assert_eq!(core.run_block(&block.insns, false), Outcome::Done, "the loop does not fault");
}

/// A block for every offset at which one can start.
fn blocks(code: &[u8]) -> Vec<Option<Block<FlatMachine>>> {
    let mode = Mode { width: Width::Bits64 };
    let block = |at: usize| {
        let decoded = decode_block(&code[at..], mode, BLOCK_LIMIT);
        (!decoded.insns.is_empty()).then(|| Block::new(decoded.insns, at as u64, None))
    };
    (0..code.len()).map(block).collect()
}

fn assembled(
    body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<Vec<u8>, IcedError> {
    let mut asm = CodeAssembler::new(64)?;
    body(&mut asm)?;
    asm.assemble(arena::ENTRY)
}

fn registers() -> Result<Vec<u8>, IcedError> {
    assembled(|asm| {
        let mut top = asm.create_label();
        asm.set_label(&mut top)?;
        asm.add(rax, rbx)?;
        asm.xor(rbx, rcx)?;
        asm.lea(rdx, qword_ptr(rax + rbx * 4 + 17))?;
        asm.shr(rdx, 3)?;
        asm.mov(r8d, edx)?;
        asm.and(r8d, 0xff)?;
        asm.sub(rcx, 1)?;
        asm.test(r8d, r8d)?;
        asm.jne(top)?;
        asm.jmp(top)
    })
}

fn memory() -> Result<Vec<u8>, IcedError> {
    assembled(|asm| {
        let mut top = asm.create_label();
        asm.set_label(&mut top)?;
        asm.mov(rax, qword_ptr(rsi + rcx * 8))?;
        asm.add(rax, qword_ptr(rsi + 64))?;
        asm.mov(qword_ptr(rsi + rcx * 8 + 8), rax)?;
        asm.movzx(edx, byte_ptr(rsi + rcx))?;
        asm.add(dword_ptr(rsi + 128), edx)?;
        asm.inc(ecx)?;
        asm.and(ecx, 0x7f)?;
        asm.cmp(qword_ptr(rsi + 8), rax)?;
        asm.jne(top)?;
        asm.jmp(top)
    })
}

fn calls() -> Result<Vec<u8>, IcedError> {
    assembled(|asm| {
        let mut top = asm.create_label();
        let mut function = asm.create_label();
        asm.set_label(&mut top)?;
        asm.call(function)?;
        asm.jmp(top)?;
        asm.set_label(&mut function)?;
        asm.push(rbx)?;
        asm.mov(rbx, rdi)?;
        asm.inc(rbx)?;
        asm.mov(rax, rbx)?;
        asm.pop(rbx)?;
        asm.ret()
    })
}

fn mixed() -> Result<Vec<u8>, IcedError> {
    assembled(|asm| {
        let mut top = asm.create_label();
        let mut skip = asm.create_label();
        asm.set_label(&mut top)?;
        asm.push(rbp)?;
        asm.mov(rbp, rsp)?;
        asm.mov(rax, qword_ptr(rsi + 16))?;
        asm.lea(rax, qword_ptr(rax + rax * 2 + 1))?;
        asm.mov(qword_ptr(rsi + 16), rax)?;
        asm.test(al, 4)?;
        asm.je(skip)?;
        asm.add(dword_ptr(rsi + 32), 1)?;
        asm.imul_2(rcx, rax)?;
        asm.set_label(&mut skip)?;
        asm.cmp(rcx, 100)?;
        asm.setb(dl)?;
        asm.movzx(edx, dl)?;
        asm.cmovs(rcx, rdx)?;
        asm.pop(rbp)?;
        asm.jmp(top)
    })
}
