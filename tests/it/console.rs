//! The page of `local run`, as a user sees it in the browser.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;

use reqwest::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::browser::*;
use crate::harness::*;

/// `local run` on free ports.
struct Run {
    process: Child,
    url: String,
    http: Client,
}

impl Run {
    async fn start() -> Self {
        let mut process = Command::new(binary("local"))
            .args(["run", "--port", "0", "--hub-port", "0", "--aws-port", "0", "--inlet-port", "0", "--moto"])
            .arg(virtual_environment().join("bin/moto_server"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let url = loop {
            let line = lines.next_line().await.unwrap().expect("the system becomes ready");
            if let Some(url) = line.strip_prefix("ready: ") {
                break url.to_owned();
            }
        };
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { process, url, http: shared::build_http_client(None).unwrap().client() }
    }

    async fn post(&self, path: &str, body: String) -> reqwest::Response {
        let request = self.http.post(format!("{}{path}", self.url)).bearer_auth("local-sender");
        request.header("content-type", "application/json").body(body).send().await.unwrap()
    }

    async fn state(&self) -> Value {
        let response = self.http.get(format!("{}/console/state", self.url)).send().await.unwrap();
        serde_json::from_str(&response.text().await.unwrap()).unwrap()
    }

    /// The first update for a page that has seen everything up to `last`.
    async fn update(&self, last: &str) -> (String, Value) {
        let request = self.http.get(format!("{}/console/events", self.url)).header("last-event-id", last);
        let mut response = request.send().await.unwrap();
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\n\n") {
            bytes.extend_from_slice(&response.chunk().await.unwrap().unwrap());
        }
        let text = String::from_utf8(bytes).unwrap();
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        (field("id:"), serde_json::from_str(&field("data:")).unwrap())
    }

    /// Stops the system as Ctrl-C does, with every process that it started.
    async fn stop(mut self) {
        let id = self.process.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
        assert!(self.process.wait().await.unwrap().success());
    }
}

impl Drop for Run {
    /// Stops the system of a test that fails.
    fn drop(&mut self) {
        if let Some(id) = self.process.id() {
            let _ = std::process::Command::new("kill").args(["-TERM", &id.to_string()]).status();
        }
    }
}

fn shows(id: &str, number: u64) -> String {
    format!("document.getElementById('{id}').textContent === '{number}'")
}

/// Selector of a kind's button.
fn button(kind: &str, label: &str) -> String {
    format!("button[aria-label='{kind}: {label}']")
}

/// Saves a picture of the window if `SCREENSHOTS` names a folder.
async fn picture(browser: &Browser, name: &str) {
    if let Some(folder) = std::env::var_os("SCREENSHOTS") {
        std::fs::write(Path::new(&folder).join(name), browser.screenshot().await).unwrap();
    }
}

/// The paths of the control routes, as the sources of `local` declare them: text that begins with a slash and an underscore.
fn control_routes() -> BTreeSet<String> {
    let mut routes = BTreeSet::new();
    let mut folders = vec![Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../local/src")).to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(path).unwrap();
                let literals = text.split('"').skip(1).step_by(2);
                let paths = literals.filter(|text| text.starts_with("/_") && !text.contains([' ', '?', '\n']));
                routes.extend(paths.map(str::to_owned));
            }
        }
    }
    routes
}

#[tokio::test]
async fn control_routes_respond_only_to_this_machines_own_names() {
    let run = Run::start().await;
    let info = run.http.get(format!("{}/_local/info", run.url)).send().await.unwrap().text().await.unwrap();
    let info: Value = serde_json::from_str(&info).unwrap();
    let inlet = info["source"]["recordsUrl"].as_str().unwrap().split("/_inlet").next().unwrap().to_owned();
    let get =
        async |url: &str, host: &str| run.http.get(url).header("host", host).send().await.unwrap().status().as_u16();
    let routes = control_routes();
    for start in ["/_local/info", "/_emulator/faults", "/_inlet/records"] {
        assert!(routes.contains(start), "{routes:?}");
    }
    for route in &routes {
        let at = match route.split('/').nth(1).unwrap() {
            "_local" => run.url.as_str(),
            "_emulator" => info["hubUrl"].as_str().unwrap(),
            "_inlet" => &inlet,
            other => panic!("{other}: which server has it?"),
        };
        let path =
            route.split('/').map(|part| if part.starts_with('{') { "x" } else { part }).collect::<Vec<_>>().join("/");
        let (url, port) = (format!("{at}{path}"), at.rsplit(':').next().unwrap());
        for foreign in ["rebind.evil.example", "127.0.0.1.evil.example", "host.docker.internal"] {
            assert_eq!(get(&url, &format!("{foreign}:{port}")).await, 403, "{route} as {foreign}");
        }
        for own in ["127.0.0.1", "localhost", "192.168.1.5"] {
            assert_ne!(get(&url, &format!("{own}:{port}")).await, 403, "{route} as {own}");
        }
    }
    // Containers reach the data routes by other names.
    let webhook = run.http.post(format!("{}/audience-change", run.url)).bearer_auth("local-sender");
    let webhook = webhook.header("host", "host.docker.internal").header("content-type", "application/json");
    assert_eq!(webhook.body(DOCUMENTED).send().await.unwrap().status(), 200);
    let raw = run.http.post(format!("{}/x/messages", info["hubUrl"].as_str().unwrap()));
    assert_eq!(
        raw.header("host", "host.docker.internal").send().await.unwrap().status(),
        401,
        "the emulator requires a token"
    );
}

#[tokio::test]
async fn the_console_shows_that_an_outage_loses_no_event() {
    let (run, browser) = tokio::join!(Run::start(), Browser::start());
    browser.resize(1120, 1160).await;
    browser.open(&run.url).await;
    browser.until("document.getElementById('connection').textContent === 'live'").await;
    browser.read("document.getElementById('count').value = '3'").await;
    browser.click(&button("audience-change", "Webhook")).await;
    browser.until(&shows("in-hub", 3)).await;
    browser.until("document.querySelector('#done').textContent === 'audience-change: 3 × 200 delivered'").await;
    browser.click(&button("dataverse-event", "Queue")).await;
    browser.until(&shows("in-hub", 6)).await;

    // Each event is shown with its place, its properties and its body.
    browser.until("document.querySelectorAll('#events li').length === 6").await;
    browser.click("#events li:last-child summary").await;
    browser.until("document.querySelector('#events li:last-child pre')").await;
    let row = browser.read("document.querySelector('#events li:last-child').innerText").await;
    let row = row.as_str().unwrap();
    let place = row.lines().find(|line| line.starts_with("audience-changes / ")).unwrap();
    assert!(place.ends_with(" #0"), "{row}");
    for part in ["cloudEvents:type", "com.supermetrics.dataactivation.audience.new", "\"lastCategory\": \"5678\""] {
        assert!(row.contains(part), "{part} in {row}");
    }
    browser.click("#events li:last-child summary").await;

    browser.click("[data-fault=outage]").await;
    browser.until("document.querySelector('#done').textContent === 'outage is on'").await;
    for kind in ["audience-change", "profile-export", "dataverse-event"] {
        browser.click(&button(kind, "Webhook")).await;
        browser.until(&format!("document.querySelector('#done').textContent === '{kind}: 3 × 202 parked'")).await;
    }
    browser.until(&shows("parked", 9)).await;
    let parked = "document.querySelector('#parked-rows').innerText.match(/\\t3\\tconnection_lost\\t[1-9]/g)?.length";
    browser.until(&format!("{parked} === 3")).await;
    assert_eq!(browser.read("document.getElementById('in-hub').textContent").await, "6");
    assert_eq!(browser.read("document.getElementById('lost').textContent").await, "0");
    browser.click(&button("profile-export", "Invalid event")).await;
    browser.until("document.querySelectorAll('#rejected-rows td.detail').length === 3").await;
    let rejected = browser.read("document.querySelector('#rejected-rows').innerText").await;
    assert!(rejected.as_str().unwrap().contains("webhook\tunmappable\tsegmentMembership"), "{rejected}");
    browser.until("document.getElementById('rejected-note').textContent === 'events; 3 in the rejected queue'").await;
    browser.read("scrollTo(0, 0)").await;
    picture(&browser, "console.png").await;

    browser.click("[data-fault=outage]").await;
    browser.until(&shows("in-hub", 15)).await;
    browser.until(&shows("parked", 0)).await;
    assert_eq!(browser.read("document.getElementById('accepted').textContent").await, "15");
    assert_eq!(browser.read("document.getElementById('lost').textContent").await, "0");
    browser.until("document.getElementById('spoken').textContent.includes('15 in the hubs, 0 parked')").await;
    assert_eq!(browser.read("document.querySelectorAll('#events li').length").await, 15);

    let partition = browser.read("document.querySelector('#events li span:nth-child(2)').textContent").await;
    let (hub, rest) = partition.as_str().unwrap().split_once(" / ").unwrap();
    let (partition, _) = rest.split_once(' ').unwrap();
    browser.click(&format!("button[title='only partition {partition} of {hub}']")).await;
    let rows = "Array.from(document.querySelectorAll('#events li:not([hidden]) span:nth-child(2)'))";
    let others = format!("{rows}.filter(row => !row.textContent.startsWith('{hub} / {partition} ')).length");
    assert_eq!(browser.read(&others).await, 0);
    assert!(browser.read(&format!("{rows}.length")).await.as_u64().unwrap() > 0);
    assert_eq!(browser.complaints().await, json!([]));
    run.stop().await;
}

#[tokio::test]
async fn the_keyboard_alone_replaces_a_changed_key_on_a_narrow_dark_page() {
    let (run, browser) = tokio::join!(Run::start(), Browser::start());
    browser.resize(400, 900).await;
    browser.prefer("dark").await;
    browser.open(&run.url).await;
    browser.until("document.querySelector('#senders button')").await;
    assert_eq!(browser.read("document.documentElement.scrollWidth").await, 400, "the page does not overflow");
    let focused =
        "document.activeElement.dataset.fault ?? document.activeElement.ariaLabel ?? document.activeElement.id";
    // Presses Tab until the wanted element has the focus.
    let go_to = async |wanted: &str| {
        for _ in 0..40 {
            browser.press(TAB).await;
            if browser.read(focused).await == wanted {
                assert_ne!(browser.read("getComputedStyle(document.activeElement).outlineStyle").await, "none");
                return;
            }
        }
        panic!("Tab does not reach {wanted}");
    };
    go_to("key").await;
    browser.press(SPACE).await;
    browser.until("!document.getElementById('write-key').disabled").await;
    browser.read("document.activeElement.blur(), scrollTo(0, 0)").await;
    browser.read("document.getElementById('count').focus()").await;
    go_to("profile-export: Webhook").await;
    browser.press(ENTER).await;
    browser.until(&shows("parked", 1)).await;
    browser.until("document.querySelector('#parked-rows').innerText.includes('unauthorized')").await;
    go_to("write-key").await;
    browser.press(ENTER).await;
    browser.until("!document.querySelector('[data-fault=key]').checked").await;
    browser.until(&shows("in-hub", 1)).await;
    browser.until(&shows("parked", 0)).await;
    assert_eq!(browser.read("document.getElementById('lost').textContent").await, "0");
    picture(&browser, "console-narrow.png").await;

    // Events with markup, which must stay text, and more events than the page shows.
    let many: Vec<Value> = (0..600)
        .map(|n| {
            let mut event: Value = serde_json::from_str(DOCUMENTED).unwrap();
            event["profileId"] = format!("<img src=x onerror=document.title=1>{n}").into();
            event
        })
        .collect();
    // A debug build on a busy machine sends each part within the time of a webhook.
    for part in many.chunks(100) {
        assert_eq!(run.post("/audience-change", json!(part).to_string()).await.status(), 200);
    }
    browser.until(&shows("in-hub", 601)).await;
    browser.until("document.querySelectorAll('#events li').length === 500").await;
    // The list has its full length before its last rows are drawn: a click would then miss the row that it aims at.
    browser.until("document.querySelector('#events li').event.number >= 600").await;
    browser.click("#events li:first-child summary").await;
    browser.until("document.querySelector('#events pre')?.textContent.includes('<img src=x')").await;
    assert_eq!(browser.read("document.querySelectorAll('img').length").await, 0);
    assert_eq!(browser.read("document.title").await, "eventhubs-relay");
    assert_eq!(browser.read("document.documentElement.scrollWidth").await, 400);
    browser.resize(1280, 1180).await;
    browser.read("scrollTo(0, 0)").await;
    picture(&browser, "console-dark.png").await;
    assert_eq!(browser.complaints().await, json!([]));
    run.stop().await;
}

#[tokio::test]
async fn the_console_sends_each_event_once_and_accepts_actions_only_from_its_own_page() {
    let run = Run::start().await;
    assert_eq!(run.post("/audience-change", event_of("first")).await.status(), 200);
    let (seen, update) = run.update("").await;
    assert_eq!(update["events"].as_array().unwrap().len(), 1);
    assert_eq!(run.post("/audience-change", event_of("second")).await.status(), 200);
    // The same event gives the same message: it is in the hub twice, and not lost.
    assert_eq!(run.post("/audience-change", event_of("second")).await.status(), 200);
    let (_, resumed) = run.update(&seen).await;
    let subjects: Vec<&Value> =
        resumed["events"].as_array().unwrap().iter().map(|event| &event["properties"]["cloudEvents:subject"]).collect();
    assert_eq!(subjects, ["second", "second"]);
    let (_, of_another_run) = run.update("another-run 1").await;
    assert_eq!(of_another_run["events"].as_array().unwrap().len(), 3);
    let state = run.state().await;
    let expected = json!({"accepted": 3, "inHub": 2, "repeated": 1, "parked": 0, "rejected": 0, "lost": 0});
    assert_eq!(state["counts"], expected);

    let own = run.url.clone();
    let act = async |origin: Option<&str>, host: Option<&str>, content_type: &str, action: Value| {
        let mut request = run.http.post(format!("{own}/console/actions")).header("content-type", content_type);
        for (name, value) in [("origin", origin), ("host", host)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let response = request.body(action.to_string()).send().await.unwrap();
        response.status().as_u16()
    };
    let outage = || json!({ "action": "switch", "fault": "outage", "on": true });
    let send = |kind: &str, count: u64| json!({ "action": "send", "kind": kind, "by": "webhook", "event": "good", "count": count });
    let json = "application/json";
    assert_eq!(act(None, None, json, outage()).await, 403, "no origin");
    assert_eq!(act(Some("http://evil.example"), None, json, outage()).await, 403, "from another page");
    assert_eq!(act(Some("null"), None, json, outage()).await, 403, "from a page without an origin");
    let rebound = (Some("http://evil.example:8080"), Some("evil.example:8080"));
    assert_eq!(act(rebound.0, rebound.1, json, outage()).await, 403, "from a name of a foreign DNS zone");
    assert_eq!(act(Some(&own), None, "text/plain", outage()).await, 415, "a form could send this");
    assert_eq!(act(Some(&own), None, json, json!({ "action": "rm" })).await, 422);
    assert_eq!(act(Some(&own), None, json, send("audience-change", 0)).await, 400);
    assert_eq!(act(Some(&own), None, json, send("audience-change", 101)).await, 400);
    assert_eq!(act(Some(&own), None, json, send("no-kind", 1)).await, 400);
    for path in ["/console/state", "/console/events"] {
        let read = run.http.get(format!("{own}{path}")).header("host", "evil.example");
        assert_eq!(read.send().await.unwrap().status(), 403, "{path}");
    }
    assert_eq!(run.state().await["switches"]["outage"], false);
    assert_eq!(act(Some(&own), None, json, outage()).await, 200);
    assert_eq!(run.state().await["switches"], json!({"outage": true, "throttle": false, "slow": false, "key": false}));
    let page = run.http.get(&own).send().await.unwrap();
    assert!(
        page.headers()["content-security-policy"]
            .to_str()
            .unwrap()
            .starts_with("default-src 'none'; script-src 'self';")
    );
    run.stop().await;
}
