//! The daemon's page as a browser shows it, of VMs that the test plays: headless Chromium, where there is one.

mod sandbox;

use std::fs::{self, File};
use std::io::{self, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use sandbox::{Sandbox, text};

/// Bounds a failure only.
const PATIENCE: Duration = Duration::from_secs(300);

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // Ended already, or the test is over.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_browser_shows_rows_and_charts() {
    if Command::new("chromium").arg("--version").output().is_err() {
        // Whoever runs tests sees it: this handle is not captured.
        let _ = io::stderr().write_all(
            b"\n*** NOT TESTED: the daemon's page in a browser: no chromium (apt-get install chromium) ***\n",
        );
        return;
    }
    let sandbox = Sandbox::new();
    let _vms = [sandbox.fake_vm("db"), sandbox.fake_vm("web")];
    let log = File::create(sandbox.path("serve.log")).expect("a log");
    let arguments =
        ["serve", "--memory=150M", "--policy=published", "--interval=0.1", "--listen=127.0.0.1:0"];
    let mut command = sandbox.command(&arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let _daemon = Daemon(command.spawn().expect("the program runs"));
    let deadline = Instant::now() + PATIENCE;
    let address = loop {
        let log = fs::read_to_string(sandbox.path("serve.log")).expect("a log");
        let address = log.split_once("shown at ").and_then(|(_, rest)| rest.split_once('\n'));
        if let Some((address, _)) = address {
            break address.to_owned();
        }
        assert!(Instant::now() < deadline, "it never listens: {log}");
        thread::sleep(Duration::from_millis(20));
    };

    // The first look may be before the first decision.
    let page = loop {
        let page = dumped(&sandbox, &address);
        if page.contains("<td>web</td>") {
            break page;
        }
        assert!(Instant::now() < deadline, "no row of a VM: {page}");
    };
    let (_, rows) = page.split_once("<tbody id=\"rows\">").expect("a table");
    let (rows, _) = rows.split_once("</tbody>").expect("a table");
    let rows: Vec<&str> = rows.split("<tr>").skip(1).collect();
    assert_eq!(rows.len(), 2, "{page}");
    for (row, name) in rows.iter().zip(["db", "web"]) {
        let cells: Vec<&str> = row.split("<td>").skip(1).collect();
        assert_eq!(cells.len(), 12, "{row}");
        assert_eq!(cells[0], format!("{name}</td>"));
        assert_eq!(cells[4], "100M</td>", "resident");
        assert!(cells[11].starts_with("its shares of what all compete for"), "{row}");
    }
    assert!(page.contains("<b id=\"limit\">150M</b>"), "{page}");
    assert!(page.contains("class=\"state low\""), "{page}");
    // A chart that was drawn has got the size of its panel.
    let charts = page.split("<canvas").skip(1);
    let drawn = charts.filter(|chart| chart.trim_start().starts_with("width=")).count();
    assert_eq!(drawn, 3, "of the host and both VMs: {page}");
    assert!(page.contains("role=\"status\"></p>"), "it complains: {page}");
}

/// The page's elements after a few looks at the daemon.
fn dumped(sandbox: &Sandbox, address: &str) -> String {
    let profile = format!("--user-data-dir={}", sandbox.path("chromium").display());
    let mut chromium = Command::new("chromium");
    // Its own sandbox is not to be had in containers; the page is ours.
    chromium.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
    chromium.args(["--no-first-run", "--disable-background-networking", "--no-proxy-server"]);
    chromium.args(["--virtual-time-budget=3000", "--dump-dom", &profile, address]);
    let output = chromium.stdin(Stdio::null()).output().expect("chromium runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}
