//! The plugin `policy`: who may talk to whom, by label, while pods come and go and while the rules change.
//!
//! ```text
//! ADD, DEL, GC, apply ─► store (files) ─► rules (pure) ─► one change of the network's nftables tables
//! ```
//!
//! *Invariants*: the tables follow from the files alone, and replacing them is one change: there is no moment without
//! rules. The policy in force is the one of the last ADD or [`apply`]; DEL and GC have no say in it. A connection whose
//! permission is withdrawn ends. All of it happens under the host lock.

mod conf;
mod rules;
mod store;

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::Path;

use serde_json::Value;

use crate::conf::Conf;
use crate::conntrack;
use crate::error::{CniError, DECODE_FAILURE, Result, all, with_undo};
use crate::link::Links;
use crate::netns::HostLock;
use crate::nft::{Batch, Chain, Expr, FORWARD, Family, Nft, RELATED, Rule, Table};
use crate::result::AddResult;
use crate::skel::{Invocation, Plugin};
use crate::sysctl;
use crate::tag;
use conf::{Action, Pod, PolicyConf, folder_of};
use rules::{Bridging, contents, table};
use store::{Store, file_name};

/// The commands.
pub const PLUGIN: Plugin = Plugin {
    add,
    del,
    check,
    gc,
    status,
};

const FAMILIES: [Family; 2] = [Family::Inet, Family::Bridge];
const BR_NETFILTER: [&str; 2] = ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"];

/// Makes the rules of a configuration those of the network's running pods, as one change.
///
/// # Errors
/// As ADD; the rules in force stay then.
pub fn apply(config: &Value) -> Result<()> {
    let conf = Conf::new(config.clone())?;
    let policy = PolicyConf::new(&conf)?;
    let lock = HostLock::take()?;
    let store = Store(policy.folder.clone());
    if store.attachments()?.is_empty() {
        return Ok(());
    }
    let before = store.policy()?;
    enforce(&conf.name, &store, &policy, &lock).map_err(|error| {
        // what is written down is what is in force
        with_undo(error, store.set_policy(&before).map(|_| ()))
    })
}

/// `cni-plugins policy apply CONFIGURATION`: [`apply`] for each `policy` of a network list, or the one that a plugin's
/// configuration is.
pub fn command(mut args: impl Iterator<Item = OsString>) -> Result<()> {
    let (verb, file, end) = (args.next(), args.next(), args.next());
    let (Some(file), None) = (
        file.filter(|_| verb.is_some_and(|verb| verb == "apply")),
        end,
    ) else {
        return Err(CniError::config(
            "policy apply CONFIGURATION is known, with a network list or a plugin's configuration",
        ));
    };
    let path = Path::new(&file);
    let value: Value = serde_json::from_slice(&conf::read_bounded(path)?).map_err(|cause| {
        CniError::new(DECODE_FAILURE, format!("cannot read {}", path.display())).because(cause)
    })?;
    let is_policy = |plugin: &&Value| plugin.get("type").is_some_and(|kind| kind == "policy");
    let plugins = match value.get("plugins").and_then(Value::as_array) {
        Some(list) => list.iter().filter(is_policy).cloned().collect(),
        None => Vec::from_iter(Some(&value).filter(is_policy).cloned()),
    };
    if plugins.is_empty() {
        let what = format!("{} has no plugin of type policy", path.display());
        return Err(CniError::config(what));
    }
    for mut plugin in plugins {
        // as a runtime would
        for key in ["cniVersion", "name"] {
            if let Some(of_list) = value.get(key) {
                plugin[key] = of_list.clone();
            }
        }
        apply(&plugin)?;
    }
    Ok(())
}

fn add(conf: &Conf, invocation: &Invocation) -> Result<Value> {
    let policy = PolicyConf::new(conf)?;
    let result = conf.required_prev_result()?;
    let answer = conf.passed_on()?;
    let pod = pod(&policy, &result, invocation)?;
    let lock = HostLock::take()?;
    let store = Store(policy.folder.clone());
    let name = file_name(&invocation.container_id, &invocation.ifname);
    store.add(&name, &pod)?;
    match enforce(&conf.name, &store, &policy, &lock) {
        Ok(()) => Ok(answer),
        Err(error) => {
            let undone = store
                .remove(&name)
                .and_then(|()| synchronize(&conf.name, &store));
            Err(with_undo(error, undone))
        }
    }
}

/// The pod as the rules see it.
fn pod(policy: &PolicyConf, result: &AddResult, invocation: &Invocation) -> Result<Pod> {
    let addresses: Vec<IpAddr> = result
        .container_ips(&invocation.ifname)
        .map(|ip| ip.address.addr())
        .collect();
    if addresses.is_empty() {
        return Err(CniError::config(format!(
            "policy: interface {} has no address, by which packets are told apart",
            invocation.ifname
        )));
    }
    let mut host = Links::open()?;
    let port = host.host_end(result)?.ok_or_else(|| {
        CniError::config(format!(
            "policy: interface {} is no end of a veth pair: what it sends doesn't pass the host's rules",
            invocation.ifname
        ))
    })?;
    let bridge = port
        .controller
        .map_or(Ok(None), |index| host.by_index(index))?;
    Ok(Pod {
        labels: policy.labels(&invocation.args),
        addresses,
        port: port.name,
        bridge: bridge.map(|bridge| bridge.name),
    })
}

/// Puts the configuration's policy in force and ends what it forbids.
fn enforce(network: &str, store: &Store, policy: &PolicyConf, _lock: &HostLock) -> Result<()> {
    let changed = store.set_policy(&policy.policy)?;
    synchronize(network, store)?;
    if changed {
        end_forbidden(store)?;
    }
    Ok(())
}

/// Makes the tables what the files want.
fn synchronize(network: &str, store: &Store) -> Result<()> {
    let mut nft = Nft::open()?;
    let pods = store.pods()?;
    let mut wanted = Vec::new();
    if !pods.is_empty() {
        let bridging = bridging(&mut nft, &pods)?;
        if bridging == Bridging::Host {
            show_to_host(&pods)?;
        }
        wanted = contents(network, &store.policy()?, &pods, bridging);
    }
    let mut batch = Batch::default();
    for family in FAMILIES {
        match wanted.iter().find(|known| known.table.family == family) {
            Some(content) => {
                nft.empty(&mut batch, &content.table)?;
                for set in &content.sets {
                    batch.set(&content.table, set);
                }
                for rule in &content.rules {
                    batch.rule(&content.table, rule);
                }
            }
            None => {
                let table = table(network, family);
                if nft.has_chain(&table, rules::SENDERS)? {
                    batch.delete_table(&table);
                }
            }
        }
    }
    nft.apply(batch)?;
    if pods.is_empty() {
        store.clear()?;
    }
    Ok(())
}

/// How packets from port to port of a bridge can be judged.
fn bridging(nft: &mut Nft, pods: &[Pod]) -> Result<Bridging> {
    let there = |name: &&str| sysctl::exists(&["bridge", name]);
    let on = |name: &&str| sysctl::is_on(&["bridge", name]);
    if pods.iter().all(|pod| pod.bridge.is_none()) || BR_NETFILTER.iter().all(on) {
        return Ok(Bridging::Host);
    }
    match follows_connections(nft) {
        Ok(()) => Ok(Bridging::Bridge),
        Err(_) if BR_NETFILTER.iter().all(there) => Ok(Bridging::Host),
        Err(error) => Err(CniError::operation(
            "policy: what passes from port to port of a bridge can't be judged",
            format!(
                "the kernel has neither nf_conntrack_bridge (CONFIG_NF_CONNTRACK_BRIDGE) nor br_netfilter: {error}"
            ),
        )),
    }
}

/// Whether the kernel follows connections inside a bridge: asked by a table that is gone before anybody sees it.
fn follows_connections(nft: &mut Nft) -> Result<()> {
    const PROBE: Table = Table {
        family: Family::Bridge,
        name: std::borrow::Cow::Borrowed("sampan_policy"),
        chains: &[Chain::base("forward", "filter", FORWARD, 0)],
    };
    let mut batch = Batch::default();
    batch.table(&PROBE);
    let rule = Rule {
        chain: "forward".into(),
        exprs: vec![Expr::State(RELATED), Expr::Accept],
        comment: String::new(),
    };
    batch.rule(&PROBE, &rule);
    batch.delete_table(&PROBE);
    nft.apply(batch)
}

/// Has the bridges of the pods show their packets to the host's hooks, tagged ones too, whatever the host's default is.
fn show_to_host(pods: &[Pod]) -> Result<()> {
    let mut bridges: Vec<&String> = pods.iter().filter_map(|pod| pod.bridge.as_ref()).collect();
    bridges.sort();
    bridges.dedup();
    if bridges.is_empty() {
        return Ok(());
    }
    sysctl::set(&["bridge", "bridge-nf-filter-vlan-tagged"], "1")?;
    let mut host = Links::open()?;
    for name in bridges {
        // gone with its last port: there is nothing to judge
        if let Some(bridge) = host.by_name(name)? {
            host.show_to_netfilter(&bridge)?;
        }
    }
    Ok(())
}

/// Ends the connections of pods that the policy in force forbids. Packets of the opener are dropped by the rules; this
/// makes those of the other side new ones, which the rules see. The host's own connections aren't the policy's matter.
fn end_forbidden(store: &Store) -> Result<()> {
    let (policy, pods) = (store.policy()?, store.pods()?);
    let host = Links::open()?.all_addresses()?;
    let is_pod = |address| pods.iter().any(|pod| pod.addresses.contains(&address));
    conntrack::forget(|flow| {
        let flow = conf::Flow {
            protocol: flow.protocol,
            source: flow.source,
            destination: flow.answers,
            port: flow.port,
        };
        (is_pod(flow.source) || is_pod(flow.destination))
            && !host.contains(&flow.source)
            && policy.decide(&flow, &pods) == Action::Deny
    })
}

fn del(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let store = Store(folder_of(conf));
    let _lock = HostLock::take()?;
    let name = file_name(&invocation.container_id, &invocation.ifname);
    let removed = store.remove(&name);
    all([removed, synchronize(&conf.name, &store)])
}

fn check(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let policy = PolicyConf::new(conf)?;
    let result = conf.required_prev_result()?;
    let pod = pod(&policy, &result, invocation)?;
    let _lock = HostLock::take()?;
    let store = Store(policy.folder);
    let pods = store.pods()?;
    if !pods.contains(&pod) {
        return Err(CniError::check(format!(
            "the policy of network {} does not know {} of container {} as it is",
            conf.name, invocation.ifname, invocation.container_id
        )));
    }
    let mut nft = Nft::open()?;
    let bridging = bridging(&mut nft, &pods)?;
    for content in contents(&conf.name, &store.policy()?, &pods, bridging) {
        nft.check(&content.table, &content.rules)?;
        for set in &content.sets {
            if !nft.has(&content.table, set)? {
                return Err(CniError::check(format!(
                    "the nftables set {} {} is not what the pods of network {} make it",
                    content.table, set.name, conf.name
                )));
            }
        }
    }
    Ok(())
}

fn gc(conf: &Conf, _: &Invocation) -> Result<()> {
    let (valid, runtime) = (conf.valid_attachments()?, conf.runtime()?);
    let store = Store(folder_of(conf));
    let _lock = HostLock::take()?;
    let mut done = Vec::new();
    for known in store.attachments()? {
        if !valid.contains(&known) && tag::is_of_runtime(runtime, &known.container_id) {
            done.push(store.remove(&file_name(&known.container_id, &known.ifname)));
        }
    }
    done.push(synchronize(&conf.name, &store));
    all(done)
}

fn status(conf: &Conf, _: &Invocation) -> Result<()> {
    PolicyConf::new(conf).map(|_| ())
}
