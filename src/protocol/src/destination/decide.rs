//! An operator decides in the source's place, where it can be asked no more.

use super::{Destination, State};

/// Why an operator has nothing to decide.
const CONNECTED: &str = "the source is connected and decides itself: wait for it, or cancel";
const NOT_WHOLE: &str = "the guest has not come whole, so it cannot run here";

impl Destination {
    /// An operator vouches that the source does not run the guest and never will: it is taken, as
    /// by the source's commit.
    ///
    /// # Errors
    /// In words, where that is nobody's to say.
    pub fn taken_by_operator(&mut self) -> Result<(), &'static str> {
        match self.state {
            State::TakingOver | State::Resuming | State::Owner { .. } => Ok(()),
            State::Prepared if self.has_source() => Err(CONNECTED),
            State::Prepared => {
                self.commit();
                Ok(())
            }
            _ => Err(NOT_WHOLE),
        }
    }

    /// An operator vouches that the guest runs at the source, or that nobody wants it: what came
    /// is discarded.
    ///
    /// # Errors
    /// In words, where that is nobody's to say.
    pub fn discarded_by_operator(&mut self) -> Result<(), &'static str> {
        match self.state {
            State::TakingOver | State::Resuming | State::Owner { .. } => {
                Err("the guest runs here already")
            }
            State::Prepared if self.has_source() => Err(CONNECTED),
            State::Prepared => {
                self.begin_discard("an operator said that the guest is elsewhere".to_owned());
                Ok(())
            }
            _ => Err(NOT_WHOLE),
        }
    }

    fn has_source(&self) -> bool {
        self.connected && self.joined
    }
}
