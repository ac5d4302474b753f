//! Manifests in a directory.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::sync::mpsc;

use super::{
    Problem, Source, Update,
    catalog::{self, Catalog},
    document::{self, Definition, Notation, Unusable},
    memory::Memory,
    object::ObjectId,
    watch::{Happenings, Watch, notation},
};
use crate::policy::ObjectChange;

/// How often to look whether the path of the directory still leads to the same one: nothing tells when a link on the way
/// to it is exchanged.
const SAME_DIRECTORY: Duration = Duration::from_secs(1);
/// How often to look for a directory that is not there.
const MISSING_DIRECTORY: Duration = Duration::from_millis(100);

/// An error of the manifest directory at its start. Later ones are [`Problem`]s.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such directory.
    #[error("cannot read manifests from {}: {source}; create the directory, it may be empty", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No thread.
    #[error("cannot start the thread that reads manifests: {0}")]
    Thread(io::Error),
}

/// A source of objects: the files `*.yaml`, `*.yml` and `*.json` of a directory, watched.
pub struct Directory {
    path: PathBuf,
    happenings: Arc<Happenings>,
    updates: mpsc::Receiver<Update>,
}

impl Directory {
    /// Starts to read and to watch a directory. In `home`, if there is one, the last good text of each file is kept for the
    /// next start.
    ///
    /// # Errors
    ///
    /// If there is no such directory.
    pub fn open(path: &Path, home: Option<&Path>) -> Result<Self, Error> {
        let failed = |source| Error::Directory {
            path: path.to_owned(),
            source,
        };
        let path = std::path::absolute(path).map_err(failed)?;
        fs::read_dir(&path).map_err(failed)?;
        let happenings = Arc::new(Happenings::default());
        let (send, updates) = mpsc::channel(8);
        let reader = Reader {
            memory: home.and_then(|home| Memory::open(home, &path)),
            directory: path.clone(),
            happenings: Arc::clone(&happenings),
            updates: send,
            watch: None,
            catalog: Catalog::default(),
            complaint: None,
            complete: false,
        };
        thread::Builder::new()
            .name("manifests".into())
            .spawn(move || reader.run())
            .map_err(Error::Thread)?;
        Ok(Self {
            path,
            happenings,
            updates,
        })
    }
}

impl Source for Directory {
    fn describe(&self) -> String {
        format!("manifests in {}", self.path.display())
    }

    fn reread(&self, ticket: u64) {
        self.happenings.ask(ticket);
    }

    async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.happenings.stop();
    }
}

/// The thread that reads.
struct Reader {
    directory: PathBuf,
    memory: Option<Memory>,
    happenings: Arc<Happenings>,
    updates: mpsc::Sender<Update>,
    watch: Option<Watch>,
    catalog: Catalog,
    /// Why the directory cannot be read or watched.
    complaint: Option<String>,
    complete: bool,
}

/// What one reading found.
#[derive(Default)]
struct Findings {
    /// Changes that came before those of the objects that were touched.
    before: Vec<ObjectChange>,
    touched: BTreeSet<ObjectId>,
    /// Something was read that was not known, even if no object changed.
    news: bool,
}

impl Reader {
    fn run(mut self) {
        let mut covers = 0;
        let mut everything = true;
        loop {
            let complaint = self.complaint.take();
            everything |= self.watch_again();
            let limit = match &self.watch {
                None => MISSING_DIRECTORY,
                Some(_) if everything && complaint.is_some() => MISSING_DIRECTORY,
                Some(_) if everything => Duration::ZERO,
                Some(_) => SAME_DIRECTORY,
            };
            let work = self.happenings.wait(limit);
            if work.stop {
                return;
            }
            if work.moved {
                self.watch = None;
                everything = true;
                continue;
            }
            everything |= work.everything;
            let mut found = Findings::default();
            if everything {
                self.read_all(&work.busy, &mut found);
            }
            for file in &work.files {
                // Without the directory nothing can be said about its files: they are not gone.
                if self.complaint.is_none() {
                    self.read_file(file, &mut found);
                }
            }
            let first = everything && self.complaint.is_none() && !self.complete;
            self.complete |= first;
            // What could not be read is read again.
            everything = self.complaint.is_some();
            let mut changes = found.before;
            changes.append(&mut self.catalog.changes(&found.touched));
            let asked = work.ticket > covers;
            if changes.is_empty() && !found.news && !asked && !first && complaint == self.complaint
            {
                continue;
            }
            covers = work.ticket;
            let update = Update {
                changes,
                revision: self.catalog.revision(),
                problems: self.problems().into(),
                complete: self.complete,
                covers,
                unanswered: None,
                away: None,
            };
            if self.updates.blocking_send(update).is_err() {
                return;
            }
        }
    }

    /// Sees to it that the directory that lies at the path now is watched. Returns whether the watch is new: what
    /// happened before was not seen.
    fn watch_again(&mut self) -> bool {
        if self
            .watch
            .as_ref()
            .is_some_and(|watch| watch.holds(&self.directory))
        {
            return false;
        }
        self.watch = None;
        match Watch::new(&self.directory, &self.happenings) {
            Ok(watch) => {
                self.watch = Some(watch);
                true
            }
            Err(e) => {
                self.complaint = Some(match e.kind {
                    notify::ErrorKind::Io(e) => format!("cannot watch the directory: {e}"),
                    notify::ErrorKind::MaxFilesWatch => "cannot watch the directory: no inotify watch is left, \
                                                         raise the sysctl fs.inotify.max_user_watches"
                        .to_owned(),
                    _ => format!("cannot watch the directory: {e}"),
                });
                false
            }
        }
    }

    /// Reads every file but those that somebody is writing.
    fn read_all(&mut self, busy: &BTreeSet<String>, found: &mut Findings) {
        let names = match self.list() {
            Ok(names) => names,
            Err(e) => {
                self.complaint = Some(format!("cannot list the directory: {e}"));
                return;
            }
        };
        let known: Vec<String> = self.catalog.files().map(str::to_owned).collect();
        // New files first: an object that moved from one file to another is never missing in between.
        for file in names.iter().filter(|file| !busy.contains(*file)) {
            self.read_file(file, found);
        }
        for file in known
            .iter()
            .filter(|file| !names.contains(*file) && !busy.contains(*file))
        {
            found.news = true;
            self.remove(file, found);
        }
        if let Some(memory) = &self.memory
            && busy.is_empty()
        {
            memory.keep_only(&names);
        }
    }

    fn remove(&mut self, file: &str, found: &mut Findings) {
        found.touched.append(&mut self.catalog.remove(file));
        if let Some(memory) = &self.memory {
            memory.forget(file);
        }
    }

    /// Brings back what a file that is new to this agent said before it started, if all of it was good.
    fn recall(&mut self, file: &str, notation: Notation, found: &mut Findings) {
        if self.catalog.files().any(|known| known == file) {
            return;
        }
        let text = self.memory.as_ref().and_then(|memory| memory.recall(file));
        let Some(definitions) = text.and_then(|text| document::read(notation, &text).ok()) else {
            return;
        };
        if definitions.iter().all(|d| d.outcome.is_ok()) {
            let touched = self.catalog.put(file, 0, definitions);
            found.before.append(&mut self.catalog.changes(&touched));
        }
    }

    fn list(&self) -> io::Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&self.directory)? {
            if let Ok(name) = entry?.file_name().into_string()
                && notation(&name).is_some()
            {
                names.insert(name);
            }
        }
        Ok(names)
    }

    fn read_file(&mut self, file: &str, found: &mut Findings) {
        let Some(notation) = notation(file) else {
            return;
        };
        let path = self.directory.join(file);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(_) if is_gone(&path) => {
                // Only if its directory is still there.
                if self
                    .watch
                    .as_ref()
                    .is_some_and(|watch| watch.holds(&self.directory))
                {
                    found.news |= self.catalog.files().any(|known| known == file);
                    self.remove(file, found);
                }
                return;
            }
            Err(e) if path.is_dir() => {
                tracing::debug!(path = %path.display(), error = %e, "a directory, not a manifest");
                return;
            }
            Err(e) => {
                let unusable = Unusable {
                    line: None,
                    reason: format!("cannot be read: {e}"),
                };
                self.recall(file, notation, found);
                found.news |= self.catalog.spoil(file, None, unusable);
                return;
            }
        };
        let hash = catalog::hash(&text);
        if self.catalog.knows(file, hash) {
            return;
        }
        found.news = true;
        let definitions = std::str::from_utf8(&text)
            .map_err(|e| Unusable {
                line: None,
                reason: format!("not UTF-8 text: {e}"),
            })
            .and_then(|text| document::read(notation, text));
        let good = |definitions: &Vec<Definition>| definitions.iter().all(|d| d.outcome.is_ok());
        if definitions.as_ref().is_ok_and(good) {
            if let Some(memory) = &self.memory {
                memory.note(file, &text);
            }
        } else {
            self.recall(file, notation, found);
        }
        match definitions {
            Ok(definitions) => {
                found
                    .touched
                    .append(&mut self.catalog.put(file, hash, definitions));
            }
            Err(unusable) => {
                self.catalog.spoil(file, Some(hash), unusable);
            }
        }
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = self.catalog.problems(&self.directory);
        if let Some(reason) = &self.complaint {
            problems.insert(
                0,
                Problem::Unreadable {
                    path: self.directory.clone(),
                    line: None,
                    reason: reason.clone(),
                    kept: self.catalog.in_force(),
                },
            );
        }
        problems
    }
}

/// Whether the name itself is gone. A link that leads nowhere is there.
fn is_gone(path: &Path) -> bool {
    path.symlink_metadata()
        .is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
}
