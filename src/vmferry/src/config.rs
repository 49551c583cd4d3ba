//! `vmferry config`: what is wrong with a configuration, and what holds.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;
use vmferry_service::config::{Source, effective};

use crate::{Exit, fail};

/// What is asked.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say everything that is wrong with a configuration (exit code 1), or ok
    Check(ConfigArgs),
    /// Print what holds: the file, the environment, and the defaults for the rest
    Show(ConfigArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// The configuration; config/host.toml explains all its keys
    #[arg(long, value_name = "FILE", default_value = "/etc/vmferry/host.toml")]
    config: PathBuf,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(command: &ConfigCommand) -> Exit {
    let (ConfigCommand::Check(args) | ConfigCommand::Show(args)) = command;
    let check = matches!(command, ConfigCommand::Check(_));
    match (Source::new(&args.config).load(), args.json) {
        (Ok(_), true) if check => print(&json!({ "ok": true, "problems": [] })),
        (Ok(_), false) if check => println!("ok"),
        (Ok(config), true) => print(&json!(config)),
        (Ok(config), false) => match effective(&config) {
            Ok(text) => print!("{text}"),
            Err(error) => return fail(&error),
        },
        (Err(wrong), json) => {
            if json && check {
                print(&json!({ "ok": false, "file": wrong.file, "problems": wrong.problems }));
            } else if check {
                println!("{wrong}");
            } else {
                eprintln!("{wrong}");
            }
            return Exit::Failed;
        }
    }
    Exit::Ok
}

fn print(value: &serde_json::Value) {
    println!("{value:#}");
}
