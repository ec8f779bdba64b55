//! What the daemon tells on its socket and by TCP, of VMs that the test plays.

mod sandbox;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use sandbox::Sandbox;
use serde_json::Value;

/// Bounds a failure only: what is waited for comes in a moment.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ended with the test.
struct Daemon(Child);

impl Daemon {
    fn start(sandbox: &Sandbox) -> Self {
        let log = File::create(sandbox.path("serve.log")).expect("a log");
        let arguments = [
            "serve",
            "--memory=150M",
            "--policy=published",
            "--interval=0.1",
            "--listen=127.0.0.1:0",
        ];
        let mut command = sandbox.command(&arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Self(command.spawn().expect("the program runs"))
    }

    fn signal(mut self, signal: rustix::process::Signal) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).expect("told");
        self.0.wait().expect("status").code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Ended already, or the test has failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait<T>(sandbox: &Sandbox, what: &str, look: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        let log = || fs::read_to_string(sandbox.path("serve.log")).unwrap_or_default();
        assert!(Instant::now() < deadline, "never: {what}\n{}", log());
        thread::sleep(Duration::from_millis(20));
    }
}

/// What the daemon of this process has decided of both VMs.
fn told(sandbox: &Sandbox, daemon: &Daemon) -> Value {
    wait(sandbox, "a decision", || {
        let text = sandbox.sockets().daemon().document("/fathom/host").ok()?;
        let told: Value = serde_json::from_str(&text).expect("json");
        let vms = told["vms"].as_array().expect("VMs").len();
        (told["pid"] == daemon.0.id() && vms == 2).then_some(told)
    })
}

fn port(sandbox: &Sandbox) -> u16 {
    wait(sandbox, "where it listens", || {
        let log = fs::read_to_string(sandbox.path("serve.log")).expect("a log");
        let (_, rest) = log.split_once("shown at http://127.0.0.1:")?;
        rest.split_once('/')?.0.parse().ok()
    })
}

fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn the_daemon_tells_what_it_decides() {
    let sandbox = Sandbox::new();
    let _vms = [sandbox.fake_vm("db"), sandbox.fake_vm("web")];
    assert!(!sandbox.success(&["top", "--once"]).contains("host"), "no daemon runs");
    let daemon = Daemon::start(&sandbox);

    let told = told(&sandbox, &daemon);
    assert_eq!(told["facts"]["host"]["limit"], 150 << 20);
    assert_eq!(told["facts"]["vms"][1]["name"], "web");
    assert_eq!(told["facts"]["vms"][1]["resident"], 100 << 20);
    // Both have more than there is.
    assert_eq!(told["verdict"]["state"], "low");
    assert_eq!(told["settings"]["tax"], 0.75);
    assert_eq!((&told["swap_bytes"], &told["restarts"]), (&0.into(), &serde_json::json!({})));
    let why = told["vms"][1]["why"].as_str().expect("words");
    assert_eq!(why, "its shares of what all compete for", "nobody takes memory without --swap");
    let why = told["vms"][0]["why"].as_str().expect("words");
    assert!(why.ends_with("are over that, and only its balloon can give them: no --swap"), "{why}");
    let target = told["verdict"]["vms"][1]["target"].as_u64().expect("a target");
    assert!(target < 75 << 20, "{target}");

    let metrics = sandbox.sockets().daemon().document("/metrics").expect("metrics");
    for line in [
        "# TYPE fathom_host_memory_state gauge",
        "fathom_host_memory_limit_bytes 157286400",
        "fathom_host_memory_state{state=\"low\"} 1",
        "fathom_host_vm_resident_bytes{name=\"web\"} 104857600",
        "fathom_host_vm_stopped{name=\"db\"} 0",
    ] {
        assert!(metrics.lines().any(|other| other == line), "{line}: {metrics}");
    }

    let port = port(&sandbox);
    let page = get(port, "/");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.contains("text/html"), "{page}");
    assert!(page.contains("<title>Fathom</title>"));
    assert!(get(port, "/metrics").contains("text/plain; version=0.0.4"));
    assert!(get(port, "/fathom/host").contains("\"verdict\""));
    assert!(get(port, "/fathom/vm").starts_with("HTTP/1.1 404 "));

    let table = sandbox.success(&["top", "--once"]);
    let host = table.lines().next().expect("a line");
    assert!(host.starts_with("host  limit 150M   used 2") && host.ends_with("state low"), "{host}");
    let list = sandbox.success(&["list", "--json"]);
    assert_eq!(list.matches("\"name\"").count(), 2, "the daemon is no VM: {list}");

    // Another is refused, and takes nothing from this one.
    assert!(sandbox.refusal(2, &["serve"]).contains("a daemon runs already"));
    assert!(sandbox.sockets().daemon().document("/").is_ok());
    let other = sandbox.refusal(2, &["serve", "--listen", "0.0.0.0:80"]);
    assert!(other.contains("on this host only"), "{other}");

    // One that is killed leaves its socket, and the next one listens.
    assert_eq!(daemon.signal(rustix::process::Signal::KILL), None);
    assert!(sandbox.sockets().daemon_socket().exists());
    assert!(!sandbox.success(&["top", "--once"]).contains("host"), "nobody answers");
    let daemon = Daemon::start(&sandbox);
    self::told(&sandbox, &daemon);
    assert_eq!(daemon.signal(rustix::process::Signal::TERM), Some(0));
    assert!(!sandbox.sockets().daemon_socket().exists());
}

#[test]
fn an_address_that_is_taken_is_the_users_to_mend() {
    let sandbox = Sandbox::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let line = sandbox.refusal(2, &["serve", "--listen", &address]);
    assert!(line.contains(&format!("listen on {address}: ")), "{line}");
    assert!(!sandbox.sockets().daemon_socket().exists());
}

/// As systemd hands it over: sd_listen_fds(3). Who asks before the daemon is there waits.
#[test]
fn a_socket_that_is_handed_over_is_answered() {
    let sandbox = Sandbox::new();
    let _vms = [sandbox.fake_vm("db"), sandbox.fake_vm("web")];
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a socket");
    let port = listener.local_addr().expect("an address").port();
    let start = |program: &str, file: &str| {
        let log = File::create(sandbox.path(file)).expect("a log");
        let serve = sandbox.command(&["serve", "--memory=1G", "--interval=0.1"]);
        // The shell's process becomes the daemon's, whose number is to be said.
        let mut shell = Command::new("sh");
        shell.args(["-c", program]).arg(serve.get_program()).args(serve.get_args());
        for (name, value) in serve.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        let socket = listener.try_clone().expect("a descriptor");
        shell.stdin(OwnedFd::from(socket)).stdout(Stdio::null()).stderr(log);
        Daemon(shell.spawn().expect("the program runs"))
    };
    const HAND_OVER: &str = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\" 3<&0 </dev/null";
    let asked = thread::spawn(move || get(port, "/"));
    let daemon = start(HAND_OVER, "serve.log");
    assert!(asked.join().expect("no panic").starts_with("HTTP/1.1 200"));
    assert_eq!(self::port(&sandbox), port);
    // The next one has the same socket.
    assert_eq!(daemon.signal(rustix::process::Signal::TERM), Some(0));
    let asked = thread::spawn(move || get(port, "/"));
    let daemon = start(HAND_OVER, "serve.log");
    assert!(asked.join().expect("no panic").starts_with("HTTP/1.1 200"));
    drop(daemon);
    // Nothing to listen on, and too many.
    for (program, error) in [
        (
            "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\" 3</dev/null",
            "Socket operation on non-socket",
        ),
        (
            "LISTEN_PID=$$ LISTEN_FDS=2 exec \"$0\" \"$@\" 3<&0",
            "2 sockets are handed over, and 1 is expected",
        ),
    ] {
        let mut refused = start(program, "refused.log");
        let status = refused.0.wait().expect("status");
        let log = fs::read_to_string(sandbox.path("refused.log")).expect("a log");
        assert!(status.code() == Some(2) && log.contains(error), "{log}");
    }
}
