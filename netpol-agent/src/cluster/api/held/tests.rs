//! Events twice, late and out of order; lists that tell only differences.

use serde_json::json;

use super::*;

fn pod(name: &str, uid: &str, version: u64) -> Value {
    json!({
        "metadata": {
            "namespace": "shop", "name": name, "uid": uid, "resourceVersion": version.to_string(),
            "labels": { "version": version.to_string() },
        },
        "spec": { "nodeName": "node", "containers": [] },
        "status": { "podIPs": [{ "ip": "10.1.2.3" }] },
    })
}

/// A pod that cannot be used.
fn bad(name: &str, uid: &str, version: u64) -> Value {
    let mut pod = pod(name, uid, version);
    pod["status"]["podIPs"][0]["ip"] = "10.1.2.300".into();
    pod
}

/// Changes in short: `+name@version of uid` and `-name`.
fn told(changes: Vec<ObjectChange>) -> Vec<String> {
    changes
        .into_iter()
        .map(|change| match change {
            ObjectChange::Pod(pod) => {
                format!("+{}@{} of {}", pod.key.name, pod.labels["version"], pod.uid)
            }
            ObjectChange::PodGone(key) => format!("-{}", key.name),
            other => panic!("{other:?}"),
        })
        .collect()
}

struct Play(Held);

impl Play {
    fn new() -> Self {
        Self(Held::new(Kind::Pod))
    }

    fn list(&mut self, objects: impl IntoIterator<Item = Value>) -> Vec<String> {
        self.list_at(0, objects)
    }

    fn list_at(&mut self, version: u64, objects: impl IntoIterator<Item = Value>) -> Vec<String> {
        let mut changes = Vec::new();
        self.0.begin();
        for object in objects {
            self.0.listed(object, &mut changes);
        }
        self.0.end(version, &mut changes);
        let mut told = told(changes);
        told.sort();
        told
    }

    fn changed(&mut self, object: Value) -> Vec<String> {
        let mut changes = Vec::new();
        self.0.changed(object, &mut changes);
        told(changes)
    }

    fn deleted(&mut self, object: &Value) -> Vec<String> {
        let mut changes = Vec::new();
        self.0.deleted(object, &mut changes);
        told(changes)
    }
}

#[test]
fn a_list_tells_only_differences() {
    let mut play = Play::new();
    let first = [pod("a", "1", 1), pod("b", "2", 2), pod("c", "3", 3)];
    assert_eq!(play.list(first), ["+a@1 of 1", "+b@2 of 2", "+c@3 of 3"]);
    let second = [pod("a", "1", 1), pod("b", "2", 7), pod("d", "4", 4)];
    assert_eq!(play.list(second), ["+b@7 of 2", "+d@4 of 4", "-c"]);
}

#[test]
fn a_list_counts_even_if_it_is_older() {
    let mut play = Play::new();
    play.list([pod("a", "1", 9)]);
    assert_eq!(play.list([pod("a", "1", 5)]), ["+a@5 of 1"]);
    assert_eq!(play.changed(pod("a", "1", 6)), ["+a@6 of 1"]);
}

#[test]
fn events_that_come_twice_or_late_tell_nothing() {
    let mut play = Play::new();
    assert_eq!(play.changed(pod("a", "1", 5)), ["+a@5 of 1"]);
    assert_eq!(play.changed(pod("a", "1", 5)), [""; 0]);
    assert_eq!(play.changed(pod("a", "1", 4)), [""; 0]);
    assert_eq!(play.changed(pod("a", "1", 6)), ["+a@6 of 1"]);
    // Another object may be older: only its own versions count.
    assert_eq!(play.changed(pod("b", "2", 3)), ["+b@3 of 2"]);
    assert_eq!(play.deleted(&pod("a", "1", 7)), ["-a"]);
    assert_eq!(play.deleted(&pod("a", "1", 7)), [""; 0]);
    assert_eq!(play.changed(pod("a", "1", 6)), [""; 0]);
    // A new one of the same name is new, whatever was before.
    assert_eq!(play.changed(pod("a", "9", 8)), ["+a@8 of 9"]);
}

#[test]
fn an_object_that_comes_back_under_its_uid_is_there_again() {
    let mut play = Play::new();
    play.changed(pod("a", "1", 5));
    assert_eq!(play.deleted(&pod("a", "1", 7)), ["-a"]);
    // Late, up to its end.
    for version in [0, 5, 6, 7] {
        assert_eq!(play.changed(pod("a", "1", version)), [""; 0]);
    }
    // The server was restored from a backup.
    assert_eq!(play.changed(pod("a", "1", 8)), ["+a@8 of 1"]);
    // A list of version 20 does not name it: it went some time before.
    assert_eq!(play.list_at(20, []), ["-a"]);
    assert_eq!(play.changed(pod("a", "1", 19)), [""; 0]);
    assert_eq!(play.changed(pod("a", "1", 21)), ["+a@21 of 1"]);
}

#[test]
fn another_uid_is_another_object() {
    let mut play = Play::new();
    play.changed(pod("a", "1", 5));
    // The deletion of the first one was not seen.
    assert_eq!(play.changed(pod("a", "2", 8)), ["-a", "+a@8 of 2"]);
    // It comes late.
    assert_eq!(play.deleted(&pod("a", "1", 7)), [""; 0]);
    assert_eq!(play.changed(pod("a", "1", 6)), [""; 0]);
    assert_eq!(play.changed(pod("a", "2", 9)), ["+a@9 of 2"]);
    // And in a list.
    assert_eq!(play.list([pod("a", "3", 12)]), ["+a@12 of 3", "-a"]);
}

#[test]
fn what_cannot_be_used_keeps_its_last_good_version() {
    let mut play = Play::new();
    play.list([pod("a", "1", 1), bad("b", "2", 2)]);
    let problems = play.0.problems().expect("a new problem");
    let [
        Problem::Refused {
            object,
            field,
            kept,
            path,
            ..
        },
    ] = &problems[..]
    else {
        panic!("{problems:?}");
    };
    assert_eq!(object, &ObjectKey::new("shop", "b"));
    assert_eq!(
        (field.as_str(), *kept, path),
        ("status.podIPs[0].ip", false, &None)
    );
    assert!(play.0.problems().is_none(), "nothing new");

    assert_eq!(play.changed(bad("a", "1", 3)), [""; 0]);
    let problems = play.0.problems().expect("a new problem");
    assert!(
        matches!(
            &problems[..],
            [
                Problem::Refused { kept: true, .. },
                Problem::Refused { kept: false, .. }
            ]
        ),
        "{problems:?}"
    );
    // The same in a list: neither gone nor told again.
    assert_eq!(play.list([bad("a", "1", 3), bad("b", "2", 2)]), [""; 0]);
    assert!(play.0.problems().is_none(), "nothing new");
    // Corrected, and gone.
    assert_eq!(play.changed(pod("a", "1", 4)), ["+a@4 of 1"]);
    assert_eq!(play.deleted(&bad("b", "2", 5)), [""; 0]);
    assert_eq!(play.0.problems().as_deref(), Some(&[][..]));
}

#[test]
fn one_of_another_uid_that_cannot_be_used_does_not_live_on_the_old_one() {
    let mut play = Play::new();
    play.changed(pod("a", "1", 1));
    assert_eq!(play.changed(bad("a", "2", 3)), ["-a"]);
    let problems = play.0.problems().expect("a new problem");
    assert!(
        matches!(&problems[..], [Problem::Refused { kept: false, .. }]),
        "{problems:?}"
    );
}

#[test]
fn something_without_a_name_removes_nothing() {
    let mut play = Play::new();
    play.list([pod("a", "1", 1), pod("b", "2", 2)]);
    assert_eq!(play.list([pod("a", "1", 1), json!("odd")]), [""; 0]);
    let problems = play.0.problems().expect("a new problem");
    assert!(
        problems[0].to_string().contains("metadata.name"),
        "{}",
        problems[0]
    );
    assert_eq!(play.list([pod("a", "1", 1)]), ["-b"]);
    assert_eq!(play.0.problems().as_deref(), Some(&[][..]));
}

#[test]
fn what_a_list_shows_is_awaited() {
    let mut play = Play::new();
    play.list([pod("same", "1", 1), pod("old", "2", 2), pod("gone", "3", 3)]);
    let seen = Seen {
        version: 10,
        objects: [pod("same", "1", 1), pod("old", "2", 9), pod("new", "4", 8)]
            .iter()
            .filter_map(|object| Ident::of(Kind::Pod, object))
            .collect(),
    };
    // Newer than the list: not gone.
    play.changed(pod("newer", "5", 11));
    let goals = play.0.behind(&seen);
    assert_eq!(goals.len(), 3, "{goals:?}");
    let open = |play: &Play| goals.iter().filter(|goal| !play.0.meets(goal)).count();
    play.changed(pod("old", "2", 7));
    assert_eq!(open(&play), 3);
    play.changed(pod("old", "2", 9));
    assert_eq!(open(&play), 2);
    play.deleted(&pod("gone", "3", 10));
    assert_eq!(open(&play), 1);
    // Came and went.
    play.changed(pod("new", "4", 8));
    play.deleted(&pod("new", "4", 12));
    assert_eq!(open(&play), 0);
}
