//! How words on the command line are read, where several commands take them.

use std::time::Duration;

use vmferry_service::rules::{VM_NAME_RULE, is_vm_name};

pub(super) fn codec(text: &str) -> Result<String, String> {
    text.parse::<vmferry_codecs::CodecChoice>()
        .map(|_| text.to_owned())
        .map_err(|e| e.to_string())
}

pub(super) fn tracker(text: &str) -> Result<String, String> {
    if text == "auto" {
        return Ok(text.to_owned());
    }
    text.parse::<vmferry_tracker::TrackerKind>()
        .map(|_| text.to_owned())
        .map_err(|e| e.to_string())
}

pub(super) fn group(text: &str) -> Result<String, String> {
    text.parse::<vmferry_tracker::GroupSize>()
        .map(|_| text.to_owned())
        .map_err(|e| e.to_string())
}

/// `on`: as much as it takes.
const THROTTLE_ON: u8 = 100;

pub(super) fn throttle(text: &str) -> Result<u8, String> {
    match text {
        "off" => Ok(0),
        "on" => Ok(THROTTLE_ON),
        pct => pct
            .trim_end_matches('%')
            .parse()
            .ok()
            .filter(|pct| (1..=99).contains(pct))
            .ok_or_else(|| "choose off, on, or 1 to 99 per cent".to_owned()),
    }
}

/// `512M`, `4G`, `2048K`, or bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a size; write it as in 512M or 4G");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// `300ms`, `3s`, `2m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not a time; write it as in 300ms or 3s");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 = digits.parse().map_err(|_| wrong())?;
    let seconds = match &text[digits.len()..] {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        "m" | "min" => number * 60.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

/// Most Mbit/s that make sense as a limit: 1 Tbit/s.
const MOST_MBIT: u64 = 1_000_000;

pub(super) fn link_limit(text: &str) -> Result<u64, String> {
    text.parse()
        .ok()
        .filter(|&mbit| mbit <= MOST_MBIT)
        .ok_or_else(|| format!("give Mbit/s, 0 to {MOST_MBIT}"))
}

/// RAM of a machine in MiB: whole pages of 2 MiB.
pub(super) fn ram(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    match bytes % (2 << 20) {
        0 if bytes > 0 => Ok(bytes >> 20),
        _ => Err(format!(
            "'{text}' is no multiple of 2 MiB, as in 512M or 4G"
        )),
    }
}

/// How much of a console is asked for.
pub(super) fn tail(text: &str) -> Result<u64, String> {
    const MOST: u64 = 1 << 20;
    Some(size(text)?)
        .filter(|bytes| (1..=MOST).contains(bytes))
        .ok_or_else(|| "give 1 to 1M".to_owned())
}

/// A machine's name; such as can stand in a URL as it is.
pub(super) fn vm_name(text: &str) -> Result<String, String> {
    match is_vm_name(text) {
        true => Ok(text.to_owned()),
        false => Err(format!("a name is {VM_NAME_RULE}")),
    }
}

/// A migration's id, or its beginning.
pub(super) fn migration_id(text: &str) -> Result<String, String> {
    if (1..=32).contains(&text.len()) && text.chars().all(|c| c.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("an id is 32 hexadecimal digits, of which the first few do".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_read_and_nonsense_is_refused() {
        assert_eq!(size("1G"), Ok(1 << 30));
        assert_eq!(size("512m"), Ok(512 << 20));
        assert_eq!(size("4096"), Ok(4096));
        assert!(size("12Q").is_err() && size("").is_err() && size("-1G").is_err());
        assert!(size("99999999999T").is_err());
        assert_eq!(duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(duration("3s"), Ok(Duration::from_secs(3)));
        assert!(duration("3").is_err() && duration("-1s").is_err() && duration("xs").is_err());
    }

    #[test]
    fn throttling_is_off_on_or_capped() {
        assert_eq!(throttle("off"), Ok(0));
        assert_eq!(throttle("on"), Ok(THROTTLE_ON));
        assert_eq!(throttle("40%"), Ok(40));
        assert!(throttle("0").is_err() && throttle("100").is_err() && throttle("x").is_err());
    }

    #[test]
    fn names_ids_and_limits_are_checked() {
        assert_eq!(ram("512M"), Ok(512));
        assert!(ram("3M").is_err() && ram("0").is_err() && ram("4097").is_err());
        assert_eq!(vm_name("web-1"), Ok("web-1".to_owned()));
        let long = "a".repeat(64);
        for bad in ["", "Web", "-a", "a/b", "..", "a b", "ä", &long] {
            assert!(vm_name(bad).is_err(), "{bad}");
        }
        assert_eq!(migration_id("0AF3"), Ok("0af3".to_owned()));
        assert!(migration_id("").is_err() && migration_id("../x").is_err());
        assert!(migration_id(&"0".repeat(33)).is_err());
        assert_eq!(tail("64K"), Ok(64 << 10));
        assert!(tail("0").is_err() && tail("2M").is_err());
        assert_eq!(link_limit("0"), Ok(0));
        assert!(link_limit("-1").is_err() && link_limit("1000001").is_err());
    }
}
