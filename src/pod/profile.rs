//! `security_opt: seccomp=FILE`: a profile as Docker has it → the runtime-spec's. Pure, but for reading the file.
//!
//! Docker's form (moby/profiles `seccomp`) adds conditions to rules (`includes`, `excludes`) and a table of architectures
//! (`archMap`); a profile in the form of the runtime-spec is one without them. *Invariant:* a key that is not understood is an
//! error, since leaving it out would make a filter that nobody wrote.

use std::io::Read;
use std::path::Path;

use oci_spec::runtime::LinuxSeccomp;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Longest profile (bytes).
const LIMIT: u64 = 4 << 20;

/// What the conditions of rules are about.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Bounding set of the container.
    pub capabilities: &'a [String],
    /// The machine, as Go names it (`amd64`).
    pub arch: &'a str,
    /// Major and minor version of the kernel.
    pub kernel: (u32, u32),
}

/// Reads a profile for a container on this machine.
pub fn read(path: &Path, capabilities: &[String]) -> Result<LinuxSeccomp, String> {
    let at = |why: &dyn std::fmt::Display| format!("seccomp profile {}: {why}", path.display());
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| at(&error))?;
    file.take(LIMIT)
        .read_to_end(&mut text)
        .map_err(|error| at(&error))?;
    if text.len() as u64 == LIMIT {
        return Err(at(&"is longer than 4 MiB"));
    }
    let profile = serde_json::from_slice(&text).map_err(|error| at(&error))?;
    let release = rustix::system::uname();
    let facts = Facts {
        capabilities,
        arch: match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        },
        kernel: version(&release.release().to_string_lossy()).unwrap_or((0, 0)),
    };
    convert(profile, &facts).map_err(|why| at(&why))
}

/// Docker's part of a rule.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Condition {
    arches: Vec<String>,
    caps: Vec<String>,
    min_kernel: String,
}

impl Condition {
    fn of(rule: &mut Map<String, Value>, key: &str) -> Result<Option<Condition>, String> {
        match rule.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|error| format!("{key}: {error}")),
        }
    }

    fn new_enough(&self, facts: &Facts<'_>) -> Result<Option<bool>, String> {
        if self.min_kernel.is_empty() {
            return Ok(None);
        }
        let wanted = version(&self.min_kernel)
            .ok_or_else(|| format!("minKernel: {:?} is not a version", self.min_kernel))?;
        Ok(Some(facts.kernel >= wanted))
    }

    /// `includes`: all of it must hold.
    fn included(&self, facts: &Facts<'_>) -> Result<bool, String> {
        let arch = self.arches.is_empty() || self.arches.iter().any(|a| a == facts.arch);
        let caps = self.caps.iter().all(|c| facts.capabilities.contains(c));
        Ok(arch && caps && self.new_enough(facts)?.unwrap_or(true))
    }

    /// `excludes`: any of it suffices.
    fn excluded(&self, facts: &Facts<'_>) -> Result<bool, String> {
        let arch = self.arches.iter().any(|a| a == facts.arch);
        let caps = self.caps.iter().any(|c| facts.capabilities.contains(c));
        Ok(arch || caps || self.new_enough(facts)?.unwrap_or(false))
    }
}

/// One line of `archMap`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Arch {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

/// Docker's form → the runtime-spec's.
pub fn convert(profile: Value, facts: &Facts<'_>) -> Result<LinuxSeccomp, String> {
    let Value::Object(mut profile) = profile else {
        return Err("is not a JSON object".to_string());
    };
    known(
        &profile,
        &[
            "defaultAction",
            "defaultErrnoRet",
            "architectures",
            "archMap",
            "flags",
            "syscalls",
        ],
    )?;
    if let Some(map) = profile.remove("archMap").filter(|map| !map.is_null()) {
        let map: Vec<Arch> =
            serde_json::from_value(map).map_err(|error| format!("archMap: {error}"))?;
        let own = match facts.arch {
            "amd64" => "SCMP_ARCH_X86_64",
            "arm64" => "SCMP_ARCH_AARCH64",
            other => return Err(format!("archMap: architecture {other} is not supported")),
        };
        if let Some(line) = map.into_iter().find(|line| line.architecture == own) {
            let mut all = vec![line.architecture];
            all.extend(line.sub_architectures.unwrap_or_default());
            profile.insert("architectures".to_string(), json!(all));
        }
    }
    let mut rules = Vec::new();
    let given = match profile.remove("syscalls") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(list)) => list,
        Some(_) => return Err("syscalls: is not a list".to_string()),
    };
    for (index, rule) in given.into_iter().enumerate() {
        let rule = self::rule(rule, facts).map_err(|why| format!("syscalls[{index}]: {why}"))?;
        rules.extend(rule);
    }
    profile.insert("syscalls".to_string(), Value::Array(rules));
    serde_json::from_value(Value::Object(profile)).map_err(|error| error.to_string())
}

/// `None`: its conditions do not hold here.
fn rule(rule: Value, facts: &Facts<'_>) -> Result<Option<Value>, String> {
    let Value::Object(mut rule) = rule else {
        return Err("is not a JSON object".to_string());
    };
    known(
        &rule,
        &[
            "name", "names", "action", "errnoRet", "args", "comment", "includes", "excludes",
        ],
    )?;
    rule.remove("comment");
    let include = Condition::of(&mut rule, "includes")?;
    let exclude = Condition::of(&mut rule, "excludes")?;
    if let Some(name) = rule.remove("name").filter(|name| !name.is_null()) {
        if rule.contains_key("names") {
            return Err("has both name and names".to_string());
        }
        rule.insert("names".to_string(), json!([name]));
    }
    let included = include.map_or(Ok(true), |c| c.included(facts))?;
    let excluded = exclude.map_or(Ok(false), |c| c.excluded(facts))?;
    rule.retain(|_, value| !value.is_null());
    Ok((included && !excluded).then_some(Value::Object(rule)))
}

fn known(map: &Map<String, Value>, keys: &[&str]) -> Result<(), String> {
    match map.keys().find(|key| !keys.contains(&key.as_str())) {
        Some(key) => Err(format!("{key}: is not supported")),
        None => Ok(()),
    }
}

/// Major and minor number of `6.1.0-13-amd64`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_decide_which_rules_stay() {
        let held = ["CAP_SYS_ADMIN".to_string()];
        let facts = Facts {
            capabilities: &held,
            arch: "amd64",
            kernel: (6, 1),
        };
        let cases = [
            (json!({}), true),
            (json!({"includes": {"caps": ["CAP_SYS_ADMIN"]}}), true),
            (
                json!({"includes": {"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}}),
                false,
            ),
            (
                json!({"excludes": {"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}}),
                false,
            ),
            (json!({"includes": {"arches": ["arm64", "amd64"]}}), true),
            (json!({"includes": {"arches": ["arm64"]}}), false),
            (json!({"excludes": {"arches": ["amd64"]}}), false),
            (json!({"includes": {"minKernel": "4.8"}}), true),
            (json!({"includes": {"minKernel": "6.2"}}), false),
            (
                json!({"includes": null, "excludes": {}, "comment": "x"}),
                true,
            ),
        ];
        for (extra, stays) in cases {
            let mut rule = json!({"names": ["bpf"], "action": "SCMP_ACT_ALLOW"});
            for (key, value) in extra.as_object().unwrap() {
                rule[key] = value.clone();
            }
            let profile = json!({
                "defaultAction": "SCMP_ACT_ERRNO",
                "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
                "syscalls": [rule],
            });
            let made = convert(profile, &facts).unwrap();
            let count = made.syscalls().as_ref().map_or(0, Vec::len);
            assert_eq!(count, usize::from(stays), "{extra}");
            assert_eq!(made.architectures().as_ref().map(Vec::len), Some(2));
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let facts = Facts {
            capabilities: &[],
            arch: "amd64",
            kernel: (6, 1),
        };
        for (profile, why) in [
            (json!([]), "is not a JSON object"),
            (
                json!({"defaultAktion": "x"}),
                "defaultAktion: is not supported",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "when": 1}]}),
                "syscalls[0]: when: is not supported",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"includes": {"minKernel": "new"}}]}),
                "syscalls[0]: minKernel: \"new\" is not a version",
            ),
        ] {
            assert_eq!(convert(profile, &facts).unwrap_err(), why);
        }
        let none = Path::new("/nowhere/profile.json");
        let error = read(none, &[]).unwrap_err();
        assert!(
            error.starts_with("seccomp profile /nowhere/profile.json: No such file"),
            "{error}"
        );
    }
}
