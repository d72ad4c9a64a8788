//! The streams of the API: RecordIO of `ProcessIO`, with heartbeats while nothing else is sent.
//!
//! *Invariants:* what waits for a slow reader is bounded (`WAITING` pieces), and whoever makes more waits too; nothing is dropped. Exit
//! codes are in the trailer [`EXIT_CODE`].

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::HeaderMap;
use hyper::body::{Body as HttpBody, Bytes, Frame};
use hyper::header::HeaderValue;
use tokio::sync::mpsc;

use super::connections::Place;
use crate::executor::mesos::proto::Encoding;
use crate::executor::mesos::proto::operator::ProcessIo;

/// Pause after which the other side is told that this one is there (Mesos' own).
pub const HEARTBEAT: Duration = Duration::from_secs(30);
/// Trailer with the exit code of what ended.
pub const EXIT_CODE: &str = "sampan-exit-code";
/// Header of an answer that follows a service: what its standard input is.
pub const INPUT: &str = "sampan-input";
/// It has none.
pub const NO_INPUT: &str = "none";
/// It is a pipe.
pub const PIPE_INPUT: &str = "pipe";
/// It is a terminal.
pub const TERMINAL_INPUT: &str = "terminal";
/// Pieces that wait for a reader.
const WAITING: usize = 4;
/// Most bytes of one piece.
pub const PIECE: usize = 16 << 10;

/// The body of a request or an answer: what is sent to it.
pub struct Body {
    frames: mpsc::Receiver<Frame<Bytes>>,
    /// Its own among the streams, until it is over.
    _place: Option<Place>,
}

impl Body {
    /// What is sent to a channel.
    pub fn new(frames: mpsc::Receiver<Frame<Bytes>>) -> Body {
        Body {
            frames,
            _place: None,
        }
    }

    /// A short text or message.
    pub fn whole(bytes: Vec<u8>) -> Body {
        let (sender, receiver) = mpsc::channel(1);
        if !bytes.is_empty() {
            // there is room for one
            let _ = sender.try_send(Frame::data(bytes.into()));
        }
        Body::new(receiver)
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.frames.poll_recv(context).map(|frame| frame.map(Ok))
    }
}

/// The reader has gone away.
#[derive(Debug, PartialEq, Eq)]
pub struct Gone;

/// Where records of one stream are written.
#[derive(Clone)]
pub struct Writer {
    sender: mpsc::Sender<Frame<Bytes>>,
    encoding: Encoding,
}

impl Writer {
    /// A stream and its body.
    pub fn new(encoding: Encoding, place: Place) -> (Writer, Body) {
        let (sender, frames) = mpsc::channel(WAITING);
        let body = Body {
            frames,
            _place: Some(place),
        };
        (Writer { sender, encoding }, body)
    }

    /// Sends a piece; waits while the reader does not read.
    pub async fn send(&self, piece: &ProcessIo) -> Result<(), Gone> {
        let frame = Frame::data(record(&self.encoding.write(piece)));
        self.sender.send(frame).await.map_err(|_| Gone)
    }

    /// Sends the exit code, which ends the stream.
    pub async fn end(self, code: i32) {
        let mut trailers = HeaderMap::new();
        trailers.insert(EXIT_CODE, HeaderValue::from(code));
        // one who went away does not want to know
        let _ = self.sender.send(Frame::trailers(trailers)).await;
    }

    /// Waits until the reader has gone away, and tells it meanwhile that we are there.
    pub async fn idle(&self) -> Gone {
        loop {
            tokio::select! {
                () = self.sender.closed() => return Gone,
                () = tokio::time::sleep(HEARTBEAT) => {
                    // one that does not read needs no heartbeat
                    let beat = self.encoding.write(&ProcessIo::heartbeat(HEARTBEAT));
                    let _ = self.sender.try_send(Frame::data(record(&beat)));
                }
            }
        }
    }
}

/// Bytes as one record.
pub fn record(message: &[u8]) -> Bytes {
    let mut record = format!("{}\n", message.len()).into_bytes();
    record.extend_from_slice(message);
    record.into()
}
