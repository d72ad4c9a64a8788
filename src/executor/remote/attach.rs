//! Attaching: what a service prints as records, and records as its input.
//!
//! *Invariants:* one writer at a time, in this process or another ([`Input`]); bytes of a record are written before the next one is read, so
//! that what waits is bounded by one record.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::Incoming;
use tokio::io::unix::AsyncFd;

use super::connections::Departure;
use super::order::Refusal;
use super::session::{self, Claim, Session};
use super::stream::{Gone, PIECE, Writer};
use crate::executor::mesos::proto::Encoding;
use crate::executor::mesos::proto::operator::call::attach_container_input::Type;
use crate::executor::mesos::proto::operator::{Call, ProcessIo, process_io};
use crate::executor::mesos::recordio::Records;
use crate::pod::follow::{self, Follower, Run, Source};
use crate::pod::input::Input;
use crate::pod::layout::PodDir;
use crate::pod::{Error, adopt};
use crate::sys::pidfd;
use crate::sys::watch::watch;

/// Longest record of an input, in bytes.
const RECORD_MAX: usize = 1 << 20;
/// Pause between two looks for the record of an end.
const END_PAUSE: Duration = Duration::from_millis(10);

/// Sends what a run prints until it ends or nobody reads. How it ended, and what is still to be read, is taken as soon as it is there: the
/// pod of a task that is over is removed, however far behind a reader is.
pub async fn output(
    dir: PodDir,
    service: String,
    run: Run,
    mut follower: Follower,
    writer: Writer,
) -> Result<(), Error> {
    let failed = || Error::io("follow", &dir.dir);
    let clone = follower.as_fd().try_clone_to_owned();
    let changes = clone.and_then(watch).map_err(failed())?;
    let ending = end(&dir, &service, run);
    tokio::pin!(ending);
    let mut code = None;
    let mut buffer = vec![0; PIECE];
    loop {
        let piece = follower.read(&mut buffer)?.map(|(source, count)| {
            let kind = match source {
                Source::Stdout => process_io::data::Type::Stdout,
                Source::Stderr => process_io::data::Type::Stderr,
            };
            ProcessIo::data(kind, buffer.get(..count).unwrap_or_default())
        });
        if let (Some(code), None) = (code, &piece) {
            writer.end(code).await;
            return Ok(());
        }
        let next = async {
            match &piece {
                Some(piece) => writer.send(piece).await.map_err(|Gone| None),
                None => tokio::select! {
                                   // before the look: what comes after it is told again
                                   ready = changes.readable() => match ready {
                                       Ok(mut ready) => {
                ready.clear_ready();
                Ok(())
                }
                                       Err(error) => Err(Some(error)),
                                   },
                                   Gone = writer.idle() => Err(None),
                               },
            }
        };
        tokio::pin!(next);
        let done = loop {
            tokio::select! {
                done = &mut next => break done,
                ended = &mut ending, if code.is_none() => {
                    code = Some(ended?);
                    follower.hold()?;
                    if piece.is_none() {
                        break Ok(());
                    }
                }
            }
        };
        match done {
            Ok(()) => {}
            Err(None) => return Ok(()),
            Err(Some(error)) => return Err(failed()(error)),
        }
    }
}

/// The exit code of a run, once it has ended and all of its output is in the logs.
async fn end(dir: &PodDir, service: &str, run: Run) -> Result<i32, Error> {
    let ended = watch(run.pidfd).map_err(Error::io("follow", &dir.dir))?;
    let ready = ended.readable().await;
    ready.map_err(Error::io("follow", &dir.dir))?.retain_ready();
    // whose death would keep the end from being written down
    let of = dir.clone();
    let mut ensured = Some(tokio::task::spawn_blocking(move || adopt::ensure(&of)));
    loop {
        if let Some(end) = follow::end(dir, service, run.process)? {
            // the kernel knows it for longer than a pod that is removed, where it tells
            let kernel = || pidfd::exit_status(ended.get_ref()).map(ExitStatus::from_raw);
            let code = end.code.or_else(|| kernel().map(session::code));
            return Ok(code.unwrap_or(255));
        }
        if ensured.as_ref().is_some_and(|task| task.is_finished())
            && let Some(task) = ensured.take()
        {
            let ensured = task
                .await
                .map_err(|error| Error::Other(error.to_string()))?;
            // nor is it needed where the end is known now, or the pod is gone
            if follow::end(dir, service, run.process)?.is_none() {
                ensured?;
            }
        }
        tokio::time::sleep(END_PAUSE).await;
    }
}

/// The records of a request's body.
pub struct Pieces {
    body: Incoming,
    records: Records,
    encoding: Encoding,
}

impl Pieces {
    /// Nothing is read before [`Pieces::next`].
    pub fn new(body: Incoming, encoding: Encoding) -> Pieces {
        Pieces {
            body,
            records: Records::default(),
            encoding,
        }
    }

    /// The next record; `None` at the end, or when the client went away.
    pub async fn next(&mut self) -> Result<Option<Call>, Refusal> {
        loop {
            let waiting = self.records.waiting();
            match self.records.next_record() {
                Ok(Some(record)) => {
                    let call = self.encoding.read("Call", record);
                    return call
                        .map(Some)
                        .map_err(|error| Refusal::bad(error.to_string()));
                }
                Ok(None) if waiting > RECORD_MAX => {
                    let why = format!("a record has more than {RECORD_MAX} bytes");
                    return Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, why));
                }
                Ok(None) => {}
                Err(error) => return Err(Refusal::bad(error.to_string())),
            }
            match self.body.frame().await {
                None | Some(Err(_)) => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        self.records.push(bytes);
                    }
                }
            }
        }
    }
}

/// Where pieces of input go.
pub enum Sink {
    /// A session's.
    Session(Claim, Rc<Session>),
    /// A service's.
    Service(Input, AsyncFd<OwnedFd>),
}

impl Sink {
    /// Takes the input of a service.
    pub async fn service(dir: PodDir, service: String) -> Result<Sink, Refusal> {
        let opened = tokio::task::spawn_blocking(move || Input::open(&dir, &service)).await;
        let internal = |why: String| Refusal(StatusCode::INTERNAL_SERVER_ERROR, why);
        let input = match opened.map_err(|error| internal(error.to_string()))? {
            Ok(input) => input,
            Err(error @ Error::Busy(_)) => {
                return Err(Refusal(StatusCode::CONFLICT, error.to_string()));
            }
            Err(error @ Error::Start { .. }) => return Err(Refusal::bad(error.to_string())),
            Err(error) => return Err(internal(error.to_string())),
        };
        let fd = input.as_fd().try_clone_to_owned().and_then(watch);
        let fd = fd.map_err(|error| internal(error.to_string()))?;
        Ok(Sink::Service(input, fd))
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Sink::Session(claim, _) => claim.write(bytes).await,
            Sink::Service(_, fd) => session::write_all(fd, bytes).await,
        }
    }

    fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        match self {
            Sink::Session(claim, _) => claim.resize((rows, columns)),
            Sink::Service(input, _) => {
                input.resize(rows, columns);
                Ok(())
            }
        }
    }

    /// Ends the input; a terminal can be written to further.
    async fn end(self) -> Result<Option<Sink>, String> {
        match self {
            Sink::Session(claim, session) => {
                claim.end().await.map_err(|error| error.to_string())?;
                Ok(Some(Sink::Session(claim, session)))
            }
            Sink::Service(input, fd) if input.is_terminal() => {
                session::write_all(&fd, &[4])
                    .await
                    .map_err(|error| error.to_string())?;
                Ok(Some(Sink::Service(input, fd)))
            }
            Sink::Service(input, _) => {
                let ended = tokio::task::spawn_blocking(move || input.end()).await;
                let ended = ended.map_err(|error| error.to_string())?;
                ended.map_err(|error| error.to_string())?;
                Ok(None)
            }
        }
    }

    /// Until there is nobody to write to.
    async fn over(&self) {
        match self {
            Sink::Session(_, session) => {
                session.ended().await;
            }
            Sink::Service(..) => std::future::pending().await,
        }
    }
}

/// Writes records to a sink until they end, or the client goes while there is no room for what it sent.
pub async fn input(mut pieces: Pieces, sink: Sink, departure: &Departure) -> Result<(), Refusal> {
    let mut sink = Some(sink);
    loop {
        let next = match &sink {
            Some(sink) => tokio::select! {
                next = pieces.next() => next?,
                () = sink.over() => return Ok(()),
            },
            None => pieces.next().await?,
        };
        let Some(call) = next else { return Ok(()) };
        let body = call.attach_container_input.unwrap_or_default();
        let piece = match (body.r#type(), body.process_io) {
            (Type::ProcessIo, Some(piece)) => Piece::read(&piece)?,
            _ => return Err(Refusal::bad("expected PROCESS_IO after the first record")),
        };
        let Some(open) = &sink else { continue };
        let failed = |error: String| Refusal(StatusCode::INTERNAL_SERVER_ERROR, error);
        let done = match piece {
            Piece::Nothing => Ok(()),
            Piece::Size(rows, columns) => open.resize(rows, columns),
            Piece::Bytes(bytes) => tokio::select! {
                // what one who left had sent is written where there is room
                biased;
                done = open.write(&bytes) => done,
                () = open.over() => Ok(()),
                () = departure.awaited() => return Ok(()),
            },
            Piece::End => {
                let Some(open) = sink.take() else { continue };
                sink = tokio::select! {
                    biased;
                    ended = open.end() => ended.map_err(failed)?,
                    () = departure.awaited() => return Ok(()),
                };
                Ok(())
            }
        };
        match done {
            Ok(()) => {}
            // the program has ended
            Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(failed(error.to_string())),
        }
    }
}

/// A piece of an input.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Bytes(Vec<u8>),
    End,
    Size(u16, u16),
    Nothing,
}

impl Piece {
    fn read(piece: &ProcessIo) -> Result<Piece, Refusal> {
        let bad = |why: &str| Err(Refusal::bad(format!("process_io: {why}")));
        match (piece.r#type(), &piece.data, &piece.control) {
            (process_io::Type::Data, Some(data), _) => match (data.r#type(), &data.data) {
                (process_io::data::Type::Stdin, Some(bytes)) if !bytes.is_empty() => {
                    Ok(Piece::Bytes(bytes.clone()))
                }
                (process_io::data::Type::Stdin, _) => Ok(Piece::End),
                _ => bad("only STDIN can be sent"),
            },
            (process_io::Type::Control, _, Some(control)) => match control.r#type() {
                process_io::control::Type::Heartbeat => Ok(Piece::Nothing),
                process_io::control::Type::TtyInfo => {
                    let tty = control.tty_info.as_ref();
                    let Some(size) = tty.and_then(|tty| tty.window_size.as_ref()) else {
                        return bad("TTY_INFO has no `window_size`");
                    };
                    match (u16::try_from(size.rows), u16::try_from(size.columns)) {
                        (Ok(rows), Ok(columns)) => Ok(Piece::Size(rows, columns)),
                        _ => bad("a window is no larger than 65535"),
                    }
                }
                process_io::control::Type::Unknown => bad("unknown type of control"),
            },
            _ => bad("neither data nor control"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_input() {
        let stdin = |bytes: &[u8]| ProcessIo::data(process_io::data::Type::Stdin, bytes);
        for (piece, expected) in [
            (stdin(b"ls\n"), Ok(Piece::Bytes(b"ls\n".to_vec()))),
            (stdin(b""), Ok(Piece::End)),
            (ProcessIo::size(3, 4), Ok(Piece::Size(3, 4))),
            (ProcessIo::size(0, 0), Ok(Piece::Size(0, 0))),
            (
                ProcessIo::heartbeat(Duration::from_secs(30)),
                Ok(Piece::Nothing),
            ),
            (
                ProcessIo::data(process_io::data::Type::Stdout, b"x"),
                Err("only STDIN can be sent"),
            ),
            (ProcessIo::default(), Err("neither data nor control")),
        ] {
            let expected = expected.map_err(|why| Refusal::bad(format!("process_io: {why}")));
            assert_eq!(Piece::read(&piece), expected, "{piece:?}");
        }
    }
}
