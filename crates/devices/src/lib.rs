//! The devices of one virtual machine: one folder a device, virtio over MMIO.
//!
//! A device never names an engine. It gets three things from outside and knows nothing else of
//! the machine: a view of guest memory ([`DeviceView`]), an interrupt line ([`IrqLine`]) and, for
//! its queues, an eventfd ([`Notifier`]) that anybody may signal.
//!
//! ```text
//!   vCPU threads                                  I/O thread
//!   port/MMIO exit                                EventManager (owned by the vmm)
//!        |                                             |
//!     [`bus::Bus`] --- registers ---> device <--- EventSubscriber: queues, input, wake-ups
//!        |                             |  |
//!        +-- QueueNotify -> Notifier --+  +--> IrqLine::trigger, DeviceView, PowerSink
//! ```
//!
//! What this crate is *not*: it holds no policy (how large a balloon should be), no firmware
//! tables (the vmm describes the devices to the guest), no event loop, no thread of its own.
//!
//! # Guests are hostile
//!
//! Every register value, ring index, descriptor and request is taken as hostile: a device answers
//! as its specification says (an error status, or `DEVICE_NEEDS_RESET`), does a bounded amount of
//! work per notification, and never panics.
//!
//! # Example
//!
//! ```
//! use std::sync::Arc;
//! use devices::bus::Bus;
//! use devices::power::PowerEvent;
//! use devices::reset::{PORT_COUNT, RESET_PORT, RESET_VALUE, Reset, SLEEP_CONTROL_PORT};
//!
//! let (sender, events) = std::sync::mpsc::channel();
//! let reset = Reset::new(Arc::new(move |event| sender.send(event).unwrap_or(())));
//! let mut ports = Bus::port();
//! ports.insert(SLEEP_CONTROL_PORT.into(), PORT_COUNT, Arc::new(reset))?;
//!
//! ports.write(RESET_PORT.into(), &[RESET_VALUE]);
//! assert_eq!(events.recv(), Ok(PowerEvent::Reboot));
//! # Ok::<(), devices::bus::BusError>(())
//! ```

#![forbid(unsafe_code)]

pub mod bus;
pub mod input;
mod irq;
mod notify;
pub mod output;
pub mod power;
pub mod pvpanic;
pub mod reset;
pub mod rtc;
pub mod serial;
mod sync;
pub mod terminal;
pub mod virtio;
mod watch;

pub use irq::IrqLine;
pub use memory::DeviceView;
pub use notify::Notifier;
pub use watch::{Change, Watch};
