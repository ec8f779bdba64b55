//! A small generator of random numbers, the same on every machine (splitmix64).

pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Below `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True once in `times`.
    pub(super) fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// Bytes that are interesting as floating-point numbers of every width, and as integers.
    pub(super) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        for chunk in bytes.chunks_mut(8) {
            let value = self.value().to_le_bytes();
            chunk.copy_from_slice(&value[..chunk.len()]);
        }
        bytes
    }

    fn value(&mut self) -> u64 {
        match self.below(4) {
            0 => self.next(),
            1 => self.double(),
            2 => u64::from(self.single()) << 32 | u64::from(self.single()),
            _ => self.pick(&[0, 1, u64::MAX, 1 << 63, 0x8080_8080_8080_8080, 0x7fff_ffff, 3, 0xff]),
        }
    }

    fn double(&mut self) -> u64 {
        let sign = self.next() & 1 << 63;
        sign | match self.below(10) {
            0 => 0,
            1 => 1 + self.below(1 << 52) / 2,
            2 => 0x7ff << 52,
            3 => 0x7ff << 52 | self.next() >> 13 | 1,
            4 => 0x7ff8_0000_0000_0000,
            5 => 0x0010_0000_0000_0000 | self.below(4),
            6 => 0x7fef_ffff_ffff_ffff,
            7 => (self.below(200) as f64).to_bits(),
            8 => (1023 - 60 + self.below(120)) << 52 | self.next() >> 12,
            _ => (self.next() as f64 / 65536.0).to_bits(),
        }
    }

    fn single(&mut self) -> u32 {
        let sign = (self.next() as u32) & 1 << 31;
        sign | match self.below(10) {
            0 => 0,
            1 => 1 + self.below(1 << 23) as u32 / 2,
            2 => 0xff << 23,
            3 => 0xff << 23 | (self.next() as u32) >> 9 | 1,
            4 => 0x7fc0_0000,
            5 => 0x0080_0000 | self.below(4) as u32,
            6 => 0x7f7f_ffff,
            7 => (self.below(200) as f32).to_bits(),
            8 => (127 - 30 + self.below(60) as u32) << 23 | (self.next() as u32) >> 9,
            _ => (self.next() as u32 as f32 / 256.0).to_bits(),
        }
    }

    /// A register of the x87 unit: ten bytes, supported and unsupported forms.
    pub(super) fn extended(&mut self) -> [u8; 10] {
        let sign = (self.next() as u16) & 1 << 15;
        let (exponent, significand) = match self.below(10) {
            0 => (0, 0),
            1 => (0, self.next() >> 1),
            2 => (0x7fff, 1 << 63),
            3 => (0x7fff, 3 << 62 | self.next() >> 2),
            4 => (0x7fff, 1 << 63 | self.next() >> 2 | 1),
            5 => (self.below(0x8000) as u16, self.next()),
            6 => (16383 + 64 - self.below(80) as u16, 1 << 63 | self.next()),
            7 => (16383 + self.below(20) as u16, 1 << 63),
            8 => (0x7ffe, u64::MAX),
            _ => (16383 - 40 + self.below(80) as u16, 1 << 63 | self.next()),
        };
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&significand.to_le_bytes());
        bytes[8..].copy_from_slice(&(sign | exponent).to_le_bytes());
        bytes
    }
}
