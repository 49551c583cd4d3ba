//! What this process uses: descriptors, threads, memory. Read from /proc.

use std::fs;

/// Number of open descriptors, the one used for looking not counted.
#[must_use]
pub fn open_fds() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, |d| d.count().saturating_sub(1))
}

/// Number of threads.
#[must_use]
pub fn threads() -> usize {
    fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

/// Resident memory in bytes.
#[must_use]
pub fn rss_bytes() -> u64 {
    status_kib("VmRSS:").unwrap_or(0) * 1024
}

fn status_kib(field: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_has_descriptors_threads_and_memory() {
        assert!(super::open_fds() >= 3);
        assert!(super::threads() >= 1);
        assert!(super::rss_bytes() > 100_000);
    }
}
