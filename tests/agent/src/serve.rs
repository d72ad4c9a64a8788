//! Listens, reads requests and writes what the model answers.

use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::sync::mpsc::unbounded_channel;
use tokio_rustls::TlsAcceptor;

use crate::http::{Connection, Duplex};
use crate::ids::Dice;
use crate::model::{Reply, State, Stream};
use crate::stream::{self, Ended};

/// The state, and news of it.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    pub(crate) changed: Condvar,
}

impl Shared {
    pub(crate) fn new(state: State) -> Arc<Shared> {
        Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        })
    }

    /// The state. Who changes it tells so.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Changes the state and tells so.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }
}

/// Accepts on the agent's address until it is aborted.
pub(crate) async fn tcp(
    shared: Arc<Shared>,
    listener: std::net::TcpListener,
    tls: Option<TlsAcceptor>,
) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("runtime");
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            continue;
        };
        let _ = socket.set_nodelay(true);
        let tls = tls.clone();
        let own = shared.clone();
        spawn(&shared, async move {
            match tls {
                None => connection(own, Box::new(socket), false).await,
                Some(tls) => match tls.accept(socket).await {
                    Ok(socket) => connection(own, Box::new(socket), false).await,
                    Err(error) => {
                        own.change(|state| state.record("note", json!(format!("TLS: {error}"))))
                    }
                },
            }
        });
    }
}

/// Accepts on the domain socket until it is aborted.
pub(crate) async fn unix(shared: Arc<Shared>, listener: StdUnixListener) {
    let listener = tokio::net::UnixListener::from_std(listener).expect("runtime");
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            continue;
        };
        let own = shared.clone();
        spawn(&shared, async move {
            connection(own, Box::new(socket), true).await
        });
    }
}

fn spawn(shared: &Arc<Shared>, task: impl Future<Output = ()> + Send + 'static) {
    let handle = tokio::spawn(task).abort_handle();
    let mut state = shared.lock();
    state
        .connections
        .retain(|(handle, _)| !handle.is_finished());
    state.connections.push((handle, false));
}

/// Requests of one connection, one after the other.
async fn connection(shared: Arc<Shared>, io: Box<dyn Duplex>, socket: bool) {
    let mut connection = Connection::new(io);
    loop {
        let request = match connection.request().await {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(error) => {
                // a peer that is killed is no wrongdoer
                return shared
                    .change(|state| state.record("note", json!(format!("HTTP: {error}"))));
            }
        };
        let reply = shared.change(|state| {
            let reply = state.request(&request, socket);
            if let Reply::Answer(answer) = &reply {
                let text = format!("{} {}", answer.code, answer.body);
                state.record("answer", json!(text.trim_end()));
                if answer.code >= 300 {
                    state.refusals.push((answer.code, answer.body.clone()));
                }
            }
            reply
        });
        match reply {
            Reply::Answer(answer) => {
                if connection.answer(&answer).await.is_err() || request.last() {
                    return;
                }
            }
            Reply::Stream(encoding, call) => {
                return stream(shared, connection, encoding, &call).await;
            }
            Reply::Close => return,
            Reply::Hang => std::future::pending().await,
        }
    }
}

async fn stream(
    shared: Arc<Shared>,
    mut connection: Connection,
    encoding: crate::codec::Encoding,
    call: &serde_json::Value,
) {
    if connection.ahead() {
        shared.change(|state| state.violation("something follows SUBSCRIBE on its connection"));
    }
    let (out, events) = unbounded_channel();
    let (number, dice) = shared.change(|state| {
        let number = state.subscriptions + 1;
        if let Some(id) = tokio::task::try_id() {
            for (handle, is_stream) in &mut state.connections {
                *is_stream |= handle.id() == id;
            }
        }
        let dice = state.settings.cut.map(|seed| Dice::new(seed + number));
        state.subscribe(
            call,
            Stream {
                number,
                out,
                encoding,
            },
        );
        (number, dice)
    });
    let ended = match connection.open(encoding.media_type()).await {
        Ok(()) => stream::write(&mut connection, events, dice).await,
        Err(_) => Ended::Executor,
    };
    shared.change(|state| {
        if state
            .stream
            .as_ref()
            .is_some_and(|stream| stream.number == number)
        {
            state.stream = None;
        }
        if ended == Ended::Talked {
            state.violation("a call on the connection of the stream");
        }
        state.record("stream", json!(format!("{number} ended by {ended:?}")));
    });
}

/// A certificate authority, and a server's certificate for 127.0.0.1, made in `folder` with openssl(1).
pub(crate) fn tls(folder: &Path) -> TlsAcceptor {
    let openssl = |arguments: &str| {
        let run = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(folder)
            .output();
        let run = run.expect("openssl");
        assert!(
            run.status.success(),
            "{}",
            String::from_utf8_lossy(&run.stderr)
        );
    };
    let new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
    openssl(&format!(
        "{new} -keyout ca.key -out ca.pem -subj /CN=test-authority"
    ));
    openssl(&format!(
        "{new} -keyout agent.key -out agent.pem -subj /CN=agent -CA ca.pem -CAkey ca.key \
         -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE"
    ));
    let key = PrivateKeyDer::from_pem_file(folder.join("agent.key")).expect("key");
    let certificate = CertificateDer::from_pem_file(folder.join("agent.pem")).expect("certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a pair");
    TlsAcceptor::from(Arc::new(config))
}
