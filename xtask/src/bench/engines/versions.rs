//! What exactly was compared.

use super::{Engine, EnginesArgs};
use crate::command::output;
use crate::kit::Kit;
use crate::machine::fathom_program;
use anyhow::Result;
use std::process::Command;

/// One line for each engine.
pub(super) fn of(kit: &Kit, args: &EnginesArgs, engines: &[Engine]) -> Vec<String> {
    let line =
        |engine: &Engine| version(kit, args, *engine).unwrap_or_else(|error| format!("{error:#}"));
    engines.iter().map(line).collect()
}

fn version(kit: &Kit, args: &EnginesArgs, engine: Engine) -> Result<String> {
    let mut command = match engine {
        Engine::Native => return Ok(host()),
        Engine::Fathom => Command::new(fathom_program()),
        Engine::Qemu => match &args.qemu {
            Some(program) => Command::new(program),
            None => kit.qemu()?.command(),
        },
        Engine::QemuBackports => kit.backports_qemu()?.command(),
        Engine::Uml => Command::new(kit.user_mode_linux()?),
    };
    let text = output(command.arg("--version"))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn host() -> String {
    let read = |file| std::fs::read_to_string(file).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("", |model| model.trim_start_matches([' ', '\t', ':']));
    let processors = info.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{processors} processors {model}, Linux {}", kernel.trim())
}
