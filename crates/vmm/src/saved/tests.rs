use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use memory::{DeviceView, Frame, GuestMemory};
use snapshot::{Options, Writer};

use super::wire::{Header, Kind, encode_origin};
use super::*;

/// What a machine of 16 MiB and one vCPU might say.
fn state() -> serde_json::Value {
    let config = serde_json::json!({
        "name": "a", "kernel": "/k", "initrd": null, "cmdline": null, "memory": 16 << 20, "cpus": 1,
        "disks": [], "engine": "translate", "console": "stdio", "report": null,
    });
    let config: VmConfig = serde_json::from_value(config).expect("a configuration");
    let serial = SerialState {
        baud_divisor_low: 0,
        baud_divisor_high: 0,
        interrupt_enable: 0,
        interrupt_identification: 1,
        line_control: 0,
        line_status: 0x60,
        modem_control: 0,
        modem_status: 0,
        scratch: 0,
        input: Vec::new(),
        transmit_pending: false,
    };
    let state = MachineState {
        version: VERSION,
        config,
        engine: "translate".to_owned(),
        processor: Processor::default(),
        vcpus: vec![VcpuState::reset()],
        io_apic: IoApicState { select: 0, id: 0, entries: vec![1 << 16; 24], high: 0 },
        clock: ClockState { kvmclock_ns: 1, unix_ns: 2 },
        board: BoardState { serial, rtc: RtcState::default(), virtio: Vec::new() },
        disks: Vec::new(),
        ballooned: vec![FrameRun { first: 5, count: 2 }, FrameRun { first: 7, count: 1 }],
    };
    serde_json::to_value(state).expect("json")
}

/// Opened from a folder, as any snapshot.
fn open(json: &[u8], memory_bytes: u64) -> Result<Saved, SavedError> {
    let folder = tempfile::tempdir().expect("temporary directory");
    let path = folder.path().join("snapshot");
    let layout = memory::RamLayout::new(memory_bytes).expect("a layout");
    let writer = Writer::create(&path, Options::new(layout)).expect("a writer");
    let all = memory::FrameRange { first: memory::Frame(0), count: layout.frames() };
    writer.leave(all, snapshot::Left::Zero).expect("left out");
    let vm = snapshot::Description {
        saved_at: snapshot::Time { seconds: 0, nanoseconds: 0 },
        writer: "a test".into(),
        engine: "none".into(),
        cpu: snapshot::Cpu::default(),
        vcpus: 1,
        machine_version: VERSION,
        disks: Vec::new(),
        generation: None,
        agent: false,
    };
    writer.finish(vm, json, &[]).expect("whole");
    Saved::open(&path)
}

fn refusal(change: impl FnOnce(&mut serde_json::Value)) -> String {
    let mut json = state();
    change(&mut json);
    let error =
        open(json.to_string().as_bytes(), 16 << 20).err().expect("must be refused").to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn what_can_be_is_taken() {
    let saved = open(state().to_string().as_bytes(), 16 << 20).expect("a machine");
    assert_eq!(serde_json::to_value(&saved.state).expect("json"), state());
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    type Change = fn(&mut serde_json::Value);
    let cases: [(Change, &str); 12] = [
        (|json| json["version"] = 2.into(), "version 2: this program reads version 1"),
        (|json| json["vcpus"] = serde_json::json!([]), "vcpus: 0 of them, config.cpus says 1"),
        (|json| json["config"]["cpus"] = 2.into(), "vcpus: 1 of them"),
        (|json| json["io_apic"]["entries"] = serde_json::json!([1]), "io_apic: entries: 1 of them"),
        (|json| json["io_apic"]["id"] = 16.into(), "io_apic: id 16"),
        (|json| json["io_apic"]["high"] = (1 << 24).into(), "io_apic: high 0x1000000"),
        (|json| json["ballooned"][0]["count"] = 0.into(), "ballooned[0]"),
        (|json| json["ballooned"][1]["first"] = 6.into(), "ballooned[1]"),
        (|json| json["ballooned"][1]["count"] = u32::MAX.into(), "ballooned[1]"),
        (|json| json["io_apic"]["select"] = 256.into(), "256"),
        (|json| json["more"] = 1.into(), "unknown field `more`"),
        (
            |json| {
                json["disks"] = serde_json::json!([{ "path": "/d", "len": 1, "modified_ns": 0 }]);
            },
            "disks: 1 of them, config has 0",
        ),
    ];
    for (change, words) in cases {
        let error = refusal(change);
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn states_that_are_cut_or_strange_are_refused() {
    let json = state().to_string();
    for length in [0, 1, json.len() / 2, json.len() - 1] {
        let error = open(&json.as_bytes()[..length], 16 << 20).err().expect("cut").to_string();
        assert!(error.contains("/snapshot: "), "{error}");
    }
    let error = open(json.as_bytes(), 1 << 20).err().expect("short").to_string();
    assert!(error.contains("image of 1048576 bytes, config.memory is 16777216"), "{error}");
    assert!(open(b"\xff\xfe", 16 << 20).is_err());
    let folder = tempfile::tempdir().expect("temporary directory");
    let error = Saved::open(folder.path()).err().expect("nothing there").to_string();
    assert!(error.contains("manifest"), "{error}");
}

/// What may come of a VM that fails, or wants to do harm: no snapshot, and a clear word.
#[test]
fn a_draft_is_whole_or_gone() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let path = folder.path().join("web");
    let page = [7; memory::FRAME_SIZE];
    let frames = |kind, first, count| Header { kind, first, count }.encode().to_vec();
    let contents = |first| [frames(Kind::Contents, first, 1), page.to_vec()].concat();
    let rest = |first: u32| frames(Kind::Zero, first, 4096 - first);
    let json = state().to_string().into_bytes();
    let machine = [frames(Kind::Machine, 0, json.len() as u32), json].concat();
    let end = frames(Kind::End, 0, 0);
    let cases: [(Vec<Vec<u8>>, &str); 7] = [
        (vec![], "stopped in the middle"),
        (vec![contents(0)], "stopped in the middle"),
        (vec![contents(0)[..100].to_vec()], "stopped in the middle"),
        (vec![contents(0), rest(1), end.clone()], "no state"),
        (vec![contents(0), contents(0)], "told twice"),
        (vec![contents(4096)], "past the end"),
        (vec![b"neither a machine nor a record".to_vec()], "record of kind"),
    ];
    for (sent, expected) in cases {
        let error = kept(&path, &sent.concat()).expect_err(expected).to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        assert_eq!(std::fs::read_dir(&folder).expect("folder").count(), 0, "{expected}");
    }
    let sent = [contents(0), rest(1), machine, end].concat();
    assert_eq!(kept(&path, &sent).expect("whole").frames.stored, 1);
    assert_eq!(Saved::open(&path).expect("a snapshot").state.vcpus.len(), 1);
    // What is there stays when the next one fails.
    kept(&path, &sent[..5000]).expect_err("cut");
    assert!(Saved::open(&path).is_ok());
}

/// In chunks, in the order that was asked for; and all others after them.
#[test]
fn frames_that_are_used_together_are_stored_together() {
    const FRAMES: u32 = 3000;
    let memory = Arc::new(GuestMemory::with_bytes(16 << 20).expect("memory"));
    let view = DeviceView::new(Arc::clone(&memory));
    let contents = |frame: u32| [frame.to_le_bytes(); memory::FRAME_SIZE / 4];
    for frame in 0..FRAMES {
        let gpa = memory.gpa_of(Frame(frame)).expect("in RAM");
        view.write(gpa, contents(frame + 1).as_flattened()).expect("written");
    }
    // Some without contents among them.
    let order: Vec<Frame> = (0..FRAMES + 50).step_by(7).map(Frame).rev().collect();
    let folder = tempfile::tempdir().expect("temporary directory");
    let path = folder.path().join("web");
    let (compression, lanes) = (snapshot::Compression::Lz4, 2);
    let options = DraftOptions { compression, lanes, ..DraftOptions::default() };
    let (draft, sockets) = Draft::create(&path, 16 << 20, options).expect("a draft");
    let lanes = SaveLanes::new(sockets).expect("lanes");
    let known = Known { together: order.clone(), ..Known::default() };
    let state = serde_json::from_value(state()).expect("a state");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(lanes.send(&memory, &known).expect("sent"), FRAMES);
            lanes.send_last(&[], &state).expect("sent");
        });
        draft.keep(&Progress::default()).expect("whole");
    });
    let snapshot = snapshot::Snapshot::open(&path).expect("whole");
    snapshot.verify().expect("all of it");
    for frame in 0..FRAMES {
        let mut page = [0; memory::FRAME_SIZE];
        snapshot.read(Frame(frame), &mut page).expect("read");
        assert!(page == contents(frame + 1).as_flattened(), "{frame}");
    }
    let stored: Vec<Frame> = order.into_iter().filter(|frame| frame.0 < FRAMES).collect();
    let mut batch = snapshot::Batch::new();
    let place = snapshot.place_around(stored[100], 16).expect("an index").expect("a place");
    snapshot.read_place(place, &mut batch).expect("read");
    assert_eq!(batch.frames(), &stored[64..128]);
}

/// Whatever the VM says of where it is from.
#[test]
fn a_frame_is_left_out_only_if_its_block_is_the_same() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let (path, image) = (folder.path().join("web"), folder.path().join("image"));
    let blocks = [[7; memory::FRAME_SIZE], [8; memory::FRAME_SIZE]].concat();
    std::fs::write(&image, [&blocks, &[7; 100][..]].concat()).expect("an image");
    let frames = |kind, first, count| Header { kind, first, count }.encode().to_vec();
    let origin = |first, count, disk, block| {
        let at = memory::DiskBlock { disk, block };
        [frames(Kind::Origin, first, count), encode_origin(at).to_vec()].concat()
    };
    let json = serde_json::to_vec(&[None, Some(&image)]).expect("json");
    let disks = [frames(Kind::Disks, 0, json.len() as u32), json].concat();
    let contents = [
        frames(Kind::Contents, 0, 5),
        vec![7; 5 * memory::FRAME_SIZE],
        frames(Kind::Zero, 5, 4091),
    ];
    let json = state().to_string().into_bytes();
    let machine = [frames(Kind::Machine, 0, json.len() as u32), json, frames(Kind::End, 0, 0)];
    // The same, another, one that ends too early, and no disk that anybody may read.
    let told = [origin(0, 2, 1, 0), origin(2, 1, 1, 2), origin(3, 1, 0, 0), origin(4, 1, 9, 0)];
    let sent = |told: &[Vec<u8>]| {
        [disks.clone(), told.concat(), contents.concat(), machine.concat()].concat()
    };
    let kept_frames = kept(&path, &sent(&told)).expect("whole").frames;
    assert_eq!((kept_frames.disk, kept_frames.stored), (1, 4));
    // But the machine that came has no such disk.
    let error = Saved::open(&path).err().expect("no disk").to_string();
    assert!(error.contains("disk 1: there is none"), "{error}");
    std::fs::remove_dir_all(&path).expect("removed");
    let refused = |sent: &[u8]| kept(&path, sent).expect_err("refused").to_string();
    let error = refused(&sent(&vec![origin(0, 1, 1, 0); 65]));
    assert!(error.contains("more origins than frames"), "{error}");
    let error = refused(&[frames(Kind::Disks, 0, 2), b"{}".to_vec()].concat());
    assert!(error.contains("disks: "), "{error}");
}

/// A draft of 16 MiB by one lane, on which `sent` comes.
fn kept(path: &std::path::Path, sent: &[u8]) -> Result<Kept, SavedError> {
    let (draft, mut sockets) = Draft::create(path, 16 << 20, DraftOptions::default())?;
    let mut to = UnixStream::from(sockets.remove(0));
    std::thread::scope(|scope| {
        // It may hang up in the middle.
        scope.spawn(move || to.write_all(sent));
        draft.keep(&Progress::default())
    })
}
