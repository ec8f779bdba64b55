//! Becoming small and nobody, before the guest is saved.

use std::fs;
use std::io;

use agent_wire::{Part, Prepare};
use rustix::fs::sync;
use rustix::system::sethostname;

use crate::parts::Parts;
use crate::{cpus, files, interfaces};

/// What a guest is called that is nobody.
const NOBODY: &str = "fathom";
const MACHINE_ID: &str = "/etc/machine-id";
const SSH: &str = "/etc/ssh";

pub(crate) fn prepare(how: Prepare) -> Vec<Part> {
    let mut parts = Parts::default();
    let named = sethostname(NOBODY.as_bytes()).map(|()| NOBODY.to_owned());
    parts.part("hostname", named);
    parts.part("interfaces", interfaces::drop_all());
    if how.generalise {
        parts.part("machine-id", forget_machine_id());
        parts.part("ssh host keys", remove_host_keys());
    }
    parts.part("cpus", cpus::run(1));
    sync();
    parts.part("sync", Ok::<_, io::Error>("written".to_owned()));
    // Clean pages, and caches of names: Documentation/admin-guide/sysctl/vm.rst.
    parts.part("caches", kernel("/proc/sys/vm/drop_caches", "3", "dropped"));
    parts.part("compact", kernel("/proc/sys/vm/compact_memory", "1", "compacted"));
    parts.done()
}

fn kernel(file: &str, value: &str, said: &str) -> io::Result<String> {
    fs::write(file, value).map(|()| said.to_owned())
}

/// Empty, systemd draws a new one at the next boot (machine-id(5)); without one the guest has none to lose.
fn forget_machine_id() -> io::Result<String> {
    match fs::metadata(MACHINE_ID) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok("there was none".to_owned()),
        Err(error) => Err(error),
        Ok(_) => files::replace(MACHINE_ID, "").map(|()| "emptied".to_owned()),
    }
}

fn remove_host_keys() -> io::Result<String> {
    let entries = match fs::read_dir(SSH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok("there were none".into());
        }
        entries => entries?,
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if is_host_key(&name.to_string_lossy()) {
            fs::remove_file(entry.path())?;
            removed += 1;
        }
    }
    Ok(format!("{removed} removed"))
}

fn is_host_key(name: &str) -> bool {
    let key = name.strip_suffix(".pub").unwrap_or(name);
    key.strip_prefix("ssh_host_").is_some_and(|rest| rest.ends_with("_key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_of_the_host_are_removed() {
        for name in ["ssh_host_rsa_key", "ssh_host_ed25519_key.pub"] {
            assert!(is_host_key(name), "{name}");
        }
        for name in
            ["ssh_config", "sshd_config", "ssh_known_hosts", "moduli", "ssh_host_rsa_key.bak"]
        {
            assert!(!is_host_key(name), "{name}");
        }
    }
}
