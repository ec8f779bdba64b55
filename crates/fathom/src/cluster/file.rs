//! The file that describes a cluster: TOML, one `[[vm]]` a group of members that differ by their numbers.
//!
//! ```toml
//! [[vm]]
//! name = "web"                          # web-1, web-2; or with {n} where it is wanted
//! count = 2
//! substrate = "web.snapshot"            # beside this file, or as a path
//! memory = "128M"
//! cpus = 1
//! hostname = "web{n}"
//! address = "192.168.77.{n+9}/24"       # ,dev=NAME for an interface that is not the first network
//! gateway = "192.168.77.1"
//! net = "tap=tap{n}"
//! run = "systemctl start nginx"
//! ```

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use vmm::config::Bytes;

use crate::arguments::IdentityArguments;
use crate::identity::template::expand;

/// Of all groups together.
const MEMBERS_MAX: usize = 4096;

/// What is wrong, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    /// From 1 on.
    pub(super) line: usize,
    pub(super) why: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cluster {
    vm: Vec<Spanned<Vm>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vm {
    name: Spanned<String>,
    count: Option<Spanned<i64>>,
    substrate: Spanned<String>,
    memory: Option<Spanned<String>>,
    cpus: Option<Spanned<i64>>,
    hostname: Option<Spanned<String>>,
    address: Option<Spanned<String>>,
    gateway: Option<Spanned<String>>,
    mac: Option<Spanned<String>>,
    net: Option<Spanned<String>>,
    run: Option<Spanned<String>>,
}

/// Members that differ by their numbers.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) names: Vec<String>,
    pub(super) substrate: String,
    pub(super) asked: IdentityArguments,
    /// In which line each key is.
    lines: Vec<(&'static str, usize)>,
    /// Where it begins.
    begins: usize,
}

impl Group {
    /// In which line a key is; where it is absent, the group.
    pub(super) fn line(&self, key: &str) -> usize {
        let found = self.lines.iter().find(|(name, _)| *name == key);
        found.map_or(self.begins, |(_, line)| *line)
    }

    pub(super) fn mistake(&self, key: &str, why: String) -> Mistake {
        Mistake { line: self.line(key), why: format!("{key}: {why}") }
    }

    pub(super) fn mistake_without_key(&self, key: &str, why: String) -> Mistake {
        Mistake { line: self.line(key), why }
    }
}

/// All groups of a file, each checked by itself.
pub(super) fn groups(text: &str) -> Result<Vec<Group>, Mistake> {
    let cluster: Cluster = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let why = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        Mistake { line: line_of(text, at), why }
    })?;
    if cluster.vm.is_empty() {
        return Err(Mistake { line: 1, why: "it has no [[vm]]".to_owned() });
    }
    let groups = cluster.vm.into_iter().map(|vm| group(text, vm));
    let groups: Vec<Group> = groups.collect::<Result<_, _>>()?;
    let members: usize = groups.iter().map(|group| group.names.len()).sum();
    if members > MEMBERS_MAX {
        let why = format!("{members} members are too many, {MEMBERS_MAX} can be");
        return Err(Mistake { line: 1, why });
    }
    Ok(groups)
}

fn group(text: &str, vm: Spanned<Vm>) -> Result<Group, Mistake> {
    let begins = line_of(text, vm.span().start);
    let vm = vm.into_inner();
    let at = |span: Range<usize>| line_of(text, span.start);
    let mut lines = vec![("name", at(vm.name.span())), ("substrate", at(vm.substrate.span()))];
    let mut asked = IdentityArguments::default();
    let mut note = |key, span: Range<usize>| lines.push((key, at(span)));
    let wrong = |key: &str, span: Range<usize>, why: String| Mistake {
        line: at(span),
        why: format!("{key}: {why}"),
    };
    let count = vm.count.map_or(Ok(1), |count| {
        let span = count.span();
        let number = usize::try_from(*count.get_ref()).ok();
        number.filter(|count| (1..=MEMBERS_MAX).contains(count)).ok_or_else(|| {
            wrong(
                "count",
                span,
                format!("{} is refused: 1 to {MEMBERS_MAX} can be", count.get_ref()),
            )
        })
    })?;
    if let Some(memory) = vm.memory {
        note("memory", memory.span());
        let size = memory.get_ref().parse::<Bytes>();
        asked.memory =
            Some(size.map_err(|error| wrong("memory", memory.span(), error.to_string()))?);
    }
    if let Some(cpus) = vm.cpus {
        note("cpus", cpus.span());
        let number = u32::try_from(*cpus.get_ref()).ok();
        let refused = || wrong("cpus", cpus.span(), format!("{} are refused", cpus.get_ref()));
        asked.cpus = Some(number.ok_or_else(refused)?);
    }
    let texts = [
        ("hostname", vm.hostname, &mut asked.hostname),
        ("mac", vm.mac, &mut asked.mac),
        ("net", vm.net, &mut asked.net),
        ("run", vm.run, &mut asked.run),
    ];
    for (key, said, into) in texts {
        if let Some(said) = said {
            note(key, said.span());
            *into = Some(said.into_inner());
        }
    }
    if let Some(address) = vm.address {
        note("address", address.span());
        let gateway = vm.gateway.as_ref().map(|gateway| format!(",gateway={}", gateway.get_ref()));
        asked.addresses.push(address.into_inner() + &gateway.unwrap_or_default());
    } else if let Some(gateway) = vm.gateway {
        let why = "without an address there is no net that it could be in";
        return Err(wrong("gateway", gateway.span(), why.to_owned()));
    }
    let span = vm.name.span();
    let template = template(vm.name.into_inner(), count);
    let names = names(&template, count).map_err(|why| wrong("name", span, why))?;
    // Each is known to the others by a name.
    asked.hostname.get_or_insert(template);
    Ok(Group { names, substrate: vm.substrate.into_inner(), asked, lines, begins })
}

/// With a number where there are several.
fn template(name: String, count: usize) -> String {
    if count > 1 && !name.contains("{n") { name + "-{n}" } else { name }
}

fn names(template: &str, count: usize) -> Result<Vec<String>, String> {
    let name = |n| {
        let name = expand(template, n)?;
        if is_name(&name) { Ok(name) } else { Err(refused()) }
    };
    (1..).take(count).map(name).collect()
}

/// Sockets and files are named so.
fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=64).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('.')
}

fn refused() -> String {
    "write letters, digits, `-`, `_` and `.`, 64 at most".to_owned()
}

/// From 1 on.
fn line_of(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    before.iter().filter(|&&byte| byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"# two of one, and one of another
[[vm]]
name = "web"
count = 2
substrate = "web.snapshot"
memory = "128M"
cpus = 1
hostname = "web{n}"
address = "192.168.77.{n+9}/24"
gateway = "192.168.77.1"
net = "tap=tap{n}"
run = "true"

[[vm]]
name = "db"
substrate = "db.snapshot"
"#;

    #[test]
    fn a_file_becomes_groups() {
        let groups = groups(GOOD).expect("good");
        let [web, db] = &groups[..] else { panic!("{groups:?}") };
        assert_eq!(web.names, ["web-1", "web-2"]);
        assert_eq!(web.asked.addresses, ["192.168.77.{n+9}/24,gateway=192.168.77.1"]);
        assert_eq!(web.asked.memory, Some(Bytes(128 << 20)));
        assert_eq!((web.asked.cpus, web.asked.run.as_deref()), (Some(1), Some("true")));
        assert_eq!((web.line("name"), web.line("address"), web.line("mac")), (3, 9, 2));
        assert_eq!((&db.names[..], db.line("substrate")), (&["db".to_owned()][..], 16));
        let own = GOOD.replace("\"web\"", "\"w{n}b\"");
        assert_eq!(super::groups(&own).expect("good")[0].names, ["w1b", "w2b"]);
    }

    #[test]
    fn mistakes_are_told_with_their_lines() {
        for (from, to, line, reason) in [
            ("count = 2", "count = 0", 4, "count: 0 is refused"),
            ("count = 2", "count = -1", 4, "count: -1 is refused"),
            ("count = 2", "count = 5000", 4, "count: 5000 is refused"),
            ("count = 2", "count = \"2\"", 4, "invalid type"),
            ("memory = \"128M\"", "memory = \"128Q\"", 6, "memory: `128Q` is not a size"),
            ("cpus = 1", "cpus = -1", 7, "cpus: -1 are refused"),
            ("run = \"true\"", "runs = \"true\"", 12, "unknown field `runs`"),
            ("name = \"db\"", "nam = \"db\"", 15, "unknown field `nam`"),
            ("name = \"db\"\n", "", 14, "missing field `name`"),
            ("name = \"db\"", "name = \"../db\"", 15, "name: write letters"),
            ("name = \"db\"", "name = \"db{n+}\"", 15, "name: `{n+}`"),
            ("name = \"db\"", "name = ", 15, ""),
            (
                "name = \"db\"",
                "name = \"db\"\ngateway = \"10.0.0.1\"",
                16,
                "gateway: without an address",
            ),
            ("cpus = 1", "cpus = 1\ncpus = 1", 8, "duplicate key"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let mistake = groups(&GOOD.replace(from, to)).expect_err(to);
            assert_eq!(mistake.line, line, "{to}: {mistake:?}");
            assert!(mistake.why.contains(reason), "{to}: {mistake:?}");
            assert!(!mistake.why.contains('\n'), "{mistake:?}");
        }
        for text in ["", "vm = []", "vm = 1", "[[vms]]", "\u{0}"] {
            assert!(groups(text).is_err(), "{text:?}");
        }
    }
}
