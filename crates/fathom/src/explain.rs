//! `fathom explain`: where every byte of a VM's memory is, why, and what it would cost to take it.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use api::{Client, FrameClass, IDLE_SECONDS, PartFigures, Picture, SocketDirectory};
use serde::Serialize;

use crate::arguments::PictureArguments;
use crate::failure::{Failure, SUCCESS};
use crate::list::print;
use crate::text;

/// Waits so long for the first figures of a VM that nobody watched before.
const FIRST_FIGURES: Duration = Duration::from_secs(4);
const FIRST_FIGURES_POLL: Duration = Duration::from_millis(200);
/// Idle for longer than that is idle, where it was watched for so long.
const IDLE: u64 = 60;

pub(crate) fn explain(arguments: &PictureArguments) -> Result<ExitCode, Failure> {
    let client = SocketDirectory::open()?.client(&arguments.name);
    let account = Account::new(&arguments.name, &watched(&client)?);
    let shown = match arguments.json {
        true => serde_json::to_string(&account).map_err(Failure::host)? + "\n",
        false => account.text(),
    };
    print(&shown);
    Ok(ExitCode::from(SUCCESS))
}

/// A picture with a working set, unless that does not come: a paused guest uses nothing.
pub(crate) fn watched(client: &Client) -> Result<Picture, Failure> {
    client.watch()?;
    let deadline = Instant::now() + FIRST_FIGURES;
    loop {
        let picture = client.memory()?;
        if picture.working_set.is_some() || Instant::now() > deadline {
            return Ok(picture);
        }
        thread::sleep(FIRST_FIGURES_POLL);
    }
}

/// All of a VM's memory. The sum of `parts` is `memory_bytes`.
#[derive(Debug, Serialize)]
struct Account {
    name: String,
    memory_bytes: u64,
    resident_bytes: u64,
    watched_seconds: Option<f64>,
    /// What counts as idle here: not accessed for so long.
    idle_seconds: Option<u64>,
    lost_events: u64,
    parts: Vec<Explained>,
}

#[derive(Debug, Serialize)]
struct Explained {
    part: FrameClass,
    bytes: u64,
    resident_bytes: u64,
    /// Absent while it is not known.
    idle_bytes: Option<u64>,
    shareable_bytes: Option<u64>,
    why: String,
    cost: String,
}

impl Account {
    fn new(name: &str, picture: &Picture) -> Self {
        let watched = picture.watched_seconds.unwrap_or(0.0);
        // A tick that came a moment early is a second all the same.
        let long_enough = |seconds: &u64| *seconds as f64 <= watched + 0.5 && *seconds <= IDLE;
        let idle_seconds = IDLE_SECONDS.into_iter().rev().find(long_enough);
        let parts = FrameClass::ALL.into_iter().filter(|part| picture.part(*part).bytes > 0);
        let parts = parts.map(|part| {
            let figures = picture.part(part);
            let idle_bytes = idle_seconds.map(|seconds| idle(&figures, seconds));
            Explained {
                part,
                bytes: figures.bytes,
                resident_bytes: figures.resident_bytes,
                idle_bytes,
                shareable_bytes: figures.shareable_bytes,
                why: why(part, picture.classified).to_owned(),
                cost: cost(part, &figures, idle_bytes, picture),
            }
        });
        Self {
            name: name.to_owned(),
            memory_bytes: picture.memory_bytes,
            resident_bytes: picture.resident_bytes(),
            watched_seconds: picture.watched_seconds,
            idle_seconds,
            lost_events: picture.lost_events,
            parts: parts.collect(),
        }
    }

    fn text(&self) -> String {
        let mut text = format!(
            "VM `{}` has {}, of which the host holds {}.\n",
            self.name,
            text::bytes(self.memory_bytes),
            text::bytes(self.resident_bytes)
        );
        text += &match (self.watched_seconds, self.idle_seconds) {
            (Some(watched), Some(idle)) => format!(
                "Watched for {}; idle is what was not accessed in the last {}.\n",
                text::duration(watched),
                text::duration(idle as f64)
            ),
            _ => {
                "Its accesses have not been watched: nothing is known of what is idle.\n".to_owned()
            }
        };
        if self.lost_events > 0 {
            let lost = self.lost_events;
            text +=
                &format!("{lost} events came too fast and are lost: the file cache may be off.\n");
        }
        text += "\n";
        text += &self.table();
        for part in &self.parts {
            let (title, bytes) = (title(part.part), text::bytes(part.bytes));
            text += &format!("\n{title}, {bytes}: {}.\n  To take it: {}.\n", part.why, part.cost);
        }
        text
    }

    fn table(&self) -> String {
        let kib = |bytes: u64| (bytes / 1024).to_string();
        let known = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), kib);
        let mut rows =
            vec![["WHAT", "KIB", "RESIDENT", "IDLE", "SHAREABLE"].map(str::to_owned).to_vec()];
        rows.extend(self.parts.iter().map(|part| {
            vec![
                title(part.part).to_owned(),
                kib(part.bytes),
                kib(part.resident_bytes),
                known(part.idle_bytes),
                known(part.shareable_bytes),
            ]
        }));
        let sum = |of: fn(&Explained) -> u64| self.parts.iter().map(of).sum::<u64>();
        let idle = self.idle_seconds.map(|_| sum(|part| part.idle_bytes.unwrap_or(0)));
        rows.push(vec![
            "all".to_owned(),
            kib(sum(|part| part.bytes)),
            kib(sum(|part| part.resident_bytes)),
            known(idle),
        ]);
        text::table(&rows)
    }
}

/// What was not accessed since watching began has been idle for longer than any window within that time.
fn idle(figures: &PartFigures, seconds: u64) -> u64 {
    figures.idle_bytes(seconds) + figures.age_unknown_bytes
}

pub(crate) fn title(part: FrameClass) -> &'static str {
    match part {
        FrameClass::FileCache => "file cache",
        FrameClass::Anonymous => "anonymous",
        FrameClass::PageTable => "page tables",
        FrameClass::KernelText => "kernel code",
        FrameClass::Kernel => "kernel",
        FrameClass::DmaRing => "device rings",
        FrameClass::Zero => "zeros",
        FrameClass::Unknown => "in use, other",
        FrameClass::Absent => "elsewhere",
        FrameClass::Ballooned => "balloon",
        FrameClass::Free => "free",
        FrameClass::Untouched => "never used",
    }
}

fn why(part: FrameClass, classified: bool) -> &'static str {
    match part {
        FrameClass::FileCache => {
            "blocks of its disks that the guest has read or written; it keeps them until something else needs the memory"
        }
        FrameClass::Anonymous => {
            "memory of the guest's programs: heaps, stacks, what they changed of files"
        }
        FrameClass::PageTable => "where the guest's kernel says which memory its programs see",
        FrameClass::KernelText => "the code of the guest's kernel",
        FrameClass::Kernel => {
            "data of the guest's kernel: slabs, stacks, the descriptions of frames"
        }
        FrameClass::DmaRing => "the guest talks to its devices through it",
        FrameClass::Zero => "pages full of zeros of which nothing else is known",
        FrameClass::Unknown if classified => "the guest has used it, and nothing tells for what",
        FrameClass::Unknown => {
            "memory of the guest's programs and of its kernel, and cache of no disk block: frames were not classified"
        }
        FrameClass::Absent => {
            "its contents are not in this process, and come when the guest wants them"
        }
        FrameClass::Ballooned => "the guest gave it up for the balloon, and the host has it back",
        FrameClass::Free => "the guest had used it, and does not any more",
        FrameClass::Untouched => "the guest has never used it, so that the host never gave it",
    }
}

fn cost(part: FrameClass, figures: &PartFigures, idle: Option<u64>, picture: &Picture) -> String {
    let idle_of = |then: &str| match idle {
        Some(idle) => format!(
            "{} idle: {then}; {} in use: do not",
            text::bytes(idle),
            text::bytes(figures.resident_bytes.saturating_sub(idle))
        ),
        None => format!("what is idle: {then}; what is in use: do not"),
    };
    match part {
        FrameClass::FileCache => {
            let rate = picture.cache.map_or(0.0, |cache| cache.disk_read_peak_bytes_per_second);
            let again = match rate > 0.0 {
                true => format!(
                    "all of it takes {:.1} s at {} a second, the most that was seen of its disks",
                    figures.bytes as f64 / rate,
                    text::bytes(rate as u64)
                ),
                false => "how fast that is was not seen yet".to_owned(),
            };
            let used = idle.map_or(String::new(), |idle| {
                let used = text::bytes(figures.resident_bytes.saturating_sub(idle));
                format!("; {used} were in use lately and would be wanted soon")
            });
            format!("blocks that are wanted again are read from the disk: {again}{used}")
        }
        FrameClass::Anonymous => {
            idle_of("the guest swaps it out, if it has swap, and reads it again")
        }
        FrameClass::Unknown => {
            idle_of("as programs' memory it would be swapped, the kernel's stays")
        }
        FrameClass::PageTable
        | FrameClass::KernelText
        | FrameClass::Kernel
        | FrameClass::DmaRing => "needed: do not".to_owned(),
        FrameClass::Zero => "a fault for each page that is written again".to_owned(),
        FrameClass::Free if figures.resident_bytes > 0 => {
            "nothing: the balloon gets it at once".to_owned()
        }
        FrameClass::Absent | FrameClass::Ballooned | FrameClass::Free | FrameClass::Untouched => {
            "nothing: the host does not hold it".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use api::VmControl;
    use api::testing::FakeVm;

    use super::*;

    #[test]
    fn every_part_is_explained() {
        let vm = FakeVm::new("web");
        vm.watch().expect("watch");
        let picture = vm.memory().expect("memory");
        let account = Account::new("web", &picture);
        assert_eq!(account.parts.iter().map(|part| part.bytes).sum::<u64>(), account.memory_bytes);
        let text = account.text();
        for line in [
            "VM `web` has 256M, of which the host holds 100M.",
            "Watched for 1m30s; idle is what was not accessed in the last 1m00s.",
            "file cache    40960     40960  10240          -",
            "anonymous     30720     30720  20480       5120",
            "never used   102400         0      0          -",
            "all          262144    102400  30720",
            "  To take it: blocks that are wanted again are read from the disk: all of it takes 0.4 s at 100M a second, the most that was seen of its disks; 30M were in use lately and would be wanted soon.",
            "  To take it: 20M idle: the guest swaps it out, if it has swap, and reads it again; 10M in use: do not.",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn nothing_is_said_of_what_was_not_watched() {
        let picture = FakeVm::new("web").memory().expect("memory");
        let account = Account::new("web", &picture);
        assert!(account.parts.iter().all(|part| part.idle_bytes.is_none()));
        assert!(account.text().contains("have not been watched"));
    }
}
