//! Programs of Debian's, from their own disk.

use super::Load;
use super::place::{FOLDER, Place};
use crate::sys;
use crate::work::program::{Root, command};
use std::fs;
use std::io::{Error, Result};

pub(super) const LOADS: [Load; 1] = [Load { name: "program", run: program }];

/// Whatever it does; the scratch disk is at `/tmp/scratch` for it.
fn program(place: &Place) -> Result<()> {
    let (program, args) =
        place.words.split_first().ok_or_else(|| Error::other("no program given"))?;
    let root = Root::new(&place.root)?;
    place.folders.borrow_mut().push(root.folder().to_owned());
    let scratch = root.folder().join("tmp/scratch");
    fs::create_dir_all(&scratch)?;
    sys::mount(FOLDER, &scratch.to_string_lossy(), "", libc::MS_BIND)?;
    let mut command = command(program, args);
    root.enter(&mut command);
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(Error::other(format!("{program}: {status}"))) }
}
