//! The command line of the agent.

mod allocator;

fn main() -> std::process::ExitCode {
    allocator::give_back_what_is_freed();
    netpol_agent::cli::main()
}
