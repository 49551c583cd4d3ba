//! The matrix: links, contents, loads, and the guests that a move in each cell takes.

use std::fmt;

/// A link.
#[derive(Debug)]
pub struct Link {
    /// Its limit in Mbit/s as the demo takes it; 0 is none.
    pub mbit: &'static str,
    /// How that changes, as the demo takes it.
    changes: &'static str,
    /// MiB that a raw move sends over it, so that it takes two seconds or so.
    data_mib: u32,
}

/// Links that do not change.
pub const LINKS: [Link; 4] = [
    Link {
        mbit: "0",
        changes: "",
        data_mib: 1024,
    },
    Link {
        mbit: "10000",
        changes: "",
        data_mib: 1024,
    },
    Link {
        mbit: "1000",
        changes: "",
        data_mib: 240,
    },
    Link {
        mbit: "100",
        changes: "",
        data_mib: 24,
    },
];

/// A link that falls, and comes back when a raw move is halfway.
pub const DROP: Link = Link {
    mbit: "1000",
    changes: "50@300ms,1000@3s",
    data_mib: 480,
};

impl Link {
    /// Its limit in Mbit/s, where it has one and keeps it.
    #[must_use]
    pub fn steady_mbit(&self) -> Option<u32> {
        let mbit = self.mbit.parse().ok().filter(|mbit| *mbit > 0);
        mbit.filter(|_| self.changes.is_empty())
    }
}

/// What the guest's memory holds.
#[derive(Debug)]
pub struct Content {
    /// Its name, which the demo knows too.
    pub fill: &'static str,
    /// Share of pages that are not zero, in per cent.
    data_pct: u32,
}

const fn content(fill: &'static str, data_pct: u32) -> Content {
    Content { fill, data_pct }
}

/// All contents.
pub const CONTENTS: [Content; 5] = [
    content("zero-heavy", 20),
    content("text", 100),
    content("structs", 100),
    content("random", 100),
    content("mixed", 70),
];

/// What the guest does with the processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Leaves them alone.
    Idle,
    /// Uses all of them.
    Busy,
}

/// All loads.
pub const LOADS: [Load; 2] = [Load::Idle, Load::Busy];

impl Load {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Busy => "busy",
        }
    }
}

/// One of the matrix.
#[derive(Debug)]
pub struct Cell {
    /// The link.
    pub link: &'static Link,
    /// What the guest's memory holds.
    pub content: &'static Content,
    /// What the guest does.
    pub load: Load,
}

/// Most MiB that a raw move sends beside a guest that uses all processors: what is left of them
/// then takes about 50 MiB a second.
const MOST_BUSY_DATA_MIB: u32 = 128;
/// Most that a guest fills, in MiB: zero pages are many where few others are.
const MOST_FILL_MIB: u32 = 2048;
/// What a guest has beside what it fills, in MiB.
const BESIDE_MIB: u32 = 64;
/// Most vCPUs that the demo gives to a guest.
const MOST_VCPUS: usize = 8;

impl Cell {
    fn fill_mib(&self) -> u32 {
        let data = match self.load {
            Load::Idle => self.link.data_mib,
            Load::Busy => self.link.data_mib.min(MOST_BUSY_DATA_MIB),
        };
        let all = data * 100 / self.content.data_pct;
        all.next_multiple_of(2).min(MOST_FILL_MIB)
    }

    /// The demo's arguments, without the codec. Over TCP, which takes the least of the processors
    /// that the codecs are compared on; a busy guest must not make the migration give up.
    #[must_use]
    pub fn args(&self, shaped: bool) -> Vec<String> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        // A link that the kernel limits is not known to vmferry.
        let shaped = shaped && self.link.steady_mbit().is_some();
        let mbit = if shaped { "0" } else { self.link.mbit };
        let fill = self.fill_mib();
        let load = match self.load {
            Load::Idle => "--workload idle --vcpus 1 --warm-up 300ms".to_owned(),
            // Its speed before is that of a whole second, in which it does nothing else: one
            // that is measured while it has just filled its memory hides what it loses.
            Load::Busy => format!(
                "--workload readmostly --rate 0 --vcpus {} --warm-up 1500ms",
                processors.min(MOST_VCPUS)
            ),
        };
        let line = format!(
            "--transport tcp --link-mbit {mbit} --max-blackout 30s --run-for 0s \
             --mem {}M --fill {} --fill-mib {fill} --ws-mib 4 {load}",
            fill + BESIDE_MIB,
            self.content.fill,
        );
        let changes = self.link.changes;
        let changes = match changes.is_empty() {
            true => String::new(),
            false => format!(" --link-changes {changes}"),
        };
        format!("{line}{changes}")
            .split(' ')
            .map(str::to_owned)
            .collect()
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.link.mbit {
            "0" => f.write_str("no limit")?,
            mbit => write!(f, "{mbit} Mbit/s")?,
        }
        if !self.link.changes.is_empty() {
            write!(f, " then {}", self.link.changes)?;
        }
        write!(f, ", {}, {}", self.content.fill, self.load.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_fills_as_much_as_the_link_takes_in_time() {
        let cell = |link, content, load| Cell {
            link,
            content,
            load,
        };
        let slow = cell(&LINKS[3], &CONTENTS[4], Load::Busy);
        assert_eq!(slow.fill_mib(), 34);
        assert_eq!(slow.to_string(), "100 Mbit/s, mixed, busy");
        let line = slow.args(false).join(" ");
        assert!(line.contains("--mem 98M --fill mixed --fill-mib 34 --ws-mib 4 --workload"));
        let quick = cell(&LINKS[0], &CONTENTS[0], Load::Idle);
        assert_eq!(quick.fill_mib(), MOST_FILL_MIB);
        assert_eq!(quick.to_string(), "no limit, zero-heavy, idle");
        assert_eq!(cell(&DROP, &CONTENTS[1], Load::Busy).fill_mib(), 128);
    }
}
