//! IA32_ARCH_CAPABILITIES: which flaws of speculation need no work-around (SDM volume 4, table 2-2).

use FlawKind::{Control, Immune, Warning};

/// What a bit of the MSR tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlawKind {
    /// The processor does not have the flaw: shown where the engine says so.
    Immune,
    /// It has one, or a way to work around one: shown where the engine says so.
    Warning,
    /// It has another MSR, which is hidden.
    Control,
}

/// A bit of IA32_ARCH_CAPABILITIES.
#[derive(Clone, Copy, Debug)]
pub struct FlawBit {
    /// As the manual has it.
    pub name: &'static str,
    /// Its place.
    pub bit: u32,
    /// What it tells.
    pub kind: FlawKind,
    /// Whether the translator sets it: it does not speculate, whatever the host does.
    pub translator: bool,
}

const fn row(name: &'static str, bit: u32, kind: FlawKind, translator: bool) -> FlawBit {
    FlawBit { name, bit, kind, translator }
}

/// Every bit that is known; others are hidden.
pub const ARCH_CAPABILITIES: &[FlawBit] = &[
    row("RDCL_NO", 0, Immune, true),
    row("IBRS_ALL", 1, Immune, true),
    row("RSBA", 2, Warning, false),
    row("SKIP_L1DFL_VMENTRY", 3, Immune, true),
    row("SSB_NO", 4, Immune, true),
    row("MDS_NO", 5, Immune, true),
    row("PSCHANGE_MC_NO", 6, Immune, true),
    row("TSX_CTRL", 7, Control, false),
    row("TAA_NO", 8, Immune, true),
    row("MISC_PACKAGE_CTLS", 10, Control, false),
    row("SBDR_SSDP_NO", 13, Immune, true),
    row("FBSDP_NO", 14, Immune, true),
    row("PSDP_NO", 15, Immune, true),
    row("FB_CLEAR", 17, Warning, false),
    row("FB_CLEAR_CTRL", 18, Control, false),
    row("RRSBA", 19, Warning, false),
    row("BHI_NO", 20, Immune, true),
    row("XAPIC_DISABLE_STATUS", 21, Control, false),
    row("OVERCLOCKING_STATUS", 23, Control, false),
    row("PBRSB_NO", 24, Immune, true),
    row("GDS_CTRL", 25, Control, false),
    row("GDS_NO", 26, Immune, true),
    row("RFDS_NO", 27, Immune, true),
    row("RFDS_CLEAR", 28, Warning, false),
    row("ITS_NO", 62, Immune, true),
];

fn mask(wanted: impl Fn(&FlawBit) -> bool) -> u64 {
    ARCH_CAPABILITIES.iter().filter(|row| wanted(row)).fold(0, |mask, row| mask | 1 << row.bit)
}

/// Bits that a guest may see.
pub(super) fn shown() -> u64 {
    mask(|row| row.kind != Control)
}

/// What the translator's IA32_ARCH_CAPABILITIES is.
#[must_use]
pub fn translator_capabilities() -> u64 {
    mask(|row| row.translator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_translator_claims_immunity_alone() {
        let claimed = translator_capabilities();
        assert_eq!(claimed & !mask(|row| row.kind == Immune), 0);
        // The values that Linux 6.12 boots on without page-table isolation and retpolines.
        assert_eq!(claimed, 0x4000_0000_0d10_e17b);
    }
}
