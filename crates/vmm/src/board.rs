//! The devices of one life of a machine, where they sit, and whom they interrupt.

use std::sync::Arc;

use devices::bus::{Bus, BusDevice};
use devices::input::InputSink;
use devices::output::Output;
use devices::power::{PowerEvent, PowerSink};
use devices::pvpanic::PvPanic;
use devices::reset::{self, I8042, Reset};
use devices::rtc::{self, Rtc};
use devices::serial::{self, Serial, SerialState};
use devices::virtio::VirtioDevice;
use devices::virtio::balloon::{Balloon, BalloonConfig, BalloonHandle, FrameBalloon};
use devices::virtio::block::{self, Disk, DiskConfig, HostCache, PageCache};
use devices::virtio::console::Console as VirtioConsole;
use devices::virtio::mmio::{self, MmioTransport};
use devices::virtio::net::Net;
use devices::virtio::rng::Rng;
use devices::virtio::vsock::Vsock;
use devices::{IrqLine, Notifier};
use engine::Vm;
use memory::{DeviceView, DiskBlock, FRAME_SIZE, GuestMemory};

use crate::boot::{Platform, layout};
use crate::config::{DiskAccess, DiskPlan, VmPlan};
use crate::console::Console;
use crate::control::Control;
use crate::error::VmError;
use crate::io_thread::Subscriber;
use crate::outcome::End;
use crate::outside::Outside;
use crate::panic_watch::{self, Seen};
use crate::saved::{Devices, SavedError};

/// Devices, wired and described.
pub(crate) struct Board {
    pub(crate) ports: Bus,
    pub(crate) mmio: Bus,
    pub(crate) subscribers: Vec<Subscriber>,
    pub(crate) platform: Platform,
    pub(crate) balloon: BalloonHandle,
    /// For flushing at the end, and for saving.
    pub(crate) transports: Vec<Arc<MmioTransport>>,
    pub(crate) serial: Arc<Serial>,
    pub(crate) rtc: Arc<Rtc>,
    /// Guest memory as devices see it.
    pub(crate) view: DeviceView,
    /// Of each disk.
    pub(crate) page_caches: Vec<PageCache>,
    /// What disks are used for, where somebody listens to what memory has of them.
    pub(crate) first_blocks: Vec<FirstBlock>,
}

/// A disk's block that says what the disk, or a part of it, is used for.
pub(crate) type FirstBlock = (DiskBlock, Box<[u8; FRAME_SIZE]>);

/// Ends the machine from wherever the reason is seen. Holds what it needs weakly: a device must not keep
/// its own machine alive.
#[derive(Clone)]
pub(crate) struct Ending {
    control: Arc<Control>,
    vm: std::sync::Weak<dyn Vm>,
    vcpus: u32,
}

impl Ending {
    pub(crate) fn new(control: &Arc<Control>, vm: &Arc<dyn Vm>, vcpus: u32) -> Self {
        Self { control: Arc::clone(control), vm: Arc::downgrade(vm), vcpus }
    }

    pub(crate) fn end(&self, end: End) {
        self.control.end(end);
        if let Some(vm) = self.vm.upgrade() {
            (0..self.vcpus).for_each(|id| vm.kick(id));
        }
    }

    fn power_sink(&self) -> PowerSink {
        let ending = self.clone();
        Arc::new(move |event| match event {
            PowerEvent::Poweroff => ending.end(End::Poweroff),
            PowerEvent::Reboot => ending.end(End::Reboot),
            PowerEvent::Panic => ending.end(End::Panic),
        })
    }

    /// `output`, where a kernel's panic message is seen on the way.
    fn watched(&self, output: Output) -> Output {
        let watch = self.clone();
        output.with_line_hook(Box::new(move |line| watch.watch_line(line)))
    }

    fn watch_line(&self, line: &[u8]) {
        match panic_watch::look_at(line) {
            Seen::Nothing => {}
            Seen::Panic => self.control.note_panic(),
            Seen::End => self.end(End::Panic),
        }
    }
}

impl Board {
    /// Builds the devices that `plan` asks for, COM1 as it was `saved`.
    #[allow(clippy::too_many_arguments, reason = "what a board is wired to")]
    pub(crate) fn build(
        plan: &VmPlan,
        memory: &Arc<GuestMemory>,
        vm: &Arc<dyn Vm>,
        ending: &Ending,
        console: &Console,
        outside: &Outside,
        host_cache: Option<&Arc<HostCache>>,
        saved: Option<&SerialState>,
    ) -> Result<Self, VmError> {
        let balloon = balloon(plan, memory)?;
        let view = DeviceView::new(Arc::clone(memory));
        let serial = Arc::new(serial(vm, ending, console, saved)?);
        let mut board = Self {
            serial: Arc::clone(&serial),
            rtc: Arc::new(Rtc::new()),
            view: view.clone(),
            ports: Bus::port(),
            mmio: Bus::mmio(),
            subscribers: Vec::new(),
            platform: Platform { vcpus: plan.cpus, virtio_devices: 0, serial: true, pvpanic: true },
            balloon: balloon.handle(),
            transports: Vec::new(),
            page_caches: Vec::new(),
            first_blocks: Vec::new(),
        };
        let typed = Typed::of(&plan.cmdline);
        board.add_power(ending);
        board.add_serial(serial, ending, console, typed)?;
        // Disks come first, so that their names do not depend on what else there is.
        for (number, disk) in plan.disks.iter().enumerate() {
            // A board has room for fewer.
            let number = u8::try_from(number).unwrap_or(u8::MAX);
            let disk = self::disk(disk, number, host_cache)?;
            board.page_caches.push(disk.page_cache().clone());
            if memory.events().is_some() {
                board.first_blocks.extend(insight::beginnings(number, |block| disk.block(block)));
            }
            board.add_virtio(Box::new(Disk::new(disk)), &view, vm)?;
        }
        for network in &outside.networks {
            board.add_virtio(Box::new(Net::new(network.clone())), &view, vm)?;
        }
        board.add_virtio(Box::new(balloon), &view, vm)?;
        board.add_virtio(Box::new(Rng::new()), &view, vm)?;
        board.add_virtio_console(&view, vm, ending, console, typed)?;
        if let Some(device) = vsock(plan, outside)? {
            board.add_virtio(Box::new(device), &view, vm)?;
        }
        Ok(board)
    }

    fn add_power(&mut self, ending: &Ending) {
        let sink = ending.power_sink();
        self.port(
            reset::SLEEP_CONTROL_PORT,
            reset::PORT_COUNT,
            Arc::new(Reset::new(Arc::clone(&sink))),
        );
        self.port(
            reset::I8042_COMMAND_PORT,
            reset::I8042_PORT_COUNT,
            Arc::new(I8042::new(Arc::clone(&sink))),
        );
        self.port(layout::PVPANIC_PORT, 1, Arc::new(PvPanic::new(sink)));
        self.port(rtc::INDEX_PORT, rtc::PORT_COUNT, Arc::clone(&self.rtc) as Arc<_>);
    }

    /// Who is to be saved with it.
    pub(crate) fn devices(&self) -> Devices {
        Devices {
            serial: Arc::downgrade(&self.serial),
            rtc: Arc::downgrade(&self.rtc),
            virtio: self.transports.iter().map(Arc::downgrade).collect(),
        }
    }

    /// Raises the interrupts whose causes the guest has not acknowledged: what was on its way when it was saved may not
    /// have arrived, and drivers bear one too many.
    pub(crate) fn raise_again(&self) {
        self.serial.raise_again();
        self.transports.iter().for_each(|transport| transport.raise_again());
    }

    fn add_serial(
        &mut self,
        serial: Arc<Serial>,
        ending: &Ending,
        console: &Console,
        typed: Typed,
    ) -> Result<(), VmError> {
        self.port(layout::SERIAL_PORT, serial::PORT_COUNT, Arc::clone(&serial) as Arc<_>);
        self.add_input(console, serial, ending, typed == Typed::Serial)
    }

    fn add_virtio_console(
        &mut self,
        view: &DeviceView,
        vm: &Arc<dyn Vm>,
        ending: &Ending,
        console: &Console,
        typed: Typed,
    ) -> Result<(), VmError> {
        let device = VirtioConsole::new(ending.watched(console.output()))
            .map_err(VmError::host("create the virtio console"))?;
        let input = device.input();
        self.add_virtio(Box::new(device), view, vm)?;
        self.add_input(console, input, ending, typed == Typed::Virtio)
    }

    fn add_input(
        &mut self,
        console: &Console,
        sink: Arc<dyn InputSink>,
        ending: &Ending,
        wanted: bool,
    ) -> Result<(), VmError> {
        let leave = ending.clone();
        if wanted && let Some(pump) = console.input(sink, move || leave.end(End::Stopped))? {
            self.subscribers.push(Arc::new(pump));
        }
        Ok(())
    }

    /// Puts a device into the next virtio slot.
    fn add_virtio(
        &mut self,
        device: Box<dyn VirtioDevice>,
        view: &DeviceView,
        vm: &Arc<dyn Vm>,
    ) -> Result<(), VmError> {
        let slot = self.platform.virtio_devices;
        let line = irq_line(vm, layout::VIRTIO_MMIO_GSI + slot);
        let transport = MmioTransport::new(device, view.clone(), line)
            .map_err(VmError::host("create a virtio device"))?;
        let transport = Arc::new(transport);
        let (base, size) = (layout::virtio_mmio(slot), layout::VIRTIO_MMIO_SIZE);
        self.mmio
            .insert(base, size, Arc::clone(&transport) as Arc<_>)
            .expect("virtio slots do not overlap");
        for (index, notifier) in (0..).zip(transport.notifiers()) {
            // Where the engine does not take it, the exit rings the same notifier.
            vm.attach_doorbell(base + mmio::QUEUE_NOTIFY, index, notifier.event_fd())?;
        }
        self.subscribers.push(Arc::clone(&transport) as Arc<_>);
        self.transports.push(transport);
        self.platform.virtio_devices += 1;
        Ok(())
    }

    fn port(&mut self, base: u16, count: u64, device: Arc<dyn BusDevice>) {
        // The layout is ours: two devices at one port are a mistake in this file, found by any test.
        self.ports.insert(base.into(), count, device).expect("the port layout has no overlap");
    }
}

fn serial(
    vm: &Arc<dyn Vm>,
    ending: &Ending,
    console: &Console,
    saved: Option<&SerialState>,
) -> Result<Serial, VmError> {
    let output = ending.watched(console.output());
    let line = irq_line(vm, layout::SERIAL_GSI);
    let failed = VmError::host("create the serial port");
    match saved {
        None => Serial::new(line, output).map_err(failed),
        Some(saved) => {
            let space = Notifier::new().map_err(failed)?;
            let restored = Serial::restore(saved, line, output, space);
            restored.map_err(|error| SavedError::field("board.serial", error).into())
        }
    }
}

/// An edge-triggered line into the IO-APIC.
fn irq_line(vm: &Arc<dyn Vm>, gsi: u32) -> Arc<dyn IrqLine> {
    let vm = Arc::downgrade(vm);
    Arc::new(move || {
        if let Some(vm) = vm.upgrade() {
            vm.pulse_irq(gsi);
        }
    })
}

/// Which console gets what is typed: there is one standard input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Typed {
    Serial,
    Virtio,
}

impl Typed {
    /// The last `console=` is the one that Linux opens as /dev/console.
    fn of(cmdline: &str) -> Self {
        let last = cmdline.split_whitespace().rev().find_map(|word| word.strip_prefix("console="));
        if last.is_some_and(|name| name.starts_with("hvc")) { Self::Virtio } else { Self::Serial }
    }
}

fn balloon(plan: &VmPlan, memory: &Arc<GuestMemory>) -> Result<Balloon, VmError> {
    let config = BalloonConfig {
        guest_pages: u32::try_from(plan.memory.0 / FRAME_SIZE as u64).unwrap_or(u32::MAX),
        deflate_on_oom: true,
        free_page_reporting: true,
    };
    Balloon::new(config, Box::new(FrameBalloon::new(Arc::clone(memory))))
        .map_err(VmError::host("create the balloon"))
}

fn vsock(plan: &VmPlan, outside: &Outside) -> Result<Option<Vsock>, VmError> {
    let asked = plan.vsock.as_ref().zip(outside.vsock.as_ref());
    let device = asked.map(|(config, listener)| Vsock::new(config, Arc::clone(listener)));
    device.transpose().map_err(VmError::host("create the vsock device"))
}

/// `number`: among the VM's disks.
fn disk(
    plan: &DiskPlan,
    number: u8,
    host_cache: Option<&Arc<HostCache>>,
) -> Result<block::DiskPlan, VmError> {
    let host_cache = host_cache.filter(|_| plan.host_cache);
    let bypass_page_cache = host_cache.is_some();
    let disk = DiskConfig { number, bypass_page_cache, ..disk_config(plan) }.plan()?;
    if let PageCache::Unavoidable(why) = disk.page_cache() {
        tracing::warn!("host-cache: {why}: the host's page cache has this disk as well");
    }
    Ok(match host_cache {
        Some(cache) => disk.with_host_cache(cache),
        None => disk,
    })
}

/// The disk as `devices` is asked for it.
pub(crate) fn disk_config(plan: &DiskPlan) -> DiskConfig {
    let overlay = match &plan.access {
        DiskAccess::Overlay(path) => Some(path.clone()),
        DiskAccess::Write | DiskAccess::ReadOnly => None,
    };
    DiskConfig {
        path: plan.path.clone(),
        read_only: plan.access == DiskAccess::ReadOnly,
        overlay,
        serial: String::new(),
        number: 0,
        bypass_page_cache: false,
    }
}
