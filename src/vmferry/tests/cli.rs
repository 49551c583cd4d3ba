//! The commands that move nothing: help, version, doctor.
#![allow(clippy::unwrap_used)] // Helpers fail by unwrapping, as tests do.

mod common;

use common::demo::vmferry;

#[test]
fn help_and_version_are_printed() {
    for (words, said) in [
        ("--help", "demo"),
        ("demo --help", "--max-blackout"),
        ("doctor --help", "--json"),
        ("--version", "vmferry "),
    ] {
        let run = vmferry(words.split(' '));
        assert_eq!(run.code, Some(0), "{words}: {run:?}");
        assert!(run.stdout.contains(said), "{words}: {run:?}");
        assert_eq!(run.stderr, "", "{words}");
    }
    let run = vmferry(["--help"]);
    assert!(
        !run.stdout.contains("vmm"),
        "the internal command is hidden"
    );
}

#[test]
fn no_command_is_an_error_that_shows_what_there_is() {
    let run = vmferry(std::iter::empty::<&str>());
    assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""));
    assert!(run.stderr.contains("demo") && run.stderr.contains("doctor"));
}

#[test]
fn doctor_says_the_same_to_people_and_programs() {
    let (text, json) = (vmferry(["doctor"]), vmferry(["doctor", "--json"]));
    assert_eq!((text.code, json.code), (Some(0), Some(0)));
    let findings = json.report();
    let findings = findings.as_array().unwrap();
    let names: Vec<_> = findings
        .iter()
        .map(|f| f["what"].as_str().unwrap())
        .collect();
    for known in ["kvm", "huge-pages", "wp-async", "machine"] {
        assert!(names.contains(&known), "no {known} in {names:?}");
    }
    assert_eq!(names.len(), text.stdout.lines().count());
    for (finding, line) in findings.iter().zip(text.stdout.lines()) {
        let mark = if finding["ok"].as_bool().unwrap() {
            "ok"
        } else {
            "NO"
        };
        assert!(line.starts_with(mark), "{line}");
        // What is measured differs from run to run.
        let words = |text: &str| text.replace(|c: char| c.is_ascii_digit() || c == '.', "");
        let detail = words(finding["detail"].as_str().unwrap());
        assert!(words(line).ends_with(&detail), "{line}");
    }
}
