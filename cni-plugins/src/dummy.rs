//! The plugin `dummy`: an interface that leads nowhere and has addresses.
//!
//! *Invariants*: those of module `single`.

use crate::error::Result;
use crate::layer3::require_drivers;
use crate::link::{Kind, Links};
use crate::single::{self, Making, same_kind};
use crate::skel::Plugin;

/// The commands.
pub const PLUGIN: Plugin = Plugin {
    add: |conf, invocation| {
        single::add(conf, invocation, |sides| {
            let making = Making {
                kind: Kind::Dummy,
                lower: None,
                in_container: true,
                mtu: None,
                own_mac: true,
            };
            sides.create(&making).map(|_| ())
        })
    },
    del: single::del,
    check: |conf, invocation| {
        single::check(conf, invocation, |_, link| same_kind(link, &Kind::Dummy))
    },
    gc: single::gc,
    status: |conf, invocation| -> Result<()> {
        require_drivers(&mut Links::open()?, &["dummy"])?;
        single::status(conf, invocation)
    },
};
