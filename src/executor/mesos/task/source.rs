//! Where a pod comes from. The first of these that there is:
//!
//! 1. compose files in the sandbox, by the label `fileName`: names with commas between, merged in that order; of an archive (`.tar`,
//!    `.tar.gz`, `.tgz`, `.zip`) the compose file in it
//! 2. the text of a compose file in the label `sampan.compose`
//! 3. the same in `data`, when it is text with `services` at its top; other data is somebody else's
//! 4. the image of `container`, or of the label `sampan.image`
//! 5. the command alone, which runs on the file system of the host, read-only but for its sandbox
//!
//! *Invariants:* compose files are read below the sandbox only; those that are named and not there are an error.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::labels::Options;
use super::networks::Networks;
use super::variables::Variables;
use super::volumes::below;
use super::{Draft, Invalid, Surroundings};
use crate::compose::project::{Network, NetworkExtra, Origin, Project, ServiceNetwork};
use crate::compose::{LoadRequest, Loaded, load_texts};
use crate::executor::mesos::proto::{ContainerInfo, TaskInfo, container_info, image};

/// Where a pod comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Compose files, or the text of one.
    Compose {
        /// Below the sandbox.
        files: Vec<PathBuf>,
        /// Name for messages, text.
        texts: Vec<(String, String)>,
    },
    /// An image.
    Image {
        /// Reference.
        image: String,
        /// Whose rules the command follows.
        kind: container_info::Type,
        /// The registry is asked although the store has it.
        fresh: bool,
    },
    /// The host's own file system.
    Host,
}

/// Names that are looked for in an archive, as by `sampan up` in a folder.
const NAMES: [&str; 4] = [
    "compose.yaml",
    "compose.yml",
    "docker-compose.yaml",
    "docker-compose.yml",
];
/// Longest file that is searched for variables (bytes); a longer one is no compose file.
const MAX_BYTES: u64 = 8 << 20;

/// Ends of the names of archives.
pub const ARCHIVES: [&str; 4] = [".tar", ".tar.gz", ".tgz", ".zip"];

/// Where an archive that `fileName` names is unpacked.
pub fn unpacked(folder: &Path, archive: &str) -> PathBuf {
    folder.join("unpacked").join(archive.replace('/', "-"))
}

/// Finds the source of a task.
///
/// # Errors
/// Where there is none, or it is none that can be had.
pub fn of(
    task: &TaskInfo,
    options: &Options,
    sandbox: &Path,
    folder: &Path,
) -> Result<Source, Invalid> {
    if !options.files.is_empty() {
        let files = options.files.iter().map(|name| {
            let at =
                |why: &str| Invalid::of(task, format_args!("labels: fileName: {name:?}: {why}"));
            let path = below(sandbox, name).ok_or_else(|| at("is not below the sandbox"))?;
            if !ARCHIVES.iter().any(|end| name.ends_with(end)) {
                return Ok(path);
            }
            let inside = unpacked(folder, name);
            let found = NAMES
                .iter()
                .map(|name| inside.join(name))
                .find(|path| path.is_file());
            found.ok_or_else(|| {
                at("has no compose file at its top (compose.yaml, docker-compose.yml)")
            })
        });
        return Ok(Source::Compose {
            files: files.collect::<Result<_, _>>()?,
            texts: Vec::new(),
        });
    }
    let data = task.data.as_deref().and_then(compose_text);
    let texts = [
        ("sampan.compose", options.compose.as_deref()),
        ("data", data),
    ];
    if let Some((name, Some(text))) = texts.into_iter().find(|(_, text)| text.is_some()) {
        return Ok(Source::Compose {
            files: Vec::new(),
            texts: vec![(name.to_owned(), text.to_owned())],
        });
    }
    let named = task
        .container
        .as_ref()
        .map(|c| image_of(task, c))
        .transpose()?
        .flatten();
    match (named, &options.image) {
        (Some(_), Some(_)) => Err(Invalid::of(
            task,
            "labels: sampan.image: the task's container has an image already; remove one",
        )),
        (Some(image), None) => Ok(image),
        (None, Some(image)) => Ok(Source::Image {
            image: image.clone(),
            kind: container_info::Type::Mesos,
            fresh: false,
        }),
        (None, None) if task.command.is_none() && options.command.is_none() => {
            let data = match task.data {
                Some(_) => "; its data is not a compose file",
                None => "",
            };
            Err(Invalid::of(
                task,
                format_args!(
                    "says nothing that could be run: no compose file (labels fileName, sampan.compose), no image, no command{data}"
                ),
            ))
        }
        (None, None) => Ok(Source::Host),
    }
}

/// Text with `services` at its top, as YAML or JSON.
fn compose_text(data: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(data).ok()?;
    let top = |line: &str| line.starts_with("services:") || line.starts_with("\"services\":");
    let json = text.trim_start().starts_with('{') && text.contains("\"services\"");
    (json || text.lines().any(top)).then_some(text)
}

fn image_of(task: &TaskInfo, container: &ContainerInfo) -> Result<Option<Source>, Invalid> {
    let error = |why: String| Invalid::of(task, format_args!("container.{why}"));
    match container_info::Type::try_from(container.r#type) {
        Ok(container_info::Type::Docker) => match &container.docker {
            Some(docker) => Ok(Some(Source::Image {
                image: docker.image.clone(),
                kind: container_info::Type::Docker,
                fresh: docker.force_pull_image(),
            })),
            None => Err(error("docker: is missing".to_owned())),
        },
        Ok(container_info::Type::Mesos) => {
            let Some(image) = container.mesos.as_ref().and_then(|m| m.image.as_ref()) else {
                return Ok(None);
            };
            let docker = match (image::Type::try_from(image.r#type), &image.docker) {
                (Ok(image::Type::Docker), Some(docker)) => docker,
                (Ok(image::Type::Appc), _) => {
                    return Err(error(
                        "mesos.image: APPC images are not supported; use an OCI or Docker image"
                            .to_owned(),
                    ));
                }
                _ => return Err(error("mesos.image.docker: is missing".to_owned())),
            };
            if docker.config.is_some() || docker.credential.is_some() {
                return Err(error("mesos.image.docker: a login of the task's own is not supported; log the machine in to the registry".to_owned()));
            }
            Ok(Some(Source::Image {
                image: docker.name.clone(),
                kind: container_info::Type::Mesos,
                fresh: !image.cached(),
            }))
        }
        Err(_) => Err(error("type: is not DOCKER or MESOS".to_owned())),
    }
}

/// What a container may say beside a compose file: networks.
///
/// # Errors
/// For the first field that would have no effect.
pub fn only_networks(task: &TaskInfo) -> Result<(), Invalid> {
    let Some(container) = &task.container else {
        return Ok(());
    };
    let said = [
        ("docker", container.docker.is_some()),
        (
            "mesos.image",
            container.mesos.as_ref().is_some_and(|m| m.image.is_some()),
        ),
        ("volumes", !container.volumes.is_empty()),
        ("hostname", container.hostname.is_some()),
        ("linux_info", container.linux_info.is_some()),
        ("rlimit_info", container.rlimit_info.is_some()),
        ("tty_info", container.tty_info.is_some()),
        (
            "network_infos[].port_mappings",
            container
                .network_infos
                .iter()
                .any(|n| !n.port_mappings.is_empty()),
        ),
    ];
    match said.iter().find(|(_, there)| *there) {
        Some((field, _)) => Err(Invalid::of(
            task,
            format_args!(
                "container.{field}: the task is a compose file, which says this itself; remove it here"
            ),
        )),
        None if task
            .command
            .as_ref()
            .is_some_and(|c| c.value.is_some() || !c.arguments.is_empty()) =>
        {
            Err(Invalid::of(
                task,
                "command: the task is a compose file, whose services have commands of their own; remove it here",
            ))
        }
        None => Ok(()),
    }
}

/// The variables `PORT_SERVICE_PORT` that the files may use, and whether a host port that was not offered is replaced: so does the
/// executor that the label `fileName` comes from.
pub fn port_variables(draft: &Draft<'_>) -> (BTreeSet<String>, bool) {
    let Source::Compose { files, texts } = &draft.source else {
        return (BTreeSet::new(), false);
    };
    let mut found = BTreeSet::new();
    for file in files {
        // one that cannot be read is reported when it is loaded
        let small = std::fs::metadata(file).is_ok_and(|meta| meta.len() <= MAX_BYTES);
        if small && let Ok(text) = std::fs::read_to_string(file) {
            collect(&text, &mut found);
        }
    }
    let texts = texts.iter().map(|(_, text)| text);
    for text in texts.chain(&draft.options.over) {
        collect(text, &mut found);
    }
    (found, !files.is_empty())
}

/// `PORT_…_DIGITS` after a `$` or `${`.
fn collect(text: &str, into: &mut BTreeSet<String>) {
    for (at, _) in text.match_indices("PORT_") {
        let before = text.get(..at).unwrap_or_default();
        if !before.ends_with('$') && !before.ends_with("${") {
            continue;
        }
        let rest = text.get(at..).unwrap_or_default();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let name = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
        let number = name.rsplit('_').next().unwrap_or_default();
        if name.matches('_').count() > 1 && number.parse::<u16>().is_ok() {
            into.insert(name.to_owned());
        }
    }
}

/// Loads the compose file of a task.
///
/// # Errors
/// With what is wrong with it.
pub fn load(
    draft: &Draft<'_>,
    pod: &str,
    environment: Variables,
    around: &Surroundings,
) -> Result<Loaded, Invalid> {
    let Source::Compose { files, texts } = &draft.source else {
        return Err(Invalid::of(draft.task, "is no compose file"));
    };
    let mut texts = texts.clone();
    let over = draft.options.over.clone();
    let over = over.map(|text| ("sampan.override".to_owned(), text));
    let names = texts.iter().map(|(name, _)| PathBuf::from(name));
    let mut all: Vec<PathBuf> = files.iter().cloned().chain(names).collect();
    all.extend(over.iter().map(|(name, _)| PathBuf::from(name)));
    texts.extend(over);
    let request = LoadRequest {
        files: all,
        working_dir: around.sandbox.clone(),
        project_name: Some(pod.to_owned()),
        environment,
        env_files: Vec::new(),
        profiles: draft.options.profiles.clone(),
    };
    load_texts(&texts, &request).map_err(|error| Invalid::of(draft.task, error.message))
}

impl Networks {
    /// Attaches the pod of a compose file to the networks that the task names: before those of the file, and instead of its default one
    /// where the file names none.
    ///
    /// # Errors
    /// Where the file is on the host's network, or on one of the same name.
    pub fn join(&self, task: &TaskInfo, project: &mut Project) -> Result<(), Invalid> {
        let Networks::Named(named) = self else {
            return Ok(());
        };
        if let Some(alone) = project
            .networks
            .iter()
            .find(|n| ["host", "none"].contains(&n.driver.as_str()))
        {
            return Err(Invalid::of(
                task,
                format_args!(
                    "container.network_infos: name networks, and the compose file has network_mode {}",
                    alone.driver
                ),
            ));
        }
        // the one that a file has that says nothing
        project.networks.retain(|n| {
            n.key != "default"
                || n.external
                || n.extra != NetworkExtra::default()
                || !n.ipam.is_empty()
        });
        let mut networks = Vec::new();
        for (index, wanted) in named.iter().enumerate() {
            if project.networks.iter().any(|n| n.name == wanted.name) {
                return Err(Invalid::of(
                    task,
                    format_args!(
                        "container.network_infos: network {} is in the compose file, too; remove one",
                        wanted.name
                    ),
                ));
            }
            networks.push(Network {
                key: format!("mesos{index}"),
                origin: Origin::default(),
                name: wanted.name.clone(),
                external: true,
                driver: "bridge".to_owned(),
                driver_opts: Default::default(),
                internal: false,
                enable_ipv4: true,
                enable_ipv6: false,
                ipam_driver: None,
                ipam_options: Default::default(),
                ipam: Vec::new(),
                extra: NetworkExtra {
                    labels: wanted.labels.clone(),
                    groups: wanted.groups.clone(),
                    ..NetworkExtra::default()
                },
                labels: Default::default(),
                attachment: attachment(wanted),
            });
        }
        let keys: BTreeSet<String> = project
            .networks
            .iter()
            .chain(&networks)
            .map(|n| n.key.clone())
            .collect();
        for service in project.services.values_mut() {
            service.networks.retain(|key, _| keys.contains(key));
            for (index, wanted) in named.iter().enumerate() {
                service
                    .networks
                    .insert(format!("mesos{index}"), attachment(wanted));
            }
        }
        networks.append(&mut project.networks);
        project.networks = networks;
        Ok(())
    }
}

fn attachment(wanted: &super::networks::Named) -> ServiceNetwork {
    let mut out = ServiceNetwork::default();
    for address in &wanted.addresses {
        match address {
            std::net::IpAddr::V4(v4) => out.ipv4_address = Some(*v4),
            std::net::IpAddr::V6(v6) => out.ipv6_address = Some(*v6),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::mesos::task::{labels, tests::task};
    use serde_json::{Value, json};

    fn found(given: Value) -> Result<Source, String> {
        let task = task(given);
        let options = labels::read(&task).map_err(|e| e.message)?;
        of(&task, &options, Path::new("/s"), Path::new("/s/tasks/t")).map_err(|e| e.message)
    }

    fn label(key: &str, value: &str) -> Value {
        json!({"labels": [{"key": key, "value": value}]})
    }

    #[test]
    fn the_order_of_sources() {
        let ucr = json!({"type": "MESOS", "mesos": {"image": {"type": "DOCKER", "docker": {"name": "i:1"}, "cached": false}}});
        let image = |kind, fresh| Source::Image {
            image: "i:1".to_owned(),
            kind,
            fresh,
        };
        let text = |name: &str, text: &str| Source::Compose {
            files: Vec::new(),
            texts: vec![(name.to_owned(), text.to_owned())],
        };
        // "services: {}" and {"services": 1}
        let (yaml, json_data) = ("c2VydmljZXM6IHt9", "eyJzZXJ2aWNlcyI6IDF9");
        let table = [
            (
                json!({"labels": label("fileName", "a/b.yml,c.yml"), "data": yaml, "container": ucr}),
                Source::Compose {
                    files: vec!["/s/a/b.yml".into(), "/s/c.yml".into()],
                    texts: Vec::new(),
                },
            ),
            (
                json!({"labels": label("sampan.compose", "x: y"), "data": yaml}),
                text("sampan.compose", "x: y"),
            ),
            (
                json!({"data": yaml, "container": ucr}),
                text("data", "services: {}"),
            ),
            (
                json!({"data": json_data}),
                text("data", "{\"services\": 1}"),
            ),
            (
                json!({"data": "AAAA", "container": ucr}),
                image(container_info::Type::Mesos, true),
            ),
            (
                json!({"container": {"type": "DOCKER", "docker": {"image": "i:1"}}}),
                image(container_info::Type::Docker, false),
            ),
            (
                json!({"labels": label("sampan.image", "i:1"), "command": {"value": "x"}}),
                image(container_info::Type::Mesos, false),
            ),
            (
                json!({"command": {"value": "x"}, "container": {"type": "MESOS"}}),
                Source::Host,
            ),
        ];
        for (given, expected) in table {
            assert_eq!(found(given.clone()), Ok(expected), "{given}");
        }
        for (given, expected) in [
            (
                json!({"labels": label("fileName", "../x")}),
                "labels: fileName: \"../x\": is not below the sandbox",
            ),
            (
                json!({"labels": label("fileName", "x.zip")}),
                "labels: fileName: \"x.zip\": has no compose file at its top (compose.yaml, docker-compose.yml)",
            ),
            (
                json!({"data": "AAAA"}),
                "says nothing that could be run: no compose file (labels fileName, sampan.compose), no image, no command; its data is not a compose file",
            ),
            (
                json!({"container": {"type": "MESOS", "mesos": {"image": {"type": "APPC", "appc": {"name": "a"}}}}}),
                "container.mesos.image: APPC images are not supported; use an OCI or Docker image",
            ),
            (
                json!({"container": ucr, "labels": label("sampan.image", "j")}),
                "labels: sampan.image: the task's container has an image already; remove one",
            ),
        ] {
            assert_eq!(found(given).unwrap_err(), format!("task t: {expected}"));
        }
    }

    #[test]
    fn variables_of_ports_in_a_text() {
        let mut found = BTreeSet::new();
        collect(
            "a: ${PORT_web_80} $PORT_my_db_5432:x ${PORT_x:-1} PORT_a_1 ${PORT_web_http}\n${PORT_a_b_99999} $$PORT_z_9",
            &mut found,
        );
        let found: Vec<_> = found.into_iter().collect();
        assert_eq!(found, ["PORT_my_db_5432", "PORT_web_80", "PORT_z_9"]);
    }
}
