//! A cache below the guest's own: what is read is what was written, whatever is inferred of evictions.

use std::fs::File;

use crate::console::events;
use crate::engine::announce;
use crate::sandbox::Sandbox;
use crate::vm::Guest;

const MIB: u64 = 1 << 20;
/// More than the guest can cache.
const DISK_MIB: u64 = 96;
const WORDS: &str = "mem=96M fathom.scratch=/dev/vda fathom.run=verify:96,8000";

#[test]
fn a_guest_reads_what_it_wrote_with_evictions_cached() {
    let counts = verified("48M", true);
    assert!(counts("inserted_by_eviction") > 1000 && counts("hits") > 1000);
    assert!(counts("dropped_by_writes") > 0);
    assert_eq!((counts("inserted_by_demand"), counts("failed")), (0, 0));
}

#[test]
fn a_guest_reads_what_it_wrote_with_its_reads_cached() {
    let counts = verified("80M,policy=demand", false);
    assert!(counts("inserted_by_demand") > 1000 && counts("hits") > 1000);
    assert_eq!(counts("inserted_by_eviction"), 0);
}

/// The counts of a guest that has checked every sector of its disk.
fn verified(cache: &str, overlay: bool) -> impl Fn(&str) -> u64 {
    let sandbox = Sandbox::new();
    let image = sandbox.path("image");
    let sparse = File::create(&image).and_then(|image| image.set_len(DISK_MIB * MIB));
    sparse.expect("an image");
    let mut disk = image.display().to_string();
    if overlay {
        disk += &format!(",overlay={}", sandbox.path("overlay").display());
    }
    let guest = Guest::new(WORDS).disk(disk).arguments(&["--host-cache", cache]);
    let ended = guest.run(&sandbox).well();
    let told = events(&ended.console, "verify");
    assert_eq!(told.len(), 1, "{}", ended.console);
    assert_eq!(told[0]["error"], "", "{}", ended.console);
    let cache = ended.report.host_cache.expect("a host cache in the report");
    // At the end all of it was read past the cache: blocks that came back are no longer below, and nothing was evicted.
    assert!(cache.cached_bytes <= cache.size_bytes, "{cache:?}");
    assert!(cache.disks.len() == 1 && cache.disks[0].page_cache == cache.disks[0].why.is_some());
    announce(&format!("host cache, {}: {:?}", cache.policy, cache.counts));
    move |name| cache.counts.get(name).copied().expect(name)
}
