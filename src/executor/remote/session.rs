//! Sessions: a short process of our own each, whose streams become records. It is the command a person would type: `exec`, `logs`.
//!
//! *Invariants:* this program moves bytes and clones nothing; a session whose reader goes away is ended, with the program that it runs.
//! How it ended is known for [`KEPT`] afterwards.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{ExitStatus, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Winsize};
use tokio::io::AsyncWriteExt;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;

use super::stream::{Gone, PIECE, Writer};
use crate::executor::mesos::proto::operator::{ProcessIo, process_io};
use crate::sys::pidfd;
use crate::sys::watch::watch as watch_descriptor;

/// How long the end of a session is known.
pub const KEPT: Duration = Duration::from_secs(60);
/// What variables of a program are called on their way to `exec`: none of them means anything to that itself.
pub const SESSION_ENV: &str = "session.";
/// Signal to `exec` when nobody wants its program any more: that is killed. Anything else of ours ends by it, as by its parent's death.
pub const GONE: i32 = libc::SIGPWR;
/// Signal to `exec` whose value is a signal for its program, so that each can be sent: some stop or kill whoever gets them, some mean something
/// to `exec` itself. A real-time signal (SIGRTMAX), of which none is lost while another one waits.
pub const RELAY: i32 = 64;
/// Pause while there is no room for input.
const PAUSE: Duration = Duration::from_millis(5);
/// End of the input as a terminal takes it (termios(3), VEOF).
const EOT: &[u8] = &[4];

/// A process, and who may have its input.
pub struct Session {
    /// Who began it.
    pub caller: String,
    /// When.
    pub began: Instant,
    pidfd: OwnedFd,
    input: RefCell<Option<Rc<SessionInput>>>,
    busy: Cell<bool>,
    ended: watch::Receiver<Option<ExitStatus>>,
}

/// Where its input is written.
enum SessionInput {
    Terminal(Rc<AsyncFd<OwnedFd>>),
    Pipe(tokio::sync::Mutex<ChildStdin>),
}

/// What is still to do for a session: [`Running::run`].
pub struct Running {
    child: Child,
    master: Option<Rc<AsyncFd<OwnedFd>>>,
    end: watch::Sender<Option<ExitStatus>>,
}

/// Starts a command, with a terminal of this size if one is given.
pub fn start(
    mut command: Command,
    terminal: Option<(u16, u16)>,
    caller: &str,
) -> io::Result<(Session, Running)> {
    let (mut child, master) = match terminal {
        Some(size) => {
            let (master, slave) = pseudo_terminal(size)?;
            let stdio = || slave.try_clone().map(Stdio::from);
            command.stdin(stdio()?).stdout(stdio()?).stderr(stdio()?);
            let child = command.spawn()?;
            (child, Some(Rc::new(watch_descriptor(master)?)))
        }
        None => {
            command.stdin(Stdio::piped());
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            (command.spawn()?, None)
        }
    };
    // the command holds the terminal's other side
    drop(command);
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let pidfd = pidfd::open(pid.unwrap_or_default())?;
    let input = match &master {
        Some(master) => Some(SessionInput::Terminal(master.clone())),
        None => child
            .stdin
            .take()
            .map(|stdin| SessionInput::Pipe(tokio::sync::Mutex::new(stdin))),
    };
    let (end, ended) = watch::channel(None);
    let session = Session {
        caller: caller.to_string(),
        began: Instant::now(),
        pidfd,
        input: RefCell::new(input.map(Rc::new)),
        busy: Cell::new(false),
        ended,
    };
    Ok((session, Running { child, master, end }))
}

/// A terminal that interprets nothing: the program's own, further in, does.
fn pseudo_terminal(size: (u16, u16)) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let name = rustix::pty::ptsname(&master, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = rustix::fs::open(name, flags, Mode::empty())?;
    let mut modes = rustix::termios::tcgetattr(&slave)?;
    modes.make_raw();
    rustix::termios::tcsetattr(&slave, OptionalActions::Now, &modes)?;
    set_size(&master, size)?;
    let flags = rustix::fs::fcntl_getfl(&master)?;
    rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK)?;
    Ok((master, slave))
}

fn set_size(terminal: &impl AsFd, (rows, columns): (u16, u16)) -> io::Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// The right to write to a session, until it is dropped.
pub struct Claim(Rc<Session>);

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.busy.set(false);
    }
}

impl Session {
    /// `None`: somebody writes already.
    pub fn claim(self: &Rc<Session>) -> Option<Claim> {
        (!self.busy.replace(true)).then(|| Claim(self.clone()))
    }

    /// Sends a signal to the program; one that has ended needs none.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        match pidfd::queue_signal(&self.pidfd, RELAY, signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }

    /// Ends it, with its program; does not wait for that.
    fn give_up(&self) {
        // ESRCH: it has ended. What somebody has stopped goes on first
        let _ = pidfd::send_signal(&self.pidfd, GONE);
        let _ = pidfd::send_signal(&self.pidfd, libc::SIGCONT);
    }

    /// It has ended.
    pub fn is_over(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Waits for its end.
    pub async fn ended(&self) -> Option<ExitStatus> {
        let mut ended = self.ended.clone();
        let status = ended.wait_for(Option::is_some).await;
        status.ok().and_then(|status| *status)
    }
}

impl Claim {
    /// Writes all of it; nobody reading it any more is no error.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let Some(input) = self.0.input.borrow().clone() else {
            return Ok(());
        };
        let written = match &*input {
            SessionInput::Terminal(master) => write_all(master, bytes).await,
            SessionInput::Pipe(stdin) => stdin.lock().await.write_all(bytes).await,
        };
        match written {
            Err(error) if is_gone(&error) => Ok(()),
            other => other,
        }
    }

    /// Ends the input.
    pub async fn end(&self) -> io::Result<()> {
        let terminal = matches!(
            self.0.input.borrow().as_deref(),
            Some(SessionInput::Terminal(_))
        );
        match terminal {
            true => self.write(EOT).await,
            false => {
                self.0.input.borrow_mut().take();
                Ok(())
            }
        }
    }

    /// Sets the size of its terminal, if it has one.
    pub fn resize(&self, size: (u16, u16)) -> io::Result<()> {
        if let Some(SessionInput::Terminal(master)) = self.0.input.borrow().as_deref() {
            set_size(master.get_ref(), size)?;
            // nobody's controlling terminal, so the kernel tells nobody; ESRCH: it has ended
            let _ = pidfd::send_signal(&self.0.pidfd, libc::SIGWINCH);
        }
        Ok(())
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe || error.raw_os_error() == Some(libc::EIO)
}

/// Writes all bytes to a descriptor that does not block.
pub async fn write_all(fd: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = fd.writable().await?;
        let written = ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?));
        match written {
            Ok(count) => bytes = bytes.get(count?..).unwrap_or_default(),
            // a terminal that hung up stays ready for ever, also when it has no room
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
    Ok(())
}

impl Running {
    /// Moves its output until it ends, and sends its exit code; ends it when the reader goes away. What it left running in the background
    /// keeps nobody waiting.
    pub async fn run(mut self, session: Rc<Session>, writer: Writer) {
        use process_io::data::Type;
        let (out, err) = match &self.master {
            Some(master) => (Some(master.clone()), None),
            None => (
                self.child
                    .stdout
                    .take()
                    .and_then(|it| pipe(it.into_owned_fd())),
                self.child
                    .stderr
                    .take()
                    .and_then(|it| pipe(it.into_owned_fd())),
            ),
        };
        let gone = {
            let output = async {
                let (out, err) = tokio::join!(
                    copy(out, Type::Stdout, &session, &writer),
                    copy(err, Type::Stderr, &session, &writer),
                );
                out.and(err)
            };
            let end = async {
                let status = self.child.wait().await;
                // of a child of ours it is always known; without it nobody who waits is told
                self.end.send_replace(status.ok());
            };
            tokio::select! {
                (copied, ()) = async { tokio::join!(output, end) } => copied,
                gone = writer.idle() => Err(gone),
            }
        };
        if gone == Err(Gone) {
            session.give_up();
            // what still writes to it or reads from it is not held up
            session.input.borrow_mut().take();
            self.master = None;
        }
        let status = self.child.wait().await;
        session.input.borrow_mut().take();
        if let Ok(status) = status {
            self.end.send_replace(Some(status));
            writer.end(code(status)).await;
        }
    }
}

/// As a shell shows it.
pub fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

fn pipe(end: io::Result<OwnedFd>) -> Option<Rc<AsyncFd<OwnedFd>>> {
    let watched = end.and_then(|fd| {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        watch_descriptor(fd)
    });
    watched.ok().map(Rc::new)
}

/// Until nobody has the other side, or the program has ended and all that was there by then has been read: others may go on writing.
async fn copy(
    fd: Option<Rc<AsyncFd<OwnedFd>>>,
    kind: process_io::data::Type,
    session: &Session,
    writer: &Writer,
) -> Result<(), Gone> {
    let Some(fd) = fd else { return Ok(()) };
    let mut buffer = vec![0; PIECE];
    // once it has ended
    let mut left = None;
    loop {
        let read = match left {
            Some(left) => {
                let size = PIECE.min(usize::try_from(left).unwrap_or(PIECE));
                let buffer = buffer.get_mut(..size).unwrap_or_default();
                rustix::io::read(fd.get_ref(), buffer).map_err(io::Error::from)
            }
            // a piece that was read is never let go of: only the wait for one is cut short
            None => tokio::select! {
                ready = fd.readable() => {
                    let Ok(mut ready) = ready else { return Ok(()) };
                    let read = ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *buffer)?));
                    let Ok(read) = read else { continue };
                    read
                }
                _ = session.ended() => {
                    left = Some(rest(fd.get_ref()));
                    continue;
                }
            },
        };
        match read {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // EIO: a terminal whose other side is closed
            Ok(0) | Err(_) => return Ok(()),
            Ok(count) => {
                left = left.map(|left| left.saturating_sub(count as u64));
                let bytes = buffer.get(..count).unwrap_or_default();
                writer.send(&ProcessIo::data(kind, bytes)).await?;
            }
        }
    }
}

/// So many bytes are there. A terminal's are not all counted; nobody but the command itself has written to it, so they end.
fn rest(fd: &OwnedFd) -> u64 {
    match rustix::termios::isatty(fd) {
        true => u64::MAX,
        false => rustix::io::ioctl_fionread(fd).unwrap_or(0),
    }
}

/// Our own program, for a command a person would type.
pub fn own(folders: &crate::pod::layout::Folders) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("--root")
        .arg(&folders.root)
        .arg("--state")
        .arg(&folders.state)
        .env_clear()
        .env("NO_COLOR", "1")
        .env("TERM", "xterm")
        .kill_on_drop(true);
    command
}

/// A file that is always empty.
pub fn nothing() -> io::Result<Stdio> {
    File::open("/dev/null").map(Stdio::from)
}
