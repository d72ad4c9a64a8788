//! Who asks and who waits: the server side of the control socket.
//!
//! *Invariants:* what is kept for a client that does not read is bounded; nothing is kept for one that hung up.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::super::control::{Answer, LINE_LIMIT};
use super::super::record::{Cause, Failure, Goal, Health, Phase, Status, Verdict};
use super::super::{Error, Result};
use super::Event;
use super::machine::Machine;
use crate::compose::project::CheckKind;
use crate::sys::socket;

/// A client that reads this slowly is let go.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes that wait for a client to read them.
const BACKLOG: usize = 1 << 18;
/// See [`Client`].
const CUT: usize = usize::MAX;
/// How long the last lines to those who watch may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// What is written to a client, and what goes along.
struct Line {
    text: Rc<[u8]>,
    fd: Option<OwnedFd>,
}

/// A connection that a request came from.
pub struct Client {
    lines: mpsc::UnboundedSender<Line>,
    /// Bytes in `lines`; [`CUT`]: they were more than [`BACKLOG`], and it is cut off.
    waiting: Rc<Cell<usize>>,
    writer: JoinHandle<()>,
}

impl Client {
    /// Sends a line; a client that went away is no error.
    pub fn send(&self, answer: &Answer) {
        if let Some(line) = line(answer) {
            self.send_line(&line, None);
        }
    }

    /// Sends a line and a descriptor.
    pub fn send_with(&self, answer: &Answer, fd: OwnedFd) {
        if let Some(line) = line(answer) {
            self.send_line(&line, Some(fd));
        }
    }

    fn send_line(&self, line: &Rc<[u8]>, fd: Option<OwnedFd>) {
        let waiting = self.waiting.get();
        if waiting == CUT {
            return;
        }
        let more = waiting + line.len();
        self.waiting.set(if more > BACKLOG { CUT } else { more });
        let text = line.clone();
        let _ = self.lines.send(Line { text, fd });
    }

    /// Waits until everything was sent.
    pub async fn finish(self) {
        drop(self.lines);
        let _ = self.writer.await;
    }

    fn gone(&self) -> bool {
        self.writer.is_finished()
    }
}

fn line(answer: &Answer) -> Option<Rc<[u8]>> {
    let mut text = serde_json::to_vec(answer).ok()?;
    text.push(b'\n');
    Some(text.into())
}

/// Writes what comes, until there is no more, the client is gone, or too slow.
async fn write(
    mut writer: OwnedWriteHalf,
    mut lines: mpsc::UnboundedReceiver<Line>,
    waiting: Rc<Cell<usize>>,
) {
    while let Some(Line { text, fd }) = lines.recv().await {
        let cut = waiting.get() == CUT;
        let line = match cut {
            true => self::line(&Answer::failed(format!(
                "cut off: more than {BACKLOG} bytes were waiting to be read; ask again"
            ))),
            false => Some(text),
        };
        let Some(line) = line else { return };
        let sent = tokio::time::timeout(WRITE_TIMEOUT, async {
            match &fd {
                Some(fd) => write_with(&writer, &line, fd).await,
                None => writer.write_all(&line).await,
            }
        })
        .await;
        if cut || !matches!(sent, Ok(Ok(()))) {
            return;
        }
        if waiting.get() != CUT {
            waiting.set(waiting.get().saturating_sub(line.len()));
        }
    }
}

/// A line that is shorter than any socket's buffer, with a descriptor.
async fn write_with(writer: &OwnedWriteHalf, line: &[u8], fd: &OwnedFd) -> io::Result<()> {
    loop {
        writer.writable().await?;
        let stream: &UnixStream = writer.as_ref();
        match stream.try_io(Interest::WRITABLE, || socket::send(stream, line, Some(fd))) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

/// Accepts connections for ever; each carries one request.
pub fn listen(path: &Path, events: mpsc::UnboundedSender<Event>) -> Result<()> {
    super::remove_stale(path)?;
    let listener = UnixListener::bind(path).map_err(Error::io("listen on", path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(Error::io("protect", path))?;
    tokio::task::spawn_local(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::task::spawn_local(serve(stream, events.clone()));
                }
                // out of descriptors, say: there may be some again later
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    });
    Ok(())
}

/// Returns when a client hung up. One that only will not ask more (shutdown(2)) may go on reading; that it hung up is then known when it is
/// written to.
async fn hung_up(mut reader: OwnedReadHalf) {
    let mut ignored = [0; 1024];
    while !matches!(reader.read(&mut ignored).await, Ok(0) | Err(_)) {}
    if !socket::is_closed(&reader.as_ref().as_fd()).unwrap_or(true) {
        std::future::pending::<()>().await;
    }
}

async fn serve(stream: UnixStream, events: mpsc::UnboundedSender<Event>) {
    let (reader, writer) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(reader.take(LINE_LIMIT));
    if !matches!(reader.read_line(&mut line).await, Ok(count) if count > 0) {
        return;
    }
    let (lines, answers) = mpsc::unbounded_channel();
    let waiting = Rc::new(Cell::new(0));
    let (reader, backlog) = (reader.into_inner().into_inner(), waiting.clone());
    let writer = tokio::task::spawn_local(async move {
        tokio::select! {
            () = write(writer, answers, backlog) => {}
            () = hung_up(reader) => {}
        }
    });
    let client = Client {
        lines,
        writer,
        waiting,
    };
    match serde_json::from_str(&line) {
        Ok(request) => {
            let _ = events.send(Event::Client(request, client));
        }
        Err(error) => client.send(&Answer::failed(format!("request not understood: {error}"))),
    }
}

enum Until {
    Up {
        healthy: bool,
    },
    Stopped(Vec<String>),
    Idle(Vec<String>),
    /// The pod is removed.
    Gone,
}

/// Clients whose answer is still to come.
#[derive(Default)]
pub struct Clients(Vec<(Client, Until)>);

impl Clients {
    /// Answers when the pod is up, or cannot be.
    pub fn until_up(&mut self, client: Client, healthy: bool) {
        self.0.push((client, Until::Up { healthy }));
    }

    /// The pod will not come up: for everybody who waits for that.
    pub fn refuse_up(&mut self, why: &str) {
        self.0.retain(|(client, until)| {
            let waits = matches!(until, Until::Up { .. });
            if waits {
                client.send(&Answer::failed(why));
            }
            !waits
        });
    }

    /// Answers when none of the services runs.
    pub fn until_stopped(&mut self, client: Client, services: Vec<String>) {
        self.0.push((client, Until::Stopped(services)));
    }

    /// Answers with exit codes when the services have ended for good.
    pub fn until_idle(&mut self, client: Client, services: Vec<String>) {
        self.0.push((client, Until::Idle(services)));
    }

    /// Tells what there is, and from now on everything that changes.
    pub fn watch(
        &mut self,
        client: Client,
        statuses: &BTreeMap<String, Status>,
        verdict: Option<&Verdict>,
    ) {
        for (service, status) in statuses {
            client.send(&changed(service, status));
        }
        if let Some(verdict) = verdict.cloned() {
            client.send(&Answer::Verdict { verdict });
        }
        self.0.push((client, Until::Gone));
    }

    /// Tells everybody who waits for an answer; those who watch are told what becomes of it.
    pub fn progress(&self, service: &str, text: &str) {
        let answer = Answer::Progress {
            service: service.to_string(),
            text: text.to_string(),
        };
        self.tell(false, &answer);
    }

    /// Tells those who watch.
    pub fn status(&self, service: &str, status: &Status) {
        self.tell(true, &changed(service, status));
    }

    /// Tells those who watch.
    pub fn verdict(&self, verdict: &Verdict) {
        let verdict = verdict.clone();
        self.tell(true, &Answer::Verdict { verdict });
    }

    fn tell(&self, watching: bool, answer: &Answer) {
        let meant = |until: &Until| matches!(until, Until::Gone) == watching;
        let mut clients = self.0.iter().filter(|(_, u)| meant(u)).peekable();
        if clients.peek().is_none() {
            return;
        }
        if let Some(line) = line(answer) {
            clients.for_each(|(client, _)| client.send_line(&line, None));
        }
    }

    /// Tells those who watch that the pod is going to be gone, and waits until they have read it.
    pub async fn farewell(&mut self) {
        let done = Answer::Done {
            exit_codes: Vec::new(),
        };
        self.tell(true, &done);
        let watching = self.0.extract_if(.., |(_, u)| matches!(u, Until::Gone));
        let clients: Vec<Client> = watching.map(|(client, _)| client).collect();
        let all = async {
            for client in clients {
                client.finish().await;
            }
        };
        let _ = tokio::time::timeout(FAREWELL, all).await;
    }

    /// Answers those whose condition holds now. `busy`: a hook of the pod runs, which is waited for; `hook`: how one failed the pod.
    pub fn answer(
        &mut self,
        machine: &Machine,
        failure: Option<&Failure>,
        (busy, hook): (bool, Option<&str>),
    ) {
        self.0.retain(|(client, until)| {
            if client.gone() {
                return false;
            }
            let answer = match until {
                Until::Up { .. } | Until::Stopped(_) if busy => None,
                Until::Up { .. } if hook.is_some() => hook.map(Answer::failed),
                Until::Up { healthy } => match failure {
                    Some(failure) => Some(Answer::Failed {
                        code: failure.code,
                        message: failure.message.clone(),
                        service: None,
                    }),
                    None => up(machine, *healthy),
                },
                Until::Stopped(services) => services
                    .iter()
                    .all(|s| machine.status(s).is_none_or(|s| !s.phase.active()))
                    .then(|| Answer::Done {
                        exit_codes: Vec::new(),
                    }),
                Until::Idle(services) => services
                    .iter()
                    .all(|s| failure.is_some() || machine.idle(s))
                    .then(|| exit_codes(machine, services)),
                Until::Gone => None,
            };
            match answer {
                Some(answer) => {
                    client.send(&answer);
                    false
                }
                None => true,
            }
        });
    }
}

fn changed(service: &str, status: &Status) -> Answer {
    Answer::Status {
        service: service.to_string(),
        status: Box::new(status.clone()),
    }
}

fn exit_codes(machine: &Machine, services: &[String]) -> Answer {
    let code = |name: &String| machine.status(name).and_then(|status| status.exit_code);
    Answer::Done {
        exit_codes: services.iter().map(|s| (s.clone(), code(s))).collect(),
    }
}

/// The answer to `up` once it is known: what failed first, its consequences last.
fn up(machine: &Machine, healthy: bool) -> Option<Answer> {
    if !machine.settled() || (healthy && machine.undecided()) {
        return None;
    }
    let ended = |status: &Status| status.cause == Some(Cause::Unhealthy);
    let mut failed: Vec<(bool, u8, String, &str)> = machine
        .statuses()
        .filter(|(_, status)| status.goal == Goal::Run || (healthy && ended(status)))
        .filter_map(|(name, status)| match (&status.error, status.phase) {
            (Some(error), Phase::Failed) => {
                let code = status.exit_code.and_then(|c| u8::try_from(c).ok());
                let own = code.is_some() && !error.starts_with("dependency ");
                Some((
                    !own,
                    if own { code? } else { 1 },
                    format!("service {name}: {error}"),
                    name,
                ))
            }
            _ if healthy && (status.health == Health::Unhealthy || ended(status)) => Some((
                false,
                1,
                format!(
                    "service {name} is unhealthy: {}",
                    status.failing(CheckKind::Health)
                ),
                name,
            )),
            _ if healthy && status.unready() => Some((
                false,
                1,
                format!(
                    "service {name} is not ready: {}",
                    status.failing(CheckKind::Readiness)
                ),
                name,
            )),
            _ => None,
        })
        .collect();
    failed.sort();
    let Some((_, code, _, service)) = failed.first() else {
        return Some(Answer::Done {
            exit_codes: Vec::new(),
        });
    };
    let (code, service) = (*code, Some(service.to_string()));
    let texts: Vec<String> = failed.into_iter().map(|(_, _, text, _)| text).collect();
    Some(Answer::Failed {
        code,
        message: texts.join("\n"),
        service,
    })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    type Reader = BufReader<std::os::unix::net::UnixStream>;

    /// The next line, while the writer gets on; `None` at the end.
    async fn next(reader: &mut Reader) -> Option<String> {
        let mut line = String::new();
        loop {
            match reader.read_line(&mut line) {
                Ok(0) => return None,
                Ok(_) => return Some(line),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    async fn keep_up(socket: &Path) {
        let (events, mut inbox) = mpsc::unbounded_channel();
        listen(socket, events).unwrap();
        let mut clients = Clients::default();
        let mut connect = async || {
            let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
            std::io::Write::write_all(&mut stream, b"{\"op\":\"watch\"}\n").unwrap();
            stream.set_nonblocking(true).unwrap();
            let Some(Event::Client(_, client)) = inbox.recv().await else {
                panic!("no client");
            };
            clients.watch(client, &BTreeMap::new(), None);
            BufReader::new(stream)
        };
        let (mut slow, mut quick) = (connect().await, connect().await);
        let mut status = Status::default();
        for restarts in 0..5000 {
            status.restarts = restarts;
            clients.status("web", &status);
            let line = next(&mut quick).await.unwrap();
            assert!(
                line.contains(&format!("\"restarts\":{restarts},")),
                "{line}"
            );
        }
        let waiting: Vec<_> = clients.0.iter().map(|(c, _)| c.waiting.get()).collect();
        assert_eq!(waiting, [CUT, 0]);
        let mut last = String::new();
        while let Some(line) = next(&mut slow).await {
            last = line;
        }
        let text = format!("cut off: more than {BACKLOG} bytes were waiting to be read; ask again");
        let answer: Answer = serde_json::from_str(&last).unwrap();
        assert_eq!(answer, Answer::failed(text));
        let machine = Machine::new(BTreeMap::new(), Default::default());
        clients.answer(&machine, None, (false, None));
        assert_eq!(clients.0.len(), 1);
    }

    /// One hangs up, one only says that it asks no more.
    async fn let_go(socket: &Path) {
        let (events, mut inbox) = mpsc::unbounded_channel();
        listen(socket, events).unwrap();
        let mut clients = Clients::default();
        let mut connect = async |clients: &mut Clients| {
            let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
            std::io::Write::write_all(&mut stream, b"{\"op\":\"wait\",\"services\":[]}\n").unwrap();
            stream.set_nonblocking(true).unwrap();
            let Some(Event::Client(_, client)) = inbox.recv().await else {
                panic!("no client");
            };
            clients.until_idle(client, vec!["web".to_owned()]);
            stream
        };
        let gone = connect(&mut clients).await;
        let there = connect(&mut clients).await;
        let deaf = connect(&mut clients).await;
        deaf.shutdown(std::net::Shutdown::Write).unwrap();
        drop(gone);
        while !clients.0[0].0.gone() {
            tokio::task::yield_now().await;
        }
        // whoever hung up is not told anything first
        for stream in [there, deaf] {
            clients.progress("web", "goes on");
            let line = next(&mut BufReader::new(stream)).await.unwrap();
            assert!(line.contains("goes on"), "{line}");
        }
        assert!(clients.0[1..].iter().all(|(client, _)| !client.gone()));
    }

    #[test]
    fn who_hangs_up_is_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let socket = dir.path().join("s");
        tokio::task::LocalSet::new().block_on(&runtime, let_go(&socket));
    }

    #[test]
    fn who_does_not_keep_up_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let socket = dir.path().join("s");
        tokio::task::LocalSet::new().block_on(&runtime, keep_up(&socket));
    }
}
