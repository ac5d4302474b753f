//! One thread for each namespace: everything that must happen inside a namespace is sent to its thread.

use std::{
    fs,
    future::Future,
    os::fd::OwnedFd,
    pin::Pin,
    sync::mpsc as blocking,
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::{AbortHandle, LocalSet, spawn_local},
};

use super::{
    error::LabError,
    netns::{self, NetNs},
};

type Job = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// A thread that lives in one network namespace and runs what it is given, many things at a time.
pub struct Worker {
    namespace: String,
    jobs: Option<mpsc::UnboundedSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread and waits until it is inside.
    pub fn start(namespace: &NetNs) -> Result<Self, LabError> {
        let name = namespace.name().to_owned();
        let failed = |error| LabError::io(format!("enter namespace {}", namespace.name()), error);
        let file = OwnedFd::from(namespace.open()?);
        let (jobs, mut inbox) = mpsc::unbounded_channel::<Job>();
        let (ready, entered) = blocking::channel();
        let thread = thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                let inside = netns::enter(&file).and_then(|()| {
                    tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                });
                let runtime = match inside {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        // The other end waits for this and for nothing else.
                        let _ = ready.send(Err(error));
                        return;
                    }
                };
                let _ = ready.send(Ok(()));
                LocalSet::new().block_on(&runtime, async move {
                    while let Some(job) = inbox.recv().await {
                        spawn_local(job());
                    }
                });
                // Sockets may sit in the kernel's hands for a moment; tasks and timers may not.
                runtime.shutdown_timeout(Duration::from_millis(100));
            })
            .map_err(failed)?;
        let worker = Self {
            namespace: name.clone(),
            jobs: Some(jobs),
            thread: Some(thread),
        };
        entered
            .recv()
            .unwrap_or_else(|_| Err(std::io::Error::other("its thread ended")))
            .map_err(failed)?;
        Ok(worker)
    }

    /// Runs a task inside and waits for its result. Other tasks of this thread go on meanwhile.
    pub fn run<F, R, T>(&self, task: F) -> T
    where
        F: FnOnce() -> R + Send + 'static,
        R: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        self.begin(task).wait()
    }

    /// Starts a task inside; its result is collected later.
    pub fn begin<F, R, T>(&self, task: F) -> Pending<T>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (done, result) = blocking::channel();
        self.send(Box::new(move || {
            Box::pin(async move {
                // Nobody waiting any more is not an error.
                let _ = done.send(task().await);
            })
        }));
        Pending {
            namespace: self.namespace.clone(),
            result,
        }
    }

    /// Starts a task that runs until it ends, is aborted, or the namespace goes.
    pub fn spawn<F, R>(&self, task: F) -> AbortHandle
    where
        F: FnOnce() -> R + Send + 'static,
        R: Future<Output = ()> + 'static,
    {
        self.run(move || async move { spawn_local(task()).abort_handle() })
    }

    /// Sets a sysctl of this namespace, `net/...` below `/proc/sys`: the kernel shows each thread its own namespace's.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<(), LabError> {
        let path = format!("/proc/sys/net/{name}");
        let value = value.to_owned();
        let what = format!("set {path} in {}", self.namespace);
        self.run(move || async move { fs::write(path, value) })
            .map_err(|error| LabError::io(what, error))
    }

    fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // A thread that is gone shows when the result is collected.
            let _ = jobs.send(job);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The result of a task that runs inside a namespace.
pub struct Pending<T> {
    namespace: String,
    result: blocking::Receiver<T>,
}

impl<T> Pending<T> {
    /// Waits for it.
    ///
    /// # Panics
    ///
    /// When the task panicked; its own message is on stderr.
    pub fn wait(self) -> T {
        self.result
            .recv()
            .unwrap_or_else(|_| panic!("a task in namespace {} panicked", self.namespace))
    }
}
