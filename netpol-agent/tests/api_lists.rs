//! The API server as a source: what is there at the start, however the server lists it.

mod api_support;

use std::time::Duration;

use netpol_agent::{cluster::Problem, policy::object::ObjectKey};
use serde_json::{Value, json};

use self::api_support::{
    NAMESPACES, PODS, POLICIES, SERVICES, namespace, pod, policy,
    reader::Reader,
    server::{Fault, Server},
    service,
};

fn fill(server: &Server) {
    server.put(NAMESPACES, namespace("shop"));
    server.put(PODS, pod("a", "1", "red"));
    server.put(PODS, pod("b", "2", "blue"));
    server.put(POLICIES, policy("web", json!(80)));
    server.put(SERVICES, service("web", "10.96.0.7"));
}

fn all_is_there(reader: &Reader) {
    let objects: Vec<_> = reader
        .objects
        .iter()
        .map(|(name, content)| format!("{name}: {content}"))
        .collect();
    assert_eq!(
        objects,
        [
            "Namespace shop: ",
            "NetworkPolicy shop/web: 80",
            "Pod shop/a: red of 1",
            "Pod shop/b: blue of 2",
            "Service shop/web: 10.96.0.7",
        ]
    );
}

#[tokio::test]
async fn everything_is_listed_in_a_stream_that_goes_on_as_a_watch() {
    let server = Server::start().await;
    fill(&server);
    let mut reader = Reader::new(&server);
    reader.until("complete", |r| r.complete).await;
    all_is_there(&reader);
    assert_eq!(reader.revision, "105");
    server.put(PODS, pod("c", "3", "green"));
    reader.has("Pod shop/c", Some("green of 3")).await;
    assert_eq!(reader.revision, "106");
    for path in [NAMESPACES, PODS, POLICIES, SERVICES] {
        let requests = server.requests(path);
        assert_eq!(requests.len(), 1, "one request is all: {requests:?}");
        assert!(requests[0].is_streamed_list());
        assert_eq!(requests[0].get("allowWatchBookmarks"), Some("true"));
    }
}

#[tokio::test]
async fn a_server_that_streams_no_lists_gives_pages() {
    let server = Server::start().await;
    fill(&server);
    server.put(PODS, pod("c", "3", "green"));
    {
        let mut state = server.lock();
        state.streams = false;
        state.page = 2;
    }
    let mut reader = Reader::new(&server);
    reader.until("complete", |r| r.complete).await;
    assert_eq!(reader.objects["Pod shop/c"], "green of 3");
    assert_eq!(reader.objects.len(), 6);
    server.put(PODS, pod("d", "4", "grey"));
    reader.has("Pod shop/d", Some("grey of 4")).await;
    assert_eq!(reader.losses, 0, "that is no fault of the server");
    let requests = server.requests(PODS);
    let lists: Vec<_> = requests.iter().filter(|r| !r.is_watch()).collect();
    assert_eq!(lists.len(), 2);
    for list in lists {
        assert_eq!(list.get("limit"), Some("500"));
        assert_eq!(list.get("resourceVersion"), None, "not from a cache");
    }
    let watch = requests.last().expect("a watch");
    assert_eq!(watch.get("resourceVersion"), Some("106"));
}

#[tokio::test]
async fn a_server_that_only_watches_gives_pages() {
    // It takes no notice of sendInitialEvents, and never says that all has come.
    let server = Server::start().await;
    fill(&server);
    server.fault(|request| {
        let bookmark =
            json!({ "type": "BOOKMARK", "object": { "metadata": { "resourceVersion": "105" } } });
        request
            .is_streamed_list()
            .then(|| Fault::Text(format!("{bookmark}\n")))
    });
    let mut reader = Reader::new(&server);
    reader.until("complete", |r| r.complete).await;
    all_is_there(&reader);
}

#[tokio::test]
async fn nothing_is_complete_before_every_kind_is() {
    for withheld in [NAMESPACES, PODS, POLICIES, SERVICES] {
        let server = Server::start().await;
        fill(&server);
        server.fault(move |request| (request.path == withheld).then_some(Fault::Silence));
        let mut reader = Reader::new(&server);
        reader
            .stays(Duration::from_millis(300), |r| !r.complete)
            .await;
        server.heal();
        reader.until("complete", |r| r.complete).await;
        all_is_there(&reader);
    }
}

#[tokio::test]
async fn a_list_that_breaks_off_is_not_taken_for_all() {
    let server = Server::start().await;
    fill(&server);
    server.lock().streams = false;
    let mut reader = Reader::synced(&server).await;
    // Listed again, and cut off twice.
    server.compact();
    let mut cuts = 0;
    server.fault(move |request| {
        let cut = request.path == PODS && !request.is_watch() && cuts < 2;
        cuts += u32::from(cut);
        cut.then_some(Fault::Cut)
    });
    server.end_watches(PODS);
    server.put(PODS, pod("c", "3", "green"));
    reader.has("Pod shop/c", Some("green of 3")).await;
    assert_eq!(reader.changes, ["Pod shop/c: green of 3"]);
}

#[tokio::test]
async fn a_page_that_is_too_old_begins_the_list_again() {
    let server = Server::start().await;
    fill(&server);
    {
        let mut state = server.lock();
        state.streams = false;
        state.page = 1;
    }
    let mut refused = false;
    server.fault(move |request| {
        let refuse = request.path == PODS && request.get("continue").is_some() && !refused;
        refused |= refuse;
        let body = json!({ "kind": "Status", "code": 410, "reason": "Expired" });
        refuse.then_some(Fault::Status(410, "", body))
    });
    let mut reader = Reader::new(&server);
    reader.until("complete", |r| r.complete).await;
    all_is_there(&reader);
    assert_eq!(reader.losses, 0);
}

#[tokio::test]
async fn a_list_whose_pages_are_always_too_old_is_told_and_read_in_one() {
    let server = Server::start().await;
    fill(&server);
    {
        let mut state = server.lock();
        state.streams = false;
        state.page = 1;
    }
    server.fault(|request| {
        let body = json!({ "kind": "Status", "code": 410, "reason": "Expired" });
        let next = request.path == PODS && request.get("continue").is_some();
        next.then_some(Fault::Status(410, "", body))
    });
    let mut reader = Reader::new(&server);
    reader.until("it is told", |r| r.away.is_some()).await;
    let reason = reader.away.clone().expect("it is away").reason.clone();
    assert!(reason.contains("expires while it is read"), "{reason}");
    reader.until("complete", |r| r.complete).await;
    all_is_there(&reader);
    reader.until("it is over", |r| r.away.is_none()).await;
    let requests = server.requests(PODS);
    let lists = requests.iter().filter(|r| !r.is_watch());
    let limits: Vec<_> = lists.map(|r| r.get("limit").is_some()).collect();
    assert_eq!(limits, [true, true, true, true, false], "{requests:?}");
}

#[tokio::test]
async fn one_strange_object_does_not_take_the_list_with_it() {
    for streams in [true, false] {
        let server = Server::start().await;
        fill(&server);
        server.lock().streams = streams;
        server.put(POLICIES, policy("odd", json!({ "what": "is this" })));
        server.put(
            POLICIES,
            policy("refused", json!("a-name-that-is-much-too-long")),
        );
        let mut bad = pod("bad", "3", "green");
        bad["metadata"]["labels"] = json!(["not", "labels"]);
        server.put(PODS, bad);

        let mut reader = Reader::new(&server);
        reader.until("complete", |r| r.complete).await;
        // Of the policies what can be read is in force: they isolate, and allow nothing by that rule.
        for name in ["odd", "refused"] {
            let rest = reader.objects.remove(&format!("NetworkPolicy shop/{name}"));
            assert_eq!(rest.as_deref(), Some(""), "{name}");
        }
        all_is_there(&reader);
        let mut told: Vec<(String, ObjectKey, String, bool)> = Vec::new();
        for problem in &*reader.problems {
            let Problem::Refused {
                kind,
                object,
                field,
                kept,
                path: None,
                ..
            } = problem
            else {
                panic!("{problem}");
            };
            told.push((kind.clone(), object.clone(), field.clone(), *kept));
        }
        let key = |name| ObjectKey::new("shop", name);
        assert_eq!(
            told,
            [
                (
                    "Pod".to_owned(),
                    key("bad"),
                    "metadata.labels".to_owned(),
                    false
                ),
                (
                    "NetworkPolicy".to_owned(),
                    key("odd"),
                    "spec.ingress[0].ports[0].port".to_owned(),
                    false
                ),
                (
                    "NetworkPolicy".to_owned(),
                    key("refused"),
                    "spec.ingress[0].ports[0].port".to_owned(),
                    false
                ),
            ]
        );
        let text = reader.problems[1].to_string();
        assert!(
            text.starts_with("NetworkPolicy shop/odd is refused: spec.ingress[0]"),
            "{text}"
        );

        // Corrected, one by one.
        server.put(POLICIES, policy("odd", json!(81)));
        reader.has("NetworkPolicy shop/odd", Some("81")).await;
        reader
            .until("one problem less", |r| r.problems.len() == 2)
            .await;
    }
}

#[tokio::test]
async fn an_address_of_ipv6_is_reached() {
    let server = Server::at("[::1]:0").await;
    fill(&server);
    let mut reader = Reader::new(&server);
    reader.until("complete", |r| r.complete).await;
    all_is_there(&reader);
}

/// Answers to a list that say "everything went well" and are no list of policies.
fn no_lists() -> [Value; 7] {
    [
        json!({}),
        json!({ "kind": "Status", "status": "Success", "code": 200 }),
        json!({ "kind": "NetworkPolicyList", "metadata": { "resourceVersion": "900" } }),
        json!({ "kind": "PodList", "metadata": { "resourceVersion": "900" }, "items": [] }),
        json!({ "kind": "NetworkPolicyList", "metadata": {}, "items": [] }),
        json!({ "metadata": { "resourceVersion": "0" }, "items": [] }),
        json!({ "metadata": { "resourceVersion": "900" }, "items": {} }),
    ]
}

#[tokio::test]
async fn what_is_no_list_is_not_taken_for_an_empty_one() {
    for answer in no_lists() {
        let server = Server::start().await;
        fill(&server);
        server.lock().streams = false;
        let mut reader = Reader::synced(&server).await;
        server.compact();
        let text = answer.to_string();
        server.fault(move |request| {
            (request.path == POLICIES && !request.is_watch()).then(|| Fault::Text(text.clone()))
        });
        let before = server.requests(POLICIES).len();
        server.end_watches(POLICIES);
        reader.until("it is told", |r| r.away.is_some()).await;
        let reason = reader.away.clone().expect("it is away").reason.clone();
        assert!(reason.contains("the server sent"), "{answer}: {reason}");
        reader
            .stays(Duration::from_millis(300), |r| {
                r.objects.contains_key("NetworkPolicy shop/web")
            })
            .await;
        let attempts = server.requests(POLICIES).len() - before;
        assert!(attempts < 40, "{attempts} attempts in so short a time");
        // And one that is a list counts, although it is empty.
        server.heal();
        server.delete(POLICIES, &policy("web", json!(80)));
        reader.has("NetworkPolicy shop/web", None).await;
        reader.until("it is back", |r| r.away.is_none()).await;
        assert_eq!(reader.changes, ["NetworkPolicy shop/web is gone"]);
    }
}

#[tokio::test]
async fn a_streamed_list_of_something_else_is_not_taken_for_an_empty_one() {
    let end = |kind: &str, version: &str| {
        let object = json!({ "kind": kind, "metadata": {
            "resourceVersion": version,
            "annotations": { "k8s.io/initial-events-end": "true" },
        }});
        format!("{}\n", json!({ "type": "BOOKMARK", "object": object }))
    };
    for answer in [
        end("Pod", "900"),
        end("NetworkPolicy", ""),
        end("NetworkPolicy", "0"),
        "{}\n".to_owned(),
    ] {
        let server = Server::start().await;
        fill(&server);
        let mut reader = Reader::synced(&server).await;
        server.compact();
        let text = answer.clone();
        server.fault(move |request| {
            (request.path == POLICIES && request.is_streamed_list())
                .then(|| Fault::Text(text.clone()))
        });
        server.end_watches(POLICIES);
        reader.until("it is told", |r| r.away.is_some()).await;
        reader
            .stays(Duration::from_millis(300), |r| {
                r.objects.contains_key("NetworkPolicy shop/web")
            })
            .await;
        server.heal();
        server.delete(POLICIES, &policy("web", json!(80)));
        reader.has("NetworkPolicy shop/web", None).await;
        assert_eq!(
            reader.changes,
            ["NetworkPolicy shop/web is gone"],
            "{answer}"
        );
    }
}

#[tokio::test]
async fn nothing_is_complete_on_the_ground_of_what_is_no_list() {
    for answer in no_lists() {
        let server = Server::start().await;
        fill(&server);
        server.lock().streams = false;
        let text = answer.to_string();
        server.fault(move |request| {
            (request.path == POLICIES && !request.is_watch()).then(|| Fault::Text(text.clone()))
        });
        let mut reader = Reader::new(&server);
        reader.until("it is told", |r| r.away.is_some()).await;
        reader
            .stays(Duration::from_millis(100), |r| !r.complete)
            .await;
        server.heal();
        reader.until("complete", |r| r.complete).await;
        all_is_there(&reader);
    }
}
