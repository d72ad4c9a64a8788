//! `sampan network attach`, `detach`, `publish`, `unpublish`: networks and ports of a running pod.

use std::net::IpAddr;

use anyhow::{anyhow, bail};

use super::{Global, Outcome, context, output};
use crate::compose::Project;
use crate::compose::project::{HOST_NETWORK, NO_NETWORK, Network, Port, Service, ServiceNetwork};
use crate::compose::{self, LoadRequest};
use crate::network::PortMapping;
use crate::pod::control::Request;
use crate::pod::layout::PodDir;
use crate::pod::record::{self, Changes, Pod, PublishedPort, Sandbox};
use crate::pod::{adopt, interfaces, ports};

/// Options of `attach`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  sampan network attach shop storage\n  sampan network attach shop lan --interface lan0 --ip 10.20.0.7 --alias printer"
)]
pub struct Attach {
    /// Pod
    pod: String,
    /// Network: a CNI list by name, one of the pod's own, or one that another pod is on
    network: String,
    /// Name of the interface; eth0, eth1, … when not given
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Address; once for IPv4, once for IPv6
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<IpAddr>,
    /// Link address
    #[arg(long, value_name = "ADDRESS")]
    mac: Option<String>,
    /// Further name for other pods on the network; may be given several times
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    /// The network with the highest one has the default route; 0 when not given
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    gw_priority: Option<i64>,
}

/// Options of `detach`.
#[derive(Debug, clap::Args)]
pub struct Detach {
    /// Pod
    pod: String,
    /// Network, or the name of the interface
    network: String,
}

/// Options of `publish` and `unpublish`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  sampan network publish shop 8080:80\n  sampan network publish shop 127.0.0.1:5300:53/udp\n  sampan network unpublish shop 8080:80"
)]
pub struct Publish {
    /// Pod
    pod: String,
    /// Port as `[IP:][HOST:]POD[/PROTOCOL]`; without a host port a free one is chosen
    port: String,
    /// Service that `ps` shows it at; the first when not given
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
}

struct Target {
    dir: PodDir,
    pod: Pod,
    changes: Changes,
}

impl Target {
    fn open(global: &Global, name: &str) -> anyhow::Result<Target> {
        context::check_name(name)?;
        let dir = global.folders()?.pod(name);
        let Some(pod) = adopt::load(&dir)? else {
            bail!("no pod {name} here; `sampan ps -A` lists all");
        };
        let changes = record::read(&dir.changes())?.unwrap_or_default();
        Ok(Target { dir, pod, changes })
    }

    fn ask(&self, request: &Request) -> anyhow::Result<()> {
        adopt::ask(&self.dir, request, &mut output::progress)?;
        Ok(())
    }
}

/// Attaches a network; prints the interface with its addresses.
pub fn attach(global: &Global, args: Attach) -> Outcome {
    let target = Target::open(global, &args.pod)?;
    let mut network = find(global, &target, &args.network)?;
    let name = match &args.interface {
        Some(name) => name.clone(),
        None => interfaces::free_name(&target.pod.project, &target.changes)?,
    };
    network.attachment = settings(&args, &name)?;
    let request = Request::Attach {
        network: Box::new(network),
    };
    target.ask(&request)?;
    let sandbox: Sandbox = record::read(&target.dir.sandbox())?.unwrap_or_default();
    let found = sandbox.interfaces.iter().find(|i| i.name == name);
    let addresses = found.map(|i| i.addresses.clone()).unwrap_or_default();
    let addresses = addresses.iter().map(|a| format!(" {a}"));
    output::print(&format!("{name}{}\n", addresses.collect::<String>()))
}

/// What compose would make of the options: the same checks, the same meaning.
fn settings(args: &Attach, name: &str) -> anyhow::Result<ServiceNetwork> {
    let mut settings = serde_json::json!({"interface_name": name, "aliases": args.alias});
    for ip in &args.ip {
        let key = if ip.is_ipv4() {
            "ipv4_address"
        } else {
            "ipv6_address"
        };
        if settings.get(key).is_some() {
            bail!("--ip {ip}: an interface gets one address of a family");
        }
        settings[key] = ip.to_string().into();
    }
    if let Some(mac) = &args.mac {
        settings["mac_address"] = mac.clone().into();
    }
    if let Some(priority) = args.gw_priority {
        settings["gw_priority"] = priority.into();
    }
    let project = understood(serde_json::json!({"networks": {"default": settings}}))?;
    let network = project.networks.into_iter().next();
    Ok(network.map(|n| n.attachment).unwrap_or_default())
}

/// A service of these keys, as the command line stands for a file.
fn understood(mut service: serde_json::Value) -> anyhow::Result<Project> {
    service["image"] = "none".into();
    let request = LoadRequest {
        files: Vec::new(),
        working_dir: "/".into(),
        project_name: Some("pod".into()),
        environment: Default::default(),
        env_files: Vec::new(),
        profiles: Vec::new(),
    };
    let text = serde_json::json!({"services": {"pod": service}}).to_string();
    // nothing here is a variable
    let text = text.replace('$', "$$");
    let loaded = compose::load_text(&text, "command line", &request);
    // what stands before the key are places in a file that nobody wrote
    let plain = |message: String| match message.split_once("services.pod.") {
        Some((_, rest)) => rest.trim_start_matches("networks.default.").to_string(),
        None => message,
    };
    loaded
        .map(|loaded| loaded.project)
        .map_err(|error| anyhow!(plain(error.message)))
}

/// The network that is meant, without settings of an interface.
fn find(global: &Global, target: &Target, name: &str) -> anyhow::Result<Network> {
    let usable = |n: &&Network| ![HOST_NETWORK, NO_NETWORK].contains(&n.driver.as_str());
    let bare = |network: &Network| Network {
        attachment: ServiceNetwork::default(),
        ..network.clone()
    };
    let mut own = target.pod.project.networks.iter().filter(usable);
    if let Some(network) = own.find(|n| n.key == name || n.name == name) {
        return Ok(bare(network));
    }
    let folders = global.folders()?;
    for other in adopt::names(&folders)? {
        let Some(pod) = adopt::load(&folders.pod(&other))? else {
            continue;
        };
        let generated = pod.project.networks.iter().filter(usable);
        let mut generated = generated.filter(|n| !n.external && n.name == name);
        if let Some(network) = generated.next() {
            // its key is another file's
            return Ok(Network {
                key: name.to_string(),
                ..bare(network)
            });
        }
    }
    target.pod.cni.load(name)?;
    let mut project = understood(serde_json::json!({}))?;
    let Some(implied) = project.networks.pop() else {
        bail!("no network {name}");
    };
    Ok(Network {
        key: name.to_string(),
        name: name.to_string(),
        external: true,
        ..bare(&implied)
    })
}

/// Takes an interface away.
pub fn detach(global: &Global, args: Detach) -> Outcome {
    let target = Target::open(global, &args.pod)?;
    let wanted = interfaces::wanted(&target.pod.project, &target.changes)?;
    let name = &args.network;
    let by_name = wanted.iter().find(|(_, ifname)| ifname == name);
    let of_network: Vec<_> = wanted
        .iter()
        .filter(|(n, _)| n.key == *name || n.name == *name)
        .collect();
    let interface = match (by_name, of_network.as_slice()) {
        (Some((_, ifname)), _) | (None, [(_, ifname)]) => ifname.clone(),
        (None, []) => bail!("pod {} is not on network {name}", args.pod),
        (None, several) => {
            let names: Vec<_> = several.iter().map(|(_, ifname)| ifname.as_str()).collect();
            bail!(
                "pod {} is on network {name} with several interfaces; name one: {}",
                args.pod,
                names.join(", ")
            )
        }
    };
    target.ask(&Request::Detach { interface })?;
    Ok(0)
}

/// Publishes a port; prints it.
pub fn publish(global: &Global, args: Publish) -> Outcome {
    let target = Target::open(global, &args.pod)?;
    let all = wanted_ports(&target, &args)?;
    let mut text = String::new();
    for mut port in all {
        if port.mapping.host_port == 0 {
            // chosen here, so that the request means the same when it is repeated
            let mapping = port.mapping.clone();
            port.mapping = ports::choose(mapping)
                .map_err(|error| anyhow!(ports::refusal(&port.mapping, None, error)))?;
        }
        text.push_str(&format!("{}\n", port.mapping));
        target.ask(&Request::Publish { port })?;
    }
    output::print(&text)
}

/// Takes a published port back.
pub fn unpublish(global: &Global, args: Publish) -> Outcome {
    let target = Target::open(global, &args.pod)?;
    let published: Vec<PublishedPort> = record::read(&target.dir.ports())?.unwrap_or_default();
    for wanted in wanted_ports(&target, &args)? {
        let wanted = wanted.mapping;
        let is_meant = |found: &PortMapping| {
            found.container_port == wanted.container_port
                && found.protocol == wanted.protocol
                && (wanted.host_port == 0 || found.host_port == wanted.host_port)
                && (wanted.host_ip.is_none() || found.host_ip == wanted.host_ip)
        };
        let meant: Vec<_> = published.iter().filter(|p| is_meant(&p.mapping)).collect();
        if meant.is_empty() {
            bail!("pod {} does not publish {wanted}", args.pod);
        }
        for port in meant {
            let port = port.clone();
            target.ask(&Request::Unpublish { port })?;
        }
    }
    Ok(0)
}

fn wanted_ports(target: &Target, args: &Publish) -> anyhow::Result<Vec<PublishedPort>> {
    let services = &target.pod.project.services;
    if let Some(name) = &args.service
        && !services.contains_key(name)
    {
        bail!("pod {} has no service {name}", args.pod);
    }
    // without a word that of the service whose port it is, as far as the file says
    let whose = |port: &Port| {
        let has = |s: &Service| {
            let plain = port.target.to_string();
            let exposed = [format!("{plain}/{}", port.protocol), plain];
            s.ports
                .iter()
                .any(|p| (p.target, &p.protocol) == (port.target, &port.protocol))
                || s.expose.iter().any(|e| exposed.contains(e))
        };
        let own = services.iter().find(|(_, s)| has(s));
        own.map(|(name, _)| name).or_else(|| services.keys().next())
    };
    let project = understood(serde_json::json!({"ports": [args.port]}))?;
    let ports = project.services.into_values().flat_map(|s| s.ports);
    let published = ports.map(|port| PublishedPort {
        service: args
            .service
            .as_ref()
            .or_else(|| whose(&port))
            .cloned()
            .unwrap_or_default(),
        mapping: PortMapping {
            host_port: port.published.unwrap_or(0),
            container_port: port.target,
            protocol: port.protocol,
            host_ip: port.host_ip,
        },
        network: port.network,
    });
    Ok(published.collect())
}
