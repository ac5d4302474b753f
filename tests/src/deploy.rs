//! What is in `deploy/`: read and judged by the types of the Kubernetes API, and rendered as kustomize does, as far as these
//! manifests go.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Container, PodSpec, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The folder of the manifests.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// The documents of a YAML file.
///
/// # Errors
///
/// If it cannot be read.
pub fn documents(path: &Path) -> anyhow::Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(&text).with_context(|| path.display().to_string())?;
    Ok(documents.into_iter().filter(|d| !d.is_null()).collect())
}

/// An object as the API server would take it: a field that it does not know is an error.
///
/// # Errors
///
/// If it is no object of this kind, or has such a field.
pub fn strict<T: DeserializeOwned>(document: &Value) -> anyhow::Result<T> {
    let mut unknown = Vec::new();
    let object = serde_ignored::deserialize(document, |path| unknown.push(path.to_string()))?;
    ensure!(unknown.is_empty(), "there are no fields {unknown:?}");
    Ok(object)
}

/// Judges any object that `deploy/` has.
///
/// # Errors
///
/// If it is of an unknown kind, or is not as its kind is.
pub fn check(document: &Value) -> anyhow::Result<()> {
    let text = |field: &str| document[field].as_str().unwrap_or_default().to_owned();
    let kind = (text("apiVersion"), text("kind"));
    match (kind.0.as_str(), kind.1.as_str()) {
        ("v1", "ServiceAccount") => strict::<ServiceAccount>(document).map(drop),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => {
            strict::<ClusterRole>(document).map(drop)
        }
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => {
            strict::<ClusterRoleBinding>(document).map(drop)
        }
        ("apps/v1", "DaemonSet") => strict::<DaemonSet>(document).map(drop),
        _ => bail!("a kind that nobody expects: {kind:?}"),
    }
}

/// The DaemonSet as it is written in the base.
///
/// # Errors
///
/// If it cannot be read or is not well-formed.
pub fn daemon_set() -> anyhow::Result<DaemonSet> {
    let path = folder().join("base/daemonset.yaml");
    let documents = documents(&path)?;
    ensure!(documents.len() == 1, "{}: one document", path.display());
    strict(&documents[0]).with_context(|| path.display().to_string())
}

/// The specification of the agent's pods, and their containers by name.
///
/// # Errors
///
/// As [`daemon_set`].
pub fn pod() -> anyhow::Result<(PodSpec, BTreeMap<String, Container>)> {
    let spec = daemon_set()?.spec.context("no spec")?;
    let pod = spec.template.spec.context("no pod")?;
    let all = pod.init_containers.iter().flatten().chain(&pod.containers);
    let containers = all.map(|c| (c.name.clone(), c.clone())).collect();
    Ok((pod, containers))
}

/// The capabilities that the agent's container has.
///
/// # Errors
///
/// As [`daemon_set`].
pub fn capabilities() -> anyhow::Result<Vec<String>> {
    let (_, containers) = pod()?;
    let context = containers["agent"].security_context.clone();
    let capabilities = context
        .and_then(|c| c.capabilities)
        .context("no capabilities")?;
    ensure!(
        capabilities.drop.as_deref() == Some(&["ALL".to_owned()]),
        "everything else is dropped"
    );
    capabilities.add.context("no capability is added")
}
