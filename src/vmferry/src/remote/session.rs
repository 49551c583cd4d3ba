//! What every command works with: the service, and the two ends of the conversation with the user.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::CommandError;
use super::api::Remote;
use super::display::{self, Display};
use crate::cli::Address;

/// stdout.
pub(super) struct Out {
    write: Box<dyn Write + Send>,
    /// Somebody looks at it.
    pub(super) is_terminal: bool,
    /// Colours may be used.
    pub(super) colour: bool,
    /// Documents in place of text.
    pub(super) json: bool,
}

impl Out {
    pub(super) fn new(write: Box<dyn Write + Send>, json: bool) -> Self {
        Self {
            write,
            is_terminal: false,
            colour: false,
            json,
        }
    }

    fn stdout(json: bool) -> Self {
        let is_terminal = io::stdout().is_terminal();
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self {
            is_terminal,
            colour: is_terminal && !dumb && std::env::var_os("NO_COLOR").is_none(),
            ..Self::new(Box::new(io::stdout()), json)
        }
    }

    /// Text as it is.
    pub(super) fn text(&mut self, text: &str) -> Result<(), CommandError> {
        self.write
            .write_all(text.as_bytes())
            .and_then(|()| self.write.flush())
            .map_err(CommandError::Output)
    }

    /// A document as JSON, for the eye as well.
    pub(super) fn document(&mut self, document: &impl Serialize) -> Result<(), CommandError> {
        let mut text = serde_json::to_string_pretty(document).map_err(CommandError::Json)?;
        text.push('\n');
        self.text(&text)
    }

    /// A document as JSON in one line.
    pub(super) fn line(&mut self, document: &impl Serialize) -> Result<(), CommandError> {
        let mut text = serde_json::to_string(document).map_err(CommandError::Json)?;
        text.push('\n');
        self.text(&text)
    }

    /// A document as JSON, or what it is in words.
    pub(super) fn either<D: Serialize>(
        &mut self,
        document: &D,
        words: impl FnOnce(&D, bool) -> String,
    ) -> Result<(), CommandError> {
        if self.json {
            self.document(document)
        } else {
            let text = words(document, self.colour);
            self.text(&text)
        }
    }
}

/// Ctrl-C, and `kill`. Listened to only while something is waited for that can be cancelled.
pub(super) struct Interrupts(pub(super) Option<UnboundedReceiver<()>>);

impl Interrupts {
    /// Everything from here on. Inside a tokio runtime.
    pub(super) fn listen(&mut self) -> Result<UnboundedReceiver<()>, CommandError> {
        if let Some(given) = self.0.take() {
            return Ok(given);
        }
        let (sender, receiver) = unbounded_channel();
        for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
            let mut signal = signal(kind).map_err(CommandError::Start)?;
            let sender = sender.clone();
            tokio::spawn(async move {
                while signal.recv().await.is_some() && sender.send(()).is_ok() {}
            });
        }
        Ok(receiver)
    }
}

/// A command's surroundings.
pub(super) struct Session {
    pub(super) remote: Arc<dyn Remote>,
    pub(super) address: Address,
    pub(super) out: Out,
    pub(super) display: Box<dyn Display>,
    pub(super) interrupts: Interrupts,
}

impl Session {
    pub(super) fn new(remote: Arc<dyn Remote>, address: Address, json: bool) -> Self {
        Self {
            remote,
            address,
            out: Out::stdout(json),
            display: display::on_stderr(),
            interrupts: Interrupts(None),
        }
    }
}
