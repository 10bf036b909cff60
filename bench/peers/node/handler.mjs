// The audience-change mapping as one would write it for Node: webhook or SQS batch in, documented messages out, posted
// over an agent that keeps connections alive. Without parking, retries or options.

import { createHash, createHmac, timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";

const OWN_PARTNER_NUMBER = 42;
const QUERY = "timeout=60&api-version=2014-01";

class Rejection extends Error {}

const connection = Object.fromEntries(
  process.env.EVENT_HUBS_CONNECTION_STRING.split(";").filter(Boolean).map((part) => {
    const end = part.indexOf("=");
    return [part.slice(0, end), part.slice(end + 1)];
  }),
);
const hubUrl = `${connection.Endpoint.replace(/\/$/, "")}/${connection.EntityPath}`;
const senders = JSON.parse(process.env.SENDER_AUTH).map((sender) => Buffer.from(sender.secret));
const partitions = BigInt(process.env.PARTITIONING.replace("partitions:", ""));
const tls = hubUrl.startsWith("https:");
const client = tls ? https : http;
const agent = new client.Agent({
  keepAlive: true,
  ...(tls && { ca: readFileSync(process.env.EXTRA_CA_CERTS) }),
});

// Encodes everything except RFC 3986's unreserved characters, as the service requires.
const encode = (text) =>
  encodeURIComponent(text).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);

let cached = { text: "", expiry: 0 };

function token() {
  const now = Math.floor(Date.now() / 1000);
  if (cached.expiry - now < 300) {
    const expiry = now + 3600;
    const resource = encode(hubUrl);
    const signature = createHmac("sha256", connection.SharedAccessKey).update(`${resource}\n${expiry}`).digest("base64");
    const name = encode(connection.SharedAccessKeyName);
    cached = {
      text: `SharedAccessSignature sr=${resource}&sig=${encode(signature)}&se=${expiry}&skn=${name}`,
      expiry,
    };
  }
  return cached.text;
}

function isEmpty(value) {
  return value === undefined || value === null || value === "" ||
    (typeof value === "object" && Object.keys(value).length === 0);
}

function text(event, name) {
  const value = event[name];
  if (isEmpty(value)) return undefined;
  if (typeof value !== "string") throw new Rejection(`${name}: expected text`);
  return value;
}

function integer(event, name) {
  const value = event[name];
  if (isEmpty(value)) return undefined;
  const number = typeof value === "string" && /^-?\d+$/.test(value) ? Number(value) : value;
  if (!Number.isSafeInteger(number)) throw new Rejection(`${name}: expected an integer`);
  return number;
}

function members(event, name) {
  const value = event[name];
  if (isEmpty(value)) return {};
  if (typeof value !== "object" || Array.isArray(value)) throw new Rejection(`${name}: expected an object`);
  return value;
}

function required(event, name, read) {
  const value = read(event, name);
  if (value === undefined) throw new Rejection(`${name}: missing or empty`);
  return value;
}

function idsOf(event, partner) {
  if (partner === OWN_PARTNER_NUMBER) return [];
  let ids = event.partnerIds ?? [];
  if (!Array.isArray(ids)) ids = [ids[partner] ?? []].flat();
  return ids.filter((id) => id !== null && id !== "").map(String);
}

// The messages of one event.
function mapEvent(event) {
  if (typeof event !== "object" || event === null || Array.isArray(event)) throw new Rejection("expected a JSON object");
  const profile = required(event, "profileId", text);
  const source = required(event, "sourceId", text);
  const callType = required(event, "callType", text);
  if (!["NEW", "MODIFIED", "REMOVED"].includes(callType)) throw new Rejection("callType: expected NEW, MODIFIED or REMOVED");
  const timestamp = required(event, "timestamp", integer);
  const site = required(event, "siteNumber", integer);
  const partner = required(event, "partnerNumber", integer);
  const sourceNumber = integer(event, "sourceNumber") || null;
  const sourceName = text(event, "sourceName") ?? "";
  const profileVars = members(event, "profileVars");
  const data = members(event, "data");
  const origin = sourceNumber === null ? "journey" : "audience";
  return idsOf(event, partner).map((partnerId) => ({
    subject: profile,
    properties: {
      "cloudEvents:specversion": "1.0",
      "cloudEvents:id": createHash("sha256")
        .update([site, source, profile, partner, partnerId, callType, timestamp].join("\x1f"))
        .digest("hex"),
      "cloudEvents:type": `com.supermetrics.dataactivation.${origin}.${callType.toLowerCase()}`,
      "cloudEvents:source": `/audience-change/${site}/${encode(source)}`,
      "cloudEvents:subject": profile,
      "cloudEvents:time": new Date(timestamp).toISOString(),
    },
    body: JSON.stringify({
      profileId: profile,
      sourceId: source,
      partnerNumber: partner,
      callType,
      partnerIds: [partnerId],
      profileVars,
      timestamp,
      siteNumber: site,
      sourceName,
      sourceNumber,
      data,
    }),
  }));
}

function post(partition, elements) {
  const body = Buffer.from(JSON.stringify(elements));
  return new Promise((resolve, reject) => {
    const request = client.request(
      `${hubUrl}/partitions/${partition}/messages?${QUERY}`,
      {
        agent,
        method: "POST",
        headers: {
          authorization: token(),
          "content-type": "application/vnd.microsoft.servicebus.json",
          "content-length": body.length,
          "x-ms-retrypolicy": "NoRetry",
        },
        timeout: 15_000,
      },
      (response) => {
        response.resume();
        response.on("end", () =>
          response.statusCode === 201 ? resolve() : reject(new Error(`answered ${response.statusCode}`)));
      },
    );
    request.on("timeout", () => request.destroy(new Error("no answer in time")));
    request.on("error", reject);
    request.end(body);
  });
}

// Sends one request per partition, concurrently.
async function send(messages) {
  const groups = new Map();
  for (const { subject, properties, body } of messages) {
    const partition = createHash("sha256").update(subject).digest().readBigUInt64BE(0) % partitions;
    const elements = groups.get(partition) ?? [];
    elements.push({ Body: body, UserProperties: properties });
    groups.set(partition, elements);
  }
  await Promise.all([...groups].map(([partition, elements]) => post(partition, elements)));
}

function log(fields) {
  process.stdout.write(`${JSON.stringify({ level: "INFO", ...fields })}\n`);
}

function answer(statusCode, body) {
  return {
    statusCode,
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    isBase64Encoded: false,
  };
}

async function webhook(event, requestId) {
  const sent = Buffer.from((event.headers.authorization ?? "").replace(/^Bearer /, ""));
  if (!senders.some((secret) => secret.length === sent.length && timingSafeEqual(secret, sent))) {
    return answer(401, { status: 401 });
  }
  const body = event.isBase64Encoded ? Buffer.from(event.body, "base64").toString() : event.body ?? "";
  let messages;
  try {
    messages = [JSON.parse(body)].flat().flatMap(mapEvent);
  } catch (problem) {
    return answer(400, { status: 400, detail: problem.message });
  }
  await send(messages);
  log({ message: "webhook answered", requestId, status: 200, delivered: messages.length });
  return answer(200, { status: "delivered", messages: messages.length });
}

async function queue(event, requestId) {
  const messages = [];
  const batchItemFailures = [];
  for (const record of event.Records) {
    try {
      messages.push(...mapEvent(JSON.parse(record.body)));
    } catch {
      batchItemFailures.push({ itemIdentifier: record.messageId });
    }
  }
  await send(messages);
  log({ message: "batch answered", requestId, delivered: messages.length, failed: batchItemFailures.length });
  return { batchItemFailures };
}

export const handle = (event, context) =>
  event.requestContext ? webhook(event, context.awsRequestId) : queue(event, context.awsRequestId);
