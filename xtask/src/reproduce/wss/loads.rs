//! What guests do whose working sets are estimated.

/// One load.
pub(super) struct Load {
    pub(super) name: &'static str,
    /// For the guest program.
    words: &'static str,
    /// It is on the disk of programs.
    pub(super) needs_disk: bool,
    /// Of one that says how much memory it uses: on KVM nobody else tells. Less than elsewhere, for the lab's machine
    /// serves some 5000 page faults a second, and after each epoch every page costs one.
    words_on_kvm: Option<&'static str>,
}

/// Seconds of a phase of loads that have some.
const PHASE: u64 = 10;
const QUICK_PHASE: u64 = 5;

pub(super) const LOADS: [Load; 7] = [
    Load {
        name: "step",
        words: "fathom.run=reuse:step,0,30,90,15",
        needs_disk: false,
        words_on_kvm: Some("fathom.run=reuse:step,0,4,12,6"),
    },
    Load {
        name: "cycle",
        words: "fathom.run=reuse:cycle,20,60",
        needs_disk: false,
        words_on_kvm: None,
    },
    Load {
        name: "skew",
        words: "fathom.run=reuse:skew,100",
        needs_disk: false,
        words_on_kvm: None,
    },
    Load {
        name: "python3",
        words: "\"fathom.run=disk:/usr/bin/python3 -c 'import random; d=[[i] for i in range(500000)]; \
                print(sum(d[int(500000*random.random()**3)][0] for i in range(5000000)))'\"",
        needs_disk: true,
        words_on_kvm: None,
    },
    Load {
        name: "sqlite3",
        words: "\"fathom.run=disk:/usr/bin/sqlite3 /tmp/a.db 'create table t(a integer primary key, b); \
                with recursive c(n) as (select 1 union all select n+1 from c where n<200000) insert \
                into t select n, randomblob(200) from c; select sum(length(y.b)) from t x join t y on \
                y.a=(x.a*7919)%200000; select count(*) from t where hex(b) glob 00;'\"",
        needs_disk: true,
        words_on_kvm: None,
    },
    Load {
        name: "gcc",
        words: "\"fathom.run=disk:/bin/bash -c 'for i in {1..300}; do echo int f$i\\(int \
                x\\){for\\(int i=0\\;i\\<x\\;i++\\)x+=x/$i+i\\;return x\\;} ; done > /tmp/a.c; gcc -O2 -c \
                /tmp/a.c -o /tmp/a.o'\"",
        needs_disk: true,
        words_on_kvm: None,
    },
    Load {
        name: "redis",
        words: "\"fathom.run=disk:/bin/bash -c 'redis-server --port 0 --unixsocket /tmp/r --daemonize \
                yes --save 36000 100000000 >/dev/null; sleep 1; redis-benchmark -s /tmp/r -q -t set,get \
                -n 60000 -r 50000 -d 500 -P 8; redis-cli -s /tmp/r shutdown nosave'\"",
        needs_disk: true,
        words_on_kvm: None,
    },
];

impl Load {
    pub(super) fn find(name: &str) -> Option<&'static Self> {
        LOADS.iter().find(|load| load.name == name)
    }

    /// Whether it can be judged there.
    pub(super) fn is_for_kvm(&self) -> bool {
        self.words_on_kvm.is_some()
    }

    /// For the kernel's command line.
    pub(super) fn words(&self, on_kvm: bool, quick: bool) -> String {
        let words = self.words_on_kvm.filter(|_| on_kvm).unwrap_or(self.words);
        let seconds = if quick { QUICK_PHASE } else { PHASE };
        format!("quiet fathom.seconds={seconds} {words}")
    }
}
