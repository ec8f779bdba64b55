//! `fathom balance`: which VM is to have how much memory, and why.

use std::fs;
use std::process::ExitCode;
use std::time::SystemTime;

use api::{Client, SocketDirectory};
use host::{Board, Memory};
use policy::{Facts, HostFacts, VmFacts, decide};

use crate::arguments::BalanceArguments;
use crate::failure::{Failure, SUCCESS};
use crate::list::{complain, print};
use crate::{serve, text};

/// A decision older than this is none of a daemon that works: seconds.
const OLD: f64 = 10.0;

pub(crate) fn balance(arguments: &BalanceArguments) -> Result<ExitCode, Failure> {
    if let Some(log) = &arguments.replay {
        let lines = fs::read_to_string(log)
            .map_err(|error| Failure::Usage(format!("{}: {error}", log.display())))?;
        return replay(&lines);
    }
    let sockets = SocketDirectory::open()?;
    let board = if arguments.dry_run {
        decide_here(arguments, &sockets)?
    } else {
        Board::read(sockets.path()).map_err(Failure::usage)?
    };
    if arguments.json {
        print(&(serde_json::to_string(&board).map_err(Failure::host)? + "\n"));
    } else {
        print(&table(&board));
        let age = now() - board.at;
        if age > OLD {
            eprintln!(
                "fathom: that was decided {age:.0} s ago: the daemon, process {}, hangs or was killed",
                board.pid
            );
        }
    }
    Ok(ExitCode::from(SUCCESS))
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

fn decide_here(arguments: &BalanceArguments, sockets: &SocketDirectory) -> Result<Board, Failure> {
    let settings = arguments.sharing.settings();
    let answers = host::ask_each(sockets, Client::status)?;
    complain(&answers);
    // As a daemon that runs knows them.
    let known = Board::read(sockets.path()).ok();
    let memory = |name: &str| {
        let vms = known.iter().flat_map(|board| &board.facts.vms);
        vms.into_iter().find(|vm| vm.name == name).map_or_else(Memory::default, |vm| Memory {
            shares: vm.shares,
            reservation: vm.reservation,
            limit: Some(vm.limit),
        })
    };
    let statuses = answers.into_iter().filter_map(Result::ok);
    let statuses: Vec<api::VmStatus> = statuses.collect();
    let mut curves = host::curves(sockets, &statuses);
    let facts = |status: &api::VmStatus| VmFacts {
        curve: curves.remove(&status.name),
        ..host::facts(status, memory(&status.name), true)
    };
    let vms: Vec<VmFacts> = statuses.iter().map(facts).collect();
    let limit = arguments.sharing.memory.map_or_else(serve::memory, |memory| memory.0);
    let used: u64 = vms.iter().map(|vm| vm.resident + vm.overhead).sum();
    let takes = known.as_ref().is_some_and(|board| board.takes);
    let state = known.map(|board| board.verdict.state).unwrap_or_default();
    let facts = Facts { host: HostFacts { limit, free: limit.saturating_sub(used), state }, vms };
    let verdict = decide(&facts, &settings).map_err(Failure::usage)?;
    let stopped = Vec::new();
    Ok(Board { at: now(), pid: std::process::id(), facts, settings, verdict, takes, stopped })
}

fn table(board: &Board) -> String {
    let Board { facts, settings, verdict, .. } = board;
    let host = &facts.host;
    let mut rows = vec![
        [
            "NAME",
            "SHARES",
            "RESERVED",
            "LIMIT",
            "HAS",
            "IDLE",
            "PUBLISHED",
            "TARGET",
            "SAVES",
            "WHY",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for (vm, decided) in facts.vms.iter().zip(&verdict.vms) {
        rows.push(vec![
            vm.name.clone(),
            vm.shares.to_string(),
            text::bytes(vm.reservation),
            text::bytes(vm.limit),
            text::bytes(vm.resident),
            format!("{:.0}%", decided.idle * 100.0),
            text::bytes(decided.published),
            text::bytes(decided.target),
            decided.marginal.map_or_else(|| "-".to_owned(), |saved| format!("{saved:.1}/s")),
            host::why(decided, board.takes, text::bytes),
        ]);
    }
    let state = format!("{:?}", verdict.state).to_lowercase();
    format!(
        "host: {} of {} free, state {state}; tax {}\n{}",
        text::bytes(host.free),
        text::bytes(host.limit),
        settings.tax,
        text::table(&rows)
    )
}

/// Lines that are no decisions are passed over: it is a log.
fn replay(log: &str) -> Result<ExitCode, Failure> {
    let (mut same, mut others) = (0u32, 0u32);
    for (number, line) in log.lines().enumerate() {
        let json = line.find("{\"at\":").map(|at| &line[at..]);
        let Some(board) = json.and_then(|json| serde_json::from_str::<Board>(json).ok()) else {
            continue;
        };
        match decide(&board.facts, &board.settings) {
            Ok(verdict) if verdict == board.verdict => same += 1,
            Ok(_) => {
                others += 1;
                eprintln!("fathom: line {}: another verdict now", number + 1);
            }
            Err(error) => {
                others += 1;
                eprintln!("fathom: line {}: {error}", number + 1);
            }
        }
    }
    print(&format!("{same} of {} decisions come out the same\n", same + others));
    if others == 0 && same > 0 {
        return Ok(ExitCode::from(SUCCESS));
    }
    Err(Failure::Usage(if same + others == 0 {
        "no decision in the log".to_owned()
    } else {
        format!("{others} decisions come out differently")
    }))
}
