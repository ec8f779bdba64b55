//! Programs of Debian's as loads, on the disk with them and on the scratch disk, which they have at `/tmp/scratch`.
//!
//! None deletes a file on a disk: of its blocks nobody could say afterwards whose they were.

/// What is run, and in how much memory.
pub(super) struct Program {
    name: &'static str,
    /// Single quotes hold a word together.
    command: &'static str,
    /// Less than what it uses.
    pub(super) memory_mib: u64,
}

const PROGRAMS: [Program; 1] = [
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
