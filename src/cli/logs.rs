//! `sampan logs`, and following a pod in the foreground.

use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::notify::{Manager, Message};
use super::remote::{self, Remote};
use super::terminal::plain;
use super::{Global, Outcome};
use crate::compose::project::Logging;
use crate::pod::control::Request;
use crate::pod::layout::PodDir;
use crate::pod::logs::{Line, Reader};
use crate::pod::record::{self, Goal, Health, Phase, Status};
use crate::pod::{adopt, record::Pod};

/// How often a follower looks for something new.
const POLL: Duration = Duration::from_millis(50);
/// As long as there is something new.
const POLL_BUSY: Duration = Duration::from_millis(2);

/// Options of `logs`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  sampan logs --tail 20 web\n  sampan logs -f --since 10m\n  sampan logs --since 2026-01-02T15:04:05Z -t"
)]
pub struct Args {
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines of each service: a number or `all`
    #[arg(short = 'n', long, default_value = "all", value_name = "LINES")]
    tail: String,
    /// Only what came since: a time (RFC 3339) or how long ago (`10m`, `1h30m`)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Show when each line came
    #[arg(short, long)]
    timestamps: bool,
    /// No service names before the lines
    #[arg(long)]
    no_log_prefix: bool,
    /// Services, or tasks of a framework; all when none is named
    services: Vec<String>,
}

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// `web | text`, all on standard output.
    Prefixed,
    /// With the time.
    Timed,
    /// As the container printed it, on the stream it used.
    Raw,
}

impl Args {
    /// The same, of an executor.
    fn ask(self, remote: &Remote) -> Outcome {
        let [target] = self.services.as_slice() else {
            bail!("of --remote the logs of one task are asked: `sampan --remote URL logs TASK`");
        };
        let mut options = vec![("tail", self.tail)];
        options.extend(self.since.map(|since| ("since", since)));
        for (name, set) in [
            ("follow", self.follow),
            ("timestamps", self.timestamps),
            ("no-log-prefix", self.no_log_prefix),
        ] {
            if set {
                options.push((name, "true".to_string()));
            }
        }
        remote::logs(remote, target, &options)
    }
}

/// Shows what is there, and what comes.
pub fn run(global: &Global, args: Args) -> Outcome {
    if global.remote.remote.is_some() {
        return args.ask(&global.remote);
    }
    let (dir, services) = global.target(args.services)?;
    let pod = adopt::load(&dir)?.context("pod is gone")?;
    let services = select(&pod, &services)?;
    let style = match (args.timestamps, args.no_log_prefix) {
        (true, _) => Style::Timed,
        (false, true) => Style::Raw,
        (false, false) => Style::Prefixed,
    };
    let tail = match args.tail.as_str() {
        "all" => None,
        count => Some(
            count
                .parse()
                .with_context(|| format!("--tail {count}: a number or `all`"))?,
        ),
    };
    let since = args
        .since
        .as_deref()
        .map(moment)
        .transpose()?
        .unwrap_or(i64::MIN);
    let services = kept(&pod, services);
    let mut reader = reader(&dir, &services, since);
    let printer = Printer::new(style, &services);
    reader.fix()?;
    if let Some(count) = tail {
        reader.pass_to(count, !args.follow)?;
    }
    printer.print_all(&mut reader, !args.follow)?;
    while args.follow && dir.dir.exists() {
        std::thread::sleep(POLL);
        reader.fix()?;
        printer.print_all(&mut reader, false)?;
    }
    Ok(0)
}

fn select(pod: &Pod, wanted: &[String]) -> anyhow::Result<Vec<String>> {
    if let Some(unknown) = wanted
        .iter()
        .find(|s| !pod.project.services.contains_key(*s))
    {
        bail!("pod {} has no service {unknown}", pod.project.name);
    }
    Ok(if wanted.is_empty() {
        pod.project.services.keys().cloned().collect()
    } else {
        wanted.to_vec()
    })
}

fn reader(dir: &PodDir, services: &[String], since: i64) -> Reader {
    let list: Vec<_> = services
        .iter()
        .map(|name| (name.clone(), dir.service(name)))
        .collect();
    Reader::new(&list, since)
}

/// Those of which something is kept; the others are told.
fn kept(pod: &Pod, mut services: Vec<String>) -> Vec<String> {
    services.retain(|name| {
        let service = pod.project.services.get(name);
        let none = service.is_some_and(|s| s.logging == Some(Logging::None));
        if none {
            super::output::warning(&format!(
                "service {name} keeps no logs: its file says logging: {{driver: none}}"
            ));
        }
        !none
    });
    services
}

/// Unix time in nanoseconds of a time or of how long ago.
fn moment(text: &str) -> anyhow::Result<i64> {
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(time.as_nanosecond() as i64);
    }
    let ago: jiff::SignedDuration = text.parse().with_context(|| {
        format!("--since {text}: a time such as 2026-01-02T15:04:05Z or how long ago such as 10m")
    })?;
    Ok((jiff::Timestamp::now().as_nanosecond() - ago.as_nanos()) as i64)
}

struct Printer {
    style: Style,
    width: usize,
    services: Vec<String>,
    on_terminal: bool,
    coloured: bool,
}

impl Printer {
    fn new(style: Style, services: &[String]) -> Printer {
        Printer {
            style,
            width: services.iter().map(String::len).max().unwrap_or(0),
            services: services.to_vec(),
            on_terminal: std::io::stdout().is_terminal(),
            coloured: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    /// What there is to read, and what there is not any more; whether there was anything.
    fn print_all(&self, reader: &mut Reader, last: bool) -> anyhow::Result<bool> {
        let mut any = false;
        while let Some(line) = reader.next(last)? {
            self.print(&line)?;
            any = true;
        }
        for lost in reader.lost() {
            super::output::error(&lost.to_string());
        }
        Ok(any)
    }

    fn print(&self, line: &Line) -> anyhow::Result<()> {
        if self.style == Style::Raw {
            if line.stream == "stderr" {
                let mut err = std::io::stderr().lock();
                err.write_all(&line.text)?;
                return Ok(err.flush()?);
            }
            let mut out = std::io::stdout().lock();
            out.write_all(&line.text)?;
            return Ok(out.flush()?);
        }
        let mut out = std::io::stdout().lock();
        let name = format!("{:width$} | ", line.service, width = self.width);
        if self.coloured {
            let colour = 31
                + self
                    .services
                    .iter()
                    .position(|s| *s == line.service)
                    .unwrap_or(0)
                    % 6;
            write!(out, "\x1b[{colour}m{name}\x1b[0m")?;
        } else {
            out.write_all(name.as_bytes())?;
        }
        if self.style == Style::Timed {
            let time = jiff::Timestamp::from_nanosecond(line.time.into())?;
            write!(out, "{time:.9} ")?;
        }
        let text = match self.on_terminal {
            true => plain(&line.text).into(),
            false => std::borrow::Cow::from(&line.text),
        };
        out.write_all(&text)?;
        if !text.ends_with(b"\n") {
            out.write_all(b"\n")?;
        }
        Ok(out.flush()?)
    }
}

/// Why following a pod is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Followed {
    /// All have ended: the exit code of the one that did so first.
    Ended(u8),
    /// The service manager wants the files to be read again.
    Reload,
}

/// Shows what services print until all have ended, which an interrupt asks them to, and tells the service manager of it.
pub struct Follower<'a> {
    dir: &'a PodDir,
    services: &'a [String],
    manager: &'a Manager,
    signals: SignalFd,
    reader: Reader,
    printer: Printer,
    told: String,
}

impl<'a> Follower<'a> {
    /// Begins with what was printed first. Signals are ours from now on.
    pub fn new(
        dir: &'a PodDir,
        services: &'a [String],
        style: Style,
        manager: &'a Manager,
    ) -> anyhow::Result<Self> {
        let mut interrupts = SigSet::empty();
        interrupts.add(Signal::SIGINT);
        interrupts.add(Signal::SIGTERM);
        if manager.listens() {
            interrupts.add(Signal::SIGHUP);
        }
        interrupts.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Follower {
            dir,
            services,
            manager,
            signals: SignalFd::with_flags(&interrupts, flags)?,
            reader: reader(dir, services, i64::MIN),
            printer: Printer::new(style, services),
            told: String::new(),
        })
    }

    /// Follows until there is a reason not to; may be called again. The service manager hears how the services are, then `ready`: whoever
    /// waits for that reads both.
    pub fn follow(&mut self, ready: &[Message<'_>]) -> anyhow::Result<Followed> {
        self.tell(&statuses(self.dir, self.services)?);
        self.manager.tell(ready);
        let mut interrupted = false;
        let mut pause = POLL_BUSY;
        loop {
            let statuses = statuses(self.dir, self.services)?;
            let ended = ended(&statuses, self.dir.dir.exists());
            self.tell(&statuses);
            self.reader.fix()?;
            pause = match self.printer.print_all(&mut self.reader, ended.is_some())? {
                true => POLL_BUSY,
                false => (pause * 2).min(POLL),
            };
            if let Some(code) = ended {
                return Ok(Followed::Ended(code));
            }
            match interrupt(&self.signals, pause)? {
                None => {}
                Some(libc::SIGHUP) => return Ok(Followed::Reload),
                // batch systems repeat SIGTERM; who types ^C once more has lost patience
                Some(libc::SIGTERM) if interrupted => {}
                Some(_) => {
                    self.manager.tell(&[Message::Stopping]);
                    // from another process, so that the output goes on meanwhile
                    ask_in_background(self.dir, &interruption(interrupted));
                    interrupted = true;
                }
            }
        }
    }

    /// One line, when it changed.
    fn tell(&mut self, statuses: &[(String, Option<Status>)]) {
        if !self.manager.listens() {
            return;
        }
        let text = summary(statuses);
        if text != self.told {
            self.manager.tell(&[Message::Status(&text)]);
            self.told = text;
        }
    }
}

/// The first is a request, the next one an order.
fn interruption(again: bool) -> Request {
    let services = Vec::new();
    if again {
        Request::Kill {
            services,
            signal: libc::SIGKILL,
        }
    } else {
        Request::Stop {
            services,
            timeout: None,
        }
    }
}

/// The signal that came within `pause`.
fn interrupt(signals: &SignalFd, pause: Duration) -> anyhow::Result<Option<i32>> {
    let pause = Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(pause.subsec_nanos()),
    };
    let descriptor = signals.as_fd();
    let mut fds = [PollFd::new(&descriptor, PollFlags::IN)];
    match rustix::event::poll(&mut fds, Some(&pause)) {
        Ok(0) | Err(rustix::io::Errno::INTR) => Ok(None),
        Ok(_) => Ok(signals.read_signal()?.map(|signal| signal.ssi_signo as i32)),
        Err(error) => Err(error.into()),
    }
}

fn ask_in_background(dir: &PodDir, request: &Request) {
    let (dir, request) = (dir.clone(), request.clone());
    std::thread::spawn(move || {
        if let Err(error) = adopt::ask(&dir, &request, &mut super::output::progress) {
            super::output::error(&error.to_string());
        }
    });
}

/// By service; `None` of one that has none yet, or not any more.
fn statuses(dir: &PodDir, services: &[String]) -> anyhow::Result<Vec<(String, Option<Status>)>> {
    let mut all = Vec::new();
    for name in services {
        all.push((name.clone(), record::read(&dir.service(name).status())?));
    }
    Ok(all)
}

/// Once none of the services runs or will: the exit code of the first to end. `exists`: the pod does.
fn ended(statuses: &[(String, Option<Status>)], exists: bool) -> Option<u8> {
    let mut codes = Vec::new();
    for (_, status) in statuses {
        let Some(status) = status else {
            if exists {
                return None;
            }
            continue;
        };
        let again =
            status.goal != Goal::Stop && matches!(status.phase, Phase::Waiting | Phase::Restarting);
        if status.phase.active() || again {
            return None;
        }
        let code = status.exit_code.map_or(1, |c| u8::try_from(c).unwrap_or(1));
        // one that never ran has no time, and one that could not be started is why the others were stopped
        let finished = match status.phase {
            Phase::Failed => jiff::Timestamp::MIN,
            _ => status.finished.parse().unwrap_or(jiff::Timestamp::MAX),
        };
        if status.phase != Phase::Waiting {
            codes.push((finished, code));
        }
    }
    Some(codes.into_iter().min().map_or(0, |(_, code)| code))
}

/// For people: what each service does.
fn summary(statuses: &[(String, Option<Status>)]) -> String {
    let words = |status: &Status| match (status.phase, status.health) {
        (Phase::Waiting, _) => "waiting".to_owned(),
        (Phase::Starting, _) => "starting".to_owned(),
        (Phase::Running, Health::None) => "running".to_owned(),
        (Phase::Running, Health::Starting) => "running, not healthy yet".to_owned(),
        (Phase::Running, Health::Healthy) => "healthy".to_owned(),
        (Phase::Running, Health::Unhealthy) => "unhealthy".to_owned(),
        (Phase::Stopping, _) => "stopping".to_owned(),
        (Phase::Restarting, _) => "restarting".to_owned(),
        (Phase::Exited, _) => match status.exit_code {
            Some(code) => format!("exited with {code}"),
            None => "exited".to_owned(),
        },
        (Phase::Failed, _) => "failed".to_owned(),
    };
    let all: Vec<String> = statuses
        .iter()
        .filter_map(|(name, status)| Some(format!("{name} {}", words(status.as_ref()?))))
        .collect();
    all.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries() {
        let status = |phase, health, exit_code| Status {
            phase,
            health,
            exit_code,
            ..Status::default()
        };
        let statuses = [
            ("data", Some(status(Phase::Exited, Health::None, Some(0)))),
            ("gone", None),
            ("web", Some(status(Phase::Running, Health::Healthy, None))),
        ]
        .map(|(name, status)| (name.to_owned(), status));
        assert_eq!(summary(&statuses), "data exited with 0; web healthy");
        assert_eq!(ended(&statuses, true), None);
        assert_eq!(ended(&statuses[..1], true), Some(0));
        assert_eq!(
            (ended(&statuses[..2], true), ended(&statuses[..2], false)),
            (None, Some(0))
        );
    }
}
