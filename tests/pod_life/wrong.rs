//! Wrong input: the message is exact, the exit code is not 0, and nothing changes on disk.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::pod_support::{BUSYBOX, Ended, Host, layout, tool, tree};

/// Runs a command that must fail without a change in root or state.
#[track_caller]
fn unchanged(host: &Host, arguments: &[&str]) -> Ended {
    let all = || [tree(&host.root), tree(&host.state)];
    let before = all();
    let ended = host.sampan(arguments);
    assert_ne!(ended.code, 0, "{ended:?}");
    assert_eq!(all(), before);
    ended
}

#[test]
fn files_that_mean_nothing() {
    let host = Host::new();
    for (file, message) in [
        (
            "services:\n  web: [\n",
            "compose.yaml:3:1: not valid YAML: while parsing a node, did not find expected node content",
        ),
        (
            "services:\n  a: {image: i, depends_on: [b]}\n  b: {image: i, depends_on: [a]}\n",
            "compose.yaml:2:30: services.a.depends_on.b: services depend on each other: a -> b -> a; remove one of the dependencies",
        ),
        (
            "services:\n  a:\n    image: ${IMAGE:?say which}\n",
            "compose.yaml:3:12: services.a.image: required variable IMAGE is missing a value: say which",
        ),
        (
            "services:\n  a:\n    image: i\n    ports: ['70000:1']\n",
            "compose.yaml:4:13: services.a.ports[0].published: \"70000\" is not a port or a range of ports",
        ),
        (
            "services:\n  a:\n    image: i\n    imgae: i\n",
            "compose.yaml:4:5: services.a.imgae: unknown key; did you mean image?",
        ),
        (
            "services:\n  a:\n    build: .\n",
            "compose.yaml:3:5: services.a.build: not supported yet; build the image first and name it with image",
        ),
    ] {
        host.compose(file);
        for command in [&["up", "-d"][..], &["config"], &["up"], &["ps"]] {
            let ended = unchanged(&host, command);
            let text = ended.fails(1);
            let path = format!("{}/", host.project.display());
            assert_eq!(
                text.replace(&path, ""),
                format!("sampan: {message}\n"),
                "{command:?}"
            );
        }
    }
    fs::remove_file(host.project.join("compose.yaml")).unwrap();
    for (arguments, code, message) in [
        (
            &["up"][..],
            1,
            "sampan: no compose file in PROJECT or above (compose.yaml, compose.yml, docker-compose.yaml, docker-compose.yml); name one with -f\n",
        ),
        (
            &["-f", "none.yaml", "up"],
            1,
            "sampan: cannot read PROJECT/none.yaml: No such file or directory (os error 2)\n",
        ),
        (
            &["-p", "No Such", "ps"],
            1,
            "sampan: pod name \"No Such\": lower case letters, digits, '-' and '_' only\n",
        ),
        (
            &["-p", "../x", "down"],
            1,
            "sampan: pod name \"../x\": lower case letters, digits, '-' and '_' only\n",
        ),
    ] {
        let ended = unchanged(&host, arguments);
        let text = ended
            .fails(code)
            .replace(host.project.to_str().unwrap(), "PROJECT");
        assert_eq!(text, message);
    }
    assert_eq!(unchanged(&host, &["upp"]).code, 2);
}

#[test]
fn images_that_are_none() {
    let host = Host::new();
    let text = |path: &Path| path.to_str().unwrap().to_string();
    let garbage = text(&host.write("garbage", "this is no image\n".repeat(100)));
    let empty = text(&host.write("empty", ""));
    for (arguments, message) in [
        (
            vec!["image", "import", &garbage, "a:1"],
            format!(
                "sampan: {garbage}: is no image (malformed tar: header error: invalid octal field: [109, 97, 103, 101, 10, 116, 104, 105]); wanted: OCI layout, docker save archive or tar of a root file system\n"
            ),
        ),
        (
            vec!["image", "import", &empty, "a:1"],
            format!(
                "sampan: {empty}: is no image (a tar without entries); wanted: OCI layout, docker save archive or tar of a root file system\n"
            ),
        ),
        (
            vec!["image", "import", "/does/not/exist"],
            "sampan: open /does/not/exist: No such file or directory (os error 2)\n".to_string(),
        ),
        (
            vec!["image", "rm", "nothing"],
            "sampan: no image nothing in the store; `sampan image ls` lists what is there\n"
                .to_string(),
        ),
    ] {
        let ended = unchanged(&host, &arguments);
        assert_eq!(ended.fails(1), message);
    }
    host.compose(&format!(
        "services: {{web: {{image: {BUSYBOX}, command: ['true']}}}}"
    ));
    host.sampan(&["image", "ls"]).ok();
}

/// A copy of busybox's layout whose layer is changed by `change`.
fn broken_layout(host: &Host, name: &str, change: impl Fn(&Path)) -> (String, String) {
    let copy = host.path().join(name);
    tool(
        "cp",
        &[
            "-r",
            layout("busybox").to_str().unwrap(),
            copy.to_str().unwrap(),
        ],
    );
    let read = |digest: &str| -> Value {
        serde_json::from_slice(&fs::read(blob(&copy, digest)).unwrap()).unwrap()
    };
    let index: Value = serde_json::from_slice(&fs::read(copy.join("index.json")).unwrap()).unwrap();
    let manifest = read(index["manifests"][0]["digest"].as_str().unwrap());
    let digest = manifest["layers"][0]["digest"]
        .as_str()
        .unwrap()
        .to_string();
    change(&blob(&copy, &digest));
    (copy.to_str().unwrap().to_string(), digest)
}

fn blob(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}

/// Whole blobs that came before the bad one may stay for the next attempt, until `prune`; no image does.
#[track_caller]
fn refused(host: &Host, layout: &str, message: &str) {
    let before = tree(&host.root);
    let ended = host.sampan(&["image", "import", layout]);
    assert_eq!(ended.fails(1), message);
    assert_eq!(host.sampan(&["image", "ls", "-q"]).ok(), "");
    host.sampan(&["image", "prune"]).ok();
    assert_eq!(tree(&host.root), before);
}

#[test]
fn layouts_that_lie() {
    let host = Host::empty();
    host.sampan(&["image", "ls"]).ok();
    let (truncated, digest) = broken_layout(&host, "truncated", |layer| {
        let size = fs::metadata(layer).unwrap().len();
        fs::File::options()
            .write(true)
            .open(layer)
            .unwrap()
            .set_len(size / 2)
            .unwrap();
    });
    let size = fs::metadata(blob(&layout("busybox"), &digest))
        .unwrap()
        .len();
    let half = size / 2;
    refused(
        &host,
        &truncated,
        &format!("sampan: blob {digest} has {half} bytes instead of {size}; get it again\n"),
    );

    let (changed, digest) = broken_layout(&host, "changed", |layer| {
        let mut bytes = fs::read(layer).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(layer, bytes).unwrap();
    });
    let actual = tool(
        "sha256sum",
        &[blob(Path::new(&changed), &digest).to_str().unwrap()],
    );
    let actual = actual.split(' ').next().unwrap();
    refused(
        &host,
        &changed,
        &format!(
            "sampan: blob {digest} has digest sha256:{actual} instead of {digest}; it was changed on the way or at its origin, get it again from a source you trust\n"
        ),
    );
}
