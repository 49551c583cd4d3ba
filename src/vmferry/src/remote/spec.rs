//! A machine's description, from a file or from options.

use std::io::Read;
use std::path::{Path, PathBuf};

use vmferry_machine::DiskSource;
use vmferry_service::model::{BootSpec, DiskSpecification, VmSpec};

use super::{CommandError, Result};
use crate::cli::{Address, CreateArgs, DiskOption};

/// Descriptions are small; what is larger is something else.
const MOST_BYTES: u64 = 1 << 20;

/// The description that these arguments give, for a service at `address`.
pub(super) fn spec(args: &CreateArgs, address: &Address) -> Result<VmSpec> {
    let mut spec = match &args.file {
        Some(path) => parse(&read(path)?, path)?,
        None => VmSpec {
            name: String::new(),
            machine: args.machine.clone(),
            ram_mib: args.ram.unwrap_or_default(),
            vcpus: args.vcpus,
            boot: boot(args, address)?,
            disks: args
                .disk
                .iter()
                .map(|disk| disk_of(disk, address))
                .collect::<Result<_>>()?,
            dirty_rings: args.dirty_rings,
        },
    };
    if let Some(name) = &args.name {
        spec.name.clone_from(name);
    }
    Ok(spec)
}

fn read(path: &Path) -> Result<String> {
    let wrong = |e| CommandError::Read(path.display().to_string(), e);
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(MOST_BYTES).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|f| f.take(MOST_BYTES).read_to_string(&mut text))
    };
    read.map_err(wrong)?;
    Ok(text)
}

/// JSON begins with a brace, TOML never does.
fn parse(text: &str, path: &Path) -> Result<VmSpec> {
    let parsed = if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|e| e.to_string())
    } else {
        // Its errors have several lines, with the place drawn.
        toml::from_str(text).map_err(|e| match e.span() {
            Some(span) => {
                let line = 1 + text[..span.start.min(text.len())].matches('\n').count();
                format!("line {line}: {}", e.message().replace('\n', ", "))
            }
            None => e.message().replace('\n', ", "),
        })
    };
    parsed.map_err(|why| {
        CommandError::Asked(format!("{} describes no machine: {why}", path.display()))
    })
}

fn boot(args: &CreateArgs, address: &Address) -> Result<BootSpec> {
    let Some(kernel) = &args.kernel else {
        return Ok(BootSpec::Workload {
            cmdline: args.workload.clone().unwrap_or_default(),
        });
    };
    let initrd = args.initrd.as_deref().map(|path| there(path, address));
    Ok(BootSpec::Kernel {
        kernel: text(there(kernel, address)?)?,
        initrd: initrd.transpose()?.map(text).transpose()?,
        cmdline: args.cmdline.clone().unwrap_or_default(),
    })
}

fn disk_of(disk: &DiskOption, address: &Address) -> Result<DiskSpecification> {
    let source = match &disk.source {
        DiskSource::File(path) => format!("file:{}", text(there(path, address)?)?),
        DiskSource::Nbd(uri) => uri.clone(),
    };
    Ok(DiskSpecification {
        source,
        read_only: disk.read_only,
        serial: disk.serial.clone(),
        queues: disk.queues,
        delay_ms: disk.delay_ms,
    })
}

/// A path as the service has to see it: it works in another directory, or on another host.
fn there(path: &Path, address: &Address) -> Result<PathBuf> {
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    if !address.is_here() {
        return Err(CommandError::Asked(format!(
            "{} has to be a path on {address}: give it from the root on",
            path.display()
        )));
    }
    std::path::absolute(path).map_err(|e| CommandError::Read(path.display().to_string(), e))
}

fn text(path: PathBuf) -> Result<String> {
    path.into_os_string().into_string().map_err(|path| {
        CommandError::Asked(format!(
            "{} is not UTF-8: give it another name",
            path.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command, VmCommand};
    use clap::Parser;

    fn args(words: &str) -> CreateArgs {
        let words = ["vmferry", "vm", "create"]
            .into_iter()
            .chain(words.split(' '));
        match Cli::try_parse_from(words).unwrap().command {
            Command::Vm(VmCommand::Create(args)) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn here() -> Address {
        "unix:/s".parse().unwrap()
    }

    #[test]
    fn options_give_the_same_as_a_file() {
        let by_options = spec(
            &args("web-1 --ram 1G --vcpus 2 --kernel /k --cmdline quiet --disk nbd://s/x,ro"),
            &here(),
        );
        let toml = "name = 'web-1'\nram_mib = 1024\nvcpus = 2\n[boot.kernel]\nkernel = '/k'\n\
                    cmdline = 'quiet'\n[[disks]]\nsource = 'nbd://s/x'\nread_only = true\n";
        let path = Path::new("spec.toml");
        let by_options = by_options.unwrap();
        assert_eq!(by_options, parse(toml, path).unwrap());
        let json = serde_json::to_string_pretty(&by_options).unwrap();
        assert_eq!(by_options, parse(&json, path).unwrap());
    }

    #[test]
    fn a_name_given_beside_a_file_is_the_one_used() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "name = 'a'\nram_mib = 64").unwrap();
        let path = file.path().display();
        assert_eq!(
            spec(&args(&format!("-f {path}")), &here()).unwrap().name,
            "a"
        );
        let spec = spec(&args(&format!("b -f {path}")), &here()).unwrap();
        assert_eq!((spec.name.as_str(), spec.vcpus, spec.ram_mib), ("b", 1, 64));
        assert_eq!(spec.boot, BootSpec::default());
    }

    #[test]
    fn what_describes_no_machine_says_where_it_is_wrong() {
        let error = |text: &str| parse(text, Path::new("spec")).unwrap_err().to_string();
        let unknown = error("name = 'a'\nram = 1\n");
        assert!(
            unknown.starts_with("spec describes no machine: line 2: "),
            "{unknown}"
        );
        assert!(unknown.contains("ram_mib"), "{unknown}");
        for text in ["", "{", "name = ", "{\"name\": \"a\"}"] {
            let error = error(text);
            assert!(
                error.contains("describes no machine") && !error.contains('\n'),
                "{error}"
            );
        }
        let missing = spec(&args("-f /nowhere/spec"), &here()).unwrap_err();
        assert_eq!(missing.to_string(), "cannot read /nowhere/spec");
    }

    #[test]
    fn paths_are_such_as_the_service_finds() {
        let made = spec(&args("a --ram 64M --kernel k --disk file:d"), &here()).unwrap();
        let BootSpec::Kernel { kernel, .. } = made.boot else {
            panic!("no kernel")
        };
        assert!(kernel.starts_with('/') && kernel.ends_with("/k"));
        assert!(made.disks[0].source.starts_with("file:/"));
        let far = spec(
            &args("a --ram 64M --kernel k"),
            &"https://b".parse().unwrap(),
        );
        assert!(far.unwrap_err().to_string().contains("a path on https://b"));
    }
}
