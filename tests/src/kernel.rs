//! The programs in this kernel, fed with single packets (`BPF_PROG_TEST_RUN`): no network, no agent.

use std::{
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRunOptions,
    maps::{HashMap, Map, MapData, MapError},
    programs::{SchedClassifier, TestRun as _},
};
use netpol_agent::dataplane::{self, Dataplane, HookChoice, Sizes};
use netpol_common::{Direction, Flow, FlowKey, MarkField, Reason, map};

/// The device whose index the kernel gives to a test packet: the loopback device of this network namespace.
pub const LOOPBACK: u32 = 1;
/// `TC_ACT_SHOT`.
pub const DROP: u32 = 2;
/// `TC_ACT_UNSPEC`, as the kernel returns it.
pub const PASS: u32 = u32::MAX;

/// What a test packet has beside its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Context {
    /// The device of the hook.
    pub device: u32,
    /// The device that the packet came in by; 0: the node itself has sent it.
    pub came_in_by: u32,
    /// Its mark.
    pub mark: u32,
    /// The first words of its control block, for yardsticks: nobody else looks at them.
    pub control: [u32; 2],
}

impl Default for Context {
    fn default() -> Self {
        Self {
            device: LOOPBACK,
            came_in_by: LOOPBACK,
            mark: 0,
            control: [0; 2],
        }
    }
}

/// `struct __sk_buff` (include/uapi/linux/bpf.h): 192 bytes, of which a test may set few.
type SkBuff = [u8; 192];

impl Context {
    /// Where each word stands in the structure.
    const PLACES: [usize; 5] = [8, 36, 40, 48, 52];

    fn encode(self) -> SkBuff {
        let mut raw = [0; size_of::<SkBuff>()];
        let [first, second] = self.control;
        let words = [self.mark, self.came_in_by, self.device, first, second];
        for (at, word) in Self::PLACES.into_iter().zip(words) {
            raw[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        raw
    }

    fn decode(raw: &SkBuff) -> Self {
        let [mark, came_in_by, device, first, second] = Self::PLACES
            .map(|at| u32::from_ne_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]));
        Self {
            device,
            came_in_by,
            mark,
            control: [first, second],
        }
    }
}

/// A dataplane with pins of its own, in a network namespace of its own. Everything goes when it is dropped.
pub struct Bench {
    /// The dataplane whose tables the programs read.
    pub dataplane: Dataplane,
    pins: Pins,
}

/// Removes pins, also when something fails.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = dataplane::cleanup(&self.0, true) {
            eprintln!("cannot clean up {}: {error}", self.0.display());
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

impl Bench {
    /// Moves this thread into a network namespace of its own and opens a dataplane there. `name` is for a reader of the pins.
    ///
    /// # Errors
    ///
    /// If this is not root, or the programs are not built or do not load.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        Self::with(name, Sizes::default(), HookChoice::Auto)
    }

    /// As [`Bench::new`], with tables of other sizes, or another kind of hook.
    ///
    /// # Errors
    ///
    /// As [`Bench::new`].
    pub fn with(name: &str, sizes: Sizes, hook: HookChoice) -> anyhow::Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "this needs root: it loads programs into the kernel"
        );
        // Nobody else's packets on the loopback device whose index the test packets carry.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("a network namespace")?;
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let pins = Pins(PathBuf::from(format!(
            "/run/netpol-{name}-{process}-{number}"
        )));
        let dataplane = Dataplane::open(&dataplane::Options {
            pins: pins.0.clone(),
            hook,
            sizes,
            trace: false,
            mark: MarkField::DEFAULT,
        })?;
        Ok(Self { dataplane, pins })
    }

    /// Opens the pinned tables a second time, as the next agent does.
    ///
    /// # Errors
    ///
    /// As [`Dataplane::open`].
    pub fn open_again(&self, hook: HookChoice) -> Result<Dataplane, dataplane::Error> {
        Dataplane::open(&dataplane::Options {
            pins: self.pins.0.clone(),
            hook,
            sizes: Sizes::default(),
            trace: false,
            mark: MarkField::DEFAULT,
        })
    }

    /// Makes a table read-only for all user space (`BPF_MAP_FREEZE`), for ever: whoever writes to it nevertheless fails.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn freeze(&self, table: &str) -> anyhow::Result<()> {
        freeze(&self.pin(table))
    }

    /// The pin of a table.
    pub fn pin(&self, table: &str) -> PathBuf {
        self.directory().join(table)
    }

    /// The directory of its pins.
    pub fn pins(&self) -> &Path {
        &self.pins.0
    }

    /// Loads all programs of an object, on the tables of this dataplane.
    ///
    /// # Errors
    ///
    /// If the object is empty (built without the eBPF tools) or the kernel refuses a program.
    pub fn load(&self, object: &[u8]) -> anyhow::Result<Programs> {
        self.load_with(object, None)
    }

    /// As [`Bench::load`], for programs that use other bits of the mark. `None`: the object's own, also where it has none.
    ///
    /// # Errors
    ///
    /// As [`Bench::load`].
    pub fn load_with(&self, object: &[u8], mark: Option<MarkField>) -> anyhow::Result<Programs> {
        ensure!(
            !object.is_empty(),
            "built without the eBPF programs: run `cargo xtask setup`, then build again"
        );
        let directory = self.directory();
        let mut loader = EbpfLoader::new();
        if let Some(field) = &mark {
            loader
                .override_global(map::MARK_MASK, &field.mask, true)
                .override_global(map::MARK_SHIFT, &field.shift, true);
        }
        for name in [
            map::ENDPOINTS,
            map::PEER_HOSTS,
            map::PEER_NETS,
            map::RULES,
            map::PORTS,
            map::SLOTS,
            map::FLOWS,
            map::OPENING,
            map::FRAGMENTS,
            map::TICKETS,
            map::TUNNELS,
            map::EVENTS,
            map::BUDGETS,
            map::LOST,
            map::STATS,
            map::EPOCH,
        ] {
            loader.map_pin_path(name, directory.join(name));
        }
        let mut programs = Programs(loader.load(object)?);
        let names: Vec<String> = programs
            .0
            .programs()
            .map(|(name, _)| name.to_owned())
            .collect();
        for name in names {
            programs.program(&name)?.load()?;
        }
        Ok(programs)
    }

    /// Empties the flow tables.
    ///
    /// # Errors
    ///
    /// If they cannot be read.
    pub fn forget_flows(&self) -> anyhow::Result<()> {
        for table in [map::FLOWS, map::OPENING] {
            let mut flows = self.flows(table)?;
            let keys: Vec<FlowKey> = flows.keys().filter_map(Result::ok).collect();
            for key in keys {
                let _ = flows.remove(&key);
            }
        }
        Ok(())
    }

    /// One of the flow tables.
    ///
    /// # Errors
    ///
    /// If it cannot be opened.
    pub fn flows(&self, table: &str) -> anyhow::Result<HashMap<MapData, FlowKey, Flow>> {
        self.table(table)
    }

    /// A handle of its own on a table, as the type of map that it is.
    ///
    /// # Errors
    ///
    /// If it cannot be opened.
    pub fn table<T: TryFrom<Map, Error = MapError>>(&self, table: &str) -> anyhow::Result<T> {
        let map = Map::from_map_data(MapData::from_pin(self.pin(table))?)?;
        Ok(map.try_into()?)
    }

    /// How often each reason was counted for a slot and a direction.
    ///
    /// # Errors
    ///
    /// If the statistics cannot be read.
    pub fn counted(&self, slot: u32, direction: Direction) -> anyhow::Result<[u64; Reason::COUNT]> {
        let all = self.dataplane.statistics(slot)?;
        Ok(all[direction as usize].map(|tally| tally.packets))
    }

    fn directory(&self) -> PathBuf {
        self.pins.0.join(format!("v{}", map::SCHEMA))
    }
}

/// Makes a pinned table read-only for all user space (`BPF_MAP_FREEZE`), for ever: whoever writes to it nevertheless fails.
///
/// # Errors
///
/// If the kernel refuses.
pub fn freeze(pin: &Path) -> anyhow::Result<()> {
    const BPF_MAP_FREEZE: libc::c_int = 22;
    let map = MapData::from_pin(pin)?;
    // union bpf_attr (include/uapi/linux/bpf.h): for this command it is the descriptor alone.
    let attr = [map.fd().as_fd().as_raw_fd()];
    // SAFETY: the kernel reads no more than the size says, and writes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_FREEZE,
            attr.as_ptr(),
            size_of_val(&attr),
        )
    };
    ensure!(
        result == 0,
        "cannot freeze {}: {}",
        pin.display(),
        std::io::Error::last_os_error()
    );
    Ok(())
}

/// The programs of an object.
pub struct Programs(Ebpf);

impl Programs {
    /// A program by its name.
    ///
    /// # Errors
    ///
    /// If the object has none of that name.
    pub fn program(&mut self, name: &str) -> anyhow::Result<&mut SchedClassifier> {
        Ok(self
            .0
            .program_mut(name)
            .with_context(|| format!("no program {name}"))?
            .try_into()?)
    }

    /// Runs a program on a packet that came in by the device with index `came_in_by` (0: from the node itself). Returns the
    /// verdict and the nanoseconds of one run.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the packet: it takes none of less than 14 bytes.
    pub fn execute(
        &mut self,
        name: &str,
        bytes: &[u8],
        came_in_by: u32,
        repeat: u32,
    ) -> anyhow::Result<(u32, f64)> {
        let context = Context {
            came_in_by,
            ..Context::default()
        };
        self.execute_in(name, bytes, context, repeat)
    }

    /// As [`Programs::execute`], in a context of any kind. What the program changes in it, the next run of the same call
    /// finds changed.
    ///
    /// # Errors
    ///
    /// As [`Programs::execute`].
    pub fn execute_in(
        &mut self,
        name: &str,
        bytes: &[u8],
        context: Context,
        repeat: u32,
    ) -> anyhow::Result<(u32, f64)> {
        let result = self
            .program(name)?
            .test_run(TestRunOptions {
                data_in: Some(bytes),
                ctx_in: Some(&context.encode()),
                repeat,
                ..TestRunOptions::default()
            })
            .with_context(|| format!("test run of {name}"))?;
        Ok((result.return_value, result.duration.as_nanos() as f64))
    }

    /// Runs a program once and returns all that it has done to the packet.
    ///
    /// # Errors
    ///
    /// As [`Programs::execute`].
    pub fn observe(&mut self, name: &str, bytes: &[u8], context: Context) -> anyhow::Result<Ran> {
        let before = context.encode();
        let mut after = before;
        // Longer than the packet: one that has grown is seen as well.
        let mut packet = vec![0; bytes.len() + 64];
        let result = self
            .program(name)?
            .test_run(TestRunOptions {
                data_in: Some(bytes),
                data_out: Some(&mut packet),
                ctx_in: Some(&before),
                ctx_out: Some(&mut after),
                ..TestRunOptions::default()
            })
            .with_context(|| format!("test run of {name}"))?;
        packet.truncate(result.data_size_out as usize);
        Ok(Ran {
            verdict: result.return_value,
            bytes: packet,
            context: Context::decode(&after),
        })
    }
}

/// What one run of a program has done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ran {
    /// What it returned.
    pub verdict: u32,
    /// The packet as it is now.
    pub bytes: Vec<u8>,
    /// The rest of the packet as it is now.
    pub context: Context,
}
