//! The plugin `macvlan`: an interface with a link address of its own on one of the host's.
//!
//! *Invariants*: those of module `single`.

use serde::Deserialize;
use serde_json::Value;

use crate::conf::Conf;
use crate::error::{CniError, Result};
use crate::link::{Kind, MACVLAN_MODES, MacVlanMode};
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
    bcqueuelen: u32,
}

fn mode(name: &str) -> Result<MacVlanMode> {
    if name.is_empty() {
        return Ok(MacVlanMode::Bridge);
    }
    let known = MACVLAN_MODES.iter().find(|(known, _)| *known == name);
    known
        .map(|(_, mode)| *mode)
        .ok_or_else(|| CniError::config(format!("unknown macvlan mode {name:?}")))
}

fn add(conf: &Conf, invocation: &Invocation) -> Result<Value> {
    let wire: Wire = conf.parse()?;
    let kind = Kind::MacVlan {
        mode: mode(&wire.mode)?,
        queue: Some(wire.bcqueuelen).filter(|length| *length > 0),
    };
    // such an interface is the lower one itself: its link address is that one's
    let own_mac = !matches!(
        kind,
        Kind::MacVlan {
            mode: MacVlanMode::Passthrough,
            ..
        }
    );
    single::add(conf, invocation, |sides| {
        let making = wire.lower.making(sides, kind, own_mac)?;
        sides.create(&making).map(|_| ())
    })
}

fn check(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let wire: Wire = conf.parse()?;
    let kind = Kind::MacVlan {
        mode: mode(&wire.mode)?,
        queue: None,
    };
    single::check(conf, invocation, |sides, link| {
        same_kind(link, &kind)?;
        wire.lower.check(sides, link)
    })
}

fn status(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let wire: Wire = conf.parse()?;
    mode(&wire.mode)?;
    wire.lower.status("macvlan")?;
    single::status(conf, invocation)
}
