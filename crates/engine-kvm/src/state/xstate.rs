//! x87, SSE and AVX state: KVM's image has the standard format, of which ours is the beginning.

use std::ops::Range;

use engine::EngineError;
use kvm_bindings::{kvm_xcr, kvm_xcrs, kvm_xsave};
use kvm_ioctls::VcpuFd;
use x86::{VcpuState, XSTATE_SIZE};

use crate::error::refused;

/// XSTATE_BV in the image.
const FEATURES: usize = 512;
/// x87, SSE and AVX: what the neutral state has room for.
const KNOWN: u64 = 7;
/// Bytes that the image does not define and the kernel uses: MXCSR's mask, and those for software.
const UNDEFINED: [Range<usize>; 2] = [28..32, 464..512];

/// Where components lie: x87 around MXCSR and its mask, SSE, AVX.
const PLACES: [(u64, Range<usize>); 4] =
    [(1, 0..24), (1, 32..160), (2, 160..416), (4, 576..XSTATE_SIZE)];

/// With those components only that the guest's processor has, `components` (some kernels give all of the host's), and initial
/// values for those that are in their initial state (some kernels give what lay there before).
pub(super) fn save(fd: &VcpuFd, components: u64) -> Result<Vec<u8>, EngineError> {
    let xsave = fd.get_xsave().map_err(refused("read a vcpu's vector registers"))?;
    let bytes = xsave.region.iter().flat_map(|word| word.to_le_bytes());
    let mut image: Vec<u8> = bytes.take(XSTATE_SIZE).collect();
    let there = features(&image) & components & KNOWN;
    image[FEATURES..FEATURES + 8].copy_from_slice(&there.to_le_bytes());
    let initial = VcpuState::reset().xstate;
    for (_, range) in PLACES.into_iter().filter(|(component, _)| there & component == 0) {
        image[range.clone()].copy_from_slice(&initial[range]);
    }
    UNDEFINED.into_iter().for_each(|range| image[range].fill(0));
    Ok(image)
}

/// Components that the image does not name are as it has them, too: our engines have initial values there, and states of
/// the translator did not always name what they have.
pub(super) fn load(
    fd: &VcpuFd,
    components: u64,
    xcr0: u64,
    image: &[u8],
) -> Result<(), EngineError> {
    let (named, components) = (features(image), components & KNOWN);
    if named & !components != 0 {
        let unknown = named & !components;
        return Err(EngineError::State(format!(
            "xstate components {named:#x}: this processor does not have {unknown:#x}"
        )));
    }
    if xcr0 != self::xcr0(fd)? {
        load_xcr0(fd, xcr0)?;
    }
    let mut xsave = kvm_xsave::default();
    for (word, bytes) in xsave.region.iter_mut().zip(image.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    // The components known fit the lower half.
    xsave.region[FEATURES / 4] = components as u32;
    // SAFETY: kvm-ioctls asks that the structure be as long as KVM's image. That is 4096 bytes unless
    // the guest may use AMX, for which this process never asks (arch_prctl).
    unsafe { fd.set_xsave(&xsave) }.map_err(|errno| {
        EngineError::State(format!("the vector registers: KVM refuses them: {errno}"))
    })
}

/// XSTATE_BV of a whole image.
fn features(image: &[u8]) -> u64 {
    let field = image.get(FEATURES..).and_then(|header| header.first_chunk());
    field.map_or(0, |bytes| u64::from_le_bytes(*bytes))
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
