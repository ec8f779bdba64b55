//! Programs of Debian's, from the disk image of the kit.

use super::{Job, Workload, mix_bytes, unsupported};
use crate::work::program::{Root, command};
use std::io::{Error, Result};
use std::process::{Command, Stdio};

pub(super) const WORKLOADS: [Workload; 5] = [
    Workload { name: "gzip", group: "programs", amount: 60_000, cpus: 1, run: gzip },
    Workload { name: "sqlite3", group: "programs", amount: 5_000, cpus: 1, run: sqlite3 },
    Workload { name: "python3", group: "programs", amount: 10_000, cpus: 1, run: python3 },
    Workload { name: "python3-start", group: "programs", amount: 1, cpus: 1, run: python3_start },
    Workload { name: "shell", group: "programs", amount: 20, cpus: 1, run: shell },
];

/// Amount: lines of numbers to compress.
fn gzip(job: &Job<'_>) -> Result<()> {
    script(job, "seq 1 $N >/tmp/lines; gzip -n -c /dev/null", "gzip -6 -n -c /tmp/lines")
}

/// Amount: rows.
fn sqlite3(job: &Job<'_>) -> Result<()> {
    script(
        job,
        "sqlite3 :memory: 'select 1'",
        "sqlite3 :memory: \"create table t(n integer primary key, s text);
             with recursive c(n) as (select 1 union all select n + 1 from c where n < $N)
             insert into t select n, hex(n * 7919 % 10007) from c;
             create index i on t(s);
             select count(distinct s), sum(n), max(s) from t;
             select sum(a.n) from t a join t b on a.s = b.s where b.n % 7 = 0;
             update t set s = s || 'x' where n % 3 = 0;
             select s, n from t order by s limit 3;\"",
    )
}

/// Amount: rounds.
fn python3(job: &Job<'_>) -> Result<()> {
    script(
        job,
        "python3 -c 'import json, re'",
        "python3 -c '
import json, re
words = {}
class Point:
    def __init__(self, x, y): self.x, self.y = x, y
    def moved(self, d): return Point(self.x + d, self.y * 3 % 1000)
point = Point(0, 1)
for n in range('$N'):
    point = point.moved(n)
    words.setdefault(str(point.y), []).append(n)
text = json.dumps(words, sort_keys=True)
print(len(text), sum(len(v) for v in json.loads(text).values()), point.x)
print(len(re.findall(\"[0-9]*7,\", text)), sorted(words)[:5])
'",
    )
}

/// Amount: starts.
fn python3_start(job: &Job<'_>) -> Result<()> {
    script(
        job,
        "python3 -c 'print(1)'",
        "for ((n = 0; n < N; n++)); do python3 -c 'print(6 * 7)'; done",
    )
}

/// Short programs one after the other. Amount: rounds of three.
fn shell(job: &Job<'_>) -> Result<()> {
    script(
        job,
        "mkdir -p /tmp/shell; cut -c1 </dev/null",
        "for ((n = 0; n < N; n++)); do
             echo line $n >/tmp/shell/$n; cat /tmp/shell/$n | cut -c6-; mv /tmp/shell/$n /tmp/shell/old
         done; rm /tmp/shell/old",
    )
}

/// Prepare with one script, which also brings into memory what the other needs, and measure
/// that; `$N` is the amount. What it prints is its result.
fn script(job: &Job<'_>, prepare: &str, work: &str) -> Result<()> {
    let root = Root::new(&job.request.root).map_err(|error| {
        unsupported(format!("no Debian at {}: {error}", job.request.root.display()))
    })?;
    let bash = |script: &str| -> Result<Command> {
        let arguments = ["-e".to_owned(), "-c".into(), format!("N={}; {script}", job.amount)];
        let mut bash = command("/bin/bash", &arguments);
        root.enter(&mut bash);
        bash.stdin(Stdio::null());
        Ok(bash)
    };
    output(bash(prepare)?)?;
    let command = bash(work)?;
    job.measure(|| Ok(mix_bytes(&output(command)?)))
}

fn output(mut command: Command) -> Result<Vec<u8>> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::other(format!("{}: {}", output.status, said.trim_end())))
}
