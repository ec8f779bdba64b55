//! Addition, subtraction, logic, comparison, and the one-operand forms.

use x86::rflags::{CF, OF};

use super::Core;
use super::flags;
use super::operand::{Source, Target};
use crate::insn::Insn;
use crate::machine::{Machine, Stop, Word};

/// An operation on two operands that replaces the first.
pub(crate) trait Binary {
    fn apply<T: Word>(a: T, b: T, rflags: u64) -> (T, u64);
}

/// An operation on one operand.
pub(crate) trait Unary {
    fn apply<T: Word>(a: T, rflags: u64) -> (T, u64);
}

macro_rules! binary {
    ($name:ident, |$a:ident, $b:ident, $rflags:ident| $body:expr) => {
        pub(crate) struct $name;
        impl Binary for $name {
            #[inline(always)]
            fn apply<T: Word>($a: T, $b: T, $rflags: u64) -> (T, u64) {
                $body
            }
        }
    };
}

binary!(Add, |a, b, rflags| flags::add(a, b, 0, rflags));
binary!(Adc, |a, b, rflags| flags::add(a, b, rflags & CF, rflags));
binary!(Sub, |a, b, rflags| flags::sub(a, b, 0, rflags));
binary!(Sbb, |a, b, rflags| flags::sub(a, b, rflags & CF, rflags));
binary!(And, |a, b, rflags| flags::logic(a.zext() & b.zext(), rflags));
binary!(Or, |a, b, rflags| flags::logic(a.zext() | b.zext(), rflags));
binary!(Xor, |a, b, rflags| flags::logic(a.zext() ^ b.zext(), rflags));

// ADCX and ADOX: addition that carries through one flag and touches no other.
binary!(Adcx, |a, b, rflags| {
    let (sum, new) = flags::add(a, b, rflags & CF, rflags);
    (sum, flags::replace(rflags, CF, new))
});
binary!(Adox, |a, b, rflags| {
    let (sum, new) = flags::add(a, b, rflags >> 11 & 1, rflags);
    (sum, flags::replace(rflags, OF, (new & CF) << 11))
});

macro_rules! unary {
    ($name:ident, |$a:ident, $rflags:ident| $body:expr) => {
        pub(crate) struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn apply<T: Word>($a: T, $rflags: u64) -> (T, u64) {
                $body
            }
        }
    };
}

unary!(Inc, |a, rflags| {
    let (value, new) = flags::add(a, T::cut(1), 0, rflags);
    (value, flags::replace(new, CF, rflags))
});
unary!(Dec, |a, rflags| {
    let (value, new) = flags::sub(a, T::cut(1), 0, rflags);
    (value, flags::replace(new, CF, rflags))
});
unary!(Neg, |a, rflags| flags::sub(T::cut(0), a, 0, rflags));
unary!(Not, |a, rflags| (T::cut(!a.zext()), rflags));

/// ADD, ADC, SUB, SBB, AND, OR, XOR.
pub(crate) fn binary<M: Machine, T: Word, O: Binary, D: Target, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let b: T = S::get(core, insn)?;
    D::modify(core, insn, |a, rflags| O::apply(a, b, rflags))
}

/// CMP and TEST: only the flags are kept.
pub(crate) fn compare<M: Machine, T: Word, O: Binary, A: Source, B: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let b: T = B::get(core, insn)?;
    let a: T = A::get(core, insn)?;
    core.cpu.rflags = O::apply(a, b, core.cpu.rflags).1;
    Ok(())
}

/// INC, DEC, NEG, NOT.
pub(crate) fn unary<M: Machine, T: Word, O: Unary, D: Target>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    D::modify(core, insn, O::apply::<T>)
}
