//! gdb's `monitor` commands.

use gdbstub::outputln;
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd};

use super::target::{DebugError, GuestTarget};
use crate::post_mortem;

const HELP: &str = "monitor info registers: all registers of all vcpus";

impl MonitorCmd for GuestTarget {
    fn handle_monitor_cmd(
        &mut self,
        command: &[u8],
        mut out: ConsoleOutput<'_>,
    ) -> Result<(), DebugError> {
        let command = String::from_utf8_lossy(command);
        let words: Vec<_> = command.split_ascii_whitespace().collect();
        match words[..] {
            ["info", "registers"] => self.print_registers(&mut out),
            _ => outputln!(out, "{HELP}"),
        }
        Ok(())
    }
}

impl GuestTarget {
    fn print_registers(&mut self, out: &mut ConsoleOutput<'_>) {
        for id in 0..self.vcpu_count() {
            let lines = match self.state(id) {
                Ok(state) => post_mortem::registers(state),
                Err(error) => vec![error.to_string()],
            };
            for line in lines {
                outputln!(out, "vcpu {id}: {line}");
            }
        }
    }
}
