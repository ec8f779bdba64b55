//! What may be left out.

/// Defines [`Options`]: each optimisation with the word that leaves it out and what is done instead, once.
macro_rules! options {
    ($($(#[doc = $doc:literal])+ $field:ident: $word:literal, $instead:literal;)+) => {
        /// Optimisations, each to be left out for finding faults.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub struct Options {
            $($(#[doc = $doc])+ pub $field: bool,)+
        }

        impl Options {
            /// All of them.
            pub const ALL: Self = Self { $($field: true,)+ };

            /// The words that leave them out, and what is done instead.
            pub const WORDS: &[(&str, &str)] = &[$(($word, $instead),)+];

            /// The same without what `word` leaves out; `None` where it is none of [`Options::WORDS`].
            #[must_use]
            pub fn without(self, word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self { $field: false, ..self }),)+
                    _ => None,
                }
            }
        }
    };
}

options! {
    /// Status flags that are overwritten before an instruction looks at them may be anything in between: an
    /// exception handler could see it.
    forget_dead_flags: "keep-flags", "flags that nobody looks at are computed too";
    /// Branches lead from block to block once they have been taken; else each block comes out at its end.
    link: "no-links", "blocks do not lead to each other";
    /// Also branches into other pages. Nothing without `link`.
    link_far: "no-far-links", "nor into other pages, but within their own";
    /// Indirect branches look their target up; else each comes out.
    indirect: "no-jump-table", "indirect branches are looked up outside";
    /// Returns go to where their calls said; else they are as other indirect branches. Nothing without `link` and
    /// `indirect`.
    pair_returns: "no-return-pairs", "returns are looked up as those are";
    /// The page of the stack is kept beside the tables of translations; else it is looked up as all are.
    stack_slot: "no-stack-slot", "the stack's page is looked up as all are";
    /// Accesses close together have one look-up; else each has its own.
    groups: "no-groups", "each access is looked up, also where others are close by";
    /// Loops whose accesses go on by constants look them up once for many rounds; else in each. Nothing without
    /// `forget_dead_flags`.
    strips: "no-strips", "loops look their accesses up in each round";
    /// An instruction in two pages has code; else it is interpreted.
    crossing: "no-crossing", "instructions in two pages are interpreted";
    /// RDTSC, RDTSCP and RDPID are in line; else by their handlers.
    time: "no-time", "RDTSC, RDTSCP and RDPID call their handlers";
    /// The same for CLI, STI, CLD and PUSHF.
    interrupts: "no-interrupts", "so do CLI, STI, CLD and PUSHF";
    /// The same for SWAPGS and RDFSBASE and its kin.
    bases: "no-bases", "and SWAPGS and those for the bases of FS and GS";
    /// The same for SYSCALL and SYSRET.
    calls: "no-calls", "and SYSCALL and SYSRET";
    /// The same for REP MOVS and REP STOS.
    strings: "no-strings", "and REP MOVS and STOS";
}

impl Default for Options {
    fn default() -> Self {
        Self::ALL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_leaves_out_one_thing() {
        let mut all = vec![Options::ALL];
        for (word, _) in Options::WORDS {
            let left = Options::ALL.without(word).expect(word);
            assert!(!all.contains(&left), "{word}");
            all.push(left);
        }
        assert_eq!(Options::ALL.without("links"), None);
        let neither = Options::ALL.without("no-links").and_then(|left| left.without("no-groups"));
        assert_eq!(neither, Some(Options { link: false, groups: false, ..Options::ALL }));
    }
}
