//! QEMU's protocol for its monitor: a line of JSON each way (docs/interop/qmp-spec of QEMU).

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

const LONGEST: Duration = Duration::from_secs(120);
/// From its start to its monitor.
const CONNECT_LONGEST: Duration = Duration::from_secs(20);

/// A connection.
pub(super) struct Monitor(BufReader<UnixStream>);

impl Monitor {
    /// It may just have been started.
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let begun = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Err(_) if begun.elapsed() < CONNECT_LONGEST => sleep(Duration::from_millis(1)),
                done => break done.context("connect to QEMU's monitor")?,
            }
        };
        stream.set_read_timeout(Some(LONGEST))?;
        let mut monitor = Self(BufReader::new(stream));
        monitor.line()?;
        monitor.ask("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    pub(super) fn allow(&mut self, capability: &str) -> Result<()> {
        let capability = json!({ "capability": capability, "state": true });
        let capabilities = json!({ "capabilities": [capability] });
        self.ask("migrate-set-capabilities", &capabilities).map(drop)
    }

    pub(super) fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.0.get_mut(), "{request}").context("write to QEMU's monitor")?;
        loop {
            // Events come in between.
            let mut said = self.line()?;
            if let Some(answer) = said.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = said.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
        }
    }

    /// Has the guest written to `uri`, and waits until it is; looked at so often.
    pub(super) fn migrate(&mut self, uri: &str, every: Duration) -> Result<()> {
        self.ask("migrate", &json!({ "uri": uri }))?;
        let begun = Instant::now();
        loop {
            let said = self.ask("query-migrate", &json!({}))?;
            match said["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => bail!("QEMU did not save the guest: {said}"),
                _ if begun.elapsed() > LONGEST => bail!("QEMU saves the guest for ever: {said}"),
                _ => sleep(every),
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.0.read_line(&mut line).context("read from QEMU's monitor")? == 0 {
            bail!("QEMU has closed its monitor");
        }
        serde_json::from_str(&line).context("QEMU's monitor says what is no JSON")
    }
}
