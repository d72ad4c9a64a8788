//! What a task says beside the compose file that it is written as: ports, checks, hooks, variables, its sandbox and limits.
//!
//! *Invariants:* what the file says itself stays; limits only get tighter.

use std::collections::BTreeSet;

use super::ports::Assigned;
use super::source::Source;
use super::{
    Draft, Invalid, Sandbox, Surroundings, checks, hooks, made, output, service, variables,
};
use crate::compose::Project;
use crate::compose::project::{Limits, Mount, MountSource, Origin, Service};
use crate::executor::mesos::proto::TaskInfo;

/// `LinuxInfo.share_cgroups`, true where nothing is said: the tasks of a group share what they have together.
pub fn shares_cgroups(task: &TaskInfo) -> bool {
    let linux = task.container.as_ref().and_then(|c| c.linux_info.as_ref());
    linux.is_none_or(|linux| linux.share_cgroups())
}

/// The task's resources, beside what the service says itself.
pub fn set_limits(project: &mut Project, service: &str, limits: Limits) {
    if let Some(service) = project.services.get_mut(service) {
        service.limits = tighter(std::mem::take(&mut service.limits), limits);
    }
}

/// What a compose file cannot say, or need not: ports, checks, variables, sandbox, address.
pub fn finish(
    draft: &Draft<'_>,
    project: &mut Project,
    names: &[String],
    assigned: &Assigned,
    around: &Surroundings,
) -> Result<(), Invalid> {
    assigned.apply(project, names);
    output::place(draft, project, names, around);
    let checks = draft.checks.clone();
    let own = [service::name(draft.task, &BTreeSet::new())];
    let group = draft.sandbox.parent.is_some();
    // those that an override brought along are not what they are about
    let about = match draft.source {
        Source::Compose { .. } => names,
        _ if names.len() == 1 => names,
        _ => &own,
    };
    checks::place(draft.task, checks, &draft.options, about, project)?;
    let called = match (group, names) {
        (true, [name]) => name,
        _ => &own[0],
    };
    hooks::add(draft, called, project)?;
    let on_host = project.on_host();
    let made = made(draft, around);
    let mut ports = draft.offered.variables();
    variables::fill(&mut ports, assigned.variables());
    let user = draft.task.command.as_ref().and_then(|c| c.user.clone());
    for name in names {
        let Some(service) = project.services.get_mut(name) else {
            continue;
        };
        variables::fill(&mut service.environment, draft.own.clone());
        variables::fill(&mut service.environment, around.variables.clone());
        service.environment.extend(made.clone());
        variables::fill(&mut service.environment, ports.clone());
        const ADDRESS: &str = "MESOS_CONTAINER_IP";
        match (on_host, around.address) {
            (true, Some(address)) => {
                let address = address.to_string();
                service.environment.insert(ADDRESS.to_owned(), address);
            }
            (true, None) => {}
            (false, _) => service.address_variable = Some(ADDRESS.to_owned()),
        }
        if let Source::Compose { .. } = draft.source {
            service.user = service.user.take().or_else(|| user.clone());
            mount_sandbox(service, &draft.sandbox);
        }
    }
    Ok(())
}

/// The sandbox in a service of a compose file, which may have something else there.
fn mount_sandbox(service: &mut Service, sandbox: &Sandbox) {
    if service.volumes.iter().any(|m| m.target == sandbox.inside) {
        return;
    }
    service.volumes.push(Mount {
        origin: Origin::default(),
        target: sandbox.inside.clone(),
        source: MountSource::Bind {
            path: sandbox.host.clone(),
            create: false,
            propagation: None,
            recursive: true,
        },
        read_only: false,
    });
}

/// The task's limits, and of the file's own those that are below.
pub fn tighter(own: Limits, task: Limits) -> Limits {
    fn least<T: PartialOrd>(a: Option<T>, b: Option<T>) -> Option<T> {
        match (a, b) {
            (Some(a), Some(b)) => Some(if a < b { a } else { b }),
            (a, b) => a.or(b),
        }
    }
    let memory = least(own.memory, task.memory);
    Limits {
        cpus: least(own.cpus, task.cpus),
        cpu_shares: task.cpu_shares.or(own.cpu_shares),
        memory_reservation: least(
            own.memory_reservation.or(task.memory_reservation),
            memory
                .or(own.memory_reservation)
                .or(task.memory_reservation),
        ),
        memory,
        ..own
    }
}
