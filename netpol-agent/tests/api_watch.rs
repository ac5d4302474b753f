//! The API server as a source: what may happen to a watch.

mod api_support;

use std::time::Duration;

use serde_json::{Value, json};

use self::api_support::{
    PODS, POLICIES, pod, policy,
    reader::Reader,
    server::{Fault, Request, Server},
    timing,
};

#[tokio::test]
async fn changes_come_as_they_happen() {
    let server = Server::start().await;
    let mut reader = Reader::synced(&server).await;
    server.put(PODS, pod("a", "1", "red"));
    reader.has("Pod shop/a", Some("red of 1")).await;
    server.put(PODS, pod("a", "1", "blue"));
    reader.has("Pod shop/a", Some("blue of 1")).await;
    server.delete(PODS, &pod("a", "1", ""));
    reader.has("Pod shop/a", None).await;
    assert_eq!(reader.changes.len(), 3, "{:?}", reader.changes);
}

#[tokio::test]
async fn a_watch_goes_on_from_the_last_bookmark() {
    let server = Server::start().await;
    let mut reader = Reader::synced(&server).await;
    server.put(PODS, pod("a", "1", "red"));
    reader.has("Pod shop/a", Some("red of 1")).await;
    // Elsewhere much happens. Nothing of it is for this watch, but the server says how far it is.
    server.lock().version = 500;
    server.bookmark(PODS, 500);
    // What the next watch must not miss.
    server.deafen(PODS);
    server.put(PODS, pod("a", "1", "blue"));
    server.compact();
    server.lock().oldest = 400;
    server.end_watches(PODS);
    server.put(PODS, pod("b", "2", "green"));
    reader.has("Pod shop/b", Some("green of 2")).await;
    let watch = server.requests(PODS).pop().expect("a watch");
    assert_eq!(watch.get("resourceVersion"), Some("500"));
    assert_eq!(watch.get("sendInitialEvents"), None);
    assert_eq!(reader.losses, 0, "the end of a watch is nothing to tell");
}

/// Lets the watch of pods expire while it is deaf, and sees that the list that follows tells only differences.
async fn expires(streams: bool, expire: impl FnOnce(&Server)) {
    let server = Server::start().await;
    server.lock().streams = streams;
    server.put(PODS, pod("same", "1", "red"));
    server.put(PODS, pod("changed", "2", "red"));
    server.put(PODS, pod("gone", "3", "red"));
    let mut reader = Reader::synced(&server).await;
    server.deafen(PODS);
    server.put(PODS, pod("changed", "2", "blue"));
    server.delete(PODS, &pod("gone", "3", ""));
    server.put(PODS, pod("new", "4", "green"));
    server.compact();
    expire(&server);
    reader.has("Pod shop/gone", None).await;
    let mut changes = reader.changes.clone();
    changes.sort();
    assert_eq!(
        changes,
        [
            "Pod shop/changed: blue of 2",
            "Pod shop/gone is gone",
            "Pod shop/new: green of 4"
        ]
    );
    assert_eq!(reader.losses, 0, "the server was there all the time");
    // And the watch goes on.
    server.put(PODS, pod("same", "1", "blue"));
    reader.has("Pod shop/same", Some("blue of 1")).await;
}

#[tokio::test]
async fn after_410_everything_is_listed_again_in_a_stream() {
    expires(true, |server| server.end_watches(PODS)).await;
}

#[tokio::test]
async fn after_410_everything_is_listed_again_in_pages() {
    expires(false, |server| server.end_watches(PODS)).await;
}

#[tokio::test]
async fn after_an_event_that_says_410_everything_is_listed_again() {
    expires(true, |server| {
        server.undeafen(PODS);
        let gone =
            json!({ "kind": "Status", "code": 410, "reason": "Expired", "message": "too old" });
        server.say(PODS, "ERROR", &gone);
    })
    .await;
}

#[tokio::test]
async fn events_that_come_twice_or_out_of_order_change_nothing() {
    let server = Server::start().await;
    let mut reader = Reader::synced(&server).await;
    let red = server.put(PODS, pod("a", "1", "red"));
    let blue = server.put(PODS, pod("a", "1", "blue"));
    let b = server.put(PODS, pod("b", "2", "red"));
    let b_gone = server.delete(PODS, &b);
    server.say(PODS, "MODIFIED", &red);
    server.say(PODS, "ADDED", &blue);
    server.say(PODS, "ADDED", &b);
    server.say(PODS, "DELETED", &b_gone);
    server.put(PODS, pod("end", "3", "red"));
    reader.has("Pod shop/end", Some("red of 3")).await;
    assert_eq!(
        reader.changes,
        [
            "Pod shop/a: red of 1",
            "Pod shop/a: blue of 1",
            "Pod shop/b: red of 2",
            "Pod shop/b is gone",
            "Pod shop/end: red of 3"
        ]
    );
}

#[tokio::test]
async fn an_object_that_is_made_again_is_another_one() {
    let server = Server::start().await;
    let mut reader = Reader::synced(&server).await;
    let first = server.put(PODS, pod("a", "1", "red"));
    let gone = server.delete(PODS, &first);
    server.put(PODS, pod("a", "2", "red"));
    reader.has("Pod shop/a", Some("red of 2")).await;
    // The end of the first one comes once more, late.
    server.say(PODS, "DELETED", &gone);
    // The third comes without a word of the end of the second.
    server.deafen(PODS);
    server.delete(PODS, &pod("a", "", ""));
    server.undeafen(PODS);
    server.put(PODS, pod("a", "3", "blue"));
    reader.has("Pod shop/a", Some("blue of 3")).await;
    assert_eq!(
        reader.changes,
        [
            "Pod shop/a: red of 1",
            "Pod shop/a is gone",
            "Pod shop/a: red of 2",
            "Pod shop/a is gone",
            "Pod shop/a: blue of 3"
        ]
    );
}

#[tokio::test]
async fn an_object_that_cannot_be_used_keeps_its_last_good_version() {
    let server = Server::start().await;
    let mut reader = Reader::synced(&server).await;
    server.put(POLICIES, policy("web", json!(80)));
    server.put(POLICIES, policy("web", json!([80])));
    server.put(POLICIES, policy("db", json!(81)));
    reader.has("NetworkPolicy shop/db", Some("81")).await;
    assert_eq!(reader.objects["NetworkPolicy shop/web"], "80");
    reader.until("it is told", |r| r.problems.len() == 1).await;
    let problem = &reader.problems[0];
    assert!(problem.withholds());
    let text = problem.to_string();
    assert!(
        text.contains("shop/web") && text.contains("last good version stays"),
        "{text}"
    );
    // Also when everything is listed again.
    server.compact();
    server.end_watches(POLICIES);
    server.put(POLICIES, policy("end", json!(82)));
    reader.has("NetworkPolicy shop/end", Some("82")).await;
    assert_eq!(reader.objects["NetworkPolicy shop/web"], "80");
    server.put(POLICIES, policy("web", json!(83)));
    reader.has("NetworkPolicy shop/web", Some("83")).await;
    reader
        .until("nothing is left to tell", |r| r.problems.is_empty())
        .await;
}

#[tokio::test]
async fn a_policy_that_was_never_good_is_in_force_without_what_is_not() {
    let two = |first: Value, second: Value| {
        let mut policy = policy("web", first);
        let port = json!({ "port": second });
        policy["spec"]["ingress"][0]["ports"]
            .as_array_mut()
            .expect("ports")
            .push(port);
        policy
    };
    let server = Server::start().await;
    let mut reader = Reader::synced(&server).await;
    server.put(POLICIES, two(json!(80), json!([1])));
    reader.has("NetworkPolicy shop/web", Some("80")).await;
    let is_told = |part: bool| {
        move |r: &Reader| {
            let told = r.problems.first().map(ToString::to_string);
            told.is_some_and(|told| told.contains("in force without this") == part)
        }
    };
    reader.until("it is told", is_told(true)).await;
    assert!(reader.problems[0].withholds());
    // As long as no version is good, each counts as far as it can be read; also the same in a list, which is no news.
    server.put(POLICIES, two(json!([1]), json!(81)));
    reader.has("NetworkPolicy shop/web", Some("81")).await;
    server.compact();
    server.end_watches(POLICIES);
    server.put(POLICIES, policy("end", json!(1)));
    reader.has("NetworkPolicy shop/end", Some("1")).await;
    assert_eq!(reader.objects["NetworkPolicy shop/web"], "81");
    // A good one, and then its last good version counts.
    server.put(POLICIES, policy("web", json!(82)));
    reader.has("NetworkPolicy shop/web", Some("82")).await;
    reader.until("it is over", |r| r.problems.is_empty()).await;
    server.put(POLICIES, two(json!(83), json!([1])));
    reader.until("it is told", is_told(false)).await;
    assert_eq!(reader.objects["NetworkPolicy shop/web"], "82");
    server.delete(POLICIES, &policy("web", json!(0)));
    reader.has("NetworkPolicy shop/web", None).await;
}

#[tokio::test]
async fn a_line_that_is_no_event_and_comes_again_is_gone_round() {
    let server = Server::start().await;
    let mut reader = Reader::synced(&server).await;
    server.put(PODS, pod("a", "1", "red"));
    server.garble(PODS);
    server.put(PODS, pod("b", "2", "red"));
    reader.has("Pod shop/b", Some("red of 2")).await;
    reader
        .until("nothing is wrong any more", |r| r.away.is_none())
        .await;
    let lists = server
        .requests(PODS)
        .into_iter()
        .filter(|r| r.is_streamed_list());
    assert_eq!(lists.count(), 2);
}

#[tokio::test]
async fn a_line_that_is_no_event_costs_a_connection_and_nothing_else() {
    let server = Server::start().await;
    let mut reader = Reader::synced(&server).await;
    server.put(PODS, pod("a", "1", "red"));
    server.say(PODS, "NONSENSE", &json!({}));
    server.put(PODS, pod("b", "2", "red"));
    reader.has("Pod shop/b", Some("red of 2")).await;
    assert_eq!(
        reader.changes,
        ["Pod shop/a: red of 1", "Pod shop/b: red of 2"]
    );
}

#[tokio::test]
async fn a_watch_that_falls_silent_is_opened_again() {
    let server = Server::start().await;
    let mut short = timing();
    short.idle = Duration::from_millis(400);
    let mut reader = Reader::with(&server, short);
    reader.until("complete", |r| r.complete).await;
    // Half-open: the connection is there, and nothing will ever come of it.
    server.deafen(PODS);
    server.put(PODS, pod("a", "1", "red"));
    reader.has("Pod shop/a", Some("red of 1")).await;
    assert_eq!(reader.losses, 0, "the new connection works at once");
}

#[tokio::test]
async fn a_watch_that_says_something_now_and_then_is_left_alone() {
    let server = Server::start().await;
    let mut short = timing();
    short.idle = Duration::from_millis(600);
    let mut reader = Reader::with(&server, short);
    reader.until("complete", |r| r.complete).await;
    for _ in 0..8 {
        let version = server.lock().version;
        for path in api_support::ALL {
            server.bookmark(path, version);
        }
        reader
            .stays(Duration::from_millis(150), |r| r.complete)
            .await;
    }
    assert_eq!(server.requests(PODS).len(), 1, "one watch, all the time");
}

#[tokio::test]
async fn a_server_that_went_back_in_time_is_listed_again() {
    let server = Server::start().await;
    server.put(PODS, pod("a", "1", "red"));
    server.put(PODS, pod("a", "1", "blue"));
    server.put(PODS, pod("b", "2", "red"));
    let mut reader = Reader::synced(&server).await;
    // Restored from a backup: a is as it was, b was never there, and numbers are given out again.
    server.deafen(PODS);
    server.delete(PODS, &pod("b", "", ""));
    {
        let mut state = server.lock();
        state.version = 100;
        state.put(PODS, pod("a", "1", "red"));
    }
    server.undeafen(PODS);
    server.bookmark(PODS, 101);
    reader.has("Pod shop/b", None).await;
    assert_eq!(reader.objects["Pod shop/a"], "red of 1");
}

#[tokio::test]
async fn watches_that_end_at_once_are_not_opened_in_a_hurry() {
    let server = Server::start().await;
    let mut reader = Reader::synced(&server).await;
    let before = server.requests(PODS).len();
    server.fault(|request| {
        (request.path == PODS && request.is_watch()).then(|| Fault::Text(String::new()))
    });
    server.end_watches(PODS);
    reader.until("it is told", |r| r.away.is_some()).await;
    reader.stays(Duration::from_millis(500), |_| true).await;
    let attempts = server.requests(PODS).len() - before;
    assert!(attempts < 40, "{attempts} attempts in half a second");
    server.heal();
    server.put(PODS, pod("a", "1", "red"));
    reader.has("Pod shop/a", Some("red of 1")).await;
    reader.until("it is back", |r| r.away.is_none()).await;
}

/// A streamed list of nothing, and what comes after it.
fn streamed_list(version: u64, then: &Value) -> String {
    let end = json!({ "type": "BOOKMARK", "object": { "metadata": {
        "resourceVersion": version.to_string(),
        "annotations": { "k8s.io/initial-events-end": "true" },
    }}});
    format!("{end}\n{then}\n")
}

/// The server gives good lists, and every watch that follows comes to nothing in this way. That is no reason to list everything as
/// fast as it can be read, and it is told for as long as it is so.
async fn comes_to_nothing(
    streams: bool,
    why: &str,
    rule: impl FnMut(&Request) -> Option<Fault> + Send + 'static,
) {
    let server = Server::start().await;
    server.lock().streams = streams;
    let mut reader = Reader::synced(&server).await;
    let mut rule = rule;
    let before = server.requests(PODS).len();
    server.fault(move |request| (request.path == PODS).then(|| rule(request)).flatten());
    server.end_watches(PODS);
    reader.until("it is told", |r| r.away.is_some()).await;
    let reason = reader.away.clone().expect("it is away").reason.clone();
    assert!(reason.contains(why), "{reason}");
    // Lists succeed, and prove nothing.
    reader
        .stays(Duration::from_millis(800), |r| r.away.is_some())
        .await;
    let attempts = server.requests(PODS).len() - before;
    assert!(attempts < 60, "{attempts} requests in less than a second");
    server.heal();
    // Ahead of whatever it has claimed.
    server.lock().version = 5000;
    server.put(PODS, pod("a", "1", "red"));
    reader.has("Pod shop/a", Some("red of 1")).await;
    reader.until("it is back", |r| r.away.is_none()).await;
    assert_eq!(reader.losses, 1, "told once");
}

#[tokio::test]
async fn a_version_that_is_too_old_as_soon_as_it_is_given_is_told() {
    comes_to_nothing(false, "does not know the version", |request| {
        let body = json!({ "kind": "Status", "code": 410, "reason": "Expired" });
        request.is_watch().then_some(Fault::Status(410, "", body))
    })
    .await;
}

#[tokio::test]
async fn a_list_that_is_ahead_of_every_watch_is_told() {
    comes_to_nothing(false, "Too large resource version", |request| {
        let body = json!({
            "kind": "Status", "code": 504, "reason": "Timeout", "message": "Too large resource version: 9, current: 8",
            "details": { "causes": [{ "reason": "ResourceVersionTooLarge" }] },
        });
        request.is_watch().then_some(Fault::Status(504, "", body))
    })
    .await;
}

#[tokio::test]
async fn an_event_that_says_410_after_every_list_is_told() {
    comes_to_nothing(true, "does not know the version", |request| {
        let gone = json!({ "kind": "Status", "code": 410, "reason": "Expired" });
        let gone = json!({ "type": "ERROR", "object": gone });
        request
            .is_watch()
            .then(|| Fault::Text(streamed_list(100, &gone)))
    })
    .await;
}

#[tokio::test]
async fn an_event_that_says_something_else_after_every_list_is_told() {
    comes_to_nothing(true, "does not give pods (500", |request| {
        let broken = json!({ "type": "ERROR", "object": { "message": "broken" } });
        request
            .is_watch()
            .then(|| Fault::Text(streamed_list(100, &broken)))
    })
    .await;
}

#[tokio::test]
async fn a_bookmark_before_the_list_after_every_list_is_told() {
    comes_to_nothing(true, "before the list", |request| {
        let old =
            json!({ "type": "BOOKMARK", "object": { "metadata": { "resourceVersion": "3" } } });
        request
            .is_watch()
            .then(|| Fault::Text(streamed_list(100, &old)))
    })
    .await;
}

#[tokio::test]
async fn watches_that_bring_a_bookmark_and_end_are_told() {
    let mut version = 1000;
    comes_to_nothing(false, "ends every watch", move |request| {
        version += 1;
        let mark = json!({ "metadata": { "resourceVersion": version.to_string() } });
        let mark = json!({ "type": "BOOKMARK", "object": mark });
        request.is_watch().then(|| Fault::Text(format!("{mark}\n")))
    })
    .await;
}

#[tokio::test]
async fn what_a_server_asks_for_with_a_version_that_it_does_not_know_is_done() {
    let server = Server::start().await;
    server.lock().streams = false;
    let mut reader = Reader::synced(&server).await;
    server.fault(|request| {
        let body = json!({
            "kind": "Status", "code": 504, "reason": "Timeout", "message": "Too large resource version",
            "details": { "causes": [{ "reason": "ResourceVersionTooLarge" }], "retryAfterSeconds": 30 },
        });
        (request.path == PODS && request.is_watch()).then_some(Fault::Status(504, "", body))
    });
    let before = server.requests(PODS).len();
    server.end_watches(PODS);
    reader.until("it is told", |r| r.away.is_some()).await;
    reader.stays(Duration::from_millis(800), |_| true).await;
    let attempts = server.requests(PODS).len() - before;
    assert_eq!(attempts, 3, "a watch, and a list and a watch at once");
}

#[tokio::test]
async fn a_watch_that_expires_after_the_server_was_away_is_no_second_failure() {
    let mut server = Server::start().await;
    let mut reader = Reader::synced(&server).await;
    server.stop().await;
    reader.until("it is told", |r| r.away.is_some()).await;
    server.put(PODS, pod("a", "1", "red"));
    server.compact();
    server.listen().await;
    let listed_at_once = |r: &Reader| {
        let reason = r.away.as_ref().map_or("", |away| &*away.reason);
        assert!(!reason.contains("does not know"), "{reason}");
        r.away.is_none() && r.objects.contains_key("Pod shop/a")
    };
    reader.until("it is back", listed_at_once).await;
}
