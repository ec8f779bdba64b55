//! Host instructions of the fixed sequences in generated code, as bytes.
//!
//! Registers are numbers, 0..=15 in encoding order. Operands are 64 bits wide unless the name says
//! otherwise.

/// A place in the code that is not known yet when it is named.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Label(u32);

/// Condition codes as Jcc numbers them.
#[allow(non_snake_case, reason = "a namespace of constants")]
pub(super) mod Condition {
    pub(in crate::native) const B: u8 = 2;
    pub(in crate::native) const AE: u8 = 3;
    pub(in crate::native) const E: u8 = 4;
    pub(in crate::native) const NE: u8 = 5;
    pub(in crate::native) const BE: u8 = 6;
    pub(in crate::native) const A: u8 = 7;
}

const UNBOUND: u32 = u32::MAX;

/// A memory operand: `base + index * 2^scale + disp`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    pub(super) base: Option<u8>,
    pub(super) index: Option<(u8, u8)>,
    pub(super) disp: i32,
}

impl Address {
    pub(super) const fn at(base: u8, disp: i32) -> Self {
        Self { base: Some(base), index: None, disp }
    }

    pub(super) const fn sum(base: u8, index: u8, disp: i32) -> Self {
        Self { base: Some(base), index: Some((index, 0)), disp }
    }
}

/// Up to 16 bytes that are put together before they are written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bytes {
    word: u128,
    pub(super) len: u8,
}

impl Bytes {
    /// Known when this is compiled, in what is inlined.
    #[inline(always)]
    pub(super) const fn of(bytes: &[u8]) -> Self {
        let (mut word, mut at) = (0, 0);
        while at < bytes.len() {
            word |= (bytes[at] as u128) << (8 * at);
            at += 1;
        }
        Self { word, len: bytes.len() as u8 }
    }

    /// `None`: there are more.
    #[inline]
    pub(super) fn copy(bytes: &[u8]) -> Option<Self> {
        let mut all = [0; 16];
        all.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Self { word: u128::from_le_bytes(all), len: bytes.len() as u8 })
    }

    #[cfg(test)]
    pub(super) fn to_vec(self) -> Vec<u8> {
        self.word.to_le_bytes()[..usize::from(self.len)].to_vec()
    }

    #[inline(always)]
    pub(super) fn push(&mut self, byte: u8) {
        self.add(Self { word: byte.into(), len: 1 });
    }

    #[inline(always)]
    pub(super) fn push_if(&mut self, wanted: bool, byte: u8) {
        self.add(Self { word: if wanted { byte.into() } else { 0 }, len: wanted.into() });
    }

    #[inline(always)]
    pub(super) fn dword(&mut self, value: i32) {
        self.add(Self { word: (value as u32).into(), len: 4 });
    }

    #[inline(always)]
    pub(super) fn add(&mut self, more: Self) {
        debug_assert!(self.len + more.len <= 16, "no instruction is as long");
        self.word |= more.word << ((8 * self.len) & 127);
        self.len += more.len;
    }

    /// ModRM and what belongs to it.
    #[inline(always)]
    pub(super) fn modrm(&mut self, reg: u8, address: Address) {
        let reg = (reg & 7) << 3;
        let (index, scale) = address.index.unwrap_or((4, 0));
        let sib = scale << 6 | (index & 7) << 3;
        let Some(base) = address.base else {
            self.push(reg | 4);
            self.push(sib | 5);
            return self.dword(address.disp);
        };
        let needs_sib = address.index.is_some() || base & 7 == 4;
        let short = i8::try_from(address.disp).is_ok();
        let none = address.disp == 0 && base & 7 != 5;
        let mode = match (none, short) {
            (true, _) => 0,
            (false, true) => 0x40,
            (false, false) => 0x80,
        };
        self.push(mode | reg | if needs_sib { 4 } else { base & 7 });
        self.push_if(needs_sib, sib | base & 7);
        let mut disp = Self::default();
        disp.dword(address.disp);
        let len = [0, 1, 4][usize::from(mode >> 6)];
        self.add(Self { word: disp.word & ((1 << (8 * len)) - 1), len });
    }
}

/// Code that will stand at an address known from the start.
#[derive(Debug, Default)]
pub(super) struct Asm {
    pub(super) bytes: Vec<u8>,
    /// Place of the first byte, from the start of the code memory.
    pub(super) start: u32,
    labels: Vec<u32>,
    /// Where a 32-bit displacement to a label stands.
    fixups: Vec<(u32, Label)>,
}

impl Asm {
    pub(super) fn new(start: u32) -> Self {
        Self { bytes: Vec::new(), start, labels: Vec::new(), fixups: Vec::new() }
    }

    /// An empty one, in memory that was used before.
    pub(super) fn reuse(mut self, start: u32) -> Self {
        self.start = start;
        self.bytes.clear();
        self.labels.clear();
        self.fixups.clear();
        self
    }

    /// Place of the next byte, from the start of the code memory.
    pub(super) fn here(&self) -> u32 {
        self.start + self.bytes.len() as u32
    }

    pub(super) fn label(&mut self) -> Label {
        self.labels.push(UNBOUND);
        Label(self.labels.len() as u32 - 1)
    }

    pub(super) fn bind(&mut self, label: Label) {
        self.labels[label.0 as usize] = self.here();
    }

    /// How far a label that is bound is behind the two bytes that say so here.
    pub(super) fn distance(&mut self, to: Label) {
        let place = self.labels[to.0 as usize];
        assert_ne!(place, UNBOUND, "a label without place");
        let far = i64::from(place) - i64::from(self.here()) - 2;
        let far = i16::try_from(far).expect("a path is shorter");
        self.raw(&far.to_le_bytes());
    }

    /// Writes the displacements to all labels, each of which must be bound.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.resolve();
        self.bytes
    }

    /// See [`Asm::finish`].
    pub(super) fn resolve(&mut self) {
        for &(at, label) in &self.fixups {
            let target = self.labels[label.0 as usize];
            assert_ne!(target, UNBOUND, "a label without place");
            let index = (at - self.start) as usize;
            let relative = target.wrapping_sub(at + 4);
            self.bytes[index..index + 4].copy_from_slice(&relative.to_le_bytes());
        }
    }

    #[inline(always)]
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// All 16 bytes are written, which is one instruction, and those that are none are taken back.
    #[inline(always)]
    pub(super) fn put(&mut self, bytes: Bytes) {
        let end = self.bytes.len() + usize::from(bytes.len);
        self.bytes.extend_from_slice(&bytes.word.to_le_bytes());
        self.bytes.truncate(end);
    }

    fn dword(&mut self, value: i32) {
        self.raw(&value.to_le_bytes());
    }

    /// Adds NOPs until `length` bytes from here lie in one unit of `unit` bytes, so that a processor that
    /// executes them while they are replaced sees all or none of the change.
    pub(super) fn keep_together(&mut self, length: u32, unit: u32) {
        let at = self.here() % unit;
        if at + length > unit {
            self.nops(unit - at);
        }
    }

    /// `count` bytes that do nothing.
    pub(super) fn nops(&mut self, count: u32) {
        const LONG: [&[u8]; 8] = [
            &[0x90],
            &[0x66, 0x90],
            &[0x0f, 0x1f, 0x00],
            &[0x0f, 0x1f, 0x40, 0x00],
            &[0x0f, 0x1f, 0x44, 0x00, 0x00],
            &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
            &[0x0f, 0x1f, 0x80, 0, 0, 0, 0],
            &[0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
        ];
        let mut left = count as usize;
        while left > 0 {
            let length = left.min(LONG.len());
            self.raw(LONG[length - 1]);
            left -= length;
        }
    }

    /// An instruction of one opcode with a register and a memory operand.
    #[inline(always)]
    fn memory(&mut self, prefix: &[u8], wide: bool, opcode: &[u8], reg: u8, address: Address) {
        self.memory_by(Bytes::of(prefix), wide, Bytes::of(opcode), reg, address);
    }

    fn memory_by(&mut self, prefix: Bytes, wide: bool, opcode: Bytes, reg: u8, address: Address) {
        let base = address.base.unwrap_or(0);
        let (index, _) = address.index.unwrap_or((4, 0));
        let rex = u8::from(wide) << 3 | (reg >> 3) << 2 | (index >> 3 & 1) << 1 | base >> 3;
        let mut bytes = prefix;
        bytes.push_if(rex != 0, 0x40 | rex);
        bytes.add(opcode);
        bytes.modrm(reg, address);
        self.put(bytes);
    }

    /// With a field of the processor's as the memory operand.
    #[inline(always)]
    fn field(&mut self, prefix: &[u8], wide: bool, opcode: &[u8], reg: u8, field: i32) {
        let mut bytes = Bytes::of(prefix);
        bytes.push(GS);
        let rex = u8::from(wide) << 3 | reg >> 3 << 2;
        bytes.push_if(rex != 0, 0x40 | rex);
        bytes.add(Bytes::of(opcode));
        bytes.modrm(reg, Address { base: None, index: None, disp: field });
        self.put(bytes);
    }

    /// `opcode` with a register in the ModRM's reg field and one in its rm field.
    #[inline(always)]
    fn registers(&mut self, wide: bool, opcode: &[u8], reg: u8, rm: u8) {
        self.registers_by(wide, Bytes::of(opcode), reg, rm);
    }

    fn registers_by(&mut self, wide: bool, opcode: Bytes, reg: u8, rm: u8) {
        let rex = u8::from(wide) << 3 | (reg >> 3) << 2 | rm >> 3;
        let mut bytes = Bytes::default();
        bytes.push_if(rex != 0, 0x40 | rex);
        bytes.add(opcode);
        bytes.push(0xc0 | (reg & 7) << 3 | rm & 7);
        self.put(bytes);
    }

    pub(super) fn mov(&mut self, to: u8, from: u8) {
        self.registers(true, &[0x89], from, to);
    }

    pub(super) fn load(&mut self, to: u8, from: Address) {
        self.memory(&[], true, &[0x8b], to, from);
    }

    pub(super) fn load_32(&mut self, to: u8, from: Address) {
        self.memory(&[], false, &[0x8b], to, from);
    }

    pub(super) fn store(&mut self, to: Address, from: u8) {
        self.memory(&[], true, &[0x89], from, to);
    }

    /// Stores a sign-extended constant.
    pub(super) fn store_constant(&mut self, to: Address, value: i32) {
        self.memory(&[], true, &[0xc7], 0, to);
        self.dword(value);
    }

    pub(super) fn load_byte(&mut self, to: u8, from: Address) {
        self.memory(&[], false, &[0x0f, 0xb6], to, from);
    }

    pub(super) fn lea(&mut self, to: u8, address: Address) {
        self.memory(&[], true, &[0x8d], to, address);
    }

    /// `to = from + disp`, in seven bytes. `from` is neither RSP nor R12.
    pub(super) fn lea_wide(&mut self, to: u8, from: u8, disp: i32) {
        debug_assert_ne!(from & 7, 4, "it would need another byte");
        let rex = 0x48 | to >> 3 << 2 | from >> 3;
        self.raw(&[rex, 0x8d, 0x80 | (to & 7) << 3 | from & 7]);
        self.dword(disp);
    }

    pub(super) fn lea_32(&mut self, to: u8, address: Address) {
        self.memory(&[], false, &[0x8d], to, address);
    }

    /// Loads from the processor's fields: see [`super::area`].
    pub(super) fn load_field(&mut self, to: u8, field: i32) {
        self.field(&[], true, &[0x8b], to, field);
    }

    pub(super) fn load_field_byte(&mut self, to: u8, field: i32) {
        self.field(&[], false, &[0x0f, 0xb6], to, field);
    }

    pub(super) fn compare_field_byte(&mut self, field: i32, value: i8) {
        self.field(&[], false, &[0x80], 7, field);
        self.raw(&[value as u8]);
    }

    pub(super) fn store_field_byte(&mut self, field: i32, value: u8) {
        self.field(&[], false, &[0xc6], 0, field);
        self.raw(&[value]);
    }

    /// TEST of the low 32 bits.
    pub(super) fn test_field(&mut self, field: i32, bits: u32) {
        self.field(&[], false, &[0xf7], 0, field);
        self.raw(&bits.to_le_bytes());
    }

    /// Of the low 32 bits.
    pub(super) fn and_field(&mut self, field: i32, bits: u32) {
        self.field(&[], false, &[0x81], 4, field);
        self.raw(&bits.to_le_bytes());
    }

    /// Of the low 32 bits.
    pub(super) fn or_field(&mut self, field: i32, bits: u32) {
        self.field(&[], false, &[0x81], 1, field);
        self.raw(&bits.to_le_bytes());
    }

    pub(super) fn load_field_16(&mut self, to: u8, field: i32) {
        self.field(&[], false, &[0x0f, 0xb7], to, field);
    }

    pub(super) fn store_field(&mut self, field: i32, from: u8) {
        self.field(&[], true, &[0x89], from, field);
    }

    pub(super) fn store_field_16(&mut self, field: i32, from: u8) {
        self.field(&[0x66], false, &[0x89], from, field);
    }

    /// Compares with a constant.
    pub(super) fn compare_field(&mut self, field: i32, value: i8) {
        self.field(&[], false, &[0x83], 7, field);
        self.raw(&[value as u8]);
    }

    /// LDMXCSR.
    pub(super) fn load_mxcsr_field(&mut self, field: i32) {
        self.field(&[], false, &[0x0f, 0xae], 2, field);
    }

    /// Stores a sign-extended constant.
    pub(super) fn store_field_constant(&mut self, field: i32, value: i32) {
        self.field(&[], true, &[0xc7], 0, field);
        self.dword(value);
    }

    pub(super) fn add_field(&mut self, to: u8, field: i32) {
        self.field(&[], true, &[0x03], to, field);
    }

    pub(super) fn compare_with_field(&mut self, reg: u8, field: i32) {
        self.field(&[], true, &[0x3b], reg, field);
    }

    pub(super) fn compare_with(&mut self, reg: u8, at: Address) {
        self.memory(&[], true, &[0x3b], reg, at);
    }

    pub(super) fn call_field(&mut self, field: i32) {
        self.field(&[], false, &[0xff], 2, field);
    }

    pub(super) fn sub_memory(&mut self, to: u8, from: Address) {
        self.memory(&[], true, &[0x2b], to, from);
    }

    pub(super) fn and_memory(&mut self, to: u8, from: Address) {
        self.memory(&[], true, &[0x23], to, from);
    }

    pub(super) fn add_memory(&mut self, to: u8, from: Address) {
        self.memory(&[], true, &[0x03], to, from);
    }

    pub(super) fn compare_byte_with_0(&mut self, at: Address) {
        self.memory(&[], false, &[0x80], 7, at);
        self.raw(&[0]);
    }

    pub(super) fn compare_registers(&mut self, wide: bool, a: u8, b: u8) {
        self.registers(wide, &[0x39], b, a);
    }

    pub(super) fn compare_sized(&mut self, wide: bool, reg: u8, value: i32) {
        self.group(wide, 7, reg, value);
    }

    /// All bits become the top one.
    pub(super) fn spread_sign(&mut self, wide: bool, reg: u8) {
        self.registers(wide, &[0xc1], 7, reg);
        self.raw(&[if wide { 63 } else { 31 }]);
    }

    /// RDX:RAX by `divisor`.
    pub(super) fn divide(&mut self, wide: bool, signed: bool, divisor: u8) {
        self.registers(wide, &[0xf7], 6 + u8::from(signed), divisor);
    }

    /// Loads a zero-extended word of 16 bits.
    pub(super) fn load_16(&mut self, to: u8, from: Address) {
        self.memory(&[], false, &[0x0f, 0xb7], to, from);
    }

    pub(super) fn add_registers(&mut self, to: u8, from: u8) {
        self.lea(to, Address::sum(to, from, 0));
    }

    pub(super) fn compare(&mut self, reg: u8, value: i32) {
        self.group(true, 7, reg, value);
    }

    pub(super) fn and_32(&mut self, reg: u8, value: i32) {
        self.group(false, 4, reg, value);
    }

    pub(super) fn and(&mut self, reg: u8, value: i32) {
        self.group(true, 4, reg, value);
    }

    fn group(&mut self, wide: bool, operation: u8, reg: u8, value: i32) {
        match i8::try_from(value) {
            Ok(short) => {
                self.registers(wide, &[0x83], operation, reg);
                self.raw(&[short as u8]);
            }
            Err(_) => {
                self.registers(wide, &[0x81], operation, reg);
                self.dword(value);
            }
        }
    }

    pub(super) fn or_32(&mut self, reg: u8, value: i32) {
        self.group(false, 1, reg, value);
    }

    /// `reg *= value`.
    pub(super) fn multiply(&mut self, reg: u8, value: i32) {
        self.registers(true, &[0x69], reg, reg);
        self.dword(value);
    }

    pub(super) fn negate_32(&mut self, reg: u8) {
        self.registers(false, &[0xf7], 3, reg);
    }

    /// CMOVcc.
    pub(super) fn move_if(&mut self, condition: u8, to: u8, from: u8) {
        self.registers(true, &[0x0f, 0x40 | condition], to, from);
    }

    pub(super) fn xor(&mut self, to: u8, from: u8) {
        self.registers(true, &[0x31], from, to);
    }

    pub(super) fn or(&mut self, to: u8, from: u8) {
        self.registers(true, &[0x09], from, to);
    }

    pub(super) fn shift_right(&mut self, reg: u8, count: u8) {
        self.registers(true, &[0xc1], 5, reg);
        self.raw(&[count]);
    }

    pub(super) fn shift_right_signed(&mut self, reg: u8, count: u8) {
        self.registers(true, &[0xc1], 7, reg);
        self.raw(&[count]);
    }

    pub(super) fn shift_left(&mut self, reg: u8, count: u8) {
        self.registers(true, &[0xc1], 4, reg);
        self.raw(&[count]);
    }

    pub(super) fn shift_left_32(&mut self, reg: u8, count: u8) {
        self.registers(false, &[0xc1], 4, reg);
        self.raw(&[count]);
    }

    /// Loads a constant, zero-extended.
    pub(super) fn constant_32(&mut self, to: u8, value: u32) {
        if to >= 8 {
            self.raw(&[0x41]);
        }
        self.raw(&[0xb8 | to & 7]);
        self.raw(&value.to_le_bytes());
    }

    /// `to = from` rotated right, without touching a flag.
    pub(super) fn rotate_right(&mut self, to: u8, from: u8, count: u8) {
        // VEX.LZ.F2.0F3A.W1 F0 /r ib
        let (r, b) = (u8::from(to < 8) << 7, u8::from(from < 8) << 5);
        self.raw(&[0xc4, r | 0x40 | b | 3, 0xfb, 0xf0, 0xc0 | (to & 7) << 3 | from & 7, count]);
    }

    /// Sign-extends the lower half.
    pub(super) fn extend_32(&mut self, to: u8, from: u8) {
        self.registers(true, &[0x63], to, from);
    }

    /// The upper half becomes zero.
    pub(super) fn low_32(&mut self, to: u8, from: u8) {
        self.registers(false, &[0x89], from, to);
    }

    /// LFENCE, then EDX:EAX = the host's TSC.
    pub(super) fn read_tsc(&mut self) {
        self.raw(&[0x0f, 0xae, 0xe8, 0x0f, 0x31]);
    }

    /// `to` = the low 16 bits of `from`.
    pub(super) fn low_16(&mut self, to: u8, from: u8) {
        self.registers(false, &[0x0f, 0xb7], to, from);
    }

    pub(super) fn jump(&mut self, to: Label) {
        self.raw(&[0xe9, 0, 0, 0, 0]);
        self.relative(to);
    }

    pub(super) fn call(&mut self, to: Label) {
        self.raw(&[0xe8, 0, 0, 0, 0]);
        self.relative(to);
    }

    pub(super) fn jump_if(&mut self, condition: u8, to: Label) {
        self.raw(&[0x0f, 0x80 | condition, 0, 0, 0, 0]);
        self.relative(to);
    }

    /// The last four bytes lead to `to`.
    fn relative(&mut self, to: Label) {
        self.fixups.push((self.here() - 4, to));
    }

    /// Jumps to a place outside of this code.
    pub(super) fn jump_to(&mut self, place: u32) {
        self.branch_to(0xe9, place);
    }

    pub(super) fn call_to(&mut self, place: u32) {
        self.branch_to(0xe8, place);
    }

    fn branch_to(&mut self, opcode: u8, place: u32) {
        let [a, b, c, d] = place.wrapping_sub(self.here() + 5).to_le_bytes();
        self.raw(&[opcode, a, b, c, d]);
    }

    /// `to` = the address of a place outside of this code.
    pub(super) fn place(&mut self, to: u8, place: u32) {
        // LEA from RIP.
        let [a, b, c, d] = place.wrapping_sub(self.here() + 7).to_le_bytes();
        self.raw(&[0x48 | to >> 3 << 2, 0x8d, (to & 7) << 3 | 5, a, b, c, d]);
    }

    pub(super) fn jump_register(&mut self, reg: u8) {
        self.registers(false, &[0xff], 4, reg);
    }

    pub(super) fn jump_memory(&mut self, at: Address) {
        self.memory(&[], false, &[0xff], 4, at);
    }

    pub(super) fn call_memory(&mut self, at: Address) {
        self.memory(&[], false, &[0xff], 2, at);
    }

    /// Jumps over the next `length` bytes where RCX is zero.
    pub(super) fn skip_if_rcx_is_0(&mut self, length: u8) {
        self.raw(&[0xe3, length]);
    }

    pub(super) fn test(&mut self, a: u8, b: u8) {
        self.registers(true, &[0x85], b, a);
    }

    pub(super) fn sub(&mut self, to: u8, from: u8) {
        self.registers(true, &[0x29], from, to);
    }

    pub(super) fn repeat_movsb(&mut self) {
        self.raw(&[0xf3, 0xa4]);
    }

    /// REP MOVS or REP STOS with elements of `1 << scale` bytes.
    pub(super) fn repeat_string(&mut self, moves: bool, scale: u8) {
        let opcode = if moves { 0xa4 } else { 0xaa } | u8::from(scale != 0);
        match scale {
            0 | 2 => self.raw(&[0xf3, opcode]),
            1 => self.raw(&[0x66, 0xf3, opcode]),
            _ => self.raw(&[0xf3, 0x48, opcode]),
        }
    }

    pub(super) fn ret(&mut self) {
        self.raw(&[0xc3]);
    }

    /// TEST of the low 32 bits.
    pub(super) fn test_bits(&mut self, reg: u8, bits: u32) {
        self.registers(false, &[0xf7], 0, reg);
        self.raw(&bits.to_le_bytes());
    }

    /// TEST of the low byte.
    pub(super) fn test_8(&mut self, reg: u8, bits: u8) {
        self.prefix_high(reg);
        self.raw(&[0xf6, 0xc0 | reg & 7, bits]);
    }

    pub(super) fn push(&mut self, reg: u8) {
        self.prefix_high(reg);
        self.raw(&[0x50 | reg & 7]);
    }

    pub(super) fn push_constant(&mut self, value: i8) {
        self.raw(&[0x6a, value as u8]);
    }

    pub(super) fn pop(&mut self, reg: u8) {
        self.prefix_high(reg);
        self.raw(&[0x58 | reg & 7]);
    }

    fn prefix_high(&mut self, reg: u8) {
        if reg >= 8 {
            self.raw(&[0x41]);
        }
    }

    /// AH = SF, ZF, AF, PF, CF; AL = OF.
    pub(super) fn flags_to_ax(&mut self) {
        self.raw(&[0x9f, 0x0f, 0x90, 0xc0]);
    }

    /// Undoes [`Asm::flags_to_ax`]: AL + 127 overflows if it is 1.
    pub(super) fn flags_from_ax(&mut self) {
        self.raw(&[0x04, 0x7f, 0x9e]);
    }
}

/// Prefix of the segment that holds the processor's fields.
const GS: u8 = 0x65;

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

    use super::*;

    /// What the bytes are, one instruction a line.
    fn listing(bytes: &[u8]) -> Vec<String> {
        let mut formatter = IntelFormatter::new();
        let decoder = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE);
        let line = |instr| {
            let mut text = String::new();
            formatter.format(&instr, &mut text);
            text
        };
        decoder.into_iter().map(line).collect()
    }

    fn check(emit: impl FnOnce(&mut Asm), expected: &[&str]) {
        let mut asm = Asm::new(0);
        emit(&mut asm);
        assert_eq!(listing(&asm.finish()), expected);
    }

    #[test]
    fn operands_are_encoded() {
        check(
            |asm| {
                asm.load(14, Address::at(13, 0));
                asm.load(0, Address::at(4, 8));
                asm.store(Address::at(12, 0x1000), 15);
                asm.lea(14, Address { base: Some(3), index: Some((9, 3)), disp: -1 });
                asm.lea_32(13, Address { base: None, index: Some((14, 3)), disp: 0 });
                asm.load_byte(13, Address::at(13, 0));
                asm.load_field(14, 0x123);
                asm.store_field_16(0x40, 0);
                asm.store_constant(Address::at(14, 0), -2);
                asm.jump_memory(Address::sum(1, 13, 0));
                asm.call_field(0x10);
                asm.compare_field(0x18, 0);
                asm.load_mxcsr_field(0x20);
            },
            &[
                "mov r14,[r13]",
                "mov rax,[rsp+8]",
                "mov [r12+1000h],r15",
                "lea r14,[rbx+r9*8-1]",
                "lea r13d,[r14*8]",
                "movzx r13d,byte ptr [r13]",
                "mov r14,gs:[123h]",
                "mov gs:[40h],ax",
                "mov qword ptr [r14],0FFFFFFFFFFFFFFFEh",
                "jmp qword ptr [rcx+r13]",
                "call qword ptr gs:[10h]",
                "cmp dword ptr gs:[18h],0",
                "ldmxcsr gs:[20h]",
            ],
        );
    }

    #[test]
    fn operations_are_encoded() {
        check(
            |asm| {
                asm.mov(13, 14);
                asm.shift_right(13, 7);
                asm.shift_right_signed(13, 47);
                asm.and_32(13, 0x7fe0);
                asm.add_field(13, 8);
                asm.sub_memory(14, Address::at(13, 0));
                asm.compare(14, 4088);
                asm.add_memory(14, Address::at(13, 16));
                asm.rotate_right(13, 14, 9);
                asm.rotate_right(1, 2, 12);
                asm.low_16(13, 13);
                asm.constant_32(13, 0xffff_ffff);
                asm.compare_byte_with_0(Address::at(14, 0));
                asm.compare_registers(false, 2, 13);
                asm.compare_sized(false, 13, 1);
                asm.spread_sign(true, 13);
                asm.divide(true, true, 14);
                asm.divide(false, false, 1);
                asm.load_16(14, Address::at(13, 4));
                asm.jump_register(14);
                asm.test_8(14, 31);
            },
            &[
                "mov r13,r14",
                "shr r13,7",
                "sar r13,2Fh",
                "and r13d,7FE0h",
                "add r13,gs:[8]",
                "sub r14,[r13]",
                "cmp r14,0FF8h",
                "add r14,[r13+10h]",
                "rorx r13,r14,9",
                "rorx rcx,rdx,0Ch",
                "movzx r13d,r13w",
                "mov r13d,0FFFFFFFFh",
                "cmp byte ptr [r14],0",
                "cmp edx,r13d",
                "cmp r13d,1",
                "sar r13,3Fh",
                "idiv r14",
                "div ecx",
                "movzx r14d,word ptr [r13+4]",
                "jmp r14",
                "test r14b,1Fh",
            ],
        );
    }

    #[test]
    fn what_the_system_needs_is_encoded() {
        check(
            |asm| {
                asm.load_field_byte(13, 8);
                asm.compare_field_byte(8, 3);
                asm.store_field_byte(8, 1);
                asm.test_field(8, 0x400);
                asm.and_field(8, !0x200);
                asm.or_field(8, 0x200);
                asm.and_memory(13, Address::at(14, 8));
                asm.test_bits(11, 0x4_0100);
                asm.shift_left(2, 32);
                asm.extend_32(13, 9);
                asm.low_32(14, 9);
                asm.or_32(2, -4096);
                asm.negate_32(13);
                asm.move_if(Condition::B, 2, 14);
                asm.read_tsc();
            },
            &[
                "movzx r13d,byte ptr gs:[8]",
                "cmp byte ptr gs:[8],3",
                "mov byte ptr gs:[8],1",
                "test dword ptr gs:[8],400h",
                "and dword ptr gs:[8],0FFFFFDFFh",
                "or dword ptr gs:[8],200h",
                "and r13,[r14+8]",
                "test r11d,40100h",
                "shl rdx,20h",
                "movsxd r13,r9d",
                "mov r14d,r9d",
                "or edx,0FFFFF000h",
                "neg r13d",
                "cmovb rdx,r14",
                "lfence",
                "rdtsc",
            ],
        );
        let mut asm = Asm::new(0);
        (0..4).for_each(|scale| asm.repeat_string(true, scale));
        (0..4).for_each(|scale| asm.repeat_string(false, scale));
        // REP MOVSB, MOVSW, MOVSD, MOVSQ; the same of STOS.
        let moves = [0xf3, 0xa4, 0x66, 0xf3, 0xa5, 0xf3, 0xa5, 0xf3, 0x48, 0xa5];
        let stores = [0xf3, 0xaa, 0x66, 0xf3, 0xab, 0xf3, 0xab, 0xf3, 0x48, 0xab];
        assert_eq!(asm.finish(), [moves, stores].concat());
    }

    #[test]
    fn labels_lead_to_their_places() {
        check(
            |asm| {
                let (back, forward) = (asm.label(), asm.label());
                asm.bind(back);
                asm.jump_if(Condition::A, forward);
                asm.jump(back);
                asm.bind(forward);
                asm.jump_to(0x100);
            },
            &["ja 000000000000000Bh", "jmp 0", "jmp 0000000000000100h"],
        );
    }

    #[test]
    fn what_is_replaced_lies_together() {
        for start in 0..16 {
            let mut asm = Asm::new(start);
            asm.keep_together(5, 8);
            let at = asm.here() % 8;
            assert!(at + 5 <= 8 && asm.bytes.len() < 8);
        }
        for count in 0..20 {
            let mut asm = Asm::new(0);
            asm.nops(count);
            assert_eq!(asm.bytes.len(), count as usize);
            assert!(
                listing(&asm.bytes).iter().all(|line| line.contains("nop") || line == "xchg ax,ax")
            );
        }
    }
}
