//! Every refusal, by the words that the user sees.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use engine_translate::Predict;
use tempfile::TempDir;

use super::*;

struct Host {
    dir: TempDir,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::write(dir.path().join("vmlinuz"), b"kernel").expect("kernel");
        fs::write(dir.path().join("disk.img"), [0; 4096]).expect("disk");
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self) -> VmConfig {
        VmConfig {
            name: None,
            kernel: self.path("vmlinuz"),
            initrd: None,
            cmdline: None,
            memory: Bytes(64 << 20),
            cpus: 1,
            disks: Vec::new(),
            nets: Vec::new(),
            cpu_model: CpuModel::Full,
            engine: EngineChoice::Auto,
            console: ConsoleConfig::Stdio,
            report: None,
            cache_log: None,
            insight: true,
            host_cache: None,
            classes: false,
            estimate_log: None,
            gdb: None,
            vsock: None,
            translation: TranslationConfig::default(),
        }
    }

    fn disk(&self, name: &str) -> DiskConfig {
        DiskConfig { path: self.path(name), read_only: false, overlay: None, no_host_cache: false }
    }
}

fn refusal(config: VmConfig) -> String {
    let line = VmPlan::new(config).expect_err("must be refused").to_string();
    assert!(!line.contains('\n'), "{line}");
    line
}

fn with(host: &Host, change: impl FnOnce(&mut VmConfig)) -> VmConfig {
    let mut config = host.config();
    change(&mut config);
    config
}

#[test]
fn a_host_cache_is_of_whole_blocks_and_fits_into_the_host() {
    let host = Host::new();
    let sized = |size, disks: &[&str]| {
        with(&host, |config| {
            config.disks = disks.iter().map(|name| host.disk(name)).collect();
            config.host_cache =
                Some(HostCacheConfig { size: Bytes(size), policy: HostCachePolicy::Eviction });
        })
    };
    let plan = VmPlan::new(sized(1 << 20, &["disk.img"])).expect("plan");
    assert_eq!(plan.host_cache.expect("a cache").size, Bytes(1 << 20));
    for size in [0, (1 << 20) - 4096, (1 << 20) + 512, 1 << 50, u64::MAX] {
        let line = refusal(sized(size, &["disk.img"]));
        assert!(line.starts_with("host-cache ") && line.contains("multiple of 4K"), "{line}");
    }
    assert!(refusal(sized(1 << 20, &[])).contains("there is no disk"));
}

#[test]
fn the_defaults_are_filled_in() {
    let host = Host::new();
    let plan = VmPlan::new(host.config()).expect("plan");
    assert_eq!(plan.name, format!("vm-{}", std::process::id()));
    assert_eq!(plan.cmdline, DEFAULT_CMDLINE);
    let kvm = engine_kvm::probe().is_ok();
    assert_eq!(plan.engine.kind, if kvm { EngineKind::Kvm } else { EngineKind::Translate });
}

#[test]
fn numbers_have_limits() {
    let host = Host::new();
    for memory in [0, 4096, (16 << 20) - 4096, (16 << 20) + 1, (1 << 40) + 4096] {
        let line = refusal(with(&host, |config| config.memory = Bytes(memory)));
        assert!(line.ends_with("ask for 16M to 1T, a multiple of 4K"), "{line}");
    }
    for cpus in [0, 65] {
        let line = refusal(with(&host, |config| config.cpus = cpus));
        assert!(line.ends_with("ask for 1 to 64"), "{line}");
    }
    for memory in [16 << 20, 1 << 40] {
        VmPlan::new(with(&host, |config| config.memory = Bytes(memory))).expect("plan");
    }
}

#[test]
fn names_are_safe_as_file_names() {
    let host = Host::new();
    let long = "a".repeat(65);
    for name in ["", ".", "..", ".hidden", "-x", "a/b", "a b", "é", "a\n", long.as_str()] {
        let line = refusal(with(&host, |config| config.name = Some(name.to_owned())));
        assert!(line.contains("use 1 to 64 letters"), "{line}");
    }
    for name in ["a", "web-1", "0.x_Y", &long[1..]] {
        let plan = VmPlan::new(with(&host, |config| config.name = Some(name.to_owned())));
        assert_eq!(plan.expect("plan").name, name);
    }
}

#[test]
fn command_lines_have_limits() {
    let host = Host::new();
    let line = refusal(with(&host, |config| config.cmdline = Some("x".repeat(2048))));
    assert!(line.contains("2048 bytes"), "{line}");
    let line = refusal(with(&host, |config| config.cmdline = Some("quiet\0".to_owned())));
    assert!(line.contains("at byte 5"), "{line}");
}

#[test]
fn kernels_and_initrds_are_looked_at() {
    let host = Host::new();
    let line = refusal(with(&host, |config| config.kernel = host.path("none")));
    assert!(line.contains("kernel ") && line.contains("check the path"), "{line}");
    let line = refusal(with(&host, |config| config.kernel = host.path("")));
    assert!(line.contains("is a directory: name a regular file"), "{line}");
    fs::write(host.path("empty"), b"").expect("file");
    let line = refusal(with(&host, |config| config.initrd = Some(host.path("empty"))));
    assert!(line.contains("initrd") && line.contains("is empty"), "{line}");
    let large = fs::File::create(host.path("large")).expect("file");
    large.set_len(64 << 20).expect("length");
    let line = refusal(with(&host, |config| config.initrd = Some(host.path("large"))));
    assert!(line.contains("67108864 bytes, memory 64M"), "{line}");
}

#[test]
fn disks_are_looked_at() {
    let host = Host::new();
    fs::write(host.path("odd.img"), [0; 513]).expect("disk");
    let disks = |disks: Vec<DiskConfig>| with(&host, |config| config.disks = disks);
    let line = refusal(disks(vec![host.disk("odd.img")]));
    assert!(line.contains("513 bytes"), "{line}");
    let line = refusal(disks(vec![host.disk("none.img")]));
    assert!(line.contains("check the path"), "{line}");
    let line = refusal(disks(vec![host.disk("disk.img"), host.disk("disk.img")]));
    assert!(line.contains("give each a file of its own"), "{line}");
    let plan = VmPlan::new(disks(vec![host.disk("disk.img")])).expect("plan");
    assert_eq!(plan.disks[0].length, 4096);
    assert_eq!(plan.disks[0].access, DiskAccess::Write);
}

#[test]
fn a_disk_may_be_shared_as_long_as_nobody_writes_to_it() {
    let host = Host::new();
    let read_only = DiskConfig { read_only: true, ..host.disk("disk.img") };
    let overlaid = DiskConfig { overlay: Some(host.path("new.cow")), ..host.disk("disk.img") };
    let config =
        with(&host, |config| config.disks = vec![read_only.clone(), read_only, overlaid.clone()]);
    let plan = VmPlan::new(config).expect("plan");
    assert_eq!(plan.disks[0].access, DiskAccess::ReadOnly);
    assert_eq!(plan.disks[2].access, DiskAccess::Overlay(host.path("new.cow")));
    assert!(!host.path("new.cow").exists(), "checking creates nothing");
    let line = refusal(with(&host, |config| config.disks = vec![overlaid.clone(), overlaid]));
    assert!(line.contains("as overlay"), "{line}");
}

#[test]
fn an_overlay_is_not_its_base_by_any_name() {
    let host = Host::new();
    symlink(host.path("disk.img"), host.path("alias")).expect("link");
    for name in ["disk.img", "alias"] {
        let disk = DiskConfig { overlay: Some(host.path(name)), ..host.disk("disk.img") };
        let line = refusal(with(&host, |config| config.disks = vec![disk]));
        assert!(line.contains("written as overlay and used as disk"), "{line}");
    }
}

#[test]
fn outputs_must_be_possible() {
    let host = Host::new();
    let line = refusal(with(&host, |config| config.report = Some(host.path("no/report.json"))));
    assert!(line.contains("report") && line.contains("directory that exists"), "{line}");
    let line =
        refusal(with(&host, |config| config.console = ConsoleConfig::File(host.path("vmlinuz"))));
    assert!(line.contains("written as console and used as kernel"), "{line}");
    let null = Path::new("/dev/null");
    let config = with(&host, |config| {
        config.console = ConsoleConfig::File(null.to_owned());
        config.report = Some(null.to_owned());
    });
    VmPlan::new(config).expect("plan");
}

#[test]
fn kvm_is_refused_with_what_to_do_instead() {
    let host = Host::new();
    let config = with(&host, |config| config.engine = EngineChoice::Kvm);
    match engine_kvm::probe() {
        Ok(()) => assert_eq!(VmPlan::new(config).expect("plan").engine.kind, EngineKind::Kvm),
        Err(_) => {
            let line = refusal(config);
            assert!(line.contains("--engine translate"), "{line}");
        }
    }
}

#[test]
fn a_vsock_is_looked_at() {
    let host = Host::new();
    let vsock = |cid, name| {
        with(&host, |config| config.vsock = Some(VsockConfig::new(cid, host.path(name))))
    };
    let line = refusal(vsock(2, "vsock"));
    assert!(line.contains("cid 2") && line.contains("3 to 4294967294"), "{line}");
    let line = refusal(vsock(3, "disk.img"));
    assert!(line.contains("disk.img is there and is no socket"), "{line}");
    let line = refusal(vsock(3, "no/vsock"));
    assert!(line.contains("name one in a directory of yours"), "{line}");
    let overlaid = |number| {
        let overlay = Some(host.path(&format!("{number}.cow")));
        DiskConfig { overlay, ..host.disk("disk.img") }
    };
    let config = VmConfig { disks: (0..16).map(overlaid).collect(), ..vsock(3, "vsock") };
    let line = refusal(config.clone());
    assert!(line.contains("16 disks are refused: at most 15"), "{line}");
    VmPlan::new(VmConfig { vsock: None, ..config }).expect("plan");
    VmPlan::new(vsock(3, "vsock")).expect("plan");
    assert!(!host.path("vsock").exists(), "checking creates nothing");
}

fn net(backend: NetBackend) -> NetConfig {
    NetConfig { backend, mac: None, mtu: None }
}

#[test]
fn networks_have_addresses_that_stay() {
    let host = Host::new();
    let nets = || vec![net(NetBackend::Passt(Vec::new())), net(NetBackend::Tap("tap0".into()))];
    let name = |name: &str| Some(name.to_owned());
    let plan = |name| VmPlan::new(with(&host, |c| (c.nets, c.name) = (nets(), name)));
    let (web, again, other) = (plan(name("web")), plan(name("web")), plan(name("other")));
    let macs = |plan: Result<VmPlan, _>| plan.expect("plan").nets.iter().map(|n| n.mac).collect();
    let (web, again, other): (Vec<_>, Vec<_>, Vec<_>) = (macs(web), macs(again), macs(other));
    assert_eq!(web, again);
    assert!(web[0] != web[1] && web[0] != other[0]);
}

#[test]
fn networks_are_refused() {
    let host = Host::new();
    let passt = || net(NetBackend::Passt(Vec::new()));
    let refuse = |nets: Vec<NetConfig>| refusal(with(&host, |c| c.nets = nets));
    let line = refuse(vec![passt(); 17]);
    assert!(line.contains("17 network interfaces beside 0 disks"), "{line}");
    let line = refuse(vec![NetConfig { mtu: Some(67), ..passt() }]);
    assert!(line.contains("mtu 67") && line.contains("65520"), "{line}");
    let line = refuse(vec![net(NetBackend::Tap("a name that is long".into()))]);
    assert!(line.contains("1 to 15 bytes"), "{line}");
    let mac = "52:54:00:12:34:56".parse().ok();
    let line = refuse(vec![NetConfig { mac, ..passt() }; 2]);
    assert!(line.contains("52:54:00:12:34:56") && line.contains("mac="), "{line}");
}

#[test]
fn the_translator_takes_what_it_can_have() {
    let host = Host::new();
    let translated = |change: fn(&mut TranslationConfig)| {
        let mut config = host.config();
        config.engine = EngineChoice::Translate;
        change(&mut config.translation);
        config
    };
    let line = refusal(translated(|translation| translation.hot = Some(0)));
    assert!(line.starts_with("--translate hot=0 is refused"), "{line}");
    for code in [0, (16 << 10) - 1, (128 << 20) + 1, u64::MAX] {
        let mut config = translated(|_| ());
        config.translation.code = Some(Bytes(code));
        assert!(refusal(config).ends_with("ask for 16K to 128M"));
    }
    let plan = VmPlan::new(translated(|translation| {
        translation.hot = Some(1);
        translation.code = Some(Bytes(16 << 10));
        translation.without.push("no-links".into());
        translation.perf_map = true;
    }));
    let plan = plan.expect("plan");
    assert!(plan.perf_map && plan.translation.translate && !plan.translation.native.link);
    assert_eq!((plan.translation.hot, plan.translation.code_bytes), (1, 16 << 10));
    let plan = VmPlan::new(translated(|_| ())).expect("plan");
    assert_eq!(plan.translation, TranslationOptions::default());
    let predict = |paths, profile| {
        let config = TranslationConfig { paths, profile, ..TranslationConfig::default() };
        config.options(EngineKind::Translate).expect("options").predict
    };
    assert_eq!(predict(None, None), Predict::Programs);
    assert_eq!(predict(Some(Paths::Pin), None), Predict::Nothing, "as published");
    assert_eq!(predict(None, Some(ProfileConfig::Counters)), Predict::Nothing);
    assert_eq!(predict(Some(Paths::Pin), Some(ProfileConfig::Predict)), Predict::Everything);
}

/// The plan of an engine is made before; here only what it says to KVM.
#[test]
fn nothing_is_translated_on_kvm() {
    let none = TranslationConfig::default();
    none.options(EngineKind::Kvm).expect("nothing asked");
    for asked in [
        TranslationConfig { stats: true, ..none.clone() },
        TranslationConfig { hot: Some(3), ..none.clone() },
        TranslationConfig { perf_map: true, ..none },
    ] {
        let line = asked.options(EngineKind::Kvm).expect_err("refused").to_string();
        assert!(line.ends_with("add --engine translate"), "{line}");
    }
}
