//! What a session waits for: edits of files, and being told to end.

use std::{
    path::Path,
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use netpol_tests::manifests::is_manifest;
use nix::sys::signal::{SigSet, Signal};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

/// How long the files must be quiet before an edit counts as done.
const QUIET: Duration = Duration::from_millis(150);

enum Event {
    Edited,
    End,
}

/// The events of a session.
pub struct Events {
    sender: Sender<Event>,
    receiver: Receiver<Event>,
    /// Held so that it goes on watching.
    watcher: Option<RecommendedWatcher>,
    ended: bool,
}

/// What to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Read the manifests again.
    Reload,
    /// Take the lab down.
    End,
}

impl Events {
    /// Takes Ctrl-C and SIGTERM over, for this thread and all that it starts.
    pub fn new() -> Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.add(Signal::SIGHUP);
        signals.thread_block()?;
        let (sender, receiver) = mpsc::channel();
        let ending = sender.clone();
        thread::spawn(move || {
            while signals.wait().is_ok() {
                if ending.send(Event::End).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            sender,
            receiver,
            watcher: None,
            ended: false,
        })
    }

    /// Watches directories from now on.
    pub fn watch(&mut self, directories: &[&Path]) -> Result<()> {
        let sender = self.sender.clone();
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                let edited = event.is_ok_and(|event| {
                    !event.kind.is_access() && event.paths.iter().any(|path| is_manifest(path))
                });
                if edited {
                    // Nobody listens any more: the session is ending.
                    let _ = sender.send(Event::Edited);
                }
            })?;
        for directory in directories {
            watcher
                .watch(directory, RecursiveMode::NonRecursive)
                .with_context(|| format!("cannot watch {}", directory.display()))?;
        }
        self.watcher = Some(watcher);
        Ok(())
    }

    /// Whether the session was told to end.
    pub fn ended(&mut self) -> bool {
        self.ended |= self
            .receiver
            .try_iter()
            .any(|event| matches!(event, Event::End));
        self.ended
    }

    /// Waits for an edit, and until the files are quiet again, or for the end.
    pub fn next(&mut self) -> Next {
        if self.ended {
            return Next::End;
        }
        match self.receiver.recv() {
            Ok(Event::Edited) => loop {
                match self.receiver.recv_timeout(QUIET) {
                    Ok(Event::Edited) => {}
                    Ok(Event::End) => return Next::End,
                    Err(_) => return Next::Reload,
                }
            },
            Ok(Event::End) | Err(_) => Next::End,
        }
    }
}
