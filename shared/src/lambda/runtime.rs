//! A Lambda function's life: what it needs once, then one invocation after another.

use std::mem;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use lambda_runtime::tower::util::MapRequestLayer;
use lambda_runtime::{Context, Diagnostic, LambdaEvent, LambdaInvocation, Runtime, service_fn};
use serde::Serialize;
use serde::de::IgnoredAny;
use tokio::time::{Instant, sleep};

use super::logging;
use crate::clock::Clock;
use crate::environment::{Environment, SettingsError};
use crate::json::explain;
use crate::trigger::deadline::Invocation;

/// What is read at the start may take this long; Lambda gives the init 10 s.
const INIT_TIMEOUT: Duration = Duration::from_secs(8);
/// Before what could not be read is read again.
const PAUSE: Duration = Duration::from_millis(500);

/// What handles invocations.
pub trait Function: Sized + Send + Sync + 'static {
    type Response: Serialize + Send;

    /// Handles one event, given as it came. An error means that nobody is there to be answered: the event is no trigger's, or all
    /// of its records must come again.
    fn invoke(
        &self,
        event: &str,
        invocation: Invocation<'_>,
    ) -> impl Future<Output = Result<Self::Response, Diagnostic>>;
}

/// Runs a function until the runtime ends it. A setting that can't be used ends the process before its first invocation,
/// with one ERROR line. `open` reads settings and secrets, by its deadline.
pub fn run_function<F: Function>(
    open: impl AsyncFn(Environment, Clock, Instant) -> Result<F, SettingsError>,
) -> ExitCode {
    let environment = Environment::process();
    logging::init(&environment);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the function can't start");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        let clock = Clock::system();
        let deadline = Instant::now() + INIT_TIMEOUT;
        let function = loop {
            let error = match open(environment.clone(), clock.clone(), deadline).await {
                Ok(function) => break Arc::new(function),
                Err(error) => error,
            };
            if !error.is_transient || Instant::now() + PAUSE >= deadline {
                tracing::error!(
                    variable = error.variable,
                    problem = error.problem,
                    "the function can't start: {error}"
                );
                return ExitCode::FAILURE;
            }
            sleep(PAUSE).await;
        };
        // The bytes of the event at hand. What `lambda_runtime` reads an event into would be a copy, made in a pass of its own.
        let arrived = Arc::new(Mutex::new(Bytes::new()));
        let take = {
            let arrived = arrived.clone();
            move |next| mem::replace(&mut *arrived.lock().unwrap_or_else(PoisonError::into_inner), next)
        };
        let handler = service_fn({
            let take = take.clone();
            move |LambdaEvent { context, .. }: LambdaEvent<IgnoredAny>| {
                let (function, bytes) = (function.clone(), take(Bytes::new()));
                let began = Instant::now();
                let time_up = began + remaining(&clock, &context);
                async move {
                    let invocation = Invocation {
                        request_id: &context.request_id,
                        invoked_arn: &context.invoked_function_arn,
                        began,
                        time_up,
                    };
                    let event = std::str::from_utf8(&bytes)
                        .map_err(|_| super::diagnostic("UnknownTrigger", "the event is not UTF-8, as every trigger's is"))?;
                    function.invoke(event, invocation).await
                }
            }
        });
        let arriving = MapRequestLayer::new(move |mut invocation: LambdaInvocation| {
            take(mem::replace(&mut invocation.body, Bytes::from_static(b"null")));
            invocation
        });
        match Runtime::new(handler).layer(arriving).run().await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                match unreadable_header(error.as_ref()) {
                    Some(problem) => tracing::error!(
                        problem,
                        hint = "check the client context and the Cognito identity of whoever invokes the function directly",
                        "failed to read the headers of an invocation; it fails and the process ends"
                    ),
                    // A local container was stopped, for example; Lambda itself never takes the API away.
                    None => tracing::warn!(%error, "the Lambda runtime API is gone"),
                }
                ExitCode::FAILURE
            }
        }
    })
}

/// Why the runtime can't read the headers of an invocation, if that is what ended it.
fn unreadable_header(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let of_json = error.downcast_ref::<serde_json::Error>().map(explain);
    of_json.or_else(|| error.is::<http::header::ToStrError>().then(|| "not ASCII text".to_owned()))
}

fn remaining(clock: &Clock, context: &Context) -> Duration {
    let now = clock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_millis(context.deadline).saturating_sub(now)
}
