//! The command line of the agent.

/// Lists of tens of thousands of objects are parsed and trimmed at a start: musl's own allocator takes several times as long.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    netpol_agent::cli::main()
}
