//! Phase 6, the project: canonical tree → [`Project`].
//!
//! Profiles choose the services; each is read by `service`; here is what concerns several of them: dependencies,
//! networks, volumes, names.
//!
//! *Invariants.* Every reference (service, network, volume) of an enabled service leads somewhere; dependencies have no
//! cycle; services are looked at in the file's order, so that of two the later one is named as the culprit.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::node::{At, Pos, Result};
use super::project::{
    HOST_NETWORK, MountSource, NO_NETWORK, Network, PodOptions, Project, Service, Volume,
};
use super::service::{Context, service};
use super::{Error, hooks, limits, logging, network, order, schema};

/// What the caller decides.
pub(super) struct Request<'a> {
    pub name: &'a str,
    pub profiles: &'a [String],
}

/// Reads the whole project; `files` is left empty.
pub(super) fn project(
    root: &At<'_>,
    request: &Request<'_>,
    context: &mut Context<'_>,
) -> Result<Project> {
    let all = root.entries_of("services")?;
    if all.is_empty() {
        return Err(root.error("no services; write at least one below services:"));
    }
    let mut enabled = Vec::new();
    for (name, at) in &all {
        let profiles = at.strings_of("profiles")?;
        let chosen = |p: &String| request.profiles.iter().any(|c| c == p || c == "*");
        if profiles.is_empty() || profiles.iter().any(chosen) {
            enabled.push((*name, at));
        }
    }
    if enabled.is_empty() {
        return Err(root.error("no service is enabled; choose a profile"));
    }
    let names: HashSet<&str> = enabled.iter().map(|(name, _)| *name).collect();
    let mut services = BTreeMap::new();
    let mut uses = Vec::new();
    for (name, at) in &enabled {
        let mut service = service(name, at, context)?;
        known_dependencies(&mut service, at, &all, &names, context)?;
        uses.extend(network::uses(at, &service.networks)?);
        services.insert((*name).to_owned(), service);
    }
    no_cycle(&services, &enabled)?;
    unique_names(&services, &enabled)?;
    let networks = network::networks(root, request.name, uses)?;
    ports_reach(&networks, &services)?;
    let pod = pod(root, context)?;
    logging::own_files(&pod, &services)?;
    Ok(Project {
        name: request.name.to_owned(),
        working_dir: context.working_dir.to_owned(),
        files: Vec::new(),
        networks,
        volumes: volumes(root, request.name, &enabled, &services)?,
        services,
        pod,
    })
}

/// Ports are published by a network.
fn ports_reach(networks: &[Network], services: &BTreeMap<String, Service>) -> Result<()> {
    let alone = |n: &&Network| [HOST_NETWORK, NO_NETWORK].contains(&n.driver.as_str());
    let mut ports = services
        .values()
        .flat_map(|s| s.ports.iter().map(move |p| (s, p)));
    let unknown = ports.clone().find_map(|(service, port)| {
        let key = port.network.as_ref()?;
        let known = networks.iter().any(|n| n.key == *key);
        (!known).then_some((service, port, key))
    });
    if let Some((service, port, key)) = unknown {
        let message = format!(
            "{}: services.{}.ports: x-sampan.network: no service is on a network {key}; name one of the pod's",
            port.origin, service.name
        );
        return Err(Error { message });
    }
    match (networks.iter().find(alone), ports.next()) {
        (Some(network), Some((service, port))) => {
            let why = match network.driver.as_str() {
                HOST_NETWORK => {
                    "on the host's network a service listens on the host's ports itself"
                }
                _ => "there is no network to publish them on",
            };
            let message = format!(
                "{}: services.{}.ports: {why}; remove them",
                port.origin, service.name
            );
            Err(Error { message })
        }
        _ => Ok(()),
    }
}

fn pod(root: &At<'_>, context: &mut Context<'_>) -> Result<PodOptions> {
    let limits = root.find(&["x-sampan", "limits"]);
    Ok(PodOptions {
        limits: limits
            .map(|at| limits::of_pod(&at))
            .transpose()?
            .unwrap_or_default(),
        hooks: hooks::of_pod(root, context)?,
        logs: logging::sinks(root, context)?,
    })
}

/// Drops dependencies that may be missing, refuses the others.
fn known_dependencies(
    service: &mut Service,
    at: &At<'_>,
    all: &[(&str, At<'_>)],
    enabled: &HashSet<&str>,
    context: &mut Context<'_>,
) -> Result<()> {
    let missing: Vec<(String, bool)> = service
        .depends_on
        .iter()
        .filter(|(name, _)| !enabled.contains(name.as_str()))
        .map(|(name, dependency)| (name.clone(), dependency.required))
        .collect();
    let optional: HashMap<&str, At<'_>> = at.entries_of("depends_on")?.into_iter().collect();
    for (name, required) in missing {
        let place = match optional.get(name.as_str()) {
            Some(place) => place.clone(),
            None => dependency_place(at, &name),
        };
        let why = match all.iter().find(|(n, _)| *n == name) {
            Some((_, other)) => format!(
                "service {name} is not enabled; choose its profile ({})",
                other.strings_of("profiles")?.join(", ")
            ),
            None => format!("there is no service {name}"),
        };
        if required {
            return Err(place.key_pos.error(&place.path, why));
        }
        context.warnings.push(
            place
                .key_pos
                .error(&place.path, format_args!("ignored: {why}"))
                .message,
        );
        service.depends_on.remove(&name);
    }
    Ok(())
}

/// Where a dependency is written: `depends_on`, else `links`, else `volumes_from`, else `network_mode`.
fn dependency_place<'a>(at: &At<'a>, name: &str) -> At<'a> {
    let named = at
        .get("depends_on")
        .and_then(|d| d.entries().ok()?.into_iter().find(|(n, _)| *n == name));
    let listed = |key: &str| {
        let items = at.items_of(key).ok()?;
        items
            .into_iter()
            .find(|item| item.raw().is_ok_and(|t| t.split(':').next() == Some(name)))
    };
    named
        .map(|(_, at)| at)
        .or_else(|| listed("links"))
        .or_else(|| listed("volumes_from"))
        .or_else(|| at.get("network_mode"))
        .unwrap_or_else(|| at.clone())
}

fn no_cycle(services: &BTreeMap<String, Service>, enabled: &[(&str, &At<'_>)]) -> Result<()> {
    let Some(cycle) = order::cycle(services) else {
        return Ok(());
    };
    let place = |name: &str, on: &str| {
        let (_, at) = enabled.iter().find(|(n, _)| *n == name)?;
        Some(dependency_place(at, on))
    };
    let [first, second, ..] = &cycle[..] else {
        return Ok(());
    };
    let what = format!(
        "services depend on each other: {}; remove one of the dependencies",
        cycle.join(" -> ")
    );
    match place(first, second) {
        Some(at) => Err(at.key_pos.error(&at.path, what)),
        None => Err(super::Error { message: what }),
    }
}

/// A container name is used once; it may not be the name of another service, for both are host names of the pod.
fn unique_names(services: &BTreeMap<String, Service>, enabled: &[(&str, &At<'_>)]) -> Result<()> {
    let mut known: HashMap<String, Pos> = HashMap::new();
    for (name, at) in enabled {
        let Some(place) = at.filled("container_name") else {
            continue;
        };
        let Some(container) = services.get(*name).and_then(|s| s.container_name.clone()) else {
            continue;
        };
        if container != *name && services.contains_key(&container) {
            return Err(place.error(format_args!(
                "{container} is the name of another service; choose another one"
            )));
        }
        if let Some(first) = known.insert(container.clone(), place.node.pos.clone()) {
            return Err(place.error(format_args!(
                "{container} is used already, at {first}; choose another one"
            )));
        }
    }
    Ok(())
}

fn volumes(
    root: &At<'_>,
    project: &str,
    enabled: &[(&str, &At<'_>)],
    services: &BTreeMap<String, Service>,
) -> Result<BTreeMap<String, Volume>> {
    let declared: HashMap<&str, At<'_>> = root.entries_of("volumes")?.into_iter().collect();
    let mut out = BTreeMap::new();
    for (name, at) in enabled {
        let Some(service) = services.get(*name) else {
            continue;
        };
        for (i, mount) in service.volumes.iter().enumerate() {
            let MountSource::Volume { key, .. } = &mount.source else {
                continue;
            };
            let Some(volume_at) = declared.get(key.as_str()) else {
                let place = at
                    .items_of("volumes")?
                    .into_iter()
                    .nth(i)
                    .unwrap_or_else(|| (*at).clone());
                return Err(place.error(format_args!("volume {key} is not declared below volumes: at the top; for a folder write ./{key}")));
            };
            if !out.contains_key(key) {
                out.insert(key.clone(), volume(key, volume_at, project)?);
            }
        }
    }
    Ok(out)
}

fn volume(key: &str, at: &At<'_>, project: &str) -> Result<Volume> {
    let external = at.get("external").map_or(Ok(false), |at| at.bool())?;
    if external {
        network::only_a_name(at)?;
    }
    if let Some(driver) = at.get("driver")
        && driver.raw()? != "local"
    {
        return Err(driver.error(format_args!(
            "{:?} is not supported; only local is",
            driver.raw()?
        )));
    }
    if let Some(options) = at.get("driver_opts")
        && !options.entries()?.is_empty()
    {
        return Err(options
            .key_pos
            .error(&options.path, "not supported yet; use a bind mount"));
    }
    let name = at.get("name").map(|at| schema::name_at(&at)).transpose()?;
    let default_name = || {
        if external {
            key.to_owned()
        } else {
            format!("{project}_{key}")
        }
    };
    let name = name.unwrap_or_else(default_name);
    Ok(Volume {
        key: key.to_owned(),
        name,
        external,
        labels: super::service::text_map(at, "labels")?,
    })
}
