//! Runs a built function binary as Lambda does: one process per instance, one invocation at a time each, spoken to over
//! the Runtime API. Instances are frozen between invocations only when told to, and memory is not limited.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use http::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use shared::clock::Clock;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::body;
use crate::random;

/// What is run, and how.
#[derive(Debug, Clone)]
pub struct FunctionConfig {
    pub name: String,
    pub binary: PathBuf,
    /// Beside what Lambda itself sets; here it can be overridden.
    pub environment: Vec<(String, String)>,
    pub timeout: Duration,
    pub memory_mb: u32,
    /// Invocations beyond it wait.
    pub max_instances: usize,
    /// Whether what the instances write is also printed.
    pub print_logs: bool,
    /// Whether whoever passes invocations on prints those that fail.
    pub print_failures: bool,
    /// Is told what the instances do.
    pub observer: Option<mpsc::UnboundedSender<Observed>>,
}

/// What an instance did.
#[derive(Debug)]
pub struct Observed {
    /// The function's name.
    pub function: String,
    pub what: What,
}

#[derive(Debug)]
pub enum What {
    /// It wrote a line.
    Wrote(String),
    /// It answered. Of what it wrote, some may be told later.
    Answered { request_id: String, payload: Vec<u8>, answer: Vec<u8> },
}

impl FunctionConfig {
    pub fn new(name: impl Into<String>, binary: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            binary: binary.into(),
            environment: Vec::new(),
            timeout: Duration::from_secs(30),
            memory_mb: 128,
            max_instances: 10,
            print_logs: false,
            print_failures: true,
            observer: None,
        }
    }

    fn tell(&self, what: impl FnOnce() -> What) {
        if let Some(observer) = &self.observer {
            // Whoever watched may be gone.
            let _ = observer.send(Observed { function: self.name.clone(), what: what() });
        }
    }
}

/// Why an invocation has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvokeError {
    /// The process ended, or did nothing for 10 s, before it asked for an event; with the last line that it wrote.
    #[error("the function did not start: {0}")]
    Init(String),
    #[error("the function failed: {error_type}: {message}")]
    Function { error_type: String, message: String },
    /// The instance was killed.
    #[error("the function did not answer in time")]
    Timeout,
    /// The process ended during the invocation.
    #[error("the function's process ended")]
    Exited,
}

/// An instance that has not asked for its first event by then has failed.
const INIT_TIMEOUT: Duration = Duration::from_secs(10);
/// After an exit, what the process wrote last may still be on its way.
const LAST_LINES: Duration = Duration::from_millis(500);
const MAX_LOG_LINES: usize = 10_000;
/// The largest event or answer of a synchronous invocation.
pub const MAX_PAYLOAD: usize = 6_291_556;
const ACCOUNT: &str = "123456789012";
const DEFAULT_REGION: &str = "eu-central-1";
/// What instances keep of our own environment.
const INHERITED: [&str; 4] = ["HOME", "LANG", "PATH", "TMPDIR"];

/// A function and its instances. They are killed with its last clone.
#[derive(Clone)]
pub struct Function(Arc<Inner>);

struct Inner {
    config: FunctionConfig,
    clock: Clock,
    idle: Mutex<Vec<Instance>>,
    /// Of every process that was started and is not known to be gone.
    processes: Mutex<Vec<Process>>,
    permits: Semaphore,
    running: Arc<AtomicUsize>,
    logs: Arc<Logs>,
    stopped: watch::Sender<bool>,
}

impl Function {
    /// Starts nothing yet: instances come with invocations.
    pub fn new(config: FunctionConfig) -> Self {
        let logs = Logs { config: config.clone(), lines: Mutex::default() };
        Self(Arc::new(Inner {
            clock: Clock::system(),
            idle: Mutex::default(),
            processes: Mutex::default(),
            permits: Semaphore::new(config.max_instances.max(1)),
            running: Arc::default(),
            logs: Arc::new(logs),
            stopped: watch::Sender::new(false),
            config,
        }))
    }

    pub fn config(&self) -> &FunctionConfig {
        &self.0.config
    }

    /// By which it is invoked.
    pub fn arn(&self, alias: Option<&str>) -> String {
        self.0.arn(alias)
    }

    /// Hands `payload` to an idle instance (the one used last), or to a new one. Dropping the future kills that
    /// instance.
    pub async fn invoke(&self, payload: Vec<u8>) -> Result<Vec<u8>, InvokeError> {
        self.invoke_alias(None, payload).await
    }

    /// The same by one of the function's aliases, which the invoked ARN then names.
    pub async fn invoke_alias(&self, alias: Option<&str>, payload: Vec<u8>) -> Result<Vec<u8>, InvokeError> {
        let arn = self.0.arn(alias);
        let mut stopped = self.0.stopped.subscribe();
        tokio::select! {
            biased;
            _ = async { stopped.wait_for(|stopped| *stopped).await.is_ok() } => Err(InvokeError::Exited),
            answer = self.invoke_unless_stopped(&arn, payload) => answer,
        }
    }

    async fn invoke_unless_stopped(&self, arn: &str, payload: Vec<u8>) -> Result<Vec<u8>, InvokeError> {
        let _permit = self.0.permits.acquire().await.map_err(|_| InvokeError::Exited)?;
        loop {
            let (instance, reused) = match self.0.take_idle() {
                Some(instance) => {
                    if instance.frozen {
                        instance.process.signal(Signal::CONT).await;
                    }
                    (Instance { frozen: false, ..instance }, true)
                }
                None => (Instance::start(&self.0).await?, false),
            };
            let ended = instance.invoke(&self.0, arn, payload.clone()).await;
            match ended {
                Ended::Answered(answer) => {
                    let mut idle = self.0.idle();
                    if !*self.0.stopped.borrow() {
                        idle.push(instance);
                    }
                    return answer;
                }
                Ended::TimedOut => return Err(InvokeError::Timeout),
                // It ended between two invocations and never saw this one.
                Ended::Exited { taken: false } if reused => {}
                Ended::Exited { .. } => return Err(InvokeError::Exited),
            }
        }
    }

    /// Sends SIGKILL to every process: idle, busy or starting. Invocations under way end with [`InvokeError::Exited`] or
    /// [`InvokeError::Init`], later ones get new instances. Gives the number of processes.
    pub async fn kill(&self) -> usize {
        // An idle one must not be handed an invocation before its end is noticed.
        let idle = std::mem::take(&mut *self.0.idle());
        let killed = self.0.signal(Signal::KILL).await;
        drop(idle);
        killed
    }

    /// Freezes the idle instances with SIGSTOP, as Lambda does between invocations. An invocation thaws the one it is
    /// given. Gives the number of frozen instances.
    pub async fn freeze(&self) -> usize {
        // Nobody may be handed one meanwhile.
        let mut idle = std::mem::take(&mut *self.0.idle());
        for instance in &mut idle {
            instance.process.signal(Signal::STOP).await;
            instance.frozen = true;
        }
        let frozen = idle.len();
        if !*self.0.stopped.borrow() {
            self.0.idle().extend(idle);
        }
        frozen
    }

    /// Kills the instances; invocations end with [`InvokeError::Exited`], later ones too.
    pub fn stop(&self) {
        self.0.stopped.send_replace(true);
        self.0.idle().clear();
    }

    /// Waits, after [`Function::stop`], for the processes to be gone, 2 s at most.
    pub async fn stopped(&self) {
        let deadline = Instant::now() + Duration::from_secs(2);
        while self.instances() > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Processes that live.
    pub fn instances(&self) -> usize {
        self.0.running.load(Ordering::Relaxed)
    }

    /// The last 10,000 lines that instances wrote on stdout and stderr.
    pub fn logs(&self) -> Vec<String> {
        lock(&self.0.logs.lines).iter().cloned().collect()
    }
}

impl Inner {
    fn idle(&self) -> MutexGuard<'_, Vec<Instance>> {
        lock(&self.idle)
    }

    fn take_idle(&self) -> Option<Instance> {
        let mut idle = self.idle();
        idle.retain(|instance| instance.exited.borrow().is_none());
        idle.pop()
    }

    async fn signal(&self, signal: Signal) -> usize {
        let processes = {
            let mut processes = lock(&self.processes);
            processes.retain(|process| !process.0.is_closed());
            processes.clone()
        };
        let mut signalled = 0;
        for process in &processes {
            signalled += usize::from(process.signal(signal).await);
        }
        signalled
    }

    fn arn(&self, alias: Option<&str>) -> String {
        let region = self.variable("AWS_REGION").unwrap_or(DEFAULT_REGION);
        let alias = alias.map(|alias| format!(":{alias}")).unwrap_or_default();
        format!("arn:aws:lambda:{region}:{ACCOUNT}:function:{}{alias}", self.config.name)
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.config.environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Logs {
    config: FunctionConfig,
    lines: Mutex<VecDeque<String>>,
}

impl Logs {
    fn push(&self, line: String) {
        if self.config.print_logs {
            println!("[{}] {line}", self.config.name);
        }
        self.config.tell(|| What::Wrote(line.clone()));
        let mut lines = lock(&self.lines);
        if lines.len() == MAX_LOG_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

/// The way to a process's signals: only the task that reaps it knows that its pid is still its own.
#[derive(Clone)]
struct Process(mpsc::UnboundedSender<(Signal, oneshot::Sender<()>)>);

impl Process {
    /// False: it is gone already.
    async fn signal(&self, signal: Signal) -> bool {
        let (sent, done) = oneshot::channel();
        self.0.send((signal, sent)).is_ok() && done.await.is_ok()
    }
}

/// One process. Dropping it kills the process.
struct Instance {
    process: Process,
    frozen: bool,
    invocations: mpsc::UnboundedSender<Invocation>,
    exited: watch::Receiver<Option<String>>,
    _server: Server,
    _kill: oneshot::Sender<()>,
}

/// Ends with its instance.
struct Server(JoinHandle<()>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How an invocation ends.
type Answer = Result<Vec<u8>, InvokeError>;

struct Invocation {
    id: String,
    payload: Vec<u8>,
    deadline_ms: u128,
    arn: String,
    answer: oneshot::Sender<Answer>,
    taken: oneshot::Sender<()>,
}

enum Ended {
    Answered(Answer),
    TimedOut,
    Exited { taken: bool },
}

/// What the Runtime API of one instance works on.
struct Api {
    invocations: tokio::sync::Mutex<mpsc::UnboundedReceiver<Invocation>>,
    current: Mutex<Option<(String, oneshot::Sender<Answer>)>>,
    ready: watch::Sender<bool>,
    init_error: Mutex<Option<String>>,
}

impl Instance {
    async fn start(function: &Inner) -> Result<Self, InvokeError> {
        let failed = |error: std::io::Error| InvokeError::Init(format!("no Runtime API: {error}"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (invocations, received) = mpsc::unbounded_channel();
        let api = Arc::new(Api {
            invocations: tokio::sync::Mutex::new(received),
            current: Mutex::default(),
            ready: watch::Sender::new(false),
            init_error: Mutex::default(),
        });
        let mut ready = api.ready.subscribe();
        let child = spawn(&function.config, address)
            .map_err(|error| InvokeError::Init(format!("can't start {}: {error}", function.config.binary.display())))?;
        function.running.fetch_add(1, Ordering::Relaxed);
        let (kill, killed) = oneshot::channel();
        let (exit, exited) = watch::channel(None);
        let (signals, to_send) = mpsc::unbounded_channel();
        let process = Process(signals);
        lock(&function.processes).push(process.clone());
        tokio::spawn(watch_process(child, killed, to_send, exit, function.logs.clone(), function.running.clone()));
        let router = runtime_api(api.clone());
        let server = tokio::spawn(async move {
            // It ends with its task only.
            let _ = axum::serve(listener.tap_io(|stream| drop(stream.set_nodelay(true))), router).await;
        });
        let instance = Self { process, frozen: false, invocations, exited, _server: Server(server), _kill: kill };
        let last_line = tokio::select! {
            biased;
            true = async { ready.wait_for(|ready| *ready).await.is_ok() } => return Ok(instance),
            last_line = instance.until_exit() => last_line,
            () = tokio::time::sleep(INIT_TIMEOUT) => Some(format!("not ready after {} s", INIT_TIMEOUT.as_secs())),
        };
        let told = lock(&api.init_error).take();
        Err(InvokeError::Init(told.or(last_line).unwrap_or_default()))
    }

    /// The last line that the process wrote, once it is gone.
    async fn until_exit(&self) -> Option<String> {
        let mut exited = self.exited.clone();
        exited.wait_for(Option::is_some).await.ok().and_then(|last_line| last_line.clone())
    }

    async fn invoke(&self, function: &Inner, arn: &str, payload: Vec<u8>) -> Ended {
        let limit = function.config.timeout;
        let since_epoch = function.clock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (answer, mut answered) = oneshot::channel();
        let (taken, mut was_taken) = oneshot::channel();
        let (id, observed) = (random::uuid(), function.config.observer.is_some().then(|| payload.clone()));
        let invocation = Invocation {
            id: id.clone(),
            payload,
            deadline_ms: (since_epoch + limit).as_millis(),
            arn: arn.to_owned(),
            answer,
            taken,
        };
        let deadline = Instant::now() + limit;
        if self.invocations.send(invocation).is_err() {
            return Ended::Exited { taken: false };
        }
        let ended = tokio::select! {
            biased;
            Ok(answer) = &mut answered => Ended::Answered(answer),
            _ = self.until_exit() => match answered.try_recv() {
                Ok(answer) => Ended::Answered(answer),
                Err(_) => Ended::Exited { taken: was_taken.try_recv().is_ok() },
            },
            () = sleep_until(deadline) => Ended::TimedOut,
        };
        if let (Ended::Answered(Ok(answer)), Some(payload)) = (&ended, observed) {
            function.config.tell(|| What::Answered { request_id: id, payload, answer: answer.clone() });
        }
        ended
    }
}

fn spawn(config: &FunctionConfig, api: SocketAddr) -> std::io::Result<Child> {
    let mut command = Command::new(&config.binary);
    command
        .env_clear()
        .envs(INHERITED.iter().filter_map(|name| Some((*name, std::env::var_os(name)?))))
        .envs([("AWS_REGION", DEFAULT_REGION), ("AWS_ACCESS_KEY_ID", "local"), ("AWS_SECRET_ACCESS_KEY", "local")])
        .env("AWS_LAMBDA_RUNTIME_API", api.to_string())
        .env("AWS_LAMBDA_FUNCTION_NAME", &config.name)
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", config.memory_mb.to_string())
        .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
        .env("AWS_LAMBDA_LOG_GROUP_NAME", format!("/aws/lambda/{}", config.name))
        .env("AWS_LAMBDA_LOG_STREAM_NAME", format!("local/[$LATEST]{}", random::uuid().replace('-', "")))
        .env("AWS_LAMBDA_LOG_FORMAT", "JSON")
        .env("_HANDLER", "bootstrap")
        .envs(config.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C in a terminal is for us to handle, not for the children.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// Reads what the process writes and passes on signals until it ends or is to be killed, and tells the last line once it
/// is gone.
async fn watch_process(
    mut child: Child,
    mut killed: oneshot::Receiver<()>,
    mut signals: mpsc::UnboundedReceiver<(Signal, oneshot::Sender<()>)>,
    exit: watch::Sender<Option<String>>,
    logs: Arc<Logs>,
    running: Arc<AtomicUsize>,
) {
    let last_line = Arc::new(Mutex::new(None));
    let out = child.stdout.take().map(|pipe| tokio::spawn(read_lines(pipe, logs.clone(), last_line.clone())));
    let err = child.stderr.take().map(|pipe| tokio::spawn(read_lines(pipe, logs, last_line.clone())));
    let status: Option<ExitStatus> = loop {
        tokio::select! {
            status = child.wait() => break status.ok(),
            _ = &mut killed => {
                let _ = child.kill().await;
                break None;
            }
            Some((signal, sent)) = signals.recv() => {
                // The pid is its own until `wait` has told its end.
                if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
                    let _ = kill_process(pid, signal);
                }
                let _ = sent.send(());
            }
        }
    };
    drop(signals);
    running.fetch_sub(1, Ordering::Relaxed);
    for reader in [out, err].into_iter().flatten() {
        let _ = timeout(LAST_LINES, reader).await;
    }
    let last_line = lock(&last_line).take();
    exit.send_replace(Some(last_line.unwrap_or_else(|| match status {
        Some(status) => format!("no output; {status}"),
        None => "killed".to_owned(),
    })));
}

async fn read_lines(pipe: impl AsyncRead + Unpin, logs: Arc<Logs>, last_line: Arc<Mutex<Option<String>>>) {
    let mut lines = BufReader::new(pipe).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
        if !line.trim().is_empty() {
            *lock(&last_line) = Some(line.clone());
        }
        logs.push(line);
    }
}

fn runtime_api(api: Arc<Api>) -> Router {
    Router::new()
        .route("/2018-06-01/runtime/invocation/next", get(next))
        .route("/2018-06-01/runtime/invocation/{id}/response", post(response))
        .route("/2018-06-01/runtime/invocation/{id}/error", post(error))
        .route("/2018-06-01/runtime/init/error", post(init_error))
        .with_state(api)
}

async fn next(State(api): State<Arc<Api>>) -> Response {
    api.ready.send_replace(true);
    let Some(invocation) = api.invocations.lock().await.recv().await else {
        return StatusCode::GONE.into_response();
    };
    let trace = format!(
        "Root=1-{:08x}-{:024x};Parent={:016x};Sampled=0",
        fastrand::u32(..),
        fastrand::u128(..) >> 32,
        fastrand::u64(..)
    );
    // Whoever waits may have given up; then the answer goes nowhere.
    let _ = invocation.taken.send(());
    let headers = [
        ("content-type", "application/json".to_owned()),
        ("lambda-runtime-aws-request-id", invocation.id.clone()),
        ("lambda-runtime-deadline-ms", invocation.deadline_ms.to_string()),
        ("lambda-runtime-invoked-function-arn", invocation.arn),
        ("lambda-runtime-trace-id", trace),
    ];
    *lock(&api.current) = Some((invocation.id, invocation.answer));
    (headers, invocation.payload).into_response()
}

/// Ends the current invocation, if it is the one meant.
fn end(api: &Api, id: &str, answer: Answer) -> Response {
    match lock(&api.current).take_if(|(current, _)| current == id) {
        Some((_, waiting)) => {
            let _ = waiting.send(answer);
            StatusCode::ACCEPTED.into_response()
        }
        None => (StatusCode::BAD_REQUEST, r#"{"errorType":"InvalidRequestID"}"#).into_response(),
    }
}

async fn response(State(api): State<Arc<Api>>, Path(id): Path<String>, body: Body) -> Response {
    match body::read(body, MAX_PAYLOAD).await {
        Ok(answer) => end(&api, &id, Ok(answer.into())),
        Err(_) => {
            let message = format!("Exceeded maximum allowed payload size ({MAX_PAYLOAD} bytes).");
            let error_type = "Function.ResponseSizeTooLarge".to_owned();
            end(&api, &id, Err(InvokeError::Function { error_type, message }));
            StatusCode::PAYLOAD_TOO_LARGE.into_response()
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ErrorBody {
    error_type: String,
    error_message: String,
}

async fn error_body(body: Body) -> ErrorBody {
    let body = body::read(body, MAX_PAYLOAD).await.unwrap_or_default();
    serde_json::from_slice(&body).unwrap_or_default()
}

async fn error(State(api): State<Arc<Api>>, Path(id): Path<String>, body: Body) -> Response {
    let ErrorBody { error_type, error_message: message } = error_body(body).await;
    end(&api, &id, Err(InvokeError::Function { error_type, message }))
}

async fn init_error(State(api): State<Arc<Api>>, body: Body) -> StatusCode {
    let body = error_body(body).await;
    *lock(&api.init_error) = Some(format!("{}: {}", body.error_type, body.error_message));
    StatusCode::ACCEPTED
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A runtime in a shell: `handle` is run with the event in `$event`, its output is the answer.
    pub(crate) fn function(name: &str, handle: &str, max_instances: usize) -> Function {
        let directory = std::env::temp_dir().join(format!("local-runner-{}", random::uuid()));
        std::fs::create_dir(&directory).unwrap();
        let binary = directory.join(name);
        let script = format!(
            r#"#!/bin/bash
api="http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime"
answer() {{ curl -s -o /dev/null -X POST --data-binary "$2" "$api/invocation/$id/$1"; }}
while true; do
  {handle_init}
  event=$(curl -s -D "{dir}/headers-$$" "$api/invocation/next") || exit 3
  id=$(tr -d '\r' < "{dir}/headers-$$" | sed -n 's/^lambda-runtime-aws-request-id: //p')
  {handle}
done
"#,
            dir = directory.display(),
            handle_init = if name == "no-init" { "echo first; echo last >&2; exit 1" } else { "" },
        );
        std::fs::write(directory.join("script"), script).unwrap();
        // A file that was just written can't always be executed while other threads fork: bash reads it instead.
        std::os::unix::fs::symlink("/bin/bash", &binary).unwrap();
        let mut config = FunctionConfig::new(name, &binary);
        config.timeout = Duration::from_secs(5);
        config.max_instances = max_instances;
        config.environment = vec![("BASH_ENV".into(), directory.join("script").display().to_string())];
        Function::new(config)
    }

    #[tokio::test]
    async fn instances_are_reused_and_killed() {
        let function = function("echo", r#"echo "got $event"; answer response "$event $$""#, 2);
        let first = function.invoke(b"a".to_vec()).await.unwrap();
        let second = function.invoke(b"a".to_vec()).await.unwrap();
        assert!(first.starts_with(b"a "));
        assert_eq!(first, second);
        assert_eq!(function.instances(), 1);
        assert!(function.logs().iter().any(|line| line == "got a"));
        function.stop();
        function.stopped().await;
        assert_eq!(function.instances(), 0);
        assert_eq!(function.invoke(Vec::new()).await, Err(InvokeError::Exited));
    }

    #[tokio::test]
    async fn invocations_run_side_by_side_up_to_the_limit() {
        let function = function("slow", r#"sleep 0.2; answer response "$$""#, 2);
        let invoke = || function.invoke(b"{}".to_vec());
        let answers = tokio::join!(invoke(), invoke(), invoke());
        let mut processes = [answers.0.unwrap(), answers.1.unwrap(), answers.2.unwrap()];
        processes.sort();
        assert_eq!(function.instances(), 2);
        assert!(processes[0] == processes[1] || processes[1] == processes[2]);
    }

    #[tokio::test]
    async fn failures_are_told_apart() {
        let failing = function("failing", r#"answer error '{"errorType":"T","errorMessage":"m"}'"#, 1);
        let error = InvokeError::Function { error_type: "T".into(), message: "m".into() };
        assert_eq!(failing.invoke(Vec::new()).await, Err(error));

        let exiting = function("exiting", r#"[ "$event" = die ] && exit 7; answer response ok"#, 1);
        assert_eq!(exiting.invoke(b"die".to_vec()).await, Err(InvokeError::Exited));
        assert_eq!(exiting.invoke(b"live".to_vec()).await, Ok(b"ok".to_vec()));

        let no_init = function("no-init", "", 1);
        assert_eq!(no_init.invoke(Vec::new()).await, Err(InvokeError::Init("last".into())));
        let missing = Function::new(FunctionConfig::new("missing", "/nowhere/missing"));
        assert!(matches!(missing.invoke(Vec::new()).await, Err(InvokeError::Init(_))));
    }

    #[tokio::test]
    async fn killed_instances_are_replaced() {
        let function = function("killed", r#"[ "$event" = slow ] && sleep 60; answer response "$$""#, 2);
        let first = function.invoke(Vec::new()).await.unwrap();
        let busy = tokio::spawn({
            let function = function.clone();
            async move { function.invoke(b"slow".to_vec()).await }
        });
        while !function.0.idle().is_empty() {
            tokio::task::yield_now().await;
        }
        let second = function.invoke(Vec::new()).await.unwrap();
        assert_ne!(first, second);
        assert_eq!(function.kill().await, 2, "the busy one and the idle one");
        assert_eq!(busy.await.unwrap(), Err(InvokeError::Exited));
        let third = function.invoke(Vec::new()).await.unwrap();
        assert!(third != first && third != second);
        function.stop();
        function.stopped().await;
        assert_eq!(function.kill().await, 0);
    }

    #[tokio::test]
    async fn a_frozen_instance_goes_on_with_its_next_invocation() {
        let function = function("frozen", r#"answer response "$$""#, 1);
        let first = function.invoke(Vec::new()).await.unwrap();
        assert_eq!(function.freeze().await, 1);
        let pid = String::from_utf8(first.clone()).unwrap();
        let state = || {
            let status = Command::new("ps").args(["-o", "state=", "-p", &pid]).output();
            async { String::from_utf8(status.await.unwrap().stdout).unwrap().trim().to_owned() }
        };
        assert!(state().await.starts_with('T'), "stopped");
        assert_eq!(function.invoke(Vec::new()).await.unwrap(), first);
        assert!(!state().await.starts_with('T'));

        assert_eq!(function.freeze().await, 1);
        assert_eq!(function.kill().await, 1, "frozen ones can be killed too");
        assert_ne!(function.invoke(Vec::new()).await.unwrap(), first);
    }

    #[tokio::test]
    async fn a_slow_instance_is_killed() {
        let slow = function("sleeping", "sleep 60", 1);
        let mut config = slow.config().clone();
        config.timeout = Duration::from_millis(300);
        let slow = Function::new(config);
        assert_eq!(slow.invoke(Vec::new()).await, Err(InvokeError::Timeout));
        slow.stopped().await;
        assert_eq!(slow.instances(), 0);
    }
}
