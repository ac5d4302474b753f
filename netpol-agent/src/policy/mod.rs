//! The policy compiler: Kubernetes objects in, edits of tables out. Pure: no I/O, no async, no kernel.
//!
//! | module | what it knows |
//! |---|---|
//! | [`object`] | Kubernetes objects, trimmed and checked |
//! | [`convert`] | from Kubernetes objects to those of `object`, with checks and defaults |
//! | [`edit`] | what comes out: edits of tables, in phases |
//! | [`index`] | the index: owns the objects, turns a change of them into edits |
//! | `reconcile` | how it works off what a change has touched |
//! | [`mod@reference`] | the same meaning, naively: what the compiler is tested against |
//! | `world` | namespaces, pods, and the profiles that pods share |
//! | `selection` | which policies select which pods of this node |
//! | `grant` | what policies grant, and their union for one pod |
//! | `selector`, `labels` | label selectors, and how to find those that may match |
//! | `term`, `matching` | what a rule can say about a peer, and who matches it |
//! | `blocks`, `prefix` | which `ipBlock`s hold an address |
//! | `ports` | port sets and their prefixes |
//! | `catalog` | what has a number in the tables, and the rows that join rulesets with classes |
//! | `peers` | the class of every address |
//! | `store`, `slab`, `fingerprint` | interning, handles, numbers derived from content |

mod blocks;
mod catalog;
pub mod convert;
pub mod edit;
mod fingerprint;
mod grant;
pub mod index;
mod labels;
mod matching;
pub mod object;
mod order;
mod peers;
mod ports;
mod prefix;
mod reconcile;
pub mod reference;
mod selection;
mod selector;
mod slab;
mod store;
mod term;
mod world;

pub use edit::{Change, Edit, Generation, PodIsolation};
pub use index::{Index, LocalPod, ObjectChange, PolicyStatus};
