//! A file system that refuses at a step, for tests of whoever writes snapshots. It waits for no disk.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::SnapshotError;
use crate::host::{Host, Output, RealHost};
use crate::store::{ReadAt, Store};
use crate::writer::{Options, Writer};

/// Counts what it is asked, and refuses from step `from` on, `times` times.
#[derive(Clone, Debug)]
pub struct Refusing {
    step: Arc<AtomicU32>,
    from: u32,
    times: u32,
}

impl Refusing {
    /// Step 0 is the first.
    pub fn new(from: u32, times: u32) -> Self {
        Self { step: Arc::default(), from, times }
    }

    fn ask(&self) -> io::Result<()> {
        let step = self.step.fetch_add(1, Ordering::Relaxed);
        if step >= self.from && step - self.from < self.times {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    /// How many there were.
    pub fn steps(&self) -> u32 {
        self.step.load(Ordering::Relaxed)
    }
}

struct RefusingFile<T: ?Sized>(Refusing, T);

impl Output for RefusingFile<Box<dyn Output>> {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Err(error) = self.0.ask() {
            // A full disk takes a part.
            self.1.write_all_at(&bytes[..bytes.len() / 2], offset)?;
            return Err(error);
        }
        self.1.write_all_at(bytes, offset)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.ask()?;
        self.1.set_len(bytes)
    }

    fn punch(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.0.ask()?;
        self.1.punch(offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.ask()
    }
}

impl ReadAt for RefusingFile<Arc<dyn ReadAt>> {
    fn len(&self) -> io::Result<u64> {
        self.0.ask()?;
        self.1.len()
    }

    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.ask()?;
        self.1.read_exact_at(into, offset)
    }
}

impl Store for RefusingFile<Box<dyn Store>> {
    fn name(&self) -> String {
        self.1.name()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn ReadAt>> {
        self.0.ask()?;
        Ok(Arc::new(RefusingFile(self.0.clone(), self.1.open(name)?)))
    }

    fn parent(&self, path: &str) -> io::Result<Box<dyn Store>> {
        self.0.ask()?;
        Ok(Box::new(RefusingFile(self.0.clone(), self.1.parent(path)?)))
    }

    fn directory(&self) -> Option<&Path> {
        self.1.directory()
    }
}

impl Host for Refusing {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.ask()?;
        RealHost.create_directory(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        self.ask()?;
        Ok(Box::new(RefusingFile(self.clone(), RealHost.create(path)?)))
    }

    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        self.ask()
    }

    fn store(&self, path: &Path) -> io::Result<Box<dyn Store>> {
        self.ask()?;
        Ok(Box::new(RefusingFile(self.clone(), RealHost.store(path)?)))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.ask()?;
        RealHost.link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.ask()?;
        RealHost.rename(from, to)
    }

    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        self.ask()?;
        RealHost.exchange(one, other)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.ask()?;
        RealHost.remove_file(path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        self.ask()?;
        RealHost.remove_directory(path)
    }
}

impl Writer {
    /// As [`Writer::create`], by a host that refuses.
    ///
    /// # Errors
    /// As of [`Writer::create`].
    pub fn create_refused(
        path: &Path,
        options: Options,
        host: &Refusing,
    ) -> Result<Writer, SnapshotError> {
        Self::create_on(path, options, Arc::new(host.clone()))
    }
}
