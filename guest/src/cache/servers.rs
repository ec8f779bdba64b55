//! What servers do to files: many of them, of all sizes, made, read, added to and deleted.

use super::Load;
use super::files::write_file;
use super::place::{BLOCK, Numbers, Place, read_through};
use std::fs::{self, OpenOptions};
use std::io::{Result, Write};
use std::path::PathBuf;

pub(super) const LOADS: [Load; 2] =
    [Load { name: "file-server", run: file_server }, Load { name: "mail-spool", run: mail_spool }];

/// Files are from 64 KiB to so many times as large.
const LARGEST: u64 = 24;

/// Clients read whole files, add to them, make and delete them; some files much more often than others. All of them
/// are more than memory has room for.
fn file_server(place: &Place) -> Result<()> {
    let folder = place.path("served");
    fs::create_dir(&folder)?;
    let (mut numbers, mut files, mut made, mut bytes) = (Numbers::new(), Vec::new(), 0, 0);
    let mut make = |files: &mut Vec<PathBuf>, numbers: &mut Numbers| -> Result<u64> {
        made += 1;
        let (file, blocks) = (folder.join(format!("{made}")), 1 + numbers.below(LARGEST));
        write_file(&file, blocks * BLOCK as u64, made << 16)?;
        files.push(file);
        Ok(blocks * BLOCK as u64)
    };
    while bytes < place.size_or(130) {
        bytes += make(&mut files, &mut numbers)?;
    }
    let mut asked = 0;
    while asked < place.size_or(250) {
        // The product of two prefers files at the beginning.
        let count = files.len() as u64;
        let which = (numbers.below(count) * numbers.below(count) / count) as usize;
        match numbers.below(10) {
            0 => {
                let mut file = OpenOptions::new().append(true).open(&files[which])?;
                file.write_all(&[which as u8; 20_000])?;
            }
            1 => {
                let file = files.swap_remove(which);
                place.remember(&file)?;
                fs::remove_file(&file)?;
                make(&mut files, &mut numbers)?;
            }
            _ => {
                asked += fs::metadata(&files[which])?.len();
                read_through(&files[which], 0, u64::MAX)?;
            }
        }
    }
    Ok(())
}

const BOXES: u64 = 40;

/// Messages are delivered, each a file that is on disk before it has its name; boxes are read as a whole, and the
/// oldest messages deleted.
fn mail_spool(place: &Place) -> Result<()> {
    place.fill()?;
    let mut numbers = Numbers::new();
    let mut boxes: Vec<Vec<PathBuf>> = Vec::new();
    for number in 0..BOXES {
        fs::create_dir_all(place.path(&format!("mail/{number}")))?;
        boxes.push(Vec::new());
    }
    let (mut delivered, mut messages) = (0, 0);
    while delivered < place.size_or(40) {
        let which = numbers.below(BOXES);
        let bytes = 2000 + numbers.below(60_000);
        let new = place.path(&format!("mail/{which}/new"));
        let mut file = fs::File::create(&new)?;
        file.write_all(&vec![messages as u8 | 1; bytes as usize])?;
        file.sync_all()?;
        let message = place.path(&format!("mail/{which}/{messages}"));
        fs::rename(&new, &message)?;
        let mailbox = &mut boxes[which as usize];
        mailbox.push(message);
        (delivered, messages) = (delivered + bytes, messages + 1);
        match numbers.below(12) {
            0 => {
                for message in mailbox.iter() {
                    read_through(message, 0, u64::MAX)?;
                }
            }
            1 => {
                for message in mailbox.drain(..mailbox.len() / 4) {
                    place.remember(&message)?;
                    fs::remove_file(&message)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}
