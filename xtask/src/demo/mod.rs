//! `cargo xtask demo`: boot Debian's kernel with 256 MiB, touch known amounts of memory in it,
//! and show what Fathom saw of that from outside.

mod live;
mod phases;
mod plot;
mod report;

use crate::kit;
use crate::machine::{Guest, MEMORY_MIB, Next, Running, Vmm, build_fathom};
use crate::workspace;
use anyhow::{Context, Result, bail};
use live::Live;
use phases::{Phases, Row};
use report::Report;
use std::fs;
use std::path::Path;
use std::time::Duration;

#[derive(clap::Args)]
pub(crate) struct DemoArgs {
    /// Sizes of the phases, in MiB
    #[arg(long, default_value = "30,120,15")]
    phases: String,
    /// How long each phase lasts, in seconds; a shorter one would have no window to be judged by
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u64).range(7..=60))]
    seconds: u64,
    /// Fail if a phase is measured wrongly (more than 3 % and 1 MiB)
    #[arg(long)]
    check: bool,
}

const NAME: &str = "demo";
const FILE_MIB: u64 = 40;
/// Read beforehand, to see what reading takes of the kernel.
const SAMPLE_MIB: u64 = 1;
const LONGEST: Duration = Duration::from_secs(900);

pub(crate) fn run(args: &DemoArgs) -> Result<()> {
    let kit = kit::prepare(&kit::GuestArgs::default())?;
    build_fathom()?;
    let folder = workspace::root().join("target/demo");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let [disk, report_file, picture] =
        ["disk.raw", "report.json", "working-set.svg"].map(|file| folder.join(file));
    write_disk(&disk)?;
    let words = format!(
        "quiet fathom.run=phases:{} fathom.seconds={} fathom.file={FILE_MIB}",
        args.phases, args.seconds
    );
    eprintln!("booting Debian's kernel with {MEMORY_MIB} MiB, without KVM");
    let guest = Guest::new(&kit, &words).disk(&disk).named(NAME, &report_file);
    let phases = follow(guest.start(Vmm::Fathom)?)?;
    let mut report = Report::read(&report_file)?;
    report.align(phases.process_seconds);
    let rows = phases::compare(&phases.done, &report.working_set);
    print_table(&rows);
    print_machine(&report);
    plot::draw(&picture, &rows, &report.working_set)?;
    println!("\npicture: {}\nreport:  {}", shown(&picture), shown(&report_file));
    if args.check && !rows.iter().all(Row::is_right) {
        bail!("a phase was measured wrongly");
    }
    Ok(())
}

/// Watch the guest to its end.
fn follow(mut guest: Running) -> Result<Phases> {
    let mut phases = Phases::default();
    let mut live = Live::new(NAME);
    loop {
        if guest.elapsed() > LONGEST {
            bail!("the guest did not end within {LONGEST:?}");
        }
        match guest.next(Duration::from_secs(1)) {
            Next::Event(event) if event.is("init") => {
                live.say(&format!("kernel to /init in {:.1} s", event.at.as_secs_f64()));
            }
            Next::Event(event) => {
                phases.notice(&event);
            }
            Next::Quiet => live.show(guest.elapsed(), phases.current.as_ref()),
            Next::Ended => break,
        }
    }
    live.finish();
    guest.check_end()?;
    phases.process_seconds = guest.elapsed().as_secs_f64();
    if phases.done.is_empty() {
        bail!("the guest ended without a phase: see its console with fathom run");
    }
    Ok(phases)
}

/// Bytes that no file system or compression can make little of; written once.
fn write_disk(file: &Path) -> Result<()> {
    let size = (FILE_MIB + SAMPLE_MIB) << 20;
    if fs::metadata(file).is_ok_and(|old| old.len() == size) {
        return Ok(());
    }
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(size as usize);
    while (bytes.len() as u64) < size {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.extend(word.to_le_bytes());
    }
    fs::write(file, bytes).with_context(|| format!("write {}", file.display()))
}

fn print_table(rows: &[Row]) {
    println!(
        "\n{:<20} {:>9} {:>9} {:>7} {:>9} {:>10}  off",
        "MiB", "touched", "+ kernel", "+ rest", "= true", "measured"
    );
    for row in rows.iter().filter(|row| !row.phase.is_base()) {
        println!("{}", line(row));
    }
    println!(
        "touched: by the program, as it says; kernel: page tables or page structs of that;\n\
         rest: code and data of kernel and program, measured while the program does the same\n\
         with next to nothing; measured: by Fathom, from outside"
    );
}

fn line(row: &Row) -> String {
    let measured = row.measured.map_or("none".into(), mib);
    let off = row.deviation().map_or("no window held the phase".into(), |off| {
        let share = 100.0 * off as f64 / row.truth() as f64;
        format!("{:+.2} = {share:+.1} %", off as f64 / f64::from(1 << 20))
    });
    let verdict = if row.is_right() { "" } else { "  <- more than 3 % and 1 MiB" };
    format!(
        "{:<20} {:>9} {:>9} {:>7} {:>9} {measured:>10}  {off}{verdict}",
        row.phase.title(),
        mib(row.phase.bytes),
        mib(row.phase.kernel_bytes),
        mib(row.base),
        mib(row.truth()),
    )
}

fn mib(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / f64::from(1 << 20))
}

fn print_machine(report: &Report) {
    println!(
        "\nengine {}, {:.1} s, {:.1} s of CPU",
        report.engine, report.wall_seconds, report.cpu_seconds
    );
    if let Some(instructions) = report.guest_instructions {
        println!("guest instructions: {} million", instructions / 1_000_000);
    }
    if let Some(resident) = report.host_resident_bytes {
        println!("resident on the host at the end: {} MiB", resident >> 20);
    }
    print_counts("frames", &report.frames);
    print_counts("exits", &report.exits);
}

fn print_counts(what: &str, counts: &std::collections::BTreeMap<String, u64>) {
    if !counts.is_empty() {
        let counts: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        println!("{what}: {}", counts.join(", "));
    }
}

/// Relative to the workspace, as a person would name it.
fn shown(file: &Path) -> String {
    file.strip_prefix(workspace::root()).unwrap_or(file).display().to_string()
}
