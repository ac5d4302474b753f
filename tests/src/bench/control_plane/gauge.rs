//! What a process uses, and when the kernel's tables change.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use aya::maps::{HashMap, Map, MapData};
use netpol_common::{Address, Endpoint, Peer, map};

use crate::lab::Lab;

/// How long a change may take to be seen in the tables.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that is measured from outside.
pub struct Process(u32);

impl Process {
    /// By its process id.
    pub const fn new(pid: u32) -> Self {
        Self(pid)
    }

    /// Resident memory in bytes: now, and at its highest.
    pub fn memory(&self) -> anyhow::Result<[u64; 2]> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0))?;
        let field = |name: &str| -> anyhow::Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|line| line.trim().strip_suffix(" kB"));
            let value = value.with_context(|| format!("no {name} in the status of {}", self.0))?;
            Ok(value.parse::<u64>()? << 10)
        };
        Ok([field("VmRSS:")?, field("VmHWM:")?])
    }

    /// Time on a processor, of all threads that there are now (Documentation/scheduler/sched-stats.rst).
    pub fn busy(&self) -> anyhow::Result<Duration> {
        let mut busy = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.0))? {
            let text = fs::read_to_string(thread?.path().join("schedstat"))?;
            let first = text.split(' ').next().unwrap_or_default();
            busy += first.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(busy))
    }
}

/// The pinned tables of the lab's agent.
#[derive(Clone)]
pub struct Tables(PathBuf);

/// Something in the tables that a change will change.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// What the pod behind this interface may do.
    Endpoint(u32),
    /// What the rules know of this address.
    Peer(Address),
}

impl Tables {
    /// Those of a lab's first node.
    pub fn of(lab: &Lab) -> Self {
        Self(lab.run_dir().bpf().join(format!("v{}", map::SCHEMA)))
    }

    /// Kernel memory of all pinned maps in bytes, as the kernel charges it.
    pub fn memory(&self) -> anyhow::Result<u64> {
        let mut sum = 0;
        for pin in fs::read_dir(&self.0)? {
            let path = pin?.path();
            if let Ok(map) = MapData::from_pin(&path) {
                sum += charged(&map)?;
            }
        }
        Ok(sum)
    }

    fn table<K: aya::Pod, V: aya::Pod>(
        &self,
        name: &str,
    ) -> anyhow::Result<HashMap<MapData, K, V>> {
        let data = MapData::from_pin(self.0.join(name))?;
        Ok(HashMap::try_from(Map::HashMap(data))?)
    }

    /// Begins to look at a place. Keeps one processor busy until it changes, but for short rests.
    pub fn watch(&self, place: Place) -> anyhow::Result<Watch> {
        let mut read: Box<dyn FnMut() -> Vec<u8> + Send> = match place {
            Place::Endpoint(interface) => {
                let table = self.table::<u32, Endpoint>(map::ENDPOINTS)?;
                Box::new(move || format!("{:?}", table.get(&interface, 0).ok()).into_bytes())
            }
            Place::Peer(address) => {
                let table = self.table::<Address, Peer>(map::PEER_HOSTS)?;
                Box::new(move || format!("{:?}", table.get(&address, 0).ok()).into_bytes())
            }
        };
        let before = read();
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let thread = thread::spawn(move || {
            let end = Instant::now() + PATIENCE;
            while !stop.load(Ordering::Relaxed) && Instant::now() < end {
                if read() != before {
                    return Some(Instant::now());
                }
                thread::sleep(Duration::from_micros(20));
            }
            None
        });
        Ok(Watch {
            place,
            over,
            thread: Some(thread),
        })
    }
}

/// Looks at a place until it changes.
pub struct Watch {
    place: Place,
    over: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Option<Instant>>>,
}

impl Watch {
    /// When it has changed.
    pub fn changed(mut self) -> anyhow::Result<Instant> {
        let thread = self.thread.take().context("it is asked once")?;
        match thread.join() {
            Ok(Some(when)) => Ok(when),
            _ => bail!("{:?} has not changed within {PATIENCE:?}", self.place),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// `memlock` of a map's descriptor. Links and programs are pinned beside the maps and have none.
fn charged(map: &MapData) -> anyhow::Result<u64> {
    use std::os::fd::{AsFd as _, AsRawFd as _};
    let info = Path::new("/proc/self/fdinfo").join(map.fd().as_fd().as_raw_fd().to_string());
    let text = fs::read_to_string(info)?;
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(line.map_or(Ok(0), |line| line.trim().parse())?)
}
