//! The switches of the page: faults of the emulator, and a changed key.

use serde::{Deserialize, Serialize};

use super::{Shared, lock};
use crate::emulator::{Action, Fault};
use crate::random;

/// A fault that has a switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Switch {
    Outage,
    Throttle,
    Slow,
    Key,
}

impl Switch {
    /// The switches that script a fault, by precedence: a request gets only the first fault.
    pub const SCRIPTED: [Self; 3] = [Self::Outage, Self::Throttle, Self::Slow];

    /// The fault that the switch scripts. `None`: the switch changes the key.
    pub fn fault(self) -> Option<Fault> {
        let action = match self {
            Self::Outage => Action::Reset,
            Self::Throttle => Action::Status {
                status: 503,
                retry_after: None,
                detail: Some(
                    "The request was terminated because the entity is being throttled. Error code : 50002. \
                     Please wait 4 seconds and try again."
                        .to_owned(),
                ),
            },
            // Longer than the time budget of a webhook.
            Self::Slow => Action::Delay { ms: 3_000 },
            Self::Key => return None,
        };
        Some(Fault { hub: None, times: 0, action })
    }
}

impl Shared {
    /// Whether the key of the emulator's policy differs from the one that the functions have.
    pub(super) fn key_is_changed(&self) -> bool {
        self.console.emulator.key(self.console.key.name).as_ref() != Some(&*lock(&self.known_key))
    }

    /// Turns a switch on or off. Returns a text for the page.
    pub(super) fn switch(&self, switch: Switch, on: bool) -> String {
        let emulator = &self.console.emulator;
        match switch.fault() {
            Some(wanted) => emulator.change_faults(|faults| {
                let scripted = Switch::SCRIPTED.into_iter().filter_map(Switch::fault);
                let is_on = |fault: &Fault| if *fault == wanted { on } else { faults.contains(fault) };
                let (on, off): (Vec<Fault>, Vec<Fault>) = scripted.partition(is_on);
                faults.retain(|fault| !on.contains(fault) && !off.contains(fault));
                faults.extend(on);
            }),
            None => {
                let key = if on { random::uuid() } else { lock(&self.known_key).clone() };
                emulator.set_key(self.console.key.name, &key);
            }
        }
        let (name, state) = (serde_json::to_value(switch).unwrap_or_default(), if on { "on" } else { "off" });
        format!("{} is {state}", name.as_str().unwrap_or_default())
    }
}
