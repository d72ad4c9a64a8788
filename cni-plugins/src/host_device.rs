//! The plugin `host-device`: one of the host's interfaces, moved into the container.
//!
//! *Invariants*: a device that was moved carries `<tag> <its name on the host>` as its alias from before the move until it
//! is back, so it is found and gets its name back even when the container's namespace is gone or a process was killed in
//! between. Devices without our mark, or without the reference plugin's (the name alone), are never moved back. A device
//! whose driver is a user's (DPDK) is never moved.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::conf::{Conf, parse_mac, valid_ifname};
use crate::error::{CniError, Result, all, with_undo};
use crate::ipam;
use crate::layer3::Layer3;
use crate::link::{Link, Links};
use crate::netns::{HostLock, Netns, open_own};
use crate::result::{AddResult, Dns, Interface, sandbox};
use crate::single::{self, Sides};
use crate::skel::{Invocation, Plugin};
use crate::tag::{self, tag};

/// The commands.
pub const PLUGIN: Plugin = Plugin {
    add,
    del,
    check,
    gc,
    status,
};

const PCI: &str = "/sys/bus/pci/devices";
const AUXILIARY: &str = "/sys/bus/auxiliary/devices";
/// Drivers that hand a device to a program.
const USER_DRIVERS: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Wire {
    device: String,
    hwaddr: String,
    kernelpath: String,
    #[serde(rename = "pciBusID")]
    pci: String,
    #[serde(rename = "runtimeConfig")]
    runtime: WireRuntime,
    dns: Dns,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WireRuntime {
    #[serde(rename = "deviceID")]
    device_id: String,
}

/// How the device is found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Device {
    Name(String),
    Mac([u8; 6]),
    /// Its folder in /sys.
    Folder(PathBuf),
}

/// A name in a folder of /sys; never a path that leaves it.
fn component<'a>(key: &str, text: &'a str) -> Result<&'a str> {
    if text.contains('/') || text.contains('\0') || text == "." || text == ".." {
        return Err(CniError::config(format!("invalid {key} {text:?}")));
    }
    Ok(text)
}

impl Device {
    /// As the configuration says; the runtime's device is stronger, and its bus is what has it.
    fn new(conf: &Conf) -> Result<Self> {
        let wire: Wire = conf.parse()?;
        let pci = |id: &str| Path::new(PCI).join(id);
        if !wire.runtime.device_id.is_empty() {
            let id = component("deviceID", &wire.runtime.device_id)?;
            return [pci(id), Path::new(AUXILIARY).join(id)]
                .into_iter()
                .find(|folder| folder.exists())
                .map(Self::Folder)
                .ok_or_else(|| {
                    CniError::config(format!("deviceID {id} is no PCI or auxiliary device here"))
                });
        }
        if !wire.device.is_empty() {
            if !valid_ifname(&wire.device) {
                return Err(CniError::config(format!(
                    "invalid device {:?}",
                    wire.device
                )));
            }
            return Ok(Self::Name(wire.device));
        }
        if !wire.hwaddr.is_empty() {
            let mac = parse_mac(&wire.hwaddr);
            return mac
                .map(Self::Mac)
                .ok_or_else(|| CniError::config(format!("invalid hwaddr {:?}", wire.hwaddr)));
        }
        if !wire.kernelpath.is_empty() {
            let path = PathBuf::from(&wire.kernelpath);
            let plain = path
                .components()
                .all(|part| part != std::path::Component::ParentDir);
            if !path.starts_with("/sys/devices/") || !plain {
                return Err(CniError::config(format!(
                    "invalid kernelpath {:?}: it must be absolute and begin with /sys/devices/",
                    wire.kernelpath
                )));
            }
            return Ok(Self::Folder(path));
        }
        if !wire.pci.is_empty() {
            return Ok(Self::Folder(pci(component("pciBusID", &wire.pci)?)));
        }
        Err(CniError::config(
            "none of device, hwaddr, kernelpath, pciBusID and runtimeConfig.deviceID is given",
        ))
    }

    /// Whether a program drives it.
    fn is_users(&self) -> bool {
        let Self::Folder(folder) = self else {
            return false;
        };
        fs::read_link(folder.join("driver")).is_ok_and(|driver| {
            USER_DRIVERS
                .iter()
                .any(|known| driver.file_name().is_some_and(|name| name == *known))
        })
    }

    fn find(&self, host: &mut Links) -> Result<Link> {
        let found = match self {
            Self::Name(name) => host.by_name(name)?,
            Self::Mac(mac) => host.all()?.into_iter().find(|link| link.mac == mac),
            Self::Folder(folder) => match name_in(folder) {
                Some(name) => host.by_name(&name)?,
                None => None,
            },
        };
        found
            .ok_or_else(|| CniError::operation(format!("no interface with {self} on the host"), ""))
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => write!(out, "the name {name}"),
            Self::Mac(mac) => write!(out, "the link address {}", crate::conf::format_mac(mac)),
            Self::Folder(folder) => write!(out, "the device {}", folder.display()),
        }
    }
}

/// The interface of a device: in `net`, or in that of the virtio device on it.
fn name_in(folder: &Path) -> Option<String> {
    let first = |folder: PathBuf| -> Option<String> {
        let entry = fs::read_dir(folder).ok()?.next()?.ok()?;
        entry.file_name().into_string().ok()
    };
    first(folder.join("net")).or_else(|| {
        let entries = fs::read_dir(folder).ok()?;
        entries
            .filter_map(std::result::Result::ok)
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("virtio"))
            .find_map(|entry| first(entry.path().join("net")))
    })
}

/// The name on the host, of a device that the attachment `tag` moved, or that the reference plugin did.
fn home_name(alias: &str, tag: &str) -> Option<String> {
    let name = alias.strip_prefix(tag)?.strip_prefix(' ')?;
    valid_ifname(name).then(|| name.to_owned())
}

fn add(conf: &Conf, invocation: &Invocation) -> Result<Value> {
    let device = Device::new(conf)?;
    if device.is_users() {
        return add_users(conf, invocation);
    }
    let tag = tag(&conf.name, &invocation.container_id, &invocation.ifname)?;
    single::add_undone_by(
        conf,
        invocation,
        AddResult::default(),
        |sides| move_in(sides, &device, &tag),
        |sides| bring_back(&mut sides.host, Some((sides.netns, sides.ifname)), &tag),
    )
}

/// Nothing to move: the result tells the program its addresses.
fn add_users(conf: &Conf, invocation: &Invocation) -> Result<Value> {
    let Wire { dns, .. } = conf.parse()?;
    let netns = Netns::open(invocation.required_netns()?)?;
    ipam::lease(conf, invocation, |leased| {
        let interfaces = vec![Interface {
            name: invocation.ifname.clone(),
            sandbox: sandbox(netns.path()),
            ..Interface::default()
        }];
        Layer3::new(&dns, leased)
            .into_result(interfaces, 0)
            .to_json(&conf.cni_version)
    })
}

fn move_in(sides: &mut Sides<'_>, device: &Device, tag: &str) -> Result<()> {
    // two that want the same device: one finds it gone
    let _lock = HostLock::take()?;
    let link = device.find(&mut sides.host)?;
    let alias = format!("{tag} {}", link.name);
    sides.host.set_alias(&link, &alias)?;
    sides.wait = link.operational;
    let netns = sides.netns.as_fd();
    let moved = sides.host.hand_over(&link, netns, sides.ifname);
    moved.map_err(|error| {
        let back = if link.up {
            sides.host.up(&link)
        } else {
            Ok(())
        };
        with_undo(error, back)
    })
}

/// Everything that the attachment `tag` moved, back under its name: out of the container, or where the kernel put it when
/// the container's namespace ended. As with the reference plugin it stays down.
fn bring_back(host: &mut Links, container: Option<(&Netns, &str)>, tag: &str) -> Result<()> {
    let mut steps = Vec::new();
    if let Some((netns, ifname)) = container {
        let mut pod = netns.run(Links::open)?;
        for link in pod.all()? {
            // the reference plugin's mark: the name alone, on the interface that was asked for
            let name = home_name(&link.alias, tag).or_else(|| {
                (link.name == ifname && valid_ifname(&link.alias)).then(|| link.alias.clone())
            });
            if let Some(name) = name {
                steps.push(
                    pod.hand_over(&link, open_own()?.as_fd(), &name)
                        .and_then(|()| {
                            let back = host.require(&name)?;
                            host.set_alias(&back, "")
                        }),
                );
            }
        }
    }
    steps.push(restore(host, |alias| home_name(alias, tag)));
    all(steps)
}

/// Gives devices on the host that are still marked their names back.
fn restore(host: &mut Links, home: impl Fn(&str) -> Option<String>) -> Result<()> {
    let mut steps = Vec::new();
    for link in host.all()? {
        let Some(name) = home(&link.alias) else {
            continue;
        };
        if link.name == name {
            steps.push(host.set_alias(&link, ""));
            continue;
        }
        // a link that is up has no other name before Linux 6.2
        steps.push(
            host.down(&link)
                .and_then(|()| host.rename(&link, &name))
                .and_then(|()| host.set_alias(&link, "")),
        );
    }
    all(steps)
}

fn del(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let tag = tag(&conf.name, &invocation.container_id, &invocation.ifname)?;
    ipam::release(conf, invocation, || {
        let netns = match &invocation.netns {
            Some(path) => Netns::open_if_present(path)?,
            None => None,
        };
        let _lock = HostLock::take()?;
        let container = netns
            .as_ref()
            .map(|netns| (netns, invocation.ifname.as_str()));
        bring_back(&mut Links::open()?, container, &tag)
    })
}

fn check(conf: &Conf, invocation: &Invocation) -> Result<()> {
    if Device::new(conf).is_ok_and(|device| device.is_users()) {
        conf.required_prev_result()?;
        return ipam::call(conf, invocation);
    }
    let tag = tag(&conf.name, &invocation.container_id, &invocation.ifname)?;
    single::check(conf, invocation, |_, link| {
        if home_name(&link.alias, &tag).is_some() {
            return Ok(());
        }
        Err(CniError::check(format!(
            "interface {} is not the device that was moved",
            link.name
        )))
    })
}

fn gc(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let (valid, runtime) = (conf.valid_attachments()?, conf.runtime()?);
    let lock = HostLock::take()?;
    let stale = |alias: &str| {
        let name = alias.rsplit(' ').next()?;
        let ours =
            tag::is_stale(&conf.name, runtime, &valid, alias) && alias.split(' ').count() == 4;
        (ours && valid_ifname(name)).then(|| name.to_owned())
    };
    let restored = restore(&mut Links::open()?, stale);
    drop(lock);
    all([restored, ipam::call(conf, invocation)])
}

fn status(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let device = Device::new(conf)?;
    if !device.is_users() {
        device
            .find(&mut Links::open()?)
            .map_err(CniError::unavailable)?;
    }
    single::status(conf, invocation)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(mut value: Value) -> std::result::Result<Device, String> {
        value["cniVersion"] = json!("1.1.0");
        value["name"] = json!("n");
        Device::new(&Conf::new(value).unwrap()).map_err(|error| error.msg)
    }

    #[test]
    fn devices() {
        let bad = |text: &str| Err(text.to_owned());
        for (value, expected) in [
            (json!({"device": "eth7"}), Ok(Device::Name("eth7".into()))),
            (
                json!({"hwaddr": "02:00:00:00:00:01"}),
                Ok(Device::Mac([2, 0, 0, 0, 0, 1])),
            ),
            (
                json!({"kernelpath": "/sys/devices/pci0/net"}),
                Ok(Device::Folder("/sys/devices/pci0/net".into())),
            ),
            (
                json!({"pciBusID": "0000:00:01.0"}),
                Ok(Device::Folder("/sys/bus/pci/devices/0000:00:01.0".into())),
            ),
            (json!({"device": "a/b"}), bad("invalid device \"a/b\"")),
            (json!({"hwaddr": "x"}), bad("invalid hwaddr \"x\"")),
            (json!({"pciBusID": ".."}), bad("invalid pciBusID \"..\"")),
            (
                json!({"runtimeConfig": {"deviceID": "../x"}}),
                bad("invalid deviceID \"../x\""),
            ),
            (
                json!({"runtimeConfig": {"deviceID": "nothing"}}),
                bad("deviceID nothing is no PCI or auxiliary device here"),
            ),
            (
                json!({"kernelpath": "/sys/devices/../x"}),
                bad(
                    "invalid kernelpath \"/sys/devices/../x\": it must be absolute and begin with /sys/devices/",
                ),
            ),
            (
                json!({}),
                bad(
                    "none of device, hwaddr, kernelpath, pciBusID and runtimeConfig.deviceID is given",
                ),
            ),
        ] {
            assert_eq!(read(value.clone()), expected, "{value}");
        }
    }

    #[test]
    fn names_at_home() {
        for (alias, expected) in [
            ("n c eth0 enp1s0", Some("enp1s0")),
            ("n c eth0", None),
            ("n c eth0 ", None),
            ("n c eth00 enp1s0", None),
            ("n c eth0 a b", None),
            ("enp1s0", None),
        ] {
            assert_eq!(home_name(alias, "n c eth0").as_deref(), expected, "{alias}");
        }
    }
}
