//! Functions that are shell scripts.

use tokio::process::Command;

use super::*;
use crate::random;

/// A runtime in a shell. `handle` runs with the event in `$event` and calls `answer`.
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
    // A file that was just written can't always be executed while other threads fork, so bash reads it instead.
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
async fn invocations_run_concurrently_up_to_the_limit() {
    let function = function("slow", r#"sleep 0.2; answer response "$$""#, 2);
    let invoke = || function.invoke(b"{}".to_vec());
    let responses = tokio::join!(invoke(), invoke(), invoke());
    let mut processes = [responses.0.unwrap(), responses.1.unwrap(), responses.2.unwrap()];
    processes.sort();
    assert_eq!(function.instances(), 2);
    assert!(processes[0] == processes[1] || processes[1] == processes[2]);
}

#[tokio::test]
async fn failures_are_distinguished() {
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
async fn a_frozen_instance_resumes_with_its_next_invocation() {
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
