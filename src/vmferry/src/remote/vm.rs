//! `vmferry vm`.

use serde_json::json;
use vmferry_service::model::{BootSpec, Decision, Place, Vm};

use super::session::Session;
use super::table::{Cell, Table, pairs};
use super::units::{NONE, mib, plain};
use super::{Result, console, spec, state};
use crate::Exit;
use crate::cli::{CreateArgs, VmCommand};

pub(super) async fn run(session: &mut Session, command: VmCommand) -> Result<Exit> {
    let remote = session.remote.clone();
    let vm = match command {
        VmCommand::Create(args) => return create(session, &args).await,
        VmCommand::List => {
            let vms = remote.vms().await?;
            session.out.either(&vms, |vms, colour| list(vms, colour))?;
            return Ok(Exit::Ok);
        }
        VmCommand::Show(args) => {
            let vm = remote.vm(&args.name).await?;
            session.out.either(&vm, show)?;
            return Ok(Exit::Ok);
        }
        VmCommand::Pause(args) => remote.pause(&args.name).await?,
        VmCommand::Resume(args) => remote.resume(&args.name).await?,
        VmCommand::Stop(args) => remote.stop(&args.name).await?,
        VmCommand::Start(args) => remote.start(&args.name).await?,
        VmCommand::Delete(args) => {
            remote.delete(&args.name).await?;
            if !session.out.json {
                session.out.text(&format!("{}: deleted\n", args.name))?;
            }
            return Ok(Exit::Ok);
        }
        VmCommand::Verify(args) => return verify(session, &args.name).await,
        VmCommand::Console(args) => return console::run(session, &args).await,
        VmCommand::Decide(args) => {
            let name = &args.vm.name;
            let (guest, so) = match args.here {
                true => (Place::Here, "it is here"),
                false => (Place::Elsewhere, "it is elsewhere, and forgotten here"),
            };
            let certain = args.certain;
            remote.decide(name, Decision { guest, certain }).await?;
            if !session.out.json {
                session.out.text(&format!("{name}: {so}\n"))?;
            }
            return Ok(Exit::Ok);
        }
        VmCommand::SettleStorage(args) => {
            let name = &args.vm.name;
            let writes = remote.settle_storage(name, args.nobody_else_writes).await?;
            session.out.either(&json!({ "writes": writes }), |_, _| {
                format!("{name}: {writes} writes vouched for\n")
            })?;
            return Ok(Exit::Ok);
        }
    };
    session.out.either(&vm, line)?;
    Ok(Exit::Ok)
}

async fn create(session: &mut Session, args: &CreateArgs) -> Result<Exit> {
    let spec = spec::spec(args, &session.address)?;
    let vm = session.remote.create(&spec).await?;
    if args.quiet {
        session.out.text(&format!("{}\n", plain(&vm.name)))?;
    } else {
        session.out.either(&vm, line)?;
    }
    Ok(Exit::Ok)
}

async fn verify(session: &mut Session, name: &str) -> Result<Exit> {
    let verdict = session.remote.verify(name).await?;
    let told = session.out.either(&json!({ "verdict": verdict }), |_, _| {
        format!("{name}: {}\n", plain(&verdict))
    });
    match verdict.as_str() {
        "OK" => told.map(|()| Exit::Ok),
        // Also where nobody reads it.
        _ => Ok(Exit::VerifyFailed),
    }
}

/// What became of it.
fn line(vm: &Vm, _colour: bool) -> String {
    let state = vm.state.name();
    match &vm.detail {
        Some(detail) => format!("{}: {state} ({})\n", plain(&vm.name), plain(detail)),
        None => format!("{}: {state}\n", plain(&vm.name)),
    }
}

fn list(vms: &[Vm], colour: bool) -> String {
    let mut table = Table::new([
        "NAME", "STATE", "MACHINE", ">VCPUS", ">RAM", ">DISKS", ">PID", "DETAIL",
    ]);
    for vm in vms {
        table.row([
            vm.name.as_str().into(),
            state::vm(vm.state),
            vm.machine.as_str().into(),
            vm.spec.vcpus.to_string().into(),
            mib(vm.spec.ram_mib).into(),
            vm.spec.disks.len().to_string().into(),
            vm.pid
                .map_or_else(|| NONE.to_owned(), |p| p.to_string())
                .into(),
            detail(vm).into(),
        ]);
    }
    table.render(colour)
}

/// Why it is so, and what happens to it.
fn detail(vm: &Vm) -> String {
    let migration = vm.migration.as_ref().map(|id| format!("migration {id}"));
    let parts: Vec<_> = vm.detail.clone().into_iter().chain(migration).collect();
    parts.join("; ")
}

fn show(vm: &Vm, colour: bool) -> String {
    let mut rows: Vec<(&str, Cell)> = vec![
        ("name", vm.name.as_str().into()),
        ("state", state::vm(vm.state)),
    ];
    if !detail(vm).is_empty() {
        rows.push(("detail", detail(vm).into()));
    }
    rows.push(("machine", vm.machine.as_str().into()));
    if let Some(pid) = vm.pid {
        rows.push(("process", pid.to_string().into()));
    }
    rows.push(("vcpus", vm.spec.vcpus.to_string().into()));
    rows.push(("ram", mib(vm.spec.ram_mib).into()));
    match &vm.spec.boot {
        BootSpec::Workload { cmdline } => rows.push(("workload", cmdline.as_str().into())),
        BootSpec::Kernel {
            kernel,
            initrd,
            cmdline,
        } => {
            rows.push(("kernel", kernel.as_str().into()));
            if let Some(initrd) = initrd {
                rows.push(("initrd", initrd.as_str().into()));
            }
            rows.push(("cmdline", cmdline.as_str().into()));
        }
    }
    for disk in &vm.spec.disks {
        let mut text = disk.source.clone();
        if disk.read_only {
            text.push_str(", read only");
        }
        if !disk.serial.is_empty() {
            text.push_str(&format!(", serial {}", disk.serial));
        }
        if let Some(queues) = disk.queues {
            text.push_str(&format!(", {queues} queues"));
        }
        if disk.delay_ms > 0 {
            text.push_str(&format!(", {} ms slower", disk.delay_ms));
        }
        rows.push(("disk", text.into()));
    }
    pairs(rows, colour)
}
