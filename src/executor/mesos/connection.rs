//! The two connections to an agent: one whose answer is the stream of events, one for all other calls.
//!
//! Owns addresses, TLS, headers, redirects and what each status code means. An agent that has shut us down is left one connection, for calls.
//!
//! *Invariants:* never a fall-back from https to http, not by redirect either; the token goes to the agent alone. Losing either
//! connection is losing both: what is left of the other then reports [`Error::Lost`]. A host that vanishes is noticed by TCP's own
//! probes within [`SILENCE`], not by events, which may be half an hour apart. Names are never asked of the C library.
//!
//! Leaves to others: when to connect again, what is sent meanwhile ([`Error::is_passing`] tells whether it may help).

mod address;
mod refusal;
#[cfg(test)]
pub(super) mod tests;

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderValue, LOCATION};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::environment::{Environment, Token};
use super::proto::{Call, Encoding, Event};
use super::recordio::Records;
use address::{Address, Stream};
pub use refusal::{Kind, Refused};

/// Time without an answer of the agent's machine, or without an answer to a call, after which a connection is lost.
pub const SILENCE: Duration = Duration::from_secs(60);
/// Time for one connection to come up, names and TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Redirects that are followed to reach the agent.
const REDIRECTS_MAX: usize = 5;
/// Bytes of an answer that says no.
const WORDS_MAX: usize = 4 << 10;

/// Why there is no event, or why a call did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings cannot work: a file that is no certificate, say.
    #[error("{0}")]
    Settings(String),
    /// No connection, or not two.
    #[error("cannot connect to the agent at {agent}: {why}")]
    Unreachable {
        /// Its address.
        agent: String,
        /// The cause.
        why: String,
    },
    /// There was a connection. A call that was under way may have arrived.
    #[error("the connection to the agent at {agent} is lost: {why}")]
    Lost {
        /// Its address.
        agent: String,
        /// The cause.
        why: String,
    },
    /// What came is no event stream.
    #[error("the events of the agent at {agent} cannot be read: {why}")]
    Unreadable {
        /// Its address.
        agent: String,
        /// The cause.
        why: String,
    },
    /// An answer that says no.
    #[error("{0}")]
    Refused(Refused),
}

impl Error {
    /// Whether connecting again later may help.
    pub fn is_passing(&self) -> bool {
        match self {
            Error::Settings(_) => false,
            Error::Unreachable { .. } | Error::Lost { .. } | Error::Unreadable { .. } => true,
            Error::Refused(refused) => refused.kind.is_passing(),
        }
    }
}

/// Where the agent is and how it is spoken to.
#[derive(Clone)]
pub struct Agent {
    address: Address,
    path: String,
    token: Option<Token>,
    tls: Option<address::Trust>,
    encoding: Encoding,
}

/// The events of one subscription.
pub struct Events {
    agent: String,
    encoding: Encoding,
    body: Incoming,
    records: Records,
    lost: watch::Receiver<bool>,
    _driver: Driver,
}

/// The connection for all calls but SUBSCRIBE.
pub struct Calls {
    agent: Agent,
    sender: SendRequest<Full<Bytes>>,
    lost: watch::Receiver<bool>,
    _driver: Driver,
}

/// What moves the bytes of a connection; ends with it.
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tells the other connection when this one is gone, whatever ended it.
struct Gone(Arc<watch::Sender<bool>>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

impl Agent {
    /// Reads the files of certificates.
    pub fn new(environment: &Environment, encoding: Encoding) -> Result<Agent, Error> {
        let address = match &environment.domain_socket {
            Some(path) => Address::Socket(path.clone()),
            None => Address::Tcp(environment.endpoint.clone()),
        };
        let tls = match (&environment.tls, &address) {
            (Some(tls), Address::Tcp(_)) => {
                Some(address::Trust::new(tls).map_err(Error::Settings)?)
            }
            // a socket of this machine always speaks plain HTTP
            _ => None,
        };
        Ok(Agent {
            address,
            // the short form without the process is not served on the agent's socket
            path: format!("/{}/api/v1/executor", environment.process),
            token: environment.token.clone(),
            tls,
            encoding,
        })
    }

    /// Opens both connections and subscribes with `call`; comes back when the agent has accepted that. Must run on a tokio runtime.
    pub async fn subscribe(&self, call: &Call) -> Result<(Events, Calls), Error> {
        let mut agent = self.clone();
        for _ in 0..=REDIRECTS_MAX {
            let (lost, seen) = watch::channel(false);
            let lost = Arc::new(lost);
            let (mut sender, driver) = agent.connect(&lost).await?;
            let (calls, calls_driver) = agent.connect(&lost).await?;
            let answer = agent.ask(&mut sender, call, &mut seen.clone()).await?;
            if answer.status() == StatusCode::TEMPORARY_REDIRECT {
                agent = agent.moved(call, &answer)?;
                continue;
            }
            let answer = agent.accepted(call, answer, StatusCode::OK).await?;
            agent.understood(&answer)?;
            let events = Events {
                agent: agent.address.to_string(),
                encoding: agent.encoding,
                body: answer.into_body(),
                records: Records::default(),
                lost: seen.clone(),
                _driver: driver,
            };
            let calls = Calls {
                agent,
                sender: calls,
                lost: seen,
                _driver: calls_driver,
            };
            return Ok((events, calls));
        }
        Err(Error::Unreachable {
            agent: self.address.to_string(),
            why: format!("redirected more than {REDIRECTS_MAX} times"),
        })
    }

    async fn connect(
        &self,
        lost: &Arc<watch::Sender<bool>>,
    ) -> Result<(SendRequest<Full<Bytes>>, Driver), Error> {
        let open = async {
            match self.address.connect(self.tls.as_ref()).await? {
                Stream::Tcp(stream) => started(stream, lost).await,
                Stream::Tls(stream) => started(*stream, lost).await,
                Stream::Socket(stream) => started(stream, lost).await,
            }
        };
        let opened = match timeout(CONNECT_TIMEOUT, open).await {
            Ok(opened) => opened,
            Err(_) => Err(format!(
                "no answer within {} seconds",
                CONNECT_TIMEOUT.as_secs()
            )),
        };
        let agent = || self.address.to_string();
        opened.map_err(|why| Error::Unreachable {
            agent: agent(),
            why,
        })
    }

    fn lost(&self, why: impl Into<String>) -> Error {
        let agent = self.address.to_string();
        Error::Lost {
            agent,
            why: why.into(),
        }
    }

    fn request(&self, call: &Call) -> Result<Request<Full<Bytes>>, Error> {
        let media = self.encoding.media_type();
        let mut request = Request::post(&self.path)
            .header(HOST, self.address.authority())
            .header(CONNECTION, "keep-alive")
            .header(CONTENT_TYPE, media)
            .header(ACCEPT, media);
        if let Some(token) = &self.token {
            let value = HeaderValue::try_from(format!("Bearer {}", token.reveal()));
            let mut value =
                value.map_err(|_| Error::Settings("the token is no header".to_owned()))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let body = Full::new(Bytes::from(self.encoding.encode(call)));
        let request = request.body(body);
        request.map_err(|error| Error::Settings(format!("the agent's address: {error}")))
    }

    /// The head of the answer.
    async fn ask(
        &self,
        sender: &mut SendRequest<Full<Bytes>>,
        call: &Call,
        lost: &mut watch::Receiver<bool>,
    ) -> Result<Response<Incoming>, Error> {
        let request = self.request(call)?;
        let answer = async {
            sender.ready().await?;
            sender.send_request(request).await
        };
        tokio::select! {
            biased;
            answer = timeout(SILENCE, answer) => match answer {
                Ok(answer) => answer.map_err(|error| self.lost(causes(&error))),
                Err(_) => Err(self.lost(format!("no answer within {} seconds", SILENCE.as_secs()))),
            },
            () = gone(lost) => Err(self.lost(OTHER)),
        }
    }

    /// The answer, if it has the status that means yes.
    async fn accepted(
        &self,
        call: &Call,
        answer: Response<Incoming>,
        yes: StatusCode,
    ) -> Result<Response<Incoming>, Error> {
        let status = answer.status();
        if status == yes {
            return Ok(answer);
        }
        let body = Limited::new(answer.into_body(), WORDS_MAX).collect();
        let words = match timeout(CONNECT_TIMEOUT, body).await {
            Ok(Ok(words)) => String::from_utf8_lossy(&words.to_bytes()).into_owned(),
            // the status says enough
            Ok(Err(_)) | Err(_) => String::new(),
        };
        let refused = Refused::new(call.r#type(), status.as_u16(), &words);
        Err(Error::Refused(refused))
    }

    /// The stream has the encoding that was asked for, as far as it is told.
    fn understood(&self, answer: &Response<Incoming>) -> Result<(), Error> {
        let (asked, agent) = (self.encoding.media_type(), self.address.to_string());
        match answer.headers().get(CONTENT_TYPE) {
            Some(found) if !found.as_bytes().starts_with(asked.as_bytes()) => {
                let found = found.to_str().unwrap_or("something unreadable");
                let why = format!("they are {found}, not {asked}");
                Err(Error::Unreadable { agent, why })
            }
            _ => Ok(()),
        }
    }

    /// Where a redirect leads. The token stays with the agent that it is for.
    fn moved(&self, call: &Call, answer: &Response<Incoming>) -> Result<Agent, Error> {
        let location = answer
            .headers()
            .get(LOCATION)
            .and_then(|it| it.to_str().ok());
        let location = location.unwrap_or_default();
        let refused = |why: &str| {
            let words = format!("redirect to {location:?}: {why}");
            Error::Refused(Refused::new(
                call.r#type(),
                answer.status().as_u16(),
                &words,
            ))
        };
        let next = address::redirected(&self.address, self.tls.is_some(), location);
        let (address, path) = next.map_err(refused)?;
        let same = address == self.address;
        Ok(Agent {
            token: self.token.clone().filter(|_| same),
            address,
            path,
            ..self.clone()
        })
    }
}

impl Events {
    /// The next event; `None` when the agent has closed the stream. Cancelling it loses nothing.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            match self.records.next_record() {
                Ok(Some(record)) => {
                    let event = self.encoding.decode(record);
                    return event
                        .map(Some)
                        .map_err(|error| self.unreadable(error.to_string()));
                }
                Ok(None) => {}
                Err(error) => return Err(self.unreadable(error.to_string())),
            }
            let frame = tokio::select! {
                biased;
                frame = self.body.frame() => frame,
                () = gone(&mut self.lost) => return Err(self.broken(OTHER.to_owned())),
            };
            match frame {
                // trailers mean nothing here
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        self.records.push(bytes);
                    }
                }
                Some(Err(error)) => return Err(self.broken(causes(&error))),
                None if self.records.is_within() => {
                    return Err(self.broken("it ended within an event".to_owned()));
                }
                None => return Ok(None),
            }
        }
    }

    fn broken(&self, why: String) -> Error {
        let agent = self.agent.clone();
        Error::Lost { agent, why }
    }

    fn unreadable(&self, why: String) -> Error {
        let agent = self.agent.clone();
        Error::Unreadable { agent, why }
    }
}

impl Calls {
    /// Another connection for calls to the same agent, which depends on no other.
    pub async fn again(&self) -> Result<Calls, Error> {
        let (lost, seen) = watch::channel(false);
        let (sender, driver) = self.agent.connect(&Arc::new(lost)).await?;
        Ok(Calls {
            agent: self.agent.clone(),
            sender,
            lost: seen,
            _driver: driver,
        })
    }

    /// Sends any call but SUBSCRIBE; comes back when the agent has taken it in, which is no promise that it keeps it. After a
    /// refusal the connection is still good; after a cancelled call it is not.
    pub async fn send(&mut self, call: &Call) -> Result<(), Error> {
        let answer = self
            .agent
            .ask(&mut self.sender, call, &mut self.lost)
            .await?;
        let answer = self
            .agent
            .accepted(call, answer, StatusCode::ACCEPTED)
            .await?;
        // read to its end, which frees the connection for the next call
        let body = Limited::new(answer.into_body(), WORDS_MAX).collect();
        match timeout(SILENCE, body).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.agent.lost(error.to_string())),
            Err(_) => Err(self.agent.lost("an answer without end")),
        }
    }
}

/// Why one of two connections is not used any more.
const OTHER: &str = "the other connection of the two has ended";

/// Waits for the end of either connection.
async fn gone(lost: &mut watch::Receiver<bool>) {
    // without sender they are gone, too
    let _ = lost.wait_for(|lost| *lost).await;
}

async fn started<S>(
    stream: S,
    lost: &Arc<watch::Sender<bool>>,
) -> Result<(SendRequest<Full<Bytes>>, Driver), String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let shaken = http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = shaken.map_err(|error| causes(&error))?;
    let gone = Gone(Arc::clone(lost));
    let task = tokio::spawn(async move {
        let _gone = gone;
        // its error also ends the request or the body, where it is reported
        let _ = connection.await;
    });
    Ok((sender, Driver(task.abort_handle())))
}

/// An error with its causes.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
