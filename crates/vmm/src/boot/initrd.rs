//! Where the initrd goes.

use std::ops::Range;

use super::error::{BootError, InitrdLimit};

const PAGE: u64 = 4096;

/// The highest place for an initrd of `size` bytes that the kernel can take it from: page-aligned, above
/// `kernel_end`, within the low RAM that ends at `ram_end`, no byte above `addr_max`.
pub(super) fn place(
    size: u64,
    kernel_end: u64,
    ram_end: u64,
    addr_max: u64,
) -> Result<Range<u64>, BootError> {
    if size == 0 {
        return Err(BootError::InitrdEmpty);
    }
    let (ceiling, limited_by) = if addr_max < ram_end {
        (addr_max + 1, InitrdLimit::Kernel)
    } else {
        (ram_end, InitrdLimit::Ram)
    };
    let kernel_end = kernel_end.div_ceil(PAGE).saturating_mul(PAGE);
    match ceiling.checked_sub(size).map(|start| start / PAGE * PAGE) {
        Some(start) if start >= kernel_end => Ok(start..start + size),
        _ => Err(BootError::InitrdTooLarge { size, kernel_end, ceiling, limited_by }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KERNEL_END: u64 = 0x3e0_0000;
    const ADDR_MAX: u64 = 0x7fff_ffff;

    #[test]
    fn it_lies_at_the_top_of_memory() {
        let range = place(0x1001, KERNEL_END, 256 << 20, ADDR_MAX).unwrap();
        assert_eq!(range, 0xfff_e000..0xfff_f001);
    }

    #[test]
    fn the_kernels_limit_is_kept() {
        let range = place(0x1000, KERNEL_END, 0xc000_0000, ADDR_MAX).unwrap();
        assert_eq!(range.end, 0x8000_0000);
    }

    #[test]
    fn it_fits_to_the_byte() {
        let room = (64 << 20) - KERNEL_END;
        assert!(place(room, KERNEL_END, 64 << 20, ADDR_MAX).is_ok());
        let error = place(room + 1, KERNEL_END, 64 << 20, ADDR_MAX).unwrap_err().to_string();
        assert!(error.contains("2097153 bytes") && error.contains("2097152 bytes are"), "{error}");
    }

    #[test]
    fn the_error_says_whose_limit_it_is() {
        let error = place(1 << 31, KERNEL_END, 0xc000_0000, ADDR_MAX).unwrap_err().to_string();
        assert!(error.contains("give a smaller initrd"), "{error}");
        let error = place(1 << 31, KERNEL_END, 64 << 20, ADDR_MAX).unwrap_err().to_string();
        assert!(error.contains("give the guest at least"), "{error}");
        assert!(matches!(
            place(0, KERNEL_END, 64 << 20, ADDR_MAX).unwrap_err(),
            BootError::InitrdEmpty
        ));
    }

    proptest! {
        #[test]
        fn it_never_leaves_its_room(
            size in 1u64.., kernel_end in any::<u64>(), ram_end in any::<u64>(), max in any::<u32>()
        ) {
            if let Ok(range) = place(size, kernel_end, ram_end, max.into()) {
                prop_assert!(range.start >= kernel_end && range.start.is_multiple_of(PAGE));
                prop_assert!(range.end <= ram_end && range.end - 1 <= u64::from(max));
                prop_assert_eq!(range.end - range.start, size);
            }
        }
    }
}
