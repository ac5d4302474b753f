//! The API server as a source: waiting until everything that is there now has come.

mod api_support;

use std::time::Duration;

use netpol_agent::cluster::Source as _;
use serde_json::json;

use self::api_support::{
    PODS, pod,
    reader::Reader,
    server::{Fault, Server},
    timing,
};

#[tokio::test]
async fn an_idle_server_is_waited_for_in_no_time() {
    let server = Server::start().await;
    for n in 0..5 {
        server.put(PODS, pod(&format!("p{n}"), &n.to_string(), "red"));
    }
    server.lock().page = 2;
    let mut reader = Reader::synced(&server).await;
    // Much happened elsewhere; no watch will ever show this version.
    server.lock().version = 10_000;
    reader.reread(1).await;
    assert_eq!(reader.changes, [""; 0]);
    let looks = server.requests(PODS).into_iter().filter(|r| r.is_look());
    assert_eq!(looks.count(), 3, "names and versions, in pages");
    reader.reread(2).await;
}

#[tokio::test]
async fn what_the_watch_has_not_brought_yet_is_waited_for() {
    let server = Server::start().await;
    server.put(PODS, pod("old", "1", "red"));
    server.put(PODS, pod("gone", "2", "red"));
    let mut patient = timing();
    patient.withhold = Duration::from_secs(60);
    let mut reader = Reader::with(&server, patient);
    reader.until("complete", |r| r.complete).await;
    server.deafen(PODS);
    let old = server.put(PODS, pod("old", "1", "blue"));
    let new = server.put(PODS, pod("new", "3", "red"));
    let gone = server.delete(PODS, &pod("gone", "", ""));
    reader.api.reread(1);
    reader
        .stays(Duration::from_millis(300), |r| r.covers < 1)
        .await;
    server.undeafen(PODS);
    for (what, object) in [("MODIFIED", &old), ("ADDED", &new)] {
        server.say(PODS, what, object);
    }
    reader.has("Pod shop/new", Some("red of 3")).await;
    reader
        .stays(Duration::from_millis(300), |r| r.covers < 1)
        .await;
    server.say(PODS, "DELETED", &gone);
    reader.until("all has come", |r| r.covers >= 1).await;
    assert_eq!(reader.objects.len(), 2);
    assert_eq!(reader.objects["Pod shop/old"], "blue of 1");
}

#[tokio::test]
async fn a_watch_that_withholds_something_is_found_out() {
    let server = Server::start().await;
    let mut reader = Reader::synced(&server).await;
    server.deafen(PODS);
    server.put(PODS, pod("a", "1", "red"));
    reader.reread(1).await;
    assert_eq!(reader.objects["Pod shop/a"], "red of 1");
    assert_eq!(reader.losses, 0);
}

#[tokio::test]
async fn nothing_is_covered_while_the_server_is_away() {
    let mut server = Server::start().await;
    let mut reader = Reader::synced(&server).await;
    server.stop().await;
    reader.api.reread(1);
    reader.until("it is told", |r| r.away.is_some()).await;
    reader
        .stays(Duration::from_millis(300), |r| r.covers < 1)
        .await;
    server.put(PODS, pod("a", "1", "red"));
    server.listen().await;
    reader.until("all has come", |r| r.covers >= 1).await;
    assert_eq!(reader.objects["Pod shop/a"], "red of 1");
}

#[tokio::test]
async fn a_server_that_has_vanished_without_a_word_is_found_out_by_waiting() {
    let server = Server::start().await;
    let mut reader = Reader::synced(&server).await;
    // Every watch stays open, and nobody answers.
    server.fault(|_| Some(Fault::Silence));
    reader.api.reread(1);
    reader.until("it is told", |r| r.away.is_some()).await;
    assert_eq!(reader.covers, 0);
    server.heal();
    reader.until("all has come", |r| r.covers >= 1).await;
}

#[tokio::test]
async fn many_who_wait_cost_one_list() {
    let server = Server::start().await;
    let mut reader = Reader::synced(&server).await;
    for ticket in 1..=50 {
        reader.api.reread(ticket);
    }
    reader.until("all has come", |r| r.covers >= 50).await;
    let looks = server.requests(PODS).into_iter().filter(|r| r.is_look());
    let looks = looks.count();
    assert!((1..=3).contains(&looks), "{looks} lists");
}

#[tokio::test]
async fn a_server_that_does_not_say_what_there_is_loses_no_watch_by_that() {
    let status =
        |code: u16, reason: &str| json!({ "kind": "Status", "code": code, "reason": reason });
    for (fault, why) in [
        (
            Fault::Status(429, "", status(429, "TooManyRequests")),
            "too busy",
        ),
        (Fault::Status(500, "", json!("broken")), "500"),
        (Fault::Status(410, "", status(410, "Expired")), "410"),
        (Fault::Status(403, "", status(403, "Forbidden")), "403"),
        (Fault::Cut, "cut off"),
        (Fault::Text("{}".to_owned()), "without items"),
    ] {
        let server = Server::start().await;
        let mut reader = Reader::synced(&server).await;
        let given = fault.clone();
        server.fault(move |request| request.is_look().then(|| given.clone()));
        reader.api.reread(1);
        reader
            .until("why is told", |r| {
                r.unanswered.as_ref().is_some_and(|told| told.contains(why))
            })
            .await;
        reader
            .stays(Duration::from_millis(500), |r| {
                r.away.is_none() && r.covers < 1
            })
            .await;
        // The watch is as good as ever, and nobody is asked in a hurry.
        server.put(PODS, pod("a", "1", "red"));
        reader.has("Pod shop/a", Some("red of 1")).await;
        let requests = server.requests(PODS);
        let (looks, others): (Vec<_>, Vec<_>) = requests.iter().partition(|r| r.is_look());
        assert!((2..30).contains(&looks.len()), "{} looks", looks.len());
        assert_eq!(others.len(), 1, "one watch, all the time: {others:?}");
        server.heal();
        reader.until("all has come", |r| r.covers >= 1).await;
        assert_eq!(reader.unanswered, None, "{fault:?}");
        assert_eq!(reader.losses, 0);
    }
}

#[tokio::test]
async fn a_server_that_is_asked_to_be_left_alone_is_not_asked_again_for_those_who_wait() {
    let server = Server::start().await;
    let mut reader = Reader::synced(&server).await;
    server.fault(|request| {
        let body = json!({ "kind": "Status", "code": 429, "reason": "TooManyRequests" });
        request.is_look().then_some(Fault::Status(429, "30", body))
    });
    reader.api.reread(1);
    reader
        .until("why is told", |r| r.unanswered.is_some())
        .await;
    reader.api.reread(2);
    reader.stays(Duration::from_millis(500), |_| true).await;
    let looks = server.requests(PODS).into_iter().filter(|r| r.is_look());
    assert_eq!(looks.count(), 1);
}
