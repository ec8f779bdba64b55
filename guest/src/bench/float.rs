//! Floating point, one number at a time and many.
//!
//! Additions, multiplications, divisions and roots only, which IEEE 754 defines to the last bit:
//! results are the same on every machine. No multiplication is fused with an addition.

use super::{Job, Random, Workload, mix, unsupported};
use std::arch::asm;
use std::arch::x86_64::{
    __m128d, __m128i, __m256d, __m256i, _mm_add_epi32, _mm_loadu_pd, _mm_loadu_si128, _mm_mul_pd,
    _mm_set1_pd, _mm_shuffle_epi32, _mm_slli_epi32, _mm_srli_epi32, _mm_storeu_pd,
    _mm_storeu_si128, _mm_sub_pd, _mm_xor_si128, _mm256_add_epi32, _mm256_loadu_pd,
    _mm256_loadu_si256, _mm256_mul_pd, _mm256_permute4x64_epi64, _mm256_set1_pd, _mm256_slli_epi32,
    _mm256_srli_epi32, _mm256_storeu_pd, _mm256_storeu_si256, _mm256_sub_pd, _mm256_xor_si256,
};
use std::hint::black_box;
use std::io::Result;

pub(super) const WORKLOADS: [Workload; 4] = [
    Workload { name: "scalar-fp", group: "float", amount: 200_000, cpus: 1, run: scalar },
    Workload { name: "x87", group: "float", amount: 600_000, cpus: 1, run: x87 },
    Workload { name: "sse2", group: "float", amount: 32_000, cpus: 1, run: sse2 },
    Workload { name: "avx2", group: "float", amount: 32_000, cpus: 1, run: avx2 },
];

#[derive(Clone, Copy)]
struct Body {
    place: [f64; 3],
    speed: [f64; 3],
    mass: f64,
}

/// Four bodies that attract each other. Amount: steps.
fn scalar(job: &Job<'_>) -> Result<()> {
    let mut bodies = bodies();
    job.measure(|| {
        for _ in 0..job.amount {
            advance(black_box(&mut bodies));
        }
        let numbers = bodies.iter().flat_map(|body| body.place);
        Ok(numbers.fold(0, |checksum, number| mix(checksum, number.to_bits())))
    })
}

fn bodies() -> [Body; 4] {
    let mut random = Random::new();
    let mut number = || (random.next() >> 40) as f64 / f64::from(1 << 24);
    std::array::from_fn(|n| Body {
        place: std::array::from_fn(|_| number() + n as f64),
        speed: std::array::from_fn(|_| number() - 0.5),
        mass: number() + 0.5,
    })
}

fn advance(bodies: &mut [Body; 4]) {
    const STEP: f64 = 1.0 / 1024.0;
    for a in 0..bodies.len() {
        for b in a + 1..bodies.len() {
            let apart: [f64; 3] =
                std::array::from_fn(|axis| bodies[a].place[axis] - bodies[b].place[axis]);
            // Never nearer than a bit, so that nothing is thrown out of the world.
            let square = apart.iter().map(|x| x * x).sum::<f64>() + 0.25;
            let pull = STEP / (square * square.sqrt());
            for (axis, apart) in apart.into_iter().enumerate() {
                bodies[a].speed[axis] -= apart * bodies[b].mass * pull;
                bodies[b].speed[axis] += apart * bodies[a].mass * pull;
            }
        }
    }
    for body in bodies {
        for axis in 0..3 {
            body.place[axis] += STEP * body.speed[axis];
        }
    }
}

/// A root, a division, products and sums of 80 bits, loads and stores of 64. Amount: rounds.
fn x87(job: &Job<'_>) -> Result<()> {
    job.measure(|| Ok(x87_rounds(black_box(0.3), job.amount).to_bits()))
}

/// The logistic map (May, 1976): x to growth * x * (1 - x), which stays between 0 and 1 and
/// settles on no number.
static GROWTH: f64 = 3.7;

fn x87_rounds(mut number: f64, rounds: u64) -> f64 {
    // SAFETY: reads the constant, reads and writes `number`; the x87 stack is empty before and
    // after, and three deep at most.
    unsafe {
        asm!(
            "2:",
            "fld qword ptr [{number}]",
            "fld st(0)",
            "fsqrt",
            "fld st(1)",
            "fmul st(0), st(0)",
            "fsubp st(2), st(0)",
            "fdiv st(1), st(0)",
            "fmulp st(1), st(0)",
            "fmul qword ptr [{growth}]",
            "fstp qword ptr [{number}]",
            "dec {rounds}",
            "jnz 2b",
            number = in(reg) &raw mut number,
            growth = in(reg) &raw const GROWTH,
            rounds = inout(reg) rounds => _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            options(nostack),
        );
    }
    black_box(number)
}

/// So many numbers are worked on: half the nearest cache.
const NUMBERS: usize = 1024;

struct Arrays {
    floats: Vec<f64>,
    words: Vec<u32>,
}

impl Arrays {
    fn new() -> Self {
        let mut random = Random::new();
        let floats = (0..NUMBERS).map(|_| (random.next() >> 40) as f64 / f64::from(1 << 24));
        Self { floats: floats.collect(), words: (0..NUMBERS * 2).map(|n| n as u32).collect() }
    }

    fn checksum(&self) -> u64 {
        let floats = self.floats.iter().fold(0, |checksum, number| mix(checksum, number.to_bits()));
        self.words.iter().fold(floats, |checksum, word| mix(checksum, (*word).into()))
    }
}

/// Two at a time; words four at a time. Amount: passes over the arrays.
fn sse2(job: &Job<'_>) -> Result<()> {
    let mut arrays = Arrays::new();
    job.measure(|| {
        for _ in 0..job.amount {
            pass_sse2(black_box(&mut arrays));
        }
        Ok(arrays.checksum())
    })
}

fn pass_sse2(arrays: &mut Arrays) {
    for (floats, words) in arrays.floats.chunks_exact_mut(2).zip(arrays.words.chunks_exact_mut(4)) {
        // SAFETY: every x86-64 has SSE2; the chunks are as long as what is loaded and stored.
        unsafe {
            let x: __m128d = _mm_loadu_pd(floats.as_ptr());
            let grown = _mm_mul_pd(x, _mm_set1_pd(GROWTH));
            _mm_storeu_pd(floats.as_mut_ptr(), _mm_mul_pd(grown, _mm_sub_pd(_mm_set1_pd(1.0), x)));
            let at = words.as_mut_ptr().cast::<__m128i>();
            let w = _mm_loadu_si128(at);
            let w = _mm_add_epi32(w, _mm_slli_epi32::<5>(w));
            let turned = _mm_shuffle_epi32::<0b00_11_10_01>(w);
            _mm_storeu_si128(at, _mm_xor_si128(w, _mm_srli_epi32::<3>(turned)));
        }
    }
}

/// Four at a time; words eight at a time. Amount: passes over the arrays.
fn avx2(job: &Job<'_>) -> Result<()> {
    if !std::arch::is_x86_feature_detected!("avx2") {
        return Err(unsupported("no AVX2 here"));
    }
    let mut arrays = Arrays::new();
    job.measure(|| {
        for _ in 0..job.amount {
            // SAFETY: AVX2 is there, as was just seen.
            unsafe { pass_avx2(black_box(&mut arrays)) };
        }
        Ok(arrays.checksum())
    })
}

#[target_feature(enable = "avx2")]
fn pass_avx2(arrays: &mut Arrays) {
    for (floats, words) in arrays.floats.chunks_exact_mut(4).zip(arrays.words.chunks_exact_mut(8)) {
        // SAFETY: the chunks are as long as what is loaded and stored.
        unsafe {
            let x: __m256d = _mm256_loadu_pd(floats.as_ptr());
            let grown = _mm256_mul_pd(x, _mm256_set1_pd(GROWTH));
            let x = _mm256_mul_pd(grown, _mm256_sub_pd(_mm256_set1_pd(1.0), x));
            _mm256_storeu_pd(floats.as_mut_ptr(), x);
            let at = words.as_mut_ptr().cast::<__m256i>();
            let w = _mm256_loadu_si256(at);
            let w = _mm256_add_epi32(w, _mm256_slli_epi32::<5>(w));
            let turned = _mm256_permute4x64_epi64::<0b00_11_10_01>(w);
            _mm256_storeu_si256(at, _mm256_xor_si256(w, _mm256_srli_epi32::<3>(turned)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_do_what_plain_numbers_do() {
        let mut arrays = Arrays::new();
        let expected = arrays.floats.iter().map(|x| x * GROWTH * (1.0 - x));
        let expected: Vec<f64> = expected.collect();
        pass_sse2(&mut arrays);
        assert_eq!(arrays.floats, expected);
        assert_eq!(&arrays.words[..4], [4, 33 ^ 8, 66 ^ 12, 99]);
        if std::arch::is_x86_feature_detected!("avx2") {
            let mut arrays = Arrays::new();
            // SAFETY: AVX2 is there, as was just seen.
            unsafe { pass_avx2(&mut arrays) };
            assert_eq!(arrays.floats, expected);
            assert_eq!(&arrays.words[..4], [8, 33 ^ 12, 66 ^ 16, 99 ^ 20]);
        }
    }

    #[test]
    fn the_old_processor_counts_as_the_new() {
        let x = x87_rounds(0.3, 1);
        assert!((x - GROWTH * 0.3 * 0.7).abs() < 1e-15, "{x}");
    }

    #[test]
    fn numbers_stay_ordinary_however_long_the_work() {
        let mut arrays = Arrays::new();
        (0..10_000).for_each(|_| pass_sse2(&mut arrays));
        assert!(arrays.words.iter().filter(|word| **word >= 1 << 16).count() > NUMBERS);
        assert!(arrays.floats.iter().all(|x| *x > 0.0 && *x < 1.0));
        let mut bodies = bodies();
        (0..200_000).for_each(|_| advance(&mut bodies));
        assert!(bodies.iter().flat_map(|body| body.place).all(|x| x.is_normal() && x.abs() < 1e6));
        let x = x87_rounds(0.3, 100_000);
        assert!(x > 0.0 && x < 1.0, "{x}");
    }
}
