//! What guests do whose working sets are estimated.

/// One load.
pub(super) struct Load {
    pub(super) name: &'static str,
    /// For the guest program.
    words: &'static str,
    /// It is on the disk of programs.
    pub(super) needs_disk: bool,
    /// It tells how much memory it uses in each phase, of which one is idle.
    pub(super) says_what: bool,
}

/// Seconds of a phase of loads that have some.
const PHASE: u64 = 10;
const QUICK_PHASE: u64 = 5;

pub(super) const LOADS: [Load; 7] = [
    says("step", "fathom.run=reuse:step,0,30,90,15"),
    says("cycle", "fathom.run=reuse:cycle,0,20,60"),
    Load { name: "skew", words: "fathom.run=reuse:skew,100", needs_disk: false, says_what: false },
    Load {
        name: "python3",
        words: "\"fathom.run=disk:/usr/bin/python3 -c 'import random; d=[[i] for i in range(500000)]; \
                print(sum(d[int(500000*random.random()**3)][0] for i in range(5000000)))'\"",
        needs_disk: true,
        says_what: false,
    },
    Load {
        name: "sqlite3",
        words: "\"fathom.run=disk:/usr/bin/sqlite3 /tmp/a.db 'create table t(a integer primary key, b); \
                with recursive c(n) as (select 1 union all select n+1 from c where n<200000) insert \
                into t select n, randomblob(200) from c; select sum(length(y.b)) from t x join t y on \
                y.a=(x.a*7919)%200000; select count(*) from t where hex(b) glob 00;'\"",
        needs_disk: true,
        says_what: false,
    },
    Load {
        name: "gcc",
        words: "\"fathom.run=disk:/bin/bash -c 'for i in {1..300}; do echo int f$i\\(int \
                x\\){for\\(int i=0\\;i\\<x\\;i++\\)x+=x/$i+i\\;return x\\;} ; done > /tmp/a.c; gcc -O2 -c \
                /tmp/a.c -o /tmp/a.o'\"",
        needs_disk: true,
        says_what: false,
    },
    Load {
        name: "redis",
        words: "\"fathom.run=disk:/bin/bash -c 'redis-server --port 0 --unixsocket /tmp/r --daemonize \
                yes --save 36000 100000000 >/dev/null; sleep 1; redis-benchmark -s /tmp/r -q -t set,get \
                -n 60000 -r 50000 -d 500 -P 8; redis-cli -s /tmp/r shutdown nosave'\"",
        needs_disk: true,
        says_what: false,
    },
];

const fn says(name: &'static str, words: &'static str) -> Load {
    Load { name, words, needs_disk: false, says_what: true }
}

impl Load {
    pub(super) fn find(name: &str) -> Option<&'static Self> {
        LOADS.iter().find(|load| load.name == name)
    }

    /// For the kernel's command line.
    pub(super) fn words(&self, quick: bool) -> String {
        let seconds = if quick { QUICK_PHASE } else { PHASE };
        format!("quiet fathom.seconds={seconds} {}", self.words)
    }
}
