//! The host cache of one machine: who reads evicted blocks into it, and what it shows.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use confine::Thread;
use devices::virtio::block::{HostCache, HostCachePolicy, HostCacheStatus, PageCache, Whereabouts};
use insight::{CacheChange, CacheEvent};

use crate::config::VmPlan;

/// The thread that waits for the image. Dropping it ends the thread, which then has no disk open.
pub(crate) struct Filler {
    cache: Arc<HostCache>,
    thread: Option<JoinHandle<()>>,
}

impl Filler {
    /// Starts the thread, where the cache's policy needs one.
    pub(crate) fn start(cache: &Arc<HostCache>) -> io::Result<Option<Self>> {
        if cache.policy() == HostCachePolicy::Demand {
            return Ok(None);
        }
        let of_thread = Arc::clone(cache);
        let builder = thread::Builder::new().name("host-cache".into());
        let thread = confine::spawn(builder, Thread::Io, move || of_thread.fill())?;
        Ok(Some(Self { cache: Arc::clone(cache), thread: Some(thread) }))
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.cache.stop();
        if let Some(thread) = self.thread.take() {
            // It ends by itself unless it panicked, and then there is nothing to save.
            let _ = thread.join();
        }
    }
}

/// An empty cache, if `plan` has one.
pub(crate) fn new(plan: &VmPlan) -> Option<Arc<HostCache>> {
    plan.host_cache.map(|config| Arc::new(HostCache::new(config.size.0, config.policy)))
}

/// Tells the cache what was inferred.
pub(crate) fn tell(cache: &HostCache, events: &[CacheEvent]) {
    let whereabouts = |change| match change {
        CacheChange::Evict => Whereabouts::Evicted,
        CacheChange::Insert | CacheChange::Drop | CacheChange::Move => Whereabouts::Guest,
    };
    cache.tell(events.iter().map(|event| (event.block, whereabouts(event.change))));
}

/// A host cache, with what is below it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostCacheReport {
    /// The cache itself; its counts are of all lives of the VM, the rest of the latest.
    pub status: HostCacheStatus,
    /// Whether the host's page cache has the contents of each disk as well.
    pub page_caches: Vec<(PathBuf, PageCache)>,
}

impl HostCacheReport {
    pub(crate) fn new(cache: &HostCache, plan: &VmPlan, page_caches: &[PageCache]) -> Self {
        let disks = plan.disks.iter().zip(page_caches).filter(|(disk, _)| disk.host_cache);
        let disks = disks.map(|(disk, page_cache)| (disk.path.clone(), page_cache.clone()));
        Self { status: cache.status(), page_caches: disks.collect() }
    }

    /// With the counts of an earlier life.
    pub(crate) fn after(mut self, earlier: Option<&Self>) -> Self {
        if let Some(earlier) = earlier {
            self.status.counts = earlier.status.counts.plus(self.status.counts);
        }
        self
    }
}
