//! Memory that the kernel takes for itself.

use super::Load;
use super::place::Place;
use std::fs;
use std::io::Result;

pub(super) const LOADS: [Load; 1] = [Load { name: "slab", run: slab }];

/// Inodes and names of many files, while the cache fills all there is.
fn slab(place: &Place) -> Result<()> {
    place.fill()?;
    for folder in fs::read_dir(place.path("many"))? {
        for entry in fs::read_dir(folder?.path())? {
            entry?.metadata()?;
        }
    }
    place.fill()
}
