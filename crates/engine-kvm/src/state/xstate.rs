//! x87, SSE and AVX state: KVM's image has the standard format, of which ours is the beginning.

use engine::EngineError;
use kvm_bindings::{kvm_xcr, kvm_xcrs, kvm_xsave};
use kvm_ioctls::VcpuFd;
use x86::XSTATE_SIZE;

use crate::error::refused;

/// XSTATE_BV in the image.
const FEATURES: usize = 512;
/// x87, SSE and AVX: what the neutral state has room for.
const KNOWN: u64 = 7;
/// Bytes that the image does not define and the kernel uses: MXCSR's mask, and those for software.
const UNDEFINED: [std::ops::Range<usize>; 2] = [28..32, 464..512];

pub(super) fn save(fd: &VcpuFd) -> Result<Vec<u8>, EngineError> {
    let xsave = fd.get_xsave().map_err(refused("read a vcpu's vector registers"))?;
    let bytes = xsave.region.iter().flat_map(|word| word.to_le_bytes());
    let mut image: Vec<u8> = bytes.take(XSTATE_SIZE).collect();
    let (features, _) = image[FEATURES..].split_first_chunk_mut().expect("a header");
    *features = (u64::from_le_bytes(*features) & KNOWN).to_le_bytes();
    UNDEFINED.into_iter().for_each(|range| image[range].fill(0));
    Ok(image)
}

pub(super) fn load(fd: &VcpuFd, xcr0: u64, image: &[u8]) -> Result<(), EngineError> {
    if xcr0 != self::xcr0(fd)? {
        load_xcr0(fd, xcr0)?;
    }
    let mut xsave = kvm_xsave::default();
    for (word, bytes) in xsave.region.iter_mut().zip(image.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    // SAFETY: kvm-ioctls asks that the structure be as long as KVM's image. That is 4096 bytes unless
    // the guest may use AMX, for which this process never asks (arch_prctl).
    unsafe { fd.set_xsave(&xsave) }.map_err(|errno| {
        EngineError::State(format!("the vector registers: KVM refuses them: {errno}"))
    })
}

fn load_xcr0(fd: &VcpuFd, value: u64) -> Result<(), EngineError> {
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    xcrs.xcrs[0] = kvm_xcr { xcr: 0, value, ..Default::default() };
    fd.set_xcrs(&xcrs)
        .map_err(|errno| EngineError::State(format!("xcr0 {value:#x}: KVM refuses it: {errno}")))
}

/// 1, x87 alone, on a processor without XSAVE.
pub(super) fn xcr0(fd: &VcpuFd) -> Result<u64, EngineError> {
    let xcrs = match fd.get_xcrs() {
        Ok(xcrs) => xcrs,
        Err(errno) if errno.errno() == libc::EINVAL => return Ok(1),
        Err(errno) => return Err(refused("read a vcpu's xcr0")(errno)),
    };
    let known = &xcrs.xcrs[..(xcrs.nr_xcrs as usize).min(xcrs.xcrs.len())];
    Ok(known.iter().find(|entry| entry.xcr == 0).map_or(1, |entry| entry.value))
}
