//! The running port.

use std::convert::Infallible;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use vm_superio::Trigger;
use vm_superio::serial::{Error as UartError, Serial as Uart, SerialEvents};

use super::{SerialError, SerialMetrics, SerialState};
use crate::bus::BusDevice;
use crate::input::InputSink;
use crate::output::{Gate, Output};
use crate::sync::lock;
use crate::{IrqLine, Notifier};

const DATA: u64 = 0;
const IIR: u8 = 2;
const MCR: u8 = 4;

/// Interrupt identification: cause bits, and "no interrupt pending" (16550 data sheet, table 3).
const IIR_CAUSE: u8 = 0x0f;
const IIR_NONE: u8 = 0x01;
const IIR_TRANSMIT: u8 = 0x02;
const IIR_RECEIVE: u8 = 0x04;

/// A 16550A at [`super::PORT_COUNT`] ports.
pub struct Serial {
    space: Notifier,
    gate: Gate,
    inner: Mutex<Inner>,
}

struct Inner {
    uart: Uart<Line, SpaceAgain, UartOutput>,
    /// A transmitter interrupt that the guest has not seen because a receiver interrupt, of higher
    /// priority, was identified first.
    transmit_pending: bool,
    received_bytes: u64,
}

impl Serial {
    /// A port that sends to `output` and raises `irq`.
    ///
    /// # Errors
    /// The host is out of file descriptors.
    pub fn new(irq: Arc<dyn IrqLine>, output: Output) -> io::Result<Self> {
        let space = Notifier::new()?;
        let output = UartOutput { output, sent_bytes: 0 };
        let uart = Uart::with_events(Line(irq), SpaceAgain(space.clone()), output);
        Ok(Self::with_uart(space, uart, false))
    }

    /// A port taken up from `state`.
    ///
    /// # Errors
    /// The state holds more input than a FIFO can.
    pub fn restore(
        state: &SerialState,
        irq: Arc<dyn IrqLine>,
        output: Output,
        space: Notifier,
    ) -> Result<Self, SerialError> {
        let output = UartOutput { output, sent_bytes: 0 };
        let events = SpaceAgain(space.clone());
        let uart = Uart::from_state(&state.registers(), Line(irq), events, output)
            .map_err(|_| SerialError::Input { bytes: state.input.len() })?;
        Ok(Self::with_uart(space, uart, state.transmit_pending))
    }

    fn with_uart(
        space: Notifier,
        uart: Uart<Line, SpaceAgain, UartOutput>,
        transmit_pending: bool,
    ) -> Self {
        let gate = uart.writer().output.gate();
        let inner = Inner { uart, transmit_pending, received_bytes: 0 };
        Self { space, gate, inner: Mutex::new(inner) }
    }

    /// Raises the interrupt again if the guest has not asked for its cause yet.
    pub fn raise_again(&self) {
        let inner = lock(&self.inner);
        if inner.uart.state().interrupt_identification & IIR_NONE == 0 || inner.transmit_pending {
            inner.uart.interrupt_evt().0.trigger();
        }
    }

    /// The port as it is now.
    pub fn state(&self) -> SerialState {
        let inner = lock(&self.inner);
        SerialState::from_registers(inner.uart.state(), inner.transmit_pending)
    }

    /// Counters since the port was made.
    pub fn metrics(&self) -> SerialMetrics {
        let inner = lock(&self.inner);
        let sent = inner.uart.writer();
        SerialMetrics {
            sent_bytes: sent.sent_bytes,
            lost_bytes: sent.output.lost_bytes(),
            received_bytes: inner.received_bytes,
        }
    }
}

impl Inner {
    fn read(&mut self, register: u8) -> u8 {
        let value = self.uart.read(register);
        if register == IIR { self.identify(value) } else { value }
    }

    /// vm-superio reports all causes at once and forgets them; a 16550 reports the one of highest
    /// priority and keeps the other. Both bits together would mean a line error.
    fn identify(&mut self, value: u8) -> u8 {
        let cause = value & IIR_CAUSE;
        if cause == IIR_RECEIVE | IIR_TRANSMIT {
            self.transmit_pending = true;
            self.uart.interrupt_evt().0.trigger();
            return value & !IIR_TRANSMIT;
        }
        if cause == IIR_NONE && self.transmit_pending {
            self.transmit_pending = false;
            return value & !IIR_CAUSE | IIR_TRANSMIT;
        }
        if cause == IIR_TRANSMIT {
            self.transmit_pending = false;
        }
        value
    }

    fn write(&mut self, register: u8, value: u8) {
        // Output never fails (see `UartOutput`), and neither does the interrupt line.
        let _ = self.uart.write(register, value);
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut inner = lock(&self.inner);
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = inner.read(offset as u8 + i as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == DATA {
            // Holds up this vCPU and, without the lock, nobody else.
            self.gate.wait();
        }
        let mut inner = lock(&self.inner);
        for (i, &byte) in data.iter().enumerate() {
            let register = offset as u8 + i as u8;
            inner.write(register, byte);
            if register == MCR {
                // Leaving loop-back makes space: input is held back while it is on.
                self.space.signal();
            }
        }
    }
}

impl InputSink for Serial {
    fn space(&self) -> usize {
        lock(&self.inner).uart.fifo_capacity()
    }

    fn push(&self, bytes: &[u8]) -> usize {
        let mut inner = lock(&self.inner);
        let taken = match inner.uart.enqueue_raw_bytes(bytes) {
            Ok(taken) => taken,
            Err(UartError::FullFifo | UartError::IOError(_)) => 0,
            Err(UartError::Trigger(never)) => match never {},
        };
        inner.received_bytes += taken as u64;
        taken
    }

    fn space_notifier(&self) -> Notifier {
        self.space.clone()
    }
}

struct Line(Arc<dyn IrqLine>);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.trigger();
        Ok(())
    }
}

/// Tells the input pump when the guest has emptied the FIFO.
struct SpaceAgain(Notifier);

impl SerialEvents for SpaceAgain {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        self.0.signal();
    }
}

/// [`Output`] in the shape vm-superio wants: it never fails.
struct UartOutput {
    output: Output,
    sent_bytes: u64,
}

impl Write for UartOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.send(bytes);
        self.sent_bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial").field("metrics", &self.metrics()).finish_non_exhaustive()
    }
}
