//! Guests' frames as the host has them: in which page each is, and what is in it. From `/proc/PID/maps` and `pagemap`
//! (Documentation/admin-guide/mm/pagemap.rst), with nobody asked who says what he has shared.

use anyhow::{Context, Result, ensure};
use insight::Fingerprint;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use serde::Serialize;
use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

const FRAME: u64 = 4096;
const MIB: f64 = (1 << 20) as f64;
/// What a VM of ours calls its memory, and what it shows of a pool.
const RAM: &str = "/memfd:fathom-guest-ram (deleted)";
const POOL: &str = "/memfd:fathom-shared-frames (deleted)";
/// Bits of `pagemap`.
const PRESENT: u64 = 1 << 63;
const PFN: u64 = (1 << 55) - 1;

/// A page of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Page {
    /// In the RAM file of this process.
    Own(u32, u64),
    /// At this offset in a pool.
    Pool(u64),
    /// By its number.
    Physical(u64),
}

/// What of guests' memory takes memory of the host, MiB; frames that no guest has touched are none of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Alike {
    /// What guests have.
    pub(super) has: f64,
    /// Of that, in pages that several frames are in.
    pub(super) shared: f64,
    /// What they would take more, had each frame its own page.
    pub(super) saved: f64,
    /// The same if all frames that are alike were in one page.
    pub(super) most: f64,
    /// Of that, for frames of zeros.
    pub(super) zeros: f64,
    /// Of what they have, in pages of a pool, also those that one frame alone is in.
    pub(super) mapped: f64,
}

/// All frames seen, with where they are and what they have.
#[derive(Default)]
pub(super) struct Census {
    frames: u64,
    pages: HashMap<Page, u64>,
    contents: HashMap<Fingerprint, u64>,
}

impl Census {
    /// One more frame.
    fn add(&mut self, page: Page, contents: Fingerprint) {
        self.frames += 1;
        *self.contents.entry(contents).or_default() += 1;
        *self.pages.entry(page).or_default() += 1;
    }

    pub(super) fn alike(&self) -> Alike {
        let mib = |frames: u64| (frames * FRAME) as f64 / MIB;
        let shared = self.pages.values().filter(|&&count| count > 1).sum();
        let pooled = self.pages.iter().filter(|(page, _)| matches!(page, Page::Pool(_)));
        let mapped = pooled.map(|(_, count)| count).sum();
        let zeros = Fingerprint::of(&[0; FRAME as usize]);
        let zeros = self.contents.get(&zeros).map_or(0, |count| count - 1);
        Alike {
            has: mib(self.frames),
            shared: mib(shared),
            saved: mib(self.frames - self.pages.len() as u64),
            most: mib(self.frames - self.contents.len() as u64),
            zeros: mib(zeros),
            mapped: mib(mapped),
        }
    }

    /// The memory of a VM of ours: it has what its RAM file has, and of the pool what it shows in its place.
    pub(super) fn add_fathom(&mut self, pid: u32) -> Result<()> {
        let areas = Area::of(pid)?;
        let ram = areas.iter().filter(|area| area.name == RAM).collect::<Vec<_>>();
        let begin = ram.first().context("a VM without memory")?;
        let begin = begin.begin.checked_sub(begin.offset).context("memory before its begin")?;
        let (file, pool) = (open(pid, RAM)?, open(pid, POOL).ok());
        let size = file.metadata()?.len();
        for area in &ram {
            ensure!(area.begin - area.offset == begin, "memory is mapped more than once");
            let mut at = area.offset;
            let end = area.offset + (area.end - area.begin);
            while let Some((from, to)) = data(&file, at, end)? {
                for offset in (from..to).step_by(FRAME as usize) {
                    self.add(Page::Own(pid, offset), read(&file, offset)?);
                }
                at = to;
            }
        }
        let within = |area: &&Area| area.begin >= begin && area.end <= begin + size;
        for area in areas.iter().filter(|area| area.name == POOL).filter(within) {
            let pool = pool.as_ref().context("a pool that is mapped, and not open")?;
            for offset in (0..area.end - area.begin).step_by(FRAME as usize) {
                let offset = area.offset + offset;
                self.add(Page::Pool(offset), read(pool, offset)?);
            }
        }
        Ok(())
    }

    /// Of a QEMU whose guest has so much memory: its area without a name that is of this size. Only root is told where
    /// pages are.
    pub(super) fn add_qemu(&mut self, pid: u32, size: u64) -> Result<()> {
        let areas = Area::of(pid)?;
        let mut unnamed = areas.iter().filter(|area| area.name.is_empty());
        let ram = unnamed.find(|area| area.end - area.begin == size).context("no memory")?;
        let map = File::open(format!("/proc/{pid}/pagemap"))?;
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        for address in (ram.begin..ram.end).step_by(FRAME as usize) {
            let mut entry = [0; 8];
            map.read_exact_at(&mut entry, address / FRAME * 8)?;
            let entry = u64::from_le_bytes(entry);
            if entry & PRESENT != 0 {
                ensure!(entry & PFN != 0, "only root is told where pages are");
                self.add(Page::Physical(entry & PFN), read(&memory, address)?);
            }
        }
        Ok(())
    }
}

/// An open file of this name.
fn open(pid: u32, name: &str) -> Result<File> {
    let folder = format!("/proc/{pid}/fd");
    let links = fs::read_dir(&folder).with_context(|| format!("read {folder}"))?;
    let mut paths = links.flatten().map(|link| link.path());
    let is_it =
        |path: &std::path::PathBuf| fs::read_link(path).is_ok_and(|to| to.as_os_str() == name);
    let path = paths.find(is_it).with_context(|| format!("process {pid} has no {name}"))?;
    Ok(File::open(path)?)
}

fn read(file: &File, offset: u64) -> Result<Fingerprint> {
    let mut contents = [0; FRAME as usize];
    file.read_exact_at(&mut contents, offset)?;
    Ok(Fingerprint::of(&contents))
}

/// The next that is there from `at` on, before `end`; whole frames, as the file has them.
fn data(file: &File, at: u64, end: u64) -> Result<Option<(u64, u64)>> {
    if at >= end {
        return Ok(None);
    }
    match seek(file, SeekFrom::Data(at)) {
        Ok(from) if from < end => {
            let to = seek(file, SeekFrom::Hole(from))?;
            Ok(Some((from, to.min(end))))
        }
        Ok(_) | Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A line of `maps`.
#[derive(Debug, PartialEq)]
struct Area {
    begin: u64,
    end: u64,
    offset: u64,
    name: String,
}

impl Area {
    fn of(pid: u32) -> Result<Vec<Self>> {
        let file = format!("/proc/{pid}/maps");
        let text = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
        Ok(text.lines().filter_map(Self::parse).collect())
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let (begin, end) = words.next()?.split_once('-')?;
        let offset = number(words.nth(1)?)?;
        let name = words.skip(2).collect::<Vec<_>>().join(" ");
        Some(Self { begin: number(begin)?, end: number(end)?, offset, name })
    }
}

/// CPU time of a process, seconds: of all its threads, those that have ended, too.
pub(super) fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    ticks(&stat, |_| true).unwrap_or(0.0) / TICKS
}

/// Of those of its threads that are there, by their names.
pub(super) fn thread_seconds(pid: u32, counts: impl Fn(&str) -> bool) -> f64 {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0.0 };
    let paths = threads.flatten().map(|thread| thread.path().join("stat"));
    let stats = paths.filter_map(|path| fs::read_to_string(path).ok());
    stats.filter_map(|stat| ticks(&stat, &counts)).sum::<f64>() / TICKS
}

/// USER_HZ: proc(5).
const TICKS: f64 = 100.0;

fn ticks(stat: &str, counts: impl Fn(&str) -> bool) -> Option<f64> {
    let (head, rest) = stat.rsplit_once(") ")?;
    let (_, name) = head.split_once('(')?;
    let mut fields = rest.split(' ').skip(11);
    let [user, system]: [f64; 2] = [fields.next()?.parse().ok()?, fields.next()?.parse().ok()?];
    counts(name).then_some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_counts_by_its_page_and_by_what_is_in_it() {
        let mut census = Census::default();
        let (zeros, other) = (Fingerprint::of(&[0; 4096]), Fingerprint::of(&[7; 4096]));
        for (page, contents) in [
            (Page::Own(1, 0), zeros),
            (Page::Pool(0), zeros),
            (Page::Pool(0), zeros),
            (Page::Own(2, 0), other),
            (Page::Own(1, 4096), other),
        ] {
            census.add(page, contents);
        }
        let alike = census.alike();
        let frames = [alike.has, alike.shared, alike.saved, alike.most, alike.zeros, alike.mapped];
        assert_eq!(frames.map(|mib| mib * 256.0), [5.0, 2.0, 1.0, 3.0, 2.0, 2.0]);
    }

    #[test]
    fn lines_of_the_kernel_are_read() {
        let line = "7fd03c000000-7fd03c002000 rw-s 00003000 00:01 802469    /memfd:fathom-guest-ram (deleted)";
        let area = Area::parse(line).unwrap();
        assert_eq!((area.end - area.begin, area.offset), (0x2000, 0x3000));
        assert_eq!(area.name, RAM);
        assert_eq!(Area::parse("7f00-7f01 rw-p 00000000 00:00 0 ").unwrap().name, "");
        let stat = "5 (api connection) S 1 5 5 0 -1 4 100 0 0 0 70 30 0 0 20 0 9 0";
        assert_eq!(ticks(stat, |name| name == "api connection"), Some(100.0));
        assert_eq!(ticks(stat, |name| name == "vcpu0"), None);
    }

    #[test]
    fn what_a_file_has_is_found_part_by_part() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[1; 4096], 65_536).unwrap();
        assert_eq!(data(&file, 0, 1 << 20).unwrap(), Some((65_536, 69_632)));
        assert_eq!(data(&file, 69_632, 1 << 20).unwrap(), None);
        assert_eq!(data(&file, 0, 65_536).unwrap(), None);
    }
}
