//! What single operations cost, in ticks of the host's TSC: in a guest with no kernel, in this process, and where
//! this process traps. `costs [PERCENT]`: how often each is done, 100 unless said.
//!
//! Prints one line a measurement, for `cargo xtask reproduce translate`: how many ticks how many operations took, by
//! the clock of whoever did them and, for guests, by the host's, and how often generated code called out for them.

mod guest;
mod native;
mod operation;
mod trap;

use operation::{OPERATIONS, Operation, Way};

/// One measurement.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Operations.
    count: u64,
    /// By the clock of whoever did them.
    ticks: u64,
    /// By the host's.
    host_ticks: u64,
    /// How often generated code called out, or came out, for an instruction or an access.
    outside: u64,
}

fn main() {
    let percent = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(100);
    let (ticks, ns) = native::clock_rate();
    trap::RATE.get_or_init(|| (ticks, ns));
    println!("@fathom {{\"event\":\"clock\",\"ticks\":{ticks},\"ns\":{ns}}}");
    for operation in OPERATIONS {
        for way in Way::ALL {
            if let Some(cost) = measure(operation, way, percent) {
                tell(operation, way, cost);
            }
        }
    }
}

fn measure(operation: Operation, way: Way, percent: u64) -> Option<Cost> {
    let rounds = (operation.rounds(way) * percent / 100).max(10);
    match way {
        Way::Native => native::cost(operation, rounds),
        Way::Trap => trap::cost(operation, rounds),
        _ => guest::cost(operation, way, rounds),
    }
}

fn tell(operation: Operation, way: Way, cost: Cost) {
    let Cost { count, ticks, host_ticks, outside } = cost;
    println!(
        "@fathom {{\"event\":\"cost\",\"operation\":\"{operation:?}\",\"way\":\"{way:?}\",\"count\":{count},\
         \"ticks\":{ticks},\"host_ticks\":{host_ticks},\"outside\":{outside}}}"
    );
}
