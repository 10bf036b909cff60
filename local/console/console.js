// The console of `make run`. Everything from a hub or a sender is set as text, never as markup.

const MOST_EVENTS = 500;
// More rows would delay a frame.
const MOST_PER_FRAME = 40;
const SPEAK_MS = 2000;

const by = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// Changes only what differs, so that a reader's place and selection remain.
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Under load, several updates arrive per frame; each frame draws once.
let run;
let state;
let waiting = [];
let drawing = false;

const source = new EventSource("/console/events");
source.onopen = () => connection(true);
source.onerror = () => connection(false);
source.onmessage = (message) => {
  const update = JSON.parse(message.data);
  if (run !== undefined && run !== update.run) reset();
  run = update.run;
  state = update.state;
  if (update.about) about(update.about);
  waiting.push(...update.events);
  waiting = waiting.slice(-MOST_EVENTS);
  drawSoon();
};

function drawSoon() {
  if (drawing) return;
  drawing = true;
  // The browser draws no frames for a hidden tab.
  if (document.hidden) setTimeout(draw);
  else requestAnimationFrame(draw);
}

function connection(live) {
  by("connection").classList.toggle("live", live);
  setText(by("connection"), live ? "live" : "no connection: check that `make run` is running");
}

function draw() {
  drawing = false;
  if (!state) return;
  drawCounts();
  drawSwitches();
  drawHubs();
  drawRows("parked-rows", state.parked, "no parked messages", (row) => [
    time(row.since), row.kind, id(row.flow), row.hub, count(row.messages), row.reason, count(row.attempts),
  ]);
  drawRows("rejected-rows", state.rejected, "no rejected events", (row) => [
    time(row.time), row.kind, id(row.flow), row.by, row.reason, element("td", row.detail, "detail"),
  ]);
  drawRows("flow-rows", state.flows, "none", (row) => [
    row.kind, id(row.flow), row.hub, row.state,
    ...["webhooks", "records", "accepted", "filtered", "rejected", "refused"].map((name) => count(row.counts[name])),
  ]);
  if (!held()) drawEvents();
  drawShown();
}

// Counts

let spoken = 0;
let speaking;

function drawCounts() {
  const { accepted, inHub, repeated, parked, rejected, lost } = state.counts;
  const show = (name, value, className) => {
    setText(by(name), number.format(value));
    by(name).className = className;
  };
  show("accepted", accepted, "");
  show("in-hub", inHub, "");
  show("parked", parked, parked ? "waiting" : "");
  show("rejected", rejected, "");
  show("lost", lost, lost ? "bad" : "good");
  setText(by("in-hub-note"), repeated ? `by distinct id; ${number.format(repeated)} duplicates` : "by distinct id");
  const queues = state.queues;
  setText(by("parked-note"), queues?.deadLetters ? `${queues.deadLetters} dead letters` : "waiting for their hub");
  setText(by("rejected-note"), queues ? `events; ${number.format(queues.rejected)} in the rejected queue` : "events");
  const sentence = `${accepted} accepted, ${inHub} in the hubs, ${parked} parked, ${rejected} rejected, ${lost} lost`;
  if (by("spoken").textContent === sentence) return;
  clearTimeout(speaking);
  const speak = () => {
    spoken = Date.now();
    setText(by("spoken"), sentence);
  };
  speaking = setTimeout(speak, Math.max(0, spoken + SPEAK_MS - Date.now()));
}

// Tables

const count = (value) => element("td", number.format(value), "number");
const time = (value) => {
  const made = element("td", clock(value));
  made.title = value;
  return made;
};
const id = (value) => {
  const made = element("td", value.length > 13 ? `${value.slice(0, 8)}…` : value, value.length > 13 ? "id" : "");
  made.title = value;
  return made;
};

function clock(value) {
  const date = new Date(value);
  if (Number.isNaN(date.getTime())) return value;
  const two = (part) => String(part).padStart(2, "0");
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

const drawn = {};

function drawRows(name, rows, nothing, cells) {
  const key = JSON.stringify(rows);
  if (drawn[name] === key) return;
  drawn[name] = key;
  const made = rows.map((row) => {
    const line = element("tr");
    line.append(...cells(row).map((cell) => (cell instanceof Node ? cell : element("td", cell))));
    return line;
  });
  if (made.length === 0) {
    const line = element("tr");
    const cell = element("td", nothing, "empty");
    cell.colSpan = 10;
    line.append(cell);
    made.push(line);
  }
  by(name).replaceChildren(...made);
}

// Hubs, and the filter of the list

let filter = {};
const cells = new Map();

function drawHubs() {
  for (const hub of state.hubs) {
    const total = hub.partitions.reduce((sum, events) => sum + events, 0);
    if (!cells.has(hub.name)) {
      const row = element("div");
      row.append(cell(hub.name, hub.name), ...hub.partitions.map((_, partition) => cell(hub.name, String(partition), partition)));
      by("hubs").append(row);
    }
    const set = (key, events) => setText(cells.get(key).lastChild, number.format(events));
    set(hub.name, total);
    hub.partitions.forEach((events, partition) => set(`${hub.name}/${partition}`, events));
  }
}

function cell(hub, label, partition) {
  const button = element("button");
  button.type = "button";
  button.ariaPressed = "false";
  button.title = partition === undefined ? `only ${hub}` : `only partition ${partition} of ${hub}`;
  button.append(element("i", partition === undefined ? label : `p${label}`), element("span", "0"));
  button.addEventListener("click", () => choose({ hub, partition }));
  cells.set(partition === undefined ? hub : `${hub}/${partition}`, button);
  return button;
}

function choose(wanted) {
  const same = filter.hub === wanted.hub && filter.partition === wanted.partition;
  filter = same ? {} : wanted;
  const chosen = filter.partition === undefined ? filter.hub : `${filter.hub}/${filter.partition}`;
  for (const [key, button] of cells) button.ariaPressed = String(key === chosen);
  for (const row of by("events").children) row.hidden = !fits(row.event);
  drawShown();
}

const fits = (event) =>
  (filter.hub === undefined || filter.hub === event.hub) &&
  (filter.partition === undefined || filter.partition === event.partition);

// Events

const held = () => by("hold").ariaPressed === "true";

by("hold").addEventListener("click", () => {
  by("hold").ariaPressed = String(!held());
  drawSoon();
});

function drawEvents() {
  const list = by("events");
  const isBurst = waiting.length > MOST_PER_FRAME || list.childElementCount === 0;
  const made = waiting.splice(0, MOST_PER_FRAME).map((event) => eventRow(event, !isBurst));
  list.prepend(...made.reverse());
  while (list.childElementCount > MOST_EVENTS) list.lastElementChild.remove();
  if (waiting.length > 0) drawSoon();
}

function drawShown() {
  const rows = by("events").children;
  const visible = filter.hub === undefined ? rows.length : Array.from(rows).filter((row) => !row.hidden).length;
  let text = rows.length === 0 ? "no events yet: send some" : `the newest ${visible}`;
  if (filter.hub !== undefined) text += ` of ${filter.hub}${filter.partition === undefined ? "" : `, partition ${filter.partition}`}`;
  if (held()) text += `; ${waiting.length} more are not shown yet`;
  setText(by("shown"), text);
}

function eventRow(event, isNew) {
  const row = element("li", undefined, isNew ? "new" : "");
  row.event = event;
  row.hidden = !fits(event);
  const details = element("details");
  const summary = element("summary");
  const text = (name) => String(event.properties[name] ?? "");
  const type = text("cloudEvents:type");
  summary.append(
    element("span", clock(event.enqueuedTime)),
    element("span", `${event.hub} / ${event.partition} #${event.sequenceNumber}`),
    element("span", type),
    element("span", text("cloudEvents:subject"), "id"),
  );
  details.append(summary);
  // Most rows are never opened, so their contents are created on demand.
  details.addEventListener("toggle", () => details.append(...inside(event)), { once: true });
  row.append(details);
  return row;
}

function inside(event) {
  const list = element("dl");
  const add = (name, value) => list.append(element("dt", name), element("dd", value));
  add("partition key", event.partitionKey ?? "none");
  add("enqueued", event.enqueuedTime);
  for (const [name, value] of Object.entries(event.properties)) add(name, typeof value === "string" ? value : JSON.stringify(value));
  const isWhole = new TextEncoder().encode(event.body).length >= event.bodyBytes;
  add("body", `${number.format(event.bodyBytes)} bytes${isWhole ? "" : ", its first part"}`);
  return [list, element("pre", indented(event.body))];
}

// Breaks lines between the tokens and changes none of them: a number too large for JavaScript is shown as it was sent.
function indented(text) {
  try {
    JSON.parse(text);
  } catch {
    return text;
  }
  let depth = 0;
  const line = () => `\n${"  ".repeat(depth)}`;
  return text.replace(/"(?:[^"\\]|\\.)*"|[{[]\s*[}\]]|[{[]|[}\]]|,|:|\s+/g, (token) => {
    if (token === "{" || token === "[") {
      depth += 1;
      return token + line();
    }
    if (token === "}" || token === "]") {
      depth -= 1;
      return line() + token;
    }
    if (token === ",") return token + line();
    if (token === ":") return ": ";
    return token.trim();
  });
}

function reset() {
  by("events").replaceChildren();
  by("hubs").replaceChildren();
  cells.clear();
  waiting = [];
  filter = {};
}

// Buttons and switches

async function act(command) {
  const response = await fetch("/console/actions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(command),
  });
  const result = await response.json();
  if (!response.ok) throw new Error(result.error);
  return result.done;
}

async function perform(command) {
  try {
    setText(by("done"), await act(command));
  } catch (error) {
    setText(by("done"), `failed: ${error.message}`);
    if (state) drawSwitches();
  }
}

function about({ kinds, hasQueues, commands }) {
  by("senders").replaceChildren(...kinds.map((kind) => {
    const row = element("div");
    const button = (label, by_, event) => {
      const made = element("button", label);
      made.type = "button";
      made.ariaLabel = `${kind.name}: ${label}`;
      made.addEventListener("click", async () => {
        const count = Math.min(100, Math.max(1, Math.trunc(Number(by("count").value)) || 1));
        setText(by("done"), "sending …");
        await perform({ action: "send", kind: kind.name, by: by_, event, count });
      });
      return made;
    };
    row.append(element("span", kind.name), button("Webhook", "webhook", "good"));
    if (hasQueues) row.append(button("Queue", "queue", "good"));
    row.append(button("Invalid event", "webhook", "bad"));
    return row;
  }));
  by("write-key").hidden = !hasQueues;
  by("endpoints").replaceChildren(...kinds.map((kind) => {
    const row = element("tr");
    const code = (text) => {
      const made = element("td");
      made.append(element("code", text));
      return made;
    };
    const hub = element("td");
    const link = element("a", kind.hub);
    link.href = kind.held;
    hub.append(link);
    row.append(element("td", kind.name), code(`POST ${kind.webhook}`), code(kind.queue ?? "none"), hub);
    return row;
  }));
  by("commands").textContent = commands;
}

function drawSwitches() {
  for (const input of document.querySelectorAll("[data-fault]")) {
    if (!input.disabled) input.checked = state.switches[input.dataset.fault];
  }
  by("write-key").disabled = !state.switches.key;
  const others = state.otherFaults;
  by("other-faults").hidden = others === 0;
  setText(by("other-faults"), `${others} more set with the emulator's API`);
}

for (const input of document.querySelectorAll("[data-fault]")) {
  input.addEventListener("change", () => perform({ action: "switch", fault: input.dataset.fault, on: input.checked }));
}
by("write-key").addEventListener("click", () => perform({ action: "writeKey" }));
