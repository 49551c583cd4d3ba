//! `vmferry vm console`: what a machine has said last, and says from here on.

use std::time::Duration;

use tokio::time::sleep;
use vmferry_service::model::ConsoleOutput;

use super::Result;
use super::session::Session;
use crate::Exit;
use crate::cli::ConsoleArgs;

const READ_EVERY: Duration = Duration::from_millis(500);
/// How much is asked for at least while it is followed: what is said in between has to fit.
const WINDOW: u64 = 256 << 10;

/// Prints; with `--follow` until the machine is gone (or the process is ended).
pub(super) async fn run(session: &mut Session, args: &ConsoleArgs) -> Result<Exit> {
    let name = &args.vm.name;
    let first = session.remote.console(name, args.tail).await?;
    let mut seen = total(&first, args.debug);
    print(session, args, &first, text(&first, args.debug))?;
    if !args.follow {
        return Ok(Exit::Ok);
    }
    loop {
        sleep(READ_EVERY).await;
        let now = session.remote.console(name, args.tail.max(WINDOW)).await?;
        let (said, so_far) = (text(&now, args.debug), total(&now, args.debug));
        // Less than before: the file was begun anew.
        let news = so_far.checked_sub(seen).unwrap_or(so_far);
        seen = so_far;
        if news == 0 {
            continue;
        }
        let fresh = last(said, news);
        let missed = news.saturating_sub(said.len() as u64);
        if missed > 0 {
            let lost = format!("[{missed} bytes were said too fast to be shown]");
            session.display.step(&lost);
        }
        print(session, args, &now, fresh)?;
    }
}

fn text(console: &ConsoleOutput, debug: bool) -> &str {
    if debug {
        &console.debug
    } else {
        &console.serial
    }
}

fn total(console: &ConsoleOutput, debug: bool) -> u64 {
    if debug {
        console.debug_bytes
    } else {
        console.serial_bytes
    }
}

/// The end of a text that was `bytes` long before what is no UTF-8 in it was replaced.
fn last(text: &str, bytes: u64) -> &str {
    let mut left = bytes;
    let begin = text.char_indices().rev().find(|&(_, c)| {
        // One that was replaced was most likely a single byte.
        let width = if c == char::REPLACEMENT_CHARACTER {
            1
        } else {
            c.len_utf8() as u64
        };
        left = left.saturating_sub(width);
        left == 0
    });
    begin.map_or(text, |(at, _)| &text[at..])
}

fn print(session: &mut Session, args: &ConsoleArgs, all: &ConsoleOutput, said: &str) -> Result<()> {
    if session.out.json {
        let (serial, debug) = if args.debug { ("", said) } else { (said, "") };
        let document = ConsoleOutput {
            serial: serial.to_owned(),
            debug: debug.to_owned(),
            ..all.clone()
        };
        return match args.follow {
            true => session.out.line(&document),
            false => session.out.document(all),
        };
    }
    if session.out.is_terminal && !args.raw {
        return session.out.text(&harmless(said));
    }
    session.out.text(said)
}

/// Lines and tabs as they are; nothing else that steers a terminal.
fn harmless(text: &str) -> String {
    let keep = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().filter(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_text_is_found_by_its_bytes() {
        assert_eq!(last("abc", 2), "bc");
        assert_eq!(last("abc", 3), "abc");
        assert_eq!(last("abc", 9), "abc");
        assert_eq!(last("aä", 2), "ä");
        assert_eq!(last("a\u{fffd}b", 2), "\u{fffd}b");
    }

    #[test]
    fn a_guest_cannot_steer_the_terminal() {
        assert_eq!(harmless("a\r\n\x1b[31mb\t\x07"), "a\n[31mb\t");
    }
}
