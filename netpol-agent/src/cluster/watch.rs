//! What happened in the directory since it was looked at last.
//!
//! A file that is written in place is read when its writer closes it, not while it is half written; a file that is renamed
//! over another, linked or removed is looked at at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind, RenameMode},
};

use super::document::Notation;

/// A writer that keeps its file open without writing for so long is taken to have finished.
const QUIET: Duration = Duration::from_millis(500);
/// A writer that writes all the time holds up its own file no longer than this.
const PATIENCE: Duration = Duration::from_secs(5);
/// Some editors move a file away before they write its new version.
const MOVED_AWAY: Duration = Duration::from_millis(100);

/// The notation of a file by its name; `None` for dotfiles, editors' copies and everything else that is no manifest.
pub(super) fn notation(name: &str) -> Option<Notation> {
    if name.starts_with(['.', '#']) {
        return None;
    }
    match Path::new(name).extension()?.to_str()? {
        "yaml" | "yml" => Some(Notation::Yaml),
        "json" => Some(Notation::Json),
        _ => None,
    }
}

/// What there is to do.
#[derive(Default, Debug)]
pub(super) struct Work {
    /// These files, which nobody is writing.
    pub files: BTreeSet<String>,
    /// Or all files but those in `busy`.
    pub everything: bool,
    /// Files that somebody is writing.
    pub busy: BTreeSet<String>,
    /// The directory itself was moved or removed.
    pub moved: bool,
    /// The highest ticket that a complete reading now covers.
    pub ticket: u64,
    /// Nobody listens any more.
    pub stop: bool,
}

/// What happened, shared between the watcher's thread, the reader's thread and the agent.
#[derive(Default)]
pub(super) struct Happenings {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    dirty: BTreeSet<String>,
    everything: bool,
    moved: bool,
    /// Files in somebody's hands: since when, and when they are looked at nevertheless.
    busy: BTreeMap<String, (Instant, Instant)>,
    asked: u64,
    answered: u64,
    stop: bool,
}

impl Happenings {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a complete reading.
    pub fn ask(&self, ticket: u64) {
        let mut state = self.lock();
        state.asked = state.asked.max(ticket);
        self.wake.notify_one();
    }

    /// Asks the reader to end.
    pub fn stop(&self) {
        self.lock().stop = true;
        self.wake.notify_one();
    }

    /// Waits until there is something to do, no longer than `limit`.
    pub fn wait(&self, limit: Duration) -> Work {
        let end = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            state.settle(now);
            if state.stop
                || state.moved
                || state.everything
                || !state.dirty.is_empty()
                || state.may_answer()
            {
                break;
            }
            let next = state
                .busy
                .values()
                .map(|&(_, until)| until)
                .fold(end, Instant::min);
            if now >= end {
                break;
            }
            state = self
                .wake
                .wait_timeout(state, next.saturating_duration_since(now))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        let answers = state.may_answer();
        if answers {
            state.answered = state.asked;
        }
        Work {
            files: std::mem::take(&mut state.dirty),
            everything: std::mem::take(&mut state.everything) || answers,
            busy: state.busy.keys().cloned().collect(),
            moved: std::mem::take(&mut state.moved),
            ticket: state.answered,
            stop: state.stop,
        }
    }

    fn note(&self, directory: &Path, event: notify::Result<Event>) {
        let mut state = self.lock();
        match event {
            Ok(event) if !event.need_rescan() => state.note(directory, &event, Instant::now()),
            // Events were lost.
            Ok(_) | Err(_) => {
                state.everything = true;
                state.busy.clear();
            }
        }
        self.wake.notify_one();
    }
}

impl State {
    /// Files whose time is up are looked at.
    fn settle(&mut self, now: Instant) {
        let due = self
            .busy
            .extract_if(.., |_, &mut (_, until)| until <= now)
            .map(|(name, _)| name);
        self.dirty.extend(due);
    }

    /// Whether a complete reading is asked for and nobody is writing.
    fn may_answer(&self) -> bool {
        self.asked > self.answered && self.busy.is_empty()
    }

    fn hold(&mut self, name: String, now: Instant, quiet: Duration) {
        let held = self.busy.entry(name).or_insert((now, now));
        held.1 = (now + quiet).min(held.0 + PATIENCE);
    }

    fn release(&mut self, name: String) {
        self.busy.remove(&name);
        self.dirty.insert(name);
    }

    fn note(&mut self, directory: &Path, event: &Event, now: Instant) {
        for path in &event.paths {
            if path == directory {
                self.moved |= matches!(
                    event.kind,
                    EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))
                );
                continue;
            }
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            if name.starts_with("..") && !matches!(event.kind, EventKind::Access(_)) {
                // A ConfigMap volume: all its files are links through `..data`, which has just been exchanged.
                self.everything = true;
            }
            if notation(name).is_none() {
                continue;
            }
            let name = name.to_owned();
            match event.kind {
                EventKind::Modify(ModifyKind::Data(_)) => self.hold(name, now, QUIET),
                EventKind::Create(CreateKind::File | CreateKind::Any) if !linked(path) => {
                    self.hold(name, now, QUIET);
                }
                EventKind::Modify(ModifyKind::Name(RenameMode::From)) => {
                    self.hold(name, now, MOVED_AWAY);
                }
                EventKind::Modify(ModifyKind::Metadata(_)) if self.busy.contains_key(&name) => {}
                EventKind::Create(_)
                | EventKind::Modify(_)
                | EventKind::Remove(RemoveKind::File | RemoveKind::Any | RemoveKind::Other)
                | EventKind::Access(AccessKind::Close(AccessMode::Write)) => self.release(name),
                _ => {}
            }
        }
    }
}

/// Whether a new name is a link to content that is there already: nobody will close it.
fn linked(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    path.symlink_metadata()
        .is_ok_and(|m| m.file_type().is_symlink() || m.nlink() > 1)
}

/// A watch of the directory that lies at its path now.
pub(super) struct Watch {
    _watcher: RecommendedWatcher,
    identity: (u64, u64),
}

impl Watch {
    /// Watches the directory at this path.
    pub fn new(directory: &Path, happenings: &Arc<Happenings>) -> notify::Result<Self> {
        let identity = identity(directory).map_err(notify::Error::io)?;
        let (path, shared): (PathBuf, _) = (directory.to_owned(), Arc::clone(happenings));
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // Our own reading causes these.
            let reading = matches!(
                &event,
                Ok(Event {
                    kind: EventKind::Access(
                        AccessKind::Open(_) | AccessKind::Close(AccessMode::Read)
                    ),
                    ..
                })
            );
            if !reading {
                shared.note(&path, event);
            }
        })?;
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
        Ok(Self {
            _watcher: watcher,
            identity,
        })
    }

    /// Whether the directory at the path is still the one that is watched.
    pub fn holds(&self, directory: &Path) -> bool {
        identity(directory).is_ok_and(|now| now == self.identity)
    }
}

fn identity(directory: &Path) -> std::io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(directory)?;
    if !metadata.is_dir() {
        return Err(std::io::ErrorKind::NotADirectory.into());
    }
    Ok((metadata.dev(), metadata.ino()))
}
