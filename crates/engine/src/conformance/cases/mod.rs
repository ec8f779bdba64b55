//! The cases, one file a topic.

use crate::conformance::Case;

/// Names the cases of a topic; each is a function of an engine.
macro_rules! cases {
    ($topic:literal: $($case:ident),+ $(,)?) => {
        pub(super) const CASES: &[crate::conformance::Case] = &[
            $(crate::conformance::Case { name: concat!($topic, "/", stringify!($case)), run: Run::One($case) }),+
        ];
    };
}

/// As `cases`; each is a function of the engine that a state is taken from and the one that it is given to.
macro_rules! moves {
    ($topic:literal: $($case:ident),+ $(,)?) => {
        pub(super) const CASES: &[crate::conformance::Case] = &[
            $(crate::conformance::Case { name: concat!($topic, "/", stringify!($case)), run: Run::Two($case) }),+
        ];
    };
}

/// What cases are written with.
mod prelude {
    pub(super) use iced_x86::code_asm::*;
    pub(super) use x86::{Vector, paging};

    pub(super) use crate::conformance::layout::*;
    pub(super) use crate::conformance::payload::*;
    pub(super) use crate::conformance::record::{Fault, IRQ};
    pub(super) use crate::conformance::rig::{Rig, assemble, cpuid};
    pub(super) use crate::conformance::{Run, skip};
    pub(super) use crate::exit::Exit;
    pub(super) use crate::traits::Engine;
}

mod accessed_dirty;
mod atomics;
mod backing;
mod breakpoints;
mod calls;
mod debugger;
mod debugger_breakpoints;
mod double_fault;
mod exceptions;
mod freeze;
mod interrupts;
mod io_apic;
mod kicks;
mod memory_facts;
mod mmio;
mod moves;
mod msrs;
mod ordering;
mod page_faults;
mod ports;
mod processor;
mod segments;
mod self_modifying;
mod shown;
mod single_step;
mod smp;
mod state;
mod strings;
mod timers;
mod translation;
mod user_mode;
mod vector_state;

pub(super) fn all() -> Vec<Case> {
    [
        ports::CASES,
        mmio::CASES,
        moves::CASES,
        msrs::CASES,
        page_faults::CASES,
        accessed_dirty::CASES,
        translation::CASES,
        exceptions::CASES,
        single_step::CASES,
        backing::CASES,
        freeze::CASES,
        breakpoints::CASES,
        calls::CASES,
        debugger::CASES,
        debugger_breakpoints::CASES,
        double_fault::CASES,
        segments::CASES,
        strings::CASES,
        interrupts::CASES,
        io_apic::CASES,
        timers::CASES,
        user_mode::CASES,
        shown::CASES,
        smp::CASES,
        atomics::CASES,
        ordering::CASES,
        self_modifying::CASES,
        memory_facts::CASES,
        state::CASES,
        kicks::CASES,
        processor::CASES,
        vector_state::CASES,
    ]
    .concat()
}
