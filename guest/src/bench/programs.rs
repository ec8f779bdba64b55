//! Programs of Debian's, from the disk image of the kit.

use super::{Job, Workload, mix_bytes, unsupported};
use crate::work::program::{Root, command};
use std::io::{Error, Result};
use std::process::{Command, Stdio};

pub(super) const WORKLOADS: [Workload; 6] = [
    Workload { name: "gzip", group: "programs", amount: 60_000, cpus: 1, run: gzip },
    Workload { name: "sqlite3", group: "programs", amount: 5_000, cpus: 1, run: sqlite3 },
    Workload { name: "python3", group: "programs", amount: 10_000, cpus: 1, run: python3 },
    Workload { name: "python3-start", group: "programs", amount: 1, cpus: 1, run: python3_start },
    Workload { name: "shell", group: "programs", amount: 20, cpus: 1, run: shell },
    Workload { name: "gcc", group: "programs", amount: 10, cpus: 1, run: gcc },
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

/// A C program compiled, linked and run. Amount: functions in it.
fn gcc(job: &Job<'_>) -> Result<()> {
    let prepare = "
if ! command -v gcc >/dev/null; then exit $ABSENT; fi
{
    echo '#include <stdio.h>'
    for ((n = 0; n < N; n++)); do
        echo \"struct s$n { int a, b; unsigned c[8]; };
static unsigned f$n(struct s$n *s, unsigned x) {
    for (int i = 0; i < 8; i++) {
        if ((x >> i) & 1) s->c[i] += x * $((n * 2 + 1)); else s->c[7 - i] ^= x >> i;
        switch (s->c[i] % 5) { case 0: s->a++; break; case 1: s->b--; break; case 3: x += i; }
    }
    return s->a * 31u + s->b + s->c[x % 8];
}\"
    done
    echo 'int main(void) { unsigned x = 1;'
    for ((n = 0; n < N; n++)); do echo \"{ struct s$n s = {0}; x = f$n(&s, x + $n); }\"; done
    echo 'printf(\"%u\\n\", x); return 0; }'
} >/tmp/program.c
echo 'int main(void) { return 0; }' >/tmp/small.c; gcc -O2 /tmp/small.c -o /tmp/small";
    script(
        job,
        prepare,
        "gcc -O2 /tmp/program.c -o /tmp/program; /tmp/program; cksum </tmp/program",
    )
}

/// With this status a script says that the image has not what it needs.
const ABSENT: i32 = 69;

/// Prepare with one script, which also brings into memory what the other needs, and measure
/// that; `$N` is the amount. What it prints is its result.
fn script(job: &Job<'_>, prepare: &str, work: &str) -> Result<()> {
    let root = Root::new(&job.request.root).map_err(|error| {
        unsupported(format!("no Debian at {}: {error}", job.request.root.display()))
    })?;
    let bash = |script: &str| -> Result<Command> {
        let arguments =
            ["-e".to_owned(), "-c".into(), format!("N={} ABSENT={ABSENT}; {script}", job.amount)];
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
    if output.status.code() == Some(ABSENT) {
        return Err(unsupported("not on this disk image"));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::other(format!("{}: {}", output.status, said.trim_end())))
}
