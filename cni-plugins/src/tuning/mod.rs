//! The plugin `tuning`: settings of the namespace and of an interface that another plugin made.
//!
//! *Invariants*: what an interface was like is on file before anything of it changes, in the reference plugin's form, and is
//! so again after DEL. Settings are only ever written in procfs, in the container's namespace; they go with it.

mod conf;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::conf::{Conf, format_mac, parse_mac};
use crate::error::{CniError, DECODE_FAILURE, IO_FAILURE, Result, all, with_undo};
use crate::link::{Link, Links};
use crate::netns::Netns;
use crate::skel::{Invocation, Plugin};
use crate::sysctl;
use crate::tag::{is_stale, tag};
use conf::{Setting, TuningConf, require_allowed};

/// The commands.
pub const PLUGIN: Plugin = Plugin {
    add,
    del,
    check,
    gc,
    status: |conf, invocation| {
        TuningConf::new(conf, &invocation.args, "eth0")
            .and_then(|_| require_allowed(conf))
            .map_err(CniError::unavailable)
    },
};

/// Longer files are none of ours.
const MAX_FILE: u64 = 4096;

/// What an interface was like, as far as it was changed.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Before {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(default, rename = "txQLen", skip_serializing_if = "Option::is_none")]
    queue: Option<u32>,
    /// The reference plugin passes over it.
    #[serde(default, rename = "sampan", skip_serializing_if = "Option::is_none")]
    mark: Option<Mark>,
}

/// Whose a file is.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    runtime: String,
    /// As the module `tag` has it.
    attachment: String,
}

impl Before {
    fn new(conf: &TuningConf, link: &Link, mark: Mark) -> Self {
        Self {
            mark: Some(mark),
            mac: conf.mac.map(|_| format_mac(&link.mac)),
            promisc: conf.promiscuous.then_some(link.promiscuous),
            mtu: conf.mtu.map(|_| link.mtu),
            allmulti: conf.all_multicast.map(|_| link.all_multicast),
            queue: conf.queue.map(|_| link.queue),
        }
    }

    fn restore(&self, pod: &mut Links, link: &Link) -> Result<()> {
        let mac = self.mac.as_deref().and_then(parse_mac);
        all([
            self.mtu.map_or(Ok(()), |mtu| pod.set_mtu(link, mtu)),
            mac.map_or(Ok(()), |mac| pod.set_mac(link, &mac)),
            self.promisc
                .map_or(Ok(()), |on| pod.set_promiscuous(link, on)),
            self.allmulti
                .map_or(Ok(()), |on| pod.set_all_multicast(link, on)),
            self.queue
                .map_or(Ok(()), |length| pod.set_queue(link, length)),
        ])
    }
}

fn file(conf: &TuningConf, invocation: &Invocation) -> PathBuf {
    let name = format!("{}_{}.json", invocation.container_id, invocation.ifname);
    conf.data_dir.join(name)
}

fn add(conf: &Conf, invocation: &Invocation) -> Result<Value> {
    let ifname = &invocation.ifname;
    let tuning = TuningConf::new(conf, &invocation.args, ifname)?;
    require_allowed(conf)?;
    let mut answer = conf.passed_on()?;
    let netns = Netns::open(invocation.required_netns()?)?;
    netns.run(require_procfs)?;
    let mut settings = Vec::new();
    let mut tune = || -> Result<()> {
        netns.run(|| {
            for setting in &tuning.settings {
                settings.extend(change(setting)?);
            }
            Ok(())
        })?;
        if tuning.changes_link() {
            let mut pod = netns.run(Links::open)?;
            let mark = Mark {
                runtime: conf.runtime()?.to_owned(),
                attachment: tag(&conf.name, &invocation.container_id, ifname)?,
            };
            tune_link(&tuning, &mut pod, invocation, mark)?;
        }
        Ok(())
    };
    tune().map_err(|error| {
        let back = netns.run(|| all(settings.iter().rev().map(|old| change(old).map(|_| ()))));
        with_undo(error, back)
    })?;
    patch(&mut answer, &tuning, ifname);
    Ok(answer)
}

fn tune_link(
    conf: &TuningConf,
    pod: &mut Links,
    invocation: &Invocation,
    mark: Mark,
) -> Result<()> {
    let link = pod.require(&invocation.ifname)?;
    let before = Before::new(conf, &link, mark);
    let path = file(conf, invocation);
    remember(&path, &before)?;
    apply(conf, pod, &link).map_err(|error| {
        let back = before.restore(pod, &link);
        with_undo(error, all([back, forget(&path)]))
    })
}

fn apply(conf: &TuningConf, pod: &mut Links, link: &Link) -> Result<()> {
    if let Some(mac) = conf.mac {
        pod.set_mac(link, &mac)?;
    }
    if conf.promiscuous {
        pod.set_promiscuous(link, true)?;
    }
    if let Some(mtu) = conf.mtu {
        pod.set_mtu(link, mtu)?;
    }
    if let Some(on) = conf.all_multicast {
        pod.set_all_multicast(link, on)?;
    }
    if let Some(length) = conf.queue {
        pod.set_queue(link, length)?;
    }
    Ok(())
}

/// The interface's entry of the result says what it is like now.
fn patch(answer: &mut Value, conf: &TuningConf, ifname: &str) {
    let list = answer.get_mut("interfaces").and_then(Value::as_array_mut);
    for entry in list.into_iter().flatten() {
        let inside = entry["sandbox"]
            .as_str()
            .is_some_and(|path| !path.is_empty());
        if entry["name"] != ifname || !inside {
            continue;
        }
        if let Some(mac) = conf.mac {
            entry["mac"] = json!(format_mac(&mac));
        }
        // only results of 1.1.0 have it
        if let (Some(mtu), true) = (conf.mtu, entry.get("mtu").is_some()) {
            entry["mtu"] = json!(mtu);
        }
    }
}

/// CVE-2019-16884 and its kin: in a prepared mount namespace `/proc` may be anything.
fn require_procfs() -> Result<()> {
    let path = Path::new("/proc/sys/net");
    let kind = File::open(path)
        .and_then(|folder| Ok(fstatfs(&folder)?.filesystem_type()))
        .map_err(|cause| CniError::io("open", path, &cause))?;
    if kind == PROC_SUPER_MAGIC {
        return Ok(());
    }
    Err(CniError::new(
        IO_FAILURE,
        format!("{} is not on procfs", path.display()),
    ))
}

fn parts(setting: &Setting) -> Vec<&str> {
    setting.parts.iter().map(String::as_str).collect()
}

/// Sets it and gives what it was before, when that was something else.
fn change(setting: &Setting) -> Result<Option<Setting>> {
    let parts = parts(setting);
    let old = sysctl::get(&parts)?;
    if old == sysctl::words(&setting.value) {
        return Ok(None);
    }
    sysctl::set(&parts, &setting.value)?;
    Ok(Some(Setting {
        value: old,
        ..setting.clone()
    }))
}

fn remember(path: &Path, before: &Before) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|cause| CniError::io("create", folder, &cause))?;
    }
    let new = path.with_extension("new");
    fs::write(&new, json!(before).to_string())
        .and_then(|()| fs::rename(&new, path))
        .map_err(|cause| CniError::io("write", path, &cause))
}

fn recall(path: &Path) -> Result<Option<Before>> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes)) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(CniError::io("read", path, &cause)),
        Ok(_) => {}
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|cause| {
        let what = format!("{} is not what tuning writes", path.display());
        CniError::new(DECODE_FAILURE, what).because(cause)
    })
}

fn forget(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(CniError::io("remove", path, &cause))
        }
        _ => Ok(()),
    }
}

fn del(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let tuning = TuningConf::new(conf, &invocation.args, &invocation.ifname)?;
    let path = file(&tuning, invocation);
    let restored = recall(&path).and_then(|before| match before {
        Some(before) => restore(&before, invocation),
        None => Ok(()),
    });
    all([restored, forget(&path)])
}

fn restore(before: &Before, invocation: &Invocation) -> Result<()> {
    let Some(netns) = Netns::of_del(invocation)? else {
        return Ok(());
    };
    let mut pod = netns.run(Links::open)?;
    match pod.by_name(&invocation.ifname)? {
        Some(link) => before.restore(&mut pod, &link),
        None => Ok(()),
    }
}

/// Forgets what interfaces were like that are gone. Files of the reference plugin don't say whose they are and stay.
fn gc(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let valid = conf.valid_attachments()?;
    let folder = TuningConf::new(conf, &invocation.args, "eth0")?.data_dir;
    let runtime = conf.runtime()?;
    let entries = match fs::read_dir(&folder) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|cause| CniError::io("read", &folder, &cause))?,
    };
    let mut steps = Vec::new();
    for entry in entries {
        let path = entry
            .map_err(|cause| CniError::io("read", &folder, &cause))?
            .path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        steps.push(recall(&path).and_then(|before| {
            let stale = before.and_then(|before| before.mark).is_some_and(|mark| {
                mark.runtime == runtime && is_stale(&conf.name, runtime, &valid, &mark.attachment)
            });
            if stale { forget(&path) } else { Ok(()) }
        }));
    }
    all(steps)
}

fn check(conf: &Conf, invocation: &Invocation) -> Result<()> {
    let ifname = &invocation.ifname;
    let tuning = TuningConf::new(conf, &invocation.args, ifname)?;
    conf.required_prev_result()?;
    let netns = Netns::open(invocation.required_netns()?)?;
    netns.run(|| {
        for setting in &tuning.settings {
            let now = sysctl::get(&parts(setting))?;
            if now != sysctl::words(&setting.value) {
                return Err(CniError::check(format!(
                    "tuning: net/{} is {now:?} instead of {:?}",
                    setting.parts.join("/"),
                    setting.value
                )));
            }
        }
        Ok(())
    })?;
    let link = netns.run(Links::open)?.require(ifname)?;
    let differences = [
        (
            "mac",
            format_mac(&link.mac),
            tuning.mac.map(|mac| format_mac(&mac)),
        ),
        (
            "promisc",
            link.promiscuous.to_string(),
            tuning.promiscuous.then(|| "true".to_owned()),
        ),
        (
            "mtu",
            link.mtu.to_string(),
            tuning.mtu.map(|mtu| mtu.to_string()),
        ),
        (
            "allmulti",
            link.all_multicast.to_string(),
            tuning.all_multicast.map(|on| on.to_string()),
        ),
        (
            "txQLen",
            link.queue.to_string(),
            tuning.queue.map(|length| length.to_string()),
        ),
    ];
    for (key, now, wanted) in differences {
        if let Some(wanted) = wanted.filter(|wanted| *wanted != now) {
            return Err(CniError::check(format!(
                "tuning: {key} of {ifname} is {now} instead of {wanted}"
            )));
        }
    }
    Ok(())
}
