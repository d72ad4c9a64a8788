//! A GET request as a check. Redirects are followed as long as they stay in the pod: to the same address, the loopback, or
//! the name that the request goes to. One that leads elsewhere is an answer like another: its own status counts.

use std::net::IpAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{HOST, LOCATION, USER_AGENT};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::super::super::record::Measured;
use super::super::machine::Tested;
use super::tls::Tls;
use super::{MESSAGE, Place, Unconnected};
use crate::compose::project::HttpTest;

/// Most redirects of one check.
const REDIRECTS: usize = 10;
/// Most bytes of an answer's head.
const HEAD: usize = 64 << 10;
/// Most bytes of a body that are read, so that the server need not see a broken connection.
const BODY: usize = 64 << 10;
/// Longest time for that.
const BODY_TIME: Duration = Duration::from_secs(1);

/// Makes the request.
pub async fn get(place: &Place, tls: &Tls, test: &HttpTest) -> Tested {
    let mut target = Target::first(test);
    let mut left = REDIRECTS;
    let (ran, status_code, message) = loop {
        let answer = match ask(place, tls, test, &target).await {
            Ok(answer) => answer,
            Err(Unconnected::Refused(message)) => break (true, None, message),
            Err(Unconnected::NoSocket(message)) => break (false, None, message),
        };
        let wanted = test.statuses.contains(&answer.status.as_u16());
        let next = answer.location.as_deref().filter(|_| !wanted);
        match next.and_then(|location| target.redirected(location)) {
            Some(_) if left == 0 => break (true, None, format!("more than {REDIRECTS} redirects")),
            Some(next) => {
                left -= 1;
                target = next;
            }
            None => break (true, Some(answer.status.as_u16()), answer.message),
        }
    };
    Tested {
        ran,
        passed: status_code.is_some_and(|status| passes(test, status)),
        measured: Measured::Http { status_code },
        message,
    }
}

fn passes(test: &HttpTest, status: u16) -> bool {
    match test.statuses.is_empty() {
        true => (200..400).contains(&status),
        false => test.statuses.contains(&status),
    }
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    tls: bool,
    /// The name or address in the request.
    host: String,
    address: IpAddr,
    port: u16,
    path: String,
}

impl Target {
    fn first(test: &HttpTest) -> Target {
        let mut headers = test.headers.iter();
        let named = headers.find(|(name, _)| name.eq_ignore_ascii_case("host"));
        let named = named.and_then(|(_, value)| value.parse::<Uri>().ok());
        let named = named.and_then(|uri| uri.host().map(str::to_string));
        Target {
            tls: test.tls,
            host: named.unwrap_or_else(|| bracketed(test.host)),
            address: test.host,
            port: test.port,
            path: test.path.clone(),
        }
    }

    /// As a `Host` header has it.
    fn authority(&self) -> String {
        match self.port == standard(self.tls) {
            true => self.host.clone(),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// Where a `Location` (RFC 9110, 10.2.2) leads; `None`: out of the pod, or nowhere.
    fn redirected(&self, location: &str) -> Option<Target> {
        let location = location.split('#').next().unwrap_or_default();
        if location.is_empty() {
            return None;
        }
        let scheme = if self.tls { "https" } else { "http" };
        let whole = if location.contains("://") {
            location.to_string()
        } else if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else {
            let authority = format!("{}:{}", self.host, self.port);
            let base = self.path.split('?').next().unwrap_or_default();
            let path = match (location.starts_with('/'), location.starts_with('?')) {
                (true, _) => location.to_string(),
                (_, true) => format!("{base}{location}"),
                _ => {
                    let folder = base.rsplit_once('/').map_or("", |(folder, _)| folder);
                    format!("{folder}/{location}")
                }
            };
            format!("{scheme}://{authority}{path}")
        };
        let uri: Uri = whole.parse().ok()?;
        let tls = match uri.scheme_str()? {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let host = uri.host()?.to_string();
        let address = self.within(&host)?;
        let path = uri.path_and_query().map(|path| path.as_str().to_string());
        Some(Target {
            tls,
            host,
            address,
            port: uri.port_u16().unwrap_or(standard(tls)),
            path: path
                .filter(|path| path.starts_with('/'))
                .unwrap_or("/".to_string()),
        })
    }

    /// The address of a host that is in the pod.
    fn within(&self, host: &str) -> Option<IpAddr> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        match bare.parse::<IpAddr>() {
            Ok(address) => (address == self.address || address.is_loopback()).then_some(address),
            Err(_) => {
                let known =
                    host.eq_ignore_ascii_case("localhost") || host.eq_ignore_ascii_case(&self.host);
                known.then_some(self.address)
            }
        }
    }
}

fn standard(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// What came back.
struct Answer {
    status: StatusCode,
    /// Where a redirect leads.
    location: Option<String>,
    message: String,
}

async fn ask(
    place: &Place,
    tls: &Tls,
    test: &HttpTest,
    target: &Target,
) -> Result<Answer, Unconnected> {
    let stream = place.connect(target.address, target.port).await?;
    let answer = match target.tls {
        false => exchange(stream, test, target).await,
        true => match tls.wrap(stream, &target.host, target.address).await {
            Ok(stream) => exchange(stream, test, target).await,
            Err(error) => Err(format!("tls: {error}")),
        },
    };
    let failed = |why| format!("{}:{}: {why}", bracketed(target.address), target.port);
    answer.map_err(|why| Unconnected::Refused(failed(why)))
}

/// One request over a connection of its own.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    test: &HttpTest,
    target: &Target,
) -> Result<Answer, String> {
    let mut request = Request::get(&target.path)
        .header(HOST, target.authority())
        .header(USER_AGENT, concat!("sampan/", env!("CARGO_PKG_VERSION")))
        .header("accept", "*/*")
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    for (name, value) in &test.headers {
        // one that leads to another name has that one's
        if name.eq_ignore_ascii_case("host") && target.host != Target::first(test).host {
            continue;
        }
        let name = name.parse::<hyper::header::HeaderName>();
        let value = value.parse::<hyper::header::HeaderValue>();
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err("a header is not one of a request".to_string());
        };
        request.headers_mut().insert(name, value);
    }
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(words)?;
    // both in this task: when the check is given up, the connection goes with it
    let asked = async {
        let response = sender.send_request(request).await.map_err(words)?;
        Ok(read(response).await)
    };
    tokio::pin!(connection, asked);
    let mut open = true;
    loop {
        tokio::select! {
            biased;
            answer = &mut asked => return answer,
            // what ends it is told by the request too
            _ = &mut connection, if open => open = false,
        }
    }
}

fn words(error: hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Status, and the beginning of the body where it says why not.
async fn read(response: Response<Incoming>) -> Answer {
    let status = response.status();
    let location = response.headers().get(LOCATION);
    let location = location
        .filter(|_| matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308))
        .and_then(|value| value.to_str().ok())
        .map(str::to_string);
    let mut message = status.canonical_reason().unwrap_or_default().to_lowercase();
    let mut body = response.into_body();
    let (mut begin, mut length) = (Vec::new(), 0);
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.into_data().unwrap_or_default();
            length += bytes.len();
            let room = MESSAGE.saturating_sub(begin.len()).min(bytes.len());
            begin.extend_from_slice(bytes.get(..room).unwrap_or_default());
            if length > BODY {
                return;
            }
        }
    };
    // an answer that goes on for ever is one
    let _ = tokio::time::timeout(BODY_TIME, reading).await;
    if !status.is_success() && location.is_none() {
        message = format!("{message}: {}", String::from_utf8_lossy(&begin).trim());
    }
    Answer {
        status,
        location,
        message: message.trim_end_matches([':', ' ']).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        let uri: Uri = text.parse().unwrap();
        let tls = uri.scheme_str() == Some("https");
        Target {
            tls,
            host: uri.host().unwrap().to_string(),
            address: "127.0.0.1".parse().unwrap(),
            port: uri.port_u16().unwrap_or(standard(tls)),
            path: uri.path_and_query().unwrap().to_string(),
        }
    }

    #[test]
    fn redirects_stay_in_the_pod() {
        let from = target("http://127.0.0.1:8080/a/b?c=d");
        let named = target("http://shop.example/a");
        for (from, location, to) in [
            (&from, "/x?y=1#z", Some("http://127.0.0.1:8080/x?y=1")),
            (&from, "x", Some("http://127.0.0.1:8080/a/x")),
            (&from, "?x", Some("http://127.0.0.1:8080/a/b?x")),
            (&from, "https://127.0.0.1/", Some("https://127.0.0.1/")),
            (&from, "//localhost:5/x", Some("http://localhost:5/x")),
            (&from, "http://LOCALHOST", Some("http://LOCALHOST/")),
            (&from, "http://127.9.9.9:1/", Some("http://127.9.9.9:1/")),
            (
                &named,
                "https://shop.example/b",
                Some("https://shop.example/b"),
            ),
            (
                &named,
                "https://Shop.Example:444/b",
                Some("https://Shop.Example:444/b"),
            ),
            (&named, "https://other.example/b", None),
            (&from, "http://10.0.0.1/", None),
            (&from, "http://[fd00::1]/", None),
            (&from, "ftp://127.0.0.1/", None),
            (&from, "http://", None),
            (&from, "http://a b/", None),
            (&from, "", None),
            (&from, "#x", None),
        ] {
            let found = from.redirected(location);
            let wanted = to.map(|to| Target {
                address: match to.contains("127.9.9.9") {
                    true => "127.9.9.9".parse().unwrap(),
                    false => from.address,
                },
                ..target(to)
            });
            assert_eq!(found, wanted, "{location}");
        }
        let six = Target::first(&test(&[], &[("x", "y")], "::1"));
        assert_eq!(
            (six.authority().as_str(), six.host.as_str()),
            ("[::1]:5", "[::1]")
        );
        let next = six.redirected("http://[::1]/").unwrap();
        assert_eq!(
            (next.address, next.authority()),
            (six.address, "[::1]".to_string())
        );
    }

    fn test(statuses: &[u16], headers: &[(&str, &str)], host: &str) -> HttpTest {
        let headers = headers.iter();
        HttpTest {
            tls: false,
            host: host.parse().unwrap(),
            port: 5,
            path: "/".into(),
            statuses: statuses.to_vec(),
            headers: headers
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect(),
        }
    }

    #[test]
    fn the_name_that_is_asked_for() {
        for (headers, authority) in [
            (&[][..], "10.0.0.1:5"),
            (&[("host", "a.example")], "a.example:5"),
            (&[("Host", "a.example:80")], "a.example:5"),
        ] {
            let target = Target::first(&test(&[], headers, "10.0.0.1"));
            assert_eq!(target.authority(), authority);
        }
    }

    #[test]
    fn statuses_that_pass() {
        for (statuses, passing, failing) in [
            (&[][..], &[200, 204, 302, 399][..], &[199, 400, 503][..]),
            (&[404, 200], &[404, 200], &[204, 302, 500]),
        ] {
            let test = test(statuses, &[], "::1");
            assert!(passing.iter().all(|status| passes(&test, *status)));
            assert!(!failing.iter().any(|status| passes(&test, *status)));
        }
    }
}
