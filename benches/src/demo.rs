//! Runs `vmferry demo` and reads its report.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::warm::{Warm, ram_mib};

/// The binary whose demo is run.
#[derive(Debug)]
pub struct Demo {
    binary: PathBuf,
    /// Whether moves find memory at hand.
    warm: bool,
}

/// How the line begins that a demo writes when a migration does.
const BEGINS: &str = "hop ";
/// What its processes take beside guest RAM, in MiB.
const BESIDE_RAM_MIB: u64 = 64;

impl Demo {
    /// The demo of `binary`, or of the one beside this program.
    ///
    /// # Errors
    /// In words, where this program cannot be found.
    pub fn new(binary: Option<PathBuf>) -> Result<Self, String> {
        let binary = match binary {
            Some(binary) => binary,
            None => std::env::current_exe()
                .map_err(|e| e.to_string())?
                .with_file_name("vmferry"),
        };
        Ok(Self {
            binary,
            warm: false,
        })
    }

    /// The same, whose moves find memory at hand ([`crate::warm`]): to be compared in time.
    #[must_use]
    pub fn warm(mut self) -> Self {
        self.warm = true;
        self
    }

    /// The report of a demo with these arguments.
    ///
    /// # Errors
    /// The demo's own words, where it did not end well.
    pub fn run(&self, args: &[&str]) -> Result<Value, String> {
        self.run_behind(None, args)
    }

    /// The same over a link that the kernel limits to so many Mbit/s, where that is given: tbf on
    /// the loopback device of a network namespace of its own. Needs root.
    ///
    /// # Errors
    /// The demo's own words, where it did not end well.
    pub fn run_behind(&self, mbit: Option<u32>, args: &[&str]) -> Result<Value, String> {
        let mut command = match mbit {
            None => Command::new(&self.binary),
            Some(mbit) => {
                let mut command = Command::new("unshare");
                command.args(["--net", "sh", "-c", &shaped(mbit)]);
                command.arg(&self.binary);
                command
            }
        };
        // Where nothing is said of disks, nothing is measured of them.
        let no_disk: &[&str] = match args.contains(&"--disk") {
            true => &[],
            false => &["--disk", "none"],
        };
        let ram = ram_mib(args).filter(|_| self.warm);
        let mut destination = ram.map(Warm::take).transpose()?;
        drop(
            ram.map(|ram| Warm::take(ram + BESIDE_RAM_MIB))
                .transpose()?,
        );
        let failed = |e: std::io::Error| {
            let binary = self.binary.display();
            format!("{binary}: {e} (cargo build --release first)")
        };
        let mut demo = command
            .args(["demo", "--json"])
            .args(no_disk)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let stderr = demo.stderr.take().ok_or("a demo without stderr")?;
        let words = std::thread::spawn(move || {
            let mut words = String::new();
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if line.starts_with(BEGINS) {
                    drop(destination.take());
                }
                words.push_str(&line);
                words.push('\n');
            }
            words
        });
        let output = demo.wait_with_output().map_err(failed)?;
        let words = words.join().map_err(|_| "stderr could not be read")?;
        if !output.status.success() {
            return Err(format!("demo {}: {words}", args.join(" ")));
        }
        serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())
    }
}

/// A shell command that limits the loopback device and becomes its arguments. The burst is what
/// passes between two ticks of the kernel, and at least some packets of that device.
fn shaped(mbit: u32) -> String {
    let burst_kib = (mbit / 2).max(256);
    format!(
        "ip link set lo up && tc qdisc add dev lo root tbf rate {mbit}mbit burst {burst_kib}kb \
         latency 20ms && exec \"$0\" \"$@\""
    )
}

/// The number at a JSON pointer.
///
/// # Errors
/// Where there is none.
pub fn number(report: &Value, path: &str) -> Result<f64, String> {
    report
        .pointer(path)
        .and_then(Value::as_f64)
        .ok_or_else(|| format!("the report has no number at {path}"))
}

/// The median; not a number where there is no value.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// The value that so many of 100 are not above; not a number where there is none.
#[must_use]
pub fn percentile(percent: usize, values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let at = (values.len() * percent).div_ceil(100).saturating_sub(1);
    values.get(at).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).is_nan());
    }
}
