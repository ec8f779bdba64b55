//! The host kernel's own sharing (Documentation/admin-guide/mm/ksm.rst), on for some time: it is one for all processes
//! of the host, and only root may set it.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

const FOLDER: &str = "/sys/kernel/mm/ksm";
/// As many frames in a second as our scanner looks at, 8192 in 200 ms, and no other choice of its own.
const SETTINGS: [(&str, &str); 4] =
    [("advisor_mode", "none"), ("sleep_millisecs", "20"), ("pages_to_scan", "820"), ("run", "1")];

/// On until drop; then everything is as it was.
pub(super) struct Ksm {
    before: Vec<(PathBuf, String)>,
    pub(super) scanner: u32,
}

impl Ksm {
    pub(super) fn on() -> Result<Self> {
        let scanner = scanner().context("this kernel has no ksmd")?;
        let mut ksm = Self { before: Vec::new(), scanner };
        for (name, value) in SETTINGS {
            let file = Path::new(FOLDER).join(name);
            let was = match fs::read_to_string(&file) {
                // Kernels before 6.8 have no advisor.
                Err(_) if name == "advisor_mode" => continue,
                was => chosen(&was.with_context(|| format!("read {}", file.display()))?),
            };
            ksm.before.push((file.clone(), was));
            fs::write(&file, value).with_context(|| format!("write {}", file.display()))?;
        }
        Ok(ksm)
    }

    /// What is merged stays so.
    pub(super) fn stop() -> Result<()> {
        run("0")
    }

    pub(super) fn go() -> Result<()> {
        run("1")
    }
}

impl Drop for Ksm {
    fn drop(&mut self) {
        for (file, was) in self.before.iter().rev() {
            if let Err(error) = fs::write(file, was) {
                eprintln!("! {} is not {was} again: {error}", file.display());
            }
        }
    }
}

fn run(value: &str) -> Result<()> {
    let file = Path::new(FOLDER).join("run");
    fs::write(&file, value).with_context(|| format!("write {}", file.display()))
}

/// Of `[none] scan-time` the one in brackets.
fn chosen(text: &str) -> String {
    let within = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    within.map_or(text.trim(), |(name, _)| name).to_owned()
}

/// The kernel's thread.
fn scanner() -> Option<u32> {
    let processes = fs::read_dir("/proc").ok()?;
    let is_it = |path: &PathBuf| {
        fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "ksmd")
    };
    let path = processes.flatten().map(|process| process.path()).find(is_it)?;
    path.file_name()?.to_str()?.parse().ok()
}

/// Frames of this process that are merged: proc(5), since Linux 6.1.
pub(super) fn merged(pid: u32) -> Option<u64> {
    fs::read_to_string(format!("/proc/{pid}/ksm_merging_pages")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_put_back_as_it_is_written() {
        assert_eq!(chosen("[none] scan-time\n"), "none");
        assert_eq!(chosen("none [scan-time]\n"), "scan-time");
        assert_eq!(chosen("100\n"), "100");
    }
}
