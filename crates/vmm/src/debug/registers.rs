//! Registers as gdb numbers them, and the description that tells it so (gdb manual, "Target Descriptions").

use std::fmt::Write;
use std::num::NonZeroUsize;
use std::sync::LazyLock;

use gdbstub::arch::{Arch, RegId, Registers};
use x86::{Gpr, Segment, VcpuState, efer, msr, paging, rflags};

use super::x87;

/// One register. Values are as wide as 128 bits.
struct Register {
    name: String,
    bits: u32,
    /// gdb's type, of [`TYPES`] or its own.
    kind: &'static str,
    place: Place,
}

/// Where a register is in the state of a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Gpr(usize),
    Rip,
    Rflags,
    Selector(usize),
    Stack(usize),
    X87(x87::Field),
    Xmm(usize),
    Mxcsr,
    YmmHigh(usize),
    FsBase,
    GsBase,
    System(System),
}

/// Registers of the system: gdb may look at them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum System {
    Cr0,
    Cr2,
    Cr3,
    Cr4,
    Cr8,
    Efer,
    KernelGsBase,
    Debug(usize),
}

/// Offsets in the XSAVE image (SDM volume 1, 13.4 and 13.5).
const MXCSR: usize = 24;
const XMM: usize = 160;
const FEATURES: usize = 512;
const YMM_HIGH: usize = 576;

/// Bits of XSTATE_BV.
pub(super) const X87_STATE: u8 = 1;
const SSE_STATE: u8 = 2;
const AVX_STATE: u8 = 4;

/// The flags that a debugger may change: the others are reserved, or not for 64-bit mode.
const FLAGS: u64 = rflags::STATUS
    | rflags::TF
    | rflags::IF
    | rflags::DF
    | rflags::IOPL
    | rflags::NT
    | rflags::RF
    | rflags::AC
    | rflags::ID;

struct Feature {
    name: &'static str,
    types: &'static str,
    registers: Vec<Register>,
}

/// In gdb's order, which numbers them.
static FEATURES_OF_GDB: LazyLock<Vec<Feature>> = LazyLock::new(|| {
    vec![
        Feature { name: "org.gnu.gdb.i386.core", types: FLAG_TYPE, registers: core() },
        Feature { name: "org.gnu.gdb.i386.sse", types: VECTOR_TYPE, registers: sse() },
        Feature { name: "org.gnu.gdb.i386.avx", types: "", registers: avx() },
        Feature { name: "org.gnu.gdb.i386.segments", types: "", registers: bases() },
        Feature { name: "org.fathom.system", types: "", registers: system() },
    ]
});

static DESCRIPTION: LazyLock<String> = LazyLock::new(description);

fn all() -> impl Iterator<Item = &'static Register> {
    FEATURES_OF_GDB.iter().flat_map(|feature| &feature.registers)
}

fn register(name: impl Into<String>, bits: u32, kind: &'static str, place: Place) -> Register {
    Register { name: name.into(), bits, kind, place }
}

fn core() -> Vec<Register> {
    use Gpr::{R8, R9, R10, R11, R12, R13, R14, R15, Rax, Rbp, Rbx, Rcx, Rdi, Rdx, Rsi, Rsp};
    let general = [Rax, Rbx, Rcx, Rdx, Rsi, Rdi, Rbp, Rsp, R8, R9, R10, R11, R12, R13, R14, R15];
    let general = general.into_iter().map(|gpr| {
        let kind = if matches!(gpr, Rbp | Rsp) { "data_ptr" } else { "int64" };
        register(format!("{gpr:?}").to_lowercase(), 64, kind, Place::Gpr(gpr as usize))
    });
    let mut registers: Vec<_> = general.collect();
    registers.push(register("rip", 64, "code_ptr", Place::Rip));
    registers.push(register("eflags", 32, "fathom_flags", Place::Rflags));
    for (index, name) in ["cs", "ss", "ds", "es", "fs", "gs"].into_iter().enumerate() {
        registers.push(register(name, 32, "int32", Place::Selector(index)));
    }
    let stack = (0..8).map(|st| register(format!("st{st}"), 80, "i387_ext", Place::Stack(st)));
    registers.extend(stack);
    let fields = x87::FIELDS.into_iter();
    registers.extend(fields.map(|(name, field)| register(name, 32, "int", Place::X87(field))));
    registers
}

fn sse() -> Vec<Register> {
    let vectors =
        (0..16).map(|xmm| register(format!("xmm{xmm}"), 128, "fathom_vector", Place::Xmm(xmm)));
    vectors.chain([register("mxcsr", 32, "int", Place::Mxcsr)]).collect()
}

fn avx() -> Vec<Register> {
    let halves = 0..16;
    halves.map(|ymm| register(format!("ymm{ymm}h"), 128, "uint128", Place::YmmHigh(ymm))).collect()
}

fn bases() -> Vec<Register> {
    vec![
        register("fs_base", 64, "int64", Place::FsBase),
        register("gs_base", 64, "int64", Place::GsBase),
    ]
}

fn system() -> Vec<Register> {
    let mut registers = vec![
        ("cr0", System::Cr0),
        ("cr2", System::Cr2),
        ("cr3", System::Cr3),
        ("cr4", System::Cr4),
        ("cr8", System::Cr8),
        ("efer", System::Efer),
        ("k_gs_base", System::KernelGsBase),
    ];
    let debug = ["dr0", "dr1", "dr2", "dr3", "dr6", "dr7"].into_iter().enumerate();
    registers.extend(debug.map(|(index, name)| (name, System::Debug(index))));
    let register = |(name, place)| register(name, 64, "int64", Place::System(place));
    registers.into_iter().map(register).collect()
}

const FLAG_TYPE: &str = r#"<flags id="fathom_flags" size="4">
<field name="CF" start="0" end="0"/><field name="PF" start="2" end="2"/><field name="AF" start="4" end="4"/>
<field name="ZF" start="6" end="6"/><field name="SF" start="7" end="7"/><field name="TF" start="8" end="8"/>
<field name="IF" start="9" end="9"/><field name="DF" start="10" end="10"/><field name="OF" start="11" end="11"/>
<field name="NT" start="14" end="14"/><field name="RF" start="16" end="16"/><field name="AC" start="18" end="18"/>
<field name="ID" start="21" end="21"/></flags>
"#;

const VECTOR_TYPE: &str = r#"<vector id="fathom_v4f" type="ieee_single" count="4"/>
<vector id="fathom_v2d" type="ieee_double" count="2"/><vector id="fathom_v16b" type="int8" count="16"/>
<vector id="fathom_v8h" type="int16" count="8"/><vector id="fathom_v4w" type="int32" count="4"/>
<vector id="fathom_v2q" type="int64" count="2"/><union id="fathom_vector">
<field name="v4_float" type="fathom_v4f"/><field name="v2_double" type="fathom_v2d"/>
<field name="v16_int8" type="fathom_v16b"/><field name="v8_int16" type="fathom_v8h"/>
<field name="v4_int32" type="fathom_v4w"/><field name="v2_int64" type="fathom_v2q"/>
<field name="uint128" type="uint128"/></union>
"#;

fn description() -> String {
    let mut xml = String::from(
        "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\">\n\
         <target version=\"1.0\"><architecture>i386:x86-64</architecture>\n",
    );
    for feature in FEATURES_OF_GDB.iter() {
        // Writing to a string does not fail.
        let _ = write!(xml, "<feature name=\"{}\">\n{}", feature.name, feature.types);
        for Register { name, bits, kind, place } in &feature.registers {
            let group = if matches!(place, Place::System(_)) { " group=\"system\"" } else { "" };
            let _ =
                writeln!(xml, "<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{kind}\"{group}/>");
        }
        xml += "</feature>\n";
    }
    xml + "</target>\n"
}

/// x86-64, with the registers of this file.
pub(super) enum X86_64 {}

impl Arch for X86_64 {
    type Usize = u64;
    type Registers = RegisterFile;
    type BreakpointKind = usize;
    type RegId = RegisterNumber;

    fn target_description_xml() -> Option<&'static str> {
        Some(&DESCRIPTION)
    }
}

/// gdb's number of a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RegisterNumber(usize);

impl RegId for RegisterNumber {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        let register = all().nth(id)?;
        Some((Self(id), NonZeroUsize::new(register.bits as usize / 8)))
    }

    fn to_raw_id(&self) -> Option<usize> {
        Some(self.0)
    }
}

/// All registers, one after the other, as gdb transfers them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct RegisterFile(Vec<u8>);

impl Registers for RegisterFile {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        // RIP is behind the sixteen general registers.
        let bytes = self.0.get(128..136).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.0.iter().for_each(|byte| write_byte(Some(*byte)));
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        let expected: usize = all().map(|register| register.bits as usize / 8).sum();
        if bytes.len() != expected {
            return Err(());
        }
        self.0 = bytes.to_vec();
        Ok(())
    }
}

impl RegisterFile {
    pub(super) fn of(state: &VcpuState) -> Self {
        let mut bytes = Vec::new();
        for register in all() {
            bytes.extend(&read(state, register.place).to_le_bytes()[..register.bits as usize / 8]);
        }
        Self(bytes)
    }

    /// Changes what differs. False: something that cannot be changed; `state` is of no use then.
    pub(super) fn write_to(&self, state: &mut VcpuState) -> bool {
        let mut rest = &self.0[..];
        all().all(|register| {
            let (bytes, next) = rest.split_at(register.bits as usize / 8);
            rest = next;
            let value = value(bytes);
            value == read(state, register.place) || write(state, register.place, value)
        })
    }
}

impl RegisterNumber {
    /// Its bytes.
    pub(super) fn read(self, state: &VcpuState) -> Vec<u8> {
        let Some(register) = all().nth(self.0) else { return Vec::new() };
        read(state, register.place).to_le_bytes()[..register.bits as usize / 8].to_vec()
    }

    /// False: it cannot be changed to that.
    pub(super) fn write(self, state: &mut VcpuState, bytes: &[u8]) -> bool {
        let Some(register) = all().nth(self.0) else { return false };
        let value = value(bytes);
        value == read(state, register.place) || write(state, register.place, value)
    }
}

fn value(bytes: &[u8]) -> u128 {
    let mut all = [0; 16];
    let len = bytes.len().min(16);
    all[..len].copy_from_slice(&bytes[..len]);
    u128::from_le_bytes(all)
}

fn read(state: &VcpuState, place: Place) -> u128 {
    match place {
        Place::Gpr(index) => state.gpr[index].into(),
        Place::Rip => state.rip.into(),
        Place::Rflags => state.rflags.into(),
        Place::Selector(index) => selectors(state)[index].selector.into(),
        Place::Stack(index) => x87::stack(&state.xstate, index),
        Place::X87(field) => x87::read(&state.xstate, field).into(),
        Place::Xmm(index) => image(state, XMM + 16 * index, 16),
        Place::Mxcsr => image(state, MXCSR, 4),
        Place::YmmHigh(index) => image(state, YMM_HIGH + 16 * index, 16),
        Place::FsBase => state.fs.base.into(),
        Place::GsBase => state.gs.base.into(),
        Place::System(system) => read_system(state, system).into(),
    }
}

fn read_system(state: &VcpuState, system: System) -> u64 {
    let kernel_gs = || state.msrs.iter().find(|entry| entry.index == msr::KERNEL_GS_BASE);
    match system {
        System::Cr0 => state.cr0,
        System::Cr2 => state.cr2,
        System::Cr3 => state.cr3,
        System::Cr4 => state.cr4,
        System::Cr8 => state.cr8,
        System::Efer => state.efer,
        System::KernelGsBase => kernel_gs().map_or(0, |entry| entry.value),
        System::Debug(index) => state.debug[index],
    }
}

fn selectors(state: &VcpuState) -> [&Segment; 6] {
    [&state.cs, &state.ss, &state.ds, &state.es, &state.fs, &state.gs]
}

/// Only what any engine takes: a vCPU that cannot run on would be the end of the VM.
fn write(state: &mut VcpuState, place: Place, value: u128) -> bool {
    let word = value as u64;
    let canonical = paging::is_canonical(word) || state.efer & efer::LMA == 0;
    match place {
        Place::Gpr(index) => state.gpr[index] = word,
        Place::Rip if canonical => state.rip = word,
        Place::Rflags => state.rflags = state.rflags & !FLAGS | word & FLAGS,
        Place::Stack(index) => x87::set_stack(&mut state.xstate, index, value),
        Place::X87(field) => x87::write(&mut state.xstate, field, word as u32),
        Place::Xmm(index) => set_image(state, XMM + 16 * index, 16, value, SSE_STATE),
        // The upper half is reserved.
        Place::Mxcsr => set_image(state, MXCSR, 4, value & 0xffff, SSE_STATE),
        Place::YmmHigh(index) => set_image(state, YMM_HIGH + 16 * index, 16, value, AVX_STATE),
        Place::FsBase if canonical => state.fs.base = word,
        Place::GsBase if canonical => state.gs.base = word,
        Place::Rip | Place::FsBase | Place::GsBase | Place::Selector(_) | Place::System(_) => {
            return false;
        }
    }
    true
}

fn image(state: &VcpuState, offset: usize, len: usize) -> u128 {
    state.xstate.get(offset..offset + len).map_or(0, value)
}

fn set_image(state: &mut VcpuState, offset: usize, len: usize, value: u128, component: u8) {
    put(&mut state.xstate, offset, &value.to_le_bytes()[..len], component);
}

/// Changes bytes of an XSAVE image, of a component that is not in its initial state from then on.
pub(super) fn put(image: &mut [u8], offset: usize, bytes: &[u8], component: u8) {
    if let Some(part) = image.get_mut(offset..offset + bytes.len()) {
        part.copy_from_slice(bytes);
    }
    if let Some(features) = image.get_mut(FEATURES) {
        *features |= component;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(name: &str) -> RegisterNumber {
        RegisterNumber(all().position(|register| register.name == name).expect("known"))
    }

    #[test]
    fn every_register_comes_back_as_it_went() {
        let mut state = VcpuState::long_mode();
        state.rip = 0xffff_ffff_8100_0000;
        state.gpr = std::array::from_fn(|index| 0x1111_1111_1111_1111 * index as u64);
        state.xstate.iter_mut().take(512).enumerate().for_each(|(at, byte)| *byte = at as u8);
        let file = RegisterFile::of(&state);
        assert_eq!(file.pc(), state.rip);
        let mut copy = state.clone();
        assert!(file.write_to(&mut copy));
        assert_eq!(copy, state);
        let mut bytes = Vec::new();
        file.gdb_serialize(|byte| bytes.extend(byte));
        let mut again = RegisterFile::default();
        assert_eq!(again.gdb_deserialize(&bytes), Ok(()));
        assert_eq!(again, file);
        assert_eq!(again.gdb_deserialize(&bytes[1..]), Err(()));
    }

    #[test]
    fn registers_are_where_gdb_expects_them() {
        assert_eq!(number("rbx"), RegisterNumber(1));
        assert_eq!(number("rip"), RegisterNumber(16));
        assert_eq!(number("st0"), RegisterNumber(24));
        assert_eq!(number("xmm0"), RegisterNumber(40));
        let (_, len) = RegisterNumber::from_raw_id(24).expect("st0");
        assert_eq!(len, NonZeroUsize::new(10));
        assert!(RegisterNumber::from_raw_id(1000).is_none());
        assert!(DESCRIPTION.contains("<reg name=\"rip\" bitsize=\"64\" type=\"code_ptr\"/>"));
        assert!(DESCRIPTION.ends_with("</target>\n"));
    }

    #[test]
    fn what_would_end_the_vm_is_refused() {
        let mut state = VcpuState::long_mode();
        let before = state.clone();
        for (name, value) in [("rip", 1u64 << 47), ("fs_base", 1 << 63), ("cr0", 0), ("cs", 8)] {
            assert!(!number(name).write(&mut state, &value.to_le_bytes()), "{name}");
        }
        assert_eq!(state, before);
        assert!(number("eflags").write(&mut state, &[0xff; 4]));
        assert_eq!(state.rflags & rflags::VM, 0);
        assert!(number("cr0").write(&mut state, &before.cr0.to_le_bytes()));
    }

    #[test]
    fn a_vector_that_is_written_is_no_longer_initial() {
        let mut state = VcpuState::long_mode();
        assert!(number("ymm3h").write(&mut state, &[0x5a; 16]));
        assert_eq!(state.xstate[FEATURES], AVX_STATE);
        assert_eq!(number("ymm3h").read(&state), [0x5a; 16]);
        assert_eq!(number("ymm2h").read(&state), [0; 16]);
    }
}
