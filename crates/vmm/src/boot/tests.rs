//! Whole boots into a vector of bytes, from sound files and from bad ones.

use std::error::Error;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::little_endian::{u32_at, u64_at};
use super::testing::{ALL_PACKERS, ElfSegment, Ram, elf, packed_kernel, small_kernel};
use super::*;

const RAM: usize = 32 << 20;
const PLATFORM: Platform = Platform { vcpus: 2, virtio_devices: 3, serial: true, pvpanic: true };

fn kernel() -> KernelImage {
    KernelImage::parse(packed_kernel(Compression::Lz4), RAM as u64).unwrap()
}

fn initrd<'a>(content: &'a mut &[u8]) -> Initrd<'a> {
    Initrd { bytes: content.len() as u64, content }
}

fn load_error(content: Option<&[u8]>, cmdline: &str, ram: usize) -> BootError {
    let mut content = content;
    let initrd = content.as_mut().map(initrd);
    load(&kernel(), initrd, cmdline, &PLATFORM, &mut Ram::new(ram)).unwrap_err()
}

/// `error` and its sources in one line, as the command line prints them.
fn chain(error: &dyn Error) -> String {
    let source = error.source().map(|source| format!(": {}", chain(source)));
    error.to_string() + &source.unwrap_or_default()
}

#[test]
fn everything_is_where_the_plan_says() {
    let mut ram = Ram::new(RAM);
    let content: Vec<u8> = (0..9999u32).map(|at| at as u8 | 1).collect();
    let mut rest = &content[..];
    let initrd = Some(initrd(&mut rest));
    let plan = load(&kernel(), initrd, "console=ttyS0", &PLATFORM, &mut ram).unwrap();

    assert_eq!(plan.entry, 0x100_0000);
    assert_eq!(plan.kernel, 0x100_0000..0x120_0000 + 8292);
    assert_eq!(plan.kernel_version.as_deref(), Some("6.1.0-test (builder@host) #1"));
    let image = kernel();
    let elf = image.unpacked().unwrap();
    for segment in &image.vmlinux().segments {
        assert_eq!(ram.at(segment.gpa, segment.file.len()), &elf[segment.file.clone()]);
    }
    let at = plan.initrd.clone().unwrap();
    assert_eq!(at, 0x1ff_d000..0x1ff_d000 + 9999);
    assert_eq!(ram.at(at.start, content.len()), content);

    let page = ram.at(plan.zero_page, 4096);
    let cmdline = u32_at(page, 0x228).unwrap();
    assert_eq!(ram.at(cmdline.into(), 14), b"console=ttyS0\0");
    assert_eq!(u32_at(page, 0x218), Some(at.start as u32));
    assert_eq!(u32_at(page, 0x21c), Some(9999));
    let rsdp = u64_at(page, 0x70).unwrap();
    assert_eq!((rsdp, ram.at(rsdp, 8)), (plan.rsdp, &b"RSD PTR "[..]));
    assert_eq!(u64_at(ram.at(plan.page_tables, 8), 0), Some((plan.page_tables + 0x1000) | 3));
    let gdt = ram.at(plan.gdt_base, usize::from(plan.gdt_limit) + 1);
    assert_eq!(u64_at(gdt, CODE_SELECTOR.into()), Some(0x00af_9b00_0000_ffff));
    // mov al, 1; mov dx, 0x604; out dx, al; hlt ...; jmp to the hlt
    let reset = ram.at(layout::RESET_VECTOR, 16);
    assert_eq!(reset[..7], [0xb0, 1, 0xba, 0x04, 0x06, 0xee, 0xf4]);
    assert_eq!(reset[13..], [0xf4, 0xeb, 0xfd]);

    let state = plan.vcpu_state();
    assert_eq!((state.rip, state.cr3), (plan.entry, plan.page_tables));
    assert_eq!(state.gpr[x86::Gpr::Rsi as usize], plan.zero_page);
    assert_eq!(state.rflags & x86::rflags::IF, 0);
}

#[test]
fn a_cmdline_fits_to_the_byte() {
    let longest = "x".repeat(2047);
    assert!(load(&kernel(), None, &longest, &PLATFORM, &mut Ram::new(RAM)).is_ok());
    let error = load_error(None, &"x".repeat(2048), RAM).to_string();
    assert!(error.contains("has 2048 bytes") && error.contains("at most 2047"), "{error}");
    assert!(matches!(load_error(None, "a\0b", RAM), BootError::CmdlineNul { position: 1 }));
}

#[test]
fn too_little_memory_says_how_much_is_needed() {
    let error = load_error(None, "", 16 << 20).to_string();
    assert!(error.contains("0x1000000 to 0x1202064"), "{error}");
    assert!(error.contains("ends at 0x1000000") && error.contains("at least 51 MiB"), "{error}");
    assert!(matches!(load_error(None, "", 1 << 20), BootError::RamShape { .. }));
}

#[test]
fn an_initrd_that_does_not_fit_says_why() {
    let error = load_error(Some(&vec![1; 15 << 20]), "", RAM).to_string();
    assert!(error.contains("15728640 bytes") && error.contains("at least 66 MiB"), "{error}");
    assert!(matches!(load_error(Some(&[]), "", RAM), BootError::InitrdEmpty));
}

#[test]
fn a_kernel_below_1_mib_or_in_the_device_hole_is_refused() {
    for gpa in [0x8000, 0xb_0000, 0xbfff_f000, 0xd000_0000, 1 << 32] {
        let segment = ElfSegment { va: 0xffff_ffff_8100_0000, gpa, data: 100, size: 0x2000 };
        let error = KernelImage::parse(elf(gpa, &[segment]), 8 << 30).unwrap_err();
        assert!(matches!(error, ImageError::Field { .. }), "{gpa:#x}: {error}");
    }
}

#[test]
fn errors_of_files_are_one_line_that_names_them() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let run = |kernel: &Path, initrd: Option<PathBuf>| {
        let source = BootSource { kernel, initrd: initrd.as_deref(), cmdline: "" };
        prepare(&source, &PLATFORM, &mut Ram::new(RAM))
    };
    let good = write("vmlinuz", &packed_kernel(Compression::Xz));
    let cut = write("cut", &packed_kernel(Compression::Xz)[..1500]);
    for (kernel, initrd, parts) in [
        (PathBuf::from("/nonexistent"), None, ["/nonexistent", "No such file"]),
        (directory.path().to_owned(), None, ["kernel", "a directory"]),
        (write("empty", b""), None, ["empty", "the file is empty"]),
        (cut, None, ["cut", "truncated: packed kernel at offset 0x410"]),
        (write("text", b"#!/bin/sh"), None, ["text", "found a script"]),
        (good.clone(), Some("/no/initrd".into()), ["initrd /no/initrd", "No such file"]),
        (good.clone(), Some(write("initrd", b"")), ["initrd", "is empty"]),
    ] {
        let line = chain(&run(&kernel, initrd).unwrap_err());
        assert!(parts.iter().all(|part| line.contains(part)), "{line}");
        assert!(!line.contains('\n'), "{line}");
    }
    assert!(run(&good, None).is_ok());
}

/// What a fuzzer does, in a bounded form: no bytes may panic, hang or leave RAM.
fn boot_anything(file: &[u8]) {
    let mut ram = Ram::new(RAM);
    if let Ok(kernel) = KernelImage::parse(file.to_vec(), 1 << 20) {
        let _ = load(&kernel, Some(initrd(&mut &b"initrd"[..])), "quiet", &PLATFORM, &mut ram);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_bytes_do_no_harm(file in prop::collection::vec(any::<u8>(), 0..5000)) {
        boot_anything(&file);
    }

    #[test]
    fn damaged_kernels_do_no_harm(
        format in 0..ALL_PACKERS.len(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut file = packed_kernel(ALL_PACKERS[format]);
        for (at, value) in damage {
            let at = at.index(file.len());
            file[at] = value;
        }
        boot_anything(&file);
        boot_anything(&file[..cut.index(file.len())]);
    }

    #[test]
    fn damaged_headers_do_no_harm(
        damage in prop::collection::vec((0x1f1usize..0x268, any::<u8>()), 1..12),
        elf_damage in prop::collection::vec((0usize..64 + 2 * 56, any::<u8>()), 1..12),
    ) {
        let mut file = packed_kernel(Compression::Gzip);
        damage.into_iter().for_each(|(at, value)| file[at] = value);
        boot_anything(&file);
        let mut file = small_kernel();
        elf_damage.into_iter().for_each(|(at, value)| file[at] = value);
        boot_anything(&file);
    }
}

/// The kernel of the guest kit, if the kit is there: FATHOM_KIT, or .kit in the repository.
fn kit_kernel() -> Option<PathBuf> {
    let kit = std::env::var_os("FATHOM_KIT")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.kit"), PathBuf::from);
    let found = find_kernel(&kit, 0);
    if found.is_none() {
        eprintln!("SKIPPED: no vmlinuz under {}: run `cargo xtask guest`", kit.display());
    }
    found
}

fn find_kernel(directory: &Path, depth: u32) -> Option<PathBuf> {
    let paths: Vec<_> = std::fs::read_dir(directory)
        .ok()?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .collect();
    let is_kernel = |path: &&PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("vmlinuz")) && path.is_file()
    };
    let deeper = || {
        let directories = paths.iter().filter(|path| path.is_dir() && !path.is_symlink());
        directories.filter(|_| depth < 3).find_map(|path| find_kernel(path, depth + 1))
    };
    paths.iter().find(is_kernel).cloned().or_else(deeper)
}

#[test]
fn debians_kernel_loads() {
    let Some(path) = kit_kernel() else { return };
    let source = BootSource { kernel: &path, initrd: None, cmdline: "console=ttyS0" };
    let mut ram = Ram::new(128 << 20);
    let plan = prepare(&source, &PLATFORM, &mut ram).unwrap();
    assert_eq!(plan.entry, 0x100_0000);
    assert!(plan.kernel_version.unwrap().contains("Debian"));
    // `startup_64` begins with real code, and the kernel's banner is in its read-only data.
    assert_ne!(ram.at(plan.entry, 16), [0; 16]);
    let length = (plan.kernel.end - plan.kernel.start) as usize;
    let image = ram.at(plan.kernel.start, length);
    assert!(image.windows(14).any(|text| text == b"Linux version "));

    let error = prepare(&source, &PLATFORM, &mut Ram::new(32 << 20)).unwrap_err();
    assert!(matches!(error, BootError::TooLittleMemory { .. }), "{}", chain(&error));
}
