//! Following pods from a program that has other things to do as well: the control socket for tokio.
//!
//! *Invariant:* a supervisor that is killed is no end of anything: its successor is asked, and one is started where none is left.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::control::{Answer, ExitCodes, LINE_LIMIT, Request};
use super::layout::PodDir;
use super::{Error, Result, adopt};

/// First pause before a supervisor that does not answer is tried again, doubled up to [`PAUSE_MOST`].
const PAUSE: Duration = Duration::from_millis(2);
/// See [`PAUSE`].
const PAUSE_MOST: Duration = Duration::from_millis(500);
/// So often in a row may a supervisor not answer.
const TRIES: u32 = 30;
/// After so many tries a keeper that is not there is started.
const PATIENCE: u32 = 4;

/// What happens in one pod.
#[derive(Debug)]
pub struct Watch {
    dir: PodDir,
    lines: Option<BufReader<UnixStream>>,
    /// Of a line that has been read in part.
    begun: Vec<u8>,
}

impl Watch {
    /// Nothing is asked before [`Watch::next`].
    pub fn new(dir: PodDir) -> Watch {
        Watch {
            dir,
            lines: None,
            begun: Vec::new(),
        }
    }

    /// The next status or verdict; `None` when the pod is gone or is being removed. After the first call, and whenever the
    /// supervisor is another one, every status is told anew. May be dropped and called again.
    pub async fn next(&mut self) -> Result<Option<Answer>> {
        loop {
            let Some(lines) = &mut self.lines else {
                match connect(&self.dir, &Request::Watch).await? {
                    Some(lines) => self.lines = Some(lines),
                    None => return Ok(None),
                }
                continue;
            };
            let read = read_line(lines, &mut self.begun, &self.dir.socket()).await?;
            if read.is_none() {
                self.lines = None;
                self.begun.clear();
            }
            match read {
                Some(Answer::Done { .. }) => return Ok(None),
                // the same supervisor: from the start, with all that was missed
                Some(Answer::Failed { .. }) => self.lines = None,
                Some(Answer::Progress { .. }) | None => {}
                Some(answer) => return Ok(Some(answer)),
            }
        }
    }
}

/// Asks the supervisor of a pod; when it is killed meanwhile, its successor. `None`: the pod is gone or is being removed.
pub async fn ask(dir: &PodDir, request: &Request) -> Result<Option<ExitCodes>> {
    loop {
        let Some(mut lines) = connect(dir, request).await? else {
            return Ok(None);
        };
        let mut begun = Vec::new();
        while let Some(answer) = read_line(&mut lines, &mut begun, &dir.socket()).await? {
            if let Ok(ended) = answer.ended() {
                return ended.map(Some);
            }
        }
    }
}

/// A connection with the request sent.
async fn connect(dir: &PodDir, request: &Request) -> Result<Option<BufReader<UnixStream>>> {
    let socket = dir.socket();
    let mut line = serde_json::to_vec(request).map_err(|source| Error::Record {
        path: socket.clone(),
        source,
    })?;
    line.push(b'\n');
    let mut pause = PAUSE;
    for tried in 0..TRIES {
        if !dir.record().exists() || dir.removing().exists() {
            return Ok(None);
        }
        if let Ok(mut stream) = UnixStream::connect(&socket).await
            && stream.write_all(&line).await.is_ok()
        {
            return Ok(Some(BufReader::new(stream)));
        }
        // one too many ends by itself
        if tried >= PATIENCE && !adopt::alive(&dir.keeper()) && !adopt::alive(&dir.supervisor()) {
            // this program goes on: tokio reaps it
            tokio::process::Command::from(adopt::command(dir, "keeper")?)
                .spawn()
                .map_err(Error::io("run keeper of", &dir.dir))?;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MOST);
    }
    Err(Error::Other(format!(
        "the supervisor of pod {} does not answer; see {}",
        dir.name,
        dir.keeper_log().display()
    )))
}

/// `None`: the other side was killed. `begun` keeps what has come of a line when this is dropped.
async fn read_line(
    lines: &mut BufReader<UnixStream>,
    begun: &mut Vec<u8>,
    socket: &Path,
) -> Result<Option<Answer>> {
    loop {
        let Ok(bytes) = lines.fill_buf().await else {
            return Ok(None);
        };
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let count = end.map_or(bytes.len(), |at| at + 1);
        if count == 0 {
            return Ok(None);
        }
        begun.extend_from_slice(bytes.get(..count).unwrap_or_default());
        lines.consume(count);
        if begun.len() as u64 > LINE_LIMIT {
            return Err(Error::Other(format!(
                "{}: a line longer than {LINE_LIMIT} bytes",
                socket.display()
            )));
        }
        if end.is_some() {
            let answer = serde_json::from_slice(begun);
            begun.clear();
            return answer.map(Some).map_err(|source| Error::Record {
                path: socket.to_path_buf(),
                source,
            });
        }
    }
}
