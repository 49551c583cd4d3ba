//! The command line: what there is to say, and how it is checked. Does nothing itself.

mod demo;
mod parse;
mod remote;

use std::path::PathBuf;

use clap::{Arg, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

pub(crate) use demo::{DemoArgs, DiskArg, MachineArg};
pub(crate) use remote::{
    Address, ConnectArgs, ConsoleArgs, CreateArgs, DiskOption, DrainArgs, HostCommand, MigrateArgs,
    MigrationsCommand, TraceArgs, TraceFormat, VmCommand, WaitArgs,
};

/// What every command answers its caller; [`crate::Exit`] in words.
const EXIT_CODES: &str = "\
Exit codes:
  0    done; a migration completed
  1    it could not be done, why is on stderr; a migration failed, the guest runs at the source
  2    a command line that makes no sense
  3    a guest found its memory or its disk wrong
  4    cancelled; the guest runs at the source
  5    undecided: neither host may run the guest until an operator has looked
  6    not known: the host service did not answer any more, what was begun goes on without it
  130  left, by a second Ctrl-C or as nobody reads its output; what was begun goes on";

/// Live migration of KVM virtual machines.
#[derive(Debug, Parser)]
#[command(name = "vmferry", version, about, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Virtual machines of a host: create, list, show, pause, stop, console and more
    #[command(subcommand)]
    Vm(VmCommand),
    /// Move a virtual machine to another host while it works
    Migrate(Box<MigrateArgs>),
    /// Migrations of a host, under way and past: list, show, report, trace, cancel
    #[command(subcommand)]
    Migrations(MigrationsCommand),
    /// A host as a whole: what it can do and has, and moving all its machines away
    #[command(subcommand)]
    Host(HostCommand),
    /// Boot a guest, move it live to another VM process on this machine, prove that it lost nothing
    Demo(Box<DemoArgs>),
    /// Say what this host can do: KVM, huge pages, userfaultfd, and what vmferry would use
    Doctor(DoctorArgs),
    /// Run the host service: machines, their migrations, and the API that all other commands ask
    Serve(ServeArgs),
    /// Check or show a host's configuration
    #[command(subcommand)]
    Config(crate::config::ConfigCommand),
    /// Make and show certificates: for hosts, and for users of this command line
    #[command(subcommand)]
    Keys(crate::keys::KeysCommand),
    /// Print completions for a shell
    Completions(CompletionsArgs),
    /// Print the manual page, or write those of all commands
    Man(ManArgs),
    /// One VM process (internal: started by the host service and by the demo)
    #[command(hide = true)]
    Vmm(VmmArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print JSON instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// The configuration; config/host.toml explains all its keys
    #[arg(long, value_name = "FILE", default_value = "/etc/vmferry/host.toml")]
    pub(crate) config: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_parser = clap::builder::EnumValueParser::<Shell>::new())]
    pub(crate) shell: Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Directory for the pages of all commands; it has to exist
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct VmmArgs {
    /// The VM's own directory: control socket, journal
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Exit when the process that started this one has gone
    #[arg(long)]
    pub(crate) exit_with_parent: bool,
}

/// Commands that need no host service.
const LOCAL: [&str; 8] = [
    "serve",
    "demo",
    "doctor",
    "config",
    "keys",
    "completions",
    "man",
    "vmm",
];

/// The command line as a whole. Options that say how a service is reached can stand anywhere, but
/// are not shown where no service is needed.
pub(crate) fn command() -> clap::Command {
    LOCAL.iter().fold(Cli::command(), |command, name| {
        command.mut_subcommand(name, |local| {
            let known: Vec<String> = local
                .get_arguments()
                .map(|a| a.get_id().to_string())
                .collect();
            let globals: Vec<Arg> = Cli::command()
                .get_arguments()
                .filter(|a| a.is_global_set() && !known.contains(&a.get_id().to_string()))
                .map(|a| a.clone().hide(true))
                .collect();
            local.args(globals)
        })
    })
}

/// Reads the process's command line; where that makes no sense, says so and ends the process.
pub(crate) fn parse() -> Cli {
    let mut command = command();
    let matches = command.get_matches_mut();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command).exit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn commands_without_a_service_do_not_show_how_one_is_reached() {
        let mut command = command();
        command.build();
        let mut help = |name: &str| {
            let found = command.find_subcommand_mut(name).unwrap();
            found.render_long_help().to_string()
        };
        assert!(help("migrate").contains("--host") && help("vm").contains("VMFERRY_HOST"));
        for name in LOCAL {
            assert!(!help(name).contains("--host"), "{name}");
        }
        assert!(help("demo").contains("--json"));
    }
}
