//! Sizes, times and moments in words, and text of others made harmless.

use std::borrow::Cow;

use jiff::Timestamp;

/// What is printed where there is nothing to say.
pub(super) const NONE: &str = "–";

/// A size in bytes, as in `3.5 GiB`.
pub(super) fn size(bytes: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    // Three digits say enough.
    let decimals = usize::from(unit > 0 && value < 100.0 && value.fract() > 0.0);
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// A number of MiB, as in `512 MiB` or `4 GiB`.
pub(super) fn mib(mib: u64) -> String {
    size(mib as f64 * f64::from(1 << 20))
}

/// A time in milliseconds, as in `12.3 ms`, `4.2 s` or `3 min 20 s`.
pub(super) fn ms(ms: f64) -> String {
    match ms {
        ..1_000.0 => format!("{ms:.1} ms"),
        ..60_000.0 => format!("{:.1} s", ms / 1e3),
        ..3_600_000.0 => format!(
            "{:.0} min {:02.0} s",
            (ms / 6e4).floor(),
            (ms % 6e4 / 1e3).floor()
        ),
        _ => format!(
            "{:.0} h {:02.0} min",
            (ms / 3.6e6).floor(),
            (ms % 3.6e6 / 6e4).floor()
        ),
    }
}

/// The same, where it may be unknown.
pub(super) fn or_none(value: Option<f64>, unit: fn(f64) -> String) -> String {
    value.map_or_else(|| NONE.to_owned(), unit)
}

/// Milliseconds since 1970 as date and time, UTC.
pub(super) fn moment(ms: u64) -> String {
    i64::try_from(ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms / 1000 * 1000).ok())
        .map_or_else(|| format!("{ms} ms"), |t| t.to_string().replace('T', " "))
}

/// Text from elsewhere as one harmless line: control characters could garble a terminal.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let harmless = |c: char| if c.is_control() { ' ' } else { c };
    Cow::Owned(text.chars().map(harmless).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit_that_fits() {
        for (bytes, text) in [
            (0.0, "0 B"),
            (1023.0, "1023 B"),
            (1536.0, "1.5 KiB"),
            (512.0 * 1048576.0, "512 MiB"),
            (95.27 * 1048576.0, "95.3 MiB"),
            (4.0 * 1073741824.0, "4 GiB"),
            (1e18, "909495 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn times_have_a_unit_that_fits() {
        for (time, text) in [
            (12.34, "12.3 ms"),
            (4_200.0, "4.2 s"),
            (200_000.0, "3 min 20 s"),
            (3_600_000.0, "1 h 00 min"),
        ] {
            assert_eq!(ms(time), text);
        }
        assert_eq!(or_none(None, ms), NONE);
        assert_eq!(moment(1_700_000_000_999), "2023-11-14 22:13:20Z");
        assert_eq!(moment(u64::MAX), format!("{} ms", u64::MAX));
    }

    #[test]
    fn text_of_others_cannot_steer_a_terminal() {
        assert_eq!(plain("as it is: ä"), "as it is: ä");
        assert_eq!(plain("\x1b[2J\nx\u{9b}"), " [2J x ");
    }
}
