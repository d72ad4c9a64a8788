//! Offered ports → published ports and variables.
//!
//! The rule, which always gives the same ports for the same task:
//!
//! 1. *The order of the offered ports.* First those in `discovery.ports`, in its order; then those that variables of the task name
//!    (`PORT0`, `PORT1`, …, `PORTS`); then the others, ascending. `PORT0` is the first, `PORTS` all of them.
//! 2. *A port that asks for an offered one has it*, and a range (`8000-8010:80`) the first of it that is offered.
//! 3. *Named ports.* A port of the discovery whose name is that of a service, `SERVICE-PORT`, `SERVICE_PORT` or the plain port in the container, and
//!    whose protocol is not another one, is that service's.
//! 4. *The others* get what is left in the order of 1: services by name, the ports of one in the order of its file.
//!
//! *Invariants:* pure; a port is given once; a host port that was not offered belongs to somebody else on the machine and is
//! refused, or replaced where the caller says so.

use std::collections::{BTreeMap, BTreeSet};

use super::Invalid;
use crate::compose::Project;
use crate::compose::project::Port;
use crate::executor::mesos::proto::TaskInfo;

/// A port of the discovery that was offered.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    number: u16,
    name: String,
    protocol: Option<String>,
}

/// The ports of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offered {
    /// All of them in the order of the rule.
    pub order: Vec<u16>,
    named: Vec<Named>,
}

impl Offered {
    /// Those of a task; `variables` are its own.
    pub fn of(
        task: &TaskInfo,
        ports: &BTreeSet<u16>,
        variables: &BTreeMap<String, String>,
    ) -> Offered {
        let discovery = task.discovery.iter().filter_map(|d| d.ports.as_ref());
        // another number is one in the container
        let discovery = discovery.flat_map(|p| &p.ports).filter_map(|port| {
            let number = u16::try_from(port.number).ok()?;
            ports.contains(&number).then(|| Named {
                number,
                name: port.name.clone().unwrap_or_default(),
                protocol: port.protocol.as_ref().map(|p| p.to_ascii_lowercase()),
            })
        });
        let named: Vec<Named> = discovery.collect();
        let numbered = (0..ports.len()).map_while(|i| variables.get(&format!("PORT{i}")));
        let listed = variables
            .get("PORTS")
            .into_iter()
            .flat_map(|l| l.split(','));
        let said = numbered.map(String::as_str).chain(listed);
        let said = said.filter_map(|text| text.trim().parse::<u16>().ok());
        let all = named.iter().map(|n| n.number).chain(said);
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for port in all.chain(ports.iter().copied()) {
            if ports.contains(&port) && seen.insert(port) {
                order.push(port);
            }
        }
        Offered { order, named }
    }

    /// Variables that are known before any service is: `PORT0`…, `PORTS`, and `PORT_NAME` of the discovery.
    pub fn variables(&self) -> BTreeMap<String, String> {
        let mut out = BTreeMap::new();
        for (index, port) in self.order.iter().enumerate() {
            out.insert(format!("PORT{index}"), port.to_string());
        }
        if let Some(first) = self.order.first() {
            let all: Vec<String> = self.order.iter().map(u16::to_string).collect();
            out.insert("PORT".to_owned(), first.to_string());
            out.insert("PORTS".to_owned(), all.join(","));
        }
        for named in self.named.iter().filter(|n| !n.name.is_empty()) {
            let name = format!("PORT_{}", word(&named.name));
            out.entry(name).or_insert(named.number.to_string());
        }
        out
    }
}

/// What was given to whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assigned {
    /// Service and place among its ports → port in the pod, port of the host.
    pub ports: BTreeMap<(String, usize), (u16, u16)>,
    /// What was done that the file does not say.
    pub notes: Vec<String>,
}

impl Assigned {
    /// `PORT_SERVICE_PORT` of each; of a port that several of the host lead to the first.
    pub fn variables(&self) -> BTreeMap<String, String> {
        let ports = self.ports.iter().rev();
        ports
            .map(|((service, _), (target, host))| (variable(service, *target), host.to_string()))
            .collect()
    }

    /// Writes the ports into a project.
    pub fn apply(&self, project: &mut Project, services: &[String]) {
        for (name, service) in &mut project.services {
            if !services.contains(name) {
                continue;
            }
            for (place, port) in service.ports.iter_mut().enumerate() {
                if let Some((_, host)) = self.ports.get(&(name.clone(), place)) {
                    port.published = Some(*host);
                    port.published_end = None;
                }
            }
        }
    }
}

/// The variable of a port of a service.
pub fn variable(service: &str, target: u16) -> String {
    format!("PORT_{}_{target}", word(service))
}

/// A name as a part of a variable's.
fn word(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    name.chars().map(plain).collect()
}

/// Gives the ports of the named services of a project their ports on the host. `open`: host ports that the file leaves to us whatever is written
/// there; `replace`: a host port that was not offered is replaced.
///
/// # Errors
/// Where more are published than are offered, or one that was not.
pub fn assign(
    task: &TaskInfo,
    project: &Project,
    services: &[String],
    offered: &Offered,
    open: &BTreeSet<u16>,
    replace: bool,
) -> Result<Assigned, Invalid> {
    let mut out = Assigned::default();
    let mut notes = Vec::new();
    let mut left: Vec<u16> = offered.order.clone();
    let mut wanting: Vec<(&String, usize, &Port)> = Vec::new();
    let all = project
        .services
        .iter()
        .filter(|(name, _)| services.contains(name));
    let all = all.flat_map(|(name, service)| {
        let ports = service.ports.iter().enumerate();
        ports.map(move |(place, port)| (name, place, port))
    });
    let published = all.clone().count();
    let mut give = |name: &str, place: usize, port: &Port, host: u16| {
        out.ports
            .insert((name.to_owned(), place), (port.target, host));
    };
    let mut given = BTreeSet::new();
    for (name, place, port) in all {
        let Some(first) = port.published.filter(|p| !open.contains(p)) else {
            wanting.push((name, place, port));
            continue;
        };
        let range = first..=port.published_end.unwrap_or(first);
        // one port of the host may be published for several protocols
        let again = || given.contains(&first).then_some(first);
        let free = range.clone().find(|host| left.contains(host));
        if let Some(host) = free.or_else(again) {
            left.retain(|p| *p != host);
            given.insert(host);
            give(name, place, port, host);
        } else if replace {
            notes.push(format!(
                "services.{name}.ports: host port {first} was not offered; an offered one takes its place"
            ));
            wanting.push((name, place, port));
        } else {
            let shown = match port.published_end {
                Some(last) => format!("{first}-{last}"),
                None => first.to_string(),
            };
            return Err(Invalid::of(
                task,
                format_args!(
                    "services.{name}.ports: host port {shown} was not offered (offered: {}); leave it out to get one that was",
                    list(&offered.order)
                ),
            ));
        }
    }
    for named in &offered.named {
        let fits = |(name, _, port): &(&String, usize, &Port)| {
            let (called, target) = (&named.name, port.target);
            let names = [
                (*name).clone(),
                format!("{name}-{target}"),
                format!("{name}_{target}"),
                target.to_string(),
            ];
            names.contains(called) && named.protocol.as_ref().is_none_or(|p| *p == port.protocol)
        };
        if left.contains(&named.number)
            && let Some(index) = wanting.iter().position(fits)
        {
            let (name, place, port) = wanting.remove(index);
            left.retain(|p| *p != named.number);
            give(name, place, port, named.number);
        }
    }
    if wanting.len() > left.len() {
        return Err(Invalid::of(
            task,
            format_args!(
                "{published} ports are published, and {} offered ({}); publish fewer or ask for more",
                offered.order.len(),
                list(&offered.order)
            ),
        ));
    }
    for ((name, place, port), host) in wanting.into_iter().zip(left) {
        give(name, place, port, host);
    }
    out.notes = notes;
    Ok(out)
}

fn list(ports: &[u16]) -> String {
    /// More of them than anybody reads.
    const SHOWN: usize = 8;
    let shown: Vec<String> = ports.iter().take(SHOWN).map(u16::to_string).collect();
    match shown.is_empty() {
        true => "none".to_owned(),
        false if ports.len() > SHOWN => format!("{}, …", shown.join(", ")),
        false => shown.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compose::{LoadRequest, load_text};
    use crate::executor::mesos::task::tests::task;
    use serde_json::json;

    fn project(text: &str) -> Project {
        let request = LoadRequest {
            files: Vec::new(),
            working_dir: "/".into(),
            project_name: Some("p".into()),
            environment: BTreeMap::new(),
            env_files: Vec::new(),
            profiles: Vec::new(),
        };
        load_text(text, "x.yaml", &request).unwrap().project
    }

    #[test]
    fn the_order_of_offered_ports() {
        let ports = BTreeSet::from([100, 200, 300, 400]);
        let discovery = json!({"discovery": {"visibility": "CLUSTER", "ports": {"ports": [{"number": 300, "name": "a.b"}, {"number": 80, "name": "inside"}]}}});
        let variables = BTreeMap::from([
            ("PORT0".to_owned(), "200".to_owned()),
            ("PORTS".to_owned(), "200, 400,x,999".to_owned()),
        ]);
        let table = [
            (json!({}), BTreeMap::new(), [100, 200, 300, 400]),
            (discovery.clone(), BTreeMap::new(), [300, 100, 200, 400]),
            (json!({}), variables.clone(), [200, 400, 100, 300]),
            (discovery, variables, [300, 200, 400, 100]),
        ];
        for (given, variables, expected) in table {
            let offered = Offered::of(&task(given.clone()), &ports, &variables);
            assert_eq!(offered.order, expected, "{given} {variables:?}");
            let variables = offered.variables();
            assert_eq!(variables["PORT0"], expected[0].to_string());
            assert_eq!(variables["PORT"], expected[0].to_string());
            if expected[0] == 300 {
                assert_eq!(variables["PORT_a_b"], "300");
            }
        }
    }

    #[test]
    fn who_gets_which() {
        let discovery = |ports: &[(u16, &str)]| {
            let ports: Vec<_> = ports
                .iter()
                .map(|(number, name)| json!({"number": number, "name": name, "protocol": "tcp"}))
                .collect();
            json!({"discovery": {"visibility": "CLUSTER", "ports": {"ports": ports}}})
        };
        let offered = BTreeSet::from([31000, 31001, 31002, 31003]);
        let two = "services:\n  web:\n    image: i\n    ports: ['80', '443']\n  api:\n    image: i\n    ports: ['9000']";
        let table = [
            // by name of the service, then the order of the file
            (
                two,
                json!({}),
                false,
                Ok(vec![
                    ("api", 9000, 31000),
                    ("web", 80, 31001),
                    ("web", 443, 31002),
                ]),
            ),
            (
                two,
                discovery(&[(31003, "web-443"), (31001, "api")]),
                false,
                Ok(vec![
                    ("api", 9000, 31001),
                    ("web", 80, 31000),
                    ("web", 443, 31003),
                ]),
            ),
            (
                two,
                discovery(&[(31002, "other")]),
                false,
                Ok(vec![
                    ("api", 9000, 31002),
                    ("web", 80, 31000),
                    ("web", 443, 31001),
                ]),
            ),
            (
                "services: {web: {image: i, ports: ['31002:80', '30990-31001:81', '82']}}",
                json!({}),
                false,
                Ok(vec![
                    ("web", 80, 31002),
                    ("web", 81, 31000),
                    ("web", 82, 31001),
                ]),
            ),
            (
                "services: {web: {image: i, ports: ['31002:80', '31002:80/udp']}}",
                json!({}),
                false,
                Ok(vec![("web", 80, 31002), ("web", 80, 31002)]),
            ),
            (
                "services: {web: {image: i, ports: ['80:80']}}",
                json!({}),
                true,
                Ok(vec![("web", 80, 31000)]),
            ),
            (
                "services: {web: {image: i, ports: ['80:80']}}",
                json!({}),
                false,
                Err(
                    "services.web.ports: host port 80 was not offered (offered: 31000, 31001, 31002, 31003); leave it out to get one that was",
                ),
            ),
            (
                "services: {web: {image: i, ports: [1, 2, 3, 4, 5]}}",
                json!({}),
                false,
                Err(
                    "5 ports are published, and 4 offered (31000, 31001, 31002, 31003); publish fewer or ask for more",
                ),
            ),
        ];
        for (text, given, replace, expected) in table {
            let task = task(given);
            let offered = Offered::of(&task, &offered, &BTreeMap::new());
            let mut project = project(text);
            let names: Vec<String> = project.services.keys().cloned().collect();
            let found = assign(&task, &project, &names, &offered, &BTreeSet::new(), replace);
            let found = found.map_err(|e| e.message);
            let expected = expected.map_err(|why| format!("task t: {why}"));
            if let Ok(assigned) = &found {
                assigned.apply(&mut project, &names);
                let open = |p: &Port| p.published.is_none();
                assert!(!project.services.values().any(|s| s.ports.iter().any(open)));
                assert_eq!(!assigned.notes.is_empty(), replace);
            }
            let found = found.map(|assigned| {
                let ports = assigned.ports.into_iter();
                ports
                    .map(|((s, _), (target, host))| (s, target, host))
                    .collect::<Vec<_>>()
            });
            let expected = expected.map(|list| {
                let list = list.into_iter();
                list.map(|(s, target, host)| (s.to_owned(), target, host))
                    .collect()
            });
            assert_eq!(found, expected, "{text}");
        }
        let assigned = Assigned {
            ports: BTreeMap::from([
                (("my-web".to_owned(), 0), (80, 31000)),
                (("my-web".to_owned(), 1), (80, 31001)),
            ]),
            notes: Vec::new(),
        };
        assert_eq!(
            assigned.variables(),
            BTreeMap::from([("PORT_my_web_80".to_owned(), "31000".to_owned())])
        );
    }
}
