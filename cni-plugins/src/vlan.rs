//! The plugin `vlan`: the frames of one of the host's interfaces with one VLAN id.
//!
//! *Invariants*: those of module `single`.

use serde::Deserialize;
use serde_json::Value;

use crate::conf::Conf;
use crate::error::{CniError, Result};
use crate::link::Kind;
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
#[serde(default, rename_all = "camelCase")]
struct Wire {
    #[serde(flatten)]
    lower: Lower,
    vlan_id: u16,
}

fn read(conf: &Conf) -> Result<(Lower, Kind)> {
    let wire: Wire = conf.parse()?;
    if wire.lower.master.is_empty() {
        return Err(CniError::config(
            "master is missing: the interface to make the VLAN on",
        ));
    }
    if wire.vlan_id > 4094 {
        return Err(CniError::config(format!(
            "invalid VLAN ID {} (must be between 0 and 4094)",
            wire.vlan_id
        )));
    }
    Ok((wire.lower, Kind::Vlan(wire.vlan_id)))
}

fn add(conf: &Conf, invocation: &Invocation) -> Result<Value> {
    let (lower, kind) = read(conf)?;
    single::add(conf, invocation, |sides| {
        // it has the link address of the one below unless another is asked for
        let own_mac = sides.mac.is_some();
        let making = lower.making(sides, kind, own_mac)?;
        sides.create(&making).map(|_| ())
    })
}

fn check(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let (lower, kind) = read(conf)?;
    single::check(conf, invocation, |sides, link| {
        same_kind(link, &kind)?;
        lower.check(sides, link)
    })
}

fn status(conf: &Conf, invocation: &Invocation) -> Result<()> {
    read(conf)?.0.status("vlan")?;
    single::status(conf, invocation)
}
