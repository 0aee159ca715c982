//! A headless Chromium, asked by the Chrome DevTools Protocol over its pipe: one JSON message, one zero byte.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::support::BOUND;

const NAMES: [&str; 4] = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "chrome-headless-shell",
];
/// Between two looks at the page.
const POLL: Duration = Duration::from_millis(50);
/// For any one answer.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// `None`, said in a line of output, where there is no such program.
fn program() -> Option<PathBuf> {
    let named = std::env::var_os("CHROMIUM").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = named.into_iter().chain(
        std::env::split_paths(&path)
            .flat_map(|folder| NAMES.map(|name| folder.join(name)))
            .filter(|program| program.is_file()),
    );
    let found = found.into_iter().next();
    if found.is_none() {
        println!("not tried: there is no Chromium (apt-get install chromium, or set CHROMIUM)");
    }
    found
}

/// Ended when dropped.
pub(super) struct Browser {
    _child: Child,
    _profile: tempfile::TempDir,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    asked: u64,
    session: Option<String>,
    /// Errors of the page: exceptions of its script, and what its policy forbade.
    pub(super) complaints: Vec<String>,
}

impl Browser {
    pub(super) async fn start() -> Option<Self> {
        let program = program()?;
        let profile = tempfile::tempdir().unwrap();
        // The protocol's pipe is file descriptors 3 and 4.
        let mut child = Command::new("sh")
            .arg("-c")
            .arg("exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1")
            .arg(program)
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-extensions",
                "--disable-background-networking",
                "--no-first-run",
                "--hide-scrollbars",
                "--remote-debugging-pipe",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .env("HOME", profile.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut browser = Self {
            _child: child,
            _profile: profile,
            to,
            from: BufReader::new(from),
            asked: 0,
            session: None,
            complaints: Vec::new(),
        };
        let target = browser
            .call("Target.createTarget", json!({"url": "about:blank"}))
            .await;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", attach).await;
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({})).await;
        }
        Some(browser)
    }

    async fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.asked += 1;
        let mut message = json!({"id": self.asked, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).await.unwrap();
        loop {
            let mut answer = Vec::new();
            let read = self.from.read_until(0, &mut answer);
            let read = tokio::time::timeout(ANSWER_MAX, read).await;
            read.expect(method).unwrap();
            assert!(
                answer.pop() == Some(0),
                "the browser has ended at {method}: does it start by hand?"
            );
            let answer: Value = serde_json::from_slice(&answer).unwrap();
            if answer["id"] == self.asked {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
            self.note(&answer);
        }
    }

    /// Keeps what the page complains about. That the daemon does not answer is none.
    fn note(&mut self, event: &Value) {
        let entry = &event["params"]["entry"];
        match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.complaints.push(event["params"].to_string()),
            Some("Log.entryAdded") if entry["level"] == "error" && entry["source"] != "network" => {
                self.complaints.push(entry.to_string());
            }
            _ => {}
        }
    }

    pub(super) async fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({"url": url})).await;
        self.until("the page is there", "document.readyState === 'complete'")
            .await;
    }

    /// The value of an expression of the page.
    pub(super) async fn value(&mut self, expression: &str) -> Value {
        let ask = json!({"expression": expression, "returnByValue": true});
        let answer = self.call("Runtime.evaluate", ask).await;
        assert!(
            answer["exceptionDetails"].is_null(),
            "{expression}: {answer}"
        );
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub(super) async fn until(&mut self, what: &str, expression: &str) {
        let start = std::time::Instant::now();
        while self.value(expression).await != true {
            if start.elapsed() > BOUND {
                let text = self.value("document.body.innerText").await;
                panic!("waited in vain until {what}; the page says:\n{text}");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The whole page in this width, as it looks there, as `<name>.png` in `target/page`. Nothing may stand out of it.
    pub(super) async fn picture(&mut self, name: &str, width: u32, dark: bool) {
        let scheme = if dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", media).await;
        let mut height = 800;
        for _ in 0..2 {
            let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
            self.call("Emulation.setDeviceMetricsOverride", size).await;
            let whole = self.value("document.documentElement.scrollHeight").await;
            height = whole.as_u64().unwrap().max(400);
        }
        let seen = self
            .value("[innerWidth, document.documentElement.scrollWidth]")
            .await;
        assert_eq!(seen, json!([width, width]), "{name} stands out");
        let picture = self
            .call("Page.captureScreenshot", json!({"format": "png"}))
            .await;
        let picture = base64::engine::general_purpose::STANDARD
            .decode(picture["data"].as_str().unwrap())
            .unwrap();
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/page");
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join(format!("{name}.png"));
        std::fs::write(&file, picture).unwrap();
        println!("{}", file.display());
    }

    /// The page in both widths, light and dark.
    pub(super) async fn pictures(&mut self, name: &str) {
        for (width, dark) in [(1_100, false), (1_100, true), (360, false), (360, true)] {
            let scheme = if dark { "dark" } else { "light" };
            self.picture(&format!("{name}-{width}-{scheme}"), width, dark)
                .await;
        }
    }
}
