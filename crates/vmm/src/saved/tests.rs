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
    std::fs::write(folder.path().join("machine.json"), json).expect("written");
    let memory = std::fs::File::create(folder.path().join("memory.img")).expect("made");
    memory.set_len(memory_bytes).expect("its length");
    Saved::open(folder.path())
}

fn refusal(change: impl FnOnce(&mut serde_json::Value)) -> String {
    let mut json = state();
    change(&mut json);
    let error =
        open(json.to_string().as_bytes(), 16 << 20).expect_err("must be refused").to_string();
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
fn files_that_are_cut_or_strange_are_refused() {
    let json = state().to_string();
    for length in [0, 1, json.len() / 2, json.len() - 1] {
        let error = open(&json.as_bytes()[..length], 16 << 20).expect_err("cut").to_string();
        assert!(error.contains("machine.json"), "{error}");
    }
    let error = open(json.as_bytes(), 4096).expect_err("short").to_string();
    assert!(error.contains("memory.img: 4096 bytes, expected 16777216"), "{error}");
    assert!(open(b"\xff\xfe", 16 << 20).is_err());
    let folder = tempfile::tempdir().expect("temporary directory");
    let error = Saved::open(folder.path()).expect_err("nothing there").to_string();
    assert!(error.contains("machine.json"), "{error}");
}

#[test]
fn a_draft_is_whole_or_gone() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let path = folder.path().join("web");
    let (draft, _) = Draft::create(&path).expect("a draft");
    assert!(Draft::create(&path).is_err(), "two at the same time");
    drop(draft);
    assert_eq!(std::fs::read_dir(&folder).expect("folder").count(), 0);
    let (draft, _) = Draft::create(&path).expect("a draft");
    // What cannot be given its name is not lost.
    std::fs::create_dir_all(path.join("meanwhile")).expect("somebody else's");
    let error = draft.finish().expect_err("something is there").to_string();
    assert!(error.contains("web.new"), "{error}");
    assert!(folder.path().join("web.new/memory.img").is_file());
    std::fs::remove_dir_all(&path).expect("removed");
    std::fs::remove_dir_all(folder.path().join("web.new")).expect("removed");
    let (draft, _) = Draft::create(&path).expect("a draft");
    draft.finish().expect("whole");
    assert!(path.join("memory.img").is_file());
    let error = Draft::create(&path).expect_err("something is there").to_string();
    assert!(error.contains("name a path where nothing is"), "{error}");
}
