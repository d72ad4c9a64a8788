//! `hooks` → who runs which, and when (runtime.md "Lifecycle"). Pure.

use oci_spec::runtime::{Hook as SpecHook, Spec};
use serde::{Deserialize, Serialize};

use crate::container::CreateRequest;
use crate::init::hooks::{Hook, Hooks, OciState, Point};

/// The hooks of a container.
#[derive(Debug, Clone, Default)]
pub struct All {
    /// Of the parent, once all is mounted.
    pub parent: Vec<Hooks>,
    /// Of the child, then.
    pub create: Option<Hooks>,
    /// Of the child, before it becomes the program.
    pub start: Option<Hooks>,
    /// After that.
    pub later: LaterHooks,
}

impl All {
    /// Whether any run while the container is made.
    pub fn before_start(&self) -> bool {
        !self.parent.is_empty() || self.create.is_some()
    }
}

/// Hooks of a container's later life, which its record holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaterHooks {
    /// After the program was executed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub poststart: Vec<Hook>,
    /// When the container is gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub poststop: Vec<Hook>,
}

/// All hooks, checked.
pub fn hooks(spec: &Spec, request: &CreateRequest) -> Result<All, String> {
    let Some(wanted) = spec.hooks() else {
        return Ok(All::default());
    };
    let read = |point: Point, list: &Option<Vec<SpecHook>>| {
        let list = list.iter().flatten().enumerate();
        list.map(|(number, hook)| {
            read(hook).map_err(|why| format!("hooks.{}[{number}].{why}", point.key()))
        })
        .collect::<Result<Vec<Hook>, String>>()
    };
    let process = spec.process().as_ref();
    let at = |point: Point, list: Vec<Hook>| {
        if list.is_empty() {
            return None;
        }
        let cwd = match point {
            // in the process's working directory by then
            Point::StartContainer => None,
            Point::CreateContainer => spec
                .root()
                .as_ref()
                .map(|root| request.bundle.join(root.path())),
            _ => Some(request.bundle.clone()),
        };
        let env = match point {
            // the specification is silent; runtimes have always given the process's environment here
            Point::StartContainer => process.and_then(|process| process.env().clone()),
            _ => None,
        };
        let status = match point {
            Point::StartContainer => "created",
            _ => "creating",
        };
        Some(Hooks {
            point,
            list,
            env: env.unwrap_or_default(),
            cwd,
            state: state(spec, request, status),
        })
    };
    #[allow(deprecated)]
    let prestart = at(Point::Prestart, read(Point::Prestart, wanted.prestart())?);
    let runtime = read(Point::CreateRuntime, wanted.create_runtime())?;
    let create = read(Point::CreateContainer, wanted.create_container())?;
    let start = read(Point::StartContainer, wanted.start_container())?;
    Ok(All {
        parent: prestart
            .into_iter()
            .chain(at(Point::CreateRuntime, runtime))
            .collect(),
        create: at(Point::CreateContainer, create),
        start: at(Point::StartContainer, start),
        later: LaterHooks {
            poststart: read(Point::Poststart, wanted.poststart())?,
            poststop: read(Point::Poststop, wanted.poststop())?,
        },
    })
}

/// Those that follow the end of a container in the making, once something of it was there (runtime.md "Lifecycle", 14).
pub fn poststop(spec: &Spec, request: &CreateRequest, later: LaterHooks) -> Hooks {
    Hooks {
        point: Point::Poststop,
        list: later.poststop,
        env: Vec::new(),
        cwd: Some(request.bundle.clone()),
        state: state(spec, request, "stopped"),
    }
}

/// The state of a container in the making.
pub fn state(spec: &Spec, request: &CreateRequest, status: &str) -> OciState {
    OciState {
        oci_version: spec.version().clone(),
        id: request.id.clone(),
        status: status.to_owned(),
        pid: None,
        bundle: request.bundle.clone(),
        annotations: spec
            .annotations()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect(),
    }
}

fn read(hook: &SpecHook) -> Result<Hook, String> {
    let path = hook.path();
    if !path.is_absolute() {
        return Err(format!("path: {} is not absolute", path.display()));
    }
    let texts = |key: &str, list: &Option<Vec<String>>| {
        let list = list.clone().unwrap_or_default();
        match list.iter().find(|text| text.contains('\0')) {
            Some(text) => Err(format!("{key}: {text:?} holds a zero byte")),
            None => Ok(list),
        }
    };
    let env = texts("env", hook.env())?;
    if let Some(entry) = env
        .iter()
        .find(|entry| entry.split_once('=').is_none_or(|(key, _)| key.is_empty()))
    {
        return Err(format!("env: {entry:?} is not of the form KEY=value"));
    }
    let timeout = match hook.timeout() {
        None => None,
        Some(seconds) => match u64::try_from(seconds) {
            Ok(seconds @ 1..) => Some(seconds),
            _ => return Err(format!("timeout: {seconds} is not above zero")),
        },
    };
    Ok(Hook {
        path: path.clone(),
        args: texts("args", hook.args())?,
        env,
        timeout,
    })
}
