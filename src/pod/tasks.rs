//! Tasks of frameworks as names of pods: `TASK`, or `TASK/SERVICE` for one of its services.
//!
//! *Invariant:* a name is a whole task id or none: nothing is guessed from a part.

use super::layout::{Folders, PodDir};
use super::{Error, Result, adopt, record};

/// A pod whose owner has tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tasks {
    /// The pod.
    pub pod: String,
    /// Ids and services of the tasks.
    pub tasks: Vec<(String, Vec<String>)>,
}

/// The tasks of every pod, by pod.
pub fn all(folders: &Folders) -> Result<Vec<Tasks>> {
    #[derive(serde::Deserialize)]
    struct Owned {
        owner: Option<record::Owner>,
    }
    let mut all = Vec::new();
    for pod in adopt::names(folders)? {
        let dir = folders.pod(&pod);
        let owned = record::read::<Owned>(&dir.record())?;
        if let Some(owner) = owned.and_then(|owned| owned.owner) {
            let tasks = owner.tasks.into_iter().collect();
            all.push(Tasks { pod, tasks });
        }
    }
    Ok(all)
}

/// The pod and the services that names mean; `None`: the first is no task's. Further names are of the same pod.
pub fn find(folders: &Folders, names: &[String]) -> Result<Option<(PodDir, Vec<String>)>> {
    let all = all(folders)?;
    let found = resolve(&all, names).map_err(Error::Other)?;
    Ok(found.map(|(pod, services)| (folders.pod(&pod), services)))
}

fn resolve(
    all: &[Tasks],
    names: &[String],
) -> std::result::Result<Option<(String, Vec<String>)>, String> {
    let mut found: Option<(String, Vec<String>)> = None;
    for name in names {
        let candidates: Vec<(&str, Vec<String>)> = all
            .iter()
            .flat_map(|pod| {
                pod.tasks
                    .iter()
                    .map(|(id, list)| (pod.pod.as_str(), id, list))
            })
            .filter_map(|(pod, id, services)| Some((pod, meant(id, services, name)?)))
            .collect();
        let (pod, services) = match (candidates.as_slice(), &found) {
            ([], None) => return Ok(None),
            ([], Some((pod, _))) => return Err(format!("pod {pod} has no task {name}")),
            ([one], _) => one.clone(),
            (several, _) => {
                let pods: Vec<&str> = several.iter().map(|(pod, _)| *pod).collect();
                return Err(format!(
                    "{name} is a task of several pods ({}): name one with -p and the service",
                    pods.join(", ")
                ));
            }
        };
        match &mut found {
            None => found = Some((pod.to_string(), services)),
            Some((same, list)) if same == pod => {
                list.extend(services);
            }
            Some((other, _)) => {
                return Err(format!(
                    "{name} is a task of pod {pod}, not of {other}: one pod at a time"
                ));
            }
        }
    }
    Ok(found)
}

/// The services of a task that a name means.
fn meant(id: &str, services: &[String], name: &str) -> Option<Vec<String>> {
    if name == id {
        return Some(services.to_vec());
    }
    let service = name.strip_prefix(id)?.strip_prefix('/')?;
    services
        .iter()
        .find(|known| *known == service)
        .map(|known| vec![known.clone()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_whole_ids_with_or_without_a_service() {
        let pod = |name: &str, tasks: &[(&str, &[&str])]| Tasks {
            pod: name.to_string(),
            tasks: tasks
                .iter()
                .map(|(id, list)| (id.to_string(), list.iter().map(|s| s.to_string()).collect()))
                .collect(),
        };
        let all = [
            pod("p", &[("web.1", &["app", "db"]), ("job/2", &["run"])]),
            pod("q", &[("web.2", &["app"]), ("twice", &["app"])]),
            pod("r", &[("twice", &["app"])]),
        ];
        let ok = |pod: &str, services: &[&str]| {
            let services = services.iter().map(|s| s.to_string()).collect();
            Ok(Some((pod.to_string(), services)))
        };
        let cases: [(&[&str], std::result::Result<_, String>); 11] = [
            (&[], Ok(None)),
            (&["web"], Ok(None)),
            (&["web.1"], ok("p", &["app", "db"])),
            (&["web.1/db"], ok("p", &["db"])),
            (&["web.1/none"], Ok(None)),
            (&["web.1/db", "job/2"], ok("p", &["db", "run"])),
            (&["job/2/run"], ok("p", &["run"])),
            (&["web.2"], ok("q", &["app"])),
            (
                &["web.1", "web.2"],
                Err("web.2 is a task of pod q, not of p: one pod at a time".into()),
            ),
            (&["web.1", "app"], Err("pod p has no task app".into())),
            (
                &["twice"],
                Err(
                    "twice is a task of several pods (q, r): name one with -p and the service"
                        .into(),
                ),
            ),
        ];
        for (names, expected) in cases {
            let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
            assert_eq!(resolve(&all, &names), expected, "{names:?}");
        }
    }
}
