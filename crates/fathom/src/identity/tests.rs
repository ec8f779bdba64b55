//! What is asked becomes a change of each VM, or is refused before anything starts.

use super::*;

use clap::Parser;
use vmm::config::{NetConfig, VsockConfig};

use crate::arguments::{Arguments, Command};

fn asked(options: &str) -> IdentityArguments {
    let line = format!("fathom activate web.snapshot --count 3 {options}");
    let arguments = Arguments::try_parse_from(line.split_whitespace()).expect("good");
    let Command::Activate(arguments) = arguments.command else { panic!("activate") };
    arguments.identity
}

fn config(vsock: bool, nets: usize) -> VmConfig {
    let run = "fathom run --kernel k --memory 256M --cpus 2";
    let arguments = Arguments::try_parse_from(run.split(' ')).expect("good");
    let Command::Run(arguments) = arguments.command else { panic!("run") };
    let mut config = VmConfig::from(*arguments);
    config.vsock = vsock.then(|| VsockConfig::new(3, "/run/v"));
    let net = NetConfig { backend: NetBackend::Passt(Vec::new()), mac: None, mtu: None };
    config.nets = vec![net; nets];
    config
}

fn names() -> Vec<String> {
    ["a-1", "a-2", "a-3"].map(str::to_owned).to_vec()
}

fn changed(options: &str, nets: usize) -> Vec<Change> {
    changes(&asked(options), &config(true, nets), &names()).expect("good")
}

fn refused(options: &str, config: &VmConfig) -> String {
    changes(&asked(options), config, &names()).expect_err(options).to_string()
}

#[test]
fn memory_needs_no_agent() {
    let changes = changes(&asked("--memory 192M"), &config(false, 1), &names()).expect("good");
    assert_eq!(changes.len(), 3);
    for change in &changes {
        assert_eq!(change.balloon_bytes, Some(64 << 20));
        assert!(!change.needs_agent());
        let mut own = config(false, 1);
        change.configure_plan(&mut own);
        assert_eq!(own, config(false, 1));
    }
    let most = refused("--memory 257M", &config(true, 0));
    assert_eq!(most, "--memory: 257M is refused: it was started with 256M, which is the most");
    assert!(refused("--memory 0", &config(true, 0)).contains("0 is refused"));
}

#[test]
fn each_has_its_own() {
    let options = "--hostname web{n} --address 10.0.0.{n+9}/24,gateway=10.0.0.1 --address 10.1.0.{n}/24,dev=lo \
                   --cpus 2 --net tap=tap{n} --run true";
    let changes = changed(options, 2);
    let identity = changes[1].identity.as_ref().expect("an identity");
    assert_eq!(identity.hostname.as_deref(), Some("web2"));
    assert_eq!(identity.cpus, Some(2));
    let own: Vec<_> = (0..2).map(|index| MacAddress::of_vm("a-2", index)).collect();
    assert_eq!(changes[1].macs, own);
    let [first, second, lo] = &identity.interfaces[..] else { panic!("{identity:?}") };
    assert_eq!((&first.which, &second.which), (&Which::Place(0), &Which::Place(1)));
    assert_eq!(first.addresses, [Address { ip: [10, 0, 0, 11].into(), prefix: 24 }]);
    assert_eq!(first.gateway, Some([10, 0, 0, 1].into()));
    assert_eq!((&second.mac, second.addresses.len()), (&Some(own[1].to_string()), 0));
    assert_eq!((&lo.which, &lo.mac), (&Which::Name("lo".into()), &None));
    let mut own = config(true, 2);
    changes[2].configure_plan(&mut own);
    assert_eq!(own.nets[0].backend, NetBackend::Tap("tap3".into()));
    assert_eq!(own.nets[1].backend, NetBackend::Passt(Vec::new()));
    assert_eq!(own.nets[1].mac, Some(MacAddress::of_vm("a-3", 1)));
    let hosts = changes[0].hosts("a-1");
    assert_eq!(hosts.len(), 2);
    assert!(hosts.iter().all(|host| host.name == "web1"));
}

#[test]
fn who_is_told_anything_has_its_own_name() {
    let changes = changed("--cpus 1", 0);
    let hostname = |change: &Change| change.identity.as_ref().and_then(|who| who.hostname.clone());
    assert_eq!(changes.iter().filter_map(hostname).collect::<Vec<_>>(), names());
}

#[test]
fn an_agent_needs_vsock() {
    for option in ["--hostname h{n}", "--cpus 1", "--run true", "--dns 10.0.0.1", "--net tap=t{n}"]
    {
        let refused = refused(option, &config(false, 1));
        let name = option.split(' ').next().expect("an option");
        assert!(refused.starts_with(&format!("{name}: it needs the agent")), "{refused}");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    for (options, reason) in [
        ("--hostname web", "--hostname: web is asked for a-1 and a-2: put {n} into it"),
        ("--hostname web_{n}", "--hostname: `web_1` is no name"),
        ("--hostname web{n*2}", "--hostname: `{n*2}`: write {n}"),
        ("--address 10.0.0.5/24", "--address: 10.0.0.5 is asked for a-1 and a-2"),
        ("--address 10.0.0.{n+253}/24", "--address: 10.0.0.255/24 is its broadcast address"),
        ("--address 10.0.0.{n+254}/24", "is its broadcast address"),
        ("--mac 52:54:00:00:00:01", "--mac: 52:54:00:00:00:01 is asked for a-1 and a-2"),
        ("--mac 53:54:00:00:00:0{n}", "--mac: "),
        ("--cpus 3", "--cpus: 3 are refused: it was started with 2, which is the most"),
        ("--cpus 0", "--cpus: 0 are refused"),
        ("--net tap=t", "--net: TAP interface t is asked for a-1 and a-2"),
        ("--net passt,tcp=8080:80", "--net: Tcp port 8080 of the host is asked"),
        ("--net tap=t{n},mac=52:54:00:00:00:01", "--net: mac= has an option"),
        ("--net bridge", "--net: `bridge` is no network"),
    ] {
        let refused = refused(options, &config(true, 1));
        assert!(refused.contains(reason), "{options}: {refused}");
    }
    for options in ["--mac 52:54:00:00:00:0{n}", "--address 10.0.0.{n}/24", "--net tap=t{n}"] {
        let refused = refused(options, &config(true, 0));
        assert!(refused.contains("it was saved without a network"), "{options}: {refused}");
    }
}
