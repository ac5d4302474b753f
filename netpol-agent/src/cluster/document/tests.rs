//! What is read, and what is refused.

use super::*;

fn good(text: &str) -> Vec<Object> {
    read(Notation::Yaml, text)
        .expect("the file is valid")
        .into_iter()
        .map(|d| d.outcome.expect("the object is valid"))
        .collect()
}

#[test]
fn words_that_yaml_1_1_takes_for_booleans_stay_strings() {
    let objects = good(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: n, labels: {a: on, b: 'yes', c: \"true\", d: \"1\"}}\n",
    );
    let [Object::Namespace(namespace)] = &objects[..] else {
        panic!("one namespace");
    };
    for (key, value) in [("a", "on"), ("b", "yes"), ("c", "true"), ("d", "1")] {
        assert_eq!(namespace.labels[key], value);
    }
}

#[test]
fn several_documents_lists_and_lists_of_one_kind() {
    let text = "
---
# only a comment
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Namespace
  metadata: {name: a}
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: ignored}
---
apiVersion: v1
kind: NamespaceList
items:
- metadata: {name: b}
";
    let names: Vec<_> = good(text)
        .into_iter()
        .map(|object| match object {
            Object::Namespace(n) => n.name,
            other => panic!("unexpected {other:?}"),
        })
        .collect();
    assert_eq!(names, ["a", "b"]);
}

#[test]
fn a_syntax_error_names_its_line() {
    let error = read(Notation::Yaml, "a: 1\nb: [1, 2\nc: 3\n").expect_err("not YAML");
    assert!(
        error.line.is_some_and(|line| (2..=4).contains(&line)),
        "{error:?}"
    );
    let error = read(Notation::Json, "{\n\"a\": }").expect_err("not JSON");
    assert_eq!(error.line, Some(2));
}

#[test]
fn a_wrong_type_names_the_field() {
    let text = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: n}
spec:
  podSelector: {}
  ingress:
  - from:
    - podSelector: {matchLabels: {app: 1}}
";
    let definitions = read(Notation::Yaml, text).expect("valid YAML");
    let refusal = definitions[0]
        .outcome
        .as_ref()
        .expect_err("labels are strings");
    assert_eq!(refusal.object, ObjectKey::new("n", "p"));
    assert!(
        refusal
            .field
            .starts_with("spec.ingress[0].from[0].podSelector.matchLabels"),
        "{refusal:?}"
    );
}

#[test]
fn an_unknown_field_of_a_policy_names_its_place() {
    let refusal = |spec: &str| {
        let text = format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p}}, spec: {spec}}}"
        );
        let mut definitions = read(Notation::Yaml, &text).expect("valid YAML");
        definitions.remove(0).outcome.map(drop)
    };
    let field = |spec| refusal(spec).expect_err("refused").field;
    assert_eq!(field("{podSelektor: {}}"), "spec.podSelektor");
    assert_eq!(
        field("{podSelector: {}, ingress: [{form: []}]}"),
        "spec.ingress[0].form"
    );
    assert_eq!(
        field("{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, excpet: []}}]}]}"),
        "spec.egress[0].to[0].ipBlock.excpet"
    );
    assert_eq!(refusal("{podSelector: {}, ingress: [{from: []}]}"), Ok(()));
}

#[test]
fn an_unknown_field_of_an_object_or_of_its_metadata_is_refused() {
    let refused = |kind: &str, rest: &str| {
        let version = if kind == "NetworkPolicy" {
            "networking.k8s.io/v1"
        } else {
            "v1"
        };
        let text = format!("{{apiVersion: {version}, kind: {kind}, {rest}}}");
        let mut definitions = read(Notation::Yaml, &text).expect("valid YAML");
        definitions.remove(0).outcome.err().map(|r| r.field)
    };
    for (kind, rest, field) in [
        ("NetworkPolicy", "metadata: {name: p}, Spec: {}", "Spec"),
        (
            "NetworkPolicy",
            "metadata: {name: p, nmaespace: n}",
            "metadata.nmaespace",
        ),
        (
            "Pod",
            "metadata: {name: p, lables: {a: b}}, spec: {containers: [], new: 1}",
            "metadata.lables",
        ),
        ("Namespace", "metadata: {name: n}, labels: {a: b}", "labels"),
    ] {
        assert_eq!(refused(kind, rest).as_deref(), Some(field));
    }
    for (kind, rest) in [
        (
            "NetworkPolicy",
            "metadata: {name: p}, status: {conditions: []}",
        ),
        (
            "NetworkPolicy",
            "metadata: {name: p, managedFields: [{new: 1}]}",
        ),
        (
            "Pod",
            "metadata: {name: p}, spec: {containers: [], new: 1}, status: {new: 1}",
        ),
    ] {
        assert_eq!(refused(kind, rest), None);
    }
}

#[test]
fn an_object_that_is_nearly_ours_is_not_ignored() {
    for (kind, version, field) in [
        ("networkpolicy", "networking.k8s.io/v1", "kind"),
        ("''", "networking.k8s.io/v1", "kind"),
        ("NetworkPolicy", "networking.k8s.io/v2", "apiVersion"),
        ("pod", "v1", "kind"),
    ] {
        let text =
            format!("{{apiVersion: {version}, kind: {kind}, metadata: {{name: p}}, spec: {{}}}}");
        let definitions = read(Notation::Yaml, &text).expect("valid YAML");
        let refusal = definitions[0].outcome.as_ref().expect_err("refused");
        assert_eq!(refusal.field, field, "{text}");
    }
    let ingress = "{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: i}}";
    assert_eq!(read(Notation::Yaml, ingress), Ok(vec![]));
}

#[test]
fn a_key_twice_is_an_error_in_both_notations() {
    let text = r#"{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"},
 "spec": {"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"ports": [{"port": 80}]}],
 "podSelector": {}}}"#;
    for notation in [Notation::Yaml, Notation::Json] {
        let error = read(notation, text).expect_err("a key twice");
        assert!(error.reason.contains("podSelector"), "{error:?}");
        assert_eq!(error.line, Some(3), "{error:?}");
    }
    let once = text.replace(",\n \"podSelector\": {}", "");
    assert_eq!(
        read(Notation::Json, &once),
        read(Notation::Yaml, &once),
        "the same objects"
    );
}

#[test]
fn a_namespace_that_is_no_string_is_not_taken_for_absent() {
    for namespace in ["5", "true", "[x]", "{}"] {
        let text = format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: {namespace}}}}}"
        );
        let definitions = read(Notation::Yaml, &text).expect("valid YAML");
        let refusal = definitions[0].outcome.as_ref().expect_err("refused");
        assert_eq!(refusal.field, "metadata.namespace");
        assert_eq!(definitions[0].id, None);
    }
    for namespace in ["null", "''", "default", "'5'"] {
        let text =
            format!("{{apiVersion: v1, kind: Pod, metadata: {{name: p, namespace: {namespace}}}}}");
        assert_eq!(good(&text).len(), 1, "{namespace}");
    }
}

#[test]
fn an_old_version_is_refused_and_a_foreign_kind_ignored() {
    let text = "{apiVersion: extensions/v1beta1, kind: NetworkPolicy, metadata: {name: p}}\n---\n\
                    {apiVersion: crd.projectcalico.org/v1, kind: NetworkPolicy, metadata: {name: q}}\n";
    let definitions = read(Notation::Yaml, text).expect("valid YAML");
    assert_eq!(definitions.len(), 1);
    let refusal = definitions[0].outcome.as_ref().expect_err("refused");
    assert_eq!(refusal.field, "apiVersion");
    assert_eq!(refusal.object, ObjectKey::new("default", "p"));
}
