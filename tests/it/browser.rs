//! Headless Chromium, driven through the part of the W3C's WebDriver protocol that the tests of a page need.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

/// Member that names an element, as the standard defines it.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
pub const SPACE: &str = " ";
pub const ENTER: &str = "\u{e007}";
pub const TAB: &str = "\u{e004}";
/// Maximum time to wait for a page. It is long because nothing is measured here.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// A window. It closes when this value is dropped.
pub struct Browser {
    driver: Child,
    http: Client,
    session: String,
    profile: PathBuf,
}

impl Browser {
    pub async fn start() -> Self {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is missing: run `make browser`");
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = loop {
            let line = lines.next_line().await.unwrap().expect("chromedriver prints its port");
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                break port.trim_end_matches('.').to_owned();
            }
        };
        // The driver must not block on a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let profile = std::env::temp_dir().join(format!("console-{}-{port}", std::process::id()));
        let arguments = [
            "--headless",
            // Root, as in containers, can't use the sandbox. The pages are the project's own.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
        ];
        let arguments: Vec<String> = arguments
            .into_iter()
            .map(str::to_owned)
            .chain([format!("--user-data-dir={}", profile.display())])
            .collect();
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let mut browser =
            Self { driver, http: shared::build_http_client(None).unwrap().client(), session: String::new(), profile };
        browser.session = format!("http://127.0.0.1:{port}/session");
        let started = browser.post("", wanted).await;
        browser.session = format!("{}/{}", browser.session, started["sessionId"].as_str().unwrap());
        browser
    }

    async fn post(&self, command: &str, body: Value) -> Value {
        let request = self.http.post(format!("{}{command}", self.session)).body(body.to_string());
        self.value(command, request.timeout(TIME_LIMIT).send().await.unwrap()).await
    }

    async fn value(&self, command: &str, response: reqwest::Response) -> Value {
        let is_success = response.status().is_success();
        let mut response: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        assert!(is_success, "{command}: {}", response["value"]["message"]);
        response["value"].take()
    }

    pub async fn open(&self, url: &str) {
        self.post("/url", json!({ "url": url })).await;
    }

    pub async fn resize(&self, width: u32, height: u32) {
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            json!({
                "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false,
            }),
        )
        .await;
    }

    pub async fn prefer(&self, scheme: &str) {
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": [feature] })).await;
    }

    async fn devtools(&self, command: &str, parameters: Value) {
        self.post("/goog/cdp/execute", json!({ "cmd": command, "params": parameters })).await;
    }

    async fn element(&self, selector: &str) -> String {
        let found = self.post("/element", json!({ "using": "css selector", "value": selector })).await;
        found[ELEMENT].as_str().unwrap().to_owned()
    }

    /// Clicks like a user's pointer: the element must be in sight and not covered.
    pub async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        self.post(&format!("/element/{element}/click"), json!({})).await;
    }

    /// Presses a key on the element that has the focus.
    pub async fn press(&self, key: &str) {
        let strokes = [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })];
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": strokes });
        self.post("/actions", json!({ "actions": [keyboard] })).await;
    }

    /// Value of `expression` in the page.
    pub async fn read(&self, expression: &str) -> Value {
        self.post("/execute/sync", json!({ "script": format!("return {expression}"), "args": [] })).await
    }

    /// Waits for `expression` to become true.
    pub async fn until(&self, expression: &str) {
        let deadline = Instant::now() + TIME_LIMIT;
        while self.read(&format!("Boolean({expression})")).await != true {
            if Instant::now() > deadline {
                let text = self.read("document.body.innerText").await;
                panic!("did not become true: {expression}\n{}", text.as_str().unwrap());
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Errors that the browser logged: scripts that failed, resources that were refused.
    pub async fn complaints(&self) -> Value {
        self.post("/se/log", json!({ "type": "browser" })).await
    }

    /// A PNG of the window.
    pub async fn screenshot(&self) -> Vec<u8> {
        let response = self.http.get(format!("{}/screenshot", self.session)).send().await.unwrap();
        STANDARD.decode(self.value("screenshot", response).await.as_str().unwrap()).unwrap()
    }
}

impl Drop for Browser {
    /// Ends the session first: a driver that is killed leaves its Chromium running.
    fn drop(&mut self) {
        if let Some((address, path)) = self.session.trim_start_matches("http://").split_once('/')
            && let Ok(mut connection) = TcpStream::connect(address)
        {
            let _ = write!(connection, "DELETE /{path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
            let _ = connection.read(&mut [0; 1]);
        }
        let _ = self.driver.start_kill();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}
