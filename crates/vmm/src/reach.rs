//! What a VM needs for as long as it lives, so that the rest can be put out of its reach.
//!
//! A guest that reboots gets a new machine, which opens every file again: what is needed once is needed
//! always.

use std::fs::OpenOptions;
use std::path::Path;

use confine::{Having, Need, PathRule};

use crate::config::{ConsoleConfig, DiskAccess, EngineKind, NetBackend, VmPlan};
use crate::error::VmError;
use crate::{board, debug};

impl VmPlan {
    /// Does what a confined process cannot do any more: makes the files that the VM writes and that are not
    /// there yet (only what exists can be kept within reach), and has what the translator's engine takes once.
    ///
    /// # Errors
    /// As [`start`](crate::start) would fail for the engine, a disk or the console.
    pub fn prepare(&self) -> Result<(), VmError> {
        if self.engine.kind == EngineKind::Translate {
            // Executable memory and a signal's handler stay with the process.
            engine_translate::TranslateEngine::new()?;
        }
        self.make_files()
    }

    fn make_files(&self) -> Result<(), VmError> {
        for disk in &self.disks {
            if let DiskAccess::Overlay(_) = disk.access {
                board::disk_config(disk).plan()?;
            }
        }
        if let ConsoleConfig::File(path) = &self.console {
            make("console", path)?;
        }
        if let Some(gdb) = &self.gdb {
            let refused = |error| VmError::Host(format!("gdb at {}", gdb.socket.display()), error);
            debug::remove_abandoned(&gdb.socket).map_err(refused)?;
        }
        self.report.as_deref().map_or(Ok(()), |path| make("report", path))
    }

    /// What it has that takes system calls of its own.
    #[must_use]
    pub fn having(&self) -> Vec<Having> {
        let engine = match self.engine.kind {
            EngineKind::Kvm => Having::Kvm,
            EngineKind::Translate => Having::Translate,
        };
        let gdb = self.gdb.is_some().then_some(Having::Gdb);
        let net = (!self.nets.is_empty()).then_some(Having::Net);
        let vsock = self.vsock.is_some().then_some(Having::Vsock);
        [Some(engine), gdb, net, vsock].into_iter().flatten().collect()
    }

    /// What it opens, and what for.
    #[must_use]
    pub fn paths(&self) -> Vec<PathRule> {
        let mut paths = vec![PathRule::new(&self.kernel, Need::Read)];
        paths.extend(self.initrd.as_ref().map(|path| PathRule::new(path, Need::Read)));
        for disk in &self.disks {
            let image = if disk.access == DiskAccess::Write { Need::ReadWrite } else { Need::Read };
            paths.push(PathRule::new(&disk.path, image));
            if let DiskAccess::Overlay(overlay) = &disk.access {
                paths.push(PathRule::new(overlay, Need::ReadWrite));
            }
        }
        for net in &self.nets {
            // A passt that was started again has a new socket, so it is the directory that counts.
            if let NetBackend::Socket(path) = &net.backend {
                paths.push(PathRule::new(directory_of(path), Need::Connect));
            }
        }
        if let ConsoleConfig::File(path) = &self.console {
            paths.push(PathRule::new(path, Need::Output));
        }
        paths.extend(self.report.as_ref().map(|path| PathRule::new(path, Need::Output)));
        if let Some(gdb) = &self.gdb {
            paths.push(PathRule::new(directory_of(&gdb.socket), Need::SocketDirectory));
        }
        if let Some(vsock) = &self.vsock {
            let directory = directory_of(&vsock.path);
            // The VM's own socket is removed at the end. Those of programs that serve the guest come and go.
            paths.push(PathRule::new(directory, Need::SocketDirectory));
            paths.push(PathRule::new(directory, Need::Connect));
        }
        if self.engine.kind == EngineKind::Kvm {
            paths.push(PathRule::new("/dev/kvm", Need::Device));
        }
        paths
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."))
}

/// Leaves alone what is there: it may be a FIFO, whose opening waits for a reader.
fn make(what: &str, path: &Path) -> Result<(), VmError> {
    if path.exists() {
        return Ok(());
    }
    let made = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    made.map(drop).map_err(|error| VmError::Host(format!("make {what} {}", path.display()), error))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;
    use crate::config::{
        DiskConfig, EngineChoice, GdbConfig, NetBackend, NetConfig, TranslationConfig, VmConfig,
        VsockConfig,
    };

    struct Host(TempDir);

    impl Host {
        fn new() -> Self {
            let host = Self(tempfile::tempdir().expect("temporary directory"));
            for name in ["vmlinuz", "initrd", "a.img", "b.img", "c.img"] {
                fs::write(host.path(name), [1; 512]).expect("file");
            }
            host
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn plan(&self) -> VmPlan {
            let disk = |image: &str, read_only, overlay: Option<&str>| DiskConfig {
                path: self.path(image),
                read_only,
                overlay: overlay.map(|name| self.path(name)),
                no_host_cache: false,
            };
            VmPlan::new(VmConfig {
                name: None,
                kernel: self.path("vmlinuz"),
                initrd: Some(self.path("initrd")),
                cmdline: None,
                memory: crate::config::Bytes(64 << 20),
                cpus: 1,
                cpu_model: x86::model::CpuModel::Full,
                disks: vec![
                    disk("a.img", false, None),
                    disk("b.img", true, None),
                    disk("c.img", false, Some("c.cow")),
                ],
                nets: vec![NetConfig {
                    backend: NetBackend::Socket(self.path("passt.socket")),
                    mac: None,
                    mtu: None,
                }],
                engine: EngineChoice::Translate,
                console: ConsoleConfig::File(self.path("console")),
                report: Some(self.path("report")),
                cache_log: None,
                insight: true,
                host_cache: None,
                classes: false,
                estimate_log: None,
                gdb: Some(GdbConfig { socket: self.path("gdb"), wait: true }),
                vsock: Some(VsockConfig::new(3, self.path("vsock"))),
                translation: TranslationConfig::default(),
            })
            .expect("a plan")
        }
    }

    #[test]
    fn nothing_is_needed_beyond_what_is_planned() {
        let host = Host::new();
        let rule = |name: &str, need| PathRule::new(host.path(name), need);
        let expected = [
            rule("vmlinuz", Need::Read),
            rule("initrd", Need::Read),
            rule("a.img", Need::ReadWrite),
            rule("b.img", Need::Read),
            rule("c.img", Need::Read),
            rule("c.cow", Need::ReadWrite),
            PathRule::new(host.0.path(), Need::Connect),
            rule("console", Need::Output),
            rule("report", Need::Output),
            PathRule::new(host.0.path(), Need::SocketDirectory),
            PathRule::new(host.0.path(), Need::SocketDirectory),
            PathRule::new(host.0.path(), Need::Connect),
        ];
        assert_eq!(host.plan().paths(), expected);
    }

    #[test]
    fn what_is_written_is_made_and_what_is_there_is_left_alone() {
        let host = Host::new();
        fs::write(host.path("report"), "of yesterday").expect("report");
        let plan = host.plan();
        plan.make_files().expect("made");
        assert!(plan.paths().iter().all(|rule| rule.path.exists()));
        assert_eq!(fs::read_to_string(host.path("report")).expect("report"), "of yesterday");
        let overlay = fs::read(host.path("c.cow")).expect("overlay");
        plan.make_files().expect("made already");
        assert_eq!(fs::read(host.path("c.cow")).expect("overlay"), overlay);
    }

    #[test]
    fn an_overlay_of_something_else_is_refused_here_already() {
        let host = Host::new();
        let plan = host.plan();
        fs::write(host.path("c.cow"), [7; 4096]).expect("no overlay");
        assert!(matches!(plan.make_files(), Err(VmError::Disk(_))));
    }
}
