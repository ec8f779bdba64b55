//! Values of some width as a circle, and an arc of it: what every comparison with a limit comes down to.

/// `len` values from `from` on, modulo 2 to the `bits`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Arc {
    bits: u32,
    from: u64,
    /// 0 to 2 to the `bits`.
    len: u128,
}

/// Rounds around the circle, at most, before a walk counts as endless.
const ROUNDS: usize = 64;

impl Arc {
    /// From `from` to before `to`. Where these are the same, it is all the circle or nothing of it, as `all` says.
    pub(super) const fn between(bits: u32, from: u64, to: u64, all: bool) -> Self {
        let len = cut(to.wrapping_sub(from), bits) as u128;
        let len = if len == 0 && all { 1 << bits } else { len };
        Self { bits, from: cut(from, bits), len }
    }

    /// How often `step` can be added to `value` before it is outside: 0 where it is outside already.
    /// `u64::MAX`: for ever, or nearly so.
    pub(super) fn steps(&self, value: u64, step: u64) -> u64 {
        let circle = 1_u128 << self.bits;
        let at = u128::from(cut(value.wrapping_sub(self.from), self.bits));
        if at >= self.len {
            return 0;
        }
        if self.len == circle || cut(step, self.bits) == 0 {
            return u64::MAX;
        }
        let outside = circle - self.len;
        let step = u128::from(cut(step, self.bits));
        // The shorter way around, backwards by counting from the other end.
        let (at, step) =
            if step <= circle / 2 { (at, step) } else { (self.len - 1 - at, circle - step) };
        if outside == 1 {
            return meets(self.len - at, step, self.bits);
        }
        self.leaves(at, step)
    }

    /// By steps that may lead over what is outside, round after round.
    fn leaves(&self, mut at: u128, step: u128) -> u64 {
        let circle = 1_u128 << self.bits;
        let mut steps = 0;
        for _ in 0..ROUNDS {
            let some = (self.len - at).div_ceil(step);
            steps += some;
            at += some * step;
            if at < circle {
                return u64::try_from(steps).unwrap_or(u64::MAX);
            }
            at -= circle;
            if at >= self.len {
                return u64::try_from(steps).unwrap_or(u64::MAX);
            }
        }
        u64::MAX
    }
}

/// The least n, if there is one, with n * `step` = `distance` modulo 2 to the `bits`.
fn meets(distance: u128, step: u128, bits: u32) -> u64 {
    let shift = step.trailing_zeros();
    if distance.trailing_zeros() < shift {
        return u64::MAX;
    }
    let (distance, step) = ((distance >> shift) as u64, (step >> shift) as u64);
    cut(distance.wrapping_mul(inverse(step)), bits - shift)
}

/// Of an odd number, modulo 2 to the 64: each round of Newton's doubles the bits that are right, three at first.
fn inverse(odd: u64) -> u64 {
    (0..5).fold(odd, |guess, _| guess.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(guess))))
}

/// The low `bits`, 1 to 64.
const fn cut(value: u64, bits: u32) -> u64 {
    value & (u64::MAX >> (64 - bits))
}
