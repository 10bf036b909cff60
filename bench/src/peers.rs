//! The peers that are measured: how each is built, installed, started and packaged.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Problem;
use crate::events::{Kind, SENDER_TOKEN, Trigger};
use crate::lane::Start;
use crate::sink::{HUB, KEY, KEY_NAME, PARTITIONS, Sink};
use crate::verify::Prepared;

/// A program that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// One request of prepared bytes.
    Floor,
    /// The same bytes in as many requests as the function sends.
    FloorSplit,
    Function,
    Python,
    Node,
}

impl Peer {
    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::FloorSplit => "floor, split",
            Self::Function => "ours",
            Self::Python => "Python",
            Self::Node => "Node",
        }
    }

    /// Whether the peer is a native binary. The others are slower, and get fewer invocations.
    pub fn is_native(self) -> bool {
        !matches!(self, Self::Python | Self::Node)
    }
}

/// Builds the functions and the floor one by one, as for deployment: built together, each would have the features of all.
pub fn build(root: &Path, kinds: &[Kind], with_functions: bool) -> Result<(), Problem> {
    let functions = kinds.iter().map(|kind| kind.name()).filter(|_| with_functions);
    for package in functions.chain(["floor"]) {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(root).args(["build", "--release", "--quiet", "--package", package]);
        run(cargo.env("CARGO_TARGET_DIR", root.join("target")))?;
    }
    Ok(())
}

/// Installs what Python and Node need.
pub fn install(root: &Path, work: &Path) -> Result<(), Problem> {
    run(Command::new(root.join("bench/peers/install")).arg(work))
}

fn run(command: &mut Command) -> Result<(), Problem> {
    let status = command.status().map_err(|error| format!("{command:?} could not be started: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}

/// Paths of the binaries and of the work folder.
#[derive(Debug, Clone)]
pub struct Places {
    pub binaries: PathBuf,
    pub floor: PathBuf,
    pub work: PathBuf,
}

/// The command and settings with which a peer sends to a sink. The floor needs what the function sent in the same case.
pub fn start(
    peer: Peer,
    kind: Kind,
    trigger: Trigger,
    sink: &Sink,
    places: &Places,
    prepared: Option<&Prepared>,
) -> Result<Start, Problem> {
    let path = |path: PathBuf| path.display().to_string();
    let ca = path(places.work.join("ca.pem"));
    let configured = || {
        [
            ("EVENT_HUBS_CONNECTION_STRING", sink.connection_string()),
            ("SENDER_AUTH", format!(r#"[{{"type":"bearer","secret":"{SENDER_TOKEN}"}}]"#)),
            ("PARTITIONING", format!("partitions:{PARTITIONS}")),
            ("EXTRA_CA_CERTS", ca.clone()),
        ]
    };
    let owned = |environment: &[(&str, String)]| {
        environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect::<Vec<_>>()
    };
    let here = places.work.clone();
    Ok(match peer {
        Peer::Function => Start {
            command: vec![path(places.binaries.join(kind.name()))],
            environment: owned(&configured()),
            directory: here,
        },
        Peer::Python => Start {
            command: vec![
                path(places.work.join("python/venv/bin/python")),
                "-m".to_owned(),
                "awslambdaric".to_owned(),
                "handler.handle".to_owned(),
            ],
            environment: owned(&configured()),
            directory: places.work.join("python"),
        },
        Peer::Node => Start {
            command: vec![
                "node".to_owned(),
                path(places.work.join("node/node_modules/aws-lambda-ric/bin/index.mjs")),
                "handler.handle".to_owned(),
            ],
            environment: owned(&configured()),
            directory: places.work.join("node"),
        },
        Peer::Floor | Peer::FloorSplit => {
            let prepared = prepared.ok_or("the floor needs prepared bytes")?;
            let resource = format!("{}/{HUB}", sink.base());
            let expiry = shared::clock::Clock::system().unix_seconds() + 3600;
            let token = shared::event_hubs::token::sas::sign(&resource, KEY_NAME, &KEY.into(), expiry);
            let split = peer == Peer::FloorSplit;
            let file = places.work.join(format!(
                "posts-{}-{}-{}.txt",
                kind.name(),
                trigger.name().replace(' ', "-"),
                if split { "split" } else { "one" }
            ));
            std::fs::write(&file, prepared.posts(&resource, split))?;
            let response = match trigger {
                Trigger::Webhook => {
                    r#"{"statusCode":200,"headers":{"content-type":"application/json"},"body":"{\"status\":\"delivered\",\"messages\":1}","isBase64Encoded":false}"#
                }
                Trigger::Queue(_) => r#"{"batchItemFailures":[]}"#,
            };
            Start {
                command: vec![path(places.floor.clone())],
                environment: owned(&[
                    ("FLOOR_POSTS", path(file)),
                    ("FLOOR_TOKEN", secrecy::ExposeSecret::expose_secret(&token).to_owned()),
                    ("FLOOR_RESPONSE", response.to_owned()),
                    ("EXTRA_CA_CERTS", ca),
                ]),
                directory: here,
            }
        }
    })
}

/// A deployment package, in bytes.
#[derive(Debug, Clone)]
pub struct Package {
    pub name: String,
    pub raw: u64,
    pub zipped: u64,
}

/// The packages of the binaries (as `bootstrap`), and of the peers' handlers with the libraries that Lambda does not provide.
pub fn packages(kinds: &[Kind], places: &Places, with_peers: bool) -> Result<Vec<Package>, Problem> {
    let mut packages = Vec::new();
    let binaries = kinds.iter().map(|kind| (kind.name().to_owned(), places.binaries.join(kind.name())));
    for (name, binary) in binaries.chain([("floor".to_owned(), places.floor.clone())]) {
        let folder = places.work.join("package").join(&name);
        std::fs::create_dir_all(&folder)?;
        std::fs::copy(&binary, folder.join("bootstrap"))?;
        packages.push(package(&name, &folder, &["bootstrap"])?);
    }
    if with_peers {
        let folder = places.work.join("package/python");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder)?;
        std::fs::copy(places.work.join("python/handler.py"), folder.join("handler.py"))?;
        // The managed runtime provides the runtime client, simplejson and snapshot-restore-py.
        let shipped = ["requests==", "urllib3==", "certifi==", "idna==", "charset-normalizer=="];
        let pinned = std::fs::read_to_string(places.work.join("python/requirements.txt"))?;
        let pinned = pinned.lines().filter(|line| shipped.iter().any(|name| line.starts_with(name)));
        run(Command::new(places.work.join("python/venv/bin/pip"))
            .args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile", "--target"])
            .arg(&folder)
            .args(pinned))?;
        packages.push(package("Python", &folder, &["."])?);
        packages.push(package("Node", &places.work.join("node"), &["handler.mjs"])?);
    }
    Ok(packages)
}

fn package(name: &str, folder: &Path, files: &[&str]) -> Result<Package, Problem> {
    let zip = folder.with_extension("zip");
    let _ = std::fs::remove_file(&zip);
    run(Command::new("zip").current_dir(folder).args(["-9", "-q", "-X", "-r"]).arg(&zip).args(files))?;
    let raw = files.iter().map(|file| size(&folder.join(file))).sum::<std::io::Result<u64>>()?;
    Ok(Package { name: name.to_owned(), raw, zipped: zip.metadata()?.len() })
}

fn size(path: &Path) -> std::io::Result<u64> {
    if !path.is_dir() {
        return Ok(path.metadata()?.len());
    }
    std::fs::read_dir(path)?.map(|entry| size(&entry?.path())).sum()
}
