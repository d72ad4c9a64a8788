//! `sampan network check`, `create`, `rm`, `gc`: networks and what is attached to them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, bail};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::output::{self, Format};
use super::{Global, Outcome, context};
use crate::compose::project::{IpamPool, Network, NetworkExtra, Origin, ServiceNetwork};
use crate::network::gc::{self as collector, Busy, LEASES};
use crate::network::{self, Cni, NetworkList, netns, owner, recorded, subnets};
use crate::pod::adopt::{self, network_caches};
use crate::pod::layout::Folders;
use crate::pod::teardown;
use crate::sys::file::write_atomic;

/// Options of `check`.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// Pods; all when none is named
    pods: Vec<String>,
    /// How to print: `table` or `json`
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    format: Format,
}

/// Options of `create`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
        sampan network create back                      a bridge with a free subnet\n  \
        sampan network create back --subnet 10.7.0.0/24 --ip-range 10.7.0.128/25 --ipv6\n  \
        sampan network create lan --driver macvlan --opt parent=eno1 --subnet 192.168.1.0/24 --gateway 192.168.1.1\n  \
        sampan network create store --driver macvlan --opt parent=eno2 --ipam-driver dhcp")]
pub struct Create {
    /// Name
    name: String,
    /// bridge, macvlan, ipvlan, vlan, vxlan, ptp, or the name of any CNI plugin
    #[arg(short, long, default_value = "bridge", value_name = "TYPE")]
    driver: String,
    /// Subnet, such as 10.7.0.0/24; may be given once per family
    #[arg(long = "subnet", value_name = "NET")]
    subnets: Vec<IpNet>,
    /// Gateway instead of a subnet's first address
    #[arg(long = "gateway", value_name = "ADDRESS")]
    gateways: Vec<IpAddr>,
    /// Part of a subnet that addresses are taken from
    #[arg(long = "ip-range", value_name = "NET")]
    ranges: Vec<IpNet>,
    /// IPv6 too
    #[arg(long)]
    ipv6: bool,
    /// No way out: neither gateway nor address translation
    #[arg(long)]
    internal: bool,
    /// Option of the driver; may be given several times
    #[arg(short, long = "opt", value_name = "KEY=VALUE", value_parser = context::pair)]
    options: Vec<(String, String)>,
    /// Plugin that gives addresses instead of host-local: static, dhcp, …
    #[arg(long, value_name = "TYPE")]
    ipam_driver: Option<String>,
    /// Option of that plugin; may be given several times
    #[arg(long = "ipam-opt", value_name = "KEY=VALUE", value_parser = context::pair)]
    ipam_options: Vec<(String, String)>,
}

/// Options of `rm`.
#[derive(Debug, clap::Args)]
pub struct Rm {
    /// Names
    #[arg(required = true)]
    networks: Vec<String>,
}

/// Options of `gc`.
#[derive(Debug, clap::Args)]
pub struct Gc {
    /// Networks; all, and pods that could not be removed, when none is named
    networks: Vec<String>,
    /// How to print: `table` or `json`
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    format: Format,
}

/// CHECK of every attachment of pods; exit code 1 when one is not as it should be.
pub fn check(global: &Global, args: &Check) -> Outcome {
    let folders = global.folders()?;
    let names = match args.pods.is_empty() {
        true => adopt::names(&folders)?,
        false => args.pods.clone(),
    };
    let mut rows = Vec::new();
    for name in &names {
        context::check_name(name)?;
        let dir = folders.pod(name);
        let Some(pod) = adopt::load(&dir)? else {
            // one that is just being made, when all are meant
            match args.pods.is_empty() {
                true => continue,
                false => bail!("no pod {name} here; `sampan ps -A` lists all"),
            }
        };
        for one in recorded(&dir.network())? {
            let error = network::check(&pod.cni, &dir.netns(), &one.cache).err();
            let attachment = one.attachment;
            rows.push((
                name.clone(),
                attachment.ifname,
                attachment.network.name,
                error,
            ));
        }
    }
    let failed = rows.iter().any(|(.., error)| error.is_some());
    match args.format {
        Format::Json => output::json(
            &rows
                .iter()
                .map(|(pod, interface, network, error)| {
                    json!({"version": 1, "pod": pod, "interface": interface, "network": network,
                        "ok": error.is_none(), "error": error.as_ref().map(ToString::to_string)})
                })
                .collect::<Vec<_>>(),
        )?,
        Format::Table => output::table(
            &["POD", "INTERFACE", "NETWORK", "CHECK"],
            rows.into_iter()
                .map(|(pod, interface, network, error)| {
                    let text = error.map_or("ok".to_string(), |error| error.to_string());
                    vec![pod, interface, network, text]
                })
                .collect(),
        )?,
    };
    Ok(u8::from(failed))
}

/// Writes a network list; prints its path.
pub fn create(global: &Global, args: &Create) -> Outcome {
    let (folders, cni) = (global.folders()?, global.cni()?);
    if let Ok(known) = cni.load(&args.name) {
        bail!("network {} is there already: {}", args.name, known.source);
    }
    if subnets::registered(&folders.state)?
        .iter()
        .any(|n| n.name == args.name)
    {
        bail!(
            "network {} is one that pods were given; choose another name",
            args.name
        );
    }
    let network = args.network()?;
    let subnets = match network::is_routed(&network) {
        true => subnets::choose(&folders.state, &network, &subnets::in_use(&cni)?)?,
        false => args.subnets.clone(),
    };
    let mut list = network::generate(&network, &subnets, Path::new(LEASES))?;
    if !args.internal {
        add_default_routes(&mut list, &subnets);
    }
    for kind in list.types() {
        if !network::is_there(kind, &cni.plugin_dirs) {
            let dirs: Vec<_> = cni
                .plugin_dirs
                .iter()
                .map(|d| d.display().to_string())
                .collect();
            bail!(
                "plugin {kind} is neither built in nor in {}; install it, or name its folder with --cni-path",
                dirs.join(", ")
            );
        }
    }
    let Some(dir) = cni.conf_dirs.first() else {
        bail!("no folder of CNI configuration; name one with --cni-conf");
    };
    std::fs::create_dir_all(dir).with_context(|| format!("create folder {}", dir.display()))?;
    let path = dir.join(format!("{}.conflist", args.name));
    if path.exists() {
        bail!(
            "{} is there already and holds something else",
            path.display()
        );
    }
    // as generated, and the commands GC and STATUS where the plugins have them
    if let Some(config) = list.config.as_object_mut() {
        config.insert("cniVersions".into(), json!(["1.0.0", "1.1.0"]));
    }
    let text = serde_json::to_string_pretty(&list.config)? + "\n";
    write_atomic(&path, text.as_bytes(), 0o644)
        .with_context(|| format!("write {}", path.display()))?;
    output::print(&format!("{}\n", path.display()))
}

impl Create {
    fn network(&self) -> anyhow::Result<Network> {
        let mut ipam: Vec<_> = self
            .subnets
            .iter()
            .map(|subnet| IpamPool {
                subnet: *subnet,
                ip_range: None,
                gateway: None,
                aux_addresses: BTreeMap::new(),
            })
            .collect();
        for range in &self.ranges {
            let pool = ipam.iter_mut().find(|pool| pool.subnet.contains(range));
            pool.with_context(|| format!("--ip-range {range}: in no --subnet"))?
                .ip_range = Some(*range);
        }
        for gateway in &self.gateways {
            let pool = ipam.iter_mut().find(|pool| pool.subnet.contains(gateway));
            pool.with_context(|| format!("--gateway {gateway}: in no --subnet"))?
                .gateway = Some(*gateway);
        }
        Ok(Network {
            key: self.name.clone(),
            origin: Origin {
                file: "network create".into(),
                line: 0,
            },
            name: self.name.clone(),
            external: false,
            driver: self.driver.clone(),
            driver_opts: self.options.iter().cloned().collect(),
            internal: self.internal,
            enable_ipv4: true,
            enable_ipv6: self.ipv6 || self.subnets.iter().any(|net| net.addr().is_ipv6()),
            ipam_driver: self.ipam_driver.clone(),
            ipam_options: self.ipam_options.iter().cloned().collect(),
            ipam,
            extra: NetworkExtra::default(),
            labels: BTreeMap::new(),
            attachment: ServiceNetwork::default(),
        })
    }
}

/// A generated list leaves default routes to the pod; one in a file is for everybody.
fn add_default_routes(list: &mut NetworkList, subnets: &[IpNet]) {
    let plugins = list.config.get_mut("plugins").and_then(Value::as_array_mut);
    for plugin in plugins.into_iter().flatten() {
        let Some(ipam) = plugin.get_mut("ipam").and_then(Value::as_object_mut) else {
            continue;
        };
        let routes: Vec<_> = subnets
            .iter()
            .map(|net| {
                if net.addr().is_ipv4() {
                    "0.0.0.0/0"
                } else {
                    "::/0"
                }
            })
            .map(|dst| json!({"dst": dst}))
            .collect();
        if !routes.is_empty() && !ipam.contains_key("routes") {
            ipam.insert("routes".into(), json!(routes));
        }
    }
}

/// Removes the files of networks.
pub fn remove(global: &Global, args: &Rm) -> Outcome {
    let (folders, cni) = (global.folders()?, global.cni()?);
    for name in &args.networks {
        let list = cni.load(name)?;
        let users = collector::attached(&cni, &list, &network_caches(&folders)?)?;
        if !users.is_empty() {
            let prefix = owner::prefix(&folders.state);
            let users: Vec<_> = users
                .iter()
                .map(|(id, ifname)| match id.strip_prefix(&prefix) {
                    Some(name) if name.contains('.') => format!("{ifname} by `sampan cni`"),
                    Some(pod) => format!("{ifname} of pod {pod}"),
                    None => format!("{ifname} of container {id} of another runtime"),
                })
                .collect();
            bail!("network {name} is in use: {}", users.join(", "));
        }
        collector::collect(&cni, &list, &network_caches(&folders)?, Busy::Wait)?;
        std::fs::remove_file(&list.source).with_context(|| format!("remove {}", list.source))?;
        collector::forget_leases(&list)?;
        output::print(&format!("{}\n", list.source))?;
    }
    Ok(0)
}

/// Removes what is left over; goes on after errors, exit code 1 when there were any.
pub fn gc(global: &Global, args: &Gc) -> Outcome {
    let (folders, cni) = (global.folders()?, global.cni()?);
    let mut failed = 0;
    let mut tell = |error: &dyn std::fmt::Display| {
        failed = 1;
        output::error(&error.to_string());
    };
    let all = args.networks.is_empty();
    let mut rows: Vec<(&str, String, usize)> = Vec::new();
    if all {
        for name in adopt::names(&folders)? {
            match finish(&folders, &name) {
                Ok(true) => rows.push(("pod", name, 1)),
                Ok(false) => {}
                Err(error) => tell(&format!("pod {name}: {error}")),
            }
        }
        for one in recorded(&folders.by_hand())? {
            if !netns::exists(&one.netns) {
                match network::del(&cni, None, &one.cache) {
                    Ok(()) => rows.push(("attachment", one.attachment.container_id, 1)),
                    Err(error) => tell(&error),
                }
            }
        }
    }
    let (lists, broken) = networks(&folders, &cni, args)?;
    broken.iter().for_each(|error| tell(error));
    let caches = network_caches(&folders)?;
    for list in &lists {
        match collector::collect(&cni, list, &caches, Busy::Wait) {
            Ok(count) => rows.push(("network", list.name.clone(), count)),
            Err(error) => tell(&error),
        }
    }
    // which files are broken may be the ones of the networks in question
    if all && broken.is_empty() {
        match collector::collect_orphans(&folders.state, &lists, &caches) {
            Ok(0) => {}
            Ok(count) => rows.push(("network", "without a list".into(), count)),
            Err(error) => tell(&error),
        }
    }
    match args.format {
        Format::Json => output::json(
            &rows
                .iter()
                .map(|(kind, name, freed)| json!({"version": 1, "kind": kind, "name": name, "freed": freed}))
                .collect::<Vec<_>>(),
        )?,
        Format::Table => output::table(
            &["KIND", "NAME", "FREED"],
            rows.into_iter()
                .map(|(kind, name, freed)| vec![kind.into(), name, freed.to_string()])
                .collect(),
        )?,
    };
    Ok(failed)
}

/// Frees what attachments left that are gone, on networks that nobody is at work on. 1 when one could not be looked after.
pub fn sweep_idle(global: &Global) -> Outcome {
    let (folders, cni) = (global.folders()?, global.cni()?);
    let all = Gc {
        networks: Vec::new(),
        format: Format::Table,
    };
    let (lists, broken) = networks(&folders, &cni, &all)?;
    let caches = network_caches(&folders)?;
    let swept = lists
        .iter()
        .map(|list| collector::collect(&cni, list, &caches, Busy::Skip));
    let failed: Vec<network::Error> = swept.filter_map(Result::err).chain(broken).collect();
    for error in &failed {
        output::error(&error.to_string());
    }
    Ok(u8::from(!failed.is_empty()))
}

/// Goes on with the removal of a pod. False: it is none that is being removed.
fn finish(folders: &Folders, name: &str) -> anyhow::Result<bool> {
    let dir = folders.pod(name);
    if adopt::removing(&dir)?.is_none() {
        return Ok(false);
    }
    let _lock = adopt::lock(folders, name)?;
    // finished meanwhile
    if adopt::removing(&dir)?.is_some() {
        teardown::finish(folders, &dir, &mut output::progress)?;
    }
    Ok(true)
}

/// The lists in files, and those that pods were given.
fn networks(
    folders: &Folders,
    cni: &Cni,
    args: &Gc,
) -> anyhow::Result<(Vec<NetworkList>, Vec<network::Error>)> {
    let (mut lists, broken) = cni.list()?;
    for cache in network_caches(folders)? {
        for one in recorded(&cache)? {
            let list = one.attachment.network;
            if !lists.iter().any(|known| known.name == list.name) {
                lists.push(list);
            }
        }
    }
    if args.networks.is_empty() {
        return Ok((lists, broken));
    }
    let named = args.networks.iter().map(|name| {
        let found = lists.iter().find(|list| list.name == *name);
        found.cloned().map_or_else(|| Ok(cni.load(name)?), Ok)
    });
    Ok((named.collect::<anyhow::Result<_>>()?, Vec::new()))
}
