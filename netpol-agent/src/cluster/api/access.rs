//! The way to the API server.

use std::{fmt, path::PathBuf, time::Duration};

use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder, ConfigExt as _},
    config::{KubeConfigOptions, Kubeconfig},
};

use tower::{BoxError, util::MapErr};

use super::timing::Timing;

/// How the API server is found, and who the agent is to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Access {
    /// The service account of the pod in which the agent runs.
    InCluster,
    /// The current context of this file.
    Kubeconfig(PathBuf),
    /// The current context of the files that `KUBECONFIG` names.
    Environment,
}

/// The way to the API server cannot be made out.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The agent does not run in a pod, or not with a service account.
    #[error(
        "there is no service account to read the API server with: {0}; run the agent in a pod with a service account, or give \
         --kubeconfig FILE to read an API server from elsewhere, or --manifests DIR to read manifests"
    )]
    InCluster(String),
    /// The kubeconfig.
    #[error(
        "cannot use the kubeconfig {name}: {reason}; correct the file, or name another with --kubeconfig FILE"
    )]
    Kubeconfig {
        /// Which.
        name: String,
        /// Why not.
        reason: String,
    },
    /// Certificates, keys or tokens.
    #[error("cannot use the credentials for {url}: {reason}")]
    Credentials {
        /// The server.
        url: String,
        /// Why not.
        reason: String,
    },
    /// No thread or no runtime.
    #[error("cannot start the thread that reads the API server: {0}")]
    Thread(std::io::Error),
}

impl Access {
    /// What `KUBECONFIG` names, if it names something; otherwise the service account.
    pub fn infer() -> Self {
        match std::env::var_os("KUBECONFIG") {
            Some(files) if !files.is_empty() => Self::Environment,
            _ => Self::InCluster,
        }
    }

    async fn config(&self) -> Result<Config, AccessError> {
        let wrong = |reason: String| AccessError::Kubeconfig {
            name: self.to_string(),
            reason,
        };
        let kubeconfig = match self {
            Self::InCluster => {
                return Config::incluster().map_err(|e| AccessError::InCluster(causes(&e)));
            }
            Self::Kubeconfig(file) => Kubeconfig::read_from(file),
            Self::Environment => Kubeconfig::from_env().map(Option::unwrap_or_default),
        };
        let kubeconfig = kubeconfig.map_err(|e| wrong(causes(&e)))?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(|e| wrong(causes(&e)))?;
        if let Some(proxy) = &config.proxy_url {
            return Err(wrong(format!(
                "it or HTTPS_PROXY names the proxy {proxy}: the agent speaks with the API server directly"
            )));
        }
        Ok(config)
    }

    /// A client with what the files say now, and the address of the server.
    pub(super) async fn client(&self, timing: &Timing) -> Result<(Client, String), AccessError> {
        let config = self.config().await?;
        let url = config.cluster_url.to_string();
        let url = url.trim_end_matches('/').to_owned();
        let client = client(&config, timing).map_err(|e| AccessError::Credentials {
            url: url.clone(),
            reason: causes(&e),
        })?;
        Ok((client, url))
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InCluster => f.write_str("service account"),
            Self::Kubeconfig(file) => write!(f, "{}", file.display()),
            Self::Environment => f.write_str("that KUBECONFIG names"),
        }
    }
}

/// kube's layers over a connector that notices dead connections. kube's own stack retries by itself, up to a quarter of an
/// hour, and logs every attempt; here the caller does both.
fn client(config: &Config, timing: &Timing) -> Result<Client, kube::Error> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(timing.connect));
    http.set_keepalive(Some(PROBE));
    http.set_keepalive_interval(Some(PROBE));
    http.set_keepalive_retries(Some(3));
    // Data or probes that nobody acknowledges for so long end the connection.
    http.set_tcp_user_timeout(Some(4 * PROBE));
    let connector = config.rustls_https_connector_with_connector(http)?;
    let client: legacy::Client<_, Body> = legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(timing.answer)
        .pool_max_idle_per_host(1)
        .build(connector);
    let client = MapErr::new(client, BoxError::from);
    let builder = ClientBuilder::new(client, &config.default_namespace)
        .with_layer(&config.base_uri_layer())
        .with_layer(&config.extra_headers_layer()?);
    Ok(match config.auth_layer()? {
        Some(auth) => builder.with_layer(&auth).build(),
        None => builder.build(),
    })
}

/// How often a connection on which nothing comes is probed.
const PROBE: Duration = Duration::from_secs(10);

/// An error with its causes, each told once.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
