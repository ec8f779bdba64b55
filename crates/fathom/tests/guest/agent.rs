//! The agent in a guest: what it says and does, and guests that become somebody when they are activated.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::clones::{Clones, output};
use crate::console::deadline;
use crate::engine::announce;
use crate::kit::Kernel;
use crate::net;
use crate::net::ground::{Ground, script};
use crate::sandbox::{Sandbox, text};
use crate::vm::{Guest, Vm, shown};

const MIB: u64 = 1 << 20;

/// One that a guest is saved with, and one for each that goes on.
const TAPS: &str = "
    for n in 0 1 2; do \"$B\" tunctl -t tap$n >/dev/null; \"$B\" ip link set tap$n up; done
    \"$B\" ip address add 192.168.77.1/24 dev tap1
    \"$B\" ip address add 192.168.78.1/24 dev tap2";

/// A guest of two processors with vsock, and so with an agent unless `words` say otherwise.
fn start<'a>(sandbox: &'a Sandbox, words: &str) -> Vm<'a> {
    start_with(sandbox, Guest::new(&format!("fathom.run=sh {words}")), &[])
}

fn start_with<'a>(sandbox: &'a Sandbox, guest: Guest, more: &[&str]) -> Vm<'a> {
    let vsock = format!("cid=42,socket={}", sandbox.path("vsock").display());
    let mut vm = guest.cpus(2).arguments(&["--vsock", &vsock]).arguments(more).start(sandbox);
    vm.wait_for_shell();
    vm
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Runs a script in the guest by its agent; it must succeed. What it printed.
fn run(sandbox: &Sandbox, name: &str, script: &str) -> String {
    sandbox.success(&["agent", name, "run", "--", "sh", "-c", script]).trim_end().to_owned()
}

fn facts(sandbox: &Sandbox, name: &str) -> Value {
    json(&sandbox.success(&["agent", name, "facts", "--json"]))
}

fn now_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

/// How far the guest's clock is from ours.
fn clock_is_off_by(sandbox: &Sandbox, name: &str) -> f64 {
    let before = now_seconds();
    let there = facts(sandbox, name)["wall_clock_ns"].as_u64().expect("a time") as f64 / 1e9;
    let after = now_seconds();
    (before - there).max(there - after).max(0.0)
}

#[test]
fn an_agent_answers_and_runs_programs() {
    let sandbox = Sandbox::new();
    let mut vm = start(&sandbox, "");
    let known = facts(&sandbox, "guest");
    assert_eq!((&known["cpus_online"], &known["cpus_present"]), (&2.into(), &2.into()), "{known}");
    assert!(known["kernel"].as_str().expect("text").starts_with("Linux "), "{known}");
    let people = sandbox.success(&["agent", "guest", "facts"]);
    assert!(people.contains("processors  2 of 2 run\n"), "{people}");
    assert_eq!(run(&sandbox, "guest", "cat /sys/devices/system/cpu/online"), "0-1");

    let script = "echo out; echo err >&2; exit 7";
    let ran = sandbox.fathom(&["agent", "guest", "run", "--", "sh", "-c", script]);
    assert_eq!((text(&ran.stdout), text(&ran.stderr)), ("out\n".into(), "err\n".into()));
    assert_eq!(ran.status.code(), Some(7));
    let much = "head -c 3000000 /dev/zero | tr '\\0' x";
    let ran = sandbox.fathom(&["agent", "guest", "run", "--json", "--", "sh", "-c", much]);
    let ran = json(&text(&ran.stdout));
    assert_eq!(
        (ran["output"].as_str().map(str::len), &ran["cut"]),
        (Some(256 << 10), &true.into())
    );
    let late = ["agent", "guest", "run", "--timeout", "0.2", "--", "sh", "-c", "sleep 1000"];
    assert_eq!(sandbox.fathom(&late).status.code(), Some(124));
    let refused = sandbox.refusal(1, &["agent", "guest", "run", "--", "/no/such"]);
    assert!(refused.contains("the agent refuses: run /no/such"), "{refused}");

    // Programs of the guest cannot have it do anything: it listens to the host alone, if they reach it at all.
    assert_eq!(vm.shell("ps | grep -c '[/]bin/agent'"), "1");
    vm.tell("stop", &[]);
    vm.ended().stopped();
}

/// What the agent in the VM `guest` answers to a line that no command sends.
fn ask(sandbox: &Sandbox, line: &str) -> Value {
    let mut stream = UnixStream::connect(sandbox.path("vsock")).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(300))).expect("a limit");
    stream.write_all(format!("CONNECT 1\n{line}\n").as_bytes()).expect("asked");
    let mut lines = BufReader::new(stream).lines();
    let greeting = lines.next().expect("a greeting").expect("read");
    assert!(greeting.starts_with("OK "), "{greeting}");
    json(&lines.next().expect("an answer").expect("read"))
}

/// Small and nobody, as a guest is before it is docked.
fn prepared(sandbox: &Sandbox) {
    let answer = ask(sandbox, r#"{"version":1,"id":5,"request":{"prepare":{"generalise":true}}}"#);
    assert_eq!(answer["id"], 5, "{answer}");
    let parts = answer["outcome"]["parts"].as_array().expect("parts");
    assert!(parts.len() >= 7 && parts.iter().all(|part| part["ok"] == true), "{answer}");
    let known = facts(sandbox, "guest");
    assert_eq!((&known["hostname"], &known["cpus_online"]), (&"fathom".into(), &1.into()));
    for interface in known["interfaces"].as_array().expect("interfaces") {
        let own = interface["name"] == "lo";
        assert!(
            own || (interface["up"] == false && interface["addresses"] == json("[]")),
            "{known}"
        );
    }
    let answer = ask(sandbox, r#"{"version":2,"id":6,"request":"facts"}"#);
    assert!(answer["outcome"]["refused"].as_str().expect("text").contains("version 2"), "{answer}");
}

#[test]
fn activated_guests_become_somebody() {
    let sandbox = Sandbox::new();
    let _clones = Clones(&sandbox);
    // It knows of generations.
    let mut vm = start_with(&sandbox, Guest::new("fathom.run=sh").kernel(Kernel::Full), &[]);
    vm.shell("head -c16 /dev/urandom | md5sum | cut -c1-32 >/tmp/nonce; mkdir -p /etc");
    vm.shell("ip link set lo up; echo 127.0.0.1 localhost >/etc/hosts");
    let nonce = vm.shell("cat /tmp/nonce");
    prepared(&sandbox);
    let plain = sandbox.path("plain").to_str().expect("text").to_owned();
    vm.tell("save", &[&plain, "--stop"]);
    vm.ended().stopped();
    refusals(&sandbox, &plain);

    let saved = Instant::now();
    // A clock that stood with the guest would be as late.
    std::thread::sleep(Duration::from_millis(1500));
    let folder = output(&sandbox);
    let activate = [
        "activate",
        &plain,
        "--count",
        "3",
        "--json",
        "--output",
        &folder,
        "--hostname",
        "web{n}",
        "--address",
        "192.168.77.{n+9}/24,dev=lo",
        "--memory",
        "192M",
        "--cpus",
        "2",
        "--dns",
        "192.168.77.1",
        "--run",
        "hostname; cat /tmp/nonce; head -c16 /dev/urandom | md5sum",
    ];
    let done = json(&sandbox.success(&activate));
    let late = saved.elapsed().as_secs_f64();
    announce(&format!("activate: {}", times(&done["clones"])));
    let mut drawn = Vec::new();
    for n in 1..=3 {
        let name = format!("guest-{n}");
        let of = &done["clones"][n - 1];
        assert_eq!(of["name"], name.as_str(), "{done}");
        let (running, agent, run) = (&of["running_ms"], &of["agent_ms"], &of["run_ms"]);
        assert!(running.as_f64() < agent.as_f64() && agent.as_f64() < run.as_f64(), "{of}");
        let parts = of["parts"].as_array().expect("parts");
        assert!(parts.iter().all(|part| part["ok"] == true), "{of}");
        let said: Vec<&str> = of["run"]["output"].as_str().expect("text").lines().collect();
        assert_eq!(said[..2], [&format!("web{n}"), &nonce], "{of}");
        drawn.push(said[2].to_owned());
        drawn.push(self::run(&sandbox, &name, "cat /etc/machine-id"));
        let off = clock_is_off_by(&sandbox, &name);
        assert!(off < late / 2.0, "{name}'s clock is off by {off} s of {late} s");
        let known = facts(&sandbox, &name);
        assert_eq!((&known["cpus_online"], &known["cpus_present"]), (&2.into(), &2.into()));
        let lo = known["interfaces"].as_array().expect("interfaces").iter();
        let lo = lo.clone().find(|interface| interface["name"] == "lo").expect("a loopback");
        let own = format!("{{\"ip\":\"192.168.77.{}\",\"prefix\":24}}", n + 9);
        assert!(lo["addresses"].to_string().contains(&own), "{lo}");
        let resolv = self::run(&sandbox, &name, "cat /etc/resolv.conf");
        assert_eq!(resolv, "nameserver 192.168.77.1");
        let target = shown(&sandbox, &["list", "--json"]);
        let target = target.iter().find(|vm| vm.name == name).expect("listed");
        assert_eq!(target.balloon_target_bytes, 64 * MIB);
    }
    drawn.sort();
    drawn.dedup();
    assert_eq!(drawn.len(), 6, "the same random numbers or machine-id twice: {drawn:?}");
    gives_up_memory(&sandbox, "guest-2");
    // The second one was stopped when it was saved.
    assert_eq!(run(&sandbox, "guest-3", "taskset 2 echo done"), "done");
    for n in 1..=3 {
        sandbox.success(&["stop", &format!("guest-{n}")]);
    }
    nobody_is_told_anything(&sandbox, &plain, saved);
}

fn gives_up_memory(sandbox: &Sandbox, name: &str) {
    let until = deadline();
    loop {
        let vms = shown(sandbox, &["list", "--json"]);
        let vm = vms.iter().find(|vm| vm.name == name).expect("listed");
        if vm.ballooned_bytes >= 64 * MIB {
            return;
        }
        assert!(Instant::now() < until, "{} MiB are given up", vm.ballooned_bytes / MIB);
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Clocks are right and random numbers differ by what the machine has: clocks of its own, and a generation (VMGenID).
fn nobody_is_told_anything(sandbox: &Sandbox, plain: &str, saved: Instant) {
    sandbox.success(&["activate", plain, "--count", "2"]);
    let late = saved.elapsed().as_secs_f64();
    // Beyond what may have been drawn before.
    let draw = "sleep 1; head -c16 /dev/urandom | md5sum; hostname";
    let [first, second] = ["guest-1", "guest-2"].map(|name| run(sandbox, name, draw));
    assert!(first.ends_with("fathom") && second.ends_with("fathom"), "{first} {second}");
    assert_ne!(first, second, "the same random numbers");
    let off = clock_is_off_by(sandbox, "guest-1");
    assert!(off < late / 2.0, "the clock is off by {off} s of {late} s");
}

/// Two that were one have a TAP interface, an Ethernet address and an address each.
#[test]
fn activated_guests_have_networks_of_their_own() {
    net::apart(|| {
        let Some(_ground) = Ground::enter() else {
            return announce(
                "*** NOT TESTED: activation with TAP: it takes root and /dev/net/tun ***",
            );
        };
        script(TAPS);
        let sandbox = Sandbox::new();
        let _clones = Clones(&sandbox);
        let mut vm = start_with(&sandbox, Guest::new("fathom.run=sh"), &["--net", "tap=tap0"]);
        vm.shell("ip link set eth0 up; ip address add 192.168.77.9/24 dev eth0");
        let plain = sandbox.path("plain").to_str().expect("text").to_owned();
        vm.tell("save", &[&plain, "--stop"]);
        vm.ended().stopped();
        let refused = sandbox.refusal(2, &["activate", &plain, "--hostname", "a"]);
        assert!(refused.contains("the TAP interface tap0 can have one VM only"), "{refused}");
        let run = "ping -c 1 -w 60 192.168.{n+76}.1 >/dev/null && cat /sys/class/net/eth0/address";
        let address = "192.168.{n+76}.2/24,gateway=192.168.{n+76}.1";
        let options = ["--net", "tap=tap{n}", "--address", address, "--run", run, "--json"];
        let all = [&["activate", &plain, "--count", "2"][..], &options].concat();
        let done = json(&sandbox.success(&all));
        announce(&format!("activate with TAP: {}", times(&done["clones"])));
        let printed = |n: usize| done["clones"][n]["run"]["output"].as_str().expect("text");
        assert!(printed(0).len() == 18 && printed(1).len() == 18, "{done}");
        assert_ne!(printed(0), printed(1));
        for (n, name) in ["guest-1", "guest-2"].into_iter().enumerate() {
            let known = facts(&sandbox, name);
            let interfaces = known["interfaces"].as_array().expect("interfaces");
            let eth0 = interfaces.iter().find(|interface| interface["name"] == "eth0");
            let own = format!("[{{\"ip\":\"192.168.{}.2\",\"prefix\":24}}]", n + 77);
            let addresses = eth0.expect("eth0")["addresses"].as_array().expect("addresses");
            let four = |address: &&Value| !address["ip"].to_string().contains(':');
            let four: Vec<&Value> = addresses.iter().filter(four).collect();
            assert_eq!(serde_json::to_string(&four).expect("json"), own, "{known}");
        }
    });
}

fn times(clones: &Value) -> String {
    let clones = clones.as_array().expect("clones").iter();
    let ms = |of: &Value, key: &str| of[key].as_f64().map_or("-".into(), |ms| format!("{ms:.0}"));
    let line = |of: &Value| {
        let [running, agent, run] = ["running_ms", "agent_ms", "run_ms"].map(|key| ms(of, key));
        format!("{} runs after {running} ms, agent {agent} ms, run {run} ms", of["name"])
    };
    clones.map(line).collect::<Vec<_>>().join("; ")
}

/// What cannot be is said, and nothing has started.
fn refusals(sandbox: &Sandbox, plain: &str) {
    for (options, reason) in [
        ("--memory 1G", "--memory: 1G is refused: it was started with 256M"),
        ("--cpus 3", "--cpus: 3 are refused: it was started with 2"),
        ("--hostname same", "--hostname: same is asked for guest-1 and guest-2"),
        ("--address 10.0.0.{n}/24", "--address: it was saved without a network"),
        ("--hostname a{n} --paused", "--paused: a guest that stands"),
    ] {
        let options: Vec<&str> = options.split(' ').collect();
        let all = [&["activate", plain, "--count", "2"][..], &options].concat();
        let refused = sandbox.refusal(2, &all);
        assert!(refused.contains(reason), "{options:?}: {refused}");
    }
    assert_eq!(sandbox.success(&["list", "--json"]), "[]\n");
}

#[test]
fn without_an_agent_only_the_size_changes() {
    let sandbox = Sandbox::new();
    let _clones = Clones(&sandbox);
    let mut vm = start(&sandbox, "fathom.agent=off");
    let path = |name: &str| sandbox.path(name).to_str().expect("text").to_owned();
    let plain = path("plain");
    vm.shell("true");
    let refused = sandbox.refusal(1, &["agent", "guest", "facts"]);
    assert!(refused.contains("no agent listens in the guest"), "{refused}");
    vm.tell("save", &[&plain, "--stop"]);
    vm.ended().stopped();
    let done = sandbox.success(&["activate", &plain, "--memory", "128M", "--name", "small"]);
    assert!(done.starts_with("NAME "), "{done}");
    let vms = shown(&sandbox, &["list", "--json"]);
    assert_eq!((vms.len(), vms[0].balloon_target_bytes), (1, 128 * MIB));
    sandbox.success(&["stop", "small"]);
    let refused = sandbox.refusal(1, &["activate", &plain, "--hostname", "a"]);
    assert!(refused.contains("no agent listens in the guest: start it there"), "{refused}");
    assert!(refused.contains("the VM was ended"), "{refused}");
    let until = deadline();
    while sandbox.success(&["list", "--json"]) != "[]\n" {
        assert!(Instant::now() < until, "it runs still");
        std::thread::sleep(Duration::from_millis(50));
    }

    // Without vsock there is nobody to ask, which is known before anything starts.
    let mut vm = Guest::new("fathom.run=sh").start(&sandbox);
    vm.wait_for_shell();
    let refused = sandbox.refusal(2, &["agent", "guest", "facts"]);
    assert!(refused.contains("has no vsock"), "{refused}");
    let silent = path("silent");
    vm.shell("true");
    vm.tell("save", &[&silent, "--stop"]);
    vm.ended().stopped();
    let refused = sandbox.refusal(2, &["activate", &silent, "--hostname", "a"]);
    assert!(refused.contains("--hostname: it needs the agent in the guest"), "{refused}");
}

#[test]
fn a_cluster_knows_its_members() {
    let sandbox = Sandbox::new();
    let _clones = Clones(&sandbox);
    let mut vm = start(&sandbox, "");
    vm.shell("mkdir -p /etc; ip link set lo up");
    let plain = sandbox.path("plain").to_str().expect("text").to_owned();
    vm.tell("save", &[&plain, "--stop"]);
    vm.ended().stopped();
    let cluster = |db: &str| {
        format!(
            "[[vm]]\nname = \"web\"\ncount = 2\nsubstrate = \"plain\"\nmemory = \"192M\"\n\
             address = \"192.168.77.{{n+9}}/24,dev=lo\"\nrun = \"cat /etc/hosts\"\n\n\
             [[vm]]\nname = \"db\"\nsubstrate = \"plain\"\ncpus = 1\n\
             address = \"{db}/24,dev=lo\"\nhostname = \"store\"\nrun = \"ping -c 1 -w 60 web-2 | head -1\"\n"
        )
    };
    for (text, reason) in [
        (cluster("192.168.77.11"), "line 13: address: 192.168.77.11 is that of line 6 already"),
        (cluster("192.168.77.255"), "line 13: address: 192.168.77.255/24 is its broadcast"),
        (cluster("192.168.77.5").replace("cpus = 1", "cpus = 9"), "line 12: cpus: 9 are refused"),
        (
            cluster("192.168.77.5").replace("\"db\"", "\"web-1\""),
            "line 10: name: `web-1` is that of line 2",
        ),
        (cluster("192.168.77.5").replace("cpus", "cpu"), "line 12: unknown field `cpu`"),
        (cluster("192.168.77.5").replace("count = 2", "count = 0"), "line 3: count: 0 is refused"),
        (
            cluster("192.168.77.5").replace("= \"plain\"\ncpus", "= \"no\"\ncpus"),
            "line 11: substrate: ",
        ),
    ] {
        let path = sandbox.file("bad.toml", text.as_bytes());
        let refused = sandbox.refusal(2, &["activate", "--cluster", &path]);
        assert!(refused.contains(reason), "{refused}");
    }
    assert_eq!(sandbox.success(&["list", "--json"]), "[]\n");
    let path = sandbox.file("good.toml", cluster("192.168.77.5").as_bytes());
    let done = json(&sandbox.success(&["activate", "--cluster", &path, "--json"]));
    announce(&format!("cluster: {}", times(&done["members"])));
    let members = done["members"].as_array().expect("members");
    let names: Vec<&str> = members.iter().filter_map(|of| of["name"].as_str()).collect();
    assert_eq!(names, ["web-1", "web-2", "db"]);
    let known = "192.168.77.10 web-1\n192.168.77.11 web-2\n192.168.77.5 store\n";
    for of in &members[..2] {
        let hosts = of["run"]["output"].as_str().expect("text");
        assert!(hosts.contains(known), "{hosts}");
    }
    let ping = members[2]["run"]["output"].as_str().expect("text");
    assert!(ping.contains("(192.168.77.11)"), "{ping}");
    let db = facts(&sandbox, "db");
    assert_eq!((&db["hostname"], &db["cpus_online"]), (&"store".into(), &1.into()), "{db}");
    let again = sandbox.refusal(2, &["activate", "--cluster", &path]);
    assert!(again.contains("line 2: name: a VM `web-1` runs already"), "{again}");
    for name in names {
        sandbox.success(&["stop", name]);
    }
    let table = sandbox.success(&["activate", "--cluster", &path]);
    assert!(table.starts_with("NAME ") && table.contains("\n3 in "), "{table}");
}
