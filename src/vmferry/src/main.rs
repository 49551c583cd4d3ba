//! vmferry: live migration of KVM virtual machines. The command line and the roles behind it.

mod cli;
mod config;
mod demo;
mod doctor;
mod generate;
mod keys;
mod remote;

use std::io::IsTerminal;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use cli::Command;
use remote::Task;
use vmferry_service::config::Source;

/// What the process answers its caller. 2 is clap's, for a command line that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Ok = 0,
    /// It could not be done; why is on stderr.
    Failed = 1,
    /// The guest found something wrong in its memory.
    VerifyFailed = 3,
    /// The migration was cancelled; the guest is unharmed.
    Cancelled = 4,
    /// Neither host may run the guest by itself.
    Undecided = 5,
    /// The host service did not answer any more; what was begun goes on without it.
    Unknown = 6,
    /// The user left by a second Ctrl-C, what was begun goes on: 128 and the signal.
    Left = 130,
}

/// The environment variable that says what is logged, as in `debug` or `vmferry_engine=trace`.
const LOG: &str = "VMFERRY_LOG";

fn main() -> ExitCode {
    let cli = cli::parse();
    if let Command::Serve(args) = &cli.command {
        return ExitCode::from(serve(args) as u8);
    }
    let filter = EnvFilter::try_from_env(LOG).unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let connect = cli.connect;
    let exit = match cli.command {
        Command::Vm(command) => remote::run(connect, Task::Vm(command)),
        Command::Migrate(args) => remote::run(connect, Task::Migrate(args)),
        Command::Migrations(command) => remote::run(connect, Task::Migrations(command)),
        Command::Host(command) => remote::run(connect, Task::Host(command)),
        Command::Completions(args) => generate::completions(&args),
        Command::Man(args) => generate::man(&args),
        Command::Demo(args) => demo::run(*args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Config(command) => config::run(&command),
        Command::Keys(command) => keys::run(&command),
        Command::Serve(args) => serve(&args),
        Command::Vmm(args) => vmm(args),
    };
    ExitCode::from(exit as u8)
}

/// Logs as its configuration says.
fn serve(args: &cli::ServeArgs) -> Exit {
    let binary = match std::env::current_exe() {
        Ok(binary) => binary,
        Err(error) => return fail(&error),
    };
    match vmferry_service::serve::run(Source::new(&args.config), binary) {
        Ok(()) => Exit::Ok,
        Err(error) => fail(&error),
    }
}

fn vmm(args: cli::VmmArgs) -> Exit {
    let options = vmferry_vmm::RunOptions {
        dir: args.dir,
        until_stdin_ends: args.exit_with_parent,
    };
    match vmferry_vmm::run(&options) {
        Ok(()) => Exit::Ok,
        Err(error) => fail(&error),
    }
}

/// Prints an error with its causes in one line.
pub(crate) fn fail(error: &dyn std::error::Error) -> Exit {
    eprintln!("vmferry: {}", vmferry_protocol::errors::chain(error));
    Exit::Failed
}
