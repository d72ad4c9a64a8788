//! What is known of a network's pods, and the policy in force, in files that last as long as the kernel's rules.
//!
//! ```text
//! <dataDir>/<network>/.policy           the policy in force
//!                     <id>:<ifname>     an attachment
//! ```
//!
//! *Invariants*: a file appears whole or not at all; names that aren't an attachment's are left alone. Callers hold the
//! host lock.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::conf::{Pod, Policy, read_bounded};
use crate::conf::{ValidAttachment, valid_ifname, valid_name};
use crate::error::{CniError, DECODE_FAILURE, Result};

const POLICY: &str = ".policy";
const NEW: &str = ".new";

/// A network's folder.
#[derive(Debug)]
pub struct Store(pub PathBuf);

/// The file of an attachment.
pub fn file_name(container_id: &str, ifname: &str) -> String {
    format!("{container_id}:{ifname}")
}

fn attachment(name: &str) -> Option<ValidAttachment> {
    let (container_id, ifname) = name.split_once(':')?;
    (valid_name(container_id) && valid_ifname(ifname)).then(|| ValidAttachment {
        container_id: container_id.to_owned(),
        ifname: ifname.to_owned(),
    })
}

impl Store {
    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let path = self.0.join(name);
        serde_json::from_slice(&read_bounded(&path)?).map_err(|cause| {
            CniError::new(DECODE_FAILURE, format!("cannot read {}", path.display())).because(cause)
        })
    }

    fn write(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let (new, path) = (self.0.join(NEW), self.0.join(name));
        let io = |cause| CniError::io("write", &path, &cause);
        fs::create_dir_all(&self.0).map_err(io)?;
        let text = serde_json::to_vec(value).map_err(|cause| io(cause.into()))?;
        fs::write(&new, text).map_err(io)?;
        fs::rename(&new, &path).map_err(io)
    }

    /// Puts a policy in force; whether it is another than before.
    pub fn set_policy(&self, policy: &Policy) -> Result<bool> {
        if self.0.join(POLICY).exists() && self.policy()? == *policy {
            return Ok(false);
        }
        self.write(POLICY, policy)?;
        Ok(true)
    }

    /// The policy in force.
    pub fn policy(&self) -> Result<Policy> {
        self.read(POLICY)
    }

    /// Writes an attachment down.
    pub fn add(&self, name: &str, pod: &Pod) -> Result<()> {
        self.write(name, pod)
    }

    /// Forgets an attachment; missing is success.
    pub fn remove(&self, name: &str) -> Result<()> {
        remove(&self.0.join(name))
    }

    /// Forgets the network.
    pub fn clear(&self) -> Result<()> {
        remove(&self.0.join(POLICY))?;
        remove(&self.0.join(NEW))?;
        match fs::remove_dir(&self.0) {
            // somebody else's file is in it
            Err(cause) if cause.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Err(CniError::io("remove", &self.0, &cause))
            }
            _ => Ok(()),
        }
    }

    /// The attachments, in the order of their names.
    pub fn attachments(&self) -> Result<Vec<ValidAttachment>> {
        let io = |cause| CniError::io("read", &self.0, &cause);
        let mut names: Vec<String> = Vec::new();
        match fs::read_dir(&self.0) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            entries => {
                for entry in entries.map_err(io)? {
                    names.extend(entry.map_err(io)?.file_name().into_string());
                }
            }
        }
        names.sort();
        Ok(names.iter().filter_map(|name| attachment(name)).collect())
    }

    /// The pods.
    pub fn pods(&self) -> Result<Vec<Pod>> {
        self.attachments()?
            .iter()
            .map(|known| self.read(&file_name(&known.container_id, &known.ifname)))
            .collect()
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(CniError::io("remove", path, &cause))
        }
        _ => Ok(()),
    }
}
