//! A debugger around the guest: stock gdb over a UNIX socket, by gdb's remote protocol.
//!
//! ```text
//!   gdb --socket--> Session (state machine of gdbstub) --> GuestTarget --> Machine's vCPUs and memory
//!                      ^                                                        |
//!                      +--- Desk: stops, new lives, the end <--- vCPU threads, supervisor
//! ```
//!
//! A vCPU is a thread to gdb. Where one stops, all are held ([`crate::control`]), so whoever looks at a
//! vCPU here finds it parked. What a debugger leaves behind is undone, however it leaves: breakpoints are
//! taken out of guest memory, stops are called off, and the guest goes on.
//!
//! A reboot builds a new machine: the debugger finds itself at its first instruction, with the hardware
//! breakpoints still set. Breakpoints in memory are gone with the memory.

mod breakpoints;
mod connection;
mod desk;
mod memory;
mod monitor;
mod registers;
mod server;
mod session;
mod socket;
mod target;
mod walk;
mod x87;

pub(crate) use desk::{Desk, Finish};
pub(crate) use server::Debugger;
pub(crate) use socket::remove_abandoned;
pub(crate) use target::without_time;
