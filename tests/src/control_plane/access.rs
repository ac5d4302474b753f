//! The agent's service account, its rights as `deploy/` grants them, and the kubeconfig that it logs in with.

use std::fs;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{ControlPlane, PORT, certificates};
use crate::{deploy, manifests::DocumentId};

/// The agent's service account, in the namespace that it is deployed to.
pub const AGENT_ACCOUNT: [&str; 2] = ["kube-system", "netpol-agent"];

pub(super) const KUBECONFIG: &str = "agent.kubeconfig";
const TOKEN: &str = "agent.token";

impl ControlPlane {
    /// What `deploy/` grants the agent, service account, cluster role and its binding: [`ControlPlane::put`] it, changed or
    /// not.
    pub fn deployed(&self) -> anyhow::Result<Vec<Value>> {
        let objects = deploy::documents(&deploy::folder().join("base/rbac.yaml"))?;
        ensure!(!objects.is_empty(), "deploy/base/rbac.yaml has no object");
        Ok(objects)
    }

    /// Writes a new token of the agent's account, and the kubeconfig that names it, as the kubelet does before one expires.
    pub fn log_in(&self) -> anyhow::Result<()> {
        let [namespace, name] = AGENT_ACCOUNT;
        let account = DocumentId::new("ServiceAccount", namespace, name);
        let token = self.client.token(&self.worker, &account)?;
        let write = |name: &str, text: &str| {
            let path = self.directory.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write(TOKEN, &token)?;
        let file = |name: &str| self.directory.join(name);
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": name}}],
            "clusters": [{"name": "lab", "cluster": {
                "server": format!("https://{}:{PORT}", self.address),
                "certificate-authority": file(certificates::AUTHORITY),
            }}],
            "users": [{"name": name, "user": {"tokenFile": file(TOKEN)}}],
        });
        write(KUBECONFIG, &format!("{kubeconfig:#}\n"))
    }
}
