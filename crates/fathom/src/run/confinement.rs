//! The walls around the VM's process, put up before the guest runs.

use api::SocketDirectory;
use confine::{Need, PathRule};
use vmm::config::VmPlan;

use super::blame;
use crate::arguments::{Confinement, RunArguments};
use crate::failure::Failure;
use crate::text::bytes;

/// First of all: later, open files are ours.
pub(super) fn begin(arguments: &RunArguments) -> Result<(), Failure> {
    if arguments.confine == Confinement::On {
        confine::close_inherited(&[]).map_err(Failure::host)?;
    }
    if let Some(cgroup) = &arguments.cgroup {
        let name = arguments.name.clone().unwrap_or_else(vmm::config::default_name);
        cgroup.enter(&name).map_err(Failure::host)?;
        if cgroup.memory.is_some_and(|limit| limit < arguments.memory.0) {
            tracing::warn!(
                "--cgroup: the limit on memory is below the guest's {}: the host ends the VM when it needs more",
                bytes(arguments.memory.0)
            );
        }
    }
    arguments.jail.as_ref().map_or(Ok(()), |jail| jail.enter().map_err(Failure::usage))
}

/// Last of all that this process does before it starts threads and the guest.
pub(super) fn complete(
    confine: Confinement,
    plan: &VmPlan,
    sockets: &SocketDirectory,
) -> Result<(), Failure> {
    if confine == Confinement::Off {
        tracing::warn!("--confine off: who breaks out of the guest can do all that you can");
        return Ok(());
    }
    plan.prepare().map_err(blame)?;
    let mut paths = plan.paths();
    paths.push(PathRule::new(sockets.path(), Need::SocketDirectory));
    let no_landlock = confine::restrict_paths(&paths).map_err(Failure::host)?;
    let no_seccomp = confine::restrict_calls(&plan.having()).map_err(Failure::host)?;
    for missing in [no_landlock, no_seccomp].into_iter().flatten() {
        tracing::warn!("wall {} is {}", missing.wall, missing.why);
    }
    Ok(())
}
