//! `volumes_from`: the volumes that a service has of others.
//!
//! *Invariants:* what a service mounts itself stays; of two that lend something at one place the later one counts; volumes are lent
//! (folders of the host, named and nameless ones, those of the image), memory and files of `configs` and `secrets` are not; a service
//! lends what it has borrowed, too. A borrowed nameless volume is the very folder of its owner, which fills it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::bundle::{anonymous_volume, image_volumes};
use super::layout::PodDir;
use super::record::Pod;
use crate::compose::project::{Mount, MountSource, Service};
use crate::rootfs::resolve::clean;

/// The service with the mounts that it has of others.
pub fn with_borrowed<'a>(pod: &Pod, dir: &PodDir, service: &'a Service) -> Cow<'a, Service> {
    if service.volumes_from.is_empty() {
        return Cow::Borrowed(service);
    }
    let needed = lenders(pod, service);
    let mut lent: BTreeMap<&str, Vec<Mount>> = BTreeMap::new();
    let order = pod.project.start_order();
    for name in order
        .iter()
        .flatten()
        .filter(|name| needed.contains(name.as_str()))
    {
        if let Some(lender) = pod.project.services.get(name) {
            let whole = complete(lender, &lent);
            lent.insert(name, lends(pod, dir, &whole));
        }
    }
    Cow::Owned(complete(service, &lent))
}

/// Those that a service borrows of, and those that these borrow of.
fn lenders<'a>(pod: &'a Pod, service: &'a Service) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut open = vec![service];
    while let Some(service) = open.pop() {
        for from in &service.volumes_from {
            if found.insert(from.service.as_str()) {
                open.extend(pod.project.services.get(&from.service));
            }
        }
    }
    found
}

/// A service with what the others lend it before its own mounts.
fn complete(service: &Service, lent: &BTreeMap<&str, Vec<Mount>>) -> Service {
    let mut all: BTreeMap<PathBuf, Mount> = BTreeMap::new();
    for from in &service.volumes_from {
        for mount in lent.get(from.service.as_str()).into_iter().flatten() {
            let mut mount = mount.clone();
            mount.read_only |= from.read_only;
            all.insert(place(&mount), mount);
        }
    }
    for own in &service.volumes {
        all.remove(&place(own));
    }
    let mut whole = service.clone();
    whole.volumes = all.into_values().chain(service.volumes.clone()).collect();
    whole
}

fn place(mount: &Mount) -> PathBuf {
    clean(Path::new(&mount.target))
}

/// What others may have of a service.
fn lends(pod: &Pod, dir: &PodDir, service: &Service) -> Vec<Mount> {
    let folder = dir.service(&service.name);
    let nameless = |target: &str| MountSource::Bind {
        path: anonymous_volume(&folder, target),
        create: false,
        propagation: None,
        recursive: true,
    };
    let image = pod.images.get(&service.name);
    let of_image = image.map_or(Vec::new(), |image| image_volumes(service, image));
    let of_image = of_image.into_iter().map(|target| Mount {
        origin: service.origin.clone(),
        source: nameless(&target),
        target,
        read_only: false,
    });
    let own = service
        .volumes
        .iter()
        .filter_map(|mount| match mount.source {
            MountSource::Bind { .. } | MountSource::Volume { .. } => Some(mount.clone()),
            MountSource::Anonymous => Some(Mount {
                source: nameless(&mount.target),
                ..mount.clone()
            }),
            MountSource::File { .. } | MountSource::Tmpfs { .. } => None,
        });
    of_image.chain(own).collect()
}
