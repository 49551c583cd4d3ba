//! The matrix: links, contents, loads, and the guests that a move in each cell takes.

use std::fmt;

/// A link.
#[derive(Debug)]
pub struct Link {
    /// Its limit in Mbit/s as the demo takes it; 0 is none.
    pub mbit: &'static str,
    /// MiB that a raw move sends over it, so that it takes two seconds or so.
    data_mib: u32,
}

/// Links that do not change.
pub const LINKS: [Link; 4] = [
    Link {
        mbit: "0",
        data_mib: 1024,
    },
    Link {
        mbit: "10000",
        data_mib: 1024,
    },
    Link {
        mbit: "1000",
        data_mib: 240,
    },
    Link {
        mbit: "100",
        data_mib: 24,
    },
];

/// A link that falls, and comes back when a raw move is halfway.
pub const DROP: Link = Link {
    mbit: "1000@0s,50@1s,1000@3s",
    data_mib: 240,
};

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

/// Most that a guest fills, in MiB: zero pages are many where few others are.
const MOST_FILL_MIB: u32 = 2048;
/// What a guest has beside what it fills, in MiB.
const BESIDE_MIB: u32 = 64;
/// Most vCPUs that the demo gives to a guest.
const MOST_VCPUS: usize = 8;

impl Cell {
    fn fill_mib(&self) -> u32 {
        let all = self.link.data_mib * 100 / self.content.data_pct;
        all.next_multiple_of(2).min(MOST_FILL_MIB)
    }

    /// The demo's arguments, without the codec. Over TCP, which takes the least of the processors
    /// that the codecs are compared on; a busy guest must not make the migration give up.
    #[must_use]
    pub fn args(&self) -> Vec<String> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let (fill, mbit) = (self.fill_mib(), self.link.mbit);
        let load = match self.load {
            Load::Idle => "--workload idle --vcpus 1".to_owned(),
            Load::Busy => format!(
                "--workload readmostly --rate 0 --vcpus {}",
                processors.min(MOST_VCPUS)
            ),
        };
        let line = format!(
            "--transport tcp --link-mbit {mbit} --max-blackout 30s --warm-up 300ms --run-for 0s \
             --mem {}M --fill {} --fill-mib {fill} --ws-mib 4 {load}",
            fill + BESIDE_MIB,
            self.content.fill,
        );
        line.split(' ').map(str::to_owned).collect()
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.link.mbit {
            "0" => f.write_str("no limit")?,
            mbit => write!(f, "{mbit} Mbit/s")?,
        }
        write!(f, ", {}, {}", self.content.fill, self.load.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_fills_as_much_as_the_link_takes_in_time() {
        let cell = |link, content| Cell {
            link,
            content,
            load: Load::Busy,
        };
        let slow = cell(&LINKS[3], &CONTENTS[4]);
        assert_eq!(slow.fill_mib(), 34);
        assert_eq!(slow.to_string(), "100 Mbit/s, mixed, busy");
        let line = slow.args().join(" ");
        assert!(line.contains("--mem 98M --fill mixed --fill-mib 34 --ws-mib 4 --workload"));
        let quick = cell(&LINKS[0], &CONTENTS[0]);
        assert_eq!(quick.fill_mib(), MOST_FILL_MIB);
        assert_eq!(quick.to_string(), "no limit, zero-heavy, busy");
    }
}
