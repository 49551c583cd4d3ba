//! Configurations that cannot be made into a machine: each is an error in words.

use std::fs;
use std::path::PathBuf;

use vmferry_machine::{Boot, Console, MachineConfig, MachineError, Role, create};

use crate::kernels::{self, NOTE_AT, SEGMENT_AT, kernel_config};
use crate::rig::{Rig, config, has_kvm};

/// What creating and booting it fails with, with all its causes.
fn refusal(config: &MachineConfig) -> String {
    let machine = create(config, std::sync::Arc::new(|_| {}), Role::Owner);
    let error = machine.and_then(|m| m.boot()).unwrap_err();
    assert!(matches!(
        error,
        MachineError::Config(_) | MachineError::File { .. } | MachineError::Memory(_)
    ));
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    assert!(!text.contains('\n'), "{text}");
    text
}

#[track_caller]
fn assert_refused(config: &MachineConfig, words: &[&str]) {
    let text = refusal(config);
    for word in words {
        assert!(text.contains(word), "'{word}' is not in '{text}'");
    }
}

#[test]
fn kvm_shapes_that_cannot_be_are_refused() {
    if !has_kvm() {
        return;
    }
    for vcpus in [0, 9, u32::MAX] {
        assert_refused(&config("", vcpus), &["vCPUs: give 1 to 8"]);
    }
    for (bytes, word) in [(0, "2 MiB"), (4096, "2 MiB"), (1 << 62, "more than")] {
        let mut config = config("", 1);
        config.ram_bytes = bytes;
        assert_refused(&config, &[word]);
    }
    assert_refused(
        &config("fill-mib=61", 1),
        &["needs 68 MiB", "give the machine that much", "fill-mib="],
    );
    assert_refused(
        &config("fill-mib=999999999999999", 1),
        &["below the device hole", "lower fill-mib="],
    );
    let mut large = config("fill-mib=3100", 1);
    large.ram_bytes = 8 << 30;
    assert_refused(&large, &["below the device hole"]);
    let mut console = config("", 1);
    console.serial = Console::File("/no/such/directory/serial".into());
    assert_refused(
        &console,
        &["the serial console '/no/such/directory/serial'"],
    );
    let mut console = config("", 1);
    console.debugcon = Console::Socket("/no/such/directory/debug".into());
    assert_refused(&console, &["the debug console 'unix:/no/such"]);
}

#[test]
fn kvm_kernels_that_cannot_be_booted_are_refused() {
    if !has_kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| -> PathBuf {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let changed = |at: usize, bytes: &[u8]| {
        let mut elf = kernels::spin();
        elf[at..at + bytes.len()].copy_from_slice(bytes);
        write("changed", &elf)
    };
    let refused = |path: PathBuf, words: &[&str]| assert_refused(&kernel_config(path, 1), words);

    refused("/no/such/kernel".into(), &["the kernel '/no/such/kernel'"]);
    refused(dir.path().to_owned(), &["not a regular file"]);
    refused(write("empty", &[]), &["not an ELF file", "vmlinux"]);
    refused(write("bzimage", &[0x4d; 4096]), &["not an ELF file"]);
    refused(changed(4, &[1]), &["not a 64-bit x86 ELF"]);
    refused(changed(18, &[3]), &["not a 64-bit x86 ELF"]);
    refused(changed(54, &[0]), &["garbled"]);
    refused(changed(56, &[0xff, 0xff]), &["garbled"]);
    refused(changed(32, &[0xff; 8]), &["garbled"]);
    refused(changed(56, &[0]), &["nothing to load"]);
    refused(changed(NOTE_AT + 8, &[17]), &["no PVH entry", "CONFIG_PVH"]);
    refused(changed(NOTE_AT + 16, &[0xff; 4]), &["outside RAM"]);
    refused(changed(SEGMENT_AT + 32, &[0xff; 8]), &["ends beyond all"]);
    refused(
        changed(SEGMENT_AT + 32, &[0xff]),
        &["is cut off or garbled"],
    );
    refused(changed(SEGMENT_AT + 8, &[0xff; 8]), &["ends beyond all"]);
    refused(changed(SEGMENT_AT + 24, &[0, 0x10, 0]), &["below 1 MiB"]);
    refused(
        changed(SEGMENT_AT + 40, &(40u64 << 20).to_le_bytes()),
        &["needs RAM up to 41 MiB", "has 32 MiB", "give it more RAM"],
    );
    let spin = kernels::spin();
    for len in 0..spin.len() {
        refused(write("short", &spin[..len]), &[]);
    }

    let initrd = |path: PathBuf| {
        let mut config = kernel_config(write("kernel", &spin), 1);
        config.boot = Boot::Kernel {
            kernel: dir.path().join("kernel"),
            initrd: Some(path),
            cmdline: String::new(),
        };
        config
    };
    assert_refused(&initrd("/no/initrd".into()), &["the initrd '/no/initrd'"]);
    let large = write("large", &[]);
    let file = fs::OpenOptions::new().write(true).open(&large).unwrap();
    file.set_len(32 << 20).unwrap();
    assert_refused(&initrd(large), &["initrd of 32 MiB", "more RAM"]);
    let mut config = initrd(write("none", &[]));
    drop(Rig::boot(&config));
    for cmdline in ["x".repeat(4096), "a\0b".to_owned()] {
        config.boot = Boot::Kernel {
            kernel: dir.path().join("kernel"),
            initrd: None,
            cmdline,
        };
        assert_refused(&config, &["command line"]);
    }
}
