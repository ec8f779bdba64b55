//! A place of its own for each test: files, sockets, and the program.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use api::testing::FakeVm;
use api::{Server, SocketDirectory, VmControl};
use tempfile::TempDir;

pub struct Sandbox {
    dir: TempDir,
    environment: Mutex<Vec<(String, String)>>,
}

impl Sandbox {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        Self { dir, environment: Mutex::default() }
    }

    /// What programs that are started from now on find in their environment.
    pub fn set(&self, variables: &[(&str, String)]) {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        self.environment.lock().expect("environment").extend(variables);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file with these bytes; its path as text.
    pub fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, bytes).expect("file");
        path.to_str().expect("text").to_owned()
    }

    pub fn sockets(&self) -> SocketDirectory {
        SocketDirectory::at(self.path("fathom")).expect("socket directory")
    }

    /// The program as cargo has built it, or `FATHOM_BIN`: tests also run where there is no cargo.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let built = || env!("CARGO_BIN_EXE_fathom").into();
        let mut command = Command::new(std::env::var_os("FATHOM_BIN").unwrap_or_else(built));
        command.args(arguments);
        command.env("XDG_RUNTIME_DIR", self.dir.path()).env_remove("FATHOM_LOG");
        command.env("FATHOM_POOL", self.path("pool"));
        command.envs(self.environment.lock().expect("environment").iter().cloned());
        command
    }

    pub fn fathom(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program runs")
    }

    /// Runs it; it must fail with `status` and one line on standard error, which is returned.
    pub fn refusal(&self, status: i32, arguments: &[&str]) -> String {
        let output = self.fathom(arguments);
        let line = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {line}");
        assert_eq!(line.lines().count(), 1, "{arguments:?}: {line}");
        assert!(line.starts_with("fathom: "), "{line}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
        line
    }

    /// Runs it; it must succeed. What it printed.
    pub fn success(&self, arguments: &[&str]) -> String {
        let output = self.fathom(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        assert_eq!(text(&output.stderr), "", "{arguments:?}");
        text(&output.stdout)
    }

    /// A VM that is none, served by the test.
    pub fn fake_vm(&self, name: &str) -> (Arc<FakeVm>, Server) {
        let vm = Arc::new(FakeVm::new(name));
        let claim = self.sockets().claim(name).expect("claim");
        let control: Arc<dyn VmControl> = vm.clone();
        (vm, Server::start(claim, control).expect("server"))
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether nothing is left in a directory.
pub fn is_empty(path: &Path) -> bool {
    fs::read_dir(path).expect("directory").next().is_none()
}
