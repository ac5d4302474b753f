//! The agent's service account, its rights as `deploy/` grants them, and the kubeconfig that it logs in with.

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{ControlPlane, PORT, certificates};
use crate::manifests::{DocumentId, World};

/// The agent's service account, in the namespace that it is deployed to.
pub const AGENT_ACCOUNT: [&str; 2] = ["kube-system", "netpol-agent"];

pub(super) const KUBECONFIG: &str = "agent.kubeconfig";
const TOKEN: &str = "agent.token";

/// The objects of `deploy/base/rbac.yaml`: service account, cluster role and its binding.
fn deployed() -> anyhow::Result<Vec<Value>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/base/rbac.yaml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let objects: Vec<Value> = World::parse(&text).all().cloned().collect();
    ensure!(!objects.is_empty(), "{} has no object", path.display());
    Ok(objects)
}

impl ControlPlane {
    /// What `deploy/` grants the agent: [`ControlPlane::put`] it, changed or not.
    pub fn deployed(&self) -> anyhow::Result<Vec<Value>> {
        deployed()
    }

    /// Writes a new token of the agent's account, and the kubeconfig that names it.
    pub(super) fn log_in(&self) -> anyhow::Result<()> {
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
