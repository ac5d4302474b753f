//! The manifests directory, one file for each object, and the random changes in it.
//!
//! Files of a directory are not read at one moment: a reader may see the new version of one and the old version of
//! another. So the promise "every version allows it" must hold for every mixture of versions. Where several policies
//! share a pod that must stay isolated, one of them is the **anchor**: each of its versions covers everything by itself,
//! whatever the others say. Before another policy becomes the anchor, the agent is awaited.

use std::{collections::BTreeMap, fs, path::PathBuf};

use netpol_tests::{lab::Lab, table::Party};
use serde_json::{Value, json};

use super::cover::{Dice, Need, Peer, exactly, except, policy, rules};

/// How many policies each app may have.
const SLOTS: usize = 4;

/// The pods of the lab's own node, as blocks.
const PODS: [&str; 2] = ["10.244.1.0/24", "fd00:10:244:1::/64"];
const EVERYBODY: [&str; 2] = ["0.0.0.0/0", "::/0"];
const OUTSIDE: [&str; 2] = ["10.0.5.0/24", "fd00:5::/64"];

/// The manifests of a lab, in files of their own.
pub struct Book {
    directory: PathBuf,
    objects: BTreeMap<String, Value>,
    server: (Need, Need),
    public: Need,
    lounge: Need,
    friend: (Need, Need),
    anchors: BTreeMap<&'static str, usize>,
}

/// Whether the agent must be awaited before the next flip.
#[derive(PartialEq, Eq)]
pub enum Next {
    /// Any time.
    AtOnce,
    /// Wait first.
    Wait,
}

impl Book {
    /// Takes over a lab's manifests; its world must not be changed through the lab any more.
    pub fn open(lab: &Lab) -> anyhow::Result<Self> {
        let directory = lab.manifests();
        for entry in fs::read_dir(&directory)? {
            fs::remove_file(entry?.path())?;
        }
        let address = |party: Party| lab.addresses(&party).map(<[_]>::to_vec);
        let near = address(Party::pod("a", "friend"))?;
        let far = address(Party::pod("c", "friend"))?;
        let host = address(Party::host("friend"))?;
        let foes = [
            address(Party::pod("a", "foe"))?,
            address(Party::pod("b", "foe"))?,
            address(Party::host("foe"))?,
        ]
        .concat();
        let pod_foes: Vec<_> = foes[..4].to_vec();
        let (all_pods, everywhere) = (except(PODS, &pod_foes), except(EVERYBODY, &foes));
        let friend = json!({"matchLabels": {"app": "friend"}});
        let no_foe = json!({"matchExpressions": [{"key": "foe", "operator": "DoesNotExist"}]});
        let in_or = json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["friend", "nobody"]}]});
        let team = |name: &str| json!({"matchLabels": {"team": name}});
        let near = Peer {
            selectors: vec![
                json!({"podSelector": friend}),
                json!({"podSelector": in_or}),
                json!({"podSelector": no_foe}),
                json!({"namespaceSelector": {}, "podSelector": friend}),
                json!({"namespaceSelector": team("a"), "podSelector": no_foe}),
            ],
            blocks: vec![exactly(&near), all_pods.clone(), everywhere.clone()],
        };
        let far = Peer {
            selectors: vec![
                json!({"namespaceSelector": team("c")}),
                json!({"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["a", "b"]}]}}),
                json!({"namespaceSelector": {}, "podSelector": friend}),
                json!({"namespaceSelector": team("c"), "podSelector": in_or}),
                json!({"namespaceSelector": {}, "podSelector": no_foe}),
            ],
            blocks: vec![exactly(&far), all_pods, everywhere.clone()],
        };
        let outside = [exactly(&host), except(OUTSIDE, &foes[4..]), everywhere];
        let host = Peer {
            selectors: Vec::new(),
            blocks: outside.into(),
        };
        let need = |peers: &[&Peer], everybody| Need {
            peers: peers.iter().copied().cloned().collect(),
            everybody,
        };
        let servers = Peer {
            selectors: vec![
                json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["server", "public", "lounge"]}]}}),
                json!({"podSelector": {}}),
                json!({"namespaceSelector": team("a")}),
                json!({"namespaceSelector": {}, "podSelector": no_foe}),
            ],
            blocks: vec![except(PODS, &[]), except(EVERYBODY, &[])],
        };
        let friends = need(&[&near, &far, &host], false);
        let mut book = Self {
            directory,
            objects: BTreeMap::new(),
            server: (friends.clone(), friends),
            public: need(&[&near], true),
            lounge: need(&[&near], true),
            friend: (need(&[&servers], true), need(&[&servers], true)),
            anchors: BTreeMap::from([("server", 0), ("public", 0)]),
        };
        for kind in ["Namespace", "Pod"] {
            for document in lab.documents(kind) {
                let [namespace, name] = ["namespace", "name"].map(|key| {
                    document["metadata"][key]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned()
                });
                book.put(format!("{kind}-{namespace}-{name}"), document)?;
            }
        }
        // Every foe is shut out from the beginning.
        for app in ["server", "public"] {
            book.anchor(app, 0, &mut Dice::new(0))?;
        }
        Ok(book)
    }

    /// One random change of one file.
    pub fn flip(&mut self, dice: &mut Dice) -> anyhow::Result<Next> {
        let slot = dice.below(SLOTS);
        match dice.below(12) {
            0..=3 => self.isolated(dice, "server", slot),
            4..=5 => self.isolated(dice, "public", slot),
            6..=7 => {
                // Isolated or not: who may come in may come in, and gets replies.
                let policy = match dice.below(3) {
                    0 => None,
                    1 => Some(policy(
                        &format!("lounge-{slot}"),
                        "lounge",
                        None,
                        Some(Vec::new()),
                    )),
                    _ => {
                        let ingress = rules(dice, &self.lounge, "from");
                        Some(policy(
                            &format!("lounge-{slot}"),
                            "lounge",
                            Some(ingress),
                            None,
                        ))
                    }
                };
                self.set(format!("policy-lounge-{slot}"), policy)?;
                Ok(Next::AtOnce)
            }
            8..=9 => {
                let (from, to) = self.friend.clone();
                let ingress = dice.once_in(2).then(|| rules(dice, &from, "from"));
                let egress = dice.once_in(2).then(|| rules(dice, &to, "to"));
                let policy = (ingress.is_some() || egress.is_some())
                    .then(|| policy(&format!("friend-{slot}"), "friend", ingress, egress));
                self.set(format!("policy-friend-{slot}"), policy)?;
                Ok(Next::AtOnce)
            }
            _ => {
                // Labels that no rule needs.
                let file = dice.pick(&[
                    "Pod-a-friend",
                    "Pod-c-friend",
                    "Pod-a-extra",
                    "Pod-b-extra",
                    "Namespace--a",
                    "Namespace--b",
                    "Namespace--c",
                ]);
                let mut object = self.objects[file].clone();
                object["metadata"]["labels"]["revision"] = match dice.below(5) {
                    4 => json!("none"),
                    revision => json!(revision.to_string()),
                };
                self.put(file.to_owned(), object)?;
                Ok(Next::AtOnce)
            }
        }
    }

    /// Replaces all policies of an app by one.
    pub fn only(&mut self, app: &str, value: Value) -> anyhow::Result<()> {
        self.put(format!("policy-{app}-0"), value)?;
        for slot in 1..SLOTS {
            self.set(format!("policy-{app}-{slot}"), None)?;
        }
        Ok(())
    }

    /// A flip among the policies of an app that must stay isolated.
    fn isolated(
        &mut self,
        dice: &mut Dice,
        app: &'static str,
        slot: usize,
    ) -> anyhow::Result<Next> {
        if self.anchors[app] == slot {
            self.anchor(app, slot, dice)?;
            return Ok(Next::AtOnce);
        }
        match dice.below(6) {
            // It covers everything, and will be the anchor once it is enforced.
            0 => {
                self.anchor(app, slot, dice)?;
                self.anchors.insert(app, slot);
                return Ok(Next::Wait);
            }
            1 => self.anchor(app, slot, dice)?,
            2 => {
                let nothing = policy(
                    &format!("{app}-{slot}"),
                    app,
                    Some(Vec::new()),
                    Some(Vec::new()),
                );
                // Nobody needs what `public` sends.
                self.put(format!("policy-{app}-{slot}"), nothing)?;
            }
            3 => {
                // A part of what is needed.
                let mut part = self.need(app).0;
                let left = dice.below(part.peers.len());
                part.peers = vec![part.peers.swap_remove(left)];
                let ingress = rules(dice, &part, "from");
                let value = policy(&format!("{app}-{slot}"), app, Some(ingress), None);
                self.put(format!("policy-{app}-{slot}"), value)?;
            }
            _ => self.set(format!("policy-{app}-{slot}"), None)?,
        }
        Ok(Next::AtOnce)
    }

    /// Writes a policy that covers everything that the pods of an app need.
    fn anchor(&mut self, app: &str, slot: usize, dice: &mut Dice) -> anyhow::Result<()> {
        let (from, to) = self.need(app);
        let ingress = rules(dice, &from, "from");
        let egress = to.map(|to| rules(dice, &to, "to"));
        let value = policy(&format!("{app}-{slot}"), app, Some(ingress), egress);
        self.put(format!("policy-{app}-{slot}"), value)
    }

    fn need(&self, app: &str) -> (Need, Option<Need>) {
        match app {
            "server" => (self.server.0.clone(), Some(self.server.1.clone())),
            _ => (self.public.clone(), None),
        }
    }

    fn set(&mut self, file: String, value: Option<Value>) -> anyhow::Result<()> {
        match value {
            Some(value) => self.put(file, value),
            None if self.objects.remove(&file).is_some() => Ok(fs::remove_file(
                self.directory.join(format!("{file}.json")),
            )?),
            None => Ok(()),
        }
    }

    fn put(&mut self, file: String, value: Value) -> anyhow::Result<()> {
        let temporary = self.directory.join(format!(".{file}.new"));
        fs::write(&temporary, value.to_string())?;
        fs::rename(&temporary, self.directory.join(format!("{file}.json")))?;
        self.objects.insert(file, value);
        Ok(())
    }
}
