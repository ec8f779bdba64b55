//! Transactions of a bank (as in TPC-B) on a database of sqlite3, in a file system in memory.

use super::{Load, checksum, server};
use crate::random::Random;
use crate::work::program::Root;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Error, Result, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};

const ACCOUNTS: usize = 200_000;
/// A beat.
const TRANSACTIONS: usize = 8;
/// Of the past, so many are kept.
const HISTORY: usize = 10_000;

pub(super) struct Sqlite {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    random: Random,
    done: usize,
}

impl Sqlite {
    pub(super) fn start(root: &Root, nonce: u64) -> Result<Self> {
        let mut command = server(root, "sqlite3", &["/tmp/bank.db"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::other("sqlite3 has no pipes"));
        };
        let output = BufReader::new(output);
        let mut sqlite = Self { input, output, random: Random::new(), done: 0 };
        let key = nonce % 1_000_003;
        sqlite.ask(&format!(
            "CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER, tag INTEGER, note BLOB);
             CREATE TABLE history(id INTEGER PRIMARY KEY, giver INTEGER, taker INTEGER);
             WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n<{ACCOUNTS})
             INSERT INTO account SELECT n, 1000, n*{key}%1000003, randomblob(200) FROM c;"
        ))?;
        Ok(sqlite)
    }

    /// What it says to that.
    fn ask(&mut self, statements: &str) -> Result<String> {
        const LAST: &str = "that was all";
        writeln!(self.input, "{statements}\nSELECT '{LAST}';")?;
        self.input.flush()?;
        let mut said = String::new();
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line)? == 0 {
                return Err(Error::other("sqlite3 is gone"));
            }
            if line.trim_end() == LAST {
                return Ok(said);
            }
            said += &line;
        }
    }
}

impl Load for Sqlite {
    fn beat(&mut self) -> Result<()> {
        let mut statements = String::new();
        for _ in 0..TRANSACTIONS {
            let [giver, taker] = [0; 2].map(|_| 1 + self.random.below(ACCOUNTS));
            let number = self.done % HISTORY;
            self.done += 1;
            let _ = writeln!(
                statements,
                "BEGIN; UPDATE account SET balance=balance-1 WHERE id={giver}; \
                 UPDATE account SET balance=balance+1 WHERE id={taker}; \
                 INSERT OR REPLACE INTO history VALUES({number},{giver},{taker}); COMMIT;"
            );
        }
        match self.ask(&statements)?.as_str() {
            "" => Ok(()),
            said => Err(Error::other(format!("sqlite3 said {said:?}"))),
        }
    }

    fn proof(&mut self) -> Result<u64> {
        let sums = "PRAGMA integrity_check; \
                    SELECT sum(balance), sum(tag*(id%1009)), sum(length(note)) FROM account;";
        let said = self.ask(sums)?;
        match said.starts_with("ok\n") {
            true => Ok(checksum(said.as_bytes())),
            false => Err(Error::other(format!("sqlite3 said {said:?}"))),
        }
    }
}
