//! A headless Chromium, driven over WebDriver. Waiting is done inside the page: a condition is
//! looked at whenever the document has changed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

const MISSING: &str = "chromedriver does not start: the tests of the page need Debian's packages \
                       chromium and chromium-driver; scripts/test installs them";
/// How long a condition may take to hold, in milliseconds. It ends a test that has failed.
const PATIENCE: u64 = 60_000;

/// One window; ends with its driver when dropped.
pub(crate) struct Browser {
    driver: Child,
    agent: ureq::Agent,
    session: String,
    _profile: TempDir,
}

/// Starts the driver on a free port; it and its base URL.
fn start_driver() -> (Child, String) {
    let driver = Command::new("chromedriver")
        .args(["--port=0", "--log-level=SEVERE"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut driver = driver.expect(MISSING);
    let out = driver.stdout.take().expect("it is piped");
    let port = BufReader::new(out)
        .lines()
        .map_while(Result::ok)
        .find_map(|line| {
            let (_, port) = line.split_once("started successfully on port ")?;
            port.trim_end_matches('.').parse::<u16>().ok()
        });
    let port = port.expect(MISSING);
    (driver, format!("http://127.0.0.1:{port}"))
}

impl Browser {
    /// A window of `width` × `height` pixels.
    pub(crate) fn start(width: u32, height: u32) -> Self {
        let profile = TempDir::new().expect("a directory for the profile");
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_millis(2 * PATIENCE)))
            .build()
            .into();
        let (driver, base) = start_driver();
        let mut browser = Self {
            driver,
            agent,
            session: format!("{base}/session"),
            _profile: profile,
        };
        let profile = browser._profile.path().display().to_string();
        let wishes = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:loggingPrefs": {"browser": "ALL"},
            "timeouts": {"script": PATIENCE + 10_000},
            "goog:chromeOptions": {"args": [
                "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--disable-dev-shm-usage", "--hide-scrollbars", "--disable-lcd-text",
                format!("--user-data-dir={profile}"),
            ]},
        }}});
        let begun = browser.post("", &wishes);
        let id = begun["sessionId"].as_str().expect("a session").to_owned();
        browser.session = format!("{}/{id}", browser.session);
        browser.size(width, height);
        browser
    }

    /// The value of an answer; an error of the driver fails the test with its words.
    fn post(&self, path: &str, body: &Value) -> Value {
        let url = format!("{}{path}", self.session);
        let answer = self.agent.post(&url).send_json(body);
        let mut answer = answer.unwrap_or_else(|e| panic!("{path}: {e}"));
        let ok = answer.status().is_success();
        let value: Value = answer.body_mut().read_json().expect("an answer in JSON");
        assert!(ok, "{path}: {}", value["value"]["message"]);
        value["value"].clone()
    }

    /// A command of Chrome's own protocol.
    fn devtools(&self, command: &str, params: &Value) -> Value {
        self.post(
            "/goog/cdp/execute",
            &json!({"cmd": command, "params": params}),
        )
    }

    pub(crate) fn size(&self, width: u32, height: u32) {
        let params = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false,
        });
        self.devtools("Emulation.setDeviceMetricsOverride", &params);
    }

    pub(crate) fn dark(&self, dark: bool) {
        let scheme = if dark { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        let params = json!({"features": features});
        self.devtools("Emulation.setEmulatedMedia", &params);
    }

    pub(crate) fn open(&self, url: &str) {
        self.post("/url", &json!({"url": url}));
    }

    /// The value of an expression in the page.
    pub(crate) fn eval(&self, expression: &str) -> Value {
        let script = format!("return ({expression});");
        self.post("/execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until an expression is true; fails the test with the page's text where it is not.
    pub(crate) fn wait(&self, condition: &str) {
        let script = format!(
            "const done = arguments[0], holds = () => {{ try {{ return Boolean({condition}); }} \
             catch {{ return false; }} }};
             if (holds()) {{ done(null); return; }}
             let late = 0;
             const watch = new MutationObserver(() => {{ if (holds()) end(null); }});
             const end = (what) => {{ watch.disconnect(); clearTimeout(late); done(what); }};
             watch.observe(document, {{ subtree: true, childList: true, attributes: true, \
             characterData: true }});
             late = setTimeout(() => end(document.body.innerText), {PATIENCE});"
        );
        let body = json!({"script": script, "args": []});
        let end = self.post("/execute/async", &body);
        assert!(
            end.is_null(),
            "never held: {condition}\n{end}\n{:#?}",
            self.errors()
        );
    }

    /// Presses keys, as a user with a keyboard would. `\u{E004}` is Tab, `\u{E007}` Enter.
    pub(crate) fn keys(&self, keys: &str) {
        let presses: Vec<_> = keys
            .chars()
            .flat_map(|c| [("keyDown", c), ("keyUp", c)])
            .map(|(kind, c)| json!({"type": kind, "value": c.to_string()}))
            .collect();
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": presses});
        self.post("/actions", &json!({"actions": [keyboard]}));
    }

    /// What the console has said since it was last asked that is an error or a warning. Requests
    /// that failed are told apart by `network`.
    pub(crate) fn errors(&self) -> Vec<Value> {
        let said = self.post("/se/log", &json!({"type": "browser"}));
        let said = said.as_array().cloned().unwrap_or_default();
        said.into_iter()
            .filter(|line| line["level"] == "SEVERE" || line["level"] == "WARNING")
            .collect()
    }

    /// The whole page as PNG.
    pub(crate) fn picture(&self) -> Vec<u8> {
        let params = json!({"format": "png", "captureBeyondViewport": true});
        let taken = self.devtools("Page.captureScreenshot", &params);
        let data = taken["data"].as_str().expect("a picture");
        STANDARD.decode(data).expect("base64")
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends Chromium; the driver alone would leave it behind.
        let _ = self.agent.delete(&self.session).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
