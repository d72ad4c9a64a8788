//! The process that answers: connections, who they are from, and what becomes of each request.
//!
//! *Invariants:* everything that a client can make grow is bounded: connections, sessions, headers, bodies, and the time for a handshake, for
//! headers, for a body and to take what is sent; a token is looked at and never kept; what is refused for want of a permission is refused before anybody looks
//! whether it exists.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderMap, TRAILER, WWW_AUTHENTICATE,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use super::Listen;
use super::access::{self, Caller, Verb};
use super::attach::{self, Pieces, Sink};
use super::connections::{Connections, Departure, Patient, Place, acceptor, prepare};
use super::order::{self, Logs, Order, Program, Refusal, Target};
use super::session::{self, KEPT, SESSION_ENV, Session};
use super::stream::{Body, EXIT_CODE, INPUT, NO_INPUT, PIPE_INPUT, TERMINAL_INPUT, Writer};
use crate::executor::mesos::proto::Encoding;
use crate::executor::mesos::proto::operator::call::attach_container_input::Type as First;
use crate::executor::mesos::proto::operator::{Call, Response as Reply, response};
use crate::pod::adopt;
use crate::pod::follow::{self, Follower, From};
use crate::pod::layout::{Folders, PodDir};
use crate::pod::record::{self, Owner, ProcessId};
use crate::sys::stderr;

/// Most sessions, those that ended and are known for a while included.
const SESSIONS: usize = 128;
/// Time for a TLS handshake, and for the headers of a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time in which a client from elsewhere has to take something of what is sent to it.
const UNREAD: Duration = Duration::from_secs(600);
/// Time for a body that is one message.
const BODY_PATIENCE: Duration = Duration::from_secs(30);
/// Longest body that is one message, in bytes.
const BODY_MAX: usize = 1 << 20;
/// Longest list of tasks, in bytes.
const LIST_MAX: u64 = 16 << 20;
/// So long without a connection or session, and the process ends.
const IDLE: Duration = Duration::from_secs(60);

type Answer = std::result::Result<Response<Body>, Refusal>;

/// What is answered for.
#[derive(Debug)]
pub struct Server {
    /// Where the pods are.
    pub folders: Folders,
    /// Owner of the pods that can be reached.
    pub owner: ProcessId,
    /// Connections of the executor's own user.
    pub unix: std::os::unix::net::UnixListener,
    /// And of others.
    pub tcp: Option<(std::net::TcpListener, Listen)>,
}

struct Api {
    folders: Folders,
    owner: ProcessId,
    tokens: Option<PathBuf>,
    sessions: RefCell<BTreeMap<String, Rc<Session>>>,
    connections: Connections,
}

/// Takes connections until there was none for a while.
pub fn serve(server: Server) -> anyhow::Result<()> {
    // whoever holds the sockets starts another one
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, listen(server))
}

async fn listen(server: Server) -> anyhow::Result<()> {
    server.unix.set_nonblocking(true)?;
    let unix = tokio::net::UnixListener::from_std(server.unix)?;
    let mut tokens = None;
    let tcp = match server.tcp {
        None => None,
        Some((listener, listen)) => {
            tokens = Some(listen.tokens.clone());
            listener.set_nonblocking(true)?;
            Some((tokio::net::TcpListener::from_std(listener)?, listen))
        }
    };
    let api = Rc::new(Api {
        folders: server.folders,
        owner: server.owner,
        tokens,
        sessions: RefCell::default(),
        connections: Connections::default(),
    });
    let mut told = None;
    loop {
        let full = |local| api.connections.are_full(local);
        let (local_full, remote_full) = (full(true), full(false));
        tokio::select! {
            it = unix.accept(), if !local_full => match it {
                Ok((stream, _)) => api.clone().begin(true, async move |api: Rc<Api>| {
                    if let Ok(departure) = Departure::of(&stream) {
                        api.converse(stream, departure, true).await;
                    }
                }),
                // out of descriptors, say: there may be some again later
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            it = async {
                match &tcp {
                    Some((listener, listen)) => (listener.accept().await, listen),
                    None => std::future::pending().await,
                }
            }, if !remote_full => match it {
                // each time anew: certificates are renewed, and one that is just being written keeps nobody out for longer
                (Ok((stream, _)), listen) => match acceptor(listen) {
                    Ok(tls) => {
                        told = None;
                        api.clone().begin(false, async move |api: Rc<Api>| {
                            let _ = prepare(&stream);
                            let Ok(departure) = Departure::of(&stream) else { return };
                            // one that does not speak TLS is let go without a word
                            if let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, tls.accept(stream)).await {
                                api.converse(Patient::new(stream, UNREAD), departure, false).await;
                            }
                        });
                    }
                    Err(error) => {
                        if told.as_ref() != Some(&error) {
                            stderr::line(format_args!("sampan executor: {error}"));
                        }
                        told = Some(error);
                    }
                },
                (Err(_), _) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            () = tokio::time::sleep(if local_full || remote_full { PATIENCE / 100 } else { IDLE }) => {
                if api.connections.are_none() && api.sessions.borrow().is_empty() {
                    return Ok(());
                }
            }
        }
    }
}

impl Api {
    fn begin<F: Future<Output = ()> + 'static>(
        self: Rc<Self>,
        local: bool,
        conversation: impl FnOnce(Rc<Api>) -> F + 'static,
    ) {
        let place = self.connections.enter(local);
        tokio::task::spawn_local(async move {
            conversation(self).await;
            drop(place);
        });
    }

    async fn converse(
        self: Rc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
        departure: Departure,
        local: bool,
    ) {
        let service = service_fn(|request| {
            let api = self.clone();
            async { Ok::<_, Infallible>(api.answer(request, &departure, local).await) }
        });
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE);
        // a client that breaks off is no concern of ours
        let _ = builder
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }

    async fn answer(
        self: Rc<Self>,
        request: Request<Incoming>,
        departure: &Departure,
        local: bool,
    ) -> Response<Body> {
        let caller = match (local, &self.tokens) {
            (true, _) => Ok(Some(Caller::Local)),
            (false, Some(tokens)) => {
                let header = request.headers().get(AUTHORIZATION);
                access::identify(tokens, header.map(|value| value.as_bytes()))
            }
            (false, None) => Ok(None),
        };
        let answer = match caller {
            Ok(Some(caller)) => self.route(request, departure, &caller).await,
            Ok(None) => Err(Refusal(
                StatusCode::UNAUTHORIZED,
                "a bearer token that is known here is needed".into(),
            )),
            Err(error) => {
                stderr::line(format_args!("sampan executor: {error}"));
                let why = "the tokens cannot be read; see the executor's log".into();
                Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, why))
            }
        };
        answer.unwrap_or_else(|Refusal(status, why)| {
            let mut response = Response::new(Body::whole(format!("{why}\n").into_bytes()));
            *response.status_mut() = status;
            if status == StatusCode::UNAUTHORIZED {
                let realm = hyper::header::HeaderValue::from_static("Bearer realm=\"sampan\"");
                let headers = response.headers_mut();
                headers.insert(WWW_AUTHENTICATE, realm);
                // nobody stays by asking again and again
                let close = hyper::header::HeaderValue::from_static("close");
                headers.insert(CONNECTION, close);
            }
            response
        })
    }

    async fn route(
        self: Rc<Self>,
        request: Request<Incoming>,
        departure: &Departure,
        caller: &Caller,
    ) -> Answer {
        let path = request.uri().path().to_string();
        match (request.method(), path.as_str()) {
            (&Method::POST, "/api/v1") => self.call(request, departure, caller).await,
            (&Method::GET, "/api/v1/logs") => {
                let logs = Logs::read(request.uri().query().unwrap_or_default())?;
                permit(caller, Verb::Logs, &logs.target.task)?;
                self.logs(request.headers(), logs, caller)
            }
            (&Method::GET, "/api/v1/tasks") => self.tasks(caller).await,
            (_, "/api/v1" | "/api/v1/logs" | "/api/v1/tasks") => Err(Refusal(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{path} is not asked with {}", request.method()),
            )),
            _ => Err(Refusal(
                StatusCode::NOT_FOUND,
                "there are /api/v1, /api/v1/logs and /api/v1/tasks".into(),
            )),
        }
    }

    async fn call(
        self: Rc<Self>,
        request: Request<Incoming>,
        departure: &Departure,
        caller: &Caller,
    ) -> Answer {
        let (parts, body) = request.into_parts();
        let header = |name: &str| {
            parts
                .headers
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        let Some(content) = header(CONTENT_TYPE.as_str()) else {
            return Err(Refusal::bad("Content-Type is missing"));
        };
        let kind = content.split(';').next().unwrap_or_default().trim();
        let unsupported = |what: &str| {
            let why = format!("{what}: application/json and application/x-protobuf are understood");
            Refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, why)
        };
        let encoding = |kind: &str| match kind {
            "application/json" => Some(Encoding::Json),
            "application/x-protobuf" => Some(Encoding::Protobuf),
            _ => None,
        };
        if kind == "application/recordio" {
            let message = header("message-content-type").unwrap_or("application/json");
            let encoding = encoding(message).ok_or_else(|| unsupported("Message-Content-Type"))?;
            let pieces = Pieces::new(body, encoding);
            return self.input(pieces, departure, caller).await;
        }
        let encoding = encoding(kind).ok_or_else(|| unsupported("Content-Type"))?;
        let body = tokio::time::timeout(BODY_PATIENCE, Limited::new(body, BODY_MAX).collect());
        let body = match body.await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => return Err(Refusal::bad(format!("the body: {error}"))),
            Err(_) => {
                let why = "the body does not come".into();
                return Err(Refusal(StatusCode::REQUEST_TIMEOUT, why));
            }
        };
        let call: Call = encoding
            .read("Call", &body)
            .map_err(|error| Refusal::bad(error.to_string()))?;
        match Order::read(call)? {
            Order::Session {
                id,
                target,
                program,
            } => {
                permit(caller, Verb::Exec, &target.task)?;
                self.exec(&parts.headers, id, &target, &program, caller)
            }
            Order::Output(path) => self.output(&parts.headers, &path, caller).await,
            Order::Wait(path) => {
                let session = self.session(&path, caller)?;
                let _place = self.stream_of(caller)?;
                let status = session.ended().await;
                use std::os::unix::process::ExitStatusExt;
                let reply = Reply {
                    r#type: Some(response::Type::WaitContainer.into()),
                    wait_container: Some(response::WaitContainer {
                        exit_status: status.map(ExitStatusExt::into_raw),
                    }),
                };
                let accept = header(ACCEPT.as_str());
                let encoding = order::accepted(accept).unwrap_or_default();
                whole(encoding.media_type(), encoding.write(&reply))
            }
            Order::Kill(path, signal) => {
                let sent = self.session(&path, caller)?.signal(signal);
                sent.map_err(|error| {
                    let why = format!("send signal {signal}: {error}");
                    Refusal(StatusCode::INTERNAL_SERVER_ERROR, why)
                })?;
                whole("text/plain", Vec::new())
            }
        }
    }

    /// The session that a path of names is, of this caller.
    fn session(&self, path: &[String], caller: &Caller) -> Result<Rc<Session>, Refusal> {
        let (verb, task) = order::needed(path, true);
        permit(caller, verb, task)?;
        let session = self.sessions.borrow().get(&path.join("/")).cloned();
        match session {
            Some(session) if session.caller == caller.name() => Ok(session),
            _ => Err(Refusal(
                StatusCode::NOT_FOUND,
                format!("no session {}", path.join("/")),
            )),
        }
    }

    fn has_session(&self, path: &[String]) -> bool {
        self.sessions.borrow().contains_key(&path.join("/"))
    }

    fn exec(
        self: Rc<Self>,
        headers: &HeaderMap,
        id: String,
        target: &Target,
        program: &Program,
        caller: &Caller,
    ) -> Answer {
        let encoding = streamed(headers)?;
        let (dir, services) = self.resolve(target)?;
        let service = only(target, &services)?;
        // by their names services are attached to
        if services
            .iter()
            .any(|it| id == format!("{}/{it}", target.task))
        {
            let why = format!("container_id: {id} is a service; choose another name");
            return Err(Refusal(StatusCode::CONFLICT, why));
        }
        let mut command = session::own(&self.folders);
        command.args(["-p", &dir.name, "exec", "--session"]);
        if program.terminal.is_some() {
            command.arg("--tty");
        }
        if let Some(user) = &program.user {
            command.arg(format!("--user={user}"));
        }
        // by name: what is in an argument can be read by every process of the machine
        for (name, value) in &program.env {
            let own = format!("{SESSION_ENV}{name}");
            command.arg(format!("--env={name}")).env(own, value);
        }
        // the program's words are the client's: none of them is an option of ours
        command.arg("--").arg(service).args(&program.command);
        self.run(id, command, program.terminal, encoding, caller)
    }

    fn logs(self: Rc<Self>, headers: &HeaderMap, logs: Logs, caller: &Caller) -> Answer {
        let encoding = streamed(headers)?;
        let (dir, services) = self.resolve(&logs.target)?;
        let mut command = session::own(&self.folders);
        command.args(["-p", &dir.name, "logs"]);
        command.args(&logs.options).arg("--").args(&services);
        let id = format!("logs/{:016x}", fastrand::u64(..));
        self.run(id, command, None, encoding, caller)
    }

    fn run(
        self: Rc<Self>,
        id: String,
        command: tokio::process::Command,
        terminal: Option<(u16, u16)>,
        encoding: Encoding,
        caller: &Caller,
    ) -> Answer {
        self.room_for(&id)?;
        let place = self.stream_of(caller)?;
        let started = session::start(command, terminal, caller.name());
        let (session, running) = started.map_err(|error| {
            Refusal(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("start a process: {error}"),
            )
        })?;
        let session = Rc::new(session);
        self.sessions
            .borrow_mut()
            .insert(id.clone(), session.clone());
        let (writer, body) = Writer::new(encoding, place);
        tokio::task::spawn_local(async move {
            running.run(session.clone(), writer).await;
            tokio::time::sleep(KEPT).await;
            let mut sessions = self.sessions.borrow_mut();
            let is = |it: &Rc<Session>| Rc::ptr_eq(it, &session);
            // it may have made room for another one of its name
            if sessions.get(&id).is_some_and(is) {
                sessions.remove(&id);
            }
        });
        Ok(stream(encoding, body))
    }

    /// One more stream.
    fn stream_of(&self, caller: &Caller) -> Result<Place, Refusal> {
        self.connections.stream(*caller == Caller::Local)
    }

    /// One more session; of those that ended the oldest one is forgotten before its time when there are too many.
    fn room_for(&self, id: &str) -> Result<(), Refusal> {
        let mut sessions = self.sessions.borrow_mut();
        if sessions.contains_key(id) {
            let why = format!("there is a session {id} already");
            return Err(Refusal(StatusCode::CONFLICT, why));
        }
        if sessions.len() < SESSIONS {
            return Ok(());
        }
        let over = sessions.iter().filter(|(_, session)| session.is_over());
        let over = over.min_by_key(|(_, session)| session.began);
        let Some(over) = over.map(|(id, _)| id.clone()) else {
            let why = format!("there are {SESSIONS} sessions already");
            return Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, why));
        };
        sessions.remove(&over);
        Ok(())
    }

    async fn output(&self, headers: &HeaderMap, path: &[String], caller: &Caller) -> Answer {
        let encoding = streamed(headers)?;
        let target = order::target(path)?;
        permit(caller, Verb::Attach, &target.task)?;
        let (dir, services) = self.resolve(&target)?;
        let service = only(&target, &services)?.to_string();
        let failed = |error: crate::pod::Error| {
            Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
        };
        let follower = Follower::new(&dir.service(&service), From::Now).map_err(failed)?;
        let Some(run) = follow::run(&dir, &service).map_err(failed)? else {
            let why = format!("service {service} does not run");
            return Err(Refusal(StatusCode::NOT_FOUND, why));
        };
        let pod = adopt::load(&dir).map_err(failed)?;
        let facts = pod
            .as_ref()
            .and_then(|pod| pod.project.services.get(&service));
        let input = match facts.map(|facts| (facts.tty, facts.stdin_open)) {
            Some((true, _)) => TERMINAL_INPUT,
            Some((false, true)) => PIPE_INPUT,
            _ => NO_INPUT,
        };
        let (writer, body) = Writer::new(encoding, self.stream_of(caller)?);
        tokio::task::spawn_local(async move {
            if let Err(error) = attach::output(dir, service, run, follower, writer).await {
                stderr::line(format_args!("sampan executor: {error}"));
            }
        });
        let mut answer = stream(encoding, body);
        let input = hyper::header::HeaderValue::from_static(input);
        answer.headers_mut().insert(INPUT, input);
        Ok(answer)
    }

    async fn input(&self, mut pieces: Pieces, departure: &Departure, caller: &Caller) -> Answer {
        let first = tokio::time::timeout(BODY_PATIENCE, pieces.next()).await;
        let missing = || Refusal::bad("the first record must be CONTAINER_ID");
        let call = first.map_err(|_| missing())??.ok_or_else(missing)?;
        let body = call.attach_container_input.unwrap_or_default();
        let id = match (body.r#type(), &body.container_id) {
            (First::ContainerId, Some(id)) => order::path(id)?,
            _ => return Err(missing()),
        };
        let sink = if self.has_session(&id) {
            let session = self.session(&id, caller)?;
            let claim = session.claim().ok_or_else(|| {
                let why = "somebody else has the input of this session";
                Refusal(StatusCode::CONFLICT, why.into())
            })?;
            Sink::Session(claim, session)
        } else {
            let target = order::target(&id).map_err(|_| {
                let why = format!("no session {}", id.join("/"));
                Refusal(StatusCode::NOT_FOUND, why)
            })?;
            permit(caller, Verb::Attach, &target.task)?;
            let (dir, services) = self.resolve(&target)?;
            let service = only(&target, &services)?.to_string();
            Sink::service(dir, service).await?
        };
        attach::input(pieces, sink, departure).await?;
        whole("text/plain", Vec::new())
    }

    async fn tasks(&self, caller: &Caller) -> Answer {
        let failed = |why: String| Refusal(StatusCode::INTERNAL_SERVER_ERROR, why);
        let mut command = session::own(&self.folders);
        command.args(["ps", "--all", "--all-pods", "--format", "json"]);
        let null = session::nothing().map_err(|error| failed(error.to_string()))?;
        command.stdin(null).stdout(std::process::Stdio::piped());
        let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
        let mut text = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            let read = stdout.take(LIST_MAX).read_to_end(&mut text).await;
            read.map_err(|error| failed(format!("list tasks: {error}")))?;
        }
        let rows: Vec<serde_json::Value> = serde_json::from_slice(&text)
            .map_err(|error| failed(format!("list tasks: {error}")))?;
        let own = self.pods()?;
        let rows: Vec<_> = rows
            .into_iter()
            .filter(|row| {
                let is = |name: &str| own.iter().any(|(dir, _)| dir.name == name);
                row["pod"].as_str().is_some_and(is)
                    && row["task"]
                        .as_str()
                        .is_some_and(|task| caller.may(Verb::Ps, task))
            })
            .collect();
        let text = serde_json::to_vec(&rows).map_err(|error| failed(error.to_string()))?;
        whole("application/json", text)
    }

    /// The pods of our owner.
    fn pods(&self) -> Result<Vec<(PodDir, Owner)>, Refusal> {
        #[derive(serde::Deserialize)]
        struct Owned {
            owner: Option<Owner>,
        }
        let failed = |error: crate::pod::Error| {
            Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
        };
        let mut pods = Vec::new();
        for name in adopt::names(&self.folders).map_err(failed)? {
            let dir = self.folders.pod(&name);
            let owned = record::read::<Owned>(&dir.record()).map_err(failed)?;
            let owner = owned.and_then(|owned| owned.owner);
            pods.extend(
                owner
                    .filter(|it| it.process == self.owner)
                    .map(|it| (dir, it)),
            );
        }
        Ok(pods)
    }

    /// Pod and services of a target.
    fn resolve(&self, target: &Target) -> Result<(PodDir, Vec<String>), Refusal> {
        let task = &target.task;
        let found = self.pods()?.into_iter().find_map(|(dir, owner)| {
            let services = owner.tasks.get(task)?.clone();
            Some((dir, services))
        });
        let missing = |why: String| Refusal(StatusCode::NOT_FOUND, why);
        let (dir, services) = found.ok_or_else(|| missing(format!("no task {task}")))?;
        match &target.service {
            None => Ok((dir, services)),
            Some(service) if services.contains(service) => Ok((dir, vec![service.clone()])),
            Some(service) => Err(missing(format!("task {task} has no service {service}"))),
        }
    }
}

/// The one service that is meant.
fn only<'a>(target: &Target, services: &'a [String]) -> Result<&'a str, Refusal> {
    match services {
        [one] => Ok(one),
        several => {
            let task = &target.task;
            let list: Vec<String> = several.iter().map(|it| format!("{task}/{it}")).collect();
            Err(Refusal::bad(format!(
                "task {task} has several services: {}",
                list.join(", ")
            )))
        }
    }
}

fn permit(caller: &Caller, verb: Verb, task: &str) -> Result<(), Refusal> {
    match caller.may(verb, task) {
        true => Ok(()),
        false => Err(Refusal(
            StatusCode::FORBIDDEN,
            format!("token {} does not allow {verb} of {task}", caller.name()),
        )),
    }
}

/// How the records of an answer are written.
fn streamed(headers: &HeaderMap) -> Result<Encoding, Refusal> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let not_acceptable = |why: &str| Refusal(StatusCode::NOT_ACCEPTABLE, why.into());
    let accepts = header(ACCEPT.as_str()).is_none_or(|accept| {
        ["application/recordio", "application/*", "*/*"]
            .iter()
            .any(|it| accept.contains(it))
    });
    if !accepts {
        return Err(not_acceptable("the answer is application/recordio"));
    }
    order::accepted(header("message-accept"))
        .ok_or_else(|| not_acceptable("Message-Accept: application/json or application/x-protobuf"))
}

fn stream(encoding: Encoding, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let value = hyper::header::HeaderValue::from_static;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, value("application/recordio"));
    headers.insert("message-content-type", value(encoding.media_type()));
    headers.insert(TRAILER, value(EXIT_CODE));
    response
}

fn whole(kind: &'static str, bytes: Vec<u8>) -> Answer {
    let mut response = Response::new(Body::whole(bytes));
    let kind = hyper::header::HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}
