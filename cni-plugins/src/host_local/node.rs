//! Variables of the node in a configuration that is the same on every host: `10.${R}.${C}.0/24`.
//!
//! *Invariants*: `${NAME}` in any string of `ipam` is replaced before anything reads it; a variable without a value is
//! an error that names it. The environment (`SAMPAN_NODE_<NAME>`) comes before the file (`nodeFile`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::conf::Conf;
use crate::error::{CniError, DECODE_FAILURE, Result};

const DEFAULT_FILE: &str = "/etc/cni/node.json";
const PREFIX: &str = "SAMPAN_NODE_";
/// Longer files are not what is looked for.
const MAX_FILE: u64 = 64 << 10;

/// The node's values: read when the first one is wanted.
struct Node {
    path: PathBuf,
    file: Option<BTreeMap<String, Value>>,
}

/// `conf` with the variables in its `ipam` replaced.
pub fn expanded(conf: &Conf) -> Result<Conf> {
    let mut conf = conf.clone();
    let Some(ipam) = conf.value.get_mut("ipam") else {
        return Ok(conf);
    };
    let path = ipam.get("nodeFile").and_then(Value::as_str);
    let mut node = Node {
        path: path.unwrap_or(DEFAULT_FILE).into(),
        file: None,
    };
    expand(ipam, &mut |name| node.value(name))?;
    Ok(conf)
}

impl Node {
    fn value(&mut self, name: &str) -> Result<String> {
        if let Ok(value) = std::env::var(format!("{PREFIX}{name}")) {
            return Ok(value);
        }
        if self.file.is_none() {
            self.file = Some(read(&self.path)?);
        }
        match self.file.as_ref().and_then(|file| file.get(name)) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(Value::Number(number)) => Ok(number.to_string()),
            Some(other) => Err(CniError::config(format!(
                "{name} in {} is neither text nor a number",
                self.path.display()
            ))
            .because(other)),
            None => Err(CniError::config(format!(
                "variable ${{{name}}} in ipam has no value: neither {PREFIX}{name} in the environment nor {name} in {}",
                self.path.display()
            ))),
        }
    }
}

fn read(path: &Path) -> Result<BTreeMap<String, Value>> {
    let mut text = String::new();
    match File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text)) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(cause) => return Err(CniError::io("read", path, &cause)),
        Ok(_) => {}
    }
    serde_json::from_str(&text).map_err(|cause| {
        CniError::new(
            DECODE_FAILURE,
            format!(
                "{} is not a JSON object of the node's values",
                path.display()
            ),
        )
        .because(cause)
    })
}

fn expand(value: &mut Value, lookup: &mut dyn FnMut(&str) -> Result<String>) -> Result<()> {
    match value {
        Value::String(text) if text.contains("${") => *text = replace(text, lookup)?,
        Value::Array(list) => {
            for item in list {
                expand(item, lookup)?;
            }
        }
        Value::Object(map) => {
            for item in map.values_mut() {
                expand(item, lookup)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn replace(text: &str, lookup: &mut dyn FnMut(&str) -> Result<String>) -> Result<String> {
    let mut done = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("${") {
        let Some((name, after)) = behind.split_once('}') else {
            return Err(CniError::config(format!("${{ without }} in {text:?}")));
        };
        done.push_str(before);
        done.push_str(&lookup(name)?);
        rest = after;
    }
    done.push_str(rest);
    Ok(done)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn conf(ipam: Value) -> Conf {
        Conf::new(json!({"cniVersion": "1.0.0", "name": "n", "ipam": ipam})).unwrap()
    }

    #[test]
    fn values() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("node.json");
        std::fs::write(&file, r#"{"R": 3, "C": "14", "L": []}"#).unwrap();
        let ipam = |subnet: &str| json!({"nodeFile": &file, "ranges": [[{"subnet": subnet}]]});
        let cases = [
            ("10.${R}.${C}.0/24", Ok("10.3.14.0/24")),
            ("10.0.0.0/8", Ok("10.0.0.0/8")),
            ("$R", Ok("$R")),
            ("${R", Err("${ without } in \"${R\"".to_owned())),
            (
                "${L}",
                Err(format!(
                    "L in {} is neither text nor a number",
                    file.display()
                )),
            ),
            (
                "${X}",
                Err(format!(
                    "variable ${{X}} in ipam has no value: neither SAMPAN_NODE_X in the environment nor X in {}",
                    file.display()
                )),
            ),
        ];
        for (subnet, expected) in cases {
            let got = expanded(&conf(ipam(subnet)));
            let got = got.map(|conf| conf.value["ipam"]["ranges"][0][0]["subnet"].clone());
            match expected {
                Ok(text) => assert_eq!(got.unwrap(), text),
                Err(msg) => assert_eq!(got.unwrap_err().msg, msg),
            }
        }
        let missing = conf(json!({"nodeFile": "/nonexistent", "subnet": "10.${R}.0.0/16"}));
        assert_eq!(expanded(&missing).unwrap_err().code, 7);
        std::fs::write(&file, "[]").unwrap();
        assert_eq!(expanded(&conf(ipam("${R}"))).unwrap_err().code, 6);
    }
}
