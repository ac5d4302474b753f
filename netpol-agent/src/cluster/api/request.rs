//! Requests to the API server, and what their failure means.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::{Request, Response, StatusCode, header};
use kube::{Client, client::Body};
use tokio::time::timeout;

use super::{
    access::{Access, AccessError, causes},
    timing::Timing,
    wire::{self, Status},
};
use crate::cluster::Kind;

/// Why a list or a watch has ended.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody listens any more.
    Closed,
    /// Where the agent is, the server cannot go on from: everything has to be listed again.
    Expired(Expired),
    /// The server has ended a watch, as it does from time to time.
    Ended,
    /// A stream broke off, for this reason.
    Broken(String),
    /// What came cannot be understood.
    Garbled(String),
    /// The server cannot be reached, or refuses.
    Refused(Refusal),
}

/// Why everything has to be listed again.
#[derive(Debug)]
pub(super) struct Expired {
    /// Told if it comes again and again.
    pub reason: String,
    /// How long the server wants to be left alone.
    pub retry_after: Option<Duration>,
}

/// What stands between the agent and the server.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The HTTP status, if there was an answer.
    pub code: Option<StatusCode>,
    /// Why, and what to do.
    pub reason: String,
    /// How long the server wants to be left alone.
    pub retry_after: Option<Duration>,
}

impl Failure {
    fn no_answer(reason: impl Into<String>) -> Self {
        Self::Refused(Refusal {
            code: None,
            reason: reason.into(),
            retry_after: None,
        })
    }

    /// Everything has to be listed again, for this reason.
    pub fn expired(reason: impl Into<String>) -> Self {
        Self::Expired(Expired {
            reason: reason.into(),
            retry_after: None,
        })
    }

    /// Whether there is a server to which the next attempt is a load: it has no time, or whole lists came to nothing.
    pub fn is_load(&self) -> bool {
        match self {
            Self::Expired(_) | Self::Garbled(_) => true,
            Self::Refused(refusal) => refusal.code.is_some_and(|code| {
                code == StatusCode::TOO_MANY_REQUESTS || code.is_server_error()
            }),
            Self::Closed | Self::Ended | Self::Broken(_) => false,
        }
    }

    /// What an error of the server means for reading this kind.
    pub fn of(status: &Status, kind: Kind) -> Self {
        let Status { code, message, .. } = status;
        let resource = kind.resource();
        if status.is_expired() {
            return Self::Expired(Expired {
                reason: format!(
                    "the server does not know the version of {resource} that it has just given ({code}): {message}"
                ),
                retry_after: status.retry_after(),
            });
        }
        let code = StatusCode::from_u16(*code).ok();
        let reason = match code {
            Some(StatusCode::UNAUTHORIZED) => {
                format!("the server does not accept the agent's credentials (401): {message}")
            }
            Some(StatusCode::FORBIDDEN) => format!(
                "the agent may not list and watch {resource} (403): bind its service account to a ClusterRole with the verbs \
                 list and watch on namespaces, pods, services and networkpolicies.networking.k8s.io; the server says: {message}"
            ),
            Some(StatusCode::TOO_MANY_REQUESTS) => {
                format!("the server is too busy to give {resource} (429): {message}")
            }
            Some(code) => format!("the server does not give {resource} ({code}): {message}"),
            None => format!("the server does not give {resource}: {message}"),
        };
        Self::Refused(Refusal {
            code,
            reason,
            retry_after: status.retry_after(),
        })
    }
}

impl From<wire::NoList> for Failure {
    fn from(what: wire::NoList) -> Self {
        Self::Garbled(what.to_string())
    }
}

impl Kind {
    /// `kind` of a list of them.
    pub(super) fn list(self) -> &'static str {
        match self {
            Self::Namespace => "NamespaceList",
            Self::Pod => "PodList",
            Self::NetworkPolicy => "NetworkPolicyList",
            Self::Service => "ServiceList",
        }
    }

    /// The plural by which roles name the resource.
    pub(super) fn resource(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Pod => "pods",
            Self::NetworkPolicy => "networkpolicies.networking.k8s.io",
            Self::Service => "services",
        }
    }

    /// Where all objects of this kind are.
    fn path(self) -> &'static str {
        match self {
            Self::Namespace => "/api/v1/namespaces",
            Self::Pod => "/api/v1/pods",
            Self::NetworkPolicy => "/apis/networking.k8s.io/v1/networkpolicies",
            Self::Service => "/api/v1/services",
        }
    }
}

/// What of each object is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    All,
    Metadata,
}

/// A client for one kind.
#[derive(Clone)]
pub(super) struct Connection {
    access: Access,
    client: Client,
    kind: Kind,
    timing: Timing,
}

impl Connection {
    pub async fn open(access: Access, kind: Kind, timing: Timing) -> Result<Self, AccessError> {
        let (client, _) = access.client(&timing).await?;
        Ok(Self {
            access,
            client,
            kind,
            timing,
        })
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Begins anew: with the token, the certificates and the address that the files name now, and on a new connection.
    pub async fn renew(&mut self) -> Result<(), AccessError> {
        self.client = self.access.client(&self.timing).await?.0;
        Ok(())
    }

    /// Opens a watch. With `None` it begins with all objects that there are, as a list that is streamed.
    pub async fn watch(&self, from: Option<&str>) -> Result<Response<Body>, Failure> {
        let seconds = self.timing.watch_seconds();
        let mut query = format!("watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}");
        match from {
            Some(version) => query.push_str(&format!("&resourceVersion={}", escape(version))),
            None => query.push_str("&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"),
        }
        self.get(&query, Part::All).await
    }

    /// One page of a list of everything as it is now: so many objects, or all of them at once.
    ///
    /// Not from a cache (`resourceVersion=0`), which may be older than what was seen before.
    pub async fn page(
        &self,
        part: Part,
        limit: Option<usize>,
        next: Option<&str>,
    ) -> Result<Vec<u8>, Failure> {
        let limit = limit.map(|limit| format!("limit={limit}"));
        let next = next.map(|next| format!("continue={}", escape(next)));
        let query: Vec<String> = limit.into_iter().chain(next.clone()).collect();
        let answer = self.get(&query.join("&"), part).await;
        let answer = answer.map_err(|failure| match failure {
            Failure::Expired(expired) if next.is_some() => Failure::Expired(Expired {
                reason: format!("the list expires while it is read: {}", expired.reason),
                ..expired
            }),
            other => other,
        });
        let mut body = answer?.into_body();
        let mut text = Vec::new();
        while let Some(frame) = self.in_time(body.frame()).await? {
            let frame = frame
                .map_err(|e| Failure::Broken(format!("a list was cut off: {}", causes(&e))))?;
            if let Ok(data) = frame.into_data() {
                text.extend_from_slice(&data);
            }
        }
        Ok(text)
    }

    async fn get(&self, query: &str, part: Part) -> Result<Response<Body>, Failure> {
        let accept = match part {
            Part::All => "application/json",
            Part::Metadata => {
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
            }
        };
        let request = Request::get(format!("{}?{query}", self.kind.path()))
            .header(header::ACCEPT, accept)
            .header(header::ACCEPT_ENCODING, "identity")
            .body(Body::empty())
            .map_err(|e| Failure::no_answer(causes(&e)))?;
        let answer = self.in_time(self.client.send(request)).await?;
        let answer = answer.map_err(|e| Failure::no_answer(why(&e)))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        Err(self.refusal(answer).await)
    }

    async fn refusal(&self, answer: Response<Body>) -> Failure {
        let code = answer.status();
        let header = answer.headers().get(header::RETRY_AFTER);
        let asked = header.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let body = http_body_util::Limited::new(answer.into_body(), LONGEST_ERROR).collect();
        let text = match self.in_time(body).await {
            Ok(Ok(body)) => body.to_bytes(),
            _ => Default::default(),
        };
        let mut status: Status = serde_json::from_slice(&text).unwrap_or_else(|_| Status {
            message: String::from_utf8_lossy(&text).trim().to_owned(),
            ..Status::default()
        });
        status.code = code.as_u16();
        let asked = asked.map(Duration::from_secs);
        let mut failure = Failure::of(&status, self.kind);
        if let Failure::Refused(Refusal { retry_after, .. })
        | Failure::Expired(Expired { retry_after, .. }) = &mut failure
        {
            *retry_after = asked.or(*retry_after);
        }
        failure
    }

    async fn in_time<T>(&self, answer: impl Future<Output = T>) -> Result<T, Failure> {
        timeout(self.timing.answer, answer).await.map_err(|_| {
            let limit = self.timing.answer;
            Failure::no_answer(format!("the server gave no answer within {limit:?}"))
        })
    }
}

/// Why there is no answer, without the layers of the client through which that was told.
fn why(error: &kube::Error) -> String {
    let inner = match error {
        kube::Error::Service(inner) => inner.source(),
        _ => None,
    };
    inner.map_or_else(|| causes(error), causes)
}

/// Objects in a page of a list: what is read at a time bounds the memory that it takes.
pub(super) const PAGE: usize = 500;

/// An error has no business to be longer.
const LONGEST_ERROR: usize = 64 << 10;

/// A value in a query.
fn escape(value: &str) -> String {
    let mut escaped = String::new();
    for byte in value.bytes() {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(byte.into());
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// The lines of an answer that does not end.
pub(super) struct Lines {
    body: Body,
    buffer: Vec<u8>,
    /// Where the first line begins that was not given out.
    start: usize,
    /// Up to here, it has no end.
    searched: usize,
}

impl Lines {
    pub fn new(answer: Response<Body>) -> Self {
        Self {
            body: answer.into_body(),
            buffer: Vec::new(),
            start: 0,
            searched: 0,
        }
    }

    /// Waits until more has come. Returns false at the end. Cancelling loses nothing.
    pub async fn more(&mut self) -> Result<bool, Failure> {
        match self.body.frame().await {
            None => Ok(false),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    self.buffer.extend_from_slice(&data);
                }
                if self.buffer.len() > LONGEST_LINE {
                    return Err(Failure::Garbled("the watch sent an endless line".into()));
                }
                Ok(true)
            }
            Some(Err(e)) => Err(Failure::Broken(format!(
                "the watch was cut off: {}",
                causes(&e)
            ))),
        }
    }

    /// The next event, if it has come whole.
    pub fn event(&mut self) -> Result<Option<wire::Event>, Failure> {
        while let Some(at) = self.buffer[self.searched..]
            .iter()
            .position(|byte| *byte == b'\n')
        {
            let line = self.start..self.searched + at;
            self.start = line.end + 1;
            self.searched = self.start;
            let line = self.buffer[line].trim_ascii();
            if !line.is_empty() {
                let event = serde_json::from_slice(line);
                return event.map(Some).map_err(|e| {
                    Failure::Garbled(format!("the watch sent what is no event: {e}"))
                });
            }
        }
        self.buffer.drain(..self.start);
        self.start = 0;
        self.searched = self.buffer.len();
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT_BUFFER {
            self.buffer = Vec::new();
        }
        Ok(None)
    }
}

/// No object is as long: etcd takes 1.5 MiB.
const LONGEST_LINE: usize = 32 << 20;
/// A buffer that has been larger is given back.
const KEPT_BUFFER: usize = 64 << 10;
