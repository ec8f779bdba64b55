//! Operations of this process.

use std::arch::x86_64::{_mm_lfence, _rdtsc};
use std::time::Instant;

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::Cost;
use crate::operation::{Operation, Places, timed};

/// The host's TSC, after all that comes before.
pub(crate) fn ticks() -> u64 {
    // SAFETY: both are on every x86-64 processor.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

/// Of some measurements, so that one in which somebody else had the processor does not count.
pub(crate) fn middle(costs: impl Iterator<Item = Cost>) -> Cost {
    let mut costs: Vec<Cost> = costs.collect();
    costs.sort_by_key(|cost| cost.ticks);
    costs[costs.len() / 2]
}

/// How many.
pub(crate) const PASSES: usize = 9;

/// Ticks, and the nanoseconds that they took.
pub(crate) fn clock_rate() -> (u64, u64) {
    let (time, start) = (Instant::now(), ticks());
    std::thread::sleep(std::time::Duration::from_millis(100));
    let ticks = ticks() - start;
    (ticks, time.elapsed().as_nanos() as u64)
}

pub(crate) fn cost(operation: Operation, rounds: u64) -> Option<Cost> {
    match operation {
        Operation::PageFault => {
            return Some(middle((0..PASSES).map(|_| first_accesses(rounds * Operation::UNROLLED))));
        }
        Operation::Switch => {
            return Some(middle((0..PASSES).map(|_| pipe(rounds * Operation::UNROLLED))));
        }
        _ => {}
    }
    let mut data = [0_u64; 16];
    let at = data.as_mut_ptr() as u64;
    let code = Function::new(|a| body(a, operation));
    code.map(|code| code.cost(rounds, Places { data: at, own: at + 64 }))
}

fn body(a: &mut CodeAssembler, operation: Operation) -> Result<bool, IcedError> {
    if operation.is_innocuous() {
        operation.innocuous(a)?;
        return Ok(true);
    }
    for _ in 0..Operation::UNROLLED {
        match operation {
            Operation::Rdtsc => a.rdtsc()?,
            Operation::PageTable => a.mov(ptr(rdi), rax)?,
            Operation::Syscall => {
                a.mov(eax, libc::SYS_getppid as u32)?;
                a.syscall()?;
            }
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// Code of a timed loop.
pub(crate) struct Function {
    at: *mut libc::c_void,
}

/// More than any of the loops takes.
const SIZE: usize = 4096;

impl Function {
    /// `body` returns false where there is no such thing. It must return to where it began, change no memory but
    /// that of its places, and no registers but RAX, RCX, RDX, R10, R11, R13.
    pub(crate) fn new(
        body: impl FnOnce(&mut CodeAssembler) -> Result<bool, IcedError>,
    ) -> Option<Self> {
        let mut a = CodeAssembler::new(64).expect("64 bits");
        let mut exists = true;
        let write = || -> Result<(), IcedError> {
            // Arguments: rounds in RDI, places in RSI and RDX.
            for register in [rbx, rbp, r12, r13, r14, r15] {
                a.push(register)?;
            }
            a.mov(r12, rdi)?;
            a.mov(rdi, rdx)?;
            timed(&mut a, |a| body(a).map(|made| exists = made))?;
            a.mov(rax, r8)?;
            for register in [r15, r14, r13, r12, rbp, rbx] {
                a.pop(register)?;
            }
            a.ret()
        };
        write().expect("instructions exist");
        exists.then(|| Self::load(&a.assemble(0).expect("nothing depends on the place")))
    }

    fn load(bytes: &[u8]) -> Self {
        assert!(bytes.len() <= SIZE);
        let at = map(SIZE, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: `at` is new memory of SIZE bytes, which becomes code before anybody runs it.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), at.cast(), bytes.len());
            assert_eq!(libc::mprotect(at, SIZE, libc::PROT_READ | libc::PROT_EXEC), 0);
        }
        Self { at }
    }

    /// Once to warm up, and some times for the cost, which is the middle one.
    pub(crate) fn cost(&self, rounds: u64, places: Places) -> Cost {
        self.once(rounds.div_ceil(10), places);
        middle((0..PASSES).map(|_| self.once(rounds, places)))
    }

    /// Without either.
    pub(crate) fn once(&self, rounds: u64, places: Places) -> Cost {
        // SAFETY: `new` wrote a function of this type there, which keeps what the ABI wants kept.
        let call = unsafe {
            std::mem::transmute::<*mut libc::c_void, extern "C" fn(u64, u64, u64) -> u64>(self.at)
        };
        let ticks = call(rounds, places.data, places.own);
        Cost { count: rounds * Operation::UNROLLED, ticks, host_ticks: ticks, outside: 0 }
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        // SAFETY: mapped by `load` with this size; nobody is in it.
        unsafe { libc::munmap(self.at, SIZE) };
    }
}

/// New memory.
pub(crate) fn map(size: usize, protection: i32) -> *mut libc::c_void {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: without an address, and anonymous: it takes nothing from anybody.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED, "no memory");
    at
}

/// Of so many pages.
fn first_accesses(count: u64) -> Cost {
    let size = count as usize * 4096;
    let pages = map(size, libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: the mapping above; a huge page would take one fault for all.
    unsafe { libc::madvise(pages, size, libc::MADV_NOHUGEPAGE) };
    let start = ticks();
    for page in 0..count as usize {
        // SAFETY: inside the mapping, which nobody else knows.
        unsafe { pages.cast::<u8>().add(page * 4096).write_volatile(1) };
    }
    let ticks = ticks() - start;
    // SAFETY: mapped above.
    unsafe { libc::munmap(pages, size) };
    Cost { count, ticks, host_ticks: ticks, outside: 0 }
}

/// From one process to another on one processor and back: two switches.
fn pipe(count: u64) -> Cost {
    let ([to, from_parent], [back, from_child]) = (two_ends(), two_ends());
    // SAFETY: a set is plain bits; the calls take it by its size. The child makes system calls only until it ends.
    let child = unsafe {
        let mut before: libc::cpu_set_t = std::mem::zeroed();
        let size = size_of::<libc::cpu_set_t>();
        libc::sched_getaffinity(0, size, &raw mut before);
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(libc::sched_getcpu().max(0) as usize, &mut one);
        libc::sched_setaffinity(0, size, &raw const one);
        let child = libc::fork();
        assert!(child >= 0, "no process");
        if child == 0 {
            libc::close(from_parent);
            while pass(to, from_child) {}
            libc::_exit(0);
        }
        (child, before)
    };
    let byte = [0_u8];
    // SAFETY: one byte of ours.
    unsafe { libc::write(from_parent, byte.as_ptr().cast(), 1) };
    let start = ticks();
    for _ in 0..count / 2 {
        assert!(pass(back, from_parent), "the other process ended");
    }
    let ticks = ticks() - start;
    // SAFETY: our descriptors and our child.
    unsafe {
        for end in [to, from_parent, back, from_child] {
            libc::close(end);
        }
        libc::waitpid(child.0, std::ptr::null_mut(), 0);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const child.1);
    }
    Cost { count: count / 2 * 2, ticks, host_ticks: ticks, outside: 0 }
}

/// A byte that comes in goes out.
fn pass(from: i32, to: i32) -> bool {
    let mut byte = [0_u8];
    // SAFETY: one byte of ours, both times.
    unsafe {
        libc::read(from, byte.as_mut_ptr().cast(), 1) == 1
            && libc::write(to, byte.as_ptr().cast(), 1) == 1
    }
}

/// A pipe: where to read, where to write.
fn two_ends() -> [i32; 2] {
    let mut ends = [0; 2];
    // SAFETY: room for two.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0, "no pipe");
    ends
}
