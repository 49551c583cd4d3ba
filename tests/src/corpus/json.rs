//! JSON lines, as services log them and answer with them.

use std::fmt::Write as _;

use super::PAGE;
use super::rng::Rng;
use super::text::word;

const LEVELS: [&str; 6] = ["debug", "info", "info", "info", "warn", "error"];
const SERVICES: [&str; 8] = [
    "billing-api",
    "checkout",
    "gateway",
    "identity",
    "inventory",
    "mailer",
    "search-indexer",
    "shipping",
];
const METHODS: [&str; 5] = ["GET", "GET", "GET", "POST", "DELETE"];
const PATHS: [&str; 6] = ["orders", "users", "carts", "invoices", "items", "sessions"];
const STATUSES: [u16; 8] = [200, 200, 200, 201, 204, 304, 404, 500];
const AGENTS: [&str; 4] = [
    "Mozilla/5.0 (X11; Linux x86_64; rv:131.0) Gecko/20100101 Firefox/131.0",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15",
    "curl/8.11.0",
    "okhttp/4.12.0",
];
const COUNTRIES: [&str; 7] = ["AT", "CZ", "DE", "FR", "JP", "NL", "US"];

pub(super) fn page(rng: &mut Rng, number: u64) -> Vec<u8> {
    let mut out = String::with_capacity(PAGE + 1024);
    // Some twenty lines a page, a moment apart.
    let mut ms = number * 900;
    while out.len() < PAGE {
        ms += 1 + rng.small(90);
        // Writing to a String cannot fail.
        let _ = match rng.below(5) {
            0 => order(rng, &mut out),
            1 => metric(rng, ms, &mut out),
            _ => request(rng, ms, &mut out),
        };
        out.push('\n');
    }
    out.truncate(PAGE);
    out.into_bytes()
}

fn time(ms: u64) -> String {
    let (s, m, h) = (ms / 1000 % 60, ms / 60_000 % 60, ms / 3_600_000 % 24);
    format!("2026-11-24T{h:02}:{m:02}:{s:02}.{:03}Z", ms % 1000)
}

fn request(rng: &mut Rng, ms: u64, out: &mut String) -> std::fmt::Result {
    write!(
        out,
        r#"{{"ts":"{}","level":"{}","service":"{}","host":"node-{:02}","request_id":"{:016x}","#,
        time(ms),
        rng.pick(&LEVELS),
        rng.pick(&SERVICES),
        rng.below(24),
        rng.next(),
    )?;
    write!(
        out,
        r#""method":"{}","path":"/v1/{}/{}","status":{},"duration_ms":{}.{:03},"bytes":{}"#,
        rng.pick(&METHODS),
        rng.pick(&PATHS),
        rng.small(900_000),
        rng.pick(&STATUSES),
        rng.small(400),
        rng.below(1000),
        rng.small(60_000),
    )?;
    if rng.once_in(3) {
        let (agent, b, c) = (rng.pick(&AGENTS), rng.below(256), rng.below(256));
        write!(out, r#","agent":"{agent}","client":"10.{b}.{c}.17""#)?;
    }
    if rng.once_in(4) {
        let (a, b, c, d) = (word(rng), word(rng), word(rng), word(rng));
        write!(out, r#","message":"{a} {b} {c} {d}""#)?;
    }
    out.write_str("}")
}

fn order(rng: &mut Rng, out: &mut String) -> std::fmt::Result {
    write!(
        out,
        r#"{{"id":{},"customer":{{"id":{},"name":"{} {}","country":"{}"}},"items":["#,
        70_000_000 + rng.below(900_000),
        rng.below(200_000),
        word(rng),
        word(rng),
        rng.pick(&COUNTRIES),
    )?;
    for n in 0..1 + rng.small(5) {
        write!(
            out,
            r#"{}{{"sku":"{}-{:05}","quantity":{},"unit_price":{}.{:02},"discount":null}}"#,
            if n > 0 { "," } else { "" },
            word(rng),
            rng.below(100_000),
            1 + rng.small(9),
            rng.small(300),
            rng.below(100),
        )?;
    }
    let paid = !rng.once_in(4);
    write!(
        out,
        r#"],"currency":"EUR","paid":{paid},"tags":["{}"]}}"#,
        word(rng)
    )
}

fn metric(rng: &mut Rng, ms: u64, out: &mut String) -> std::fmt::Result {
    write!(
        out,
        r#"{{"metric":"{}.{}.latency","t":{},"count":{},"p50":0.{:04},"p99":0.{:04},"max":{}.{:04}}}"#,
        rng.pick(&SERVICES),
        rng.pick(&PATHS),
        1_795_500_000_000 + ms,
        rng.small(5000),
        rng.small(3000),
        rng.below(9000),
        rng.small(4),
        rng.below(10_000),
    )
}
