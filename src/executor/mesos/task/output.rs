//! What tasks print → files of their sandbox, where the cluster's users look for it.
//!
//! Those are the ones that the agent's own executors write: `stdout` and `stderr` of the executor's sandbox for a task that was launched alone,
//! of `tasks/ID` for one of a group. The programs may write there too, so nothing below the executor's sandbox is trusted.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Draft, Surroundings};
use crate::compose::Project;
use crate::compose::project::{LogFile, LogFormat, LogSink, Origin};

/// How much of a task's output the sandbox holds, for each of the two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Bytes of one file.
    pub max_size: u64,
    /// Files, the one that is written included.
    pub max_file: u32,
}

impl Default for Bound {
    /// As the module LogrotateContainerLogger has it (`max_stdout_size`), with `rotate 9`.
    fn default() -> Bound {
        Bound {
            max_size: 10 << 20,
            max_file: 10,
        }
    }
}

/// Least size of a file: that of the longest line which is not cut.
pub const LEAST: u64 = 1 << 16;

/// Has the output of a task's services written to its sandbox.
pub(super) fn place(
    draft: &Draft<'_>,
    project: &mut Project,
    names: &[String],
    around: &Surroundings,
) {
    let below = draft.sandbox.host.strip_prefix(&around.sandbox);
    let below = below.unwrap_or(Path::new(""));
    let file = |stream: &str| LogFile {
        folder: around.sandbox.clone(),
        name: below.join(stream),
    };
    let sink = LogSink {
        origin: Origin::default(),
        stdout: Some(file("stdout")),
        stderr: Some(file("stderr")),
        format: match names {
            [_] => LogFormat::Raw,
            _ => LogFormat::Text,
        },
        labels: Vec::new(),
        max_size: Some(draft.options.log_size.unwrap_or(around.output.max_size)),
        max_file: draft.options.log_files.unwrap_or(around.output.max_file),
    };
    match (draft.sandbox.parent.is_some(), names) {
        (true, [only]) => {
            if let Some(service) = project.services.get_mut(only) {
                service.logs.push(sink);
            }
        }
        _ => project.pod.logs.push(sink),
    }
}
