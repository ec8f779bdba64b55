//! Which opcodes are decoded here, and into what.
//!
//! Sizes, shapes and handlers are those that the selectors in [`crate::decode`] choose; the tests compare them for
//! every opcode.

use crate::insn::Handler;
use crate::interp::arith::{
    Adc, Add, And, Binary, Dec, Inc, Neg, Not, Or, Sbb, Sub, Unary, Xor, binary, compare, unary,
};
use crate::interp::branch::{call, call_to, jcc, jmp, jmp_to, ret};
use crate::interp::control;
use crate::interp::moves::{cmov, extend_accumulator, extend_to_rdx, lea, mov, movsx, movzx, set};
use crate::interp::muldiv::{div, idiv, imul, imul_to, mul};
use crate::interp::operand::{Imm, Mem, Reg, Src};
use crate::interp::shift::{Cl, Rol, Ror, Sar, Shift, Shl, Shr, shift};
use crate::interp::stack::{Long, leave, pop, push};
use crate::machine::Machine;

/// What an opcode is decoded into.
pub(super) struct Row<M: Machine> {
    /// By operand size (16, 32, 64 bits), for a register and for memory in the ModRM's rm field.
    pub(super) handlers: [[Handler<M>; 2]; 3],
    pub(super) shape: Shape,
}

impl<M: Machine> Clone for Row<M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: Machine> Copy for Row<M> {}

/// What stands behind an opcode, and where it goes.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) behind: Behind,
    pub(super) dst: Part,
    pub(super) src: Part,
    pub(super) imm: Constant,
    /// The registers named by the reg and the rm field have 8 bits.
    pub(super) bytes: [bool; 2],
    /// It pushes or pops.
    pub(super) stack: bool,
    /// A prefix for another operand size makes it something else.
    pub(super) one_size: bool,
    pub(super) ends: bool,
}

/// What stands right behind the opcode.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Behind {
    /// It is not decoded here.
    Unknown,
    /// No ModRM.
    Nothing,
    ModRm,
    /// A ModRM whose rm field names memory.
    Memory,
    /// A ModRM whose reg field chooses the row in this group.
    Group(u8),
}

/// A register operand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    None,
    /// The ModRM's reg field.
    Reg,
    /// The ModRM's rm field, if that is a register.
    Rm,
    /// The opcode's low bits.
    Low,
    /// AL to RAX.
    Accumulator,
    Cl,
}

/// What the immediate is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Constant {
    None,
    One,
    Byte,
    SignedByte,
    Word,
    SignedDword,
    /// As wide as the operand, but no more than 32 bits, sign-extended.
    Sized,
    /// As wide as the operand.
    Full,
}

impl Constant {
    /// Its bytes, and whether it is sign-extended, by operand size.
    #[inline(always)]
    pub(super) fn encoding(self, size: usize) -> (usize, bool) {
        const ENCODINGS: [[(u8, bool); 3]; 8] = [
            [(0, false); 3],
            [(0, false); 3],
            [(1, false); 3],
            [(1, true); 3],
            [(2, false); 3],
            [(4, true); 3],
            [(2, false), (4, false), (4, true)],
            [(2, false), (4, false), (8, false)],
        ];
        let (len, signed) = ENCODINGS[self as usize][size];
        (len.into(), signed)
    }
}

const NOTHING: Shape = Shape {
    behind: Behind::Nothing,
    dst: Part::None,
    src: Part::None,
    imm: Constant::None,
    bytes: [false; 2],
    stack: false,
    one_size: false,
    ends: false,
};

impl Shape {
    const fn operands(dst: Part, src: Part) -> Self {
        Self { behind: Behind::ModRm, dst, src, ..NOTHING }
    }

    const fn imm(self, imm: Constant) -> Self {
        Self { imm, ..self }
    }

    const fn bytes(self) -> Self {
        Self { bytes: [true; 2], ..self }
    }

    const fn without_modrm(self) -> Self {
        Self { behind: Behind::Nothing, ..self }
    }

    const fn stack(self) -> Self {
        Self { stack: true, one_size: true, ..self }
    }

    const fn branch(self) -> Self {
        Self { one_size: true, ends: true, ..self }
    }
}

const RM_REG: Shape = Shape::operands(Part::Rm, Part::Reg);
const REG_RM: Shape = Shape::operands(Part::Reg, Part::Rm);
const RM: Shape = Shape::operands(Part::Rm, Part::None);
/// Its operand is laid out as both.
const TWICE: Shape = Shape::operands(Part::Rm, Part::Rm);
const ACCUMULATOR: Shape = Shape::operands(Part::Accumulator, Part::None).without_modrm();
const LOW: Shape = Shape::operands(Part::Low, Part::None).without_modrm();

/// Handlers by operand size.
macro_rules! by_size {
    ($T:ident => $register:expr, $memory:expr) => {
        [
            {
                type $T = u16;
                [$register, $memory]
            },
            {
                type $T = u32;
                [$register, $memory]
            },
            {
                type $T = u64;
                [$register, $memory]
            },
        ]
    };
    ($T:ident => $handler:expr) => {
        by_size!($T => $handler, $handler)
    };
}

/// One row for each condition.
macro_rules! by_condition {
    ($CC:ident => $row:expr) => {
        by_condition!(@ $CC, $row, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $CC:ident, $row:expr, $($n:literal)*) => {
        [$({
            const $CC: u8 = $n;
            $row
        }),*]
    };
}

/// All rows.
pub(super) struct Rows<M: Machine> {
    /// By the opcode's only byte.
    pub(super) one: [Row<M>; 256],
    /// By the byte behind 0F.
    pub(super) two: [Row<M>; 256],
    /// By [`Behind::Group`].
    pub(super) groups: [[Row<M>; 8]; GROUPS],
}

const GROUPS: usize = 16;
/// By their opcodes, in order.
const ALU: [u8; 3] = [0, 1, 2];
const SHIFTS: [u8; 6] = [3, 4, 5, 6, 7, 8];
const UNARY: [u8; 2] = [9, 10];
const STEPS: u8 = 11;
const MIXED: u8 = 12;
const NOPS: u8 = 13;
const CONSTANTS: [u8; 2] = [14, 15];

impl<M: Machine> Rows<M> {
    pub(super) const ALL: &'static Self = &Self { one: one(), two: two(), groups: groups() };
}

const fn row<M: Machine>(shape: Shape, handlers: [[Handler<M>; 2]; 3]) -> Row<M> {
    Row { handlers, shape }
}

/// The same for all sizes.
const fn same<M: Machine>(shape: Shape, register: Handler<M>, memory: Handler<M>) -> Row<M> {
    row(shape, [[register, memory]; 3])
}

const fn unknown<M: Machine>() -> Row<M> {
    let shape = Shape { behind: Behind::Unknown, ..NOTHING };
    same(shape, control::nop::<M>, control::nop::<M>)
}

const fn group<M: Machine>(number: u8) -> Row<M> {
    Row { shape: Shape { behind: Behind::Group(number), ..NOTHING }, ..unknown() }
}

const fn one<M: Machine>() -> [Row<M>; 256] {
    let mut rows = [unknown(); 256];
    let alu = [
        operation::<M, Add>(),
        operation::<M, Or>(),
        operation::<M, Adc>(),
        operation::<M, Sbb>(),
        operation::<M, And>(),
        operation::<M, Sub>(),
        operation::<M, Xor>(),
        comparison::<M, Sub>(),
    ];
    let mut n = 0;
    while n < 64 {
        rows[n] = alu[n >> 3][n & 7];
        n += 1;
    }
    let test = comparison::<M, And>();
    (rows[0x84], rows[0x85], rows[0xa8], rows[0xa9]) = (test[0], test[1], test[4], test[5]);
    rows[0x63] = row(REG_RM, widened());
    let pushed = push::<M, u64, Long, Imm> as Handler<M>;
    rows[0x68] = same(NOTHING.stack().imm(Constant::SignedDword), pushed, pushed);
    rows[0x6a] = same(NOTHING.stack().imm(Constant::SignedByte), pushed, pushed);
    let scaled = by_size!(T => imul_to::<M, T, Src, Imm>, imul_to::<M, T, Mem, Imm>);
    rows[0x69] = row(REG_RM.imm(Constant::Sized), scaled);
    rows[0x6b] = row(REG_RM.imm(Constant::SignedByte), scaled);
    let jumps: [Row<M>; 16] = by_condition!(CC => jump(Constant::SignedByte, jcc::<M, Long, CC>));
    let mut n = 0;
    while n < 16 {
        rows[0x70 + n] = jumps[n];
        n += 1;
    }
    (rows[0x80], rows[0x81], rows[0x83]) = (group(ALU[0]), group(ALU[1]), group(ALU[2]));
    let stores = by_size!(T => mov::<M, T, Reg, Src>, mov::<M, T, Mem, Src>);
    let loads = by_size!(T => mov::<M, T, Reg, Src>, mov::<M, T, Reg, Mem>);
    rows[0x88] = same(RM_REG.bytes(), mov::<M, u8, Reg, Src>, mov::<M, u8, Mem, Src>);
    rows[0x89] = row(RM_REG, stores);
    rows[0x8a] = same(REG_RM.bytes(), mov::<M, u8, Reg, Src>, mov::<M, u8, Reg, Mem>);
    rows[0x8b] = row(REG_RM, loads);
    let address = Shape { behind: Behind::Memory, ..REG_RM };
    rows[0x8d] = row(address, by_size!(T => lea::<M, T>));
    rows[0x90] = same(NOTHING, control::nop::<M>, control::nop::<M>);
    rows[0x98] = row(NOTHING, extensions());
    rows[0x99] = row(NOTHING, by_size!(T => extend_to_rdx::<M, T>));
    accumulator_and_low(&mut rows);
    let mut n = 0;
    while n < SHIFTS.len() {
        const OPCODES: [usize; 6] = [0xc0, 0xc1, 0xd0, 0xd1, 0xd2, 0xd3];
        rows[OPCODES[n]] = group(SHIFTS[n]);
        n += 1;
    }
    let back = NOTHING.stack().branch();
    rows[0xc2] = same(back.imm(Constant::Word), ret::<M, u64, Long>, ret::<M, u64, Long>);
    rows[0xc3] = same(back, ret::<M, u64, Long>, ret::<M, u64, Long>);
    (rows[0xc6], rows[0xc7]) = (group(CONSTANTS[0]), group(CONSTANTS[1]));
    rows[0xc9] = same(NOTHING.stack(), leave::<M, u64, Long>, leave::<M, u64, Long>);
    let called = NOTHING.stack().branch().imm(Constant::SignedDword);
    rows[0xe8] = same(called, call::<M, u64, Long>, call::<M, u64, Long>);
    rows[0xe9] = jump(Constant::SignedDword, jmp::<M, Long>);
    rows[0xeb] = jump(Constant::SignedByte, jmp::<M, Long>);
    (rows[0xf6], rows[0xf7]) = (group(UNARY[0]), group(UNARY[1]));
    (rows[0xfe], rows[0xff]) = (group(STEPS), group(MIXED));
    rows
}

/// The opcodes that name a register themselves, and 90.
const fn accumulator_and_low<M: Machine>(rows: &mut [Row<M>; 256]) {
    let (out, into) = (pop::<M, u64, Long> as Handler<M>, push::<M, u64, Long, Src> as Handler<M>);
    let loaded: [[Handler<M>; 2]; 3] = by_size!(T => mov::<M, T, Reg, Imm>);
    let mut n = 0;
    while n < 8 {
        let both = Shape { src: Part::Low, ..LOW };
        rows[0x50 + n] = same(both.stack(), into, into);
        rows[0x58 + n] = same(LOW.stack(), out, out);
        let byte = mov::<M, u8, Reg, Imm> as Handler<M>;
        rows[0xb0 + n] = same(LOW.bytes().imm(Constant::Byte), byte, byte);
        rows[0xb8 + n] = row(LOW.imm(Constant::Full), loaded);
        n += 1;
    }
}

/// The six forms of an operation: 00 to 05.
const fn operation<M: Machine, O: Binary>() -> [Row<M>; 8] {
    let to_rm = by_size!(T => binary::<M, T, O, Reg, Src>, binary::<M, T, O, Mem, Src>);
    let to_reg = by_size!(T => binary::<M, T, O, Reg, Src>, binary::<M, T, O, Reg, Mem>);
    [
        same(RM_REG.bytes(), binary::<M, u8, O, Reg, Src>, binary::<M, u8, O, Mem, Src>),
        row(RM_REG, to_rm),
        same(REG_RM.bytes(), binary::<M, u8, O, Reg, Src>, binary::<M, u8, O, Reg, Mem>),
        row(REG_RM, to_reg),
        same(
            ACCUMULATOR.bytes().imm(Constant::Byte),
            binary::<M, u8, O, Reg, Imm>,
            binary::<M, u8, O, Reg, Imm>,
        ),
        row(ACCUMULATOR.imm(Constant::Sized), by_size!(T => binary::<M, T, O, Reg, Imm>)),
        unknown(),
        unknown(),
    ]
}

/// The same of CMP and TEST.
const fn comparison<M: Machine, O: Binary>() -> [Row<M>; 8] {
    let to_rm = by_size!(T => compare::<M, T, O, Reg, Src>, compare::<M, T, O, Mem, Src>);
    let to_reg = by_size!(T => compare::<M, T, O, Reg, Src>, compare::<M, T, O, Reg, Mem>);
    [
        same(RM_REG.bytes(), compare::<M, u8, O, Reg, Src>, compare::<M, u8, O, Mem, Src>),
        row(RM_REG, to_rm),
        same(REG_RM.bytes(), compare::<M, u8, O, Reg, Src>, compare::<M, u8, O, Reg, Mem>),
        row(REG_RM, to_reg),
        same(
            ACCUMULATOR.bytes().imm(Constant::Byte),
            compare::<M, u8, O, Reg, Imm>,
            compare::<M, u8, O, Reg, Imm>,
        ),
        row(ACCUMULATOR.imm(Constant::Sized), by_size!(T => compare::<M, T, O, Reg, Imm>)),
        unknown(),
        unknown(),
    ]
}

/// MOVSXD: without REX.W it extends nothing.
const fn widened<M: Machine>() -> [[Handler<M>; 2]; 3] {
    [
        [movsx::<M, u16, u16, Src>, movsx::<M, u16, u16, Mem>],
        [movsx::<M, u32, u32, Src>, movsx::<M, u32, u32, Mem>],
        [movsx::<M, u64, u32, Src>, movsx::<M, u64, u32, Mem>],
    ]
}

/// CBW, CWDE, CDQE.
const fn extensions<M: Machine>() -> [[Handler<M>; 2]; 3] {
    [
        [extend_accumulator::<M, u16, u8>, extend_accumulator::<M, u16, u8>],
        [extend_accumulator::<M, u32, u16>, extend_accumulator::<M, u32, u16>],
        [extend_accumulator::<M, u64, u32>, extend_accumulator::<M, u64, u32>],
    ]
}

const fn jump<M: Machine>(distance: Constant, handler: Handler<M>) -> Row<M> {
    same(NOTHING.branch().imm(distance), handler, handler)
}

/// MOV of a constant.
const fn constant<M: Machine>(imm: Constant, byte: bool) -> Row<M> {
    if byte {
        return same(RM.bytes().imm(imm), mov::<M, u8, Reg, Imm>, mov::<M, u8, Mem, Imm>);
    }
    row(RM.imm(imm), by_size!(T => mov::<M, T, Reg, Imm>, mov::<M, T, Mem, Imm>))
}

const fn two<M: Machine>() -> [Row<M>; 256] {
    let mut rows = [unknown(); 256];
    let moves: [Row<M>; 16] = by_condition!(CC => row(
        REG_RM,
        by_size!(T => cmov::<M, T, Src, CC>, cmov::<M, T, Mem, CC>)
    ));
    let jumps: [Row<M>; 16] = by_condition!(CC => jump(Constant::SignedDword, jcc::<M, Long, CC>));
    let sets: [Row<M>; 16] =
        by_condition!(CC => same(RM.bytes(), set::<M, Reg, CC>, set::<M, Mem, CC>));
    let mut n = 0;
    while n < 16 {
        (rows[0x40 + n], rows[0x80 + n], rows[0x90 + n]) = (moves[n], jumps[n], sets[n]);
        n += 1;
    }
    rows[0x1f] = group(NOPS);
    let product = by_size!(T => imul_to::<M, T, Reg, Src>, imul_to::<M, T, Reg, Mem>);
    rows[0xaf] = row(REG_RM, product);
    // The reg field's register is of the operand's size.
    let from_byte = Shape { bytes: [false, true], ..REG_RM };
    let zero = by_size!(T => movzx::<M, T, u8, Src>, movzx::<M, T, u8, Mem>);
    rows[0xb6] = row(from_byte, zero);
    rows[0xb7] = row(REG_RM, by_size!(T => movzx::<M, T, u16, Src>, movzx::<M, T, u16, Mem>));
    let sign = by_size!(T => movsx::<M, T, u8, Src>, movsx::<M, T, u8, Mem>);
    rows[0xbe] = row(from_byte, sign);
    rows[0xbf] = row(REG_RM, by_size!(T => movsx::<M, T, u16, Src>, movsx::<M, T, u16, Mem>));
    rows
}

const fn groups<M: Machine>() -> [[Row<M>; 8]; GROUPS] {
    let mut groups = [[unknown(); 8]; GROUPS];
    groups[ALU[0] as usize] = alu(Constant::Byte, true);
    groups[ALU[1] as usize] = alu(Constant::Sized, false);
    groups[ALU[2] as usize] = alu(Constant::SignedByte, false);
    let mut n = 0;
    while n < 2 {
        groups[SHIFTS[n] as usize] = shifts(RM.imm(Constant::Byte), n == 0);
        groups[SHIFTS[n + 2] as usize] = shifts(RM.imm(Constant::One), n == 0);
        groups[SHIFTS[n + 4] as usize] = shifts_by_cl(n == 0);
        n += 1;
    }
    (groups[UNARY[0] as usize], groups[UNARY[1] as usize]) = (byte_group_3(), group_3());
    let steps = &mut groups[STEPS as usize];
    steps[0] = same(RM.bytes(), unary::<M, u8, Inc, Reg>, unary::<M, u8, Inc, Mem>);
    steps[1] = same(RM.bytes(), unary::<M, u8, Dec, Reg>, unary::<M, u8, Dec, Mem>);
    groups[MIXED as usize] = group_5();
    let idle = Shape { behind: Behind::ModRm, ..NOTHING };
    groups[CONSTANTS[0] as usize][0] = constant(Constant::Byte, true);
    groups[CONSTANTS[1] as usize][0] = constant(Constant::Sized, false);
    groups[NOPS as usize][0] = same(idle, control::nop::<M>, control::nop::<M>);
    groups
}

const fn alu<M: Machine>(imm: Constant, byte: bool) -> [Row<M>; 8] {
    [
        by_constant::<M, Add>(imm, byte),
        by_constant::<M, Or>(imm, byte),
        by_constant::<M, Adc>(imm, byte),
        by_constant::<M, Sbb>(imm, byte),
        by_constant::<M, And>(imm, byte),
        by_constant::<M, Sub>(imm, byte),
        by_constant::<M, Xor>(imm, byte),
        compared::<M, Sub>(imm, byte),
    ]
}

const fn by_constant<M: Machine, O: Binary>(imm: Constant, byte: bool) -> Row<M> {
    if byte {
        let shape = RM.bytes().imm(imm);
        return same(shape, binary::<M, u8, O, Reg, Imm>, binary::<M, u8, O, Mem, Imm>);
    }
    row(RM.imm(imm), by_size!(T => binary::<M, T, O, Reg, Imm>, binary::<M, T, O, Mem, Imm>))
}

const fn compared<M: Machine, O: Binary>(imm: Constant, byte: bool) -> Row<M> {
    if byte {
        let shape = RM.bytes().imm(imm);
        return same(shape, compare::<M, u8, O, Reg, Imm>, compare::<M, u8, O, Mem, Imm>);
    }
    row(RM.imm(imm), by_size!(T => compare::<M, T, O, Reg, Imm>, compare::<M, T, O, Mem, Imm>))
}

/// By a constant; rotations through carry are rare.
const fn shifts<M: Machine>(shape: Shape, byte: bool) -> [Row<M>; 8] {
    [
        shifted::<M, Rol>(shape, byte),
        shifted::<M, Ror>(shape, byte),
        unknown(),
        unknown(),
        shifted::<M, Shl>(shape, byte),
        shifted::<M, Shr>(shape, byte),
        unknown(),
        shifted::<M, Sar>(shape, byte),
    ]
}

const fn shifted<M: Machine, O: Shift>(shape: Shape, byte: bool) -> Row<M> {
    if byte {
        let shape = shape.bytes();
        return same(shape, shift::<M, u8, O, Reg, Imm>, shift::<M, u8, O, Mem, Imm>);
    }
    row(shape, by_size!(T => shift::<M, T, O, Reg, Imm>, shift::<M, T, O, Mem, Imm>))
}

const fn shifts_by_cl<M: Machine>(byte: bool) -> [Row<M>; 8] {
    [
        by_cl::<M, Rol>(byte),
        by_cl::<M, Ror>(byte),
        unknown(),
        unknown(),
        by_cl::<M, Shl>(byte),
        by_cl::<M, Shr>(byte),
        unknown(),
        by_cl::<M, Sar>(byte),
    ]
}

const fn by_cl<M: Machine, O: Shift>(byte: bool) -> Row<M> {
    let shape = Shape::operands(Part::Rm, Part::Cl);
    if byte {
        let shape = shape.bytes();
        return same(shape, shift::<M, u8, O, Reg, Cl>, shift::<M, u8, O, Mem, Cl>);
    }
    row(shape, by_size!(T => shift::<M, T, O, Reg, Cl>, shift::<M, T, O, Mem, Cl>))
}

const fn byte_group_3<M: Machine>() -> [Row<M>; 8] {
    let twice = TWICE.bytes();
    let mut rows = [unknown(); 8];
    rows[0] = compared::<M, And>(Constant::Byte, true);
    rows[2] = same(RM.bytes(), unary::<M, u8, Not, Reg>, unary::<M, u8, Not, Mem>);
    rows[3] = same(RM.bytes(), unary::<M, u8, Neg, Reg>, unary::<M, u8, Neg, Mem>);
    rows[4] = same(twice, mul::<M, u8, Src>, mul::<M, u8, Mem>);
    rows[5] = same(twice, imul::<M, u8, Src>, imul::<M, u8, Mem>);
    rows[6] = same(twice, div::<M, u8, Src>, div::<M, u8, Mem>);
    rows[7] = same(twice, idiv::<M, u8, Src>, idiv::<M, u8, Mem>);
    rows
}

const fn group_3<M: Machine>() -> [Row<M>; 8] {
    let mut rows = [unknown(); 8];
    rows[0] = compared::<M, And>(Constant::Sized, false);
    rows[2] = one_operand::<M, Not>();
    rows[3] = one_operand::<M, Neg>();
    rows[4] = row(TWICE, by_size!(T => mul::<M, T, Src>, mul::<M, T, Mem>));
    rows[5] = row(TWICE, by_size!(T => imul::<M, T, Src>, imul::<M, T, Mem>));
    rows[6] = row(TWICE, by_size!(T => div::<M, T, Src>, div::<M, T, Mem>));
    rows[7] = row(TWICE, by_size!(T => idiv::<M, T, Src>, idiv::<M, T, Mem>));
    rows
}

const fn group_5<M: Machine>() -> [Row<M>; 8] {
    let mut rows = [unknown(); 8];
    rows[0] = one_operand::<M, Inc>();
    rows[1] = one_operand::<M, Dec>();
    let (called, jumped) = (TWICE.stack().branch(), TWICE.branch());
    rows[2] = same(called, call_to::<M, u64, Long, Src>, call_to::<M, u64, Long, Mem>);
    rows[4] = same(jumped, jmp_to::<M, u64, Long, Src>, jmp_to::<M, u64, Long, Mem>);
    rows[6] = same(TWICE.stack(), push::<M, u64, Long, Src>, push::<M, u64, Long, Mem>);
    rows
}

const fn one_operand<M: Machine, O: Unary>() -> Row<M> {
    row(RM, by_size!(T => unary::<M, T, O, Reg>, unary::<M, T, O, Mem>))
}
