//! A program in C of several files that depend on the nonce, compiled one after the other, again and again.

use super::{Load, checksum, server};
use crate::work::program::Root;
use std::fmt::Write as _;
use std::fs;
use std::io::{Error, Result};

const FILES: usize = 24;
const FUNCTIONS: usize = 4;

pub(super) struct Build {
    root: Root,
    next: usize,
}

impl Build {
    pub(super) fn start(root: Root, nonce: u64) -> Result<Self> {
        for file in 0..FILES {
            let place = root.folder().join(format!("tmp/{file}.c"));
            fs::write(place, source(nonce ^ file as u64))?;
        }
        let build = Self { root, next: 0 };
        // A first build, so that the next ones are alike.
        (0..FILES).try_for_each(|file| build.compile(file))?;
        Ok(build)
    }

    fn compile(&self, file: usize) -> Result<()> {
        let [from, to] = ["c", "o"].map(|kind| format!("/tmp/{file}.{kind}"));
        let mut gcc = server(&self.root, "gcc", &["-O1", "-c", "-o", &to, &from]);
        match gcc.status()?.success() {
            true => Ok(()),
            false => Err(Error::other(format!("gcc did not compile {from}"))),
        }
    }
}

fn source(number: u64) -> String {
    let mut source = "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n".to_owned();
    for function in 0..FUNCTIONS {
        let _ = writeln!(
            source,
            "unsigned long f{function}(unsigned long x) {{ \
             for (int i = 1; i < x; i++) x += x / i ^ {number}ul; return x; }}"
        );
    }
    source
}

impl Load for Build {
    fn beat(&mut self) -> Result<()> {
        self.compile(self.next)?;
        self.next = (self.next + 1) % FILES;
        Ok(())
    }

    fn proof(&mut self) -> Result<u64> {
        self.compile(0)?;
        let mut sum = 0;
        for file in 0..FILES {
            let object = self.root.folder().join(format!("tmp/{file}.o"));
            sum ^= checksum(&fs::read(object)?).rotate_left(file as u32);
        }
        Ok(sum)
    }
}
