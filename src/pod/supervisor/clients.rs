//! Who asks and who waits: the server side of the control socket.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::super::control::{Answer, LINE_LIMIT};
use super::super::record::{Failure, Goal, Health, Phase};
use super::super::{Error, Result};
use super::Event;
use super::machine::Machine;
use crate::compose::project::CheckKind;

/// A client that reads this slowly is let go.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that a request came from.
pub struct Client {
    lines: mpsc::UnboundedSender<Answer>,
    writer: JoinHandle<()>,
}

impl Client {
    /// Sends a line; a client that went away is no error.
    pub fn send(&self, answer: Answer) {
        let _ = self.lines.send(answer);
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

async fn serve(stream: UnixStream, events: mpsc::UnboundedSender<Event>) {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(reader.take(LINE_LIMIT));
    if !matches!(reader.read_line(&mut line).await, Ok(count) if count > 0) {
        return;
    }
    let (lines, mut answers) = mpsc::unbounded_channel::<Answer>();
    let task = tokio::task::spawn_local(async move {
        while let Some(answer) = answers.recv().await {
            let Ok(mut text) = serde_json::to_vec(&answer) else {
                return;
            };
            text.push(b'\n');
            let sent = tokio::time::timeout(WRITE_TIMEOUT, writer.write_all(&text)).await;
            if !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    });
    let client = Client {
        lines,
        writer: task,
    };
    match serde_json::from_str(&line) {
        Ok(request) => {
            let _ = events.send(Event::Client(request, client));
        }
        Err(error) => client.send(Answer::Failed {
            code: 1,
            message: format!("request not understood: {error}"),
        }),
    }
}

enum Until {
    Up { healthy: bool },
    Stopped(Vec<String>),
    Idle(Vec<String>),
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
                client.send(Answer::Failed {
                    code: 1,
                    message: why.to_string(),
                });
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

    /// Tells everybody who waits.
    pub fn progress(&self, service: &str, text: &str) {
        for (client, _) in &self.0 {
            client.send(Answer::Progress {
                service: service.to_string(),
                text: text.to_string(),
            });
        }
    }

    /// Answers those whose condition holds now.
    pub fn answer(&mut self, machine: &Machine, failure: Option<&Failure>) {
        self.0.retain(|(client, until)| {
            if client.gone() {
                return false;
            }
            let answer = match until {
                Until::Up { healthy } => match failure {
                    Some(failure) => Some(Answer::Failed {
                        code: failure.code,
                        message: failure.message.clone(),
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
            };
            match answer {
                Some(answer) => {
                    client.send(answer);
                    false
                }
                None => true,
            }
        });
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
    let mut failed: Vec<(bool, u8, String)> = machine
        .statuses()
        .filter(|(_, status)| status.goal == Goal::Run)
        .filter_map(|(name, status)| match (&status.error, status.phase) {
            (Some(error), Phase::Failed) => {
                let code = status.exit_code.and_then(|c| u8::try_from(c).ok());
                let own = code.is_some() && !error.starts_with("dependency ");
                Some((
                    !own,
                    if own { code? } else { 1 },
                    format!("service {name}: {error}"),
                ))
            }
            _ if healthy && status.health == Health::Unhealthy => Some((
                false,
                1,
                format!(
                    "service {name} is unhealthy: {}",
                    status.failing(CheckKind::Health)
                ),
            )),
            _ if healthy && status.unready() => Some((
                false,
                1,
                format!(
                    "service {name} is not ready: {}",
                    status.failing(CheckKind::Readiness)
                ),
            )),
            _ => None,
        })
        .collect();
    failed.sort();
    let Some((_, code, _)) = failed.first() else {
        return Some(Answer::Done {
            exit_codes: Vec::new(),
        });
    };
    let code = *code;
    let texts: Vec<String> = failed.into_iter().map(|(_, _, text)| text).collect();
    Some(Answer::Failed {
        code,
        message: texts.join("\n"),
    })
}
