//! Where objects come from.
//!
//! A [`Source`] gives a stream of [`Update`]s: what changed, and what it could not use. [`Directory`] reads manifests from
//! a directory, [`Api`] lists and watches a live API server.

mod api;
mod catalog;
mod directory;
mod document;
mod json;
mod memory;
mod object;
mod watch;

use std::{fmt, future::Future, path::PathBuf, sync::Arc, time::SystemTime};

use futures::future::Either;

use crate::policy::ObjectChange;
use crate::policy::object::ObjectKey;

pub use self::{
    api::{Access, AccessError, Api, Timing},
    directory::{Directory, Error},
};

/// Where objects come from.
pub trait Source {
    /// What this source is, for people: "manifests in /etc/netpol".
    fn describe(&self) -> String;

    /// Asks for everything to be read again. The update that covers this reading has `covers >= ticket`, and comes even
    /// when nothing changed. Tickets grow.
    fn reread(&self, ticket: u64);

    /// The next update, or `None` when the source has ended. Cancelling loses nothing.
    fn next(&mut self) -> impl Future<Output = Option<Update>>;
}

/// What a source has to say: changes since the last update, and its state after them.
#[derive(Clone, Debug)]
pub struct Update {
    /// Only differences. An object may come again though nothing that matters of it has changed: the index sees that at once.
    pub changes: Vec<ObjectChange>,
    /// Names the content that these changes lead to.
    pub revision: String,
    /// Everything that cannot be used as it is: the whole list, not only what is new. The same allocation as long as it is
    /// the same list.
    pub problems: Arc<[Problem]>,
    /// Whether the initial list is complete. Nothing may be enforced on the ground of a part of it.
    pub complete: bool,
    /// The highest ticket of [`Source::reread`] that this update covers.
    pub covers: u64,
    /// Why the source cannot say whether all has come that was there at the last [`Source::reread`]. It tries again.
    pub unanswered: Option<Arc<str>>,
    /// The source cannot be reached. What came before stays true until something else is known.
    pub away: Option<Arc<Away>>,
}

/// A source that cannot be reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Away {
    /// Since when.
    pub since: SystemTime,
    /// Why, and what to do if there is something to do.
    pub reason: String,
}

impl<A: Source, B: Source> Source for Either<A, B> {
    fn describe(&self) -> String {
        match self {
            Self::Left(source) => source.describe(),
            Self::Right(source) => source.describe(),
        }
    }

    fn reread(&self, ticket: u64) {
        match self {
            Self::Left(source) => source.reread(ticket),
            Self::Right(source) => source.reread(ticket),
        }
    }

    async fn next(&mut self) -> Option<Update> {
        match self {
            Self::Left(source) => source.next().await,
            Self::Right(source) => source.next().await,
        }
    }
}

/// The kinds of objects that the agent reads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// `v1 Namespace`
    Namespace,
    /// `v1 Pod`
    Pod,
    /// `networking.k8s.io/v1 NetworkPolicy`
    NetworkPolicy,
    /// `v1 Service`
    Service,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Service => "Service",
        })
    }
}

/// Something in the source that cannot be used as it is. Everything else goes on.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Problem {
    /// A file or the directory cannot be read or is not YAML or JSON.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        line: Option<u64>,
        /// Why.
        reason: String,
        /// How many objects of its last good content stay in force.
        kept: usize,
    },
    /// One object cannot be used.
    Refused {
        /// The file, if it comes from one.
        path: Option<PathBuf>,
        /// Its kind as it is written there.
        kind: String,
        /// Its key, as far as it can be read.
        object: ObjectKey,
        /// The path of the field, or empty.
        field: String,
        /// Why.
        reason: String,
        /// Whether a last good version of the object stays in force.
        kept: bool,
        /// Whether there is none, and what can be read of this one is in force: a policy without the rules, peers and ports that
        /// cannot.
        in_part: bool,
    },
    /// An object is defined more than once; the last file in the order of names counts, and in it the last document.
    Duplicate {
        /// The kind.
        kind: Kind,
        /// The object.
        object: ObjectKey,
        /// The file whose definition counts.
        path: PathBuf,
        /// The files whose definitions do not.
        shadowed: Vec<PathBuf>,
    },
}

impl Problem {
    /// Whether something that is written in the source is not in force. A [`Problem::Duplicate`] is only a warning.
    pub fn withholds(&self) -> bool {
        !matches!(self, Self::Duplicate { .. })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable {
                path,
                line,
                reason,
                kept,
            } => {
                write!(f, "{}", path.display())?;
                if let Some(line) = line {
                    write!(f, ":{line}")?;
                }
                write!(f, ": {reason}; ")?;
                match kept {
                    0 => f.write_str("nothing of it is in force; ")?,
                    1 => f.write_str("its last good object stays in force; ")?,
                    n => write!(f, "its last {n} good objects stay in force; ")?,
                }
                f.write_str("correct the file, it is read again as soon as it changes")
            }
            Self::Refused {
                path,
                kind,
                object,
                field,
                reason,
                kept,
                in_part,
            } => {
                write!(f, "{kind} {object}")?;
                if let Some(path) = path {
                    write!(f, " in {}", path.display())?;
                }
                f.write_str(" is refused: ")?;
                if !field.is_empty() {
                    write!(f, "{field}: ")?;
                }
                write!(f, "{reason}; ")?;
                f.write_str(if *kept {
                    "its last good version stays in force until this is corrected"
                } else if *in_part {
                    "it is in force without this, and so allows less, until this is corrected"
                } else {
                    "it is not in force until this is corrected"
                })
            }
            Self::Duplicate {
                kind,
                object,
                path,
                shadowed,
            } => {
                write!(
                    f,
                    "{kind} {object} is defined more than once: {} counts, not ",
                    path.display()
                )?;
                for (i, other) in shadowed.iter().enumerate() {
                    let comma = if i > 0 { ", " } else { "" };
                    write!(f, "{comma}{}", other.display())?;
                }
                f.write_str("; remove all but one")
            }
        }
    }
}
