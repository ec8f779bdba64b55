//! Work that fills and empties the page cache, and what the kernel says of each page that came or went.
//!
//! It is the ground truth for a machine that infers the same from outside. On a scratch disk with a file
//! system, whose file `big` is larger than memory, a load is run; meanwhile the kernel's events of the page
//! cache and of the swap cache go, as they come, to a disk of their own (`drain`), which
//! nobody else uses and which is written past the cache. Afterwards it is told there too where on its disk each
//! page of a file lies, and what else it takes to read the events (`facts`).
//!
//! ```text
//! fathom.run=cache:LOAD[,MIB]   a load, and how large; a half of memory or so if not said
//! "fathom.run=cache:program PROGRAM ARGUMENT .."   a program of the disk with Debian
//! fathom.scratch=DEVICE         the disk with the file system
//! fathom.trace=DEVICE           the disk for events, /dev/vdc if not said
//! fathom.swap=DEVICE            a swap area, for the load that needs one, /dev/vdd if not said
//! ```
//!
//! Times are of the time-stamp counter, which is what a machine has its events by, too.

mod direct;
mod drain;
mod extents;
mod facts;
mod files;
mod kernel;
mod memory;
mod place;
mod program;
mod reuse;
mod servers;
mod tracer;

use crate::report::emit;
use crate::request::{Request, Work};
use place::Place;
use std::io::{Error, Result};
use tracer::Tracer;

/// One kind of work.
struct Load {
    name: &'static str,
    run: fn(&Place) -> Result<()>,
}

const LOADS: [&[Load]; 7] = [
    &files::LOADS,
    &memory::LOADS,
    &direct::LOADS,
    &kernel::LOADS,
    &servers::LOADS,
    &program::LOADS,
    &reuse::LOADS,
];

/// Run a load, and say what the kernel did; false if that failed or something was lost.
pub(crate) fn run(work: &Work, request: &Request) -> bool {
    let mut words = work.command().into_iter();
    let first = words.next().unwrap_or_default();
    let (name, size) = first.split_once(',').unwrap_or((&first, ""));
    let Some(load) = LOADS.into_iter().flatten().find(|load| load.name == name) else {
        let known: Vec<_> = LOADS.into_iter().flatten().map(|load| load.name).collect();
        emit("unknown", &[("name", name.into()), ("known", known.join(" ").as_str().into())]);
        return false;
    };
    let done = perform(load, Place::mount(request, size.parse().ok(), words.collect()));
    if let Err(error) = &done {
        emit("cache", &[("name", name.into()), ("error", error.to_string().as_str().into())]);
    }
    done.unwrap_or(false)
}

fn perform(load: &Load, place: Result<Place>) -> Result<bool> {
    let place = place?;
    let before = facts::vmstat();
    let tracer = Tracer::start(&place.trace).map_err(Error::other)?;
    let began = facts::now();
    let result = (load.run)(&place);
    let ended = facts::now();
    let free = facts::free()?;
    let mut traced = tracer.stop().map_err(Error::other)?;
    let after = facts::vmstat();
    result?;
    let text = facts::text(&place, &traced, [began, ended], [&before, &after], &free)?;
    traced.writer.text(&text)?;
    tell(load, &traced, [began, ended], [&before, &after]);
    Ok(traced.lost == 0)
}

fn tell(
    load: &Load,
    traced: &tracer::Traced,
    time: [facts::Instant; 2],
    counters: [&facts::Counters; 2],
) {
    for (state, counters) in ["begin", "end"].into_iter().zip(counters) {
        let counters: Vec<_> =
            counters.iter().map(|(name, value)| (name.as_str(), (*value).into())).collect();
        emit("vmstat", &[&[("state", state.into())], counters.as_slice()].concat());
    }
    let fields = [
        ("name", load.name.into()),
        ("nanoseconds", (time[1].nanoseconds - time[0].nanoseconds).into()),
        ("events", traced.events.into()),
        ("lost", traced.lost.into()),
    ];
    emit("cache", &fields);
}
