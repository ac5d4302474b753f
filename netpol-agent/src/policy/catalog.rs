//! Everything that has a number in the tables, and the rows that join rulesets with classes.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use netpol_common::{NO_CLASS, RuleKey};

use super::{
    edit::{Edit, Generation},
    fingerprint::Fingerprint,
    grant::Granted,
    ports::PortSet,
    store::{Ref, Store},
    term::{Match, Term},
};

/// The terms that an address matches: sorted, never empty.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Class(pub(super) Vec<Match>);

/// What a pod allows in one direction.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Ruleset {
    /// What each term adds, sorted. A term with a port name adds the peer's own number, whatever stands here.
    entries: Vec<(Ref<Term>, PortSet)>,
    /// What everybody has.
    everybody: PortSet,
}

/// Where a term is mentioned.
struct Links {
    digest: u128,
    /// Whether peers are matched against it. A term is not, before its first use and after it was taken away, as long as
    /// classes that mention it are still in the tables.
    matched: bool,
    classes: BTreeSet<Ref<Class>>,
    rulesets: BTreeSet<Ref<Ruleset>>,
}

/// A ruleset and a class; without a class it is what the ruleset gives to everybody.
type Row = (Ref<Ruleset>, Option<Ref<Class>>);

/// Terms, classes, rulesets, port sets, and the rows of the rule table.
///
/// One rule holds at all times, for everything in it, retired or not: a ruleset and a class have a row exactly when the
/// class adds something to what the ruleset gives to everybody. A row is a function of the contents of both, so it never
/// changes, and what is needed again after it was retired needs no edit.
#[derive(Default)]
pub(super) struct Catalog {
    terms: Store<Term>,
    links: HashMap<Ref<Term>, Links>,
    classes: Store<Class>,
    rulesets: Store<Ruleset>,
    port_sets: Store<PortSet>,
    rows: HashMap<Row, Ref<PortSet>>,
    /// Edits of port sets, and of rows, since they were last taken.
    pub(super) port_edits: Vec<Edit>,
    pub(super) rule_edits: Vec<Edit>,
}

impl Catalog {
    pub(super) fn term(&self, term: Ref<Term>) -> &Arc<Term> {
        self.terms.content(term)
    }

    pub(super) fn class_id(&self, class: Option<Ref<Class>>) -> u64 {
        class.map_or(NO_CLASS, |class| self.classes.id(class))
    }

    pub(super) fn ruleset_id(&self, ruleset: Ref<Ruleset>) -> u64 {
        self.rulesets.id(ruleset)
    }

    pub(super) fn is_settled(&self) -> bool {
        self.terms.is_settled()
            && self.classes.is_settled()
            && self.rulesets.is_settled()
            && self.port_sets.is_settled()
    }

    /// The ruleset of what was granted, referred to once more. The terms that peers have to be matched against from now on
    /// are added to `fresh`.
    pub(super) fn acquire_ruleset(
        &mut self,
        granted: Granted,
        fresh: &mut Vec<Ref<Term>>,
    ) -> Ref<Ruleset> {
        let mut entries: Vec<_> = granted
            .terms
            .into_iter()
            .map(|(term, ports)| (self.intern_term(term), ports))
            .collect();
        entries.sort_unstable_by_key(|(term, _)| *term);
        let content = Ruleset {
            entries,
            everybody: granted.everybody,
        };
        let ruleset = match self.rulesets.find(&content) {
            Some(ruleset) => ruleset,
            None => self.insert_ruleset(content),
        };
        self.acquire(ruleset, fresh);
        ruleset
    }

    /// Adds a reference to a ruleset.
    pub(super) fn acquire(&mut self, ruleset: Ref<Ruleset>, fresh: &mut Vec<Ref<Term>>) {
        if !self.rulesets.acquire(ruleset) {
            return;
        }
        let content = self.rulesets.content(ruleset).clone();
        for (term, _) in &content.entries {
            self.terms.acquire(*term);
            if let Some(links) = self.links.get_mut(term)
                && !links.matched
            {
                links.matched = true;
                fresh.push(*term);
            }
        }
    }

    pub(super) fn release_ruleset(&mut self, ruleset: Ref<Ruleset>, now: Generation) {
        if self.rulesets.release(ruleset, now) {
            let content = self.rulesets.content(ruleset).clone();
            for (term, _) in &content.entries {
                self.terms.release(*term, now);
            }
        }
    }

    /// The class of these matches (sorted), referred to once more; `None` is no class at all.
    pub(super) fn acquire_class(&mut self, matches: Vec<Match>) -> Option<Ref<Class>> {
        if matches.is_empty() {
            return None;
        }
        let content = Class(matches);
        let class = match self.classes.find(&content) {
            Some(class) => class,
            None => self.insert_class(content),
        };
        self.classes.acquire(class);
        Some(class)
    }

    pub(super) fn release_class(&mut self, class: Ref<Class>, now: Generation) {
        self.classes.release(class, now);
    }

    /// The matches that make a class.
    pub(super) fn class(&self, class: Option<Ref<Class>>) -> &[Match] {
        class.map_or(&[], |class| &self.classes.content(class).0)
    }

    fn intern_term(&mut self, content: Arc<Term>) -> Ref<Term> {
        if let Some(term) = self.terms.find(&content) {
            return term;
        }
        let digest = content.digest();
        let term = self.terms.insert(content, digest as u64);
        self.links.insert(
            term,
            Links {
                digest,
                matched: false,
                classes: BTreeSet::new(),
                rulesets: BTreeSet::new(),
            },
        );
        term
    }

    fn insert_ruleset(&mut self, content: Ruleset) -> Ref<Ruleset> {
        let mut described: Vec<_> = content
            .entries
            .iter()
            .map(|(term, ports)| (self.links[term].digest, ports))
            .collect();
        described.sort_unstable_by_key(|(digest, _)| *digest);
        let mut number = Fingerprint::new("ruleset");
        content.everybody.describe(&mut number);
        for (digest, ports) in described {
            number.number(digest);
            ports.describe(&mut number);
        }
        let content = Arc::new(content);
        let ruleset = self.rulesets.insert(content.clone(), number.id());

        if !content.everybody.is_empty() {
            self.insert_row(ruleset, None, content.everybody.clone());
        }
        let mut classes = BTreeSet::new();
        for (term, _) in &content.entries {
            if let Some(links) = self.links.get_mut(term) {
                links.rulesets.insert(ruleset);
                classes.extend(links.classes.iter().copied());
            }
        }
        for class in classes {
            self.join(ruleset, class);
        }
        ruleset
    }

    fn insert_class(&mut self, content: Class) -> Ref<Class> {
        let mut described: Vec<_> = content
            .0
            .iter()
            .map(|(term, number)| (self.links[term].digest, *number))
            .collect();
        described.sort_unstable();
        let mut number = Fingerprint::new("class");
        for (digest, port) in described {
            number.number(digest).number(port.into());
        }
        let content = Arc::new(content);
        let class = self.classes.insert(content.clone(), number.id());

        let mut rulesets = BTreeSet::new();
        for (term, _) in &content.0 {
            if let Some(links) = self.links.get_mut(term) {
                links.classes.insert(class);
                rulesets.extend(links.rulesets.iter().copied());
            }
        }
        for ruleset in rulesets {
            self.join(ruleset, class);
        }
        class
    }

    /// The row of a ruleset and a class: everything that the class's terms add, and what everybody has.
    fn join(&mut self, ruleset: Ref<Ruleset>, class: Ref<Class>) {
        let rules = self.rulesets.content(ruleset).clone();
        let matches = self.classes.content(class).clone();
        let mut sets = vec![rules.everybody.clone()];
        for (term, number) in &matches.0 {
            let Ok(at) = rules.entries.binary_search_by_key(term, |(t, _)| *t) else {
                continue;
            };
            match &**self.terms.content(*term) {
                Term::Pods {
                    name: Some((protocol, _)),
                    ..
                } => sets.push(PortSet::range(*protocol, *number, *number)),
                _ => sets.push(rules.entries[at].1.clone()),
            }
        }
        let ports = PortSet::union(&sets);
        if ports != rules.everybody {
            self.insert_row(ruleset, Some(class), ports);
        }
    }

    fn insert_row(&mut self, ruleset: Ref<Ruleset>, class: Option<Ref<Class>>, ports: PortSet) {
        let set = match self.port_sets.find(&ports) {
            Some(set) => set,
            None => {
                let number = ports.number();
                let ports = Arc::new(ports);
                let set = self.port_sets.insert(ports.clone(), number);
                let id = self.port_sets.id(set);
                self.port_edits.extend(port_edits(&ports, id, true));
                set
            }
        };
        self.port_sets.acquire(set);
        self.rows.insert((ruleset, class), set);
        let edit = self.row(ruleset, class, Some(set));
        self.rule_edits.push(edit);
    }

    fn remove_row(
        &mut self,
        ruleset: Ref<Ruleset>,
        class: Option<Ref<Class>>,
        now: Generation,
        out: &mut Vec<Edit>,
    ) {
        if let Some(set) = self.rows.remove(&(ruleset, class)) {
            out.push(self.row(ruleset, class, None));
            self.port_sets.release(set, now);
        }
    }

    fn row(
        &self,
        ruleset: Ref<Ruleset>,
        class: Option<Ref<Class>>,
        set: Option<Ref<PortSet>>,
    ) -> Edit {
        Edit::Rule {
            key: RuleKey {
                ruleset: self.rulesets.id(ruleset),
                class: self.class_id(class),
            },
            ports: set.map(|set| self.port_sets.id(set)),
        }
    }

    /// Removes the rulesets that no endpoint has had since `safe`, with their rows.
    pub(super) fn remove_rulesets(
        &mut self,
        safe: Generation,
        now: Generation,
        out: &mut Vec<Edit>,
    ) {
        for ruleset in self.rulesets.retired(safe) {
            let content = self.rulesets.content(ruleset).clone();
            let mut classes = BTreeSet::new();
            for (term, _) in &content.entries {
                if let Some(links) = self.links.get_mut(term) {
                    links.rulesets.remove(&ruleset);
                    classes.extend(links.classes.iter().copied());
                }
            }
            for class in classes {
                self.remove_row(ruleset, Some(class), now, out);
            }
            self.remove_row(ruleset, None, now, out);
            self.rulesets.remove(ruleset);
        }
    }

    /// Terms that no ruleset has named since `safe`. From now on no peer is to be matched against them.
    pub(super) fn unmatch_terms(&mut self, safe: Generation) -> Vec<Ref<Term>> {
        let stale = self.terms.retired(safe);
        for term in &stale {
            self.terms.shelve(*term);
            if let Some(links) = self.links.get_mut(term) {
                links.matched = false;
            }
        }
        stale
    }

    /// Forgets a term that nothing mentions any more.
    pub(super) fn forget_term(&mut self, term: Ref<Term>) {
        let Some(links) = self.links.get(&term) else {
            return;
        };
        let mentioned = links.matched || !links.classes.is_empty() || !links.rulesets.is_empty();
        if !mentioned && !self.terms.is_referenced(term) {
            self.links.remove(&term);
            self.terms.remove(term);
        }
    }

    /// Removes the classes that no address has had since `safe`, with their rows.
    pub(super) fn remove_classes(
        &mut self,
        safe: Generation,
        now: Generation,
        out: &mut Vec<Edit>,
    ) {
        for class in self.classes.retired(safe) {
            let content = self.classes.content(class).clone();
            let mut rulesets = BTreeSet::new();
            for (term, _) in &content.0 {
                if let Some(links) = self.links.get_mut(term) {
                    links.classes.remove(&class);
                    rulesets.extend(links.rulesets.iter().copied());
                }
            }
            for ruleset in rulesets {
                self.remove_row(ruleset, Some(class), now, out);
            }
            self.classes.remove(class);
            for (term, _) in &content.0 {
                self.forget_term(*term);
            }
        }
    }

    /// Removes the port sets that no row names. Only rows that no packet can still have read are ever removed, so nothing
    /// has to be waited for.
    pub(super) fn remove_port_sets(&mut self, now: Generation, out: &mut Vec<Edit>) {
        for set in self.port_sets.retired(now) {
            let id = self.port_sets.id(set);
            let ports = self.port_sets.remove(set);
            out.extend(port_edits(&ports, id, false));
        }
    }

    /// All port sets and rows.
    pub(super) fn tables(&self) -> Vec<Edit> {
        let ports = self
            .port_sets
            .iter()
            .flat_map(|(set, ports)| port_edits(ports, self.port_sets.id(set), true));
        let rows = self
            .rows
            .iter()
            .map(|((ruleset, class), set)| self.row(*ruleset, *class, Some(*set)));
        ports.chain(rows).collect()
    }
}

fn port_edits(ports: &PortSet, id: u64, present: bool) -> impl Iterator<Item = Edit> + use<> {
    ports
        .prefixes(id)
        .into_iter()
        .map(move |(key, bits)| Edit::Port { key, bits, present })
}
