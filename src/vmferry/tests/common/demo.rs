//! The command line, as a user calls it.

use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use serde_json::Value;

use super::{BIN, GUARD};

/// What a run of the binary has left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs the binary to its end.
pub(crate) fn vmferry<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Ran {
    ran(Command::new(BIN).args(args))
}

/// Runs a command to its end.
pub(crate) fn ran(command: &mut Command) -> Ran {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id().try_into().unwrap();
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || ended.send(child.wait_with_output()));
    let Ok(output) = end.recv_timeout(GUARD) else {
        // SAFETY: sends a signal to a child that has not been waited for.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        panic!("it hangs: {command:?}");
    };
    let output = output.unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// `vmferry demo --json` with these words, small and quick where they do not say otherwise.
pub(crate) fn demo(words: &str) -> Ran {
    let mut args = vec!["demo", "--json", "--run-for=50ms"];
    for (option, quick) in [
        ("--mem", "--mem=256M"),
        ("--ws-mib", "--ws-mib=16"),
        ("--fill-mib", "--fill-mib=64"),
        ("--warm-up", "--warm-up=100ms"),
        // How long a pause is on a busy machine is not what these tests are about.
        ("--max-blackout", "--max-blackout=20s"),
    ] {
        if !words.contains(option) {
            args.push(quick);
        }
    }
    args.extend(words.split_whitespace());
    vmferry(args)
}

impl Ran {
    /// The report of a demo that went well: JSON, and nothing else on stdout.
    pub(crate) fn completed(&self) -> Value {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        let report = self.report();
        assert_eq!(report["outcome"], "completed");
        assert_eq!(report["guest"]["verify"], "OK", "{}", self.stderr);
        report
    }

    /// It went well.
    pub(crate) fn ok(&self) {
        assert_eq!(self.code, Some(0), "{self:?}");
    }

    /// All of stdout as JSON.
    pub(crate) fn report(&self) -> Value {
        match serde_json::from_str(&self.stdout) {
            Ok(report) => report,
            Err(e) => panic!("{e} in {:?}; stderr: {}", self.stdout, self.stderr),
        }
    }

    /// It failed as a user may expect: exit code 1, nothing on stdout, one line of error that says
    /// all of `words`.
    pub(crate) fn failed(&self, words: &[&str]) {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        let mut errors = self
            .stderr
            .lines()
            .filter(|line| line.starts_with("vmferry: "));
        let (error, more) = (errors.next().unwrap_or(""), errors.next());
        assert_eq!(more, None, "{self:?}");
        assert_eq!(self.stderr.lines().last(), Some(error), "{self:?}");
        for word in words {
            assert!(error.contains(word), "no {word:?} in {error:?}");
        }
        assert!(!self.stderr.contains("panicked"), "{self:?}");
    }
}
