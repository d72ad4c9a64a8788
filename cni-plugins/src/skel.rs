//! From environment and stdin to a plugin, and from its answer to stdout (CNI §2 "Execution protocol").
//!
//! *Invariants*: the environment is read here alone, by one table; a plugin is given a checked [`Invocation`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use serde_json::{Value, json};

use crate::conf::{Conf, valid_ifname, valid_name};
use crate::error::{
    CniError, DECODE_FAILURE, INCOMPATIBLE_VERSION, INVALID_ENVIRONMENT, IO_FAILURE, Result,
};
use crate::result::VERSIONS;

/// A configuration or result longer than this many bytes is refused.
pub const MAX_JSON: u64 = 4 << 20;

/// `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Attach.
    Add,
    /// Detach; idempotent.
    Del,
    /// Is it as ADD left it?
    Check,
    /// Remove what no valid attachment owns.
    Gc,
    /// Could ADD work?
    Status,
    /// Which versions are supported?
    Version,
}

impl Command {
    /// The word of `CNI_COMMAND`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// The first version of the specification that has the command.
    fn since(self) -> &'static str {
        match self {
            Self::Add | Self::Del | Self::Version => "0.3.0",
            Self::Check => "0.4.0",
            Self::Gc | Self::Status => "1.1.0",
        }
    }
}

impl FromStr for Command {
    type Err = CniError;

    fn from_str(text: &str) -> Result<Self> {
        use Command::*;
        [Add, Del, Check, Gc, Status, Version]
            .into_iter()
            .find(|command| command.as_str() == text)
            .ok_or_else(|| {
                CniError::new(INVALID_ENVIRONMENT, format!("unknown CNI_COMMAND: {text}"))
            })
    }
}

/// One call of a plugin.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// `CNI_COMMAND`.
    pub command: Command,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`; may be absent for DEL.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_ARGS`, as `K=V;K=V`.
    pub args: String,
    /// `CNI_PATH`: where an address plugin is looked for; one that isn't there and is built in runs in process.
    pub path: Vec<PathBuf>,
    /// The configuration.
    pub config: Value,
}

impl Invocation {
    /// The namespace, which ADD and CHECK can't do without.
    pub fn required_netns(&self) -> Result<&PathBuf> {
        self.netns.as_ref().ok_or_else(|| missing(&["CNI_NETNS"]))
    }
}

struct Variable {
    name: &'static str,
    required: &'static [Command],
}

const ATTACHMENT: &[Command] = &[Command::Add, Command::Del, Command::Check];

/// CNI §2 "Parameters". `CNI_PATH` is never required: the address plugins are built in.
const ENVIRONMENT: [Variable; 5] = [
    Variable {
        name: "CNI_CONTAINERID",
        required: ATTACHMENT,
    },
    Variable {
        name: "CNI_NETNS",
        required: &[Command::Add, Command::Check],
    },
    Variable {
        name: "CNI_IFNAME",
        required: ATTACHMENT,
    },
    Variable {
        name: "CNI_ARGS",
        required: &[],
    },
    Variable {
        name: "CNI_PATH",
        required: &[],
    },
];

fn missing(names: &[&str]) -> CniError {
    CniError::new(
        INVALID_ENVIRONMENT,
        format!("required env variables [{}] missing", names.join(",")),
    )
}

fn environment(
    command: Command,
    getenv: &dyn Fn(&str) -> Option<OsString>,
) -> Result<BTreeMap<&'static str, String>> {
    let mut values = BTreeMap::new();
    let mut absent = Vec::new();
    for variable in &ENVIRONMENT {
        let value = getenv(variable.name)
            .unwrap_or_default()
            .into_string()
            .map_err(|_| {
                CniError::new(
                    INVALID_ENVIRONMENT,
                    format!("{} is not UTF-8", variable.name),
                )
            })?;
        if value.is_empty() && variable.required.contains(&command) {
            absent.push(variable.name);
        }
        values.insert(variable.name, value);
    }
    if absent.is_empty() {
        Ok(values)
    } else {
        Err(missing(&absent))
    }
}

fn read_config(stdin: &mut dyn Read) -> Result<Value> {
    let mut bytes = Vec::new();
    stdin
        .take(MAX_JSON + 1)
        .read_to_end(&mut bytes)
        .map_err(|cause| CniError::new(IO_FAILURE, "error reading from stdin").because(cause))?;
    if bytes.len() as u64 > MAX_JSON {
        return Err(CniError::new(
            DECODE_FAILURE,
            format!("the network configuration is longer than {MAX_JSON} bytes"),
        ));
    }
    serde_json::from_slice(&bytes).map_err(|cause| {
        CniError::new(DECODE_FAILURE, "error unmarshalling network config").because(cause)
    })
}

fn invocation(
    getenv: &dyn Fn(&str) -> Option<OsString>,
    config: Result<Value>,
) -> Result<Invocation> {
    let command = match getenv("CNI_COMMAND").and_then(|value| value.into_string().ok()) {
        Some(text) if !text.is_empty() => text.parse()?,
        _ => return Err(missing(&["CNI_COMMAND"])),
    };
    let mut values = environment(command, getenv)?;
    let mut take = |name: &str| values.remove(name).unwrap_or_default();
    Ok(Invocation {
        command,
        container_id: take("CNI_CONTAINERID"),
        netns: Some(take("CNI_NETNS"))
            .filter(|path| !path.is_empty())
            .map(PathBuf::from),
        ifname: take("CNI_IFNAME"),
        args: take("CNI_ARGS"),
        path: take("CNI_PATH")
            .split(':')
            .filter(|folder| !folder.is_empty())
            .map(PathBuf::from)
            .collect(),
        config: config?,
    })
}

/// A plugin's commands; what GC and STATUS have nothing to do for is `Ok`.
pub struct Plugin {
    /// ADD.
    pub add: fn(&Conf, &Invocation) -> Result<Value>,
    /// DEL.
    pub del: fn(&Conf, &Invocation) -> Result<()>,
    /// CHECK.
    pub check: fn(&Conf, &Invocation) -> Result<()>,
    /// GC.
    pub gc: fn(&Conf, &Invocation) -> Result<()>,
    /// STATUS.
    pub status: fn(&Conf, &Invocation) -> Result<()>,
}

fn valid(name: &str, value: &str, rule: fn(&str) -> bool) -> Result<()> {
    if rule(value) {
        return Ok(());
    }
    Err(CniError::new(INVALID_ENVIRONMENT, format!("invalid {name}")).because(value))
}

/// Calls the command of `invocation`; `Null` where the specification has no output.
pub fn dispatch(plugin: &Plugin, invocation: &Invocation) -> Result<Value> {
    let command = invocation.command;
    if command == Command::Version {
        let version = invocation.config.get("cniVersion");
        let version = version
            .and_then(Value::as_str)
            .unwrap_or(VERSIONS[VERSIONS.len() - 1]);
        return Ok(json!({"cniVersion": version, "supportedVersions": VERSIONS}));
    }
    let conf = Conf::new(invocation.config.clone())?;
    if !conf.at_least(command.since()) {
        return Err(CniError::new(
            INCOMPATIBLE_VERSION,
            format!("config version does not allow {}", command.as_str()),
        )
        .because(conf.cni_version));
    }
    if ATTACHMENT.contains(&command) {
        valid("CNI_CONTAINERID", &invocation.container_id, valid_name)?;
        valid("CNI_IFNAME", &invocation.ifname, valid_ifname)?;
    }
    if command == Command::Add {
        return (plugin.add)(&conf, invocation);
    }
    let call = match command {
        Command::Del => plugin.del,
        Command::Check => plugin.check,
        Command::Gc => plugin.gc,
        _ => plugin.status,
    };
    call(&conf, invocation).map(|()| Value::Null)
}

/// A plugin process: everything outside is an argument. Returns what to print and whether it is a success.
pub fn execute(
    plugin: &Plugin,
    getenv: &dyn Fn(&str) -> Option<OsString>,
    stdin: &mut dyn Read,
) -> (Value, bool) {
    // the version of the answer is the version of the question, even of one that fails
    let config = match getenv("CNI_COMMAND").as_deref() {
        Some(command) if !command.is_empty() => read_config(stdin),
        _ => Ok(Value::Null),
    };
    let version = config
        .as_ref()
        .ok()
        .and_then(|config| config.get("cniVersion"))
        .and_then(Value::as_str)
        .unwrap_or(VERSIONS[VERSIONS.len() - 1])
        .to_owned();
    match invocation(getenv, config).and_then(|invocation| dispatch(plugin, &invocation)) {
        Ok(value) => (value, true),
        Err(error) => (error.to_json(&version), false),
    }
}

/// `main` of a plugin: prints the answer, exits with 0 or 1.
pub fn process(plugin: &Plugin) -> ExitCode {
    let (answer, success) = execute(
        plugin,
        &|name| std::env::var_os(name),
        &mut std::io::stdin().lock(),
    );
    if !answer.is_null() {
        let mut stdout = std::io::stdout().lock();
        if let Err(cause) = writeln!(stdout, "{answer:#}").and_then(|()| stdout.flush()) {
            eprintln!("cannot write the answer to stdout: {cause}");
            return ExitCode::FAILURE;
        }
    }
    if success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ECHO: Plugin = Plugin {
        add: |conf, invocation| {
            Ok(json!({"name": conf.name, "path": invocation.path, "args": invocation.args}))
        },
        del: |_, invocation| {
            assert_eq!(invocation.netns, None);
            Ok(())
        },
        check: |_, _| Err(CniError::check("something differs")),
        gc: |_, _| Ok(()),
        status: |_, _| Ok(()),
    };

    fn call(env: &[(&str, &str)], stdin: &str) -> (Value, bool) {
        let env: BTreeMap<&str, &str> = env.iter().copied().collect();
        execute(
            &ECHO,
            &|name| env.get(name).map(OsString::from),
            &mut stdin.as_bytes(),
        )
    }

    const FULL: [(&str, &str); 5] = [
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/ns"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "IP=10.0.0.1"),
        ("CNI_PATH", "/a:/b"),
    ];

    fn with(
        command: &'static str,
        change: &[(&'static str, &'static str)],
    ) -> Vec<(&'static str, &'static str)> {
        let mut env = vec![("CNI_COMMAND", command)];
        env.extend(FULL);
        env.extend(change);
        env
    }

    const CONFIG: &str = r#"{"cniVersion":"1.1.0","name":"n","type":"echo"}"#;

    #[test]
    fn answers() {
        assert_eq!(
            call(&with("ADD", &[]), CONFIG),
            (
                json!({"name": "n", "path": ["/a", "/b"], "args": "IP=10.0.0.1"}),
                true
            )
        );
        assert_eq!(
            call(&with("DEL", &[("CNI_NETNS", "")]), CONFIG),
            (Value::Null, true)
        );
        for command in ["GC", "STATUS"] {
            assert_eq!(
                call(&[("CNI_COMMAND", command)], CONFIG),
                (Value::Null, true)
            );
        }
        assert_eq!(
            call(&with("CHECK", &[]), CONFIG),
            (
                json!({"cniVersion": "1.1.0", "code": 100, "msg": "something differs", "details": ""}),
                false
            )
        );
        assert_eq!(
            call(&[("CNI_COMMAND", "VERSION")], r#"{"cniVersion":"0.4.0"}"#),
            (
                json!({"cniVersion": "0.4.0", "supportedVersions": VERSIONS}),
                true
            )
        );
    }

    #[test]
    fn refusals() {
        let missing_all = [("CNI_COMMAND", "ADD")];
        type Env<'a> = &'a [(&'a str, &'a str)];
        let cases: [(Env<'_>, &str, u64, &str); 13] = [
            (
                &[],
                CONFIG,
                4,
                "required env variables [CNI_COMMAND] missing",
            ),
            (
                &[("CNI_COMMAND", "FLY")],
                CONFIG,
                4,
                "unknown CNI_COMMAND: FLY",
            ),
            (
                &missing_all,
                CONFIG,
                4,
                "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME] missing",
            ),
            (
                &with("CHECK", &[("CNI_NETNS", "")]),
                CONFIG,
                4,
                "required env variables [CNI_NETNS] missing",
            ),
            (
                &with("ADD", &[("CNI_CONTAINERID", "../x")]),
                CONFIG,
                4,
                "invalid CNI_CONTAINERID",
            ),
            (
                &with("ADD", &[("CNI_IFNAME", "a/b")]),
                CONFIG,
                4,
                "invalid CNI_IFNAME",
            ),
            (
                &with("ADD", &[]),
                "{",
                6,
                "error unmarshalling network config",
            ),
            (
                &with("ADD", &[]),
                "[]",
                6,
                "the network configuration is not a JSON object",
            ),
            (
                &with("ADD", &[]),
                r#"{"cniVersion":"1.1.0"}"#,
                7,
                "missing network name",
            ),
            (
                &with("ADD", &[]),
                r#"{"name":"n"}"#,
                1,
                "incompatible CNI versions",
            ),
            (
                &with("CHECK", &[]),
                r#"{"cniVersion":"0.3.1","name":"n"}"#,
                1,
                "config version does not allow CHECK",
            ),
            (
                &with("GC", &[]),
                r#"{"cniVersion":"1.0.0","name":"n"}"#,
                1,
                "config version does not allow GC",
            ),
            (
                &with("STATUS", &[]),
                r#"{"cniVersion":"1.0.0","name":"n"}"#,
                1,
                "config version does not allow STATUS",
            ),
        ];
        for (env, stdin, code, msg) in cases {
            let (answer, success) = call(env, stdin);
            assert!(!success, "{msg}");
            assert_eq!(
                (&answer["code"], &answer["msg"]),
                (&json!(code), &json!(msg)),
                "{answer}"
            );
        }
    }

    #[test]
    fn endless_input_ends() {
        let (answer, _) = execute(
            &ECHO,
            &|name| (name == "CNI_COMMAND").then(|| "STATUS".into()),
            &mut std::io::repeat(b' '),
        );
        assert_eq!(answer["code"], 6);
    }
}
