//! The few system calls that the standard library does not offer.

use std::ffi::CString;
use std::io::{Error, Result};
use std::ptr;

/// Time since the machine started.
pub(crate) fn uptime_ms() -> u64 {
    let now = clock(libc::CLOCK_BOOTTIME);
    now / 1_000_000
}

/// Nanoseconds on one of the kernel's clocks, 0 if it has none such.
pub(crate) fn clock(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the call to fill.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    if result != 0 {
        return 0;
    }
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

pub(crate) fn mount(source: &str, target: &str, kind: &str, flags: libc::c_ulong) -> Result<()> {
    let words = [source, target, kind].map(CString::new);
    let [Ok(source), Ok(target), Ok(kind)] = words else {
        return Err(Error::from_raw_os_error(libc::EINVAL));
    };
    // SAFETY: the three strings are NUL-terminated and outlive the call; no data is passed.
    let result =
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, ptr::null()) };
    done(result.into())
}

pub(crate) fn load_module(file: &std::fs::File) -> Result<()> {
    load_module_with(file, "")
}

pub(crate) fn load_module_with(file: &std::fs::File, parameters: &str) -> Result<()> {
    use std::os::fd::AsRawFd;
    let parameters = CString::new(parameters)?;
    // SAFETY: finit_module(fd, parameters, 0): an open descriptor and a NUL-terminated string.
    let result =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
    done(result)
}

pub(crate) fn unload_module(name: &str) -> Result<()> {
    let name = CString::new(name)?;
    // SAFETY: delete_module(name, flags): a NUL-terminated string.
    let result = unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) };
    done(result)
}

/// What the kernel has said, as far as it remembers.
pub(crate) fn kernel_log() -> Result<String> {
    const READ_ALL: libc::c_int = 3;
    let mut bytes = vec![0_u8; 1 << 18];
    // SAFETY: as much memory as is said.
    let length =
        unsafe { libc::klogctl(READ_ALL, bytes.as_mut_ptr().cast(), bytes.len() as libc::c_int) };
    done(length.into())?;
    bytes.truncate(length as usize);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// reboot(2). Returns only if refused, or never for the commands that end the machine.
pub(crate) fn reboot(command: libc::c_int) -> Result<()> {
    // SAFETY: no memory is passed.
    done(unsafe { libc::reboot(command) }.into())
}

pub(crate) fn sync() {
    // SAFETY: takes nothing and touches no memory of ours.
    unsafe { libc::sync() };
}

/// Processors that are running.
pub(crate) fn cpus_online() -> u64 {
    // SAFETY: takes a name and returns a number.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    u64::try_from(count).unwrap_or(1).max(1)
}

/// Keep the calling thread on one processor; one that is not there leaves it where it is.
pub(crate) fn pin_to_cpu(cpu: u64) {
    let mut set = [0_u64; 16];
    let cpu = cpu as usize % (set.len() * 64);
    set[cpu / 64] = 1 << (cpu % 64);
    // SAFETY: `set` is a processor mask of the size given.
    unsafe { libc::sched_setaffinity(0, size_of_val(&set), set.as_ptr().cast()) };
}

/// Keep the calling thread on the processor that it runs on.
pub(crate) fn stay_on_this_cpu() {
    // SAFETY: takes nothing and returns a number.
    let cpu = unsafe { libc::sched_getcpu() };
    pin_to_cpu(u64::from(cpu.unsigned_abs()));
}

pub(crate) fn go_on_any_cpu() {
    let set = [u64::MAX; 16];
    // SAFETY: `set` is a processor mask of the size given.
    unsafe { libc::sched_setaffinity(0, size_of_val(&set), set.as_ptr().cast()) };
}

/// Wait until a terminal has sent what was written; anything else has already.
pub(crate) fn drain_output() {
    // SAFETY: takes a descriptor's number and touches no memory of ours.
    unsafe { libc::tcdrain(libc::STDOUT_FILENO) };
}

/// Mounts that only this process and its children see, also for a user who may not mount else.
pub(crate) fn own_mounts() -> Result<()> {
    // SAFETY: both take nothing and cannot fail.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    let namespaces = if user == 0 { 0 } else { libc::CLONE_NEWUSER } | libc::CLONE_NEWNS;
    // SAFETY: touches no memory of ours; files stay open.
    done(unsafe { libc::unshare(namespaces) }.into())?;
    if user != 0 {
        std::fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
    }
    mount("", "/", "", libc::MS_REC | libc::MS_PRIVATE)
}

/// Anonymous memory, page-aligned, unmapped when dropped.
pub(crate) struct Mapping {
    address: *mut u8,
    length: usize,
}

impl Mapping {
    /// Readable and writable, and executable too if `protection` says so.
    pub(crate) fn new(length: usize, protection: libc::c_int) -> Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        Self::map(length, protection, flags, -1, 0)
    }

    /// Where 32-bit code reaches it.
    pub(crate) fn below_4_gib(length: usize, protection: libc::c_int) -> Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
        Self::map(length, protection, flags, -1, 0)
    }

    /// A second name for the memory of a file.
    pub(crate) fn shared(length: usize, protection: libc::c_int, fd: libc::c_int) -> Result<Self> {
        Self::shared_at(length, protection, fd, 0)
    }

    /// The same, from an offset of whole pages on.
    pub(crate) fn shared_at(
        length: usize,
        protection: libc::c_int,
        fd: libc::c_int,
        from: u64,
    ) -> Result<Self> {
        Self::map(length, protection, libc::MAP_SHARED, fd, from as libc::off_t)
    }

    fn map(
        length: usize,
        prot: libc::c_int,
        flags: libc::c_int,
        fd: libc::c_int,
        from: libc::off_t,
    ) -> Result<Self> {
        // SAFETY: a new mapping where the kernel likes: no memory of ours is replaced.
        let address = unsafe { libc::mmap(ptr::null_mut(), length, prot, flags, fd, from) };
        if address == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        Ok(Self { address: address.cast(), length })
    }

    pub(crate) fn pointer(&self) -> *mut u8 {
        self.address
    }

    /// Map it with pages of 4 KiB only, so that what is touched is what we say.
    pub(crate) fn small_pages_only(&self) {
        // SAFETY: advice about our own mapping; a kernel without huge pages refuses, rightly.
        unsafe { libc::madvise(self.address.cast(), self.length, libc::MADV_NOHUGEPAGE) };
    }

    /// Has all of it in memory from now on.
    pub(crate) fn stay(&self) -> Result<()> {
        // SAFETY: our own mapping, whose contents stay what they are.
        done(unsafe { libc::mlock(self.address.cast(), self.length) }.into())
    }

    /// # Safety
    /// Nothing may rely on the access taken away until it is given back.
    pub(crate) unsafe fn protect(
        &self,
        at: usize,
        length: usize,
        protection: libc::c_int,
    ) -> Result<()> {
        // SAFETY: inside our mapping; the caller answers for who uses it.
        let result = unsafe { libc::mprotect(self.address.add(at).cast(), length, protection) };
        done(result.into())
    }

    /// Write one word into each page: the cheapest way to need them all.
    pub(crate) fn touch_every_page(&self, value: u64) {
        for at in (0..self.length).step_by(PAGE) {
            // SAFETY: `at` is page-aligned and inside the mapping, which only we use.
            unsafe { self.address.add(at).cast::<u64>().write_volatile(value) };
        }
    }

    pub(crate) fn read_every_page(&self) {
        for at in (0..self.length).step_by(PAGE) {
            // SAFETY: `at` is page-aligned and inside the mapping, which lasts as long as we do.
            unsafe { self.address.add(at).cast::<u64>().read_volatile() };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, to which no reference remains.
        unsafe { libc::munmap(self.address.cast(), self.length) };
    }
}

pub(crate) const PAGE: usize = 4096;

fn done(result: libc::c_long) -> Result<()> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}
