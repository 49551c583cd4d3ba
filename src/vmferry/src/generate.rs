//! What shells and readers of manuals want: made from the command line's own description.

use std::io::{self, Write};

use crate::cli::{self, CompletionsArgs, ManArgs};
use crate::{Exit, fail};

const NAME: &str = "vmferry";

/// Completions to stdout.
pub(crate) fn completions(args: &CompletionsArgs) -> Exit {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut cli::command(), NAME, &mut text);
    answer(io::stdout().write_all(&text))
}

/// The manual page of the whole to stdout, or all pages into a directory.
pub(crate) fn man(args: &ManArgs) -> Exit {
    let command = cli::command();
    answer(match &args.dir {
        Some(dir) => clap_mangen::generate_to(command, dir),
        None => clap_mangen::Man::new(command).render(&mut io::stdout()),
    })
}

fn answer(done: io::Result<()>) -> Exit {
    match done {
        Ok(()) => Exit::Ok,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
        Err(error) => fail(&error),
    }
}
