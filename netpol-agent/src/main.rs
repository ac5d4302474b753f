//! The command line of the agent.

fn main() -> std::process::ExitCode {
    netpol_agent::cli::main()
}
