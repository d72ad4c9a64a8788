//! Images and bundles whose paths lead elsewhere: links in place of `/proc`, `/sys`, `/dev`, the working directory, mount places.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::case::Case;
use super::{Check, Stop, Tried, expect};

pub const CHECKS: &[Check] = &[
    Check {
        name: "2019-16884",
        what: "a volume mounted over /proc made the runtime write its security labels into a file of the image",
        how: "folders and tmpfs mounted on /proc and below, under several spellings and through a link",
        run: cve_2019_16884,
    },
    Check {
        name: "2019-19921",
        what: "/proc of the image was a link, so that the runtime set up a /proc of the image's choosing",
        how: "containers whose /proc is a link to a folder, to the root, out of the root, to a volume",
        run: || link_in_place_of("proc"),
    },
    Check {
        name: "2023-27561",
        what: "the same again after a rewrite: /proc a link that leads into a volume of the container",
        how: "a volume is mounted first, /proc is a link into it; and while /proc and a link change places, masks hold",
        run: cve_2023_27561,
    },
    Check {
        name: "2023-28642",
        what: "/proc or /sys of the image a link, which undid AppArmor, masked and read-only paths",
        how: "containers whose /sys is a link to a folder, to the root, out of the root, to a volume",
        run: || link_in_place_of("sys"),
    },
    Check {
        name: "2026-55686",
        what: "the working directory, a link in the image, was made on the host",
        how: "working directories that are links to folders that only the host has, or that nobody has",
        run: cve_2026_55686,
    },
    Check {
        name: "link-dev",
        what: "/dev of the image is a link: devices must not be made on the host",
        how: "containers whose /dev is a link out of the root, with a tmpfs on it and without; a file in a device's place",
        run: link_dev,
    },
];

/// Words of the refusals.
const REFUSED: &[&str] = &["inside proc", "only proc may be there"];
const LINK: &[&str] = &["a symbolic link is on the path"];

/// A folder of the host that looks like a proc.
fn fake_proc(case: &Case) -> Result<PathBuf, Stop> {
    let folder = case.host_folder("fake")?;
    fs::create_dir_all(folder.join("self/attr"))?;
    fs::write(folder.join("self/attr/exec"), "")?;
    Ok(folder)
}

fn cve_2019_16884() -> Tried {
    for place in [
        "/proc",
        "/proc/",
        "//proc",
        "/proc/.",
        "/bin/../proc",
        "/proc/self",
        "/proc/self/attr",
        "/proc/1/attr",
        "/proc/sys",
        "/proc/sys/kernel",
        "/way",
        "/way/self/attr",
    ] {
        for kind in ["folder", "tmpfs"] {
            let mut case = Case::new(&["true"])?;
            symlink("/proc", case.root().join("way"))?;
            if kind == "folder" {
                let folder = fake_proc(&case)?;
                case.mount(place, "bind", &folder, &["rbind"]);
            } else {
                case.mount(place, "tmpfs", Path::new("tmpfs"), &[]);
            }
            let said = case.run()?;
            expect(said.code != 0, || {
                format!("a {kind} on {place} was accepted")
            })?;
            said.refused(REFUSED)?;
        }
    }
    // without a proc of its own: what the bundle brings must not pass for one
    let mut case = Case::new(&["true"])?;
    case.unmount("/proc");
    let folder = fake_proc(&case)?;
    case.mount("/proc", "bind", &folder, &["bind"]);
    case.run()?.refused(REFUSED)
}

fn link_in_place_of(name: &str) -> Tried {
    for target in [
        "/elsewhere",
        ".",
        "/",
        "../../../../../../..",
        "/vol/inside",
        "elsewhere/deep/../..",
    ] {
        let mut case = Case::new(&["true"])?;
        volume_first(&mut case, "inside")?;
        fs::create_dir_all(case.root().join("elsewhere/deep"))?;
        symlink(target, case.root().join(name))?;
        let said = case.run()?;
        expect(said.code != 0, || {
            format!("/{name} a link to {target} was accepted")
        })?;
        said.refused(LINK)?;
    }
    Ok(())
}

/// A volume at `/vol` with the folder `inside`, mounted before everything else, as the attacks had it.
fn volume_first(case: &mut Case, inside: &str) -> Tried {
    let volume = case.host_folder("volume")?;
    fs::create_dir_all(volume.join(inside))?;
    case.mount("/vol", "bind", &volume, &["rbind"]);
    if let Some(mounts) = case.spec["mounts"].as_array_mut() {
        mounts.rotate_right(1);
    }
    Ok(())
}

fn cve_2023_27561() -> Tried {
    let mut case = Case::new(&["true"])?;
    volume_first(&mut case, "fake/self/attr")?;
    symlink("/vol/fake", case.root().join("proc"))?;
    case.run()?.refused(LINK)?;
    super::races::proc_and_link()
}

fn cve_2026_55686() -> Tried {
    let case = Case::new(&["true"])?;
    let host = case.host_folder("host")?;
    let owner = |path: &Path| fs::metadata(path).map(|meta| (meta.uid(), meta.gid(), meta.mode()));
    let missing = host.join("missing");
    let there = case.host_folder("host/there")?;
    let before = owner(&there)?;
    for (target, behind) in [
        (missing.display().to_string(), ""),
        (there.display().to_string(), ""),
        (format!("../../../../../../..{}", missing.display()), ""),
        (host.display().to_string(), "/deeper/still"),
        ("/nothing/of/that/name".to_owned(), ""),
    ] {
        let mut one = Case::new(&["look", "."])?;
        symlink(&target, one.root().join("work"))?;
        one.spec["process"]["cwd"] = json!(format!("/work{behind}"));
        one.spec["process"]["user"] = json!({"uid": 65534, "gid": 65534});
        let report = one.run()?.report()?;
        expect(report[0]["kind"] == "folder", || {
            format!("the working directory is {report}")
        })?;
        let made: Vec<_> = fs::read_dir(&host)?
            .filter_map(|entry| Some(entry.ok()?.file_name()))
            .collect();
        expect(made == ["there"] && owner(&there)? == before, || {
            format!("with a working directory that leads to {target} the host has {made:?}")
        })?;
    }
    Ok(())
}

fn link_dev() -> Tried {
    for tmpfs in [true, false] {
        let mut case = Case::new(&["look", "/dev/null", "/dev/zero"])?;
        let victim = case.host_folder("victim")?;
        symlink(&victim, case.root().join("dev"))?;
        if !tmpfs {
            case.unmount("/dev/pts");
            case.unmount("/dev");
        }
        let said = case.run()?;
        let count = fs::read_dir(&victim)?.count();
        expect(count == 0, || {
            format!("{count} files were made in a folder of the host")
        })?;
        let report: Value = said.report()?;
        expect(
            report[0]["device"] == "1:3" && report[1]["device"] == "1:5",
            || format!("devices are {report}"),
        )?;
    }
    // a device's place taken by something else
    let mut case = Case::new(&["look", "/dev/null"])?;
    case.unmount("/dev/pts");
    case.unmount("/dev");
    fs::create_dir(case.root().join("dev"))?;
    fs::write(case.root().join("dev/null"), "a file of the image")?;
    case.run()?.refused(&["something else is in its place"])
}
