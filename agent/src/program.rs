//! Running a program for the host.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use agent_wire::{OUTPUT_MAX, Ran, Run};
use rustix::process::{Pid, Signal, kill_process_group};

const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);
/// Between looks at whether it has ended: the first, and the longest.
const POLLS: [Duration; 2] = [Duration::from_micros(500), Duration::from_millis(50)];
/// What it started may hold its output open for ever: what has come by then is what it printed.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// In a process group of its own, without input.
pub(crate) fn run(asked: &Run) -> Result<Ran, String> {
    let Some((program, arguments)) =
        asked.command.split_first().filter(|(name, _)| !name.is_empty())
    else {
        return Err("no program is named".to_owned());
    };
    let mut command = Command::new(program);
    let environment = [("PATH", SEARCH_PATH), ("HOME", "/"), ("LC_ALL", "C.UTF-8")];
    command.args(arguments).env_clear().envs(environment).current_dir("/").process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("run {program}: {error}"))?;
    let max = asked.output_max.min(OUTPUT_MAX) as usize;
    let output = child.stdout.take().map(|stream| Kept::read(stream, max));
    let errors = child.stderr.take().map(|stream| Kept::read(stream, max));
    let timeout = Duration::from_millis(asked.timeout_ms).min(TIMEOUT_MAX);
    let (status, timed_out) = wait(&mut child, timeout)?;
    let until = Instant::now() + LAST_WORDS;
    let (output, output_cut) = output.map_or_else(Default::default, |kept| kept.taken(until));
    let (errors, errors_cut) = errors.map_or_else(Default::default, |kept| kept.taken(until));
    let cut = output_cut || errors_cut;
    Ok(Ran { status: status.code(), signal: status.signal(), timed_out, output, errors, cut })
}

fn wait(child: &mut Child, timeout: Duration) -> Result<(ExitStatus, bool), String> {
    let begun = Instant::now();
    let mut timed_out = false;
    let mut pause = POLLS[0];
    loop {
        let ended = child.try_wait().map_err(|error| format!("wait for it: {error}"))?;
        if let Some(status) = ended {
            return Ok((status, timed_out));
        }
        if begun.elapsed() >= timeout && !timed_out {
            timed_out = true;
            kill(child);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(POLLS[1]);
    }
}

/// With all of its group.
fn kill(child: &mut Child) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let killed = group.is_some_and(|group| kill_process_group(group, Signal::KILL).is_ok());
    if !killed {
        // Gone in the meantime is fine.
        let _ = child.kill();
    }
}

#[derive(Default)]
struct Taken {
    bytes: Vec<u8>,
    cut: bool,
}

/// What a program prints, up to so much; the rest is read and forgotten, so that it is not held up.
struct Kept {
    taken: Arc<Mutex<Taken>>,
    reader: JoinHandle<()>,
}

impl Kept {
    fn read(mut stream: impl Read + Send + 'static, max: usize) -> Self {
        let taken = Arc::new(Mutex::new(Taken::default()));
        let into = taken.clone();
        let reader = thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut chunk) {
                let mut into = into.lock().unwrap_or_else(PoisonError::into_inner);
                let room = (max - into.bytes.len()).min(count);
                into.bytes.extend_from_slice(&chunk[..room]);
                into.cut |= room < count;
            }
        });
        Self { taken, reader }
    }

    fn taken(self, until: Instant) -> (String, bool) {
        let mut pause = POLLS[0];
        while !self.reader.is_finished() && Instant::now() < until {
            thread::sleep(pause);
            pause = (pause * 2).min(POLLS[1]);
        }
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&taken.bytes);
        // A byte that is no UTF-8 becomes three.
        let end = text.floor_char_boundary(OUTPUT_MAX as usize);
        (text[..end].to_owned(), taken.cut || end < text.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, timeout_ms: u64, output_max: u32) -> Ran {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        run(&Run { command, timeout_ms, output_max }).expect("it runs")
    }

    #[test]
    fn output_errors_and_status_come_back() {
        let ran = sh("echo out; echo err >&2; exit 3", 10_000, 100);
        assert_eq!((ran.output.as_str(), ran.errors.as_str()), ("out\n", "err\n"));
        assert_eq!((ran.status, ran.signal, ran.timed_out, ran.cut), (Some(3), None, false, false));
        assert_eq!(sh("kill -9 $$", 10_000, 100).signal, Some(9));
        let nobody = Run { command: vec!["/no/such/program".into()], timeout_ms: 1, output_max: 1 };
        assert!(run(&nobody).expect_err("refused").contains("/no/such/program"));
    }

    #[test]
    fn what_it_prints_is_bounded_and_it_goes_on() {
        let ran = sh("head -c 1000000 /dev/zero; echo last >&2", 30_000, 7);
        assert_eq!((ran.output.len(), ran.errors.as_str(), ran.cut), (7, "last\n", true));
        assert_eq!(ran.status, Some(0));
    }

    #[test]
    fn it_is_killed_with_what_it_started_when_its_time_is_up() {
        let ran = sh("sleep 1000 & echo begun; sleep 1000", 300, 100);
        assert_eq!((ran.timed_out, ran.signal, ran.output.as_str()), (true, Some(9), "begun\n"));
    }

    #[test]
    fn what_it_leaves_running_does_not_hold_it_up() {
        let ran = sh("sleep 5 & echo done", 60_000, 100);
        assert_eq!((ran.status, ran.output.as_str()), (Some(0), "done\n"));
    }
}
