//! Random bytes in every mode: decoding and executing them must end, whatever they are.

use oracle::interpret::FlatMachine;
use oracle::{Random, arena, run};
use translator::decode::{BLOCK_LIMIT, MAX_LEN, decode_block, decode_crossing};
use translator::{Block, Core, Cpu, Mode, Width};

#[test]
fn random_bytes_end() {
    for case in 0..run::cases(200_000) {
        let mut random = run::random(run::seed(), case);
        let bytes: Vec<u8> = (0..random.below(64)).map(|_| random.bits() as u8).collect();
        let width = random.pick(&[Width::Bits16, Width::Bits32, Width::Bits64]);
        execute(&bytes, width, &mut random);
    }
}

fn execute(bytes: &[u8], width: Width, random: &mut Random) {
    let mode = Mode { width };
    let decoded = decode_block::<FlatMachine>(bytes, mode, BLOCK_LIMIT);
    assert!(decoded.len as usize <= bytes.len());
    assert!(decoded.insns.len() <= BLOCK_LIMIT);
    assert_eq!(decoded.crosses, decoded.insns.is_empty(), "{bytes:02x?}");
    if decoded.crosses {
        assert!(bytes.len() < MAX_LEN && decode_crossing::<FlatMachine>(bytes, mode).is_none());
        return;
    }
    let mut cpu = Cpu::new();
    for value in &mut cpu.regs[..16] {
        *value = match random.below(4) {
            0 => random.interesting(),
            _ => arena::DATA + random.below(arena::DATA_LEN as u64),
        };
    }
    cpu.width = width;
    cpu.stack_mask = width.mask();
    cpu.xcr0 = 7;
    for segment in &mut cpu.segs[..6] {
        // In 16-bit code everything is within reach of the segment.
        segment.base = if width == Width::Bits16 { arena::DATA - 0x1000 } else { 0 };
    }
    let mut core =
        Core { cpu, machine: FlatMachine::new(Box::new(arena::Pages([0x55; arena::DATA_LEN]))) };
    let block = Block::new(decoded.insns, 0, None);
    let _ = core.run_block(&block.insns, false);
    assert_eq!(core.cpu.regs[usize::from(translator::REG_NONE)], 0, "{bytes:02x?}");
    assert_eq!(core.cpu.rip() & !width.mask(), 0, "{bytes:02x?}");
}
