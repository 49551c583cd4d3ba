//! KVM's errors in the crate's terms.

use std::io;

use crate::MachineError;

/// For `map_err`: KVM refused `what`.
pub(super) fn kvm_error(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> MachineError {
    move |e| MachineError::Kvm {
        what,
        source: e.into(),
    }
}

/// What to do about /dev/kvm not opening.
pub(super) fn no_kvm(error: kvm_ioctls::Error) -> MachineError {
    let source = io::Error::from(error);
    let what = match source.kind() {
        io::ErrorKind::NotFound => {
            "there is none: turn virtualisation on in the firmware (or nested virtualisation for \
             this VM) and load the module kvm_intel or kvm_amd, or use the process machine"
        }
        io::ErrorKind::PermissionDenied => {
            "no permission: run as root, or add this user to the group that owns it (usually kvm)"
        }
        _ => "it does not open: see the kernel's messages",
    };
    MachineError::NoKvm {
        what: what.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_about_kvm_depends_on_what_is_the_matter() {
        let text = |errno| no_kvm(kvm_ioctls::Error::new(errno)).to_string();
        assert!(text(libc::ENOENT).contains("load the module"));
        assert!(text(libc::EACCES).contains("add this user"));
    }
}
