//! `sampan --remote URL …`: `exec`, `attach`, `logs` and `ps` of tasks, asked of their executor's API.
//!
//! *Invariants:* the token is read from a file, goes into one header over TLS, and is nowhere else; flags, keys and exit codes are those of the
//! same command on the machine itself.

mod server;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::CONTENT_TYPE;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use self::server::{Server, accepted};
use super::Outcome;
use super::terminal::{Keys, Raw, Shown, size};
use crate::executor::mesos::proto::operator::{Call, ProcessIo, call, process_io};
use crate::executor::mesos::proto::{
    CommandInfo, ContainerId, ContainerInfo, Encoding, Environment, TtyInfo, container_info,
    environment, tty_info,
};
use crate::executor::mesos::recordio::Records;
use crate::executor::remote::order::encode;
use crate::executor::remote::stream::{
    Body, EXIT_CODE, HEARTBEAT, INPUT, NO_INPUT, TERMINAL_INPUT, record,
};

/// What is spoken.
const ENCODING: Encoding = Encoding::Protobuf;
/// A server that says nothing for so long, not even that it is there, is gone.
const SILENCE: Duration = HEARTBEAT.saturating_mul(3);

/// Whom to ask, and as whom.
#[derive(Debug, Clone, clap::Args)]
pub struct Remote {
    /// Ask the API of an executor: `unix:PATH`, or `https://HOST:PORT`
    #[arg(
        long, global = true, env = "SAMPAN_REMOTE", hide_env_values = true,
        help_heading = super::GLOBAL, value_name = "URL"
    )]
    pub remote: Option<String>,
    /// File with the token for `--remote`
    #[arg(
        long, global = true, env = "SAMPAN_TOKEN_FILE", hide_env_values = true,
        help_heading = super::GLOBAL, value_name = "FILE"
    )]
    pub token_file: Option<PathBuf>,
    /// Authorities of the certificate of `--remote`, PEM, instead of those that are generally trusted
    #[arg(
        long, global = true, env = "SAMPAN_REMOTE_CA", hide_env_values = true,
        help_heading = super::GLOBAL, value_name = "FILE"
    )]
    pub remote_ca: Option<PathBuf>,
}

/// A program to run, as `exec` has it.
pub struct Program {
    /// `TASK` or `TASK/SERVICE`.
    pub target: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// `user[:group]`.
    pub user: Option<String>,
    /// Names and values.
    pub env: Vec<(String, String)>,
    /// With a terminal.
    pub tty: bool,
}

/// `exec`.
pub fn exec(remote: &Remote, program: Program) -> Outcome {
    run(async {
        let server = Server::new(remote)?;
        let mut id = container_id(&program.target);
        id = ContainerId {
            value: format!("exec-{:016x}", fastrand::u64(..)),
            parent: Some(Box::new(id)),
        };
        let mut variables = program.env;
        if program.tty {
            let terminal = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_string());
            variables.insert(0, ("TERM".to_string(), terminal));
        }
        let variables = variables
            .into_iter()
            .map(|(name, value)| environment::Variable {
                name,
                value: Some(value),
                ..environment::Variable::default()
            });
        let mut words = program.command.into_iter();
        let value = words.next();
        let command = CommandInfo {
            arguments: value.iter().cloned().chain(words).collect(),
            value,
            shell: Some(false),
            user: program.user,
            environment: Some(Environment {
                variables: variables.collect(),
            }),
            ..CommandInfo::default()
        };
        let window = size().map(|(rows, columns)| tty_info::WindowSize {
            rows: rows.into(),
            columns: columns.into(),
        });
        let container = program.tty.then(|| ContainerInfo {
            r#type: container_info::Type::Mesos.into(),
            tty_info: Some(TtyInfo {
                window_size: window,
            }),
            ..ContainerInfo::default()
        });
        let launch = call::LaunchNestedContainerSession {
            container_id: id.clone(),
            command: Some(command),
            container,
        };
        let call = Call {
            r#type: Some(call::Type::LaunchNestedContainerSession.into()),
            launch_nested_container_session: Some(launch),
            ..Call::default()
        };
        let output = server
            .stream(Method::POST, "/api/v1", ENCODING.write(&call))
            .await?;
        let raw = match program.tty {
            true => Raw::enter()?,
            false => None,
        };
        let input = input(&server, &id, false, false).await?;
        let outcome = converse(output.into_body(), Some(input)).await;
        drop(raw);
        // no keys leave it
        Ok(outcome?.unwrap_or(255))
    })
}

/// `attach`.
pub fn attach(remote: &Remote, target: &str, no_stdin: bool) -> Outcome {
    run(async {
        let server = Server::new(remote)?;
        let id = container_id(target);
        let call = Call {
            r#type: Some(call::Type::AttachContainerOutput.into()),
            attach_container_output: Some(call::AttachContainerOutput {
                container_id: id.clone(),
            }),
            ..Call::default()
        };
        let output = server
            .stream(Method::POST, "/api/v1", ENCODING.write(&call))
            .await?;
        let kind = output.headers().get(INPUT);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or(NO_INPUT);
        let (raw, shown) = match (kind == TERMINAL_INPUT, no_stdin) {
            (true, false) => (Raw::enter()?, None),
            (true, true) => (None, Shown::enter()?),
            (false, _) => (None, None),
        };
        let keys = raw.is_some();
        let input = match !no_stdin && kind != NO_INPUT {
            true => Some(input(&server, &id, keys, true).await?),
            false => None,
        };
        let outcome = converse(output.into_body(), input).await;
        drop((raw, shown));
        Ok(or_left(outcome?, "\nleft, and it runs on"))
    })
}

/// `logs`; `options` are those of the query.
pub fn logs(remote: &Remote, target: &str, options: &[(&str, String)]) -> Outcome {
    run(async {
        let server = Server::new(remote)?;
        let mut path = format!("/api/v1/logs?task={}", encode(target));
        for (name, value) in options {
            path.push_str(&format!("&{name}={}", encode(value)));
        }
        let output = server.stream(Method::GET, &path, Vec::new()).await?;
        let code = converse(output.into_body(), None).await?;
        Ok(or_left(code, ""))
    })
}

/// The exit code of what ended, or 0 and a word when it was left.
fn or_left(code: Option<u8>, text: &str) -> u8 {
    code.unwrap_or_else(|| {
        super::output::progress("", text);
        0
    })
}

/// `ps`: the rows.
pub fn ps(remote: &Remote) -> anyhow::Result<Vec<serde_json::Value>> {
    block_on(async { Server::new(remote)?.rows().await })
}

/// Until it is done or we are told to end: then our terminal is as it was, as it would not be were we killed.
fn run(work: impl Future<Output = Outcome>) -> Outcome {
    block_on(async {
        tokio::select! {
            done = work => done,
            code = told_to_end() => code,
        }
    })
}

/// The exit code as a shell shows it, once a signal came.
async fn told_to_end() -> Outcome {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let number = tokio::select! {
        _ = hangup.recv() => libc::SIGHUP,
        _ = interrupt.recv() => libc::SIGINT,
        _ = terminate.recv() => libc::SIGTERM,
    };
    Ok(128 + number as u8)
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let done = tokio::task::LocalSet::new().block_on(&runtime, work);
    // whoever reads standard input may wait there for ever
    runtime.shutdown_background();
    done
}

fn container_id(target: &str) -> ContainerId {
    match target.split_once('/') {
        None => ContainerId {
            value: target.to_string(),
            parent: None,
        },
        Some((task, service)) => ContainerId {
            value: service.to_string(),
            parent: Some(Box::new(container_id(task))),
        },
    }
}

/// Sends what is typed to a container's input from now on, with the size of our terminal.
async fn input(
    server: &Server,
    id: &ContainerId,
    keys: bool,
    redraw: bool,
) -> anyhow::Result<Typing> {
    let (sender, receiver) = mpsc::channel(4);
    let first = call::AttachContainerInput {
        r#type: Some(call::attach_container_input::Type::ContainerId.into()),
        container_id: Some(id.clone()),
        process_io: None,
    };
    // there is room
    let _ = sender.try_send(Frame::data(record(&ENCODING.write(&of_input(first)))));
    let request = server
        .request(Method::POST, "/api/v1")
        .header(CONTENT_TYPE, "application/recordio")
        .header("Message-Content-Type", ENCODING.media_type())
        .body(Body::new(receiver))?;
    let mut connection = server.connect().await?;
    let url = server.url.clone();
    let answer = tokio::task::spawn_local(async move {
        let answer = connection.send_request(request).await;
        let answer = answer.with_context(|| format!("send input to {url}"))?;
        accepted(answer).await.map(drop)
    });
    let (left, gone) = mpsc::channel(1);
    tokio::task::spawn_local(async move {
        if type_on(&sender, keys, redraw).await == Some(true) {
            let _ = left.send(()).await;
        }
        // the input stays ours, and with it the size, until we go
        let _ = keep_alive(&sender).await;
    });
    Ok(Typing { answer, gone })
}

fn of_input(body: call::AttachContainerInput) -> Call {
    Call {
        r#type: Some(call::Type::AttachContainerInput.into()),
        attach_container_input: Some(body),
        ..Call::default()
    }
}

/// What is typed, on its way.
struct Typing {
    answer: tokio::task::JoinHandle<anyhow::Result<()>>,
    gone: mpsc::Receiver<()>,
}

/// Nobody takes pieces any more.
struct Closed;

async fn send(sender: &mpsc::Sender<Frame<Bytes>>, piece: ProcessIo) -> Result<(), Closed> {
    let body = call::AttachContainerInput {
        r#type: Some(call::attach_container_input::Type::ProcessIo.into()),
        container_id: None,
        process_io: Some(piece),
    };
    let frame = Frame::data(record(&ENCODING.write(&of_input(body))));
    sender.send(frame).await.map_err(|_| Closed)
}

async fn keep_alive(sender: &mpsc::Sender<Frame<Bytes>>) -> Result<(), Closed> {
    let mut windows = signal(SignalKind::window_change()).map_err(|_| Closed)?;
    loop {
        let piece = tokio::select! {
            _ = windows.recv() => size().map(|(rows, columns)| ProcessIo::size(rows, columns)),
            () = tokio::time::sleep(HEARTBEAT) => Some(ProcessIo::heartbeat(HEARTBEAT)),
            () = sender.closed() => return Err(Closed),
        };
        if let Some(piece) = piece {
            send(sender, piece).await?;
        }
    }
}

/// Until our input ends; `true`: left by the keys.
async fn type_on(sender: &mpsc::Sender<Frame<Bytes>>, keys: bool, redraw: bool) -> Option<bool> {
    if let Some((rows, columns)) = size() {
        // a size that changes makes a program draw its screen again, also where it is the size it had
        if redraw {
            send(sender, ProcessIo::size(0, 0)).await.ok()?;
        }
        send(sender, ProcessIo::size(rows, columns)).await.ok()?;
    }
    let mut keys = keys.then(Keys::default);
    let mut typed = typed();
    let alive = keep_alive(sender);
    tokio::pin!(alive);
    loop {
        let bytes = tokio::select! {
            bytes = typed.recv() => bytes,
            _ = &mut alive => return None,
        };
        let stdin = process_io::data::Type::Stdin;
        let Some(bytes) = bytes else {
            send(sender, ProcessIo::data(stdin, b"")).await.ok()?;
            return Some(false);
        };
        let (bytes, leave) = match &mut keys {
            Some(keys) => keys.pass(&bytes),
            None => (bytes, false),
        };
        if !bytes.is_empty() {
            send(sender, ProcessIo::data(stdin, &bytes)).await.ok()?;
        }
        if leave {
            return Some(true);
        }
    }
}

/// Our standard input, read by a thread of its own: a file cannot be waited for.
fn typed() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut buffer = [0; 16 << 10];
        loop {
            match std::io::Read::read(&mut std::io::stdin().lock(), &mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return,
                Ok(count) => {
                    let bytes = buffer.get(..count).unwrap_or_default().to_vec();
                    if sender.blocking_send(bytes).is_err() {
                        return;
                    }
                }
            }
        }
    });
    receiver
}

/// Shows what comes until it ends: the exit code; `None` when it is left by the keys.
async fn converse(mut output: Incoming, mut typing: Option<Typing>) -> anyhow::Result<Option<u8>> {
    let mut records = Records::default();
    loop {
        let frame = tokio::time::timeout(SILENCE, output.frame());
        let frame = match &mut typing {
            None => frame.await,
            Some(Typing { answer, gone }) => tokio::select! {
                frame = frame => frame,
                Some(()) = gone.recv() => return Ok(None),
                done = answer => {
                    typing = None;
                    // that it ended is told by its output
                    done??;
                    continue;
                }
            },
        };
        let frame = frame.with_context(|| {
            let seconds = SILENCE.as_secs();
            format!("the connection is lost: the executor has said nothing for {seconds} s")
        })?;
        let Some(frame) = frame else {
            bail!("the connection ended before the program did");
        };
        let frame = frame.context("the connection is lost")?;
        if let Some(trailers) = frame.trailers_ref() {
            let code = trailers
                .get(EXIT_CODE)
                .and_then(|code| code.to_str().ok()?.parse().ok());
            let code = code.and_then(|code: i32| u8::try_from(code).ok());
            return Ok(Some(code.unwrap_or(255)));
        }
        if let Some(bytes) = frame.data_ref() {
            records.push(bytes);
        }
        while let Some(piece) = records.next_record()? {
            show(&ENCODING.read("ProcessIO", piece)?)?;
        }
    }
}

fn show(piece: &ProcessIo) -> anyhow::Result<()> {
    let Some(data) = &piece.data else {
        return Ok(());
    };
    let bytes = data.data.as_deref().unwrap_or_default();
    match data.r#type() {
        process_io::data::Type::Stdout => {
            let mut out = std::io::stdout().lock();
            out.write_all(bytes)?;
            out.flush()?;
        }
        process_io::data::Type::Stderr => std::io::stderr().lock().write_all(bytes)?,
        _ => {}
    }
    Ok(())
}
