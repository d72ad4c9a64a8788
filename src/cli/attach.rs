//! `sampan attach`: our terminal or standard streams on a service that runs already.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::console::Signals;
use super::terminal::{Keys, Raw, Shown, size};
use super::{Global, Outcome, exec, output, remote};
use crate::pod::control::Request;
use crate::pod::follow::{self, Follower, From, Source};
use crate::pod::input::Input;
use crate::pod::layout::PodDir;
use crate::pod::{Error, adopt};

/// Pause between two looks for the record of an end.
const END_PAUSE: Duration = Duration::from_millis(5);

/// Options of `attach`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  sampan attach shell\n  sampan attach --no-stdin web\n\nctrl-p ctrl-q leaves a service with a terminal alone again. The exit code is the program's."
)]
pub struct Args {
    /// Only look: anybody may, one at a time writes
    #[arg(long)]
    no_stdin: bool,
    /// Service, or a task of a framework as `TASK` or `TASK/SERVICE`
    service: String,
}

/// Shows what comes until the program ends or is left alone.
pub fn run(global: &Global, args: Args) -> Outcome {
    if global.remote.remote.is_some() {
        return remote::attach(&global.remote, &args.service, args.no_stdin);
    }
    let (dir, service) = global.target_service(args.service)?;
    let stdin = match args.no_stdin {
        true => Stdin::No,
        false => Stdin::Read,
    };
    attach(&dir, &service, From::Now, stdin)
}

/// What our standard input is to the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdin {
    /// Nothing.
    No,
    /// Its terminal has the size of ours.
    Size,
    /// Its own, where it has one.
    Read,
}

/// Follows the run of a service to its end.
pub fn attach(dir: &PodDir, service: &str, from: From, stdin: Stdin) -> Outcome {
    let pod = adopt::load(dir)?.with_context(|| format!("no pod {} here", dir.name))?;
    let Some(facts) = pod.project.services.get(service) else {
        anyhow::bail!("pod {} has no service {service}", dir.name);
    };
    let follower = Follower::new(&dir.service(service), from)?;
    let Some(run) = follow::run(dir, service)? else {
        if from == From::Now {
            return Err(exec::not_running(dir, service, false)?);
        }
        // it was too quick for us
        let mut session = Session::new(dir, service, follower, None);
        session.show()?;
        return session.code();
    };
    let input = match stdin != Stdin::No && (facts.tty || facts.stdin_open) {
        true => match Input::open(dir, service) {
            Ok(input) => Some(input),
            // it ended in this instant
            Err(_) if !run.process.alive() => None,
            Err(error) => return Err(error.into()),
        },
        false => None,
    };
    let signals = Signals::take()?;
    let keys = input.as_ref().is_some_and(Input::is_terminal) && stdin == Stdin::Read;
    let (raw, shown) = match (facts.tty, keys) {
        (true, true) => (Raw::enter()?, None),
        (true, false) => (None, Shown::enter()?),
        (false, _) => (None, None),
    };
    let mut session = Session::new(dir, service, follower, input);
    session.keys = raw.is_some().then(Keys::default);
    (session.at_end, session.told) = (stdin == Stdin::Size, stdin == Stdin::Size);
    session.redraw();
    let code = session.follow(&run, &signals);
    drop((raw, shown));
    if session.left {
        let name = &dir.name;
        output::progress(
            "",
            &format!(
                "\nleft service {service}, which runs on; `sampan -p {name} attach {service}` comes back"
            ),
        );
    }
    code
}

struct Session<'a> {
    dir: &'a PodDir,
    service: &'a str,
    follower: Follower,
    input: Option<Input>,
    /// Typed and not written yet.
    pending: Vec<u8>,
    /// Our standard input has ended.
    at_end: bool,
    /// The service's was told so.
    told: bool,
    keys: Option<Keys>,
    /// By the keys.
    left: bool,
}

impl<'a> Session<'a> {
    fn new(
        dir: &'a PodDir,
        service: &'a str,
        follower: Follower,
        input: Option<Input>,
    ) -> Session<'a> {
        Session {
            dir,
            service,
            follower,
            input,
            pending: Vec::new(),
            at_end: false,
            told: false,
            keys: None,
            left: false,
        }
    }

    /// A size that changes makes a program draw its screen again, also where it is the size it had.
    fn redraw(&self) {
        if let (Some(input), Some((rows, columns))) = (&self.input, size()) {
            input.resize(0, 0);
            input.resize(rows, columns);
        }
    }

    fn follow(&mut self, run: &follow::Run, signals: &Signals) -> Outcome {
        loop {
            let ready = self.poll(run, signals)?;
            if ready.signal
                && let Some(code) = self.signals(signals)?
            {
                return Ok(code);
            }
            if ready.input {
                self.read()?;
                if self.left {
                    return Ok(0);
                }
            }
            self.write()?;
            self.show()?;
            if ready.ended {
                break;
            }
        }
        // whose death would keep the end from being written down
        adopt::ensure(self.dir)?;
        loop {
            let end = follow::end(self.dir, self.service, run.process)?;
            self.show()?;
            if let Some(end) = end {
                return Ok(code_of(end.code));
            }
            std::thread::sleep(END_PAUSE);
        }
    }

    fn poll(&self, run: &follow::Run, signals: &Signals) -> anyhow::Result<Ready> {
        let stdin = std::io::stdin();
        let none = Timespec {
            tv_sec: 3600,
            tv_nsec: 0,
        };
        let mut fds = vec![
            PollFd::new(&run.pidfd, PollFlags::IN),
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.follower.as_fd(), PollFlags::IN),
        ];
        let mut reads = false;
        match &self.input {
            Some(input) if !self.pending.is_empty() => {
                fds.push(PollFd::from_borrowed_fd(input.as_fd(), PollFlags::OUT));
            }
            Some(_) if !self.at_end => {
                fds.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN));
                reads = true;
            }
            _ => {}
        }
        match rustix::event::poll(&mut fds, Some(&none)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let at = |i: usize| fds.get(i).is_some_and(|fd| !fd.revents().is_empty());
        Ok(Ready {
            ended: at(0),
            signal: at(1),
            input: reads && at(3),
        })
    }

    /// An exit code when a signal is for us and not for the program.
    fn signals(&mut self, signals: &Signals) -> anyhow::Result<Option<u8>> {
        while let Some((signal, _)) = signals.next()? {
            match (signal, &self.input) {
                (libc::SIGCHLD, _) => {}
                (libc::SIGWINCH, Some(input)) => {
                    if let Some((rows, columns)) = size() {
                        input.resize(rows, columns);
                    }
                }
                (libc::SIGWINCH, None) => {}
                // our terminal is gone
                (libc::SIGHUP, _) | (_, None) => {
                    return Ok(Some(u8::try_from(128 + signal).unwrap_or(255)));
                }
                (signal, Some(_)) => self.pass(signal),
            }
        }
        Ok(None)
    }

    /// From another thread, so that the output goes on meanwhile.
    fn pass(&self, signal: i32) {
        let services = vec![self.service.to_string()];
        let (dir, request) = (self.dir.clone(), Request::Kill { services, signal });
        std::thread::spawn(move || {
            if let Err(error) = adopt::ask(&dir, &request, &mut output::progress) {
                output::error(&error.to_string());
            }
        });
    }

    fn read(&mut self) -> anyhow::Result<()> {
        let mut buffer = [0; 16 << 10];
        let keys = match std::io::stdin().lock().read(&mut buffer) {
            Ok(0) => {
                self.at_end = true;
                return Ok(());
            }
            Ok(count) => buffer.get(..count).unwrap_or_default(),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return Ok(());
            }
            // a terminal that hung up
            Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                self.at_end = true;
                return Ok(());
            }
            Err(error) => return Err(error).context("read standard input"),
        };
        match &mut self.keys {
            Some(scanner) => {
                let (passed, left) = scanner.pass(keys);
                self.pending.extend(passed);
                self.left = left;
            }
            None => self.pending.extend_from_slice(keys),
        }
        Ok(())
    }

    fn write(&mut self) -> anyhow::Result<()> {
        let Some(input) = &self.input else {
            return Ok(());
        };
        while !self.pending.is_empty() {
            match input.write(&self.pending) {
                Ok(count) => {
                    self.pending.drain(..count);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // nobody reads it any more
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                    self.pending.clear();
                    self.input = None;
                    return Ok(());
                }
                Err(error) => return Err(error).context("write to the service's input"),
            }
        }
        if self.at_end && !self.told {
            self.told = true;
            let ended = input.end();
            // of a terminal the size is still ours
            self.input = self.input.take().filter(Input::is_terminal);
            match ended {
                // the pod is going, which is seen elsewhere
                Ok(()) | Err(Error::Start { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn show(&mut self) -> anyhow::Result<()> {
        let mut buffer = [0; 16 << 10];
        while let Some((source, count)) = self.follower.read(&mut buffer)? {
            let bytes = buffer.get(..count).unwrap_or_default();
            match source {
                Source::Stdout => {
                    let mut out = std::io::stdout().lock();
                    out.write_all(bytes)?;
                    out.flush()?;
                }
                Source::Stderr => std::io::stderr().lock().write_all(bytes)?,
            }
        }
        Ok(())
    }

    /// Of a run that had ended before we came.
    fn code(&self) -> Outcome {
        let status = crate::pod::record::read::<crate::pod::record::Status>(
            &self.dir.service(self.service).status(),
        )?;
        Ok(code_of(status.and_then(|status| status.exit_code)))
    }
}

struct Ready {
    ended: bool,
    signal: bool,
    input: bool,
}

/// As a shell shows it; 255 when nobody saw it.
fn code_of(code: Option<i32>) -> u8 {
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255)
}
