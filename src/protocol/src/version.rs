//! Which protocol two sides speak with each other: version and features.
//!
//! The source says what it can and what it needs; the destination chooses, or says in words what
//! does not fit. A version changes the meaning of messages; a feature is something that may be
//! left out. Not for machine kinds: these are settled when the machine is made.

use serde::{Deserialize, Serialize};

/// The newest protocol version that this code speaks.
pub const VERSION: u16 = 1;
/// The oldest.
pub const OLDEST: u16 = 1;

/// A set of features, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features(pub u64);

impl Features {
    /// A connection that was cut after the commit is made anew by `Rejoin`.
    pub const REJOIN: Self = Self(1);
    /// The destination confirms by `Bye` that it has dropped its machine.
    pub const CONFIRMED_DISCARD: Self = Self(1 << 1);
    /// Pages may come as their difference to what was sent before (codec 5).
    pub const DELTA: Self = Self(1 << 2);
    /// Storage jobs are handed over, and the source tells when unsettled ones are settled.
    pub const STORAGE: Self = Self(1 << 3);
    /// The destination tells how much it has to do with the pages that come.
    pub const LOAD: Self = Self(1 << 4);
    /// All that this code can do.
    pub const ALL: Self = Self(0b1_1111);
    /// What this code cannot do without: what is as old as the first release.
    const NEEDED: Self = Self(0b1111);

    const NAMES: [&str; 5] = [
        "rejoin",
        "confirmed-discard",
        "delta",
        "storage-handover",
        "load",
    ];

    /// What is in both.
    #[must_use]
    pub const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What `other` lacks.
    #[must_use]
    pub const fn missing_in(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The names; those this code does not know by their bit.
    #[must_use]
    pub fn names(self) -> Vec<String> {
        (0..u64::BITS)
            .filter(|bit| self.0 >> bit & 1 == 1)
            .map(|bit| match Self::NAMES.get(bit as usize) {
                Some(name) => (*name).to_owned(),
                None => format!("unknown feature {bit}"),
            })
            .collect()
    }
}

/// What a side speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speaks {
    /// Oldest version.
    pub oldest: u16,
    /// Newest version.
    pub newest: u16,
    /// What it can do.
    pub can: Features,
    /// What it cannot do without.
    pub needs: Features,
}

impl Speaks {
    /// This code.
    pub const CURRENT: Self = Self {
        oldest: OLDEST,
        newest: VERSION,
        can: Features::ALL,
        needs: Features::NEEDED,
    };
}

/// What two sides have agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreed {
    /// The newest version of both.
    pub version: u16,
    /// The features of both.
    pub features: Features,
}

impl Agreed {
    /// Whether it is something that `side` can keep.
    #[must_use]
    pub const fn suits(&self, side: &Speaks) -> bool {
        self.version >= side.oldest
            && self.version <= side.newest
            && self.features.missing_in(side.can).is_empty()
            && side.needs.missing_in(self.features).is_empty()
    }
}

/// The newest common version and the common features.
///
/// # Errors
/// All that does not fit, in words.
pub fn negotiate(here: &Speaks, there: &Speaks) -> Result<Agreed, String> {
    let version = here.newest.min(there.newest);
    let mut wrong = Vec::new();
    if version < here.oldest.max(there.oldest) {
        wrong.push(format!(
            "this side speaks protocol versions {} to {}, the other {} to {}: upgrade the older",
            here.oldest, here.newest, there.oldest, there.newest
        ));
    }
    let mut lacks = |side, missing: Features| {
        if !missing.is_empty() {
            wrong.push(format!("{side} lacks {}", missing.names().join(", ")));
        }
    };
    lacks("this side", there.needs.missing_in(here.can));
    lacks("the other side", here.needs.missing_in(there.can));
    if !wrong.is_empty() {
        return Err(wrong.join("; "));
    }
    let features = here.can.common(there.can);
    Ok(Agreed { version, features })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speaks(oldest: u16, newest: u16, can: u64, needs: u64) -> Speaks {
        let (can, needs) = (Features(can), Features(needs));
        Speaks {
            oldest,
            newest,
            can,
            needs,
        }
    }

    #[test]
    fn the_newest_common_version_and_the_common_features_are_chosen() {
        let agreed = negotiate(&speaks(1, 3, 0b011, 0), &speaks(2, 5, 0b110, 0b10));
        let features = Features(0b010);
        assert_eq!(
            agreed,
            Ok(Agreed {
                version: 3,
                features
            })
        );
        let current = negotiate(&Speaks::CURRENT, &Speaks::CURRENT).unwrap();
        assert!(current.suits(&Speaks::CURRENT));
        assert_eq!(
            current.features.names(),
            [
                "rejoin",
                "confirmed-discard",
                "delta",
                "storage-handover",
                "load"
            ]
        );
        // One from before a feature that may be left out.
        let older = Speaks {
            can: Features::NEEDED,
            ..Speaks::CURRENT
        };
        let agreed = negotiate(&Speaks::CURRENT, &older).unwrap();
        assert!(agreed.suits(&Speaks::CURRENT) && agreed.features == Features::NEEDED);
    }

    #[test]
    fn everything_that_does_not_fit_is_named_at_once() {
        let wrong = negotiate(&speaks(1, 1, 0b10, 0b10), &speaks(2, 3, 1 << 9, 1 << 9));
        let wrong = wrong.unwrap_err();
        assert!(wrong.contains("1 to 1, the other 2 to 3"), "{wrong}");
        assert!(
            wrong.contains("this side lacks unknown feature 9"),
            "{wrong}"
        );
        assert!(
            wrong.contains("the other side lacks confirmed-discard"),
            "{wrong}"
        );
    }

    #[test]
    fn an_answer_that_was_not_offered_does_not_suit() {
        let here = speaks(1, 2, 0b11, 0b01);
        let suits = |version, bits| {
            let features = Features(bits);
            Agreed { version, features }.suits(&here)
        };
        assert!(suits(1, 0b01) && suits(2, 0b11));
        assert!(!suits(0, 0b01) && !suits(3, 0b01) && !suits(1, 0b10) && !suits(1, 0b101));
    }
}
