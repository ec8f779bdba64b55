//! The running device.

use std::fmt;
use std::io;

use super::config::{
    DEFLATE, F_DEFLATE_ON_OOM, F_MUST_TELL_HOST, F_REPORTING, F_STATISTICS, INFLATE, PAGE_SIZE,
    PAGES_LIMIT, QUEUES,
};
use super::handle::Shared;
use super::statistics::BYTES_LIMIT;
use super::{
    BalloonConfig, BalloonHandle, BalloonMemory, BalloonMetrics, BalloonState, GuestStatistics,
    PageNumber, PageRange,
};
use crate::Notifier;
use crate::virtio::queue::{Chain, Segment};
use crate::virtio::{
    DeviceKind, DeviceMetrics, DeviceState, GuestError, RestoreError, Turn, VirtioDevice,
    read_space,
};

/// Offset and length of `actual`, the only field the driver writes (5.5.4).
const ACTUAL_OFFSET: usize = 4;
const ACTUAL_LEN: usize = 4;

/// A balloon.
pub struct Balloon {
    config: BalloonConfig,
    memory: Box<dyn BalloonMemory>,
    handle: BalloonHandle,
    roles: Roles,
    /// Head of the statistics request in the device's hands.
    held_statistics: Option<u16>,
    metrics: BalloonMetrics,
}

/// Which queue does what besides inflating (0) and deflating (1).
///
/// The specification numbers statistics 2, free page hints 3 and reports 4, present or not (5.5.2).
/// Linux numbers only those that are negotiated, one after the other. The two differ when hints
/// are not offered; which one the driver means shows in the queues it has set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Roles {
    statistics: Option<usize>,
    reporting: Option<usize>,
}

impl Roles {
    fn new(features: u64, ready: &[bool]) -> Self {
        let is_ready = |index: usize| ready.get(index).copied().unwrap_or(false);
        let statistics = (features & F_STATISTICS != 0).then_some(2);
        let next = if statistics.is_some() { 3 } else { 2 };
        let reporting = (features & F_REPORTING != 0).then(|| if is_ready(4) { 4 } else { next });
        Self { statistics, reporting }
    }
}

impl Balloon {
    /// A balloon over `memory`, empty.
    ///
    /// # Errors
    /// The host is out of file descriptors.
    pub fn new(config: BalloonConfig, memory: Box<dyn BalloonMemory>) -> io::Result<Self> {
        Ok(Self {
            config,
            memory,
            handle: BalloonHandle::new(config.guest_pages)?,
            roles: Roles::default(),
            held_statistics: None,
            metrics: BalloonMetrics::default(),
        })
    }

    /// The balloon's controls.
    pub fn handle(&self) -> BalloonHandle {
        self.handle.clone()
    }

    fn shared(&self) -> &Shared {
        self.handle.shared()
    }

    fn serve_pages(&mut self, index: usize, turn: &mut Turn<'_>) -> Result<(), GuestError> {
        while let Some(chain) = turn.next(index)? {
            let pages = page_numbers(&chain, turn)?;
            let (acted, counter) = if index == INFLATE {
                (self.memory.inflate(&pages), &mut self.metrics.inflated_pages)
            } else {
                (self.memory.deflate(&pages), &mut self.metrics.deflated_pages)
            };
            *counter += acted;
            self.metrics.bad_pages += (pages.len() as u64).saturating_sub(acted);
            turn.spend(acted * PAGE_SIZE);
            turn.complete(index, chain.head, 0)?;
        }
        Ok(())
    }

    fn serve_reports(&mut self, index: usize, turn: &mut Turn<'_>) -> Result<(), GuestError> {
        while let Some(chain) = turn.next(index)? {
            let ranges: Vec<_> = chain.writable.iter().filter_map(whole_pages).collect();
            let reported = self.memory.report(&ranges);
            self.metrics.reported_pages += reported;
            turn.spend(reported * PAGE_SIZE);
            turn.complete(index, chain.head, 0)?;
        }
        Ok(())
    }

    fn take_statistics(&mut self, index: usize, turn: &mut Turn<'_>) -> Result<(), GuestError> {
        while let Some(chain) = turn.next(index)? {
            let mut bytes = [0; BYTES_LIMIT];
            let len = chain.readable.len().min(BYTES_LIMIT as u64) as usize;
            chain.readable.read(turn.memory(), 0, &mut bytes[..len])?;
            self.shared().set_statistics(Some(GuestStatistics::parse(&bytes[..len])));
            self.metrics.statistics += 1;
            // There should be only one at a time; an earlier one goes back.
            if let Some(earlier) = self.held_statistics.replace(chain.head) {
                turn.complete(index, earlier, 0)?;
            }
        }
        self.ask_for_statistics(index, turn)
    }

    /// Giving the request back is the question; the next request is the answer (5.5.6.3).
    fn ask_for_statistics(&mut self, index: usize, turn: &mut Turn<'_>) -> Result<(), GuestError> {
        if !self.shared().statistics_wanted() {
            return Ok(());
        }
        if let Some(head) = self.held_statistics.take() {
            self.shared().statistics_asked();
            turn.complete(index, head, 0)?;
        }
        Ok(())
    }
}

fn page_numbers(chain: &Chain, turn: &Turn<'_>) -> Result<Vec<PageNumber>, GuestError> {
    const LEN: u64 = size_of::<u32>() as u64;
    let count = chain.readable.len() / LEN;
    if count > PAGES_LIMIT {
        let rule = "more than 1024 pages in one request";
        return Err(GuestError::Device { kind: DeviceKind::Balloon, rule });
    }
    let mut bytes = vec![0; (count * LEN) as usize];
    chain.readable.read(turn.memory(), 0, &mut bytes)?;
    let numbers = bytes.as_chunks().0.iter();
    Ok(numbers.map(|number| PageNumber(u32::from_le_bytes(*number).into())).collect())
}

/// The pages that lie wholly inside `segment`.
fn whole_pages(segment: &Segment) -> Option<PageRange> {
    let first = segment.address.0.div_ceil(PAGE_SIZE);
    let end = (segment.address.0 + segment.len) / PAGE_SIZE;
    (first < end).then(|| PageRange { first: PageNumber(first), count: end - first })
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn features(&self) -> u64 {
        let mut features = F_STATISTICS | F_MUST_TELL_HOST;
        if self.config.deflate_on_oom {
            features |= F_DEFLATE_ON_OOM;
        }
        if self.config.free_page_reporting {
            features |= F_REPORTING;
        }
        features
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUES
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let mut space = [0; 8];
        space[..ACTUAL_OFFSET].copy_from_slice(&self.handle.target().to_le_bytes());
        space[ACTUAL_OFFSET..].copy_from_slice(&self.handle.actual().to_le_bytes());
        read_space(&space, offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        let mut actual = self.handle.actual().to_le_bytes();
        for (at, &byte) in (offset..).zip(data) {
            if let Some(slot) = at.checked_sub(ACTUAL_OFFSET).filter(|&i| i < ACTUAL_LEN) {
                actual[slot] = byte;
            }
        }
        self.shared().set_actual(u32::from_le_bytes(actual));
    }

    fn activate(&mut self, features: u64, ready: &[bool]) {
        self.roles = Roles::new(features, ready);
    }

    fn serve_queue(&mut self, index: usize, turn: &mut Turn<'_>) -> Result<(), GuestError> {
        match index {
            INFLATE | DEFLATE => self.serve_pages(index, turn),
            _ if self.roles.statistics == Some(index) => self.take_statistics(index, turn),
            _ if self.roles.reporting == Some(index) => self.serve_reports(index, turn),
            _ => Ok(()),
        }
    }

    fn wake(&self) -> Option<Notifier> {
        Some(self.shared().wake.clone())
    }

    fn serve_wake(&mut self, turn: &mut Turn<'_>) -> Result<(), GuestError> {
        if self.shared().take_target_changed() {
            turn.change_config();
        }
        match self.roles.statistics {
            Some(index) => self.ask_for_statistics(index, turn),
            None => Ok(()),
        }
    }

    fn reset(&mut self) {
        // The target stays: the next driver must meet it too.
        self.roles = Roles::default();
        self.held_statistics = None;
        self.shared().set_actual(0);
        self.shared().set_statistics(None);
    }

    fn state(&self) -> DeviceState {
        DeviceState::Balloon(BalloonState {
            target: self.handle.target(),
            actual: self.handle.actual(),
            held_statistics: self.held_statistics,
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Balloon(state) = state else {
            return Err(RestoreError::Kind { expected: DeviceKind::Balloon });
        };
        if state.target > self.config.guest_pages {
            let what = format!("balloon target {} exceeds guest memory", state.target);
            return Err(RestoreError::Differs { what });
        }
        self.shared().set_target(state.target);
        self.shared().set_actual(state.actual);
        self.held_statistics = state.held_statistics;
        Ok(())
    }

    fn metrics(&self) -> DeviceMetrics {
        DeviceMetrics::Balloon(self.metrics)
    }
}

impl fmt::Debug for Balloon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balloon").field("config", &self.config).finish_non_exhaustive()
    }
}
