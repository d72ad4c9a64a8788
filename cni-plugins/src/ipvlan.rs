//! The plugin `ipvlan`: an interface with the link address of one of the host's and addresses of its own.
//!
//! *Invariants*: those of module `single`. As a link of a chain without an address plugin it stands on the interface of
//! the result before it, and takes that one's addresses.

use serde::Deserialize;
use serde_json::Value;

use crate::conf::Conf;
use crate::error::{CniError, Result};
use crate::link::{IpVlanMode, Kind};
use crate::result::AddResult;
use crate::single::{self, Lower, same_kind};
use crate::skel::{Invocation, Plugin};

/// The commands.
pub const PLUGIN: Plugin = Plugin {
    add,
    del: single::del,
    check,
    gc: single::gc,
    status,
};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Wire {
    #[serde(flatten)]
    lower: Lower,
    mode: String,
}

fn read(conf: &Conf) -> Result<(Lower, Kind)> {
    let wire: Wire = conf.parse()?;
    let mode = match wire.mode.as_str() {
        "" | "l2" => IpVlanMode::L2,
        "l3" => IpVlanMode::L3,
        "l3s" => IpVlanMode::L3S,
        other => return Err(CniError::config(format!("unknown ipvlan mode {other:?}"))),
    };
    Ok((wire.lower, Kind::IpVlan(mode)))
}

fn add(conf: &Conf, invocation: &Invocation) -> Result<Value> {
    let (mut lower, kind) = read(conf)?;
    let previous = conf.prev_result()?;
    if lower.master.is_empty()
        && let Some(previous) = &previous
    {
        lower.master = match previous.interfaces.as_slice() {
            [only] if !only.name.is_empty() => only.name.clone(),
            _ => {
                return Err(CniError::config(
                    "no master is given and prevResult has not exactly one interface",
                ));
            }
        };
    }
    let given = AddResult {
        interfaces: Vec::new(),
        ..previous.unwrap_or_default()
    };
    single::add_with(conf, invocation, given, |sides| {
        let making = lower.making(sides, kind, false)?;
        sides.create(&making).map(|_| ())
    })
}

fn check(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let (lower, kind) = read(conf)?;
    single::check(conf, invocation, |sides, link| {
        same_kind(link, &kind)?;
        // what it stood on in a chain isn't in the result
        if lower.master.is_empty() {
            return Ok(());
        }
        lower.check(sides, link)
    })
}

fn status(conf: &Conf, invocation: &Invocation) -> Result<()> {
    read(conf)?.0.status("ipvlan")?;
    single::status(conf, invocation)
}
