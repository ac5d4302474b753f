//! A restart while a manifest is broken: what the file said before stays in force, as it would have without the restart.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use netpol_agent::{
    cluster::{Directory, Problem, Source as _},
    policy::ObjectChange,
};

fn policy(name: &str, port: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: \
         {{podSelector: {{}}, ingress: [{{ports: [{{port: {port}}}]}}]}}\n"
    )
}

/// Starts a source, and returns its policies (with their rules) and problems once all is read.
async fn start(manifests: &Path, home: &Path) -> (BTreeMap<String, String>, Vec<Problem>) {
    let mut source = Directory::open(manifests, Some(home)).expect("the directory is there");
    source.reread(1);
    let mut policies = BTreeMap::new();
    loop {
        let update = tokio::time::timeout(Duration::from_secs(5), source.next())
            .await
            .expect("an update comes in time")
            .expect("the source lives");
        for change in update.changes {
            match change {
                ObjectChange::Policy(p) => {
                    policies.insert(p.key.name.clone(), format!("{:?}", p.ingress));
                }
                ObjectChange::PolicyGone(key) => {
                    policies.remove(&key.name);
                }
                other => panic!("unexpected {other:?}"),
            }
        }
        if update.covers >= 1 {
            return (policies, update.problems.to_vec());
        }
    }
}

#[tokio::test]
async fn what_a_broken_file_said_before_a_restart_stays_in_force() {
    let root = tempfile::tempdir().expect("a directory");
    let (manifests, home) = (root.path().join("manifests"), root.path().join("run"));
    fs::create_dir_all(&manifests).expect("a directory");
    let file = manifests.join("shop.yaml");
    fs::write(&file, policy("a", "80") + &policy("b", "81")).expect("a file");
    let (good, problems) = start(&manifests, &home).await;
    assert_eq!((good.len(), problems.len()), (2, 0));

    // Not YAML any more: all of it stays.
    fs::write(&file, "spec: [").expect("a file");
    let (kept, problems) = start(&manifests, &home).await;
    assert_eq!(kept, good);
    assert!(
        matches!(&problems[..], [Problem::Unreadable { kept: 2, .. }]),
        "{problems:?}"
    );

    // One policy is changed, the other one is refused: the one is new, the other one stays.
    fs::write(
        &file,
        policy("a", "8080") + &policy("b", "no-such-port-name-anywhere"),
    )
    .expect("a file");
    let (mixed, problems) = start(&manifests, &home).await;
    assert_ne!(mixed["a"], good["a"]);
    assert_eq!(mixed["b"], good["b"]);
    assert!(
        matches!(&problems[..], [Problem::Refused { kept: true, .. }]),
        "{problems:?}"
    );

    // A file that lacks a policy has ended it, broken before or not.
    fs::write(&file, policy("a", "80")).expect("a file");
    let (fewer, problems) = start(&manifests, &home).await;
    assert!(
        fewer.len() == 1 && fewer.contains_key("a") && problems.is_empty(),
        "{fewer:?}"
    );
}

#[tokio::test]
async fn a_file_that_went_and_came_back_broken_says_nothing() {
    let root = tempfile::tempdir().expect("a directory");
    let (manifests, home) = (root.path().join("manifests"), root.path().join("run"));
    fs::create_dir_all(&manifests).expect("a directory");
    let file = manifests.join("shop.yaml");
    fs::write(&file, policy("a", "80")).expect("a file");
    assert_eq!(start(&manifests, &home).await.0.len(), 1);
    fs::remove_file(&file).expect("it was there");
    assert_eq!(start(&manifests, &home).await.0.len(), 0);
    fs::write(&file, "spec: [").expect("a file");
    let (policies, problems) = start(&manifests, &home).await;
    assert_eq!((policies.len(), problems.len()), (0, 1));
}

#[tokio::test]
async fn the_memory_of_another_directory_is_not_taken_over() {
    let root = tempfile::tempdir().expect("a directory");
    let home = root.path().join("run");
    let [one, other] = ["one", "other"].map(|name| root.path().join(name));
    for directory in [&one, &other] {
        fs::create_dir_all(directory).expect("a directory");
    }
    fs::write(one.join("shop.yaml"), policy("a", "80")).expect("a file");
    assert_eq!(start(&one, &home).await.0.len(), 1);
    fs::write(other.join("shop.yaml"), "spec: [").expect("a file");
    assert_eq!(start(&other, &home).await.0.len(), 0);
}
