//! A directory of manifests is what the agent enforces: whatever the form of a file, and however it is written.

use std::{fs::File, io::Write as _, thread, time::Duration};

use anyhow::ensure;
use netpol_tests::{
    agent::{Agent, Hook},
    lab::{Lab, Shape},
    manifests::World,
    story::{
        self, ALL_DENIED, ALL_OPEN, CLOSED, FRIENDS, FRIENDS_ONLY, Files, THREE_PODS, expect,
        status_until,
    },
};
use serde_json::{Value, json};

fn lab() -> anyhow::Result<Lab> {
    Ok(Lab::new(Shape::Routed, World::parse(THREE_PODS))?)
}

#[test]
fn a_policy_comes_changes_and_goes_with_its_file() -> anyhow::Result<()> {
    let lab = lab()?;
    let files = Files::of(&lab);
    let mut agent = Agent::start(&lab, Hook::Auto)?;
    agent.wait()?;
    expect(&lab, "with pods and no policy", ALL_OPEN)?;

    files.write("web.yaml", CLOSED)?;
    agent.wait()?;
    expect(&lab, "after the file was written", ALL_DENIED)?;

    files.write("web.yaml", FRIENDS)?;
    agent.wait()?;
    expect(&lab, "after the file was written again", FRIENDS_ONLY)?;

    files.replace("web.yaml", CLOSED)?;
    agent.wait()?;
    expect(&lab, "after another file was renamed over it", ALL_DENIED)?;

    files.replace("copy.yml", FRIENDS)?;
    files.delete("web.yaml")?;
    agent.wait()?;
    expect(&lab, "after the policy moved to another file", FRIENDS_ONLY)?;

    files.delete("copy.yml")?;
    agent.wait()?;
    expect(&lab, "after the file was deleted", ALL_OPEN)?;

    for name in [".hidden.yaml", "web.yaml.bak", "web.txt", "#web.yaml"] {
        files.write(name, CLOSED)?;
    }
    agent.wait()?;
    expect(&lab, "with files that are no manifests", ALL_OPEN)?;
    agent.stop()?;
    Ok(())
}

/// Nobody asks the agent to look: it sees changes by itself.
#[test]
fn a_change_needs_no_wait() -> anyhow::Result<()> {
    let lab = lab()?;
    let files = Files::of(&lab);
    let mut agent = Agent::start(&lab, Hook::Auto)?;
    agent.wait()?;
    let has_policies = |count| {
        move |status: &Value| {
            status["policies"].as_array().map(Vec::len) == Some(count)
                && status["pending"]["edits"] == 0
        }
    };

    // A writer who takes his time: what he has written so far is no policy, and then an empty one, and then this one.
    let mut file = File::create(files.path().join("web.yaml"))?;
    for part in FRIENDS.split_inclusive("spec:") {
        file.write_all(part.as_bytes())?;
        file.flush()?;
        thread::sleep(Duration::from_millis(100));
        let status = agent.status()?;
        ensure!(
            status["source"]["problems"] == json!([]),
            "a half-written file was read: {status:#}"
        );
    }
    drop(file);
    status_until(&agent, "the file that was closed is read", has_policies(1))?;
    expect(&lab, "after the file was closed", FRIENDS_ONLY)?;

    files.delete("web.yaml")?;
    status_until(&agent, "the deleted file is noticed", has_policies(0))?;
    expect(&lab, "after the file was deleted", ALL_OPEN)?;
    agent.stop()?;
    Ok(())
}

#[test]
fn an_empty_directory_is_filled_and_emptied_again() -> anyhow::Result<()> {
    let lab = lab()?;
    let files = Files::new(&lab)?;
    let mut agent = Agent::start_at(&lab, files.path(), Hook::Auto, &[])?;
    agent.wait()?;
    let status = agent.status()?;
    ensure!(status["enforcing"] == true, "{status:#}");
    ensure!(status["pods"] == json!([]), "{status:#}");
    expect(&lab, "with an empty directory", ALL_OPEN)?;

    files.write("policy.yaml", FRIENDS)?;
    agent.wait()?;
    expect(&lab, "with a policy and no pod", ALL_OPEN)?;

    files.write("pods.json", &list(lab.documents("Pod")).to_string())?;
    agent.wait()?;
    expect(&lab, "with pods, too", FRIENDS_ONLY)?;

    files.delete("pods.json")?;
    files.delete("policy.yaml")?;
    agent.wait()?;
    let status = agent.status()?;
    ensure!(
        status["pods"] == json!([]) && status["policies"] == json!([]),
        "{status:#}"
    );
    expect(&lab, "with an empty directory again", ALL_OPEN)?;
    agent.stop()?;
    Ok(())
}

/// What `kubectl get` adds to an object.
fn as_the_server_tells(mut object: Value) -> Value {
    let name = object["metadata"]["name"].clone();
    let metadata = &mut object["metadata"];
    metadata["uid"] = json!(format!("00000000-0000-0000-0000-{name}"));
    metadata["resourceVersion"] = json!("4711");
    metadata["generation"] = json!(3);
    metadata["creationTimestamp"] = json!("2026-01-02T03:04:05Z");
    metadata["annotations"] =
        json!({"kubectl.kubernetes.io/last-applied-configuration": "{\"kind\":\"Pod\"}\n"});
    metadata["managedFields"] = json!([{
        "apiVersion": "v1", "manager": "kubectl", "operation": "Update", "time": "2026-01-02T03:04:05Z",
        "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}},
    }]);
    object
}

fn list(items: Vec<Value>) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items})
}

const OTHER_KINDS: &str = "\
# Kinds that are none of the agent's business, and policies that are not Kubernetes' own.
---
apiVersion: apps/v1
kind: Deployment
metadata: {namespace: a, name: web}
spec: {replicas: 2, selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {containers: []}}}
---
# nothing in here
---
apiVersion: crd.projectcalico.org/v1
kind: NetworkPolicy
metadata: {namespace: a, name: web-too}
spec: {selector: all(), types: [Ingress]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {namespace: a, name: web}
automountServiceAccountToken: false
---
apiVersion: v1
kind: ConfigMap
metadata: {namespace: a, name: web}
data: {policy.yaml: 'kind: NetworkPolicy'}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Secret, metadata: {namespace: a, name: web}, data: {}}
";

/// As `kubectl get networkpolicy --output yaml` writes it.
const POLICY_LIST: &str = "\
apiVersion: v1
items:
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata:
    annotations:
      kubectl.kubernetes.io/last-applied-configuration: |
        {\"apiVersion\":\"networking.k8s.io/v1\",\"kind\":\"NetworkPolicy\"}
    creationTimestamp: \"2026-01-02T03:04:05Z\"
    generation: 1
    managedFields:
    - apiVersion: networking.k8s.io/v1
      fieldsType: FieldsV1
      fieldsV1:
        f:spec:
          f:ingress: {}
      manager: kubectl-client-side-apply
      operation: Update
      time: \"2026-01-02T03:04:05Z\"
    name: web
    namespace: a
    resourceVersion: \"815\"
    uid: 0c3e1c1e-2f2b-4d7a-9d55-4f6f3b6c3b11
  spec:
    ingress:
    - from:
      - podSelector:
          matchLabels:
            role: friend
    podSelector:
      matchLabels:
        app: web
    policyTypes:
    - Ingress
  status: {}
kind: List
metadata:
  resourceVersion: \"\"
";

#[test]
fn every_form_of_a_manifest_is_read_and_other_kinds_are_ignored() -> anyhow::Result<()> {
    let lab = lab()?;
    let files = Files::new(&lab)?;
    let pods: Vec<Value> = lab
        .documents("Pod")
        .into_iter()
        .map(as_the_server_tells)
        .collect();
    files.write(
        "namespaces.yaml",
        "---\n---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\nstatus: {phase: Active}\n---\n\
         apiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n...\n",
    )?;
    files.write("policies.yaml", POLICY_LIST)?;
    files.write("others.yaml", OTHER_KINDS)?;
    // One pod as a document of JSON, one in a list of JSON, one as YAML among others.
    files.write("web.json", &format!("{:#}", pods[0]))?;
    files.write("friends.json", &list(vec![pods[1].clone()]).to_string())?;
    files.write(
        "more.yml",
        &format!("{:#}\n---\n{OTHER_KINDS}", list(vec![pods[2].clone()])),
    )?;
    let mut agent = Agent::start_at(&lab, files.path(), Hook::Auto, &[])?;
    agent.wait()?;
    expect(&lab, "with manifests of every form", FRIENDS_ONLY)?;
    let status = agent.status()?;
    ensure!(
        status["source"]["problems"] == json!([]),
        "a manifest is not understood: {status:#}"
    );
    ensure!(
        status["policies"].as_array().map(Vec::len) == Some(1),
        "only Kubernetes' own policy counts: {status:#}"
    );
    ensure!(
        status["pods"].as_array().map(Vec::len) == Some(3),
        "{status:#}"
    );
    let web = story::pod(&status, "a", "web")?;
    ensure!(web["uid"] == pods[0]["metadata"]["uid"], "{web:#}");
    agent.stop()?;
    Ok(())
}
