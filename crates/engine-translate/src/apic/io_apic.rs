//! The IO-APIC: 24 inputs, each with a redirection entry.

use x86::{IO_APIC_INPUTS as INPUTS, IoApicState};

use super::message::{Delivery, Destination, Message};

/// Guest-physical address of its registers.
pub(crate) const IO_APIC_BASE: u64 = 0xfec0_0000;
/// Bytes of its registers.
pub(crate) const IO_APIC_SIZE: u64 = 0x1000;

/// Version 0x20 has the EOI register.
const VERSION: u32 = 0x20 | (INPUTS as u32 - 1) << 16;

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const LOGICAL: u64 = 1 << 11;
const DELIVERY_STATUS: u64 = 1 << 12;
/// Delivery status and remote IRR cannot be written.
const READ_ONLY: u64 = REMOTE_IRR | DELIVERY_STATUS;

/// Its state; the owner delivers the messages that its methods return.
#[derive(Debug)]
pub(crate) struct IoApic {
    select: u8,
    id: u32,
    entries: [u64; INPUTS],
    /// Level of each input.
    high: u32,
}

impl Default for IoApic {
    fn default() -> Self {
        Self { select: 0, id: 0, entries: [MASKED; INPUTS], high: 0 }
    }
}

impl IoApic {
    /// Sets an input; returns the message that this causes.
    pub(crate) fn set_input(&mut self, input: u32, high: bool) -> Option<Message> {
        if input as usize >= INPUTS {
            return None;
        }
        let bit = 1 << input;
        let rose = high && self.high & bit == 0;
        self.high = if high { self.high | bit } else { self.high & !bit };
        let entry = self.entries[input as usize];
        if entry & LEVEL != 0 { self.level(input as usize) } else { self.edge(entry, rose) }
    }

    /// A rise and a fall of `input` with nothing between: with another thread's pulse in the middle of it that one
    /// would have no rise of its own, and its interrupt would be lost.
    pub(crate) fn pulse(&mut self, input: u32) -> Option<Message> {
        let message = self.set_input(input, true);
        // A level that nobody looked at does not matter any more.
        self.set_input(input, false);
        message
    }

    /// Some local APIC has ended the level-triggered interrupt `vector`.
    pub(crate) fn end_of_interrupt(&mut self, vector: u8) -> Vec<Message> {
        let ended = |entry: u64| entry as u8 == vector && entry & LEVEL != 0;
        let inputs: Vec<usize> = (0..INPUTS).filter(|&input| ended(self.entries[input])).collect();
        inputs
            .into_iter()
            .filter_map(|input| {
                self.entries[input] &= !REMOTE_IRR;
                self.level(input)
            })
            .collect()
    }

    pub(crate) fn state(&self) -> IoApicState {
        let Self { select, id, entries, high } = self;
        IoApicState { select: *select, id: *id as u8, entries: entries.to_vec(), high: *high }
    }

    /// Takes up a state that has been checked; returns what inputs send that are high.
    pub(crate) fn set_state(&mut self, state: &IoApicState) -> Vec<Message> {
        (self.select, self.id, self.high) = (state.select, state.id.into(), state.high);
        for (entry, saved) in self.entries.iter_mut().zip(&state.entries) {
            *entry = saved & !DELIVERY_STATUS;
        }
        let level = |input: &usize| self.entries[*input] & LEVEL != 0;
        let inputs: Vec<usize> = (0..INPUTS).filter(level).collect();
        inputs.into_iter().filter_map(|input| self.level(input)).collect()
    }

    pub(crate) fn read(&self, offset: u64) -> u32 {
        match offset {
            0x00 => u32::from(self.select),
            0x10 => self.read_register(),
            _ => 0,
        }
    }

    pub(crate) fn write(&mut self, offset: u64, value: u32) -> Vec<Message> {
        match offset {
            0x00 => self.select = value as u8,
            0x10 => return self.write_register(value).into_iter().collect(),
            0x40 => return self.end_of_interrupt(value as u8),
            _ => {}
        }
        Vec::new()
    }

    fn edge(&self, entry: u64, rose: bool) -> Option<Message> {
        (rose && entry & MASKED == 0).then(|| message(entry)).flatten()
    }

    /// A level input that is high, not masked and not in service sends, and is then in service.
    fn level(&mut self, input: usize) -> Option<Message> {
        let entry = self.entries[input];
        if self.high >> input & 1 == 0 || entry & (MASKED | REMOTE_IRR) != 0 {
            return None;
        }
        let message = message(entry)?;
        self.entries[input] |= REMOTE_IRR;
        Some(message)
    }

    fn read_register(&self) -> u32 {
        match self.select {
            0 | 2 => self.id << 24,
            1 => VERSION,
            select => match self.entry_of(select) {
                Some((input, false)) => self.entries[input] as u32,
                Some((input, true)) => (self.entries[input] >> 32) as u32,
                None => 0,
            },
        }
    }

    fn write_register(&mut self, value: u32) -> Option<Message> {
        if self.select == 0 {
            self.id = value >> 24 & 0xf;
            return None;
        }
        let (input, high) = self.entry_of(self.select)?;
        let entry = &mut self.entries[input];
        if high {
            *entry = *entry & 0xffff_ffff | u64::from(value) << 32;
        } else {
            let kept = *entry & (READ_ONLY | !0xffff_ffff);
            *entry = kept | u64::from(value) & !READ_ONLY;
        }
        if *entry & LEVEL == 0 {
            // Remote IRR has no meaning for edges; Linux clears a stuck one by a change to edge and back.
            *entry &= !REMOTE_IRR;
            return None;
        }
        self.level(input)
    }

    fn entry_of(&self, select: u8) -> Option<(usize, bool)> {
        let index = usize::from(select.checked_sub(0x10)?);
        (index / 2 < INPUTS).then_some((index / 2, index % 2 == 1))
    }
}

/// The message of a redirection entry; `None` for modes that nothing here uses (SMI, ExtINT).
fn message(entry: u64) -> Option<Message> {
    let vector = entry as u8;
    let delivery = match entry >> 8 & 7 {
        0 => Delivery::Fixed(vector),
        1 => Delivery::LowestPriority(vector),
        4 => Delivery::Nmi,
        5 => Delivery::Init,
        _ => return None,
    };
    let id = (entry >> 56) as u32;
    let destination = match (entry & LOGICAL != 0, id) {
        (_, 0xff) => Destination::All,
        // Without interrupt remapping a logical destination has eight bits: those of cluster 0.
        (true, bits) => Destination::Logical(bits),
        (false, id) => Destination::Physical(id | ((entry >> 49 & 0x7f) as u32 * 256)),
    };
    Some(Message { delivery, destination, level: entry & LEVEL != 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(apic: &mut IoApic, input: u8, entry: u64) -> Vec<Message> {
        apic.write(0, u32::from(0x11 + input * 2));
        apic.write(0x10, (entry >> 32) as u32);
        apic.write(0, u32::from(0x10 + input * 2));
        apic.write(0x10, entry as u32)
    }

    #[test]
    fn an_edge_sends_once() {
        let mut apic = IoApic::default();
        assert!(program(&mut apic, 4, 0x31).is_empty());
        let message = apic.set_input(4, true).unwrap();
        assert_eq!(message.delivery, Delivery::Fixed(0x31));
        assert_eq!(message.destination, Destination::Physical(0));
        assert!(apic.set_input(4, true).is_none());
        assert!(apic.set_input(4, false).is_none());
        assert!(apic.set_input(4, true).is_some());
    }

    #[test]
    fn each_pulse_sends() {
        let mut apic = IoApic::default();
        program(&mut apic, 4, 0x31);
        assert!(apic.pulse(4).is_some() && apic.pulse(4).is_some());
    }

    #[test]
    fn a_level_sends_again_after_the_end_of_interrupt() {
        let mut apic = IoApic::default();
        program(&mut apic, 9, LEVEL | 0x40);
        assert!(apic.set_input(9, true).is_some());
        assert!(apic.set_input(9, true).is_none());
        assert_eq!(apic.end_of_interrupt(0x40).len(), 1);
        apic.set_input(9, false);
        assert!(apic.end_of_interrupt(0x40).is_empty());
    }

    #[test]
    fn a_masked_level_sends_when_unmasked() {
        let mut apic = IoApic::default();
        program(&mut apic, 9, MASKED | LEVEL | 0x40);
        assert!(apic.set_input(9, true).is_none());
        assert_eq!(program(&mut apic, 9, LEVEL | 0x40).len(), 1);
    }

    #[test]
    fn its_state_goes_over() {
        let mut apic = IoApic::default();
        program(&mut apic, 4, 0x31);
        program(&mut apic, 9, 3 << 56 | LEVEL | 0x40);
        apic.set_input(9, true);
        apic.set_input(4, true);
        let state = apic.state();
        assert_eq!(state.check(), Ok(()));
        let mut other = IoApic::default();
        // In service already: nothing is sent again.
        assert!(other.set_state(&state).is_empty());
        assert_eq!(other.state(), state);
        // The edge has been told, too; the level is once more when it has been served.
        assert!(other.set_input(4, true).is_none());
        assert_eq!(other.end_of_interrupt(0x40).len(), 1);
        // One that was not in service yet is sent.
        let mut waiting = state;
        waiting.entries[9] &= !REMOTE_IRR;
        assert_eq!(IoApic::default().set_state(&waiting).len(), 1);
    }

    #[test]
    fn hostile_registers_are_harmless() {
        let mut apic = IoApic::default();
        for select in 0..=255 {
            apic.write(0, select);
            apic.write(0x10, u32::MAX);
            apic.read(0x10);
        }
        for input in 0..64 {
            apic.set_input(input, true);
        }
        assert_eq!(apic.read(0x20), 0);
    }
}
