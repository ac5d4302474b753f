//! The manifests in `deploy/`, without a cluster: well-formed, consistent with each other and with the agent's command line.

use std::{
    collections::BTreeSet, fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command,
};

use anyhow::{Context as _, ensure};
use netpol_tests::deploy;
use serde_json::{Value, json};

/// All of `deploy/` that is the agent's. `deploy/kind` is the cluster that the agent is tried on: kind's own configuration, and
/// Flannel as its makers wrote it.
fn yaml_files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path == deploy::folder().join("kind") {
            continue;
        }
        if path.is_dir() {
            yaml_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "yaml") {
            found.push(path);
        }
    }
}

#[test]
fn every_object_is_as_the_api_server_wants_it() -> anyhow::Result<()> {
    let mut files = Vec::new();
    yaml_files(&deploy::folder(), &mut files);
    let mut objects = 0;
    for file in files {
        for document in deploy::documents(&file)? {
            let part_of_kustomize = document["apiVersion"]
                .as_str()
                .is_some_and(|v| v.starts_with("kustomize.config.k8s.io/"));
            let patch = file.ends_with("uninstall/cleanup.yaml");
            if !part_of_kustomize && !patch {
                deploy::check(&document).with_context(|| file.display().to_string())?;
                objects += 1;
            }
        }
    }
    ensure!(objects == 4, "{objects} objects");
    // The check itself can fail.
    let mut document = deploy::documents(&deploy::folder().join("base/daemonset.yaml"))?.remove(0);
    document["spec"]["template"]["spec"]["hostNetwrok"] = true.into();
    let error = deploy::check(&document).expect_err("a field that does not exist");
    ensure!(error.to_string().contains("hostNetwrok"), "{error}");
    Ok(())
}

/// What a kustomization refers to is there, and nothing in `deploy/` is left out by mistake.
#[test]
fn every_kustomization_finds_its_parts() -> anyhow::Result<()> {
    let mut files = Vec::new();
    yaml_files(&deploy::folder(), &mut files);
    let mut kustomizations = 0;
    for file in files.iter().filter(|f| f.ends_with("kustomization.yaml")) {
        kustomizations += 1;
        let folder = file.parent().context("a folder")?;
        let document = deploy::documents(file)?.remove(0);
        let mut parts = 0;
        for list in ["resources", "components"] {
            for part in document[list].as_array().into_iter().flatten() {
                let path = folder.join(part.as_str().context("a path")?);
                let there = path.is_file() || path.join("kustomization.yaml").is_file();
                ensure!(there, "{}: {}", file.display(), path.display());
                parts += 1;
            }
        }
        parts += document["patches"].as_array().map_or(0, Vec::len);
        ensure!(parts > 0, "{} is empty", file.display());
        let unknown: Vec<_> = document.as_object().context("an object")?.keys().collect();
        let known = [
            "apiVersion",
            "kind",
            "resources",
            "components",
            "images",
            "patches",
        ];
        ensure!(
            unknown.iter().all(|key| known.contains(&key.as_str())),
            "{}: {unknown:?}",
            file.display()
        );
    }
    ensure!(kustomizations == 6, "{kustomizations} kustomizations");
    Ok(())
}

#[test]
fn the_image_is_the_one_that_xtask_builds() -> anyhow::Result<()> {
    let document = deploy::documents(&deploy::folder().join("base/kustomization.yaml"))?.remove(0);
    ensure!(
        document["images"]
            == json!([{
                "name": "netpol-agent",
                "newName": "localhost/netpol-agent",
                "newTag": env!("CARGO_PKG_VERSION"),
            }]),
        "{document:#}"
    );
    let (_, containers) = deploy::pod()?;
    for container in containers.values() {
        ensure!(
            container.image.as_deref() == Some("netpol-agent"),
            "{container:#?}"
        );
    }
    Ok(())
}

/// The agent reads four kinds of objects and writes nothing.
#[test]
fn the_agent_may_read_what_it_needs_and_nothing_else() -> anyhow::Result<()> {
    let documents = deploy::documents(&deploy::folder().join("base/rbac.yaml"))?;
    let role = documents
        .iter()
        .find(|d| d["kind"] == "ClusterRole")
        .context("a ClusterRole")?;
    let mut resources = BTreeSet::new();
    for rule in role["rules"].as_array().context("rules")? {
        ensure!(rule["verbs"] == json!(["list", "watch"]), "{rule:#}");
        for group in rule["apiGroups"].as_array().context("groups")? {
            for resource in rule["resources"].as_array().context("resources")? {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                resources.insert((text(group), text(resource)));
            }
        }
    }
    let wanted = [
        ("", "namespaces"),
        ("", "pods"),
        ("", "services"),
        ("networking.k8s.io", "networkpolicies"),
    ];
    let wanted: BTreeSet<_> = wanted
        .map(|(group, resource)| (group.to_owned(), resource.to_owned()))
        .into();
    ensure!(resources == wanted, "{resources:?}");
    Ok(())
}

/// A node must come up, stay up and be replaceable whatever the agent does; and the agent must not be more than it has to be.
#[test]
fn the_pod_keeps_its_promises() -> anyhow::Result<()> {
    let set = deploy::daemon_set()?;
    let update = set.spec.and_then(|s| s.update_strategy).context("update")?;
    ensure!(
        update
            .rolling_update
            .is_some_and(|r| r.max_unavailable.is_some() && r.max_surge.is_none()),
        "two agents cannot be on one node, so one goes before the next comes"
    );
    let (pod, containers) = deploy::pod()?;
    ensure!(
        pod.host_network == Some(true),
        "the programs are the node's"
    );
    ensure!(pod.host_pid.is_none(), "no process of others is looked at");
    ensure!(pod.priority_class_name.as_deref() == Some("system-node-critical"));
    let tolerations = pod.tolerations.context("tolerations")?;
    ensure!(
        tolerations
            .iter()
            .any(|t| t.operator.as_deref() == Some("Exists")
                && t.key.is_none()
                && t.effect.is_none()),
        "every taint is tolerated"
    );
    let agent = &containers["agent"];
    let context = agent.security_context.clone().context("a context")?;
    ensure!(context.read_only_root_filesystem == Some(true));
    ensure!(context.privileged.is_none());
    ensure!(context.allow_privilege_escalation == Some(false));
    let resources = agent.resources.clone().context("resources")?;
    ensure!(
        resources.requests.is_some() && resources.limits.is_none(),
        "an agent that is throttled or killed for its memory enforces later"
    );
    for probe in [
        &agent.liveness_probe,
        &agent.readiness_probe,
        &agent.startup_probe,
    ] {
        let probe = probe.as_ref().context("a probe")?;
        ensure!(
            probe.timeout_seconds > Some(5),
            "the agent takes up to 5 s to say that its loop is stuck"
        );
    }
    for volume in pod.volumes.iter().flatten() {
        let mounts = agent.volume_mounts.iter().flatten();
        ensure!(mounts.clone().any(|m| m.name == volume.name), "{volume:?}");
    }
    // The API server refuses this propagation to containers that are not privileged.
    for container in containers.values() {
        let privileged = container
            .security_context
            .as_ref()
            .and_then(|c| c.privileged)
            == Some(true);
        for mount in container.volume_mounts.iter().flatten() {
            let both_ways = mount.mount_propagation.as_deref() == Some("Bidirectional");
            ensure!(!both_ways || privileged, "{}: {mount:?}", container.name);
        }
    }
    Ok(())
}

/// The manifest and the page say the same of capabilities; and what the manifest sets, the agent knows.
#[test]
fn what_is_written_of_the_agent_is_so() -> anyhow::Result<()> {
    let read = |path: &str| fs::read_to_string(deploy::folder().join("..").join(path));
    let page = read("docs/install.md")?;
    let (_, table) = page
        .split_once("| capability | for |\n|---|---|\n")
        .context("the table of capabilities")?;
    let rows = table.lines().map_while(|line| line.strip_prefix("| `"));
    let documented: BTreeSet<String> = rows
        .filter_map(|row| Some(row.split_once('`')?.0.to_owned()))
        .collect();
    let given: BTreeSet<String> = deploy::capabilities()?.into_iter().collect();
    ensure!(documented == given, "{documented:?}, {given:?}");

    let options = read("netpol-agent/src/cli/mod.rs")?;
    let (_, containers) = deploy::pod()?;
    let mut known = 0;
    for variable in containers["agent"].env.iter().flatten() {
        if variable.name != "HOST_IP" {
            let option = format!("env = \"{}\"", variable.name);
            ensure!(options.contains(&option), "{}", variable.name);
            known += 1;
        }
    }
    ensure!(known == 4, "{known} variables");
    Ok(())
}

/// What `deploy/uninstall.sh` does with a cluster that answers `get daemonset` like this: whether it succeeds, what it asked
/// kubectl for, and what it says.
fn uninstall(get_daemonset: &str) -> anyhow::Result<(bool, Vec<String>, String)> {
    let home = tempfile::tempdir()?;
    let asked = home.path().join("asked");
    let stub = home.path().join("kubectl");
    let script = format!(
        "#!/bin/sh\necho \"$*\" >>'{}'\ncase \"$*\" in *'get daemonset'*) {get_daemonset} ;; esac\n",
        asked.display()
    );
    fs::write(&stub, script)?;
    fs::set_permissions(&stub, fs::Permissions::from_mode(0o755))?;
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("sh")
        .arg(deploy::folder().join("uninstall.sh"))
        .env("PATH", format!("{}:{path}", home.path().display()))
        .output()?;
    let asked = fs::read_to_string(asked)?;
    Ok((
        output.status.success(),
        asked.lines().map(str::to_owned).collect(),
        String::from_utf8(output.stderr)?,
    ))
}

#[test]
fn uninstalling_cleans_every_node_before_it_deletes() -> anyhow::Result<()> {
    let (done, asked, _) = uninstall("echo daemonset.apps/netpol-agent")?;
    ensure!(done);
    let place = |what: &str| asked.iter().position(|line| line.contains(what));
    let (patch, wait, delete) = (place("patch"), place("rollout status"), place("delete"));
    ensure!(
        patch.is_some() && patch < wait && wait < delete,
        "{asked:#?}"
    );
    Ok(())
}

#[test]
fn uninstalling_deletes_nothing_from_a_cluster_that_does_not_answer() -> anyhow::Result<()> {
    let (done, asked, _) = uninstall("echo 'Unable to connect to the server' >&2; exit 1")?;
    ensure!(!done);
    ensure!(asked.len() == 1, "{asked:#?}");
    Ok(())
}

#[test]
fn uninstalling_says_that_no_node_was_cleaned_where_there_is_no_agent() -> anyhow::Result<()> {
    let (done, asked, told) = uninstall("true")?;
    ensure!(done);
    ensure!(
        asked.len() == 2 && asked[1].contains("delete"),
        "{asked:#?}"
    );
    ensure!(
        told.contains("no node was cleaned up") && told.contains("netpol-agent cleanup"),
        "{told}"
    );
    Ok(())
}
