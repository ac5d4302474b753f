//! A world is read, edited, and written as it was.

use super::*;

const WORLD: &str = "\
# the world
---
apiVersion: v1
kind: Namespace
metadata: {name: prod}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {namespace: prod, name: web}, spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}}
- {apiVersion: v1, kind: Service, metadata: {namespace: prod, name: web}}
--- # another
kind: NetworkPolicy
metadata: {name: p}
spec: {podSelector: {}}   # kept as written
";

fn placement(_: &PodManifest) -> Option<Placement> {
    Some(Placement {
        node: "node".to_owned(),
        host_addresses: Vec::new(),
        addresses: vec!["10.244.1.2".parse().expect("an address")],
    })
}

#[test]
fn only_pods_are_rewritten() {
    let world = World::parse(WORLD);
    assert!(world.problems().is_empty());
    let text = &world.materialise(placement)["world.yaml"];
    assert!(
        text.contains("spec: {podSelector: {}}   # kept as written"),
        "{text}"
    );
    let again = World::parse(text);
    let pod = again
        .get(&DocumentId::pod("prod", "web"))
        .expect("the pod is there");
    assert_eq!(pod["spec"]["nodeName"], "node");
    assert_eq!(pod["status"]["podIPs"], json!([{"ip": "10.244.1.2"}]));
    assert_eq!(pod["status"]["phase"], "Running");
    assert!(again.get(&DocumentId::policy("default", "p")).is_some());
    assert!(
        again
            .get(&DocumentId::new("Service", "prod", "web"))
            .is_some()
    );
}

#[test]
fn documents_are_edited_by_name_even_in_lists() {
    let mut world = World::parse(WORLD);
    let web = DocumentId::pod("prod", "web");
    world
        .label(&web, &[("app", Some("web"))])
        .expect("it is there");
    assert_eq!(
        world.get(&web).expect("still")["metadata"]["labels"]["app"],
        "web"
    );
    world.label(&web, &[("app", None)]).expect("it is there");
    assert_eq!(
        world.get(&web).expect("still")["metadata"]["labels"],
        json!({})
    );
    world.apply("kind: Namespace\nmetadata: {name: prod, labels: {env: live}}\n");
    assert_eq!(world.ids("Namespace").len(), 1);
    world.remove(&web).expect("it is there");
    assert!(world.pods().is_empty());
    assert!(world.remove(&web).is_err());
}

#[test]
fn what_cannot_be_read_is_passed_on() {
    let mut world = World::parse(
        "kind: [\n---\nkind: Pod\nmetadata: {}\n---\nkind: Namespace\nmetadata: {name: a}\n",
    );
    let problems: Vec<String> = world.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[1].contains("metadata.name"), "{problems:?}");
    world.overlay_policies(World::parse("kind: NetworkPolicy\nmetadata: {name: p}\n"));
    assert!(world.materialise(placement)["world.yaml"].starts_with("kind: [\n---\n"));
}
