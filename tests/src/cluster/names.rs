//! What a scenario's objects are called on a cluster that may be in use.
//!
//! A scenario has namespaces such as `prod`, `default` and `kube-system`. On a cluster each becomes a namespace of our own,
//! `PREFIX-s07-prod`, so that several scenarios run side by side and nothing of anybody else is touched. Namespaces are known
//! to policies by their label `kubernetes.io/metadata.name`, which the API server sets to the real name: its values in selectors
//! are renamed with the namespaces. In tables the scenario's own names stay.

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};

/// The label with a namespace's own name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// On every namespace that we make; only those that carry it are ever deleted. Its value is the prefix.
pub const OURS: &str = "lab.netpol-agent/cluster-test";
/// The longest name that the API server takes for a namespace.
const LONGEST: usize = 63;

/// How the objects of one scenario are named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Names {
    prefix: String,
    scenario: String,
}

impl Names {
    /// For a scenario: `S07-default-denies` is `s07` in names.
    pub fn new(prefix: &str, scenario: &str) -> Self {
        let short = scenario.split('-').next().unwrap_or(scenario);
        Self {
            prefix: prefix.to_owned(),
            scenario: short.to_lowercase(),
        }
    }

    /// The namespace for one of the scenario.
    pub fn namespace(&self, name: &str) -> String {
        format!("{}-{}-{name}", self.prefix, self.scenario)
    }

    /// An object of the scenario as it is on the cluster. `Pod`s are not complete with this: see [`super::pods`].
    pub fn rename(&self, object: &Value) -> Result<Value> {
        let mut object = object.clone();
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        match kind.as_str() {
            "Namespace" => {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                let renamed = self.namespace(name);
                if renamed.len() > LONGEST {
                    bail!(
                        "Namespace {renamed}: the name is longer than {LONGEST} characters: choose a shorter --prefix"
                    );
                }
                object["metadata"]["name"] = json!(renamed);
                let labels = labels(&mut object);
                labels.insert(NAME_LABEL.to_owned(), json!(renamed));
                labels.insert(OURS.to_owned(), json!(self.prefix));
            }
            "Pod" | "Service" | "EndpointSlice" | "NetworkPolicy" => {
                let namespace = object["metadata"]["namespace"]
                    .as_str()
                    .unwrap_or("default");
                object["metadata"]["namespace"] = json!(self.namespace(namespace));
                if kind == "NetworkPolicy" {
                    self.rename_selected(&mut object["spec"]);
                }
            }
            other => {
                bail!("a scenario on a cluster has no documents of kind `{other}`: leave it out")
            }
        }
        Ok(object)
    }

    /// Renames the namespaces that the namespace selectors under a value name.
    fn rename_selected(&self, value: &mut Value) {
        match value {
            Value::Array(items) => items.iter_mut().for_each(|item| self.rename_selected(item)),
            Value::Object(fields) => {
                for (field, value) in fields {
                    if field == "namespaceSelector" {
                        self.rename_in_selector(value);
                    } else {
                        self.rename_selected(value);
                    }
                }
            }
            _ => {}
        }
    }

    fn rename_in_selector(&self, selector: &mut Value) {
        let renamed = |value: &Value| value.as_str().map(|name| json!(self.namespace(name)));
        if let Some(value) = selector
            .get_mut("matchLabels")
            .and_then(|labels| labels.get_mut(NAME_LABEL))
            && let Some(name) = renamed(value)
        {
            *value = name;
        }
        let expressions = selector
            .get_mut("matchExpressions")
            .and_then(Value::as_array_mut);
        for expression in expressions.into_iter().flatten() {
            if expression["key"] != NAME_LABEL {
                continue;
            }
            let values = expression.get_mut("values").and_then(Value::as_array_mut);
            for value in values.into_iter().flatten() {
                if let Some(name) = renamed(value) {
                    *value = name;
                }
            }
        }
    }
}

/// The labels of an object, made if it has none.
fn labels(object: &mut Value) -> &mut Map<String, Value> {
    let labels = &mut object["metadata"]["labels"];
    if !labels.is_object() {
        *labels = json!({});
    }
    labels.as_object_mut().expect("it was just made one")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names::new("npt", "S07-default-denies")
    }

    #[test]
    fn a_namespace_is_renamed_and_marked_as_ours() {
        let renamed = names()
            .rename(
                &json!({"kind": "Namespace", "metadata": {"name": "prod", "labels": {
                "kubernetes.io/metadata.name": "prod", "env": "production"}}}),
            )
            .unwrap();
        assert_eq!(
            renamed["metadata"],
            json!({"name": "npt-s07-prod", "labels": {
                "kubernetes.io/metadata.name": "npt-s07-prod",
                "env": "production",
                "lab.netpol-agent/cluster-test": "npt"}})
        );
    }

    #[test]
    fn what_names_no_namespace_goes_where_default_went() {
        let renamed = names()
            .rename(&json!({"kind": "Service", "metadata": {"name": "db"}}))
            .unwrap();
        assert_eq!(renamed["metadata"]["namespace"], "npt-s07-default");
    }

    #[test]
    fn selectors_follow_the_names_of_namespaces_and_nothing_else() {
        let peer = |name: &str, other: &str| {
            json!({"namespaceSelector": {
                "matchLabels": {"kubernetes.io/metadata.name": name, "env": "prod"},
                "matchExpressions": [
                    {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": [name, other]},
                    {"key": "team", "operator": "In", "values": ["prod"]},
                    {"key": "kubernetes.io/metadata.name", "operator": "Exists"}]},
                "podSelector": {"matchLabels": {"app": "prod"}}})
        };
        let policy = |namespace: &str, name: &str, other: &str| {
            json!({"kind": "NetworkPolicy",
                "metadata": {"name": "p", "namespace": namespace},
                "spec": {
                    "podSelector": {"matchLabels": {"kubernetes.io/metadata.name": "prod"}},
                    "ingress": [{"from": [peer(name, other)]}],
                    "egress": [{"to": [peer(name, other), {"ipBlock": {"cidr": "10.0.0.0/8"}}]}]}})
        };
        assert_eq!(
            names().rename(&policy("prod", "prod", "dev")).unwrap(),
            policy("npt-s07-prod", "npt-s07-prod", "npt-s07-dev")
        );
    }

    #[test]
    fn kinds_that_would_be_lost_and_names_that_are_too_long_are_refused() {
        let host = json!({"kind": "Deployment", "metadata": {"name": "x"}});
        let error = names().rename(&host).unwrap_err().to_string();
        assert!(error.contains("Deployment"), "{error}");
        let long = json!({"kind": "Namespace", "metadata": {"name": "n".repeat(60)}});
        let error = names().rename(&long).unwrap_err().to_string();
        assert!(error.contains("--prefix"), "{error}");
    }
}
