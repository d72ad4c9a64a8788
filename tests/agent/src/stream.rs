//! The endless answer to SUBSCRIBE: records, cut where the test wants them cut.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::http::Connection;
use crate::ids::Dice;

/// What goes out on a stream.
#[derive(Debug)]
pub(crate) enum Out {
    /// One event: its length goes before it.
    Record(Vec<u8>),
    /// Bytes as they are, in a chunk.
    Raw(Vec<u8>),
    /// The end of the answer, then of the connection.
    End,
    /// The end of the connection without that of the answer.
    Cut,
    /// Nothing more is sent, but the connection stays open in the other direction.
    HalfClose,
}

/// Why a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By us.
    Agent,
    /// By the executor.
    Executor,
    /// By the executor, that sent something on it, which it may not.
    Talked,
}

/// Writes a stream until one of both sides ends it.
pub(crate) async fn write(
    connection: &mut Connection,
    mut events: UnboundedReceiver<Out>,
    mut dice: Option<Dice>,
) -> Ended {
    let mut byte = [0; 1];
    loop {
        let first = tokio::select! {
            biased;
            event = events.recv() => match event {
                Some(event) => event,
                // another stream has taken the place of this one
                None => Out::End,
            },
            read = connection.io.read(&mut byte) => return match read {
                Ok(1) => Ended::Talked,
                _ => Ended::Executor,
            },
        };
        let mut next = Some(first);
        let mut body = Vec::new();
        let last = loop {
            match next {
                Some(Out::Record(record)) => {
                    body.extend(format!("{}\n", record.len()).into_bytes());
                    body.extend(record);
                }
                Some(Out::Raw(bytes)) => body.extend(bytes),
                last => break last,
            }
            // with cuts, records that wait are joined
            next = dice.as_ref().and_then(|_| events.try_recv().ok());
        };
        if !body.is_empty() && chunked(connection, &body, dice.as_mut()).await.is_err() {
            return Ended::Executor;
        }
        let ended = match last {
            None => continue,
            Some(Out::End) => connection.write(b"0\r\n\r\n").await,
            Some(Out::HalfClose) => {
                let ended = connection.io.shutdown().await;
                while matches!(connection.io.read(&mut byte).await, Ok(1)) {}
                ended
            }
            Some(_) => Ok(()),
        };
        // gone already is as good
        let _ = ended;
        return Ended::Agent;
    }
}

/// Writes a piece of the body, as one chunk or in chunks and packets of any length.
async fn chunked(
    connection: &mut Connection,
    mut body: &[u8],
    dice: Option<&mut Dice>,
) -> std::io::Result<()> {
    let chunk = |bytes: &[u8]| {
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        chunk
    };
    let Some(dice) = dice else {
        return connection.write(&chunk(body)).await;
    };
    let mut wire = Vec::new();
    while !body.is_empty() {
        let length = match dice.below(4) {
            0 => 1,
            1 => 1 + dice.below(8),
            _ => 1 + dice.below(400),
        };
        let (now, rest) = body.split_at(length.min(body.len()));
        wire.extend(chunk(now));
        body = rest;
    }
    let mut wire = wire.as_slice();
    while !wire.is_empty() {
        let length = 1 + dice.below(300);
        let (now, rest) = wire.split_at(length.min(wire.len()));
        connection.write(now).await?;
        tokio::task::yield_now().await;
        wire = rest;
    }
    Ok(())
}
