//! The encoders of a thread: whichever codec is chosen, without making it anew for each chunk.

use std::collections::HashMap;

use crate::{CodecError, CodecSpec, PageCodec, encoder};

/// One encoder for each codec and level that was used, made when it is first needed.
#[derive(Default)]
pub struct Encoders {
    made: HashMap<CodecSpec, Box<dyn PageCodec>>,
}

impl std::fmt::Debug for Encoders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.made.keys()).finish()
    }
}

impl Encoders {
    /// The encoder for `spec`.
    ///
    /// # Errors
    /// [`CodecError::Encode`] where the library refuses the level.
    pub fn of(&mut self, spec: CodecSpec) -> Result<&mut dyn PageCodec, CodecError> {
        use std::collections::hash_map::Entry;
        let made = match self.made.entry(spec) {
            Entry::Occupied(made) => made.into_mut(),
            Entry::Vacant(place) => place.insert(encoder(spec)?),
        };
        Ok(&mut **made)
    }
}
