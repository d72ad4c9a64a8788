//! The files of one service before it starts: `config.json`, `create.json`, and what is mounted from the pod's folder.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::borrowed::with_borrowed;
use super::layout::{Folders, PodDir, ServiceDir};
use super::plan::{self, Places};
use super::record::{ImageFacts, Pod, Sandbox};
use super::users::{Accounts, User};
use super::{Error, Result, resolver};
use crate::compose::project::{MountSource, Service};
use crate::container::{CreateRequest, Rootfs};
use crate::network::hosts::{self, Source};
use crate::rootfs::resolve::clean;
use crate::sys::file::replace;

/// Id of a service's container.
pub fn container_id(pod: &str, service: &str) -> String {
    format!("{pod}-{service}")
}

/// Folder of volumes without a name in a service's data.
pub const VOLUMES: &str = "volumes";

/// Path in the container, host folder.
type ImageVolume = (String, String);

/// Everything that is known about a service when it starts.
pub struct Prepared<'a> {
    pod: &'a Pod,
    service: Cow<'a, Service>,
    image: &'a ImageFacts,
    dir: ServiceDir,
    user: User,
    hostname: String,
}

impl<'a> Prepared<'a> {
    /// Looks up service, image and user.
    pub fn new(pod: &'a Pod, dir: &PodDir, name: &str) -> Result<Prepared<'a>> {
        let unknown = || Error::Other(format!("pod {} has no service {name}", pod.project.name));
        let service = pod.project.services.get(name).ok_or_else(unknown)?;
        let service = with_address(with_borrowed(pod, dir, service), dir)?;
        let image = pod.images.get(name).ok_or_else(unknown)?;
        let dir = dir.service(name);
        let mut layers = image.layers.clone();
        layers.push(dir.data.join("upper"));
        let spec = service
            .user
            .clone()
            .or_else(|| image.config.user.clone())
            .unwrap_or_default();
        let user = Accounts::read(&layers)
            .resolve(&spec, &service.group_add)
            .map_err(|why| refused(&service, "user", &why))?;
        Ok(Prepared {
            pod,
            image,
            dir,
            user,
            hostname: plan::hostname(&pod.project.name, &service),
            service,
        })
    }

    /// `process` of the container, the base of every `exec`.
    pub fn process(&self) -> Result<Value> {
        plan::process(&self.service, self.image, &self.user, &self.hostname)
            .map_err(|why| refused(&self.service, "command", &why))
    }

    /// The user of the container by number.
    pub fn user(&self) -> &User {
        &self.user
    }

    /// Writes every file that `create` reads.
    pub fn write(&self, sandbox: &Sandbox, netns: &Path) -> Result<()> {
        for dir in [
            self.dir.dir.join("rootfs"),
            self.dir.data.join("upper"),
            self.dir.data.join("work"),
        ] {
            fs::create_dir_all(&dir).map_err(Error::io("make", &dir))?;
        }
        self.write_names(sandbox)?;
        let (sources, image_volumes) = self.mount_sources()?;
        let netns = netns.to_string_lossy();
        let places = Places {
            netns: (!self.pod.project.on_host()).then_some(netns.as_ref()),
            service_dir: &self.dir.dir.to_string_lossy(),
            sources,
            swap: self.pod.cgroup.accounts_swap(),
            image_volumes,
        };
        let spec = plan::spec(
            &self.service,
            self.image,
            &self.user,
            &self.hostname,
            &places,
        )
        .map_err(|why| refused(&self.service, "", &why))?;
        self.write_json("config.json", &spec)?;
        let request = CreateRequest {
            id: container_id(&self.pod.project.name, &self.service.name),
            bundle: self.dir.dir.clone(),
            dir: self.dir.dir.clone(),
            rootfs: match &self.service.rootfs {
                Some(path) => Rootfs::Folder { path: path.clone() },
                None => Rootfs::Overlay {
                    lower: self.image.layers.clone(),
                    upper: self.dir.data.join("upper"),
                    work: self.dir.data.join("work"),
                },
            },
            cgroup: self.pod.cgroup.child(&self.service.name),
            console_socket: None,
            preserve_fds: 0,
            keep_keyring: false,
            no_pivot: false,
            at_once: false,
            dies_with_parent: false,
        };
        super::record::put(&self.dir.request(), &request)
    }

    fn write_json(&self, name: &str, value: &Value) -> Result<()> {
        let text = serde_json::to_vec_pretty(value).unwrap_or_default();
        self.write_file(name, &text)
    }

    fn write_file(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.dir.dir.join(name);
        // readable inside by any user
        replace(&path, content, 0o644).map_err(Error::io("write", &path))
    }

    /// A file that the project brought along; its name is the place where it goes.
    fn write_content(
        &self,
        target: &str,
        content: &[u8],
        (uid, gid): (u32, u32),
        mode: u32,
    ) -> Result<PathBuf> {
        let dir = self.dir.dir.join("files");
        fs::create_dir_all(&dir).map_err(Error::io("make", &dir))?;
        let path = dir.join(single_name(target));
        // nobody reads it before it has its owner: the pod's folder is ours alone
        replace(&path, content, 0o600).map_err(Error::io("write", &path))?;
        chown(&path, Some(uid), Some(gid)).map_err(Error::io("chown", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            .map_err(Error::io("chmod", &path))?;
        Ok(path)
    }

    fn write_names(&self, sandbox: &Sandbox) -> Result<()> {
        let default = sandbox.interfaces.iter().find(|i| i.has_default());
        let on_host = self.pod.project.on_host();
        let localhost = [Ipv4Addr::LOCALHOST.into()];
        let gateways = match default {
            // the host is here
            None if on_host => &localhost[..],
            None => &[],
            Some(interface) => &interface.gateways,
        };
        let hosts = hosts::hosts(&self.pod.project, &self.service, gateways)?;
        self.write_file("hosts", hosts.as_bytes())?;
        let host = hosts::host_resolv_conf()?;
        let source = match resolver::address(self.pod, &self.service) {
            Some(ip) => Source::Resolver(ip),
            None if on_host => Source::Host,
            None => Source::Pod,
        };
        let resolv = hosts::resolv_conf(&self.service, &sandbox.attached, &host, source)?;
        self.write_file("resolv.conf", resolv.as_bytes())?;
        self.write_file("hostname", format!("{}\n", self.hostname).as_bytes())
    }

    /// Host folders of the mounts, in order, and those of the image's volumes that no mount covers.
    fn mount_sources(&self) -> Result<(Vec<String>, Vec<ImageVolume>)> {
        let mut sources = Vec::new();
        for mount in &self.service.volumes {
            let source = match &mount.source {
                MountSource::Bind { path, create, .. } => {
                    if *create && !path.exists() {
                        fs::create_dir_all(path).map_err(Error::io("make", path))?;
                    }
                    path.clone()
                }
                MountSource::Tmpfs { .. } => PathBuf::new(),
                MountSource::File {
                    content,
                    uid,
                    gid,
                    mode,
                } => {
                    let owner = (uid.unwrap_or(self.user.uid), gid.unwrap_or(self.user.gid));
                    self.write_content(&mount.target, content, owner, *mode)?
                }
                MountSource::Volume { .. } | MountSource::Anonymous => {
                    volume_dir(self.pod, &self.dir, &mount.source, &mount.target)?
                }
            };
            sources.push(source.to_string_lossy().into_owned());
        }
        let image_volumes = image_volumes(&self.service, self.image)
            .into_iter()
            .map(|target| {
                let source = anonymous_volume(&self.dir, &target);
                (target, source.to_string_lossy().into_owned())
            })
            .collect();
        Ok((sources, image_volumes))
    }
}

/// The service with the variable that `x-sampan.address_variable` names, where the pod has an address.
fn with_address<'a>(service: Cow<'a, Service>, dir: &PodDir) -> Result<Cow<'a, Service>> {
    let Some(name) = service.address_variable.clone() else {
        return Ok(service);
    };
    let sandbox = super::record::read::<Sandbox>(&dir.sandbox())?.unwrap_or_default();
    let mut addresses = sandbox.interfaces.iter().flat_map(|i| &i.addresses);
    let mut service = service.into_owned();
    if let Some(address) = addresses.next() {
        let address = address.addr().to_string();
        service.environment.insert(name, address);
    }
    Ok(Cow::Owned(service))
}

/// Folder of a named or anonymous volume of a service; a `subpath` is resolved in it when it is mounted.
pub fn volume_dir(
    pod: &Pod,
    dir: &ServiceDir,
    source: &MountSource,
    target: &str,
) -> Result<PathBuf> {
    let MountSource::Volume { key, .. } = source else {
        return Ok(anonymous_volume(dir, target));
    };
    let volume = pod
        .project
        .volumes
        .get(key)
        .ok_or_else(|| Error::Other(format!("volume {key} is not in the project")))?;
    let folders = Folders {
        root: pod.root.clone(),
        state: pod.state.clone(),
    };
    Ok(folders.volume(&volume.name).join("_data"))
}

/// The image's volumes that the service mounts nothing over.
pub fn image_volumes(service: &Service, image: &ImageFacts) -> Vec<String> {
    let covered: BTreeSet<PathBuf> = service
        .volumes
        .iter()
        .map(|m| clean(Path::new(&m.target)))
        .collect();
    let declared = image.config.volumes.iter().flat_map(|v| v.keys());
    let places: BTreeSet<PathBuf> = declared
        .map(|target| clean(Path::new(target)))
        .filter(|target| !covered.contains(target) && target != Path::new("/"))
        .collect();
    places
        .into_iter()
        .map(|target| target.to_string_lossy().into_owned())
        .collect()
}

/// Folder of a volume without a name: one for each place it is mounted at. The place is a single name, which no other place has and
/// which leads nowhere else.
pub fn anonymous_volume(dir: &ServiceDir, target: &str) -> PathBuf {
    dir.data.join(VOLUMES).join(single_name(target))
}

/// A path as the name of a file, a different one for each.
fn single_name(path: &str) -> String {
    let place = clean(Path::new(path)).to_string_lossy().into_owned();
    place.replace('%', "%25").replace('/', "%2F")
}

fn refused(service: &Service, key: &str, why: &str) -> Error {
    let key = if key.is_empty() {
        String::new()
    } else {
        format!(".{key}")
    };
    Error::Start {
        code: 125,
        message: format!("{}: services.{}{key}: {why}", service.origin, service.name),
        service: Some(service.name.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_anonymous_volumes_are_apart_and_inside() {
        let dir = ServiceDir {
            dir: "/s".into(),
            data: "/d".into(),
        };
        for (target, name) in [
            ("/data", "%2Fdata"),
            ("/data/", "%2Fdata"),
            ("/a/b", "%2Fa%2Fb"),
            ("/a-b", "%2Fa-b"),
            ("/a%2Fb", "%2Fa%252Fb"),
            ("/..", "%2F"),
            ("../../etc", "%2Fetc"),
        ] {
            let path = anonymous_volume(&dir, target);
            assert_eq!(path, Path::new("/d/volumes").join(name), "{target}");
        }
    }

    #[test]
    fn image_volumes_leave_out_what_is_covered() {
        let mut image = ImageFacts::default();
        let declared = ["/data/", "/var/../srv", "/", "/own"];
        image.config.volumes = Some(
            declared
                .iter()
                .map(|t| (t.to_string(), Value::Null))
                .collect(),
        );
        let service = crate::pod::plan::tests::service(r#"{"image": "x", "volumes": ["/own/"]}"#);
        assert_eq!(image_volumes(&service, &image), ["/data", "/srv"]);
    }
}
