//! What CPUID offers must work: one instruction of each feature, with its known result.

use super::{Test, Verdict};
use std::arch::asm;
use std::arch::x86_64::*;

pub(super) const TESTS: &[Test] = &[("cpuid-features", features), ("cpuid-leaves", leaves)];

type Check = (&'static str, bool, fn() -> bool);

/// One check: the feature's name, whether it is offered, and the instruction's result.
macro_rules! offered {
    ($feature:tt, $check:ident) => {
        // SAFETY: only called if the feature is offered.
        ($feature, is_x86_feature_detected!($feature), || unsafe { $check() })
    };
}

fn features() -> Verdict {
    let checks: [Check; 18] = [
        offered!("sse3", sse3),
        offered!("ssse3", ssse3),
        offered!("sse4.1", sse41),
        offered!("sse4.2", sse42),
        offered!("popcnt", popcnt),
        offered!("lzcnt", lzcnt),
        offered!("bmi1", bmi1),
        offered!("bmi2", bmi2),
        offered!("movbe", movbe),
        offered!("aes", aes),
        offered!("pclmulqdq", pclmulqdq),
        offered!("f16c", f16c),
        offered!("fma", fma),
        offered!("avx", avx),
        offered!("avx2", avx2),
        offered!("adx", adx),
        offered!("rdrand", rdrand),
        offered!("sha", sha),
    ];
    let wrong = checks.into_iter().find(|(_, offered, check)| *offered && !check());
    match wrong {
        None => Verdict::Ok,
        Some((name, ..)) => Verdict::Wrong(format!("{name} is offered but wrong")),
    }
}

fn lanes(vector: __m128i) -> [u64; 2] {
    // SAFETY: both are sixteen bytes without invalid values.
    unsafe { std::mem::transmute(vector) }
}

#[target_feature(enable = "sse3")]
fn sse3() -> bool {
    let sum = _mm_hadd_pd(_mm_set_pd(2.0, 1.0), _mm_set_pd(4.0, 3.0));
    _mm_cvtsd_f64(sum) == 3.0
}

#[target_feature(enable = "ssse3")]
fn ssse3() -> bool {
    let bytes = _mm_set_epi64x(0x0f0e_0d0c_0b0a_0908, 0x0706_0504_0302_0100);
    lanes(_mm_shuffle_epi8(bytes, _mm_set1_epi8(3)))[0] == 0x0303_0303_0303_0303
}

#[target_feature(enable = "sse4.1")]
fn sse41() -> bool {
    lanes(_mm_mullo_epi32(_mm_set1_epi32(70_000), _mm_set1_epi32(3)))[0] == 0x0003_3450_0003_3450
}

#[target_feature(enable = "sse4.2")]
fn sse42() -> bool {
    // The check value of CRC-32C: "123456789" gives e3069283.
    let crc = b"123456789".iter().fold(!0, |crc, byte| _mm_crc32_u8(crc, *byte));
    !crc == 0xe306_9283
}

#[target_feature(enable = "popcnt")]
fn popcnt() -> bool {
    _popcnt64(0x0123_4567_89ab_cdef) == 32
}

#[target_feature(enable = "lzcnt")]
fn lzcnt() -> bool {
    _lzcnt_u64(1 << 40) == 23 && _lzcnt_u64(std::hint::black_box(0)) == 64
}

#[target_feature(enable = "bmi1")]
fn bmi1() -> bool {
    _tzcnt_u64(std::hint::black_box(0)) == 64
        && _andn_u64(0xff, 0xf0f0) == 0xf000
        && _bextr_u64(0x1234_5678, 8, 16) == 0x3456
        && _blsr_u64(0b1100) == 0b1000
}

#[target_feature(enable = "bmi2")]
fn bmi2() -> bool {
    let mut high = 0;
    let low = _mulx_u64(1 << 63, 6, &mut high);
    _pdep_u64(0b101, 0xf0) == 0x50 && _pext_u64(0x50, 0xf0) == 0b101 && (low, high) == (0, 3)
}

#[target_feature(enable = "movbe")]
fn movbe() -> bool {
    let (word, value) = (0x0102_0304_u32, 0_u32);
    let mut swapped = value;
    // SAFETY: a load of four bytes of ours.
    unsafe { asm!("movbe {0:e}, [{1}]", out(reg) swapped, in(reg) &raw const word) };
    swapped == 0x0403_0201
}

#[target_feature(enable = "aes")]
fn aes() -> bool {
    // FIPS 197: the S-box takes 00 to 63, and shifting rows of equal bytes changes nothing.
    lanes(_mm_aesenclast_si128(_mm_setzero_si128(), _mm_setzero_si128()))
        == [0x6363_6363_6363_6363; 2]
}

#[target_feature(enable = "pclmulqdq")]
fn pclmulqdq() -> bool {
    // (x + 1)^2 = x^2 + 1 without carries.
    lanes(_mm_clmulepi64_si128::<0>(_mm_set_epi64x(0, 3), _mm_set_epi64x(0, 3))) == [5, 0]
}

#[target_feature(enable = "f16c")]
fn f16c() -> bool {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_set1_epi16(0x3c00))) == 1.0
}

#[target_feature(enable = "fma")]
fn fma() -> bool {
    // Rounded once, not twice: (1 + e)^2 - (1 + 2e) is e^2.
    let one_e = _mm_set_sd(1.0 + f64::EPSILON);
    let fused = _mm_fmsub_sd(one_e, one_e, _mm_set_sd(1.0 + 2.0 * f64::EPSILON));
    _mm_cvtsd_f64(fused) == f64::EPSILON * f64::EPSILON
}

#[target_feature(enable = "avx")]
fn avx() -> bool {
    let sum = _mm256_add_pd(_mm256_set1_pd(1.5), _mm256_set_pd(4.0, 3.0, 2.0, 1.0));
    // A VEX instruction on 128 bits clears the upper half.
    let cleared = _mm256_castpd128_pd256(_mm_set1_pd(1.0));
    let high = _mm256_extractf128_pd::<1>(_mm256_zextpd128_pd256(_mm256_castpd256_pd128(cleared)));
    let top = _mm_cvtsd_f64(_mm256_extractf128_pd::<1>(sum));
    top == 4.5 && _mm_cvtsd_f64(high) == 0.0
}

#[target_feature(enable = "avx2")]
fn avx2() -> bool {
    let table: [i32; 8] = std::array::from_fn(|n| n as i32 * 11);
    let index = _mm256_set_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    // SAFETY: all indices lie inside the table.
    let gathered = unsafe { _mm256_i32gather_epi32::<4>(table.as_ptr(), index) };
    let turned = _mm256_permutevar8x32_epi32(gathered, _mm256_set1_epi32(1));
    _mm256_extract_epi32::<0>(gathered) == 77 && _mm256_extract_epi32::<7>(turned) == 66
}

#[target_feature(enable = "adx")]
fn adx() -> bool {
    let (sum, carry): (u64, u8);
    // SAFETY: registers only.
    unsafe {
        asm!("xor {t:e}, {t:e}", "adcx {a}, {b}", "adox {a}, {t}", "setc {c}",
            a = inout(reg) u64::MAX => sum, b = in(reg) 2_u64, t = out(reg) _, c = out(reg_byte) carry);
    }
    (sum, carry) == (1, 1)
}

#[target_feature(enable = "rdrand")]
fn rdrand() -> bool {
    let mut drawn = [0; 8];
    let all = drawn.iter_mut().all(|word| (0..100).any(|_| _rdrand64_step(word) == 1));
    all && drawn.iter().any(|word| *word != drawn[0])
}

#[target_feature(enable = "sha,ssse3,sse4.1")]
fn sha() -> bool {
    // FIPS 180-4: rotating left by 30 is what SHA1NEXTE does to the top word.
    let next = _mm_sha1nexte_epu32(_mm_set_epi32(1, 0, 0, 0), _mm_setzero_si128());
    lanes(next)[1] >> 32 == 1 << 30
}

/// Leaves agree with each other and with instructions.
fn leaves() -> Verdict {
    let (first, extended) = (__cpuid(0), __cpuid(0x8000_0000));
    let features = __cpuid(1);
    let avx2_without_avx = is_x86_feature_detected!("avx2") && !is_x86_feature_detected!("avx");
    let long_mode = extended.eax >= 0x8000_0001 && __cpuid(0x8000_0001).edx & (1 << 29) != 0;
    let address_bits =
        if extended.eax >= 0x8000_0008 { __cpuid(0x8000_0008).eax & 0xff } else { 0 };
    let hypervisor = features.ecx & (1 << 31) != 0;
    let vendor_leaf =
        !hypervisor || __cpuid(0x4000_0000).eax >= 0x4000_0000 || __cpuid(0x4000_0000).ebx == 0;
    Verdict::all([
        Verdict::of(first.eax >= 1, "no leaf 1"),
        Verdict::of(long_mode, "long mode is not offered"),
        Verdict::of((32..=52).contains(&address_bits), "physical address width"),
        Verdict::of(!avx2_without_avx, "AVX2 without AVX"),
        Verdict::of(vendor_leaf, "hypervisor leaves"),
    ])
}
