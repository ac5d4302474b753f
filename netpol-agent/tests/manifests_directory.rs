//! The manifest directory: what a change of its files means.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use netpol_agent::{
    cluster::{Directory, Problem, Source as _, Update},
    policy::{ObjectChange, object::ObjectKey},
};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(5);

/// A manifest directory, and the objects that its updates add up to.
struct World {
    _root: TempDir,
    path: PathBuf,
    source: Directory,
    /// Kind and key of every object, with what tells its versions apart: a label or the number of egress rules.
    objects: BTreeMap<String, String>,
    problems: Vec<Problem>,
    revision: String,
    ticket: u64,
    covers: u64,
}

fn namespace(name: &str, version: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{version: \"{version}\"}}}}\n"
    )
}

fn policy(name: &str, rules: usize, port: &str) -> String {
    let egress = vec!["{}"; rules].join(", ");
    format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: {name}, namespace: shop}}
spec:
  podSelector: {{}}
  policyTypes: [Ingress, Egress]
  ingress: [{{ports: [{{port: {port}}}]}}]
  egress: [{egress}]
"
    )
}

impl World {
    fn new(files: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        let path = root.path().join("manifests");
        fs::create_dir(&path).expect("a directory");
        for (name, text) in files {
            fs::write(path.join(name), text).expect("a file");
        }
        let source = Directory::open(&path, None).expect("the directory is there");
        Self {
            _root: root,
            path,
            source,
            objects: BTreeMap::new(),
            problems: Vec::new(),
            revision: String::new(),
            ticket: 0,
            covers: 0,
        }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path.join(name), text).expect("a file");
    }

    async fn next(&mut self) -> Update {
        let update = tokio::time::timeout(LIMIT, self.source.next())
            .await
            .expect("an update comes in time")
            .expect("the source lives");
        assert!(update.complete, "the first update is the complete list");
        for change in &update.changes {
            match change {
                ObjectChange::Namespace(n) => {
                    let version = n.labels.get("version").cloned().unwrap_or_default();
                    self.objects
                        .insert(format!("Namespace {}", n.name), version);
                }
                ObjectChange::NamespaceGone(name) => {
                    self.objects.remove(&format!("Namespace {name}"));
                }
                ObjectChange::Pod(p) => {
                    self.objects
                        .insert(format!("Pod {}", p.key), p.node.clone());
                }
                ObjectChange::PodGone(key) => {
                    self.objects.remove(&format!("Pod {key}"));
                }
                ObjectChange::Policy(p) => {
                    let rules = p.egress.as_ref().map_or(0, Vec::len).to_string();
                    self.objects
                        .insert(format!("NetworkPolicy {}", p.key), rules);
                }
                ObjectChange::PolicyGone(key) => {
                    self.objects.remove(&format!("NetworkPolicy {key}"));
                }
                ObjectChange::Service(s) => {
                    let addresses = s.addresses.len().to_string();
                    self.objects.insert(format!("Service {}", s.key), addresses);
                }
                ObjectChange::ServiceGone(key) => {
                    self.objects.remove(&format!("Service {key}"));
                }
                ObjectChange::NodeAddresses(_) => panic!("a source knows nothing of the node"),
            }
        }
        self.problems = update.problems.to_vec();
        self.revision.clone_from(&update.revision);
        self.covers = update.covers;
        update
    }

    /// Reads until everything that is there now is known.
    async fn sync(&mut self) {
        self.ticket += 1;
        self.source.reread(self.ticket);
        while self.covers < self.ticket {
            self.next().await;
        }
    }

    #[track_caller]
    fn has(&self, expected: &[(&str, &str)]) {
        let expected: BTreeMap<String, String> = expected
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        assert_eq!(
            self.objects, expected,
            "objects in force; problems: {:?}",
            self.problems
        );
    }
}

#[tokio::test]
async fn an_empty_directory_is_a_complete_list() {
    let mut world = World::new(&[]);
    assert!(world.next().await.changes.is_empty());
    world.write("a.yaml", &namespace("shop", "1"));
    world.next().await;
    world.has(&[("Namespace shop", "1")]);
}

#[tokio::test]
async fn a_file_written_in_place_or_renamed_over_counts_at_once() {
    let mut world = World::new(&[("a.yaml", &namespace("shop", "1"))]);
    world.next().await;
    let before = world.revision.clone();
    let start = Instant::now();
    world.write("a.yaml", &namespace("shop", "2"));
    world.next().await;
    assert!(
        start.elapsed() < Duration::from_millis(200),
        "{:?}",
        start.elapsed()
    );
    world.has(&[("Namespace shop", "2")]);
    assert_ne!(world.revision, before);

    let start = Instant::now();
    world.write(".a.yaml.tmp", &namespace("shop", "3"));
    fs::rename(world.path.join(".a.yaml.tmp"), world.path.join("a.yaml")).expect("a rename");
    world.next().await;
    assert!(
        start.elapsed() < Duration::from_millis(200),
        "{:?}",
        start.elapsed()
    );
    world.has(&[("Namespace shop", "3")]);
}

#[tokio::test]
async fn a_file_is_read_when_its_writer_closes_it() {
    let mut world = World::new(&[("a.yaml", &namespace("shop", "1"))]);
    world.next().await;
    let text = format!("{}---\n{}", namespace("shop", "2"), namespace("other", "2"));
    let mut file = fs::File::create(world.path.join("a.yaml")).expect("a file");
    // The first half would be valid: `other` is missing in it.
    file.write_all(&text.as_bytes()[..text.len() / 2])
        .expect("a write");
    let early = tokio::time::timeout(Duration::from_millis(100), world.source.next()).await;
    assert!(early.is_err(), "a half-written file was read: {early:?}");
    file.write_all(&text.as_bytes()[text.len() / 2..])
        .expect("a write");
    drop(file);
    world.next().await;
    world.has(&[("Namespace other", "2"), ("Namespace shop", "2")]);
}

#[tokio::test]
async fn deleting_a_file_deletes_its_objects() {
    let mut world = World::new(&[
        ("a.yaml", &namespace("shop", "1")),
        ("b.yml", &namespace("other", "1")),
    ]);
    world.next().await;
    fs::remove_file(world.path.join("a.yaml")).expect("a removal");
    world.next().await;
    world.has(&[("Namespace other", "1")]);
}

#[tokio::test]
async fn a_file_that_gets_another_name_never_takes_its_objects_away() {
    let mut world = World::new(&[("a.yaml", &namespace("shop", "1"))]);
    world.next().await;
    fs::rename(world.path.join("a.yaml"), world.path.join("b.yaml")).expect("a rename");
    tokio::time::sleep(Duration::from_millis(200)).await;
    world.ticket += 1;
    world.source.reread(world.ticket);
    while world.covers < world.ticket {
        assert_eq!(world.next().await.changes, []);
    }
    world.has(&[("Namespace shop", "1")]);
    assert_eq!(world.problems, []);
}

#[tokio::test]
async fn a_file_that_is_not_yaml_keeps_its_last_good_objects() {
    let mut world = World::new(&[
        ("a.yaml", &namespace("shop", "1")),
        ("b.yaml", &namespace("other", "1")),
    ]);
    world.next().await;
    world.write("a.yaml", "kind: Namespace\nmetadata: {name: shop\nx: [\n");
    world.next().await;
    world.has(&[("Namespace other", "1"), ("Namespace shop", "1")]);
    let [
        Problem::Unreadable {
            path, line, kept, ..
        },
    ] = &world.problems[..]
    else {
        panic!("one unreadable file: {:?}", world.problems);
    };
    assert_eq!(
        (path.file_name().and_then(|n| n.to_str()), *kept),
        (Some("a.yaml"), 1)
    );
    assert!(line.is_some());
    // Others go on, and a correction clears the report.
    world.write("b.yaml", &namespace("other", "2"));
    world.next().await;
    world.write("a.yaml", &namespace("shop", "2"));
    world.next().await;
    world.has(&[("Namespace other", "2"), ("Namespace shop", "2")]);
    assert_eq!(world.problems, []);
}

#[tokio::test]
async fn a_refused_object_keeps_its_last_good_version_and_holds_up_nobody() {
    let mut world = World::new(&[("a.yaml", &policy("web", 1, "http"))]);
    world.next().await;
    let bad = policy("web", 2, "a-name-that-is-much-too-long-for-a-port");
    world.write("a.yaml", &format!("{bad}---\n{}", policy("db", 3, "80")));
    world.next().await;
    let expected = [
        ("NetworkPolicy shop/db", "3"),
        ("NetworkPolicy shop/web", "1"),
    ];
    world.has(&expected);
    let [
        Problem::Refused {
            object,
            field,
            kept,
            ..
        },
    ] = &world.problems[..]
    else {
        panic!("one refused object: {:?}", world.problems);
    };
    assert_eq!((object, *kept), (&ObjectKey::new("shop", "web"), true));
    assert!(field.starts_with("spec.ingress[0].ports[0]"), "{field}");
    // Also across another rewrite, and when the object moves to another file while it is bad.
    world.write(
        "a.yaml",
        &format!(
            "{bad}---\n{}---\n{}",
            policy("db", 3, "80"),
            namespace("shop", "1")
        ),
    );
    world.next().await;
    world.write("b.yaml", &bad);
    world.write("a.yaml", &policy("db", 3, "80"));
    world.sync().await;
    world.has(&expected);
    // Gone is gone.
    fs::remove_file(world.path.join("b.yaml")).expect("a removal");
    world.sync().await;
    world.has(&expected[..1]);
    assert_eq!(world.problems, []);
}

#[tokio::test]
async fn an_object_that_was_never_good_is_not_in_force() {
    let selects_nobody = policy("web", 1, "80").replace("podSelector:", "podSelectr:");
    let mut world = World::new(&[("a.yaml", &selects_nobody)]);
    world.next().await;
    world.has(&[]);
    assert!(matches!(
        &world.problems[..],
        [Problem::Refused { kept: false, .. }]
    ));
    assert!(
        world.problems[0].to_string().contains("not in force"),
        "{}",
        world.problems[0]
    );
}

#[tokio::test]
async fn a_policy_that_was_never_good_is_in_force_without_what_is_not() {
    let odd = |version| policy("web", version, "[1]");
    let mut world = World::new(&[("a.yaml", &odd(1))]);
    world.next().await;
    world.has(&[("NetworkPolicy shop/web", "1")]);
    assert!(matches!(
        &world.problems[..],
        [Problem::Refused {
            kept: false,
            in_part: true,
            ..
        }]
    ));
    let told = world.problems[0].to_string();
    assert!(told.contains("in force without this"), "{told}");
    // Its changes are followed, too, for as long as no version is good.
    world.write("a.yaml", &odd(2));
    world.next().await;
    world.has(&[("NetworkPolicy shop/web", "2")]);
    world.write("a.yaml", &policy("web", 3, "80"));
    world.next().await;
    world.has(&[("NetworkPolicy shop/web", "3")]);
    assert_eq!(world.problems, []);
    world.write("a.yaml", &odd(4));
    world.next().await;
    world.has(&[("NetworkPolicy shop/web", "3")]);
    assert!(matches!(
        &world.problems[..],
        [Problem::Refused {
            kept: true,
            in_part: false,
            ..
        }]
    ));
    fs::remove_file(world.path.join("a.yaml")).expect("a removal");
    world.sync().await;
    world.has(&[]);
}

#[tokio::test]
async fn the_last_file_in_the_order_of_names_wins() {
    let mut world = World::new(&[
        ("10.yaml", &namespace("shop", "10")),
        ("20.yaml", &namespace("shop", "20")),
    ]);
    world.next().await;
    world.has(&[("Namespace shop", "20")]);
    let [problem @ Problem::Duplicate { .. }] = &world.problems[..] else {
        panic!("one duplicate: {:?}", world.problems);
    };
    assert!(!problem.withholds());
    fs::remove_file(world.path.join("20.yaml")).expect("a removal");
    world.next().await;
    world.has(&[("Namespace shop", "10")]);
    assert_eq!(world.problems, []);
}

#[tokio::test]
async fn json_lists_and_the_output_of_kubectl() {
    let list = r#"{"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": [
        {"apiVersion": "v1", "kind": "Pod",
         "metadata": {"name": "a", "namespace": "shop", "creationTimestamp": "2024-01-01T00:00:00Z"},
         "spec": {"nodeName": "here", "containers": [{"name": "c", "image": "i"}]}, "status": {"phase": "Running"}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "shop"},
         "spec": {"clusterIPs": ["10.96.0.1", "fd00:96::1"], "ports": [{"port": 80}]}, "status": {"loadBalancer": {}}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "shop"}}]}"#;
    let mut world = World::new(&[("pods.json", list), ("README.md", "no manifest")]);
    world.next().await;
    world.has(&[("Pod shop/a", "here"), ("Service shop/a", "2")]);
    assert_eq!(world.problems, []);
}

#[tokio::test]
async fn the_same_content_again_changes_nothing() {
    let mut world = World::new(&[("a.yaml", &namespace("shop", "1"))]);
    world.next().await;
    let revision = world.revision.clone();
    world.write(
        "a.yaml",
        &format!("# a comment\n{}", namespace("shop", "1")),
    );
    assert_eq!(world.next().await.changes, []);
    world.write("a.yaml", &namespace("shop", "1"));
    assert_eq!(world.next().await.changes, []);
    assert_eq!(world.revision, revision);
    world.write(".a.yaml.swp", "\0");
    world.write("a.yaml~", "x: [");
    world.sync().await;
    assert_eq!(world.problems, []);
}

#[tokio::test]
async fn a_request_is_answered_even_if_nothing_changed() {
    let mut world = World::new(&[("a.yaml", &namespace("shop", "1"))]);
    world.next().await;
    for _ in 0..3 {
        world.sync().await;
    }
    world.write("a.yaml", &namespace("shop", "2"));
    world.sync().await;
    world.has(&[("Namespace shop", "2")]);
}

#[tokio::test]
async fn a_config_map_volume_changes_all_files_at_once() {
    let mut world = World::new(&[]);
    world.next().await;
    let fill = |version: &str| {
        let data = world.path.join(format!("..{version}"));
        fs::create_dir(&data).expect("a directory");
        fs::write(data.join("a.yaml"), namespace("shop", version)).expect("a file");
        symlink(format!("..{version}"), world.path.join("..data_tmp")).expect("a link");
        fs::rename(world.path.join("..data_tmp"), world.path.join("..data")).expect("a rename");
    };
    fill("1");
    symlink("..data/a.yaml", world.path.join("a.yaml")).expect("a link");
    world.sync().await;
    world.has(&[("Namespace shop", "1")]);
    let data = world.path.join("..2");
    fs::create_dir(&data).expect("a directory");
    fs::write(data.join("a.yaml"), namespace("shop", "2")).expect("a file");
    symlink("..2", world.path.join("..data_tmp")).expect("a link");
    fs::rename(world.path.join("..data_tmp"), world.path.join("..data")).expect("a rename");
    world.next().await;
    world.has(&[("Namespace shop", "2")]);
}

#[tokio::test]
async fn a_directory_that_is_away_for_a_moment_keeps_everything() {
    let mut world = World::new(&[("a.yaml", &namespace("shop", "1"))]);
    world.next().await;
    let (path, aside) = (world.path.clone(), world.path.with_extension("aside"));
    fs::rename(&path, &aside).expect("a rename");
    let update = world.next().await;
    assert_eq!(update.changes, []);
    assert!(
        matches!(&update.problems[..], [Problem::Unreadable { path: p, kept: 1, .. }] if *p == path)
    );
    make(&path, &[("b.yaml", &namespace("other", "1"))]);
    while !world.problems.is_empty() {
        world.next().await;
    }
    world.sync().await;
    world.has(&[("Namespace other", "1")]);
    // The new one is watched.
    world.write("b.yaml", &namespace("other", "2"));
    world.next().await;
    world.has(&[("Namespace other", "2")]);
}

fn make(path: &Path, files: &[(&str, &str)]) {
    let new = path.with_extension("new");
    fs::create_dir(&new).expect("a directory");
    for (name, text) in files {
        fs::write(new.join(name), text).expect("a file");
    }
    fs::rename(new, path).expect("a rename");
}

#[tokio::test]
async fn a_directory_that_is_not_there_at_the_start_is_an_error() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let error = Directory::open(&root.path().join("typo"), None)
        .err()
        .expect("an error");
    assert!(error.to_string().contains("typo"), "{error}");
}
