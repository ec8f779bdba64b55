#!/bin/bash
# Run in a guest from the disk image: do Debian's programs give the right output?
# Prints `ok NAME` or `FAILED NAME` for each, and exits with the number of failures.
failures=0
check() { # NAME EXPECTED COMMAND...
    local name=$1 expected=$2 seen
    shift 2
    seen=$("$@" 2>&1)
    if [ "$seen" = "$expected" ]; then
        echo "ok $name"
    else
        echo "FAILED $name: $seen"
        failures=$((failures + 1))
    fi
}
sum_of_squares() { local n sum=0; for n in {1..1000}; do sum=$((sum + n * n)); done; echo $sum; }
round_trip() { seq 1 50000 | gzip -6 | gunzip | sha256sum | cut -c1-16; }
files() { mkdir -p /tmp/d && for n in 3 1 2; do echo "$n" >"/tmp/d/$n"; done && cat /tmp/d/* | tr '\n' ' '; }
python_json() { python3 -c 'import json; print(json.dumps({"a": [1, 2.5, None]}, sort_keys=True))'; }
python_hash() { python3 -c 'import hashlib; print(hashlib.sha256(b"fathom").hexdigest()[:16])'; }
python_float() { python3 -c 'import math; print("%.12f %.6e %d" % (math.sin(1), math.exp(50), 7**40 % 1000003))'; }
python_zlib() { python3 -c 'import zlib; d = bytes(range(256)) * 400; print(zlib.crc32(d), zlib.decompress(zlib.compress(d)) == d)'; }
python_threads() { python3 -c '
import threading
total, lock = [0], threading.Lock()
def work():
    for _ in range(2000):
        with lock: total[0] += 1
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]; print(total[0])'; }
sqlite() {
    rm -f /tmp/check.db; sqlite3 /tmp/check.db 'create table t(n integer, s text);
        with recursive c(n) as (select 1 union all select n + 1 from c where n < 2000)
        insert into t select n, hex(n * n) from c;
        create index i on t(s); select count(*), sum(n), max(length(s)) from t; pragma integrity_check;' |
        tr '\n' ' '
}
check arithmetic 333833500 sum_of_squares
check sort "1 2 10 " bash -c 'printf "10\n2\n1\n" | sort -n | tr "\n" " "'
check gzip 44969d026ed4164d round_trip
check files "1 2 3 " files
check python-json '{"a": [1, 2.5, null]}' python_json
check python-hash a663a6e8a46ccc0d python_hash
check python-float "0.841470984808 5.184706e+21 966008" python_float
check python-zlib "2584611980 True" python_zlib
check python-threads 8000 python_threads
check sqlite "2000|2001000|14 ok " sqlite
exit $failures
