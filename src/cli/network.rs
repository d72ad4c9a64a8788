//! `sampan network …`.

use std::collections::BTreeMap;

use anyhow::bail;
use clap::Subcommand;
use serde_json::json;

use super::output::{self, Format};
use super::{Global, Outcome, live, networks};
use crate::network::{self, NetworkList, subnets};
use crate::pod::adopt;
use crate::pod::record::{self, Sandbox};

/// What to do with networks.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the CNI networks and those made for pods
    Ls {
        /// How to print: `table` or `json`
        #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
        format: Format,
    },
    /// Show a network's configuration and the pods on it, as JSON
    Inspect {
        /// Names
        #[arg(required = true)]
        networks: Vec<String>,
    },
    /// Check that pods are connected as their networks' plugins left them
    Check(networks::Check),
    /// Write a network list into the first folder of CNI configuration
    Create(networks::Create),
    /// Remove network lists that nobody uses
    Rm(networks::Rm),
    /// Remove what attachments left that are gone: addresses, rules, pods that could not be removed
    Gc(networks::Gc),
    /// Attach a network to a running pod
    Attach(live::Attach),
    /// Take a network from a running pod
    Detach(live::Detach),
    /// Publish a port of a running pod
    Publish(live::Publish),
    /// Take a published port of a running pod back
    Unpublish(live::Publish),
}

/// Runs one of them.
pub fn run(global: &Global, command: Command) -> Outcome {
    match command {
        Command::Ls { format } => list(global, format),
        Command::Inspect { networks } => {
            let all: anyhow::Result<Vec<_>> = networks.iter().map(|n| inspect(global, n)).collect();
            output::json(&all?)
        }
        Command::Check(args) => networks::check(global, &args),
        Command::Create(args) => networks::create(global, &args),
        Command::Rm(args) => networks::remove(global, &args),
        Command::Gc(args) => networks::gc(global, &args),
        Command::Attach(args) => live::attach(global, args),
        Command::Detach(args) => live::detach(global, args),
        Command::Publish(args) => live::publish(global, args),
        Command::Unpublish(args) => live::unpublish(global, args),
    }
}

/// Pods with their interfaces on a network.
fn pods(global: &Global, network: &str) -> anyhow::Result<Vec<serde_json::Value>> {
    let folders = global.folders()?;
    let mut found = Vec::new();
    for name in adopt::names(&folders)? {
        let sandbox: Sandbox = record::read(&folders.pod(&name).sandbox())?.unwrap_or_default();
        for interface in sandbox.interfaces.iter().filter(|i| i.network == network) {
            found.push(json!({"pod": name, "interface": interface}));
        }
    }
    Ok(found)
}

/// Lists of the networks that pods are on, as they were made for them.
fn in_use(global: &Global) -> anyhow::Result<BTreeMap<String, NetworkList>> {
    let mut lists = BTreeMap::new();
    for cache in adopt::network_caches(&global.folders()?)? {
        for record in network::recorded(&cache)? {
            let list = record.attachment.network;
            lists.entry(list.name.clone()).or_insert(list);
        }
    }
    Ok(lists)
}

fn list(global: &Global, format: Format) -> Outcome {
    let (lists, errors) = global.cni()?.list()?;
    for error in &errors {
        output::warning(&error.to_string());
    }
    let generated = subnets::registered(&global.folders()?.state)?;
    let in_use = in_use(global)?;
    let plugins = |list: &NetworkList| -> Vec<String> {
        list.types().iter().map(|t| t.to_string()).collect()
    };
    let mut rows = Vec::new();
    for list in &lists {
        rows.push((
            list.name.clone(),
            list.source.clone(),
            plugins(list),
            Vec::new(),
        ));
    }
    for network in &generated {
        rows.push((
            network.name.clone(),
            "generated".to_string(),
            in_use.get(&network.name).map(plugins).unwrap_or_default(),
            network.subnets.clone(),
        ));
    }
    if format == Format::Json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(name, source, plugins, subnets)| {
                json!({"version": 1, "name": name, "source": source, "plugins": plugins, "subnets": subnets})
            })
            .collect();
        return output::json(&rows);
    }
    let rows = rows
        .into_iter()
        .map(|(name, source, plugins, subnets)| {
            let subnets: Vec<String> = subnets.iter().map(ToString::to_string).collect();
            vec![name, plugins.join("+"), subnets.join(", "), source]
        })
        .collect();
    output::table(&["NETWORK", "PLUGINS", "SUBNETS", "FROM"], rows)
}

fn inspect(global: &Global, name: &str) -> anyhow::Result<serde_json::Value> {
    let pods = pods(global, name)?;
    let generated = subnets::registered(&global.folders()?.state)?;
    if let Some(network) = generated.iter().find(|n| n.name == name) {
        return Ok(json!({
            "version": 1, "name": name, "source": "generated", "subnets": network.subnets,
            "config": in_use(global)?.remove(name).map(|list| list.config), "pods": pods,
        }));
    }
    match global.cni()?.load(name) {
        Ok(list) => Ok(json!({
            "version": 1, "name": name, "source": list.source, "config": list.config, "pods": pods,
        })),
        Err(error) => bail!("{error}"),
    }
}
