//! The last good text of each manifest, kept for the next start: an agent that is restarted while a file is broken goes on
//! with what the file said before, as it would have without the restart.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

/// A directory of copies.
pub(super) struct Memory(PathBuf);

impl Memory {
    /// The memory of a manifest directory, in a directory that lasts as long as what is pinned (until the next boot).
    /// Without one, for example because the disk is full, everything else works.
    pub fn open(home: &Path, manifests: &Path) -> Option<Self> {
        // One name for each path: nothing is taken over from another directory.
        let name = manifests
            .display()
            .to_string()
            .replace('%', "%25")
            .replace('/', "%2F");
        let memory = Self(home.join("last-good").join(name));
        match fs::create_dir_all(&memory.0) {
            Ok(()) => Some(memory),
            Err(error) => {
                memory.complain(&error);
                None
            }
        }
    }

    /// What a file said when all of it was good.
    pub fn recall(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.0.join(file)).ok()
    }

    /// All of this text is good.
    pub fn note(&self, file: &str, text: &[u8]) {
        let path = self.0.join(file);
        if fs::read(&path).is_ok_and(|known| known == text) {
            return;
        }
        // Whole or not at all: a copy that is cut off could still be valid.
        let fresh = self.0.join(format!(".{file}.new"));
        if let Err(error) = fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &path)) {
            self.complain(&error);
        }
    }

    /// The file is gone.
    pub fn forget(&self, file: &str) {
        let _ = fs::remove_file(self.0.join(file));
    }

    /// These are all files that there are.
    pub fn keep_only(&self, files: &BTreeSet<String>) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            if entry
                .file_name()
                .to_str()
                .is_none_or(|name| !files.contains(name))
            {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn complain(&self, error: &io::Error) {
        tracing::warn!(
            path = %self.0.display(),
            %error,
            "cannot keep the last good manifests: a restart while one is broken would forget what it said"
        );
    }
}
