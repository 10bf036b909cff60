//! One process under measurement: its Runtime API, its sink, its log pipes, and the time and memory that it used.

use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use serde_json::Value;
use shared::clock::Clock;

use crate::Problem;
use crate::events::Trigger;
use crate::http::Connection;
use crate::sink::{Seen, Sink};

/// Maximum time until a process requests an event or responds to one.
const PATIENCE: Duration = Duration::from_secs(30);
/// Timeout of an invocation, as the process gets it.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// Time from the request for the next event until the process sleeps in the kernel, and a little more for background threads.
const SETTLING: Duration = Duration::from_millis(5);

/// Command, environment and directory with which a process is started.
#[derive(Debug, Clone)]
pub struct Start {
    pub command: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub directory: PathBuf,
}

/// A running process.
pub struct Lane {
    pub sink: Sink,
    child: Child,
    spawned: Instant,
    api: Arc<Api>,
    log: Arc<Mutex<Log>>,
}

/// What the Runtime API serves, and what it observed.
struct Api {
    event: Vec<u8>,
    trigger: Trigger,
    state: Mutex<State>,
    changed: Condvar,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct State {
    /// Number of invocations that are left.
    to_do: usize,
    started: usize,
    completed: usize,
    /// The process waits for an event.
    waiting: bool,
    started_at: Option<Instant>,
    first_next: Option<Instant>,
    first_response: Option<Instant>,
    latencies: Vec<Duration>,
    failure: Option<String>,
}

#[derive(Default)]
struct Log {
    bytes: usize,
    last: Vec<u8>,
}

/// The time of an invocation, averaged over a round.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    pub wall: Duration,
    pub cpu: Duration,
}

/// The times of a cold start.
#[derive(Debug, Clone, Copy)]
pub struct Cold {
    /// Time from the start of the process to its first request for an event.
    pub init: Duration,
    /// Time from the start of the process to its first response.
    pub first: Duration,
    /// CPU time until the first response.
    pub cpu: Duration,
}

impl Lane {
    /// Starts a process, which gets `to_do` invocations at once.
    pub fn start(start: &Start, sink: Sink, event: Vec<u8>, trigger: Trigger, to_do: usize) -> Result<Self, Problem> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let state = Mutex::new(State { to_do, ..State::default() });
        let api = Arc::new(Api { event, trigger, state, changed: Condvar::new(), seen: sink.seen.clone() });
        let serving = api.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let api = serving.clone();
                std::thread::spawn(move || {
                    // A killed process does not close its connections properly.
                    if let Err(error) = serve(stream, &api)
                        && error.kind() == io::ErrorKind::Other
                    {
                        api.fail(format!("Runtime API: {error}"));
                    }
                });
            }
        });
        let (program, arguments) = start.command.split_first().ok_or("no command")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(&start.directory)
            .env_clear()
            .envs(["PATH", "HOME", "LANG"].iter().filter_map(|name| Some((*name, std::env::var_os(name)?))))
            .env("AWS_LAMBDA_RUNTIME_API", address.to_string())
            .envs([
                ("AWS_REGION", "eu-central-1"),
                ("AWS_ACCESS_KEY_ID", "none"),
                ("AWS_SECRET_ACCESS_KEY", "none"),
                ("AWS_LAMBDA_FUNCTION_NAME", "bench"),
                ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
                ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
                ("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/bench"),
                ("AWS_LAMBDA_LOG_STREAM_NAME", "bench"),
                ("AWS_LAMBDA_LOG_FORMAT", "JSON"),
                // The template sets the same values.
                ("MALLOC_MMAP_THRESHOLD_", "67108864"),
                ("MALLOC_TRIM_THRESHOLD_", "67108864"),
            ])
            .envs(start.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let spawned = Instant::now();
        let mut child = command.spawn().map_err(|error| format!("{program} could not be started: {error}"))?;
        let log = Arc::new(Mutex::new(Log::default()));
        if let Some(pipe) = child.stdout.take() {
            read(pipe, log.clone());
        }
        if let Some(pipe) = child.stderr.take() {
            read(pipe, log.clone());
        }
        Ok(Self { sink, child, spawned, api, log })
    }

    /// Waits until all invocations are complete and the process requests another one.
    pub fn finish(&mut self) -> Result<(), Problem> {
        self.wait(|state| state.to_do == 0 && state.waiting)
    }

    fn wait(&mut self, done: impl Fn(&State) -> bool) -> Result<(), Problem> {
        let mut completed = 0;
        let mut since = Instant::now();
        loop {
            let state = self.api.state();
            if let Some(problem) = state.failure.clone().or_else(|| self.sink.seen.complaint().map(str::to_owned)) {
                drop(state);
                return Err(self.failed(&problem));
            }
            if done(&state) {
                return Ok(());
            }
            if state.completed > completed {
                (completed, since) = (state.completed, Instant::now());
            }
            let (state, _) = self
                .api
                .changed
                .wait_timeout(state, Duration::from_millis(500))
                .unwrap_or_else(PoisonError::into_inner);
            drop(state);
            if let Some(status) = self.child.try_wait()? {
                return Err(self.failed(&format!("the process ended: {status}")));
            }
            if since.elapsed() > PATIENCE {
                return Err(self.failed("the process does not respond"));
            }
        }
    }

    fn failed(&self, problem: &str) -> Problem {
        let log = lock(&self.log);
        format!("{problem}; its log ends with:\n{}", String::from_utf8_lossy(&log.last)).into()
    }

    /// Runs a number of invocations. Returns the time of one.
    pub fn round(&mut self, invocations: usize) -> Result<Round, Problem> {
        std::thread::sleep(SETTLING);
        let cpu = cpu_time(self.child.id())?;
        let began = Instant::now();
        self.api.state().to_do = invocations;
        self.api.changed.notify_all();
        self.finish()?;
        let wall = began.elapsed();
        std::thread::sleep(SETTLING);
        let cpu = cpu_time(self.child.id())?.saturating_sub(cpu);
        let each = u32::try_from(invocations)?;
        Ok(Round { wall: wall / each, cpu: cpu / each })
    }

    /// Waits for the first response. Returns the times until then.
    pub fn cold(&mut self) -> Result<Cold, Problem> {
        self.wait(|state| state.first_response.is_some())?;
        let cpu = cpu_time(self.child.id())?;
        let state = self.api.state();
        let since = |at: Option<Instant>| at.map(|at| at.duration_since(self.spawned)).ok_or("no first event");
        Ok(Cold { init: since(state.first_next)?, first: since(state.first_response)?, cpu })
    }

    /// Time from an event to its response, for each invocation since the last call.
    pub fn take_latencies(&self) -> Vec<Duration> {
        std::mem::take(&mut self.api.state().latencies)
    }

    pub fn invocations(&self) -> usize {
        self.api.state().completed
    }

    pub fn log_bytes(&self) -> usize {
        lock(&self.log).bytes
    }

    /// Largest resident set so far, in bytes.
    pub fn peak_rss(&self) -> Result<u64, Problem> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time of all running threads, user and system, in nanoseconds.
fn cpu_time(pid: u32) -> Result<Duration, Problem> {
    let mut total = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        total += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
    }
    Ok(Duration::from_nanos(total))
}

fn read(mut pipe: impl Read + Send + 'static, log: Arc<Mutex<Log>>) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = pipe.read(&mut buffer) {
            let mut log = lock(&log);
            log.bytes += read;
            log.last.extend_from_slice(&buffer[..read]);
            let surplus = log.last.len().saturating_sub(4096);
            log.last.drain(..surplus);
        }
    });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Api {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn fail(&self, problem: String) {
        self.state().failure.get_or_insert(problem);
        self.changed.notify_all();
    }
}

fn serve(stream: TcpStream, api: &Api) -> io::Result<()> {
    const RUNTIME: &str = "/2018-06-01/runtime/";
    stream.set_nodelay(true)?;
    let clock = Clock::system();
    let mut connection = Connection::new(stream);
    while let Some(request) = connection.request()? {
        let call = request.target.strip_prefix(RUNTIME).unwrap_or_default();
        match (request.method, call) {
            ("GET", "invocation/next") => {
                let number = next(api);
                let now = clock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let headers = format!(
                    "Content-Type: application/json\r\n\
                     Lambda-Runtime-Aws-Request-Id: 8476a536-e9f4-11e8-9739-{number:012x}\r\n\
                     Lambda-Runtime-Deadline-Ms: {}\r\n\
                     Lambda-Runtime-Invoked-Function-Arn: arn:aws:lambda:eu-central-1:123456789012:function:bench\r\n\
                     Lambda-Runtime-Trace-Id: Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=0\r\n",
                    (now + TIME_LIMIT).as_millis(),
                );
                connection.respond("200 OK", &headers, &api.event)?;
            }
            ("POST", call) if call.ends_with("/response") => {
                complete(api, call, request.body);
                connection.respond("202 Accepted", "Content-Type: application/json\r\n", b"{\"status\":\"OK\"}\n")?;
            }
            _ => {
                let body = String::from_utf8_lossy(request.body).into_owned();
                api.fail(format!("{} {}: {body}", request.method, request.target));
                connection.respond("202 Accepted", "", b"")?;
            }
        }
    }
    Ok(())
}

/// Waits until an invocation is to be started. Returns its number.
fn next(api: &Api) -> usize {
    let mut state = api.state();
    state.first_next.get_or_insert_with(Instant::now);
    if state.to_do == 0 {
        state.waiting = true;
        api.changed.notify_all();
        state = api.changed.wait_while(state, |state| state.to_do == 0).unwrap_or_else(PoisonError::into_inner);
        state.waiting = false;
    }
    state.to_do -= 1;
    state.started += 1;
    state.started_at = Some(Instant::now());
    state.started
}

/// Records the response to the current invocation and checks it.
fn complete(api: &Api, call: &str, response: &[u8]) {
    let now = Instant::now();
    let problem = problem(api, response);
    let mut state = api.state();
    state.completed += 1;
    let first = state.first_response.is_none();
    state.first_response.get_or_insert(now);
    if let Some(at) = state.started_at.take() {
        state.latencies.push(now - at);
    }
    // An event too many or too few is detected at once.
    let (expected, events) =
        (state.completed * api.trigger.events(), api.seen.events.load(std::sync::atomic::Ordering::SeqCst));
    let number = format!("-{:012x}/response", state.started);
    if let Some(problem) = problem {
        state.failure.get_or_insert(problem);
    } else if events != expected {
        let completed = state.completed;
        state
            .failure
            .get_or_insert(format!("after {completed} invocations the sink has {events} events instead of {expected}"));
    } else if !call.ends_with(&number) {
        state.failure.get_or_insert(format!("a response to another invocation: {call}"));
    }
    if first || state.failure.is_some() {
        api.changed.notify_all();
    }
}

/// The problem of a response, if it has one.
fn problem(api: &Api, response: &[u8]) -> Option<String> {
    let json: Option<Value> = serde_json::from_slice(response).ok();
    let is_success = json.as_ref().is_some_and(|json| match api.trigger {
        Trigger::Webhook => json["statusCode"] == 200,
        Trigger::Queue(_) => json["batchItemFailures"].as_array().is_some_and(Vec::is_empty),
    });
    (!is_success).then(|| format!("the response {}", String::from_utf8_lossy(response)))
}
