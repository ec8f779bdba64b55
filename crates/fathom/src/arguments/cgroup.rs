//! `PARENT[,memory=SIZE][,cpus=N]`.

use confine::Cgroup;
use vmm::config::Bytes;

const FORM: &str = "write PARENT,memory=SIZE or PARENT,cpus=N or both";

/// A comma ends the parent.
pub(super) fn parse(text: &str) -> Result<Cgroup, String> {
    let mut parts = text.split(',');
    let parent = parts.next().unwrap_or_default().into();
    let mut cgroup = Cgroup { parent, memory: None, cpus: None };
    for part in parts {
        let bad = |error: &dyn std::fmt::Display| format!("`{part}`: {error}");
        match part.split_once('=') {
            Some(("memory", size)) => {
                let bytes: Bytes = size.parse().map_err(|error| bad(&error))?;
                cgroup.memory = Some(bytes.0);
            }
            Some(("cpus", count)) => {
                cgroup.cpus = Some(count.parse().map_err(|error| bad(&error))?);
            }
            _ => return Err(format!("`{part}` is no limit: {FORM}")),
        }
    }
    if cgroup.memory.is_none() && cgroup.cpus.is_none() {
        return Err(format!("no limit is given: {FORM}"));
    }
    Ok(cgroup)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_come_in_any_order() {
        let expected = Cgroup { parent: "vms".into(), memory: Some(1 << 30), cpus: Some(1.5) };
        assert_eq!(parse("vms,memory=1G,cpus=1.5").as_ref(), Ok(&expected));
        assert_eq!(parse("vms,cpus=1.5,memory=1G").as_ref(), Ok(&expected));
        for text in ["", "vms", "vms,memory", "vms,memory=", "vms,cpus=x", "vms,io=3", "vms,"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
