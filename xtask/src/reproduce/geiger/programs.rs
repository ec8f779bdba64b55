//! Programs of Debian's as loads, on the disk with them and on the scratch disk, which they have at `/tmp/scratch`.
//!
//! None deletes a file on a disk: of its blocks nobody could say afterwards whose they were.

use crate::kit::Kit;
use anyhow::Result;
use std::path::PathBuf;

/// What is run, and in how much memory.
pub(super) struct Program {
    name: &'static str,
    /// Single quotes hold a word together.
    command: &'static str,
    /// Less than what it uses.
    pub(super) memory_mib: u64,
    disk: Disk,
}

/// What it is on.
enum Disk {
    Common,
    Sources,
}

const PROGRAMS: [Program; 3] = [
    // A database larger than memory, filled and then asked for rows without order.
    Program {
        name: "sqlite3",
        command: "sqlite3 /tmp/scratch/big.db 'PRAGMA journal_mode=PERSIST; \
            CREATE TABLE t(k INTEGER PRIMARY KEY, v BLOB); \
            WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<160000) \
            INSERT INTO t SELECT n, randomblob(1000) FROM c; \
            WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<20000) \
            SELECT sum((SELECT length(v) FROM t WHERE k=1+(abs(random())+c.n)%160000)) FROM c;'",
        memory_mib: 128,
        disk: Disk::Common,
    },
    // A tree of sources, read as a whole time and again.
    Program {
        name: "grep",
        command: "bash -c 'for word in kmalloc spin_lock container_of; do \
            grep -rl $word /usr/src /usr/include >/dev/null || exit 1; done'",
        memory_mib: 96,
        disk: Disk::Sources,
    },
    // Sources are written, compiled one after the other with many headers, and linked.
    Program {
        name: "gcc",
        command: "bash -c 'cd /tmp/scratch; for n in {1..10}; do { \
            for h in stdio stdlib string math time sys/socket netinet/in linux/perf_event; do \
            echo \\#include \\<$h.h\\>; done; for i in {1..60}; do echo int f${n}_$i\\(int x\\){ \
            for\\(int i=1\\;i\\<x\\;i++\\)x+=x/i+$i\\;return x\\;}; done; } >$n.c; \
            gcc -g -O1 -c -o $n.o $n.c || exit 1; done; ld -r -o all *.o'",
        memory_mib: 96,
        disk: Disk::Sources,
    },
];

pub(super) fn named(name: &str) -> Option<&'static Program> {
    PROGRAMS.iter().find(|program| program.name == name)
}

impl Program {
    /// As the guest program has it.
    pub(super) fn load(&self) -> String {
        format!("program {}", self.command)
    }
}

/// Where that program is, or those that others name.
pub(super) fn disk(program: Option<&Program>, kit: &Kit) -> Result<PathBuf> {
    match program.map(|program| &program.disk) {
        None | Some(Disk::Common) => Ok(kit.disk()),
        Some(Disk::Sources) => kit.sources_disk(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is behind it on the kernel's command line is kept apart by double quotes, which it cannot have itself.
    #[test]
    fn commands_fit_onto_a_command_line() {
        for program in &PROGRAMS {
            let load = program.load();
            assert!(load.len() < 1000 && !load.contains(['"', '\n']), "{load}");
            assert_eq!(load.matches('\'').count() % 2, 0);
        }
    }
}
