//! Metrics and health over HTTP.
//!
//! A thread of its own serves them, so that no client, however slow or busy, can hold up the loop. Of the loop it wants a few
//! numbers, at most twice a second; what the kernel has counted it reads by itself. Everything is bounded: clients at a time,
//! the size of a request, the time that one may take. The node's own clients, among them the kubelet, have places of
//! their own that nobody else can take.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime},
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::metrics::histogram::Histogram;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{
    health::{Question, Vitals},
    metrics::{self, Counted, Exposition, Process},
};
use crate::dataplane::{self, Readings};

/// How many clients of the node, and how many others, are served at once. Who comes when all places are taken is hung up on.
const CLIENTS: usize = 8;
/// How long a client may take to say what it wants, and how long it may stay.
const HURRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(15));
/// The longest head of a request.
const REQUEST: usize = 8192;
/// How long the loop may take to answer. A turn of it takes milliseconds; the first one on a large cluster, a second.
const PATIENCE: Duration = Duration::from_secs(5);
/// For how long an answer of the loop is good.
const FRESH: Duration = Duration::from_millis(500);
/// How often to try to listen.
const RETRY: Duration = Duration::from_secs(5);
/// Counting the elements of tables may take one part of the time in so many.
const FILL_SHARE: u32 = 50;

/// What is served from.
pub(super) struct Sources {
    /// Goes to the loop.
    pub ask: mpsc::Sender<Question>,
    pub readings: Readings,
    pub durations: Histogram,
}

/// Serves in the background. An address that cannot be had is told and tried again: enforcement does not need it.
pub(super) fn serve(address: SocketAddr, sources: Sources) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()?;
    thread::Builder::new()
        .name("http".into())
        .spawn(move || runtime.block_on(listen(address, Arc::new(Server::new(sources)))))?;
    Ok(())
}

async fn listen(address: SocketAddr, server: Arc<Server>) {
    let mut told = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::error!(
                        %error,
                        %address,
                        "metrics and health cannot be served; enforcement goes on and this is tried again: free the \
                         address, or choose another --metrics-address"
                    );
                }
                sleep(RETRY).await;
            }
        }
    };
    tracing::info!(%address, "metrics and health are served");
    let [own, others] = [(); 2].map(|()| Arc::new(Semaphore::new(CLIENTS)));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(client) => client,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a client of metrics");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let here = stream.local_addr().is_ok_and(|own| own.ip() == peer.ip());
        let places = if here { &own } else { &others };
        let Ok(place) = Arc::clone(places).try_acquire_owned() else {
            tracing::debug!(%peer, "too many clients of metrics at once");
            continue;
        };
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            let _ = timeout(HURRY.1, converse(stream, server)).await;
            drop(place);
        });
    }
}

async fn converse(stream: TcpStream, server: Arc<Server>) {
    let answer = service_fn(|request| {
        let server = Arc::clone(&server);
        async move { Ok::<_, Infallible>(server.answer(&request).await) }
    });
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HURRY.0)
        .max_buf_size(REQUEST)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
    if let Err(error) = conversation {
        tracing::debug!(%error, "a client of metrics went away");
    }
}

type Answer = Response<Full<Bytes>>;

struct Server {
    agent: Loop,
    durations: Histogram,
    kernel: Arc<Mutex<Kernel>>,
    start: SystemTime,
}

impl Server {
    fn new(sources: Sources) -> Self {
        Self {
            agent: Loop {
                ask: sources.ask,
                last: tokio::sync::Mutex::default(),
            },
            durations: sources.durations,
            kernel: Arc::new(Mutex::new(Kernel {
                readings: sources.readings,
                tables: None,
            })),
            start: SystemTime::now(),
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Answer {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
            answer
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match request.uri().path() {
            "/metrics" => self.metrics().await,
            "/healthz" => self.probe(|vitals| vitals.hopeless).await,
            "/readyz" => self.probe(|vitals| vitals.unready).await,
            _ => plain(
                StatusCode::NOT_FOUND,
                "there are /metrics, /healthz and /readyz\n".to_owned(),
            ),
        }
    }

    /// 200 if there is nothing to object to; otherwise what there is.
    async fn probe(&self, objections: impl FnOnce(Vitals) -> Vec<String>) -> Answer {
        let Some(vitals) = self.agent.vitals().await else {
            return unavailable(&stuck());
        };
        let objections = objections(vitals);
        if objections.is_empty() {
            plain(StatusCode::OK, "ok\n".to_owned())
        } else {
            unavailable(&objections.join("\n"))
        }
    }

    async fn metrics(&self) -> Answer {
        let Some(vitals) = self.agent.vitals().await else {
            return unavailable(&stuck());
        };
        let kernel = Arc::clone(&self.kernel);
        // Reads maps; the thread for it is one, and probes do not wait for it.
        let counted = tokio::task::spawn_blocking(move || {
            let mut kernel = kernel.lock().unwrap_or_else(PoisonError::into_inner);
            kernel.count().map_err(|e| e.to_string())
        });
        let counted = match counted.await.map_err(|e| e.to_string()).flatten() {
            Ok(counted) => counted,
            Err(error) => return unavailable(&error),
        };
        let exposition = Exposition {
            vitals,
            counted,
            process: Process::now(self.start),
            durations: self.durations.clone(),
        };
        match metrics::text(exposition) {
            Ok(text) => {
                let mut answer = Response::new(Full::from(text));
                let media_type = HeaderValue::from_static(metrics::MEDIA_TYPE);
                answer.headers_mut().insert(CONTENT_TYPE, media_type);
                answer
            }
            Err(error) => unavailable(&error.to_string()),
        }
    }
}

/// The way to the agent's loop.
struct Loop {
    ask: mpsc::Sender<Question>,
    /// What it answered last, and when.
    last: tokio::sync::Mutex<Option<(Instant, Option<Vitals>)>>,
}

impl Loop {
    /// What the loop says, or `None` if it does not answer in time. However many ask, the loop is asked once.
    async fn vitals(&self) -> Option<Vitals> {
        let mut last = self.last.lock().await;
        if let Some((at, vitals)) = &*last
            && at.elapsed() < FRESH
        {
            return vitals.clone();
        }
        let (question, answer) = oneshot::channel();
        let asked = timeout(PATIENCE, async {
            self.ask.send(question).await.ok()?;
            answer.await.ok()
        });
        let vitals = asked.await.ok().flatten();
        *last = Some((Instant::now(), vitals.clone()));
        vitals
    }
}

/// Reads what the kernel has counted.
struct Kernel {
    readings: Readings,
    /// When the tables were counted, how long that took, and what was found.
    tables: Option<(Instant, Duration, Vec<dataplane::TableFill>)>,
}

impl Kernel {
    fn count(&mut self) -> Result<Counted, dataplane::Error> {
        let due = |(at, took, _): &(Instant, Duration, _)| at.elapsed() > *took * FILL_SHARE;
        let tables = match &self.tables {
            Some(known) if !due(known) => known.2.clone(),
            _ => {
                let begun = Instant::now();
                let tables = self.readings.fill()?;
                self.tables = Some((Instant::now(), begun.elapsed(), tables.clone()));
                tables
            }
        };
        Ok(Counted {
            packets: self.readings.packets()?,
            lost: self.readings.lost()?,
            tables,
        })
    }
}

fn stuck() -> String {
    format!("the agent's loop has not answered for {PATIENCE:?}")
}

fn unavailable(why: &str) -> Answer {
    plain(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"))
}

fn plain(status: StatusCode, text: String) -> Answer {
    let mut answer = Response::new(Full::from(text));
    *answer.status_mut() = status;
    let media_type = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, media_type);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent() -> (Loop, mpsc::Receiver<Question>) {
        let (ask, questions) = mpsc::channel(1);
        let last = tokio::sync::Mutex::default();
        (Loop { ask, last }, questions)
    }

    #[tokio::test]
    async fn however_many_ask_the_loop_is_asked_once() {
        let (agent, mut questions) = agent();
        let answers = tokio::spawn(async move {
            let mut asked = 0;
            while let Some(question) = questions.recv().await {
                asked += 1;
                let vitals = Vitals {
                    pods: 7,
                    ..Vitals::default()
                };
                assert!(question.send(vitals).is_ok(), "somebody waits for it");
            }
            asked
        });
        let ask = || async { agent.vitals().await.map(|vitals| vitals.pods) };
        let all = futures::future::join_all((0..100).map(|_| ask())).await;
        assert_eq!(all, vec![Some(7); 100]);
        drop(agent);
        let asked: u32 = answers.await.expect("it ends");
        // More only where the hundred took longer than an answer is good.
        assert!((1..100).contains(&asked), "{asked} questions");
    }

    #[tokio::test]
    async fn a_loop_that_does_not_answer_is_given_up_for_all_at_once() {
        let (agent, questions) = agent();
        let all = futures::future::join_all((0..100).map(|_| agent.vitals())).await;
        assert!(all.iter().all(Option::is_none), "nobody answered");
        drop(questions);
        let gone = agent.vitals().await;
        assert!(gone.is_none(), "there is no loop");
    }
}
