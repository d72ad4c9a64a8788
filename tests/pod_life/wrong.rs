//! Wrong input: the message is exact, the exit code is not 0, and nothing changes on disk.

use std::fs;
use std::path::Path;

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
            "services:\n  web: [",
            "compose.yaml:2:8: not valid YAML: while parsing a flow node, did not find expected node content",
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
            "sampan: no compose file in PROJECT or a folder above it; name one with -f\n",
        ),
        (
            &["-f", "none.yaml", "up"],
            1,
            "sampan: PROJECT/none.yaml: cannot be read: entity not found\n",
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
            format!("sampan: {garbage}: not an OCI layout, a `docker save` archive or a tar\n"),
        ),
        (
            vec!["image", "import", &empty, "a:1"],
            format!("sampan: {empty}: the file is empty\n"),
        ),
        (
            vec!["image", "import", "/does/not/exist"],
            "sampan: open /does/not/exist: No such file or directory (os error 2)\n".to_string(),
        ),
        (
            vec!["image", "rm", "nothing"],
            "sampan: image nothing: not in the store\n".to_string(),
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
        let path = copy.join("blobs").join(digest.replace(':', "/"));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    let index: Value = serde_json::from_slice(&fs::read(copy.join("index.json")).unwrap()).unwrap();
    let manifest = read(index["manifests"][0]["digest"].as_str().unwrap());
    let digest = manifest["layers"][0]["digest"]
        .as_str()
        .unwrap()
        .to_string();
    change(&copy.join("blobs").join(digest.replace(':', "/")));
    (copy.to_str().unwrap().to_string(), digest)
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
    let ended = unchanged(&host, &["image", "import", &truncated]);
    assert!(ended.fails(1).contains(&digest), "{ended:?}");
    assert_eq!(ended.stderr, "");

    let (changed, digest) = broken_layout(&host, "changed", |layer| {
        let mut bytes = fs::read(layer).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(layer, bytes).unwrap();
    });
    let ended = unchanged(&host, &["image", "import", &changed]);
    assert!(ended.fails(1).contains(&digest), "{ended:?}");
    assert_eq!(ended.stderr, "");
}
