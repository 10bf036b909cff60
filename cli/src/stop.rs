//! Signals that end the program. They only set a flag, so that received messages are released first.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

#[derive(Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    pub fn listen() -> io::Result<Self> {
        let (sender, receiver) = watch::channel(false);
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hang_up.recv() => {}
                }
                sender.send_replace(true);
            }
        });
        Ok(Self(receiver))
    }

    pub fn requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits for a future; returns `None` if a signal arrives first.
    pub async fn or<T>(&mut self, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            output = future => Some(output),
            // The sender lives as long as the program.
            _ = self.0.wait_for(|requested| *requested) => None,
        }
    }
}
