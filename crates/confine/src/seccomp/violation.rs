//! A call that the filter does not allow ends the process, and a message says which.
//!
//! The kernel does not make the call but sends SIGSYS to the thread. All here is async-signal-safe: no
//! lock, no heap.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use super::calls;

thread_local! {
    /// The data file of this thread's filter. Constant and without a destructor: a plain access.
    static FILE: Cell<&'static str> = const { Cell::new("process") };
}

/// Settings of the user's terminal, if standard input is one.
static TERMINAL: OnceLock<libc::termios> = OnceLock::new();

/// SYS_SECCOMP of siginfo.h: the signal is from a filter.
const FROM_FILTER: c_int = 1;

/// siginfo_t with the fields of SIGSYS (include/uapi/asm-generic/siginfo.h).
#[repr(C)]
struct Info {
    signal: c_int,
    errno: c_int,
    code: c_int,
    pad: c_int,
    call_address: u64,
    call: c_int,
    architecture: u32,
}

/// From now on a message is written before the process ends.
pub(super) fn watch() -> io::Result<()> {
    save_terminal();
    // SAFETY: all zeros is a valid sigaction: nothing masked.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = forbidden as extern "C" fn(c_int, *const Info, *const c_void) as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler is async-signal-safe (see there); the structure lives through the call.
    match unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The calling thread is told about by this name.
pub(super) fn name_thread(file: &'static str) {
    FILE.set(file);
}

fn save_terminal() {
    let mut settings = MaybeUninit::uninit();
    // SAFETY: the structure is the one that the call fills in.
    if unsafe { libc::tcgetattr(libc::STDIN_FILENO, settings.as_mut_ptr()) } == 0 {
        // SAFETY: filled in, as the call says. Set once: twice it would be the same.
        let _ = TERMINAL.set(unsafe { settings.assume_init() });
    }
}

extern "C" fn forbidden(_: c_int, info: *const Info, context: *const c_void) {
    // SAFETY: the kernel passes a siginfo of this signal and the context of a thread of this architecture,
    // both valid while the handler runs (SA_SIGINFO).
    let (info, context) = unsafe { (&*info, &*context.cast::<libc::ucontext_t>()) };
    restore_terminal();
    if info.code == FROM_FILTER {
        let line = describe(i64::from(info.call), &context.uc_mcontext.gregs);
        // Nobody is left to tell if this fails.
        let _ = rustix::io::write(rustix::stdio::stderr(), line.text());
    }
    end();
}

/// Ends the process because the calling thread cannot be confined.
pub(super) fn give_up(why: &str) -> ! {
    restore_terminal();
    eprintln!("fathom: {why}: the VM ends");
    // No destructors: other threads are in the midst of what these would take from them.
    // SAFETY: ends the process.
    unsafe { libc::_exit(1) }
}

fn restore_terminal() {
    if let Some(settings) = TERMINAL.get() {
        // SAFETY: settings as the kernel gave them. Without effect if standard input is no longer that.
        unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TCSETS, std::ptr::from_ref(settings)) };
    }
}

fn describe(call: i64, registers: &[libc::greg_t; 23]) -> Line {
    let mut line = Line::new();
    line.push("fathom: a thread of ").push(FILE.get()).push(".json made the system call ");
    match calls::name(call) {
        Some(name) => line.push(name),
        None => line.push("0x").push_number(call as u64, 16),
    };
    let arguments = [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX, libc::REG_R10];
    for (register, before) in arguments.into_iter().zip(["(0x", ", 0x", ", 0x", ", 0x"]) {
        line.push(before).push_number(registers[register as usize] as u64, 16);
    }
    line.push("), which no rule there allows: an attack, or a bug of Fathom: the VM ends\n");
    line
}

/// Ends the process by the signal's own effect. The signal is blocked while its handler runs; then the
/// kernel does not call the handler for another forbidden call.
fn end() -> ! {
    // SAFETY: forbidden in every thread; and where it is not, these are no magic numbers and it does nothing.
    unsafe { libc::syscall(libc::SYS_reboot, 0, 0, 0, 0) };
    // SAFETY: ends the process.
    unsafe { libc::_exit(128 + libc::SIGSYS) }
}

/// Text of a bounded length; what is beyond is left out.
struct Line {
    bytes: [u8; 320],
    length: usize,
}

impl Line {
    const fn new() -> Self {
        Self { bytes: [0; 320], length: 0 }
    }

    fn push(&mut self, text: &str) -> &mut Self {
        for &byte in text.as_bytes() {
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = byte;
                self.length += 1;
            }
        }
        self
    }

    /// `base` is at most 16.
    fn push_number(&mut self, number: u64, base: u64) -> &mut Self {
        if number >= base {
            self.push_number(number / base, base);
        }
        let digit = (number % base) as usize;
        self.push(&"0123456789abcdef"[digit..=digit])
    }

    fn text(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_numbers_and_an_end() {
        let mut line = Line::new();
        line.push("a ").push_number(0, 10).push(" ").push_number(0xffff_ffff_ffff_ffff, 16);
        assert_eq!(line.text(), b"a 0 ffffffffffffffff");
        line.push(&"x".repeat(1000));
        assert_eq!(line.text().len(), 320);
    }

    #[test]
    fn the_message_names_call_and_arguments() {
        let mut registers = [0; 23];
        registers[libc::REG_RDI as usize] = 2;
        registers[libc::REG_R10 as usize] = -1;
        let text = |call| String::from_utf8(describe(call, &registers).text().to_vec());
        let line = text(libc::SYS_socket).expect("text");
        assert!(line.contains("process.json made the system call socket(0x2, 0x0, 0x0, 0xffff"));
        assert!(line.ends_with("the VM ends\n"), "{line}");
        assert!(text(-1).expect("text").contains("call 0xffffffffffffffff(0x2"));
    }
}
