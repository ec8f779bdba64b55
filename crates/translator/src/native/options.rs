//! What may be left out.

/// Optimisations, each to be left out for finding faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Status flags that are overwritten before an instruction looks at them may be anything in between: an
    /// exception handler could see it.
    pub forget_dead_flags: bool,
    /// Branches lead from block to block once they have been taken; else each block comes out at its end.
    pub link: bool,
    /// Also branches into other pages. Nothing without `link`.
    pub link_far: bool,
    /// Indirect branches look their target up; else each comes out.
    pub indirect: bool,
    /// Returns go to where their calls said; else they are as other indirect branches. Nothing without `link` and
    /// `indirect`.
    pub pair_returns: bool,
    /// The page of the stack is kept beside the tables of translations; else it is looked up as all are.
    pub stack_slot: bool,
    /// Accesses close together have one look-up; else each has its own.
    pub groups: bool,
    /// Loops whose accesses go on by constants look them up once for many rounds; else in each. Nothing without
    /// `forget_dead_flags`.
    pub strips: bool,
    /// An instruction in two pages has code; else it is interpreted.
    pub crossing: bool,
    /// RDTSC, RDTSCP and RDPID are in line; else by their handlers.
    pub time: bool,
    /// The same for CLI, STI, CLD and PUSHF.
    pub interrupts: bool,
    /// The same for SWAPGS and RDFSBASE and its kin.
    pub bases: bool,
    /// The same for SYSCALL and SYSRET.
    pub calls: bool,
    /// The same for REP MOVS and REP STOS.
    pub strings: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            forget_dead_flags: true,
            link: true,
            link_far: true,
            indirect: true,
            pair_returns: true,
            stack_slot: true,
            groups: true,
            strips: true,
            crossing: true,
            time: true,
            interrupts: true,
            bases: true,
            calls: true,
            strings: true,
        }
    }
}
