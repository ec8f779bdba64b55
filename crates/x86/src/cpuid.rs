//! CPUID as a table: what a guest is shown (SDM volume 2, CPUID).

use serde::{Deserialize, Serialize};

/// First leaf of hypervisors; the KVM signature is here.
pub const HYPERVISOR: u32 = 0x4000_0000;
/// First extended leaf.
pub const EXTENDED: u32 = 0x8000_0000;

/// One leaf and sub-leaf with its four registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the registers'")]
pub struct Leaf {
    pub function: u32,
    /// Compared only where `indexed`.
    pub index: u32,
    /// Whether the leaf has sub-leaves.
    pub indexed: bool,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

impl Leaf {
    /// EAX, EBX, ECX, EDX.
    #[must_use]
    pub const fn registers(&self) -> [u32; 4] {
        [self.eax, self.ebx, self.ecx, self.edx]
    }

    fn register_mut(&mut self, register: Register) -> &mut u32 {
        match register {
            Register::Eax => &mut self.eax,
            Register::Ebx => &mut self.ebx,
            Register::Ecx => &mut self.ecx,
            Register::Edx => &mut self.edx,
        }
    }
}

/// A register that CPUID answers in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs, reason = "the names are the registers'")]
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// The place of a feature bit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs, reason = "as in the manual")]
pub struct Bit {
    pub function: u32,
    pub index: u32,
    pub register: Register,
    /// 0 to 31.
    pub bit: u32,
}

/// The whole table of one vCPU.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Table {
    /// In any order; at most one entry matches a query.
    pub leaves: Vec<Leaf>,
}

impl Table {
    /// The entry for CPUID with EAX = `function`, ECX = `index`; `None` where the table has no such leaf.
    #[must_use]
    pub fn find(&self, function: u32, index: u32) -> Option<&Leaf> {
        self.leaves
            .iter()
            .find(|leaf| leaf.function == function && (!leaf.indexed || leaf.index == index))
    }

    /// EAX, EBX, ECX, EDX of the entry, all zero where there is none.
    #[must_use]
    pub fn registers(&self, function: u32, index: u32) -> [u32; 4] {
        self.find(function, index).map_or([0; 4], Leaf::registers)
    }

    /// Whether the bit is set.
    #[must_use]
    pub fn has(&self, bit: Bit) -> bool {
        self.registers(bit.function, bit.index)[bit.register as usize] >> bit.bit & 1 != 0
    }

    /// Sets the bit, in a new entry where there is none.
    pub fn set(&mut self, bit: Bit) {
        let at = |leaf: &Leaf| {
            leaf.function == bit.function && (!leaf.indexed || leaf.index == bit.index)
        };
        let position = self.leaves.iter().position(at).unwrap_or_else(|| {
            self.put(bit.function, bit.index, [0; 4]);
            self.leaves.len() - 1
        });
        *self.leaves[position].register_mut(bit.register) |= 1 << bit.bit;
    }

    /// Clears the bit, where there is such an entry.
    pub fn clear(&mut self, bit: Bit) {
        let is_its = |leaf: &&mut Leaf| {
            leaf.function == bit.function && (!leaf.indexed || leaf.index == bit.index)
        };
        if let Some(leaf) = self.leaves.iter_mut().find(is_its) {
            *leaf.register_mut(bit.register) &= !(1 << bit.bit);
        }
    }

    /// Replaces an entry, or adds it.
    pub fn put(&mut self, function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) {
        self.leaves.retain(|leaf| (leaf.function, leaf.index) != (function, index));
        let indexed = has_sub_leaves(function);
        self.leaves.push(Leaf { function, index, indexed, eax, ebx, ecx, edx });
    }

    /// What a processor with this table answers, but for the bits that follow its control registers.
    ///
    /// A leaf beyond the highest of its range answers like the highest basic one (SDM volume 2, CPUID);
    /// one that is not there is all zero; sub-leaves beyond the last level of topology still name the
    /// sub-leaf and the APIC (leaf 0xb). KVM answers from such a table in the same way.
    #[must_use]
    pub fn answer(&self, function: u32, index: u32) -> Leaf {
        let function = self.clamp(function);
        let none = Leaf { function, index, indexed: true, ..Leaf::default() };
        match (self.find(function, index), self.find(function, 0)) {
            (Some(&leaf), _) => leaf,
            (None, Some(first)) if function == 0xb => {
                Leaf { ecx: index & 0xff, edx: first.edx, ..none }
            }
            _ => none,
        }
    }

    fn clamp(&self, function: u32) -> u32 {
        let highest = |range: u32| self.registers(range, 0)[0];
        let range = match function {
            HYPERVISOR..=0x4fff_ffff => function & !0xff,
            _ => function & EXTENDED,
        };
        if function <= highest(range) { function } else { highest(0) }
    }
}

/// Leaves whose answer depends on ECX (SDM volume 2, CPUID; APM volume 3, appendix E).
#[must_use]
pub const fn has_sub_leaves(function: u32) -> bool {
    matches!(
        function,
        4 | 7 | 0xb | 0xd | 0xf | 0x10 | 0x12 | 0x14 | 0x17 | 0x18 | 0x1d
            ..=0x20 | 0x23 | 0x24 | 0x8000_001d | 0x8000_0020 | 0x8000_0026
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::default();
        table.put(0, 0, [0xd, 1, 2, 3]);
        table.put(0xb, 0, [0, 1, 0x100, 7]);
        table.put(0xb, 1, [1, 2, 0x201, 7]);
        table.put(0xd, 0, [7, 8, 9, 10]);
        table.put(HYPERVISOR, 0, [HYPERVISOR + 1, 0, 0, 0]);
        table.put(EXTENDED, 0, [EXTENDED + 8, 0, 0, 0]);
        table
    }

    #[test]
    fn answers_follow_the_ranges() {
        let table = table();
        for (function, expected) in [
            (0, [0xd, 1, 2, 3]),
            (5, [0; 4]),
            (0xd, [7, 8, 9, 10]),
            (0xe, [7, 8, 9, 10]),
            (0x3fff_ffff, [7, 8, 9, 10]),
            (HYPERVISOR + 1, [0; 4]),
            (HYPERVISOR + 2, [7, 8, 9, 10]),
            (HYPERVISOR + 0x100, [7, 8, 9, 10]),
            (EXTENDED + 8, [0; 4]),
            (EXTENDED + 9, [7, 8, 9, 10]),
            (u32::MAX, [7, 8, 9, 10]),
        ] {
            assert_eq!(table.answer(function, 0).registers(), expected, "{function:#x}");
        }
        assert_eq!(table.answer(0xb, 0x302).registers(), [0, 0, 2, 7]);
    }

    #[test]
    fn bits_are_set_where_they_are_found() {
        let mut table = table();
        let bit = Bit { function: 7, index: 2, register: Register::Edx, bit: 4 };
        assert!(!table.has(bit));
        table.set(bit);
        table.set(Bit { bit: 31, ..bit });
        assert!(table.has(bit));
        assert_eq!(table.registers(7, 2), [0, 0, 0, 1 << 31 | 1 << 4]);
        assert_eq!(table.registers(7, 0), [0; 4]);
    }
}
