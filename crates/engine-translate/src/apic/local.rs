//! The local APIC in x2APIC mode: registers are MSRs 0x800 to 0x83f, as one 32-bit word each.

use std::sync::Arc;

use x86::ApicState;

use super::inbox::{Inbox, highest};
use super::message::{Delivery, Destination, Message, logical_id};

/// A register by its number, the MSR's low byte (SDM volume 3, table 11-6).
mod register {
    pub(super) const ID: u32 = 0x02;
    pub(super) const VERSION: u32 = 0x03;
    pub(super) const TPR: u32 = 0x08;
    pub(super) const PPR: u32 = 0x0a;
    pub(super) const EOI: u32 = 0x0b;
    pub(super) const LDR: u32 = 0x0d;
    pub(super) const SVR: u32 = 0x0f;
    pub(super) const ISR: u32 = 0x10;
    pub(super) const TMR: u32 = 0x18;
    pub(super) const IRR: u32 = 0x20;
    pub(super) const ESR: u32 = 0x28;
    pub(super) const LVT_CMCI: u32 = 0x2f;
    pub(super) const ICR: u32 = 0x30;
    pub(super) const ICR_HIGH: u32 = 0x31;
    pub(super) const LVT_TIMER: u32 = 0x32;
    pub(super) const LVT_THERMAL: u32 = 0x33;
    pub(super) const LVT_ERROR: u32 = 0x37;
    pub(super) const INITIAL_COUNT: u32 = 0x38;
    pub(super) const CURRENT_COUNT: u32 = 0x39;
    pub(super) const DIVIDE: u32 = 0x3e;
    pub(super) const SELF_IPI: u32 = 0x3f;
}
use register::*;

/// Integrated APIC, six LVT entries, no broadcast suppression.
const VERSION_VALUE: u32 = 0x14 | 5 << 16;
const LVT_MASKED: u32 = 1 << 16;
const SVR_ENABLED: u32 = 1 << 8;
const TIMER_MODE: u32 = 3 << 17;
const TIMER_PERIODIC: u32 = 1 << 17;
const TIMER_DEADLINE: u32 = 2 << 17;
/// "Received illegal vector" and "send illegal vector" are all that can happen here.
const ESR_SEND_ILLEGAL: u32 = 1 << 5;

/// Ticks of the APIC timer per second, before its divider: as KVM's, so that a count that is running means
/// the same time on both engines.
const TIMER_HZ: u64 = 1_000_000_000;

/// What a register write asks of the vCPU besides the register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    None,
    Send(Message),
    /// A level-triggered interrupt ended: tell the IO-APIC.
    EndOfInterrupt(u8),
    /// The timer's deadline has changed.
    Timer,
}

/// The registers of one local APIC; only its vCPU's thread has it. What others may do is in [`Inbox`].
#[derive(Debug)]
pub(crate) struct LocalApic {
    id: u32,
    inbox: Arc<Inbox>,
    tsc_hz: u64,
    tpr: u32,
    svr: u32,
    isr: [u64; 4],
    esr: u32,
    esr_pending: u32,
    icr: u64,
    /// CMCI, timer, thermal, performance, LINT0, LINT1, error.
    lvt: [u32; 7],
    divide: u32,
    initial_count: u32,
    /// TSC at which the timer fires next; `u64::MAX` where it does not.
    deadline: u64,
}

/// A register that does not exist, or a value it cannot take: #GP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refused;

impl LocalApic {
    pub(crate) fn new(id: u32, inbox: Arc<Inbox>, tsc_hz: u64) -> Self {
        Self {
            id,
            inbox,
            tsc_hz,
            tpr: 0,
            svr: 0xff,
            isr: [0; 4],
            esr: 0,
            esr_pending: 0,
            icr: 0,
            lvt: [LVT_MASKED; 7],
            divide: 0,
            initial_count: 0,
            deadline: u64::MAX,
        }
    }

    /// Back to the state after INIT.
    pub(crate) fn reset(&mut self) {
        self.inbox.clear();
        *self = Self::new(self.id, Arc::clone(&self.inbox), self.tsc_hz);
    }

    /// Reads a register at TSC `now`.
    pub(crate) fn read(&self, register: u32, now: u64) -> Result<u64, Refused> {
        Ok(u64::from(match register {
            ID => self.id,
            VERSION => VERSION_VALUE,
            TPR => self.tpr,
            PPR => self.ppr(),
            LDR => logical_id(self.id),
            SVR => self.svr,
            ISR..TMR => (self.isr[((register - ISR) / 2) as usize] >> (register % 2 * 32)) as u32,
            TMR..IRR => self.inbox.tmr(register - TMR),
            IRR..ESR => self.inbox.irr(register - IRR),
            ESR => self.esr,
            ICR => return Ok(self.icr),
            LVT_CMCI => self.lvt[0],
            LVT_TIMER..=LVT_ERROR => self.lvt[(register - LVT_TIMER) as usize + 1],
            INITIAL_COUNT => self.initial_count,
            CURRENT_COUNT => self.current_count(now),
            DIVIDE => self.divide,
            _ => return Err(Refused),
        }))
    }

    /// Writes a register at TSC `now`.
    pub(crate) fn write(&mut self, register: u32, value: u64, now: u64) -> Result<Effect, Refused> {
        if register != ICR && value >> 32 != 0 {
            return Err(Refused);
        }
        let low = value as u32;
        match register {
            TPR if low > 0xff => return Err(Refused),
            TPR => self.tpr = low,
            EOI if low != 0 => return Err(Refused),
            EOI => return Ok(self.end_of_interrupt()),
            SVR => self.write_svr(low),
            ESR if low != 0 => return Err(Refused),
            ESR => self.esr = std::mem::take(&mut self.esr_pending),
            ICR => {
                self.icr = value;
                return self.command(value);
            }
            SELF_IPI => {
                let delivery = Delivery::Fixed(low as u8);
                let destination = Destination::OnlySelf;
                return Ok(Effect::Send(Message { delivery, destination, level: false }));
            }
            LVT_CMCI => self.lvt[0] = low | self.forced_mask(),
            LVT_TIMER => return Ok(self.write_timer(low | self.forced_mask())),
            LVT_THERMAL..=LVT_ERROR => {
                self.lvt[(register - LVT_TIMER) as usize + 1] = low | self.forced_mask();
            }
            INITIAL_COUNT => return Ok(self.start_count(low, now)),
            DIVIDE => self.divide = low & 0xb,
            _ => return Err(Refused),
        }
        Ok(Effect::None)
    }

    /// CR8 is bits 7..4 of the task priority.
    pub(crate) fn cr8(&self) -> u64 {
        u64::from(self.tpr >> 4)
    }

    pub(crate) fn set_cr8(&mut self, value: u64) {
        self.tpr = (value as u32 & 0xf) << 4;
    }

    /// The vector to deliver now if interrupts are enabled.
    pub(crate) fn pending(&self) -> Option<u8> {
        let vector = self.inbox.highest()?;
        (self.svr & SVR_ENABLED != 0 && u32::from(vector >> 4) > self.ppr() >> 4).then_some(vector)
    }

    /// `vector` (from [`LocalApic::pending`]) is being delivered.
    pub(crate) fn accept(&mut self, vector: u8) {
        self.inbox.take(vector);
        self.isr[usize::from(vector >> 6)] |= 1 << (vector & 63);
    }

    /// The TSC value at which the timer wants [`LocalApic::fire`]; `u64::MAX` for never.
    pub(crate) fn deadline(&self) -> u64 {
        self.deadline
    }

    /// IA32_TSC_DEADLINE.
    pub(crate) fn tsc_deadline(&self) -> u64 {
        let armed = self.mode() == TIMER_DEADLINE && self.deadline != u64::MAX;
        if armed { self.deadline } else { 0 }
    }

    pub(crate) fn set_tsc_deadline(&mut self, value: u64) {
        if self.mode() == TIMER_DEADLINE {
            self.deadline = if value == 0 { u64::MAX } else { value };
        }
    }

    /// The timer's deadline has passed at TSC `now`: requests its interrupt and arms the next.
    pub(crate) fn fire(&mut self, now: u64) {
        let lvt = self.lvt[1];
        if lvt & LVT_MASKED == 0 {
            self.inbox.request(lvt as u8, false);
        }
        let period = self.period();
        self.deadline = match self.mode() {
            TIMER_PERIODIC if period != 0 => {
                // Ticks that were missed while the host was elsewhere are one tick.
                let late = now.saturating_sub(self.deadline) / period;
                self.deadline.saturating_add((late + 1) * period)
            }
            _ => u64::MAX,
        };
    }

    pub(crate) fn state(&self, now: u64) -> ApicState {
        let value = |register| self.read(register, now).unwrap_or(0) as u32;
        let mut registers: Vec<u32> = (0..64).map(value).collect();
        registers[ICR_HIGH as usize] = (self.icr >> 32) as u32;
        // A count of 0 is a timer that has fired. This one is about to, and will where it is taken up.
        if self.deadline != u64::MAX && self.mode() != TIMER_DEADLINE {
            let count = &mut registers[CURRENT_COUNT as usize];
            *count = (*count).max(1);
        }
        ApicState { registers, tsc_deadline: self.tsc_deadline() }
    }

    pub(crate) fn set_state(&mut self, state: &ApicState, now: u64) {
        self.reset();
        let Ok(registers) = <&[u32; 64]>::try_from(state.registers.as_slice()) else { return };
        let word = |register: u32| registers[register as usize];
        (self.tpr, self.svr, self.esr) = (word(TPR), word(SVR), word(ESR));
        self.inbox.set_accepting(self.svr & SVR_ENABLED != 0);
        self.icr = u64::from(word(ICR_HIGH)) << 32 | u64::from(word(ICR));
        for index in 0..8 {
            self.inbox.set_tmr(index, word(TMR + index));
            self.inbox.set_irr(index, word(IRR + index));
            self.isr[index as usize / 2] |= u64::from(word(ISR + index)) << (index % 2 * 32);
        }
        self.lvt[0] = word(LVT_CMCI);
        for register in LVT_TIMER..=LVT_ERROR {
            self.lvt[(register - LVT_TIMER) as usize + 1] = word(register);
        }
        self.divide = word(DIVIDE);
        self.initial_count = word(INITIAL_COUNT);
        let left = self.tsc_ticks(word(CURRENT_COUNT));
        self.deadline = match state.tsc_deadline {
            0 if left == 0 => u64::MAX,
            0 => now.saturating_add(left),
            deadline => deadline,
        };
    }

    /// Processor priority: the higher of task priority and the class in service.
    fn ppr(&self) -> u32 {
        let in_service = u32::from(highest(self.isr).unwrap_or(0)) & 0xf0;
        if self.tpr & 0xf0 >= in_service { self.tpr } else { in_service }
    }

    fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = highest(self.isr) else { return Effect::None };
        self.isr[usize::from(vector >> 6)] &= !(1 << (vector & 63));
        if self.inbox.is_level(vector) { Effect::EndOfInterrupt(vector) } else { Effect::None }
    }

    /// Disabled by software, it masks its LVT and takes no more requests (SDM volume 3, 11.4.7.2).
    fn write_svr(&mut self, value: u32) {
        self.svr = value & 0x11ff;
        self.inbox.set_accepting(self.svr & SVR_ENABLED != 0);
        let mask = self.forced_mask();
        self.lvt.iter_mut().for_each(|entry| *entry |= mask);
    }

    /// The mask bit while the APIC is disabled by software.
    fn forced_mask(&self) -> u32 {
        if self.svr & SVR_ENABLED == 0 { LVT_MASKED } else { 0 }
    }

    fn command(&mut self, icr: u64) -> Result<Effect, Refused> {
        let vector = icr as u8;
        let delivery = match icr >> 8 & 7 {
            0 | 1 if vector < 16 => {
                self.esr_pending |= ESR_SEND_ILLEGAL;
                return Ok(Effect::None);
            }
            0 => Delivery::Fixed(vector),
            1 => Delivery::LowestPriority(vector),
            4 => Delivery::Nmi,
            // The de-assert that follows an INIT means nothing to processors since the Pentium 4.
            5 if icr >> 14 & 3 == 0b10 => return Ok(Effect::None),
            5 => Delivery::Init,
            6 => Delivery::StartUp(vector),
            _ => return Ok(Effect::None),
        };
        let destination = match (icr >> 18 & 3, icr >> 11 & 1, (icr >> 32) as u32) {
            (1, ..) => Destination::OnlySelf,
            (2, ..) => Destination::All,
            (3, ..) => Destination::AllButSelf,
            (_, 1, id) => Destination::Logical(id),
            (_, _, id) => Destination::Physical(id),
        };
        Ok(Effect::Send(Message { delivery, destination, level: false }))
    }

    fn mode(&self) -> u32 {
        self.lvt[1] & TIMER_MODE
    }

    fn write_timer(&mut self, value: u32) -> Effect {
        let before = self.mode();
        self.lvt[1] = value;
        if (before == TIMER_DEADLINE) != (self.mode() == TIMER_DEADLINE) {
            // Changing to or from deadline mode disarms (SDM volume 3, 11.5.4.1).
            self.deadline = u64::MAX;
            self.initial_count = 0;
        }
        Effect::Timer
    }

    fn start_count(&mut self, count: u32, now: u64) -> Effect {
        if self.mode() == TIMER_DEADLINE {
            return Effect::None;
        }
        self.initial_count = count;
        self.deadline = if count == 0 { u64::MAX } else { now.saturating_add(self.period()) };
        Effect::Timer
    }

    fn current_count(&self, now: u64) -> u32 {
        if self.mode() == TIMER_DEADLINE || self.deadline == u64::MAX {
            return 0;
        }
        let left = u128::from(self.deadline.saturating_sub(now));
        let ticks = left * u128::from(TIMER_HZ) / u128::from(self.tsc_hz);
        (ticks / u128::from(self.divisor())) as u32
    }

    /// What the timer takes for `count`, in ticks of the TSC.
    fn tsc_ticks(&self, count: u32) -> u64 {
        let ticks = u128::from(count) * u128::from(self.divisor());
        // No count takes no time: a period of zero would never end.
        (ticks * u128::from(self.tsc_hz)).div_ceil(u128::from(TIMER_HZ)) as u64
    }

    fn divisor(&self) -> u64 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        if code == 7 { 1 } else { 2 << code }
    }

    fn period(&self) -> u64 {
        self.tsc_ticks(self.initial_count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apic() -> (LocalApic, Arc<Inbox>) {
        let inbox = Arc::new(Inbox::default());
        let mut apic = LocalApic::new(1, Arc::clone(&inbox), TIMER_HZ);
        apic.write(SVR, 0x1ff, 0).unwrap();
        (apic, inbox)
    }

    #[test]
    fn the_higher_class_goes_first_and_blocks_the_lower() {
        let (mut apic, inbox) = apic();
        inbox.request(0x31, false);
        inbox.request(0x52, false);
        assert_eq!(apic.pending(), Some(0x52));
        apic.accept(0x52);
        assert_eq!(apic.pending(), None);
        assert_eq!(apic.write(EOI, 0, 0), Ok(Effect::None));
        assert_eq!(apic.pending(), Some(0x31));
        apic.set_cr8(3);
        assert_eq!(apic.pending(), None);
    }

    #[test]
    fn only_level_interrupts_tell_the_io_apic() {
        let (mut apic, inbox) = apic();
        inbox.request(0x41, true);
        apic.accept(0x41);
        assert_eq!(apic.write(EOI, 0, 0), Ok(Effect::EndOfInterrupt(0x41)));
    }

    #[test]
    fn a_periodic_timer_keeps_its_phase() {
        let (mut apic, inbox) = apic();
        apic.write(DIVIDE, 0xb, 0).unwrap();
        apic.write(LVT_TIMER, u64::from(TIMER_PERIODIC | 0x60), 0).unwrap();
        apic.write(INITIAL_COUNT, 100, 1000).unwrap();
        assert_eq!(apic.deadline(), 1100);
        assert_eq!(apic.read(CURRENT_COUNT, 1040), Ok(60));
        apic.fire(1350);
        assert_eq!(apic.deadline(), 1400);
        assert_eq!(inbox.highest(), Some(0x60));
    }

    #[test]
    fn a_count_is_nanoseconds_at_any_tsc_rate() {
        for hz in [300_000_000, 999_999_999, 2_596_122_000, 6_000_000_000] {
            let mut apic = LocalApic::new(0, Arc::default(), hz);
            apic.write(DIVIDE, 3, 0).unwrap();
            apic.write(INITIAL_COUNT, 0xffff_ffff, 0).unwrap();
            let seconds = apic.deadline() as f64 / hz as f64;
            assert!((seconds - 4.294_967_295 * 16.0).abs() < 1e-6, "{hz}: {seconds}");
            let half = apic.read(CURRENT_COUNT, apic.deadline() / 2).unwrap();
            assert!(half.abs_diff(0x7fff_ffff) < 2, "{hz}: {half:#x}");
            apic.write(INITIAL_COUNT, 1, 0).unwrap();
            assert_ne!(apic.deadline(), 0, "{hz}");
        }
    }

    #[test]
    fn a_deadline_fires_once() {
        let (mut apic, _) = apic();
        apic.write(LVT_TIMER, u64::from(TIMER_DEADLINE | 0x60), 0).unwrap();
        apic.set_tsc_deadline(500);
        assert_eq!((apic.deadline(), apic.tsc_deadline()), (500, 500));
        apic.fire(510);
        assert_eq!((apic.deadline(), apic.tsc_deadline()), (u64::MAX, 0));
    }

    #[test]
    fn state_survives_a_round_trip() {
        let (mut apic, inbox) = apic();
        apic.write(LVT_TIMER, u64::from(TIMER_PERIODIC | 0x60), 0).unwrap();
        apic.write(INITIAL_COUNT, 1000, 0).unwrap();
        inbox.request(0x77, true);
        inbox.request(0x88, false);
        apic.accept(0x88);
        let state = apic.state(500);
        let (mut other, _) = self::apic();
        other.set_state(&state, 500);
        assert_eq!(other.state(500), state);
    }

    #[test]
    fn a_timer_that_is_due_fires_where_its_state_is_taken_up() {
        let (mut apic, _) = apic();
        apic.write(LVT_TIMER, 0x60, 0).unwrap();
        apic.write(INITIAL_COUNT, 1000, 0).unwrap();
        let due = apic.deadline;
        for late in [0, 1, 1_000_000_000] {
            let (mut other, _) = self::apic();
            other.set_state(&apic.state(due + late), 5);
            assert_ne!(other.deadline, u64::MAX, "{late} too late");
        }
        // One that has fired does not again.
        let (mut other, _) = self::apic();
        apic.deadline = u64::MAX;
        other.set_state(&apic.state(due), 5);
        assert_eq!(other.deadline, u64::MAX);
    }
}
