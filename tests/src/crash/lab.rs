//! The VM processes of a run, as the harness holds them.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Program, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::log::{Log, Process, What};
use super::talk::{Command, Event, Setup, Status};

/// What a run waits for, it waits for so long at most: longer is a failure.
pub(super) const GUARD: Duration = Duration::from_secs(60);

/// All processes of a run, by number, and what they have said.
pub(super) struct Lab {
    program: PathBuf,
    dir: PathBuf,
    vms: Vec<Vm>,
    tell: Sender<(Process, Event)>,
    told: Receiver<(Process, Event)>,
    /// What nobody has asked for yet.
    unread: Vec<(Process, Event)>,
}

struct Vm {
    child: Child,
    process: Process,
    gone: bool,
}

impl Lab {
    /// `program` is the VM process; `dir` is the run's own.
    pub(super) fn new(program: &Path, dir: &Path) -> Self {
        let (tell, told) = channel();
        Self {
            program: program.to_owned(),
            dir: dir.to_owned(),
            vms: Vec::new(),
            tell,
            told,
            unread: Vec::new(),
        }
    }

    /// The log of writes.
    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("writes.log")
    }

    fn add(&self, process: Process, what: What) -> Result<(), String> {
        let log = Log::open(&self.log(), process).map_err(|e| e.to_string())?;
        log.add(what);
        Ok(())
    }

    /// Nobody has the disk, and nothing is in flight.
    pub(super) fn is_quiet(&self) -> Result<(), String> {
        self.add(u8::MAX, What::Quiet)
    }

    /// Starts a process; it is up when this returns. Its number is the one in `setup`.
    pub(super) fn start(&mut self, setup: &Setup) -> Result<Process, String> {
        let process = setup.process;
        let words = self.dir.join(format!("stderr-{process}"));
        let argument = serde_json::to_string(setup).map_err(|e| e.to_string())?;
        let spawned = File::create(&words).and_then(|words| {
            Program::new(&self.program)
                .arg(argument)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(words)
                .spawn()
        });
        let mut child = spawned.map_err(|e| format!("cannot start a VM process: {e}"))?;
        let out = child.stdout.take().ok_or("no standard output")?;
        let tell = self.tell.clone();
        thread::spawn(move || {
            for line in BufReader::new(out).lines() {
                let Ok(line) = line else { break };
                let event = serde_json::from_str(&line).unwrap_or_else(|e| {
                    Event::Refused(format!("it says what cannot be read, '{line}': {e}"))
                });
                let _ = tell.send((process, event));
            }
            let _ = tell.send((process, Event::Gone));
        });
        let gone = false;
        self.vms.push(Vm {
            child,
            process,
            gone,
        });
        self.wait(process, "its start", |e| (*e == Event::Up).then_some(()))?;
        Ok(process)
    }

    fn vm(&mut self, process: Process) -> Result<&mut Vm, String> {
        let vm = self.vms.iter_mut().find(|vm| vm.process == process);
        vm.ok_or_else(|| format!("there is no process {process}"))
    }

    /// Whether it was not ended by this harness.
    pub(super) fn lives(&self, process: Process) -> bool {
        let vm = self.vms.iter().find(|vm| vm.process == process);
        vm.is_some_and(|vm| !vm.gone)
    }

    /// Tells a process something.
    pub(super) fn say(&mut self, process: Process, command: &Command) -> Result<(), String> {
        let line = serde_json::to_string(command).map_err(|e| e.to_string())?;
        let stdin = self.vm(process)?.child.stdin.as_mut();
        let said = stdin.map(|pipe| writeln!(pipe, "{line}"));
        match said {
            Some(Ok(())) => Ok(()),
            _ => Err(format!("process {process} does not listen: {command:?}")),
        }
    }

    /// The first event for which `of` has something, of those not yet taken. Others stay.
    pub(super) fn wait_any<T>(
        &mut self,
        what: &str,
        of: impl Fn(Process, &Event) -> Option<T>,
    ) -> Result<T, String> {
        let give_up_at = Instant::now() + GUARD;
        let mut seen = 0;
        loop {
            while let Some((process, event)) = self.unread.get(seen) {
                if let Some(found) = of(*process, event) {
                    self.unread.remove(seen);
                    return Ok(found);
                }
                if let Event::Refused(why) | Event::Ended(why) = event {
                    return Err(format!("waiting for {what}: process {process}: {why}"));
                }
                let ended = *event == Event::Gone;
                if ended && self.vms.iter().any(|vm| vm.process == *process && !vm.gone) {
                    return Err(format!("waiting for {what}: process {process} has ended"));
                }
                seen += 1;
            }
            let left = give_up_at.saturating_duration_since(Instant::now());
            match self.told.recv_timeout(left) {
                Ok(told) => self.unread.push(told),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    let unread = &self.unread;
                    return Err(format!("waited in vain for {what}; said was {unread:?}"));
                }
            }
        }
    }

    /// The same, of one process.
    pub(super) fn wait<T>(
        &mut self,
        process: Process,
        what: &str,
        of: impl Fn(&Event) -> Option<T>,
    ) -> Result<T, String> {
        let what = format!("{what} (process {process})");
        self.wait_any(&what, |p, event| (p == process).then(|| of(event))?)
    }

    /// Whether a process has said this, and nobody has asked for it yet.
    pub(super) fn has_said(&mut self, process: Process, event: &Event) -> bool {
        self.unread.extend(self.told.try_iter());
        self.unread.iter().any(|(p, e)| (*p, e) == (process, event))
    }

    /// How a process is.
    pub(super) fn status(&mut self, process: Process) -> Result<Status, String> {
        self.say(process, &Command::Status)?;
        self.wait(process, "its status", |event| match event {
            Event::Status(status) => Some(*status),
            _ => None,
        })
    }

    /// Ends a process as `kill -9` does; it is gone when this returns.
    pub(super) fn kill(&mut self, process: Process) -> Result<(), String> {
        let vm = self.vm(process)?;
        vm.gone = true;
        let killed = vm.child.kill().and_then(|()| vm.child.wait());
        killed.map_err(|e| format!("cannot kill process {process}: {e}"))?;
        self.ended(process)
    }

    /// Has a process end in good order.
    pub(super) fn exit(&mut self, process: Process) -> Result<(), String> {
        self.say(process, &Command::Exit)?;
        self.vm(process)?.gone = true;
        self.ended(process)?;
        let status = self.vm(process)?.child.wait().map_err(|e| e.to_string())?;
        match status.success() {
            true => Ok(()),
            false => Err(format!("process {process} ended badly: {status}")),
        }
    }

    /// All that it has said is read.
    fn ended(&mut self, process: Process) -> Result<(), String> {
        self.wait(process, "its end", |e| (*e == Event::Gone).then_some(()))?;
        self.add(process, What::Died)
    }

    /// What the processes have written to standard error, and the guests to their debug ports.
    pub(super) fn words(&self) -> String {
        let files = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut words = String::new();
        for file in files.map(|f| f.path()) {
            let name = file.file_name().and_then(|n| n.to_str()).unwrap_or("");
            if name.starts_with("stderr") || name.starts_with("debug") {
                let said = std::fs::read_to_string(&file).unwrap_or_default();
                if !said.is_empty() {
                    words.push_str(&format!("\n--- {name}\n{said}"));
                }
            }
        }
        words
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for vm in &mut self.vms {
            // One that is gone has been waited for.
            let _ = vm.child.kill().and_then(|()| vm.child.wait());
        }
    }
}
