//! The API server: applying and deleting our objects, waiting for pods, and running probes inside them.

use std::{collections::BTreeSet, fmt, path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{Namespace, Node, Pod, Service},
        discovery::v1::EndpointSlice,
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::Status,
};
use kube::{
    Api, Client, Config,
    api::{AttachParams, DeleteParams, DynamicObject, ListParams, LogParams, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, Resource},
};
use serde_json::Value;
use tokio::{
    io::AsyncReadExt as _,
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};

use super::names::OURS;
use crate::manifests::DocumentId;

/// Who we are in `metadata.managedFields`: what we no longer say of an object goes.
const MANAGER: &str = "netpol-cluster-test";
/// How many commands run in pods at the same time, all scenarios together.
const EXECS: usize = 8;
/// What an `exec` may take beyond the time that its probes may take.
const EXEC_SLACK: Duration = Duration::from_secs(60);
/// How often an `exec` that did not come to its end is started again. Probes that came to a result are never.
const EXEC_TRIES: u32 = 3;
/// How long a namespace may have no service account yet: its controller makes one soon.
const ACCOUNT_PATIENCE: Duration = Duration::from_secs(60);

/// Where a script runs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Shell {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// The container in it.
    pub container: String,
}

impl fmt::Display for Shell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.pod)
    }
}

/// A connection to a cluster.
pub struct Cluster {
    client: Client,
    execs: Semaphore,
    /// `https://...`
    pub url: String,
}

impl Cluster {
    /// Connects by a context of a kubeconfig; without a file by the one that kubectl would use.
    pub async fn connect(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Self> {
        let read = match kubeconfig {
            Some(file) => Kubeconfig::read_from(file),
            None => Kubeconfig::read(),
        };
        let options = KubeConfigOptions {
            context: context.map(str::to_owned),
            ..KubeConfigOptions::default()
        };
        let config = Config::from_custom_kubeconfig(read.context("read the kubeconfig")?, &options)
            .await
            .context("choose the context of the kubeconfig")?;
        let url = config.cluster_url.to_string();
        let client = Client::try_from(config).context("make a client")?;
        client
            .apiserver_version()
            .await
            .with_context(|| format!("ask the API server at {url} for its version"))?;
        Ok(Self {
            client,
            execs: Semaphore::new(EXECS),
            url,
        })
    }

    /// The nodes that ordinary pods may run on: ready, and without a taint that keeps them away.
    pub async fn nodes(&self) -> Result<Vec<String>> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let nodes = nodes.list(&ListParams::default()).await?;
        Ok(nodes
            .into_iter()
            .filter(takes_pods)
            .filter_map(|node| node.metadata.name)
            .collect())
    }

    /// Creates an object or changes it to what is given.
    pub async fn apply(&self, object: &Value) -> Result<()> {
        let id = id(object)?;
        let api = self.api(&id)?;
        let parameters = PatchParams::apply(MANAGER).force();
        let started = Instant::now();
        loop {
            let patch = api
                .patch(&id.name, &parameters, &Patch::Apply(object))
                .await;
            match patch {
                Ok(_) => return Ok(()),
                Err(kube::Error::Api(status))
                    if status.message.contains("service account")
                        && started.elapsed() < ACCOUNT_PATIENCE =>
                {
                    sleep(Duration::from_millis(300)).await;
                }
                Err(error) => return Err(error).with_context(|| format!("apply {id}")),
            }
        }
    }

    /// Deletes an object; one that is not there is no error.
    pub async fn delete(&self, object: &Value) -> Result<()> {
        let id = id(object)?;
        let deleted = self
            .api(&id)?
            .delete(&id.name, &DeleteParams::default())
            .await;
        match deleted {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            other => other.map(|_| ()).with_context(|| format!("delete {id}")),
        }
    }

    /// Creates a namespace that must not be there yet, except as one of ours.
    pub async fn claim(&self, namespace: &Value) -> Result<()> {
        let id = id(namespace)?;
        let there: Api<Namespace> = Api::all(self.client.clone());
        if let Some(there) = there.get_opt(&id.name).await?
            && !there
                .metadata
                .labels
                .is_some_and(|labels| labels.contains_key(OURS))
        {
            bail!(
                "Namespace {} exists and is not ours (no label {OURS}): choose another --prefix",
                id.name
            );
        }
        self.apply(namespace).await
    }

    /// The namespaces that we, or a killed run with this prefix, have made.
    pub async fn ours(&self, prefix: &str) -> Result<BTreeSet<String>> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let ours = ListParams::default().labels(&format!("{OURS}={prefix}"));
        let list = namespaces.list(&ours).await?;
        Ok(list
            .into_iter()
            .filter_map(|namespace| namespace.metadata.name)
            .collect())
    }

    /// Deletes namespaces. They go when everything in them has gone: see [`Self::wait_gone`].
    pub async fn delete_namespaces(&self, names: impl IntoIterator<Item = String>) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        for name in names {
            match namespaces.delete(&name, &DeleteParams::default()).await {
                Ok(_) => {}
                // Gone already, or going.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("delete Namespace {name}"));
                }
            }
        }
        Ok(())
    }

    /// Waits until none of our namespaces is left.
    pub async fn wait_gone(&self, prefix: &str, patience: Duration) -> Result<()> {
        let end = Instant::now() + patience;
        loop {
            let left = self.ours(prefix).await?;
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                let left: Vec<_> = left.into_iter().collect();
                bail!(
                    "still there after {} s: namespaces {}",
                    patience.as_secs(),
                    left.join(", ")
                );
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// An object as it is now.
    pub async fn get(&self, id: &DocumentId) -> Result<Value> {
        let object = self.api(id)?.get(&id.name).await;
        Ok(serde_json::to_value(
            object.with_context(|| format!("read {id}"))?,
        )?)
    }

    /// An object as it is now, if it is there.
    pub async fn find(&self, id: &DocumentId) -> Result<Option<Value>> {
        let object = self.api(id)?.get_opt(&id.name).await;
        let object = object.with_context(|| format!("read {id}"))?;
        Ok(object.map(serde_json::to_value).transpose()?)
    }

    /// What the only container of a pod has written so far.
    pub async fn log(&self, namespace: &str, pod: &str) -> Result<String> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        pods.logs(pod, &LogParams::default())
            .await
            .with_context(|| format!("read the log of pod {namespace}/{pod}"))
    }

    /// Replaces the pods of a DaemonSet, as `kubectl rollout restart` does.
    pub async fn restart(&self, namespace: &str, name: &str) -> Result<()> {
        let sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), namespace);
        let restarted = sets.restart(name).await;
        restarted.with_context(|| format!("restart DaemonSet {namespace}/{name}"))?;
        Ok(())
    }

    /// Waits until a DaemonSet runs, ready, what its specification says, on every node that it wants.
    pub async fn wait_rolled_out(
        &self,
        namespace: &str,
        name: &str,
        patience: Duration,
    ) -> Result<i32> {
        let sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), namespace);
        let end = Instant::now() + patience;
        loop {
            let set = sets.get_opt(name).await?.with_context(|| {
                format!(
                    "there is no DaemonSet {namespace}/{name}: deploy the agent, name its DaemonSet by --agent, or say \
                     --without-agent"
                )
            })?;
            let generation = set.metadata.generation;
            let status = set.status.context("a DaemonSet without status")?;
            let wanted = status.desired_number_scheduled;
            if status.observed_generation == generation
                && wanted > 0
                && status.updated_number_scheduled == Some(wanted)
                && status.number_ready == wanted
            {
                return Ok(wanted);
            }
            if Instant::now() > end {
                bail!(
                    "DaemonSet {namespace}/{name}: {} of {wanted} pods are ready after {} s",
                    status.number_ready,
                    patience.as_secs()
                );
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// Whether there is such a DaemonSet.
    pub async fn has_daemon_set(&self, namespace: &str, name: &str) -> Result<bool> {
        let sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), namespace);
        Ok(sets.get_opt(name).await?.is_some())
    }

    /// Runs a shell script in a pod and returns what `read` makes of what it printed, for at most the time that its probes may
    /// take and a generous minute. A script that ended without results is run again; results are results.
    pub async fn shell<T>(
        &self,
        place: &Shell,
        script: &str,
        probes: Duration,
        read: impl Fn(&str) -> Result<T>,
    ) -> Result<T> {
        let _turn = self.execs.acquire().await?;
        let mut last = anyhow!("not tried");
        for _ in 0..EXEC_TRIES {
            match timeout(probes + EXEC_SLACK, self.shell_once(place, script)).await {
                Ok(Ok((printed, complained))) => match read(&printed) {
                    Ok(results) => return Ok(results),
                    Err(error) if complained.is_empty() => last = error,
                    Err(error) => last = error.context(complained),
                },
                Ok(Err(error)) => last = error,
                Err(_) => last = anyhow!("no end after {} s", (probes + EXEC_SLACK).as_secs()),
            }
            eprintln!("probes in pod {place} are run again: {last:#}");
            sleep(Duration::from_secs(1)).await;
        }
        Err(last).with_context(|| format!("run probes in pod {place}"))
    }

    /// What it printed, and what it complained of.
    async fn shell_once(&self, place: &Shell, script: &str) -> Result<(String, String)> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &place.namespace);
        let streams = AttachParams::default()
            .container(&place.container)
            .stdout(true)
            .stderr(true);
        let command = ["sh", "-c", script];
        let mut process = pods.exec(&place.pod, command, &streams).await?;
        let mut stdout = process.stdout().context("stdout was asked for")?;
        let mut stderr = process.stderr().context("stderr was asked for")?;
        let ended = process
            .take_status()
            .context("the status is taken for the first time")?;
        let (mut printed, mut complained) = (String::new(), String::new());
        let (printed_all, complained_all, status) = tokio::join!(
            stdout.read_to_string(&mut printed),
            stderr.read_to_string(&mut complained),
            ended
        );
        printed_all?;
        complained_all?;
        match status {
            Some(Status {
                status: Some(word), ..
            }) if word == "Success" => Ok((printed, complained)),
            Some(status) => bail!(
                "{} {complained}",
                status.message.unwrap_or_else(|| "it failed".to_owned())
            ),
            None => bail!("the connection to the API server was cut"),
        }
    }

    fn api(&self, id: &DocumentId) -> Result<Api<DynamicObject>> {
        let resource = match id.kind.as_str() {
            "Namespace" => resource::<Namespace>(),
            "Pod" => resource::<Pod>(),
            "Service" => resource::<Service>(),
            "EndpointSlice" => resource::<EndpointSlice>(),
            "NetworkPolicy" => resource::<NetworkPolicy>(),
            other => bail!("the suite makes no objects of kind {other}"),
        };
        Ok(if id.namespace.is_empty() {
            Api::all_with(self.client.clone(), &resource)
        } else {
            Api::namespaced_with(self.client.clone(), &id.namespace, &resource)
        })
    }
}

fn resource<K: Resource<DynamicType = ()>>() -> ApiResource {
    ApiResource::erase::<K>(&())
}

fn id(object: &Value) -> Result<DocumentId> {
    DocumentId::of(object).with_context(|| format!("an object without kind or name: {object}"))
}

fn takes_pods(node: &Node) -> bool {
    let spec = node.spec.as_ref();
    let shut = spec.is_some_and(|spec| spec.unschedulable == Some(true));
    let tainted = spec
        .and_then(|spec| spec.taints.as_ref())
        .is_some_and(|taints| {
            taints
                .iter()
                .any(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"))
        });
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten();
    let ready = ready
        .filter(|condition| condition.type_ == "Ready")
        .any(|condition| condition.status == "True");
    ready && !shut && !tainted
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_go_to_ready_nodes_without_taints() {
        let node = |ready: &str, spec: Value| -> Node {
            serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec,
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap()
        };
        assert!(takes_pods(&node("True", json!({}))));
        assert!(takes_pods(&node(
            "True",
            json!({"taints": [{"key": "k", "effect": "PreferNoSchedule"}]})
        )));
        assert!(!takes_pods(&node("Unknown", json!({}))));
        assert!(!takes_pods(&node("True", json!({"unschedulable": true}))));
        assert!(!takes_pods(&node(
            "True",
            json!({"taints": [{"key": "k", "effect": "NoSchedule"}]})
        )));
    }
}
