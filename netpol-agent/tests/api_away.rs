//! The API server as a source: it cannot be reached, or refuses.

mod api_support;

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use self::api_support::{
    ALL, PODS, POLICIES, pod, policy,
    reader::Reader,
    server::{Fault, Server},
    timing,
};

fn refusal(code: u16, reason: &str, message: &str) -> Value {
    json!({ "kind": "Status", "code": code, "reason": reason, "message": message })
}

#[tokio::test]
async fn while_the_server_is_away_everything_stays_and_on_its_return_only_differences_come() {
    let mut server = Server::start().await;
    server.put(PODS, pod("same", "1", "red"));
    server.put(PODS, pod("gone", "2", "red"));
    let mut reader = Reader::synced(&server).await;
    let before = SystemTime::now();
    server.stop().await;
    reader.until("it is told", |r| r.away.is_some()).await;
    let away = reader.away.clone().expect("it is away");
    assert!(away.since >= before && away.since <= SystemTime::now());
    assert!(away.reason.contains("refused"), "{}", away.reason);
    // Since when does not move, and nothing goes.
    let since = away.since;
    reader
        .stays(Duration::from_millis(500), |r| {
            r.objects.len() == 2 && r.away.as_ref().is_some_and(|away| away.since == since)
        })
        .await;
    server.delete(PODS, &pod("gone", "", ""));
    server.put(PODS, pod("new", "3", "green"));
    server.listen().await;
    reader.until("it is back", |r| r.away.is_none()).await;
    reader.has("Pod shop/new", Some("green of 3")).await;
    reader.has("Pod shop/gone", None).await;
    let mut changes = reader.changes.clone();
    changes.sort();
    assert_eq!(
        changes,
        ["Pod shop/gone is gone", "Pod shop/new: green of 3"]
    );
    assert_eq!(reader.losses, 1, "lost once, for all kinds together");
}

#[tokio::test]
async fn a_server_that_is_restarted_and_has_forgotten_the_past_tells_only_differences() {
    let mut server = Server::start().await;
    server.put(PODS, pod("same", "1", "red"));
    server.put(PODS, pod("gone", "2", "red"));
    let mut reader = Reader::synced(&server).await;
    server.stop().await;
    server.delete(PODS, &pod("gone", "", ""));
    server.compact();
    server.listen().await;
    reader.has("Pod shop/gone", None).await;
    assert_eq!(reader.changes, ["Pod shop/gone is gone"]);
    reader.until("it is back", |r| r.away.is_none()).await;
}

#[tokio::test]
async fn a_server_that_is_not_there_at_the_start_is_waited_for() {
    let mut server = Server::start().await;
    server.put(PODS, pod("a", "1", "red"));
    server.stop().await;
    let mut reader = Reader::new(&server);
    reader.until("it is told", |r| r.away.is_some()).await;
    reader
        .stays(Duration::from_millis(300), |r| {
            !r.complete && r.objects.is_empty()
        })
        .await;
    server.listen().await;
    reader.until("complete", |r| r.complete).await;
    reader.until("it is there", |r| r.away.is_none()).await;
    assert_eq!(reader.objects["Pod shop/a"], "red of 1");
}

#[tokio::test]
async fn a_server_that_answers_nothing_is_away() {
    let server = Server::start().await;
    let mut reader = Reader::synced(&server).await;
    server.fault(|_| Some(Fault::Silence));
    server.end_watches(PODS);
    reader.until("it is told", |r| r.away.is_some()).await;
    let reason = reader.away.clone().expect("it is away").reason.clone();
    assert!(reason.contains("no answer within"), "{reason}");
    server.heal();
    server.put(PODS, pod("a", "1", "red"));
    reader.has("Pod shop/a", Some("red of 1")).await;
    reader.until("it is back", |r| r.away.is_none()).await;
}

#[tokio::test]
async fn a_server_that_is_busy_is_left_alone_for_as_long_as_it_asks() {
    let server = Server::start().await;
    let mut reader = Reader::synced(&server).await;
    let mut refusals = 0;
    server.fault(move |request| {
        let refuse = request.path == PODS && refusals < 2;
        refusals += u32::from(refuse);
        // Once in the header, once in the body.
        let mut body = refusal(429, "TooManyRequests", "later");
        let header = if refusals == 1 { "1" } else { "" };
        if refusals == 2 {
            body["details"]["retryAfterSeconds"] = 1.into();
        }
        refuse.then_some(Fault::Status(429, header, body))
    });
    let before = server.requests(PODS).len();
    server.end_watches(PODS);
    let start = tokio::time::Instant::now();
    server.put(PODS, pod("a", "1", "red"));
    reader.until("it is told", |r| r.away.is_some()).await;
    let reason = reader.away.clone().expect("it is away").reason.clone();
    assert!(
        reason.contains("too busy") && reason.contains("pods"),
        "{reason}"
    );
    // Others are not held up by that.
    server.put(POLICIES, policy("web", json!(80)));
    reader.has("NetworkPolicy shop/web", Some("80")).await;
    reader.has("Pod shop/a", Some("red of 1")).await;
    assert!(
        start.elapsed() >= Duration::from_secs(2),
        "not before it was asked again"
    );
    assert_eq!(
        server.requests(PODS).len() - before,
        3,
        "and not more often"
    );
}

#[tokio::test]
async fn an_error_of_the_server_is_told_and_passes() {
    let server = Server::start().await;
    let mut reader = Reader::synced(&server).await;
    server.fault(|_| Some(Fault::Status(500, "", json!("the store is broken"))));
    for path in ALL {
        server.end_watches(path);
    }
    reader.until("it is told", |r| r.away.is_some()).await;
    let reason = reader.away.clone().expect("it is away").reason.clone();
    assert!(
        reason.contains("500") && reason.contains("the store is broken"),
        "{reason}"
    );
    server.heal();
    server.put(PODS, pod("a", "1", "red"));
    reader.has("Pod shop/a", Some("red of 1")).await;
    reader.until("it is back", |r| r.away.is_none()).await;
}

/// How often a server is asked for pods in a time in which nothing comes of it.
async fn attempts(fault: Fault) -> usize {
    let server = Server::start().await;
    let mut patient = timing();
    patient.busy_limit = Duration::from_secs(60);
    let mut reader = Reader::with(&server, patient);
    reader.until("complete", |r| r.complete).await;
    let before = server.requests(PODS).len();
    server.fault(move |request| (request.path == PODS).then(|| fault.clone()));
    server.end_watches(PODS);
    reader.until("it is told", |r| r.away.is_some()).await;
    reader.stays(Duration::from_secs(2), |_| true).await;
    server.requests(PODS).len() - before
}

#[tokio::test]
async fn a_server_that_can_do_no_more_is_asked_less_and_less_often() {
    for fault in [
        Fault::Status(500, "", json!("broken")),
        Fault::Status(429, "", refusal(429, "TooManyRequests", "later")),
    ] {
        // Pauses of 10, 20, 40 ms and so on, or half as long; with the limit of those that do not answer it would be 20 and more.
        let attempts = attempts(fault).await;
        assert!(attempts <= 10, "{attempts} attempts");
    }
}

/// The server takes this token and no other.
fn demand(server: &Server, token: &'static str) {
    server.fault(move |request| {
        let body = refusal(401, "Unauthorized", "Unauthorized");
        (request.token != token).then_some(Fault::Status(401, "", body))
    });
}

#[tokio::test]
async fn a_token_that_was_exchanged_is_read_again() {
    let server = Server::start().await;
    demand(&server, "first");
    let mut reader = Reader::synced(&server).await;
    // As the kubelet does it: the file changes, and some time later the old token expires. The client itself would go on
    // with the old one for up to a minute.
    server.write_token("second");
    demand(&server, "second");
    server.end_watches(PODS);
    server.put(PODS, pod("a", "1", "red"));
    reader.has("Pod shop/a", Some("red of 1")).await;
    assert_eq!(reader.losses, 0, "nobody needs to know");
    let tokens: Vec<_> = server.requests(PODS).into_iter().map(|r| r.token).collect();
    assert_eq!(tokens, ["first", "first", "second"]);
}

#[tokio::test]
async fn a_token_that_has_expired_is_told_until_there_is_another() {
    let server = Server::start().await;
    let mut reader = Reader::synced(&server).await;
    demand(&server, "second");
    server.end_watches(PODS);
    reader.until("it is told", |r| r.away.is_some()).await;
    let reason = reader.away.clone().expect("it is away").reason.clone();
    assert!(reason.contains("credentials (401)"), "{reason}");
    server.write_token("second");
    server.put(PODS, pod("a", "1", "red"));
    reader.has("Pod shop/a", Some("red of 1")).await;
    reader.until("it is back", |r| r.away.is_none()).await;
}

#[tokio::test]
async fn what_the_agent_may_not_read_is_named() {
    let server = Server::start().await;
    server.put(PODS, pod("a", "1", "red"));
    server.fault(|request| {
        let body = refusal(403, "Forbidden", "user cannot list");
        (request.path == POLICIES).then_some(Fault::Status(403, "", body))
    });
    let mut reader = Reader::new(&server);
    reader.until("it is told", |r| r.away.is_some()).await;
    let reason = reader.away.clone().expect("it is away").reason.clone();
    for part in [
        "networkpolicies.networking.k8s.io",
        "403",
        "ClusterRole",
        "list and watch",
        "user cannot list",
    ] {
        assert!(reason.contains(part), "{part} is missing in {reason}");
    }
    // The others are read, and nothing is complete.
    reader.has("Pod shop/a", Some("red of 1")).await;
    assert!(!reader.complete);
    // Somebody binds the role.
    server.heal();
    reader.until("complete", |r| r.complete).await;
    reader.until("it is back", |r| r.away.is_none()).await;
}
