//! The running disk.

use std::fmt;
use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::config::{ID_LEN, QUEUES, REQUESTS};
use super::events::{Transfer, tell_discard, tell_transfer};
use super::request::{Operation, RANGE_LEN, Request, SectorRange, Status};
use super::{DiskMetrics, DiskPlan, DiskState, SECTOR};
use crate::virtio::queue::{GuestBuffer, QueueError};
use crate::virtio::{
    DeviceKind, DeviceMetrics, DeviceState, GuestError, RestoreError, Turn, VirtioDevice,
    read_space,
};

/// Data segments in one request: the queue less header and status.
const SEGMENTS_MAX: u32 = QUEUES[0] as u32 - 2;
/// Bytes of one data segment.
const SEGMENT_LEN_MAX: u32 = 256 << 10;
/// Most bytes of data in one request.
const DATA_LIMIT: u64 = SEGMENTS_MAX as u64 * SEGMENT_LEN_MAX as u64;
/// Discarding is cheap: up to 2 GiB a range.
const DISCARD_SECTORS_MAX: u32 = 4 << 20;
const DISCARD_RANGES_MAX: u32 = 16;
/// Zeroing may mean writing zeros: up to 64 MiB a request.
const ZERO_SECTORS_MAX: u32 = 128 << 10;
const ZERO_RANGES_MAX: u32 = 1;

const UNMAP: u32 = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;

/// A disk. Requests are done one after the other, each before the next is looked at.
pub struct Disk {
    plan: DiskPlan,
    metrics: DiskMetrics,
}

/// Why a request is not answered with success.
enum Refusal {
    /// Outside the disk, not whole sectors, against its mode.
    Invalid,
    Unsupported,
    Host(io::Error),
    Guest(GuestError),
}

/// Bytes of the guest's buffer that were filled, or why the request failed.
type Outcome = Result<u64, Refusal>;

impl Disk {
    /// The disk that `plan` describes.
    pub fn new(plan: DiskPlan) -> Self {
        Self { plan, metrics: DiskMetrics::default() }
    }

    fn serve(&mut self, request: &Request, turn: &mut Turn<'_>) -> Result<u64, GuestError> {
        turn.spend(request.from_guest.len() + request.to_guest.len());
        let outcome = match request.operation {
            Operation::Read => self.read(request, turn),
            Operation::Write => self.write(request, turn),
            Operation::Flush => self.flush_request(),
            Operation::Id => self.id(request, turn),
            Operation::Discard => self.discard(request, turn),
            Operation::WriteZeroes => self.write_zeroes(request, turn),
            Operation::Unknown => Err(Refusal::Unsupported),
        };
        let (status, filled) = self.status(outcome)?;
        request.answer(status, filled, turn.memory())
    }

    fn status(&mut self, outcome: Outcome) -> Result<(Status, u64), GuestError> {
        match outcome {
            Ok(filled) => return Ok((Status::Ok, filled)),
            Err(Refusal::Guest(error)) => return Err(error),
            Err(Refusal::Unsupported) => {
                self.metrics.refused += 1;
                return Ok((Status::Unsupported, 0));
            }
            Err(Refusal::Invalid) => self.metrics.refused += 1,
            Err(Refusal::Host(error)) => {
                if self.metrics.host_errors == 0 {
                    tracing::warn!("disk: {error}: the guest sees an I/O error");
                }
                self.metrics.host_errors += 1;
            }
        }
        Ok((Status::IoError, 0))
    }

    fn read(&mut self, request: &Request, turn: &Turn<'_>) -> Outcome {
        let len = request.to_guest.len();
        let offset = self.range(request.sector, len)?;
        let buffer = GuestBuffer::new(turn.memory(), request.to_guest.clone());
        self.plan.storage.read(offset, &buffer)?;
        let to = &request.to_guest;
        tell_transfer(turn.memory(), self.plan.number, Transfer::Read, offset, to);
        self.metrics.reads += 1;
        self.metrics.read_bytes += len;
        Ok(len)
    }

    fn write(&mut self, request: &Request, turn: &Turn<'_>) -> Outcome {
        self.check_writable()?;
        let len = request.from_guest.len();
        let offset = self.range(request.sector, len)?;
        let buffer = GuestBuffer::new(turn.memory(), request.from_guest.clone());
        self.plan.storage.write(offset, &buffer)?;
        let from = &request.from_guest;
        tell_transfer(turn.memory(), self.plan.number, Transfer::Write, offset, from);
        self.metrics.writes += 1;
        self.metrics.written_bytes += len;
        Ok(0)
    }

    fn flush_request(&mut self) -> Outcome {
        self.flush()?;
        self.metrics.flushes += 1;
        Ok(0)
    }

    fn id(&self, request: &Request, turn: &Turn<'_>) -> Outcome {
        let len = request.to_guest.len().min(ID_LEN as u64);
        request.to_guest.write(turn.memory(), 0, &self.plan.id[..len as usize])?;
        Ok(len)
    }

    fn discard(&mut self, request: &Request, turn: &mut Turn<'_>) -> Outcome {
        self.check_writable()?;
        // "MUST set the status to UNSUPP if any unknown flag is set", and unmap must not be
        // (5.2.6.2). All ranges are checked before the first one is touched.
        for range in self.ranges(request, turn, DISCARD_RANGES_MAX, DISCARD_SECTORS_MAX, 0)? {
            let (offset, len) = (range.sector * SECTOR, u64::from(range.count) * SECTOR);
            self.plan.storage.discard(offset, len)?;
            tell_discard(turn.memory(), self.plan.number, offset, len);
            self.metrics.discarded_bytes += len;
        }
        Ok(0)
    }

    fn write_zeroes(&mut self, request: &Request, turn: &mut Turn<'_>) -> Outcome {
        self.check_writable()?;
        for range in self.ranges(request, turn, ZERO_RANGES_MAX, ZERO_SECTORS_MAX, UNMAP)? {
            let (offset, len) = (range.sector * SECTOR, u64::from(range.count) * SECTOR);
            self.plan.storage.write_zeroes(offset, len, range.flags & UNMAP != 0)?;
            tell_discard(turn.memory(), self.plan.number, offset, len);
            self.metrics.zeroed_bytes += len;
            turn.spend(len);
        }
        Ok(0)
    }

    /// The ranges of a discard or zero request, if they are all allowed.
    fn ranges(
        &self,
        request: &Request,
        turn: &Turn<'_>,
        ranges_max: u32,
        sectors_max: u32,
        flags: u32,
    ) -> Result<Vec<SectorRange>, Refusal> {
        let len = request.from_guest.len();
        let whole = len > 0 && len.is_multiple_of(RANGE_LEN as u64);
        if !whole || len / RANGE_LEN as u64 > u64::from(ranges_max) {
            return Err(Refusal::Invalid);
        }
        let mut bytes = vec![0; len as usize];
        request.from_guest.read(turn.memory(), 0, &mut bytes)?;
        let ranges: Vec<_> = bytes.as_chunks().0.iter().map(SectorRange::parse).collect();
        for range in &ranges {
            if range.flags & !flags != 0 {
                return Err(Refusal::Unsupported);
            }
            if range.count == 0 || range.count > sectors_max {
                return Err(Refusal::Invalid);
            }
            self.check_sectors(range.sector, range.count.into())?;
        }
        Ok(ranges)
    }

    fn check_writable(&self) -> Result<(), Refusal> {
        if self.plan.read_only { Err(Refusal::Invalid) } else { Ok(()) }
    }

    /// The byte offset of a data transfer, if it is whole sectors inside the disk.
    fn range(&self, sector: u64, len: u64) -> Result<u64, Refusal> {
        if len == 0 || len > DATA_LIMIT || !len.is_multiple_of(SECTOR) {
            return Err(Refusal::Invalid);
        }
        self.check_sectors(sector, len / SECTOR)?;
        Ok(sector * SECTOR)
    }

    fn check_sectors(&self, sector: u64, count: u64) -> Result<(), Refusal> {
        match sector.checked_add(count) {
            Some(end) if end <= self.plan.sectors => Ok(()),
            _ => Err(Refusal::Invalid),
        }
    }

    /// struct virtio_blk_config (5.2.4).
    fn config_space(&self) -> [u8; 60] {
        let mut space = [0; 60];
        let mut put = |at: usize, value: u32| {
            space[at..at + 4].copy_from_slice(&value.to_le_bytes());
        };
        put(0, self.plan.sectors as u32);
        put(4, (self.plan.sectors >> 32) as u32);
        put(8, SEGMENT_LEN_MAX);
        put(12, SEGMENTS_MAX);
        put(20, SECTOR as u32);
        put(36, DISCARD_SECTORS_MAX);
        put(40, DISCARD_RANGES_MAX);
        // Pieces of an overlay's cluster cannot be discarded by themselves.
        put(44, (super::overlay::CLUSTER_LEN / SECTOR) as u32);
        put(48, ZERO_SECTORS_MAX);
        put(52, ZERO_RANGES_MAX);
        // Zeroing with unmap may give space back.
        space[56] = 1;
        space
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

impl From<QueueError> for Refusal {
    fn from(error: QueueError) -> Self {
        Self::Guest(error.into())
    }
}

impl VirtioDevice for Disk {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        let mode = if self.plan.read_only {
            1 << VIRTIO_BLK_F_RO
        } else {
            1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        };
        let limits = 1 << VIRTIO_BLK_F_SIZE_MAX | 1 << VIRTIO_BLK_F_SEG_MAX;
        mode | limits | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_FLUSH
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUES
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_space(&self.config_space(), offset, data);
    }

    fn serve_queue(&mut self, _index: usize, turn: &mut Turn<'_>) -> Result<(), GuestError> {
        while let Some(chain) = turn.next(REQUESTS)? {
            let request = Request::parse(chain, turn.memory())?;
            let written = self.serve(&request, turn)?;
            turn.complete(REQUESTS, request.head, written)?;
        }
        Ok(())
    }

    fn reset(&mut self) {}

    fn flush(&mut self) -> io::Result<()> {
        if self.plan.read_only { Ok(()) } else { self.plan.storage.flush() }
    }

    fn state(&self) -> DeviceState {
        let DiskPlan { sectors, read_only, .. } = self.plan;
        DeviceState::Block(DiskState { sectors, read_only })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        self.state().must_equal(state)
    }

    fn metrics(&self) -> DeviceMetrics {
        DeviceMetrics::Block(self.metrics)
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("plan", &self.plan).finish_non_exhaustive()
    }
}
