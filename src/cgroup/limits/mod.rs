//! OCI resources → the list of values to write, for either kind of hierarchy.
//!
//! *Invariants:* pure, nothing is read or written here. A field that the hierarchy has no word for is
//! an error, never dropped (but kernel memory, which no kernel limits any more: a warning, as in runc); zero and absent mean "leave it", −1 means "no limit", as every caller of OCI
//! runtimes takes them. File names made from outside text are checked, so that no value lands elsewhere.
//! The order within the list does not matter to callers: see `v2::write_all` for values that depend on
//! each other.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxHugepageLimit, LinuxMemory, LinuxRdma, LinuxResources};

use super::{Error, devices};

mod v1;
mod v2;

pub(super) use v1::v1;
pub(super) use v2::{Present, v2};

/// One value for one file of one controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    /// As in `cgroup.controllers` or /proc/cgroups.
    pub controller: String,
    /// File name within the cgroup.
    pub file: String,
    /// What one `write(2)` gets.
    pub value: String,
    /// What to do on a kernel without the file.
    pub absent: Absent,
}

/// What a missing file means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Absent {
    /// The limit can't be set.
    Error,
    /// The value asks for what is the case anyway.
    Ignore,
    /// Another file does the same, in its own unit: (file, value).
    Instead(String, String),
}

/// Where no cgroup may be written to: an error for the first limit that was asked for. Device rules need none in a user namespace.
pub(super) fn refuse(resources: &LinuxResources, why: &str) -> Result<(), Error> {
    for setting in v2(resources, &Present::default())? {
        let lifts = setting.absent == Absent::Ignore || setting.value.starts_with("max");
        if !lifts {
            return Err(Error::Controller {
                controller: setting.controller,
                what: format!("{} to {:?}", setting.file, setting.value),
                why: why.to_owned(),
            });
        }
    }
    let rules = resources
        .devices()
        .as_ref()
        .is_some_and(|list| !list.is_empty());
    if rules && !devices::unprivileged()? {
        return Err(Error::Controller {
            controller: "devices".to_owned(),
            what: "device rules".to_owned(),
            why: why.to_owned(),
        });
    }
    Ok(())
}

impl Setting {
    fn new(file: impl Into<String>, value: impl ToString) -> Setting {
        let file = file.into();
        let controller = file.split('.').next().unwrap_or_default().to_owned();
        Setting {
            controller,
            file,
            value: value.to_string(),
            absent: Absent::Error,
        }
    }

    fn or(mut self, file: &str, value: impl ToString) -> Setting {
        self.absent = Absent::Instead(file.to_owned(), value.to_string());
        self
    }

    fn or_ignored(mut self) -> Setting {
        self.absent = Absent::Ignore;
        self
    }
}

fn invalid(field: &str, why: impl Into<String>) -> Error {
    Error::Invalid {
        field: field.to_owned(),
        why: why.into(),
    }
}

/// Limits of the kernel's own memory, which are ignored: see [`super::Cgroup::warnings`].
#[allow(deprecated)]
pub(super) fn is_kernel_memory(memory: &LinuxMemory) -> bool {
    set(memory.kernel()).is_some() || set(memory.kernel_tcp()).is_some()
}

/// A present value other than zero.
fn set<T: PartialEq + Default>(value: Option<T>) -> Option<T> {
    value.filter(|value| *value != T::default())
}

/// `64KB`, `2MB`, `1GB`: the only form the kernel uses in file names (config-linux.md, "Huge page limits").
fn page_size(limit: &LinuxHugepageLimit) -> Result<&str, Error> {
    let size = limit.page_size().as_str();
    let digits = size
        .strip_suffix("KB")
        .or_else(|| size.strip_suffix("MB"))
        .or_else(|| size.strip_suffix("GB"));
    match digits {
        Some(digits)
            if !digits.is_empty()
                && digits.len() < 8
                && digits.bytes().all(|b| b.is_ascii_digit()) =>
        {
            Ok(size)
        }
        _ => Err(invalid(
            "hugepageLimits.pageSize",
            format!("{size:?} is not a page size such as 2MB"),
        )),
    }
}

/// rdma.max has the same form on both hierarchies (cgroup-v2.rst, "RDMA Interface Files").
fn rdma(devices: &HashMap<String, LinuxRdma>) -> Result<Vec<Setting>, Error> {
    let mut names: Vec<_> = devices.iter().collect();
    names.sort_by_key(|(name, _)| name.as_str());
    let mut settings = Vec::new();
    for (name, limit) in names {
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(invalid("rdma", format!("{name:?} is not a device name")));
        }
        let mut value = name.clone();
        for (key, count) in [
            ("hca_handle", limit.hca_handles()),
            ("hca_object", limit.hca_objects()),
        ] {
            if let Some(count) = count {
                value.push_str(&format!(" {key}={count}"));
            }
        }
        settings.push(Setting::new("rdma.max", value));
    }
    Ok(settings)
}

/// A list of processors or nodes; one line, or the kernel would take what follows as another write.
fn cpu_list<'a>(field: &str, list: &'a str) -> Result<&'a str, Error> {
    if list
        .bytes()
        .all(|b| b.is_ascii_digit() || b",-:/ ".contains(&b))
    {
        Ok(list.trim())
    } else {
        Err(invalid(
            field,
            format!("{list:?} is not a list such as 0-3,7"),
        ))
    }
}

/// Device numbers as the kernel prints them.
fn device(field: &str, major: i64, minor: i64) -> Result<String, Error> {
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major), Ok(minor)) => Ok(format!("{major}:{minor}")),
        _ => Err(invalid(
            field,
            format!("{major}:{minor} is not a device number"),
        )),
    }
}
