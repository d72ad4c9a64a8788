use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};

use super::*;
use crate::executor::mesos::environment::{self, Tls};
use crate::executor::mesos::proto::{ExecutorId, FrameworkId, call, event};

const HEARTBEAT: &str = "20\n{\"type\":\"HEARTBEAT\"}";
const ACCEPTED: &str = "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n";
pub(in crate::executor::mesos) const STREAM: &str =
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n";

pub(in crate::executor::mesos) fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

fn environment(endpoint: &str, token: Option<&str>) -> Environment {
    let variables = [
        ("MESOS_FRAMEWORK_ID", "f"),
        ("MESOS_EXECUTOR_ID", "e"),
        ("MESOS_SLAVE_ID", "a"),
        ("MESOS_SLAVE_PID", "slave(1)@127.0.0.1:5051"),
        ("MESOS_SANDBOX", "/s"),
        ("MESOS_AGENT_ENDPOINT", endpoint),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let variables = BTreeMap::from(variables);
    environment::Environment::read(&variables, token.map(str::to_owned)).unwrap()
}

pub(in crate::executor::mesos) fn call(kind: call::Type) -> Call {
    Call {
        executor_id: ExecutorId {
            value: "e".to_owned(),
        },
        framework_id: FrameworkId {
            value: "f".to_owned(),
        },
        r#type: Some(kind.into()),
        ..Call::default()
    }
}

async fn subscribe(agent: &Agent) -> Result<(Events, Calls), Error> {
    agent.subscribe(&call(call::Type::Subscribe)).await
}

/// Head and body of a request; `None` at the end.
pub(in crate::executor::mesos) async fn request(
    stream: &mut (impl AsyncRead + Unpin),
) -> Option<(String, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length = head.split("content-length: ").nth(1).unwrap();
    let mut body = vec![0; length.lines().next().unwrap().parse().unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    Some((head, body))
}

/// Listens, and gives the answers in order: the first to SUBSCRIBE, each further one to a call. Then both connections are closed, the
/// calls' one first when `calls_first`. Gives the heads of the requests.
async fn agent<S: AsyncRead + AsyncWrite + Unpin>(
    mut first: S,
    mut second: S,
    answers: &[&str],
    calls_first: bool,
) -> Vec<String> {
    let mut heads = Vec::new();
    let (subscribe, others) = answers.split_first().unwrap();
    heads.push(request(&mut first).await.unwrap().0);
    first.write_all(subscribe.as_bytes()).await.unwrap();
    for answer in others {
        heads.push(request(&mut second).await.unwrap().0);
        second.write_all(answer.as_bytes()).await.unwrap();
    }
    if calls_first {
        drop(second);
        // until the other side has closed it
        let _ = first.read_u8().await;
    } else {
        drop(first);
        let _ = second.read_u8().await;
    }
    heads
}

async fn tcp(listener: TcpListener, answers: Vec<String>, calls_first: bool) -> Vec<String> {
    let (first, _) = listener.accept().await.unwrap();
    let (second, _) = listener.accept().await.unwrap();
    let answers: Vec<&str> = answers.iter().map(String::as_str).collect();
    agent(first, second, &answers, calls_first).await
}

pub(in crate::executor::mesos) async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

pub(in crate::executor::mesos) fn json(endpoint: &str, token: Option<&str>) -> Agent {
    Agent::new(&environment(endpoint, token), Encoding::Json).unwrap()
}

#[tokio::test]
async fn stream_and_calls() {
    let (listener, address) = listener().await;
    // borders of chunks have nothing to do with borders of records
    let (one, two) = HEARTBEAT.split_at(7);
    let both = format!("{two}{HEARTBEAT}");
    let stream = format!(
        "{STREAM}{}{}{}",
        chunk(one),
        chunk(&both),
        chunk("19\n{\"type\":\"SHUTDOWN\"}")
    );
    let answers = vec![stream, ACCEPTED.to_owned(), ACCEPTED.to_owned()];
    let served = tokio::spawn(tcp(listener, answers, false));
    let (mut events, mut calls) = subscribe(&json(&address, Some("t.o.k"))).await.unwrap();
    for _ in 0..2 {
        calls.send(&call(call::Type::Heartbeat)).await.unwrap();
    }
    for expected in [
        event::Type::Heartbeat,
        event::Type::Heartbeat,
        event::Type::Shutdown,
    ] {
        assert_eq!(events.next().await.unwrap().unwrap().r#type(), expected);
    }
    // closed without the last chunk
    assert!(matches!(events.next().await, Err(Error::Lost { .. })));
    let lost = calls.send(&call(call::Type::Heartbeat)).await.unwrap_err();
    assert!(
        matches!(lost, Error::Lost { .. }) && lost.is_passing(),
        "{lost}"
    );
    drop((events, calls));
    for head in served.await.unwrap() {
        assert!(
            head.starts_with("post /slave(1)/api/v1/executor http/1.1\r\n"),
            "{head}"
        );
        for line in [
            format!("host: {address}"),
            "content-type: application/json".to_owned(),
            "accept: application/json".to_owned(),
            "connection: keep-alive".to_owned(),
            "authorization: bearer t.o.k".to_owned(),
        ] {
            assert!(head.contains(&format!("{line}\r\n")), "{line} in {head}");
        }
    }
}

#[tokio::test]
async fn protobuf() {
    let (listener, address) = listener().await;
    // type: HEARTBEAT
    let stream = format!(
        "{}{}0\r\n\r\n",
        STREAM.replace("json", "x-protobuf"),
        chunk("2\n\u{8}\u{9}")
    );
    let served = tokio::spawn(tcp(listener, vec![stream], false));
    let agent = Agent::new(&environment(&address, None), Encoding::Protobuf).unwrap();
    let (mut events, _calls) = subscribe(&agent).await.unwrap();
    assert_eq!(
        events.next().await.unwrap().unwrap().r#type(),
        event::Type::Heartbeat
    );
    assert_eq!(events.next().await.unwrap(), None);
    drop((events, _calls));
    let head = served.await.unwrap().remove(0);
    assert!(
        head.contains("accept: application/x-protobuf\r\n"),
        "{head}"
    );
    assert!(!head.contains("authorization"), "{head}");
}

#[tokio::test]
async fn losing_the_calls_is_losing_the_events() {
    let (listener, address) = listener().await;
    let stream = format!("{STREAM}{}", chunk(HEARTBEAT));
    let served = tokio::spawn(tcp(listener, vec![stream, ACCEPTED.to_owned()], true));
    let (mut events, mut calls) = subscribe(&json(&address, None)).await.unwrap();
    calls.send(&call(call::Type::Heartbeat)).await.unwrap();
    // what came before is not lost
    assert!(events.next().await.unwrap().is_some());
    assert!(matches!(
        events.next().await.unwrap_err(),
        Error::Lost { .. }
    ));
    drop(events);
    assert!(matches!(
        calls.send(&call(call::Type::Heartbeat)).await,
        Err(Error::Lost { .. })
    ));
    served.await.unwrap();
}

#[tokio::test]
async fn refusals() {
    for (status, kind) in [
        (400, Kind::Orphan),
        (401, Kind::Forbidden),
        (403, Kind::Forbidden),
        (404, Kind::NotReady),
        (405, Kind::Defect),
        (406, Kind::Defect),
        (415, Kind::Defect),
        (501, Kind::Defect),
        (503, Kind::NotReady),
        (500, Kind::NotReady),
        // not what SUBSCRIBE is answered with
        (202, Kind::Defect),
    ] {
        let (listener, address) = listener().await;
        let words = "Executor cannot be found";
        let answer = format!(
            "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{words}",
            words.len()
        );
        let served = tokio::spawn(tcp(listener, vec![answer], false));
        let Err(Error::Refused(refused)) = subscribe(&json(&address, None)).await else {
            panic!("{status} is a refusal")
        };
        assert_eq!(
            (refused.kind, refused.status, refused.words.as_str()),
            (kind, status, words)
        );
        assert_eq!(Error::Refused(refused).is_passing(), kind == Kind::NotReady);
        served.await.unwrap();
    }
}

#[tokio::test]
async fn a_refused_call_leaves_the_connection() {
    let (listener, address) = listener().await;
    let refusal = "HTTP/1.1 403 Forbidden\r\nContent-Length: 26\r\n\r\nExecutor is not subscribed";
    let answers = [STREAM, refusal, ACCEPTED].map(str::to_owned).to_vec();
    let served = tokio::spawn(tcp(listener, answers, false));
    let (events, mut calls) = subscribe(&json(&address, None)).await.unwrap();
    let Err(Error::Refused(refused)) = calls.send(&call(call::Type::Message)).await else {
        panic!("403 is a refusal")
    };
    assert_eq!(refused.kind, Kind::NotSubscribed);
    calls.send(&call(call::Type::Message)).await.unwrap();
    drop((events, calls));
    served.await.unwrap();
}

#[tokio::test]
async fn broken_streams() {
    for (stream, ended) in [
        (
            "x",
            "the events of the agent at {} cannot be read: expected the length of a record, found \"x\"",
        ),
        (
            "0\n",
            "the events of the agent at {} cannot be read: a record has no bytes",
        ),
        (
            "14\n{\"type\":\"KILL\"",
            "the events of the agent at {} cannot be read: application/json message Event cannot be read: EOF while parsing an object at line 1 column 14",
        ),
        (
            "9\n{",
            "the connection to the agent at {} is lost: it ended within an event",
        ),
    ] {
        let (listener, address) = listener().await;
        let answer = format!("{STREAM}{}0\r\n\r\n", chunk(stream));
        let served = tokio::spawn(tcp(listener, vec![answer], false));
        let (mut events, calls) = subscribe(&json(&address, None)).await.unwrap();
        let error = events.next().await.unwrap_err();
        assert_eq!(error.to_string(), ended.replace("{}", &address));
        drop((events, calls));
        served.await.unwrap();
    }
}

#[tokio::test]
async fn another_encoding() {
    let (listener, address) = listener().await;
    let served = tokio::spawn(tcp(
        listener,
        vec![STREAM.replace("json", "x-protobuf")],
        false,
    ));
    let error = subscribe(&json(&address, None))
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.ends_with("they are application/x-protobuf, not application/json"),
        "{error}"
    );
    served.await.unwrap();
}

#[tokio::test]
async fn nobody_listens() {
    let (listener, address) = listener().await;
    drop(listener);
    let error = subscribe(&json(&address, None)).await.err().unwrap();
    assert!(
        matches!(error, Error::Unreachable { .. }) && error.is_passing(),
        "{error}"
    );
}

#[tokio::test]
async fn redirects() {
    let redirect = |to: &str| {
        format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n")
    };
    // to another host the token is not sent, to the same one it is
    let (old, old_address) = listener().await;
    let (new, new_address) = listener().await;
    let to_new = redirect(&format!("http://{new_address}/here"));
    let served = tokio::spawn(async move {
        let (first, _) = old.accept().await.unwrap();
        let (second, _) = old.accept().await.unwrap();
        let mut heads = agent(first, second, &[&redirect("/slave(2)/x")], false).await;
        heads.extend(tcp(old, vec![to_new], false).await);
        heads.extend(tcp(new, vec![STREAM.to_owned(), ACCEPTED.to_owned()], false).await);
        heads
    });
    let (events, mut calls) = subscribe(&json(&old_address, Some("tok"))).await.unwrap();
    calls.send(&call(call::Type::Heartbeat)).await.unwrap();
    drop((events, calls));
    let seen: Vec<_> = served.await.unwrap();
    let seen = seen.iter().map(|head| {
        let path = head.split(' ').nth(1).unwrap();
        (path, head.contains("authorization: bearer tok\r\n"))
    });
    let expected = [
        ("/slave(1)/api/v1/executor", true),
        ("/slave(2)/x", true),
        ("/here", false),
        ("/here", false),
    ];
    assert_eq!(seen.collect::<Vec<_>>(), expected);

    // in a circle
    let (listener, address) = listener().await;
    let served = tokio::spawn(async move {
        for _ in 0..=REDIRECTS_MAX {
            let (first, _) = listener.accept().await.unwrap();
            let (second, _) = listener.accept().await.unwrap();
            let answer = "HTTP/1.1 307 X\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n";
            agent(first, second, &[answer], false).await;
        }
    });
    let error = subscribe(&json(&address, None)).await.err().unwrap();
    assert!(
        error.to_string().ends_with("redirected more than 5 times"),
        "{error}"
    );
    served.await.unwrap();
}

#[tokio::test]
async fn sockets() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("x".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    let short = folder.path().join("agent.sock");
    let listener = UnixListener::bind(&short).unwrap();
    // the same socket by a path that no address has room for
    let long = deep.join("agent.sock");
    std::os::unix::fs::symlink(&short, &long).unwrap();
    for path in [short, long] {
        let mut environment = environment("127.0.0.1:1", Some("tok"));
        environment.domain_socket = Some(path);
        let served = async {
            let (first, _) = listener.accept().await.unwrap();
            let (second, _) = listener.accept().await.unwrap();
            agent(first, second, &[STREAM, ACCEPTED], false).await
        };
        let agent = Agent::new(&environment, Encoding::Json).unwrap();
        let asked = async {
            let (_events, mut calls) = subscribe(&agent).await.unwrap();
            calls.send(&call(call::Type::Heartbeat)).await.unwrap();
        };
        let (heads, ()) = tokio::join!(served, asked);
        for head in heads {
            assert!(
                head.starts_with("post /slave(1)/api/v1/executor "),
                "{head}"
            );
            assert!(head.contains("authorization: bearer tok\r\n"), "{head}");
        }
    }
}

/// An authority, and a certificate of it for the name `agent` and for 127.0.0.1.
fn certificates(folder: &Path) {
    let script = "
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -subj /CN=ca -days 2
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out agent.csr -subj /CN=agent
        printf 'subjectAltName=DNS:agent' > extensions
        openssl x509 -req -in agent.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile extensions -days 2 -out cert.pem
    ";
    let mut shell = Command::new("sh");
    let output = shell
        .args(["-ec", script])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn server(folder: &Path) -> tokio_rustls::TlsAcceptor {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let certificate = CertificateDer::from_pem_file(folder.join("cert.pem")).unwrap();
    let authority = CertificateDer::from_pem_file(folder.join("ca.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::clone(&provider),
    );
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        // the client has to have a certificate
        .with_client_cert_verifier(clients.build().unwrap())
        .with_single_cert(vec![certificate], key)
        .unwrap();
    Arc::new(config).into()
}

fn trusting(
    endpoint: &str,
    ca_file: PathBuf,
    folder: &Path,
    name: Option<&str>,
) -> Result<Agent, Error> {
    let mut environment = environment(endpoint, Some("tok"));
    environment.tls = Some(Tls {
        ca_file,
        identity: Some((folder.join("cert.pem"), folder.join("key.pem"))),
        name: name.map(str::to_owned),
    });
    Agent::new(&environment, Encoding::Json)
}

#[tokio::test]
async fn tls() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = folder.path();
    certificates(folder);
    certificates(other.path());
    let acceptor = server(folder);
    let ca = folder.join("ca.pem");
    let (listener, address) = listener().await;
    let served = tokio::spawn(async move {
        let (first, _) = listener.accept().await.unwrap();
        let first = acceptor.accept(first).await.unwrap();
        let (second, _) = listener.accept().await.unwrap();
        let second = acceptor.accept(second).await.unwrap();
        let heads = agent(first, second, &[STREAM, ACCEPTED], false).await;
        // twice somebody who does not believe us
        for _ in 0..2 {
            let (stream, _) = listener.accept().await.unwrap();
            acceptor.accept(stream).await.unwrap_err();
        }
        heads
    });
    let agent = trusting(&address, ca.clone(), folder, Some("agent")).unwrap();
    let (events, mut calls) = subscribe(&agent).await.unwrap();
    calls.send(&call(call::Type::Heartbeat)).await.unwrap();
    drop((events, calls));
    for (ca_file, name, why) in [
        (other.path().join("ca.pem"), Some("agent"), "BadSignature"),
        (ca, None, "not valid for name"),
    ] {
        let agent = trusting(&address, ca_file, folder, name).unwrap();
        let error = subscribe(&agent).await.err().unwrap();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    let heads = served.await.unwrap();
    assert!(
        heads[0].contains("authorization: bearer tok\r\n"),
        "{heads:?}"
    );
}

#[tokio::test]
async fn never_without_tls() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let (listener, address) = listener().await;
    // an agent that speaks plain HTTP hears nothing that could be read
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heard = vec![0; 5];
        stream.read_exact(&mut heard).await.unwrap();
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
        heard
    });
    let agent = trusting(&address, folder.path().join("ca.pem"), folder.path(), None).unwrap();
    let error = subscribe(&agent).await.err().unwrap();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    // a handshake record
    assert_eq!(served.await.unwrap()[..2], [22, 3]);

    let missing = trusting(&address, "/nowhere.pem".into(), folder.path(), None)
        .err()
        .unwrap();
    assert!(
        missing
            .to_string()
            .starts_with("certificates in /nowhere.pem: "),
        "{missing}"
    );
    assert!(!missing.is_passing());
}
