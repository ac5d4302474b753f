//! Answers to requests.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    sync::{Arc, Mutex},
};

use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Response,
    body::{Bytes, Frame, Incoming},
    header,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    NAMESPACES, PODS, SERVICES,
    server::{Fault, Request, State, Watcher},
};

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

fn whole(status: u16, text: String) -> Answer {
    let body = Full::from(text).map_err(|never: Infallible| match never {});
    Response::builder()
        .status(status)
        .body(body.boxed_unsync())
        .expect("an answer")
}

fn error(status: u16, reason: &str, message: &str) -> Answer {
    let status_object = json!({
        "kind": "Status", "code": status, "reason": reason, "message": message,
    });
    whole(status, status_object.to_string())
}

fn parse(request: &hyper::Request<Incoming>) -> Request {
    let header = |name| {
        let value = request.headers().get(name);
        let value = value.and_then(|v: &header::HeaderValue| v.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let mut query = BTreeMap::new();
    for pair in request.uri().query().unwrap_or_default().split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        query.insert(name.to_owned(), value.to_owned());
    }
    Request {
        path: request.uri().path().to_owned(),
        query,
        accept: header(header::ACCEPT),
        token: header(header::AUTHORIZATION)
            .trim_start_matches("Bearer ")
            .to_owned(),
    }
}

pub async fn respond(
    state: Arc<Mutex<State>>,
    request: hyper::Request<Incoming>,
) -> Result<Answer, Infallible> {
    let request = parse(&request);
    let fault = {
        let mut state = state.lock().expect("a lock");
        state.requests.push(request.clone());
        state.rule.as_mut().and_then(|rule| rule(&request))
    };
    match fault {
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::Cut) => {
            let parts = [
                Ok(Frame::data(Bytes::from("{\"metadata\":{"))),
                Err(io::Error::other("cut")),
            ];
            // The head and the beginning are on their way before the connection breaks.
            let parts = stream::iter(parts).then(|part| async {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                part
            });
            Ok(Response::new(StreamBody::new(parts).boxed_unsync()))
        }
        Some(Fault::Text(text)) => Ok(whole(200, text)),
        Some(Fault::Status(status, retry_after, body)) => {
            let mut answer = whole(status, body.to_string());
            if !retry_after.is_empty() {
                let value = header::HeaderValue::from_static(retry_after);
                answer.headers_mut().insert(header::RETRY_AFTER, value);
            }
            Ok(answer)
        }
        None => {
            let mut state = state.lock().expect("a lock");
            Ok(if request.is_watch() {
                watch(&mut state, &request)
            } else {
                list(&state, &request)
            })
        }
    }
}

fn list(state: &State, request: &Request) -> Answer {
    let from: usize = request
        .get("continue")
        .map_or(0, |next| next.parse().expect("a place"));
    let objects = state.objects.get(&*request.path);
    let all: Vec<Value> = objects
        .into_iter()
        .flat_map(|o| o.values())
        .cloned()
        .collect();
    let limit = request.get("limit").map(|limit| {
        let limit: usize = limit.parse().expect("a limit");
        limit.min(state.page)
    });
    let end = from
        .saturating_add(limit.unwrap_or(usize::MAX))
        .min(all.len());
    let items: Vec<Value> = all[from..end]
        .iter()
        .map(|object| {
            if request.is_look() {
                json!({ "metadata": object["metadata"] })
            } else {
                object.clone()
            }
        })
        .collect();
    let mut metadata = json!({ "resourceVersion": state.version.to_string() });
    if end < all.len() {
        metadata["continue"] = end.to_string().into();
    }
    let kind = match &*request.path {
        _ if request.is_look() => "PartialObjectMetadataList",
        NAMESPACES => "NamespaceList",
        PODS => "PodList",
        SERVICES => "ServiceList",
        _ => "NetworkPolicyList",
    };
    whole(
        200,
        json!({ "kind": kind, "metadata": metadata, "items": items }).to_string(),
    )
}

fn watch(state: &mut State, request: &Request) -> Answer {
    let (lines, receiver) = mpsc::unbounded_channel::<String>();
    let say = |what: &str, object: &Value| {
        let line = json!({ "type": what, "object": object }).to_string();
        lines.send(line).expect("it is open");
    };
    if request.is_streamed_list() {
        if !state.streams {
            return error(422, "Invalid", "sendInitialEvents: Forbidden");
        }
        for object in state
            .objects
            .get(&*request.path)
            .into_iter()
            .flat_map(|o| o.values())
        {
            say("ADDED", object);
        }
        let end = json!({ "metadata": {
            "resourceVersion": state.version.to_string(),
            "annotations": { "k8s.io/initial-events-end": "true" },
        }});
        say("BOOKMARK", &end);
    } else {
        let from = request.get("resourceVersion").and_then(|v| v.parse().ok());
        let from: u64 = from.expect("a version to watch from");
        if from < state.oldest {
            return error(410, "Expired", "too old resource version");
        }
        for (version, path, line) in &state.history {
            if *version > from && *path == request.path {
                lines.send(line.clone()).expect("it is open");
            }
        }
    }
    state.watchers.push(Watcher {
        path: request.path.clone(),
        lines,
        deaf: false,
    });
    let body = stream::unfold(receiver, |mut receiver| async {
        let mut line = receiver.recv().await?;
        line.push('\n');
        Some((Ok(Frame::data(Bytes::from(line))), receiver))
    });
    Response::new(StreamBody::new(body).boxed_unsync())
}
