//! `sampan cni …`: a network configuration by hand, as `cnitool` does it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use super::{Global, Outcome, context, output};
use crate::network::gc::{self, Busy};
use crate::network::{self, Attachment, Cni, owner};
use crate::pod::adopt::network_caches;

/// Options of `cni`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
        ip netns add try\n  \
        sampan cni ADD lab try                          prints the result\n  \
        sampan cni CHECK lab try\n  \
        sampan cni DEL lab try\n  \
        sampan cni ADD lab try -i store0 --capability-args '{\"ips\": [\"10.1.0.7/24\"]}'\n  \
        sampan cni VERSION lab                          what its plugins know\n\n\
        The variables of cnitool are heeded: NETCONFPATH, CNI_PATH, CNI_ARGS, CAP_ARGS, CNI_IFNAME.")]
pub struct Args {
    /// What the network's plugins are told to do
    #[arg(value_enum, ignore_case = true)]
    command: Command,
    /// Name of the network
    network: String,
    /// Network namespace: a path, or a name of `ip netns`; for ADD, CHECK and DEL
    netns: Option<PathBuf>,
    /// Name of the interface in the namespace
    #[arg(
        short,
        long,
        env = "CNI_IFNAME",
        hide_env_values = true,
        default_value = "eth0",
        value_name = "NAME"
    )]
    ifname: String,
    /// Arguments for all plugins: KEY=VALUE, separated by semicolons
    #[arg(
        long,
        env = "CNI_ARGS",
        hide_env_values = true,
        default_value = "",
        hide_default_value = true,
        value_name = "PAIRS"
    )]
    args: String,
    /// Arguments for the plugins that declare the capability: a JSON object
    #[arg(
        long,
        env = "CAP_ARGS",
        hide_env_values = true,
        default_value = "{}",
        hide_default_value = true,
        value_name = "JSON"
    )]
    capability_args: String,
    /// Label of the container; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = context::pair)]
    labels: Vec<(String, String)>,
    /// Container id instead of one that follows from the namespace
    #[arg(long, value_name = "ID")]
    container_id: Option<String>,
}

/// `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Command {
    /// Connect the namespace; prints the result
    #[value(name = "ADD")]
    Add,
    /// Disconnect it; what was never connected is success
    #[value(name = "DEL")]
    Del,
    /// Verify that it is connected as ADD left it
    #[value(name = "CHECK")]
    Check,
    /// Remove what attachments left that are gone
    #[value(name = "GC")]
    Gc,
    /// Say whether ADD would work
    #[value(name = "STATUS")]
    Status,
    /// Print the versions that each plugin knows
    #[value(name = "VERSION")]
    Version,
}

/// Runs one command.
pub fn run(global: &Global, args: &Args) -> Outcome {
    let folders = global.folders()?;
    let cni = with_variables(global.cni()?);
    let network = cni.load(&args.network);
    match args.command {
        Command::Gc => {
            let freed = gc::collect(&cni, &network?, &network_caches(&folders)?, Busy::Wait)?;
            output::json(&json!({"version": 1, "freed": freed}))
        }
        Command::Status => network::status(&cni, &network?).map(|()| Ok(0))?,
        Command::Version => {
            let known: BTreeMap<_, _> = network::versions(&cni, &network?)?.into_iter().collect();
            output::json(&known)
        }
        Command::Add | Command::Del | Command::Check => {
            let netns = namespace(args)?;
            let id = match &args.container_id {
                Some(id) => id.clone(),
                None => owner::by_hand(&folders.state, &netns),
            };
            let name = format!("{}-{id}-{}.json", args.network, args.ifname);
            if name.contains('/') {
                bail!("{name}: neither network, container id nor interface may hold a slash");
            }
            let cache = folders.by_hand().join(name);
            let attachment = || -> anyhow::Result<Attachment> {
                Ok(Attachment {
                    network: network?,
                    container_id: id,
                    ifname: args.ifname.clone(),
                    args: pairs(&args.args)?,
                    labels: args.labels.iter().cloned().collect(),
                    capabilities: serde_json::from_str::<Map<String, Value>>(&args.capability_args)
                        .context("--capability-args: not a JSON object")?,
                    ..Attachment::default()
                })
            };
            match args.command {
                Command::Add => {
                    let attached = network::add(&cni, &netns, &attachment()?, &cache)?;
                    output::json(&attached.result)
                }
                Command::Check => network::check(&cni, &netns, &cache).map(|()| Ok(0))?,
                _ if cache.exists() => network::del(&cni, Some(&netns), &cache).map(|()| Ok(0))?,
                _ => network::del_unrecorded(&cni, Some(&netns), &attachment()?).map(|()| Ok(0))?,
            }
        }
    }
}

/// Folders as cnitool finds them, where none were given in our own words.
fn with_variables(mut cni: Cni) -> Cni {
    let paths = |name: &str| -> Option<Vec<PathBuf>> {
        let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
        Some(std::env::split_paths(&value).collect())
    };
    if cni.conf_dirs == [Path::new(super::CNI_CONF)] {
        cni.conf_dirs = paths("NETCONFPATH").unwrap_or(cni.conf_dirs);
    }
    if cni.plugin_dirs
        == super::CNI_PATH
            .split(':')
            .map(PathBuf::from)
            .collect::<Vec<_>>()
    {
        cni.plugin_dirs = paths("CNI_PATH").unwrap_or(cni.plugin_dirs);
    }
    cni
}

/// The absolute path of the namespace.
fn namespace(args: &Args) -> anyhow::Result<PathBuf> {
    let Some(given) = &args.netns else {
        bail!("ADD, CHECK and DEL need a network namespace behind the network's name");
    };
    let is_name = given.components().count() == 1 && !given.exists();
    let path = if is_name {
        Path::new("/run/netns").join(given)
    } else {
        given.clone()
    };
    std::path::absolute(&path).with_context(|| path.display().to_string())
}

fn pairs(text: &str) -> anyhow::Result<Vec<(String, String)>> {
    let pairs = text.split(';').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| context::pair(pair).map_err(anyhow::Error::msg))
        .collect()
}
