//! The administrator: whole objects in, what the server makes of them out. Blocking, as the tests are.

use std::{future::ready, path::Path, time::Duration};

use anyhow::{Context as _, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::Request;
use kube::{
    Api, Config,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams,
    },
    config::AuthInfo,
};
use serde_json::{Value, json};

use super::{ETCD, certificates};
use crate::{lab::Worker, manifests::DocumentId};

/// Who has written what the lab writes.
const MANAGER: &str = "lab";

/// No request takes this long, unless the server is frozen.
const LIMIT: Duration = Duration::from_secs(20);

/// How many objects of many are written at the same time.
const AT_ONCE: usize = 16;

/// What the API server makes of an object.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    /// It is stored, like this.
    Stored(Value),
    /// It is not, for this reason.
    Refused {
        /// The status code.
        code: u16,
        /// The server's words.
        message: String,
    },
}

/// Connections to the API server, as its administrator, and to etcd.
#[derive(Clone)]
pub(super) struct Client {
    server: kube::Client,
    etcd: kube::Client,
}

impl Client {
    /// Neither needs to be there yet.
    pub fn new(worker: &Worker, directory: &Path, server: &str) -> anyhow::Result<Self> {
        let file = |name: &str| directory.join(name).display().to_string();
        let mut config = Config::new(server.parse()?);
        config.root_cert_file = Some(directory.join(certificates::AUTHORITY));
        config.auth_info = AuthInfo {
            client_certificate: Some(file(certificates::ADMIN)),
            client_key: Some(file(certificates::ADMIN_KEY)),
            ..AuthInfo::default()
        };
        config.connect_timeout = Some(LIMIT);
        config.read_timeout = Some(LIMIT);
        let etcd = Config::new(ETCD.parse()?);
        // Its connections live on the worker's runtime, which is in the right namespace.
        worker.run(move || async move {
            Ok(Self {
                server: kube::Client::try_from(config)?,
                etcd: kube::Client::try_from(etcd)?,
            })
        })
    }

    /// An error until etcd serves.
    pub fn etcd_is_ready(&self, worker: &Worker) -> anyhow::Result<()> {
        let health = fetch(
            worker,
            &self.etcd,
            Request::get("/health").body(Vec::new())?,
        )?;
        ensure!(health.contains("true"), "etcd is not healthy: {health}");
        Ok(())
    }

    /// An error until the API server has everything that it needs.
    pub fn server_is_ready(&self, worker: &Worker) -> anyhow::Result<()> {
        let ready = Request::get("/readyz").body(Vec::new())?;
        fetch(worker, &self.server, ready).map(drop)
    }

    /// The number of the last change that etcd knows.
    pub fn revision(&self, worker: &Worker) -> anyhow::Result<String> {
        let status = self.ask_etcd(worker, "/v3/maintenance/status", &json!({}))?;
        let revision = status["header"]["revision"].as_str();
        revision
            .map(str::to_owned)
            .with_context(|| format!("etcd names no revision: {status}"))
    }

    /// Writes into etcd, past the API server: all of these requests or none.
    pub fn transact(&self, worker: &Worker, requests: &[Value]) -> anyhow::Result<()> {
        self.ask_etcd(worker, "/v3/kv/txn", &json!({"success": requests}))
            .map(drop)
    }

    /// Makes etcd forget what was before its last change.
    pub fn compact(&self, worker: &Worker) -> anyhow::Result<()> {
        let wish = json!({"revision": self.revision(worker)?, "physical": true});
        self.ask_etcd(worker, "/v3/kv/compaction", &wish).map(drop)
    }

    fn ask_etcd(&self, worker: &Worker, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = Request::post(path).body(serde_json::to_vec(body)?)?;
        Ok(serde_json::from_str(&fetch(worker, &self.etcd, request)?)?)
    }

    /// What a watch of all policies since a revision says in its first second, an error too.
    pub fn watch_policies(&self, worker: &Worker, revision: &str) -> anyhow::Result<String> {
        let path = format!(
            "/apis/networking.k8s.io/v1/networkpolicies?watch=true&timeoutSeconds=1&resourceVersion={revision}"
        );
        fetch(worker, &self.server, Request::get(path).body(Vec::new())?)
    }

    /// Creates or changes an object as `kubectl apply --server-side` does, and then its status as who runs it would.
    pub fn put(&self, worker: &Worker, object: &Value) -> anyhow::Result<Value> {
        let put = self.putting(object.clone())?;
        let stored = worker.run(move || put);
        Ok(serde_json::to_value(stored?)?)
    }

    /// As [`Client::put`], some at a time.
    pub fn put_all(&self, worker: &Worker, objects: Vec<Value>) -> anyhow::Result<()> {
        let puts = objects.into_iter().map(|object| self.putting(object));
        let puts: Vec<_> = puts.collect::<anyhow::Result<_>>()?;
        worker.run(move || async move {
            stream::iter(puts)
                .buffer_unordered(AT_ONCE)
                .try_for_each(|_| ready(Ok(())))
                .await
        })
    }

    fn putting(
        &self,
        mut object: Value,
    ) -> anyhow::Result<impl Future<Output = anyhow::Result<DynamicObject>> + Send + use<>> {
        let (api, name) = self.api_of(&object)?;
        let status = object.as_object_mut().and_then(|o| o.remove("status"));
        let status = status.map(|status| {
            json!({
                "apiVersion": object["apiVersion"],
                "kind": object["kind"],
                "metadata": {"name": name},
                "status": status,
            })
        });
        Ok(async move {
            let params = PatchParams::apply(MANAGER).force();
            let patched = async {
                let stored = api.patch(&name, &params, &Patch::Apply(&object)).await?;
                match &status {
                    Some(status) => {
                        api.patch_status(&name, &params, &Patch::Apply(status))
                            .await
                    }
                    None => Ok(stored),
                }
            };
            let patched = patched.await;
            patched.with_context(|| format!("cannot put {} {name}", object["kind"]))
        })
    }

    /// Creates an object as `kubectl create` does, and hears what the server thinks of it.
    pub fn create(&self, worker: &Worker, object: &Value) -> anyhow::Result<Answer> {
        let (api, _) = self.api_of(object)?;
        let object: DynamicObject = serde_json::from_value(object.clone())?;
        let answer =
            worker.run(move || async move { api.create(&PostParams::default(), &object).await });
        match answer {
            Ok(stored) => Ok(Answer::Stored(serde_json::to_value(stored)?)),
            Err(kube::Error::Api(status)) => Ok(Answer::Refused {
                code: status.code,
                message: status.message,
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// An object as it is stored.
    pub fn get(&self, worker: &Worker, id: &DocumentId) -> anyhow::Result<Option<Value>> {
        let (api, name) = self.api(id)?;
        let found = worker.run(move || async move { api.get_opt(&name).await });
        let found = found.with_context(|| format!("cannot get {id}"))?;
        Ok(found.map(serde_json::to_value).transpose()?)
    }

    /// Deletes an object. A pod has `grace` seconds, in which it is terminating; without one there is no kubelet to end it.
    pub fn delete(
        &self,
        worker: &Worker,
        id: &DocumentId,
        grace: Option<u32>,
    ) -> anyhow::Result<()> {
        let (api, name) = self.api(id)?;
        let params = DeleteParams {
            grace_period_seconds: grace,
            ..DeleteParams::default()
        };
        let is_namespace = id.kind == "Namespace";
        let deleted = worker.run(move || async move {
            api.delete(&name, &params).await?;
            if is_namespace {
                // What the controller of namespaces does once nothing is left in it.
                let mut object = api.get(&name).await?;
                object.data["spec"]["finalizers"] = json!([]);
                let params = PostParams::default();
                api.replace_subresource("finalize", &name, &params, &object)
                    .await?;
            }
            Ok::<_, kube::Error>(())
        });
        deleted.with_context(|| format!("cannot delete {id}"))
    }

    /// A token of a service account, as the kubelet mounts one into the account's pods.
    pub fn token(&self, worker: &Worker, account: &DocumentId) -> anyhow::Result<String> {
        let (api, name) = self.api(account)?;
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": [], "expirationSeconds": 3600},
        });
        let answer: Result<Value, kube::Error> = worker.run(move || async move {
            let params = PostParams::default();
            api.create_subresource("token", &name, &params, &request)
                .await
        });
        let answer = answer.with_context(|| format!("cannot get a token of {account}"))?;
        let token = answer["status"]["token"].as_str();
        token
            .map(str::to_owned)
            .with_context(|| format!("a token request was answered without a token: {answer}"))
    }

    fn api_of(&self, object: &Value) -> anyhow::Result<(Api<DynamicObject>, String)> {
        match DocumentId::of(object) {
            Some(id) => self.api_at(&id, object["apiVersion"].as_str().unwrap_or_default()),
            None => bail!("an object without kind or name: {object}"),
        }
    }

    fn api(&self, id: &DocumentId) -> anyhow::Result<(Api<DynamicObject>, String)> {
        let version = match id.kind.as_str() {
            "NetworkPolicy" => "networking.k8s.io/v1",
            "EndpointSlice" => "discovery.k8s.io/v1",
            "ClusterRole" | "ClusterRoleBinding" => "rbac.authorization.k8s.io/v1",
            _ => "v1",
        };
        self.api_at(id, version)
    }

    fn api_at(
        &self,
        id: &DocumentId,
        version: &str,
    ) -> anyhow::Result<(Api<DynamicObject>, String)> {
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let kind = GroupVersionKind::gvk(group, version, &id.kind);
        let resource = ApiResource::from_gvk(&kind);
        let client = self.server.clone();
        let api = if id.namespace.is_empty() {
            Api::all_with(client, &resource)
        } else {
            Api::namespaced_with(client, &id.namespace, &resource)
        };
        Ok((api, id.name.clone()))
    }
}

fn fetch(
    worker: &Worker,
    client: &kube::Client,
    request: Request<Vec<u8>>,
) -> anyhow::Result<String> {
    let client = client.clone();
    Ok(worker.run(move || async move { client.request_text(request).await })?)
}
