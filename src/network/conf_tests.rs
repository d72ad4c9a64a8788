//! Tests of reading network lists.

use super::*;

#[test]
fn parses_or_says_what_is_wrong() {
    // text; name and number of plugins, or the error
    type Row = (&'static str, Result<(&'static str, usize), &'static str>);
    let table: &[Row] = &[
        (
            r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge"},{"type":"portmap"}]}"#,
            Ok(("a", 2)),
        ),
        (
            r#"{"cniVersion":"0.3.1","name":"a.b","type":"bridge","mtu":9}"#,
            Ok(("a.b", 1)),
        ),
        (r#"{"name":"old","type":"bridge"}"#, Ok(("old", 1))),
        (
            r#"{"name":"a","disableCheck":"true","plugins":[{"type":"x"}]}"#,
            Ok(("a", 1)),
        ),
        (
            "{\n\"name\": }",
            Err("f:2: not JSON: expected value at line 2 column 9"),
        ),
        ("[]", Err("f: a network list is a JSON object")),
        (
            r#"{"name":"a"}"#,
            Err("f: neither `plugins` (a network list) nor `type` (a single plugin) is there"),
        ),
        (
            r#"{"name":"-a","type":"x"}"#,
            Err(
                "f: name `-a`: must begin with a letter or digit and hold only these, `_`, `.` and `-`",
            ),
        ),
        (r#"{"name":1,"type":"x"}"#, Err("f: name: must be a string")),
        (r#"{"type":"x"}"#, Err("f: name: missing")),
        (
            r#"{"cniVersion":"9.0.0","name":"a","type":"x"}"#,
            Err(
                "f: cniVersion `9.0.0`: not one of 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0",
            ),
        ),
        (
            r#"{"cniVersion":1,"name":"a","type":"x"}"#,
            Err("f: cniVersion: must be a string"),
        ),
        (
            r#"{"name":"a","plugins":[]}"#,
            Err("f: plugins: at least one is needed"),
        ),
        (
            r#"{"name":"a","plugins":{}}"#,
            Err("f: plugins: must be a list"),
        ),
        (
            r#"{"name":"a","plugins":[1]}"#,
            Err("f: plugins[0]: must be an object"),
        ),
        (
            r#"{"name":"a","plugins":[{"type":"x"},{}]}"#,
            Err("f: plugins[1].type: missing"),
        ),
        (
            r#"{"name":"a","type":"../sh"}"#,
            Err("f: plugins[0].type `../sh`: must be the name of a plugin, without a path"),
        ),
        (
            r#"{"name":"a","type":"x","ipam":{"type":"a/b"}}"#,
            Err("f: plugins[0].ipam.type `a/b`: must be the name of a plugin, without a path"),
        ),
        (
            r#"{"name":"a","plugins":[{"type":""}]}"#,
            Err("f: plugins[0].type ``: must be the name of a plugin, without a path"),
        ),
        (
            r#"{"name":"a","type":"x\\y"}"#,
            Err("f: plugins[0].type `x\\y`: must be the name of a plugin, without a path"),
        ),
        (
            r#"{"name":"a","loadOnlyInlinedPlugins":"True"}"#,
            Err("f: loadOnlyInlinedPlugins: there is no `plugins` to go with it"),
        ),
        (
            r#"{"name":"a","loadOnlyInlinedPlugins":"no","plugins":[{"type":"x"}]}"#,
            Err("f: loadOnlyInlinedPlugins: must be true or false"),
        ),
        (
            r#"{"name":"a","type":"x","capabilities":{"ips":1}}"#,
            Err("f: plugins[0].capabilities: must be an object of true and false"),
        ),
        (
            r#"{"name":"a","disableCheck":1,"plugins":[{"type":"x"}]}"#,
            Err("f: disableCheck: must be true or false"),
        ),
    ];
    for (text, expected) in table {
        let got = NetworkList::parse(text.as_bytes(), "f")
            .map(|l| (l.name.clone(), l.plugins().len()))
            .map_err(|e| e.to_string());
        let expected = expected
            .map(|(n, c)| (n.to_string(), c))
            .map_err(str::to_string);
        assert_eq!(got, expected, "{text}");
    }
}

#[test]
fn newest_known_version_is_taken() {
    for (keys, expected) in [
        (
            r#""cniVersion":"0.4.0","cniVersions":["1.0.0","7.0.0"]"#,
            "1.0.0 0.4.0",
        ),
        (
            r#""cniVersion":"9.0.0","cniVersions":["0.3.1","0.4.0"]"#,
            "0.4.0 0.3.1",
        ),
        (r#""cniVersions":["1.1.0"]"#, "1.1.0"),
        (r#""cniVersions":["0.3.1","1.1.0","0.3.1"]"#, "1.1.0 0.3.1"),
        (r#""x":1"#, "0.1.0"),
    ] {
        let text = format!(r#"{{"name":"a",{keys},"plugins":[{{"type":"x"}}]}}"#);
        let list = NetworkList::parse(text.as_bytes(), "f").unwrap();
        assert_eq!(list.versions().join(" "), expected, "{keys}");
        assert!(expected.starts_with(list.version()));
        let old = list.at_version("0.3.1");
        assert_eq!((old.version(), old.versions()), ("0.3.1", vec!["0.3.1"]));
    }
}

#[test]
fn versions_compare_as_numbers() {
    let list = |v: &str| {
        let text = format!(r#"{{"cniVersion":"{v}","name":"a","type":"x"}}"#);
        NetworkList::parse(text.as_bytes(), "f").unwrap()
    };
    for (v, least, expected) in [
        ("0.3.1", "0.4.0", false),
        ("0.4.0", "0.4.0", true),
        ("1.1.0", "0.4.0", true),
        ("1.0.0", "1.1.0", false),
    ] {
        assert_eq!(list(v).at_least(least), expected, "{v} {least}");
    }
}

#[test]
fn first_file_with_the_name_wins_and_broken_ones_hide_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    for d in [&one, &two] {
        std::fs::create_dir(d).unwrap();
    }
    let write = |path: PathBuf, text: &str| std::fs::write(path, text).unwrap();
    write(one.join("00-broken.conf"), "{");
    write(one.join("20-a.conf"), r#"{"name":"a","type":"late"}"#);
    write(one.join("10-a.json"), r#"{"name":"a","type":"early"}"#);
    write(one.join("10-d.conf"), r#"{"name":"d","type":"x"}"#);
    let list = r#"{"name":"d","plugins":[{"type":"list"}]}"#;
    write(one.join("99-d.conflist"), list);
    write(one.join("05-a.txt"), r#"{"name":"a","type":"ignored"}"#);
    write(two.join("00-b.conflist"), r#"{"name":"b","type":"x"}"#);
    write(two.join("00-a.conflist"), r#"{"name":"a","type":"x"}"#);
    write(two.join("99-big.conf"), &" ".repeat(MAX_FILE as usize + 1));
    let cni = Cni {
        conf_dirs: vec![one.clone(), dir.path().join("missing"), two],
        plugin_dirs: vec![],
        state: "/nonexistent".into(),
    };
    let (lists, broken) = cni.list().unwrap();
    let names: Vec<_> = lists.iter().map(|l| l.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "d"]);
    assert_eq!(broken.len(), 2);
    assert!(broken[1].to_string().ends_with("longer than 1048576 bytes"));
    let a = cni.load("a").unwrap();
    assert_eq!(a.source, one.join("10-a.json").display().to_string());
    assert_eq!(a.types(), ["early"]);
    // a list before a single plugin, whatever the names of the files
    assert_eq!(cni.load("d").unwrap().types(), ["list"]);
    let missing = cni.load("c").unwrap_err().to_string();
    assert!(
        missing.contains("no CNI network list `c`") && missing.contains("00-broken.conf:1"),
        "{missing}"
    );
}

#[test]
fn interface_names() {
    for (name, expected) in [
        ("eth0", true),
        ("", false),
        ("..", false),
        ("fifteen-chars-x", true),
        ("sixteen-chars-xx", false),
        ("a/b", false),
        ("a:b", false),
        ("a b", false),
    ] {
        assert_eq!(is_ifname(name), expected, "{name}");
    }
}

#[test]
fn plugins_of_the_folder_with_the_networks_name() {
    let dir = tempfile::tempdir().unwrap();
    let cni = Cni {
        conf_dirs: vec![dir.path().into()],
        plugin_dirs: vec![],
        state: "/nonexistent".into(),
    };
    let folder = dir.path().join("a");
    std::fs::create_dir(&folder).unwrap();
    for (name, text) in [
        ("20-z.conf", r#"{"type":"z"}"#),
        ("10-y.conf", r#"{"type":"y","k":1}"#),
        ("00-not.conflist", r#"{"type":"not"}"#),
    ] {
        std::fs::write(folder.join(name), text).unwrap();
    }
    // file and text; its plugins, or the error
    type Row = (
        &'static str,
        &'static str,
        Result<&'static [&'static str], &'static str>,
    );
    let table: &[Row] = &[
        (
            "a.conflist",
            r#"{"name":"a","plugins":[{"type":"x"}]}"#,
            Ok(&["x", "y", "z"]),
        ),
        ("a.conflist", r#"{"name":"a"}"#, Ok(&["y", "z"])),
        (
            "a.conflist",
            r#"{"name":"a","plugins":[{"type":"x"}],"loadOnlyInlinedPlugins":true}"#,
            Ok(&["x"]),
        ),
        ("a.conf", r#"{"name":"a","type":"x"}"#, Ok(&["x"])),
        (
            "a.conflist",
            r#"{"name":"a","plugins":{}}"#,
            Err("a.conflist: plugins: must be a list"),
        ),
    ];
    for (file, text, expected) in table {
        let path = dir.path().join(file);
        std::fs::write(&path, text).unwrap();
        let got = NetworkList::read(&path).map_err(|e| e.to_string());
        match (&got, expected) {
            (Ok(list), Ok(types)) => assert_eq!(list.types(), *types, "{text}"),
            (Err(error), Err(expected)) => assert!(error.ends_with(expected), "{error}"),
            _ => panic!("{text}: {got:?}"),
        }
        std::fs::remove_file(path).unwrap();
    }
    std::fs::write(folder.join("30-bad.conf"), r#"{"type":"../x"}"#).unwrap();
    std::fs::write(dir.path().join("a.conflist"), r#"{"name":"a"}"#).unwrap();
    let error = cni.load("a").unwrap_err().to_string();
    let expected = "a/30-bad.conf: type `../x`: must be the name of a plugin, without a path";
    assert!(error.contains(expected), "{error}");
}
