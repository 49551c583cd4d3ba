//! QEMU as a thing to compare with: a process that is spoken to by QMP, the built-in payload in
//! the shape that QEMU boots, and the guest's work as read from outside.

pub mod payload;
mod watch;

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmferry_guest::abi;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

pub use watch::Watch;

/// How long QEMU may take for what is not a migration.
const PATIENCE: Duration = Duration::from_secs(30);

/// The version that `binary` says it has.
///
/// # Errors
/// In words, with what to do where there is no QEMU.
pub fn version(binary: &Path) -> Result<String, String> {
    let name = binary.display();
    let output = Command::new(binary)
        .arg("--version")
        .output()
        .map_err(|e| format!("{name}: {e} (apt-get install -y qemu-system-x86)"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let first = text.lines().next().filter(|line| !line.is_empty());
    first.map_or_else(
        || Err(format!("{name} does not say its version")),
        |line| Ok(line.to_owned()),
    )
}

/// A QEMU process; killed when dropped, and by the kernel when this process ends in any other way.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    qmp: UnixStream,
    /// What has been read of the next line.
    partial: Vec<u8>,
    /// Events that nobody has asked for so far.
    events: Vec<Value>,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Qemu {
    /// Starts `binary` with `args`, its QMP socket at `socket`. Must be called by a thread that
    /// lives for as long as QEMU is to.
    ///
    /// # Errors
    /// In words; QEMU's own, where it has any.
    pub fn start(binary: &Path, args: &[String], socket: &Path) -> Result<Self, String> {
        let mut command = Command::new(binary);
        command
            .args(args)
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // SAFETY: prctl is a plain system call that touches no memory.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let mut child = command
            .spawn()
            .map_err(|e| format!("{}: {e}", binary.display()))?;
        let connected = connect(&mut child, socket);
        let qmp = match connected {
            Ok(qmp) => qmp,
            Err(error) => return Err(format!("{error}: {}", words(&mut child))),
        };
        let mut qemu = Self {
            child,
            qmp,
            partial: Vec::new(),
            events: Vec::new(),
        };
        qemu.call("qmp_capabilities", &json!({}))?;
        Ok(qemu)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The answer to `command`.
    ///
    /// # Errors
    /// QEMU's own words.
    pub fn call(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        let line = request(command, arguments);
        let sent = self.qmp.write_all(line.as_bytes());
        sent.map_err(|e| format!("{command}: {e}"))?;
        self.answer(command)
    }

    /// Hands over an open file, which QEMU then knows as `name`.
    ///
    /// # Errors
    /// QEMU's own words.
    pub fn hand_over(&mut self, name: &str, file: &impl AsRawFd) -> Result<(), String> {
        let line = request("getfd", &json!({"fdname": name}));
        let sent = self.qmp.send_with_fd(line.as_bytes(), file.as_raw_fd());
        sent.map_err(|e| format!("getfd: {e}"))?;
        self.answer("getfd").map(|_| ())
    }

    fn answer(&mut self, command: &str) -> Result<Value, String> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match self.line()? {
                Some(line) if line.get("return").is_some() => return Ok(line["return"].clone()),
                Some(line) if line.get("error").is_some() => {
                    return Err(format!("{command}: {}", line["error"]["desc"]));
                }
                Some(line) => self.note(line),
                None => {}
            }
        }
        Err(format!("{command}: QEMU does not answer"))
    }

    /// Takes the events so far, after waiting for a moment for more.
    ///
    /// # Errors
    /// Where QEMU has gone.
    pub fn events(&mut self) -> Result<Vec<Value>, String> {
        while let Some(line) = self.line()? {
            self.note(line);
        }
        Ok(std::mem::take(&mut self.events))
    }

    fn note(&mut self, line: Value) {
        if line.get("event").is_some() {
            self.events.push(line);
        }
    }

    /// The next line, unless there is none within a moment.
    fn line(&mut self) -> Result<Option<Value>, String> {
        loop {
            if let Some(end) = self.partial.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.partial.drain(..=end).collect();
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|e| e.to_string());
            }
            let mut some = [0; 4096];
            match self.qmp.read(&mut some) {
                Ok(0) => break,
                Ok(n) => self.partial.extend(&some[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        Err(format!("QEMU has gone: {}", words(&mut self.child)))
    }

    /// Where this process has the payload's state in its own memory.
    ///
    /// # Errors
    /// QEMU's own words.
    pub fn state_address(&mut self) -> Result<u64, String> {
        let line = format!("gpa2hva {:#x}", abi::ARENA_GPA);
        let said = self.call("human-monitor-command", &json!({"command-line": line}))?;
        let said = said.as_str().unwrap_or_default().trim();
        let address = said.rsplit("0x").next();
        address
            .and_then(|hex| u64::from_str_radix(hex, 16).ok())
            .ok_or_else(|| format!("{line}: {said}"))
    }

    /// Waits until the payload works.
    ///
    /// # Errors
    /// Where it does not within two minutes, or QEMU has gone.
    pub fn wait_until_it_works(&mut self, state: u64) -> Result<(), String> {
        let deadline = Instant::now() + 4 * PATIENCE;
        while !watch::works(self.pid(), state)? {
            self.events()?;
            if Instant::now() > deadline {
                return Err("the guest does not begin to work".to_owned());
            }
        }
        Ok(())
    }
}

fn request(command: &str, arguments: &Value) -> String {
    format!("{}\n", json!({"execute": command, "arguments": arguments}))
}

/// What the process said before it ended; it ends now where it has not.
fn words(child: &mut Child) -> String {
    let _ = child.kill();
    let mut text = String::new();
    if let Some(stderr) = &mut child.stderr {
        let _ = stderr.read_to_string(&mut text);
    }
    let status = child
        .wait()
        .map_or_else(|e| e.to_string(), |s| s.to_string());
    format!("{status}: {}", text.trim())
}

fn connect(child: &mut Child, socket: &Path) -> Result<UnixStream, String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => {
                let timeout = stream.set_read_timeout(Some(Duration::from_millis(10)));
                return timeout.map(|()| stream).map_err(|e| e.to_string());
            }
            Err(_) if matches!(child.try_wait(), Ok(Some(_))) => {
                return Err("QEMU ended at once".to_owned());
            }
            Err(e) if Instant::now() > deadline => return Err(format!("QEMU's socket: {e}")),
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Has the kernel send no more than `bytes` a second on `socket`, in a pause of the guest too: QEMU
/// takes off its own limit there, and a link would not.
///
/// # Errors
/// The kernel's.
pub fn pace(socket: &impl AsRawFd, bytes: u64) -> Result<(), String> {
    let len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option's value is a word that outlives the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MAX_PACING_RATE,
            (&raw const bytes).cast(),
            len,
        )
    };
    let error = std::io::Error::last_os_error();
    (set == 0).then_some(()).ok_or_else(|| error.to_string())
}
