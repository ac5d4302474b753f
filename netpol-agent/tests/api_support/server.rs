//! The server: objects, versions, watches, and faults.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use netpol_agent::cluster::Access;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};

use super::respond;

/// One request, as far as tests ask about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    pub path: String,
    pub query: BTreeMap<String, String>,
    pub accept: String,
    pub token: String,
}

impl Request {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }

    pub fn is_watch(&self) -> bool {
        self.get("watch") == Some("true")
    }

    /// A watch that begins with everything.
    pub fn is_streamed_list(&self) -> bool {
        self.get("sendInitialEvents") == Some("true")
    }

    /// The list of names and versions that answers somebody who waits.
    pub fn is_look(&self) -> bool {
        self.accept.contains("PartialObjectMetadataList")
    }
}

/// What to do with a request instead of answering it.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This HTTP status, with this `Retry-After` if not empty, and this body.
    Status(u16, &'static str, Value),
    /// No answer.
    Silence,
    /// A good beginning, and then the connection breaks.
    Cut,
    /// This text as the answer.
    Text(String),
}

type Rule = Box<dyn FnMut(&Request) -> Option<Fault> + Send>;

/// A watch that is open.
pub(super) struct Watcher {
    pub path: String,
    pub lines: mpsc::UnboundedSender<String>,
    /// It is open, and gets nothing.
    pub deaf: bool,
}

#[derive(Default)]
pub struct State {
    pub version: u64,
    pub(super) objects: BTreeMap<&'static str, BTreeMap<String, Value>>,
    /// What happened, with its version, for watches that begin in the past.
    pub(super) history: Vec<(u64, &'static str, String)>,
    /// Versions before this one are not known any more.
    pub oldest: u64,
    pub(super) watchers: Vec<Watcher>,
    /// Lists can be streamed.
    pub streams: bool,
    pub requests: Vec<Request>,
    pub(super) rule: Option<Rule>,
    /// Objects in a page, whatever limit is asked for.
    pub page: usize,
}

/// An API server on a socket.
pub struct Server {
    pub address: SocketAddr,
    pub state: Arc<Mutex<State>>,
    accepting: Option<JoinHandle<()>>,
    home: TempDir,
}

fn key(object: &Value) -> String {
    let text = |field| object["metadata"][field].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}

impl Server {
    /// A server that streams lists.
    pub async fn start() -> Self {
        Self::at("127.0.0.1:0").await
    }

    pub async fn at(address: &str) -> Self {
        let state = State {
            version: 100,
            streams: true,
            page: usize::MAX,
            ..State::default()
        };
        let mut server = Self {
            address: address.parse().expect("an address"),
            state: Arc::new(Mutex::new(state)),
            accepting: None,
            home: TempDir::new().expect("a directory"),
        };
        server.listen().await;
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{ "name": "c", "cluster": { "server": format!("http://{}", server.address) } }],
            "users": [{ "name": "u", "user": { "tokenFile": server.token_file() } }],
            "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
        });
        server.write_token("first");
        fs::write(server.kubeconfig(), text.to_string()).expect("a kubeconfig");
        server
    }

    /// Listens, on the same port as before.
    pub async fn listen(&mut self) {
        let socket = match self.address {
            SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4(),
            SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6(),
        }
        .expect("a socket");
        socket.set_reuseaddr(true).expect("a socket option");
        socket.bind(self.address).expect("a free port");
        let listener = socket.listen(64).expect("a listener");
        self.address = listener.local_addr().expect("an address");
        self.accepting = Some(tokio::spawn(accept(listener, Arc::clone(&self.state))));
    }

    /// Goes away: nobody listens, and every connection breaks.
    pub async fn stop(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            let _ = accepting.await;
        }
        self.lock().watchers.clear();
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.home.path().join("kubeconfig")
    }

    pub fn access(&self) -> Access {
        Access::Kubeconfig(self.kubeconfig())
    }

    fn token_file(&self) -> PathBuf {
        self.home.path().join("token")
    }

    pub fn write_token(&self, token: &str) {
        fs::write(self.token_file(), token).expect("a token");
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a lock")
    }

    /// From now on, requests for which this says so are not answered as they should be.
    pub fn fault(&self, rule: impl FnMut(&Request) -> Option<Fault> + Send + 'static) {
        self.lock().rule = Some(Box::new(rule));
    }

    /// Everything is answered again.
    pub fn heal(&self) {
        self.lock().rule = None;
    }

    /// Adds or changes an object.
    pub fn put(&self, path: &'static str, object: Value) -> Value {
        self.lock().put(path, object)
    }

    /// Deletes an object.
    pub fn delete(&self, path: &'static str, object: &Value) -> Value {
        self.lock().delete(path, object)
    }

    /// The requests that have come for this path.
    pub fn requests(&self, path: &str) -> Vec<Request> {
        let state = self.lock();
        let requests = state.requests.iter();
        requests.filter(|r| r.path == path).cloned().collect()
    }

    /// Sends a line to the watches of this path, whatever it says.
    pub fn say(&self, path: &str, what: &str, object: &Value) {
        let line = json!({ "type": what, "object": object }).to_string();
        self.lock().say(path, &line);
    }

    /// Tells the watches of this path how far they are.
    pub fn bookmark(&self, path: &str, version: u64) {
        let object = json!({ "metadata": { "resourceVersion": version.to_string() } });
        self.say(path, "BOOKMARK", &object);
    }

    /// Something happens that no client understands, and every watch that begins before it gets to see it.
    pub fn garble(&self, path: &'static str) {
        let mut state = self.lock();
        state.version += 1;
        let version = state.version;
        state.history.push((version, path, "{ garbled".to_owned()));
        state.say(path, "{ garbled");
    }

    /// Ends the watches of this path, as a server does after the time that was asked for.
    pub fn end_watches(&self, path: &str) {
        self.lock().watchers.retain(|watcher| watcher.path != path);
    }

    /// The watches of this path stay open, and nothing comes any more.
    pub fn deafen(&self, path: &str) {
        for watcher in &mut self.lock().watchers {
            watcher.deaf |= watcher.path == path;
        }
    }

    /// What happens from now on comes on the watches of this path again.
    pub fn undeafen(&self, path: &str) {
        for watcher in &mut self.lock().watchers {
            watcher.deaf &= watcher.path != path;
        }
    }

    /// Forgets what happened: a watch from before now is refused with 410.
    pub fn compact(&self) {
        let mut state = self.lock();
        state.version += 1;
        state.oldest = state.version;
        state.history.clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
    }
}

impl State {
    pub fn put(&mut self, path: &'static str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let old = self
            .objects
            .entry(path)
            .or_default()
            .insert(key(&object), object.clone());
        self.happen(
            path,
            if old.is_some() { "MODIFIED" } else { "ADDED" },
            &object,
        );
        object
    }

    pub fn delete(&mut self, path: &'static str, object: &Value) -> Value {
        self.version += 1;
        let mut object = self
            .objects
            .get_mut(path)
            .and_then(|objects| objects.remove(&key(object)))
            .expect("an object that is there");
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.happen(path, "DELETED", &object);
        object
    }

    fn happen(&mut self, path: &'static str, what: &str, object: &Value) {
        let line = json!({ "type": what, "object": object }).to_string();
        self.history.push((self.version, path, line.clone()));
        self.say(path, &line);
    }

    fn say(&mut self, path: &str, line: &str) {
        for watcher in &self.watchers {
            if watcher.path == path && !watcher.deaf {
                let _ = watcher.lines.send(line.to_owned());
            }
        }
    }
}

/// Serves connections until it is aborted; all of them end with it.
async fn accept(listener: TcpListener, state: Arc<Mutex<State>>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let service = service_fn(move |request| respond::respond(Arc::clone(&state), request));
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
