//! `vmferry-vm-process vmm --dir DIR`: a VM process, as the `vmferry` binary starts one. For tests.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let (Some(_), Some(_), Some(dir)) = (args.next(), args.next(), args.next()) else {
        eprintln!("give: vmm --dir DIR");
        return ExitCode::from(2);
    };
    let options = vmferry_vmm::RunOptions {
        dir: dir.into(),
        until_stdin_ends: false,
    };
    match vmferry_vmm::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", vmferry_protocol::errors::chain(&error));
            ExitCode::FAILURE
        }
    }
}
