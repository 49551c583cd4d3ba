//! The page at the service's address: one document with its styles and its script inside, which
//! only reads: `v1/host`, `v1/events` and `v1/migrations/{id}/report`, all relative to itself.
//!
//! It changes nothing on purpose. A browser shows its client certificate to whoever makes it ask,
//! so a page that can change things would ask for a defence against forged requests first.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};

/// The document.
pub const HTML: &str = include_str!("index.html");

/// What stands between the first `open` and the `close` after it.
fn inside<'a>(html: &'a str, open: &str, close: &str) -> Option<&'a str> {
    let (_, rest) = html.split_once(open)?;
    rest.split_once(close).map(|(inner, _)| inner)
}

/// A source expression that allows exactly this inline text; allows nothing where there is none.
fn hash(inline: Option<&str>) -> String {
    inline.map_or_else(
        || "'none'".to_owned(),
        |text| {
            let sum = digest(&SHA256, text.as_bytes());
            format!("'sha256-{}'", STANDARD.encode(sum))
        },
    )
}

static POLICY: LazyLock<String> = LazyLock::new(|| {
    let script = hash(inside(HTML, "<script type=\"module\">", "</script>"));
    let style = hash(inside(HTML, "<style>", "</style>"));
    format!(
        "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'"
    )
});

/// The page's Content-Security-Policy: its own script and style by their hashes, requests to its
/// own origin, and nothing else. Text can never become markup: that needs trusted types, and it
/// may make none.
#[must_use]
pub fn content_security_policy() -> &'static str {
    &POLICY
}

/// Headers of the page, names in lower case. To be sent with [`HTML`] at `/`.
#[must_use]
pub fn headers() -> [(&'static str, &'static str); 5] {
    [
        ("content-type", "text/html; charset=utf-8"),
        ("content-security-policy", content_security_policy()),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-cache"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_allows_the_one_script_and_the_one_style_by_hash() {
        assert_eq!(HTML.matches("<script").count(), 1);
        assert_eq!(HTML.matches("<style").count(), 1);
        assert_eq!(
            content_security_policy().matches("'sha256-").count(),
            2,
            "{}",
            content_security_policy()
        );
        assert!(!content_security_policy().contains("unsafe"));
    }

    /// The value is from FIPS 180-2's example "abc".
    #[test]
    fn hashes_are_of_the_text_alone() {
        let found = inside("<style>abc</style>", "<style>", "</style>");
        let sum = "'sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0='";
        assert_eq!(hash(found), sum);
        assert_eq!(hash(None), "'none'");
    }

    #[test]
    fn nothing_in_it_makes_markup_of_text_or_comes_from_elsewhere() {
        for never in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
        ] {
            assert!(!HTML.contains(never), "{never}");
        }
        for never in [" style=\"", " onclick=", " src=\"", "@import", "url("] {
            assert!(!HTML.contains(never), "{never}");
        }
        let hosts = HTML.matches("http://").count() + HTML.matches("https://").count();
        let names = HTML.matches("http://www.w3.org/2000/svg").count();
        assert_eq!(hosts, names, "only the name space of SVG");
    }
}
