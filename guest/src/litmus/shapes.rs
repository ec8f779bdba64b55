//! The shapes, by their usual names.

use super::thread::*;
use super::{Shape, X, Y, first, second};

const FIRST_OF_BOTH: &[usize] = &[first(0), first(1)];
const ALL_OF_ONE: &[usize] = &[first(1), second(1)];
const ALL_THAT_4_SEE: &[usize] = &[first(2), second(2), first(3), second(3)];

fn nothing(_: &[u64]) -> bool {
    false
}

/// Store buffering: both threads read what was before the other's store.
fn both_0(seen: &[u64]) -> bool {
    seen == [0, 0]
}

/// Message passing: the second store seen, and not the first.
fn flag_without_data(seen: &[u64]) -> bool {
    seen == [1, 0]
}

/// A shape of which every outcome that is not forbidden is ordinary.
const fn plain(
    name: &'static str,
    threads: &'static [Thread],
    looks_at: &'static [usize],
    forbidden: fn(&[u64]) -> bool,
) -> Shape {
    Shape { name, threads, looks_at, forbidden, relaxed: None, percent: 100 }
}

/// Store buffering with something between that must prevent it.
const fn fenced(name: &'static str, threads: &'static [Thread], percent: u64) -> Shape {
    Shape { percent, ..plain(name, threads, FIRST_OF_BOTH, both_0) }
}

/// Message passing by such stores and loads.
const fn message(name: &'static str, threads: &'static [Thread]) -> Shape {
    plain(name, threads, ALL_OF_ONE, flag_without_data)
}

/// A shape whose store buffers may show.
const fn relaxed(shape: Shape, outcome: &'static [u64]) -> Shape {
    Shape { relaxed: Some(outcome), ..shape }
}

pub(super) const SHAPES: &[Shape] = &[
    // Store buffering, and what is to stop it.
    relaxed(plain("sb", &[store_x_load_y, store_y_load_x], FIRST_OF_BOTH, nothing), &[0, 0]),
    fenced("sb-mfence", &[store_x_mfence_load_y, store_y_mfence_load_x], 100),
    fenced("sb-locked", &[store_x_locked_load_y, store_y_locked_load_x], 100),
    fenced("sb-exchange", &[exchange_x_load_y, exchange_y_load_x], 100),
    fenced("sb-add", &[add_x_load_y, add_y_load_x], 100),
    fenced("sb-iret", &[store_x_iret_load_y, store_y_iret_load_x], 50),
    fenced("sb-cpuid", &[store_x_cpuid_load_y, store_y_cpuid_load_x], 10),
    // Stores are seen in their order, loads take place in theirs.
    message("mp", &[store_x_y, load_y_x]),
    message("mp-vector", &[vector_store_x_y, vector_load_y_x]),
    message("mp-x87", &[x87_store_x_y, load_y_x]),
    message("mp-push", &[push_store_x_y, load_y_x]),
    message("mp-increment", &[increment_x_y, load_y_x]),
    message("mp-streaming", &[streaming_store_x_store_y, load_y_x]),
    message("mp-string-store", &[string_store_x_store_y, load_y_end_of_x]),
    message("mp-string-copy", &[string_copy_x_store_y, load_y_end_of_x]),
    // No load sees a store that comes after it in the order of things.
    plain("lb", &[load_x_store_y, load_y_store_x], FIRST_OF_BOTH, |seen| seen == [1, 1]),
    plain("s", &[store_2_x_y, load_y_store_x], &[first(1), X], |seen| seen == [1, 2]),
    relaxed(plain("r", &[store_x_y, store_2_y_load_x], &[first(1), Y], nothing), &[0, 2]),
    plain("r-mfence", &[store_x_mfence_store_y, store_2_y_mfence_load_x], &[first(1), Y], |seen| {
        seen == [0, 2]
    }),
    plain("2+2w", &[store_x_2_y, store_y_2_x], &[X, Y], |seen| seen == [1, 1]),
    // One word: all see its stores in one order.
    plain("corr", &[store_x, load_x_twice], ALL_OF_ONE, flag_without_data),
    plain("coww", &[store_x_twice, load_x_twice], &[first(1), second(1), X], |seen| {
        seen[0] > seen[1] || seen[2] != 2
    }),
    plain("cowr", &[store_x_load_x, store_2_x], &[first(0), X], |seen| {
        seen[0] == 0 || seen == [2, 1]
    }),
    plain("corw", &[load_x_store_x, store_2_x], &[first(0), X], |seen| {
        seen[0] == 1 || seen == [2, 2]
    }),
    plain("n4", &[load_x_store_x, load_x_store_2_x], FIRST_OF_BOTH, |seen| {
        seen[0] == 1 || seen[1] == 2 || seen == [2, 1]
    }),
    plain("n5", &[store_x_load_x, store_2_x_load_x], FIRST_OF_BOTH, |seen| {
        seen.contains(&0) || seen == [2, 1]
    }),
    // A thread sees its own store before others do.
    relaxed(
        plain("n6", &[store_x_load_x_y, store_2_y_2_x], &[first(0), second(0), X], |seen| {
            seen[0] == 0
        }),
        &[1, 0, 1],
    ),
    relaxed(
        plain(
            "sb-forwarding",
            &[store_x_load_x_y, store_y_load_y_x],
            &[first(0), second(0), first(1), second(1)],
            |seen| seen[0] != 1 || seen[2] != 1,
        ),
        &[1, 0, 1, 0],
    ),
    // More processors: what one has seen of another's store is there for a third, and all see the
    // stores of two in one order.
    plain("wrc", &[store_x, load_x_store_y, load_y_x], &[first(1), first(2), second(2)], |seen| {
        seen == [1, 1, 0]
    }),
    plain(
        "rwc-mfence",
        &[store_x, load_x_y, store_y_mfence_load_x],
        &[first(1), second(1), first(2)],
        |seen| seen == [1, 0, 0],
    ),
    plain("iriw", &[store_x, store_y, load_x_y, load_y_x], ALL_THAT_4_SEE, |seen| {
        seen == [1, 0, 1, 0]
    }),
];
