//! The page in a real browser: headless Chromium against a service that the tests script.
//!
//! With `VMFERRY_PAGE_PICTURES=DIR` pictures of it are left in `DIR`.

mod browser;
mod data;
mod server;

use browser::Browser;
use serde_json::Value;
use server::Service;
use vmferry_service::model::ServiceEvent;

const TAB: &str = "\u{E004}";
const ENTER: &str = "\u{E007}";
const WIDE: (u32, u32) = (1280, 900);
const PHONE: (u32, u32) = (320, 640);

fn busy() -> Service {
    let service = Service::start(data::host(), &data::busy());
    for n in 1..=14 {
        service.report(data::report(n));
    }
    service
}

fn opened(service: &Service, (width, height): (u32, u32)) -> Browser {
    let browser = Browser::start(width, height);
    browser.open(&service.url);
    browser.wait("document.querySelector('#link').textContent === 'Live'");
    browser.wait("document.title.includes('host-a')");
    browser
}

fn migration(n: u64, vm: &str, state: &str, reason: Option<&str>) -> ServiceEvent {
    ServiceEvent::Migration(data::past(n, vm, state, reason))
}

/// Neither an exception nor a refusal by the policy; requests that fail are another matter.
fn assert_quiet(browser: &Browser) {
    let mut said = browser.errors();
    said.retain(|line| line["source"] != "network");
    assert!(said.is_empty(), "the console says: {said:#?}");
}

fn assert_fits(browser: &Browser) {
    let wide = browser.eval("[document.scrollingElement.scrollWidth, innerWidth]");
    assert!(
        wide[0].as_u64() <= wide[1].as_u64(),
        "scrolls sideways: {wide}"
    );
}

fn picture(browser: &Browser, name: &str) {
    if let Some(dir) = std::env::var_os("VMFERRY_PAGE_PICTURES") {
        let path = std::path::Path::new(&dir).join(name);
        std::fs::write(path, browser.picture()).expect("the picture's directory is there");
    }
}

#[test]
fn machines_migrations_drain_and_history_are_shown() {
    let service = busy();
    let browser = opened(&service, WIDE);
    browser.wait("document.querySelectorAll('#vms tr').length === 6");
    browser.wait("document.querySelectorAll('#live > li').length === 2");
    browser.wait("document.querySelectorAll('#plain > li').length === 2");
    browser.wait("document.querySelectorAll('#drain-rows tr').length === 6");
    browser.wait("document.querySelectorAll('#past > li').length === 14");
    let text = browser.eval("document.body.innerText");
    let text = text.as_str().unwrap_or_default();
    for said in [
        "host-a",
        "vmferry 0.1.0",
        "host-b, host-c",
        "usable",
        "10.0 Gbit/s",
        "mail-1",
        "its process was killed by signal 9",
        "nbd://storage:10809/db-1",
        "(read-only)",
        "pre-copy, pass 4",
        "5.1 Gbit/s",
        "zstd:1 220 MiB (28 %)",
        "12.4 ms",
        "vCPUs waited",
        "29.0 ms",
        "the source has the figures",
        "2 of 6 moved",
        "1 failed",
        "1020 MiB available",
        "the link was cut for 30 s",
    ] {
        assert!(text.contains(said), "{said:?} is missing in\n{text}");
    }
    // What needs somebody stands first.
    let first = browser.eval("document.querySelector('#vms tr .name').textContent");
    assert_eq!(first, "mail-1");
    // In a window that shows all rows, all of the twelve that completed get their bars.
    browser.size(1280, 1800);
    browser.wait("document.querySelectorAll('#past .stack i').length === 12 * 8");
    assert_quiet(&browser);
    picture(&browser, "light.png");
}

#[test]
fn a_migration_is_followed_to_its_end() {
    let service = Service::start(data::host(), &[]);
    let browser = opened(&service, WIDE);
    browser.wait("document.querySelector('#no-live').checkVisibility()");
    browser.wait("document.querySelector('#no-vms').textContent.startsWith('There is no')");
    service.tell(&ServiceEvent::Vm(data::vm("web-1", "running", None, 2048)));
    browser.wait("document.querySelector('#vms tr .badge').textContent === 'running'");
    for (pass, rate) in [(1, 100e6), (2, 300e6), (3, 200e6)] {
        service.tell(&ServiceEvent::Migration(data::live(
            7, "web-1", "outgoing", pass, rate,
        )));
        browser.wait(&format!(
            "document.querySelectorAll('#live .passes > i').length === {pass}"
        ));
    }
    browser.wait("document.querySelector('#live figcaption').textContent.startsWith('1.6 Gbit/s')");
    browser.wait("document.querySelector('#live .passes').ariaLabel.includes('pass 2: 117,964 sent of 131,072')");
    service.report(data::report(7));
    service.tell(&migration(7, "web-1", "completed", None));
    service.tell(&ServiceEvent::VmGone("web-1".to_owned()));
    browser.wait("document.querySelectorAll('#live > li').length === 0");
    browser.wait("document.querySelectorAll('#vms tr').length === 0");
    browser.wait("document.querySelector('#past .badge').textContent === 'completed'");
    browser
        .wait("document.querySelector('#said').textContent.includes('web-1 completed, blackout')");
    // Its blackout in parts, from the report.
    browser.wait("document.querySelector('#past .stack').ariaLabel.includes('handover 2.02 ms')");
    browser.wait("document.querySelectorAll('#past .stack i').length === 8");
    assert_quiet(&browser);
}

#[test]
fn details_open_by_keyboard() {
    let service = busy();
    let browser = opened(&service, WIDE);
    browser.wait("document.querySelectorAll('#past > li').length === 14");
    browser.eval("document.querySelector('#filter').focus()");
    browser.keys(TAB);
    let focus = browser.eval("document.activeElement.tagName");
    assert_eq!(focus, "SUMMARY");
    browser.keys(ENTER);
    browser.wait("document.querySelectorAll('.more section').length === 5");
    let text = browser.eval("document.querySelector('.more').innerText");
    let text = text.as_str().unwrap_or_default();
    for said in [
        "IO cancel 0.52 ms",
        "lz4 401 MiB (56 %)",
        "vCPUs waited",
        "Unsettled",
        "switch-over",
        "431,004",
    ] {
        assert!(text.contains(said), "{said:?} is missing in\n{text}");
    }
    picture(&browser, "details.png");
    // A change of something else leaves it open.
    service.tell(&migration(0, "late-1", "failed", Some("no")));
    browser.wait("document.querySelectorAll('#past > li').length === 15");
    assert_eq!(
        browser.eval("document.querySelectorAll('.more section').length"),
        5
    );
    assert_eq!(browser.eval("document.activeElement.tagName"), "SUMMARY");
    // There is no report of this one: the service's words stand there.
    browser.eval("document.querySelector('#past summary').click()");
    browser.wait("document.querySelector('.more').textContent.includes('ask the source <img')");
    browser.keys(ENTER);
    browser.wait("document.querySelectorAll('.more').length === 1");
    assert_quiet(&browser);
}

#[test]
fn hostile_text_stays_text() {
    let bad = "</td></script><img src=x onerror=\"document.title='owned'\"><svg onload=alert(1)>\u{202e}{{7*7}}";
    let mut vm = data::vm(bad, "crashed", Some(bad), 64);
    vm.machine = bad.to_owned();
    vm.spec.disks[0].source = bad.to_owned();
    let mut live = data::live(1, bad, "outgoing", 2, 1e6);
    live.peer = bad.to_owned();
    let progress = live.progress.as_mut().expect("at the source");
    progress.phase = bad.to_owned();
    for codec in [bad, "__proto__", "constructor"] {
        progress.bytes_by_codec.insert(codec.to_owned(), 1 << 20);
    }
    let mut past = data::past(2, bad, "failed", Some(bad));
    past.id = "../../host?#\"'><img src=x>".to_owned();
    let mut drain = data::drain(1, 0);
    drain.items[0].vm = bad.to_owned();
    drain.items[0].reason = Some(bad.repeat(500));
    let mut host = data::host();
    host.software = bad.to_owned();
    host.kvm_problem = Some(bad.to_owned());
    host.peers
        .insert(bad.to_owned(), "javascript:alert(1)".to_owned());
    let service = Service::start(
        host,
        &[
            ServiceEvent::Vm(vm),
            ServiceEvent::Vm(data::vm("__proto__", "running", None, 64)),
            ServiceEvent::Migration(live),
            ServiceEvent::Migration(past),
            ServiceEvent::Drain(drain),
        ],
    );
    let browser = opened(&service, PHONE);
    browser.wait("document.querySelectorAll('#vms tr').length === 2");
    browser.wait("document.querySelectorAll('#past > li').length === 1");
    browser.eval("document.querySelector('#past summary').click()");
    browser.wait("document.querySelector('.more').textContent.includes('No report')");
    assert_eq!(
        browser.eval("document.querySelectorAll('img, iframe, svg:not(.plot)').length"),
        0
    );
    assert_eq!(
        browser.eval("document.querySelectorAll('script').length"),
        1
    );
    assert_eq!(browser.eval("document.querySelectorAll('a').length"), 1);
    let name = browser.eval("document.querySelector('#vms .name').textContent");
    assert_eq!(name, bad);
    let title = browser.eval("document.title");
    assert_eq!(title, "(1) host-a · vmferry");
    // The id stays one segment of the path.
    assert_eq!(service.report_asked(), ["..%2F..%2Fhost?#\"'><img src=x>"]);
    assert_fits(&browser);
    assert_quiet(&browser);
}

#[test]
fn messages_that_make_no_sense_break_nothing() {
    let service = busy();
    let browser = opened(&service, WIDE);
    for line in [
        "event: vm\ndata: {\n\n",
        "event: vm\ndata: null\n\n",
        "event: vm\ndata: {\"kind\":\"vm\"}\n\n",
        ": a comment\n\n",
        "event: of-tomorrow\ndata: {\"kind\":\"of-tomorrow\",\"value\":{}}\n\n",
        "event: other\ndata: {\"kind\":\"vm-gone\",\"value\":\"web-1\"}\n\n",
    ] {
        service.tell_raw(line);
    }
    browser.wait("document.querySelector('#note').textContent.includes('3 messages')");
    service.tell(&ServiceEvent::VmGone("web-2".to_owned()));
    browser.wait("document.querySelectorAll('#vms tr').length === 5");
    assert!(browser.eval("document.querySelector('#link').textContent") == "Live");
    assert_quiet(&browser);
}

#[test]
fn a_lost_connection_is_said_and_comes_back() {
    let service = busy();
    let browser = opened(&service, WIDE);
    browser.wait("document.querySelectorAll('#vms tr').length === 6");
    let asked = service.asked();
    service.cut(true);
    browser
        .wait("document.querySelector('#link').textContent.startsWith('Connection lost: as of')");
    assert_eq!(
        browser.eval("document.querySelector('#link').role"),
        "status"
    );
    // What was known stays, while the service refuses.
    service.wait_asked(asked + 2);
    assert_eq!(
        browser.eval("document.querySelectorAll('#vms tr').length"),
        6
    );
    picture(&browser, "lost.png");
    // Meanwhile most of it has gone, and nobody has said so.
    service.snapshot(&[
        ServiceEvent::Vm(data::vm("web-9", "running", None, 512)),
        migration(77, "web-1", "completed", None),
    ]);
    service.accept();
    browser.wait("document.querySelector('#link').textContent === 'Live'");
    browser.wait("document.querySelectorAll('#vms tr').length === 1");
    browser.wait("document.querySelectorAll('#live > li').length === 0");
    browser.wait("document.querySelectorAll('#past > li').length === 1");
    browser.wait("document.querySelector('#drain').hidden");
    service.tell(&ServiceEvent::Vm(data::vm("web-9", "paused", None, 512)));
    browser.wait("document.querySelector('#vms .badge').textContent === 'paused'");
    // And once more, with a service that is back at once.
    let asked = service.asked();
    service.cut(false);
    service.wait_asked(asked + 1);
    browser.wait("document.querySelector('#link').textContent === 'Live'");
    assert_quiet(&browser);
}

#[test]
fn it_fits_a_phone_and_the_dark() {
    let service = busy();
    let browser = opened(&service, PHONE);
    browser.wait("document.querySelectorAll('#past > li').length === 14");
    browser.eval("document.querySelector('#past').scrollIntoView()");
    browser.wait("document.querySelectorAll('#past .stack i').length >= 8");
    browser.eval("document.querySelector('#past summary').click()");
    browser.wait("document.querySelectorAll('.more section').length === 5");
    let lightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b)";
    for (width, name) in [
        (320, "phone"),
        (600, "tablet"),
        (1280, "wide"),
        (2560, "desk"),
    ] {
        browser.size(width, 900);
        for dark in [false, true] {
            browser.dark(dark);
            assert_fits(&browser);
            let light = browser.eval(lightness).as_u64().unwrap_or_default();
            assert_eq!(light < 3 * 64, dark, "{light}");
            picture(
                &browser,
                &format!("{name}-{}.png", if dark { "dark" } else { "light" }),
            );
        }
    }
    // Text stands out from its ground as WCAG AA asks: 4.5 to 1.
    for dark in [false, true] {
        browser.dark(dark);
        let faint = browser.eval(FAINT);
        assert_eq!(faint, Value::Array(Vec::new()), "too faint (dark: {dark})");
    }
    assert_quiet(&browser);
}

/// Elements with text of their own whose contrast with the nearest ground is below 4.5, at most 9.
const FAINT: &str = r"(() => {
    const rgb = (c) => (c.match(/[\d.]+/g) ?? []).map(Number);
    const lum = (c) => { const [r, g, b] = rgb(c).map((v) => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b; };
    const ground = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
        if (rgb(c)[3] !== 0) return c; } return 'rgb(255, 255, 255)'; };
    const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    return [...document.querySelectorAll('body *')].filter((e) => own(e) && e.checkVisibility() && !e.closest('script, noscript, style'))
        .map((e) => { const [a, b] = [lum(getComputedStyle(e).color), lum(ground(e))].sort((x, y) => y - x);
            return [(a + .05) / (b + .05), e.className, e.textContent.slice(0, 30)]; })
        .filter(([ratio]) => ratio < 4.5).slice(0, 9);
})()";

#[test]
fn a_long_history_is_shown_in_steps() {
    let mut all: Vec<_> = (1..=1000)
        .map(|n| migration(n, &format!("vm-{n}"), "completed", None))
        .collect();
    all.extend(
        (0..300).map(|n| ServiceEvent::Vm(data::vm(&format!("vm-{n}"), "running", None, 512))),
    );
    let service = Service::start(data::host(), &all);
    let browser = opened(&service, WIDE);
    browser.wait("document.querySelector('#n-past').textContent === '1,000'");
    browser.wait("document.querySelectorAll('#past > li').length === 100");
    browser.wait("document.querySelectorAll('#vms tr').length === 100");
    // Changes touch what has changed: rows stay the elements that they were.
    browser.eval("document.querySelectorAll('#past > li').forEach((li) => { li.mine = true; })");
    service.tell(&ServiceEvent::Migration(data::live(
        2000, "vm-1", "outgoing", 1, 1e6,
    )));
    service.tell(&migration(0, "vm-new", "completed", None));
    browser.wait("document.querySelector('#past .who').textContent.startsWith('vm-new')");
    let same =
        browser.eval("[...document.querySelectorAll('#past > li')].filter((li) => li.mine).length");
    assert_eq!(same, 99);
    browser.eval("document.querySelector('#more-past').click()");
    browser.wait("document.querySelectorAll('#past > li').length === 200");
    assert_eq!(
        browser.eval("document.querySelector('#more-past').textContent"),
        "Show 100 more of 801"
    );
    // Only what comes into view has its report asked for.
    assert!(
        service.report_asked().len() < 100,
        "{}",
        service.report_asked().len()
    );
    browser.eval("document.querySelector('#filter').focus()");
    browser.keys("VM-77");
    browser.wait("document.querySelectorAll('#past > li').length === 11");
    assert_eq!(
        browser.eval("document.querySelector('#n-past').textContent"),
        "11 of 1,001"
    );
    assert_quiet(&browser);
}
