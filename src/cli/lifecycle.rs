//! `sampan start`, `stop`, `restart`, `kill`, `wait`: one question to the supervisor each.

use super::{Global, Outcome, output};
use crate::pod::control::Request;
use crate::pod::{adopt, plan};

/// Which services.
#[derive(Debug, clap::Args)]
pub struct Services {
    /// Services, or tasks of a framework; all when none is named
    services: Vec<String>,
}

/// Which services, and how patiently.
#[derive(Debug, clap::Args)]
pub struct Stop {
    /// Seconds until SIGKILL, instead of each service's `stop_grace_period`
    #[arg(short, long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Services, or tasks of a framework; all when none is named
    services: Vec<String>,
}

/// Which services, and which signal.
#[derive(Debug, clap::Args)]
pub struct Kill {
    /// Signal by name or number
    #[arg(short, long, default_value = "SIGKILL", value_name = "SIGNAL")]
    signal: String,
    /// Services, or tasks of a framework; all when none is named
    services: Vec<String>,
}

/// Which services to wait for.
#[derive(Debug, clap::Args)]
pub struct Wait {
    /// Services, or tasks of a framework; all when none is named
    services: Vec<String>,
}

pub(super) fn ask(
    global: &Global,
    words: Vec<String>,
    request: impl FnOnce(Vec<String>) -> Request,
) -> anyhow::Result<Vec<(String, Option<i32>)>> {
    let (dir, services) = global.target(words)?;
    Ok(adopt::ask(&dir, &request(services), &mut output::progress)?)
}

/// `start`.
pub fn start(global: &Global, args: Services) -> Outcome {
    let healthy = false;
    ask(global, args.services, |services| Request::Start {
        services,
        healthy,
    })
    .map(|_| 0)
}

/// `stop`.
pub fn stop(global: &Global, args: Stop) -> Outcome {
    let Stop { timeout, services } = args;
    ask(global, services, |services| Request::Stop {
        services,
        timeout,
    })
    .map(|_| 0)
}

/// `restart`.
pub fn restart(global: &Global, args: Stop) -> Outcome {
    let Stop { timeout, services } = args;
    ask(global, services, |services| Request::Restart {
        services,
        timeout,
    })
    .map(|_| 0)
}

/// `kill`.
pub fn kill(global: &Global, args: Kill) -> Outcome {
    let signal = plan::signal_number(&args.signal).map_err(anyhow::Error::msg)?;
    ask(global, args.services, |services| Request::Kill {
        services,
        signal,
    })
    .map(|_| 0)
}

/// `wait`: prints a line for each service, ends with the last one's exit code.
pub fn wait(global: &Global, args: Wait) -> Outcome {
    let codes = ask(global, args.services, |services| Request::Wait { services })?;
    let mut last = 0;
    for (service, code) in &codes {
        let text = code.map_or("unknown".to_string(), |code| code.to_string());
        output::print(&format!("{service} {text}\n"))?;
        last = code.and_then(|c| u8::try_from(c).ok()).unwrap_or(1);
    }
    Ok(last)
}
