"""The audience-change mapping as one would write it in Python: webhook or SQS batch in, documented messages out, posted
over a session that is kept alive. Without parking, retries or options."""

import base64
import collections
import hashlib
import hmac
import json
import os
import sys
import time
import urllib.parse
from datetime import datetime, timezone

import requests

OWN_PARTNER_NUMBER = 42
QUERY = "timeout=60&api-version=2014-01"


class Rejection(Exception):
    pass


CONNECTION = dict(
    part.split("=", 1) for part in os.environ["EVENT_HUBS_CONNECTION_STRING"].split(";") if part.strip()
)
HUB_URL = CONNECTION["Endpoint"].rstrip("/") + "/" + CONNECTION["EntityPath"]
SENDERS = [sender["secret"].encode() for sender in json.loads(os.environ["SENDER_AUTH"])]
PARTITIONS = int(os.environ["PARTITIONING"].removeprefix("partitions:"))

SESSION = requests.Session()
SESSION.verify = os.environ["EXTRA_CA_CERTS"]
# Otherwise requests looks for proxies and netrc in the environment at each request.
SESSION.trust_env = False
_token = ("", 0)


def token():
    global _token
    text, expiry = _token
    now = int(time.time())
    if expiry - now < 300:
        expiry = now + 3600
        resource = urllib.parse.quote(HUB_URL, safe="")
        signed = hmac.digest(CONNECTION["SharedAccessKey"].encode(), f"{resource}\n{expiry}".encode(), "sha256")
        signature = urllib.parse.quote(base64.b64encode(signed), safe="")
        name = urllib.parse.quote(CONNECTION["SharedAccessKeyName"], safe="")
        text = f"SharedAccessSignature sr={resource}&sig={signature}&se={expiry}&skn={name}"
        _token = (text, expiry)
    return text


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def text(event, name):
    value = event.get(name)
    if value in (None, "", {}, []):
        return None
    if not isinstance(value, str):
        raise Rejection(f"{name}: expected text")
    return value


def integer(event, name):
    value = event.get(name)
    if value in (None, "", {}, []):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise Rejection(f"{name}: expected an integer")
    try:
        return int(value)
    except ValueError:
        raise Rejection(f"{name}: expected an integer") from None


def members(event, name):
    value = event.get(name) or {}
    if not isinstance(value, dict):
        raise Rejection(f"{name}: expected an object")
    return value


def required(event, name, read):
    value = read(event, name)
    if value is None:
        raise Rejection(f"{name}: missing or empty")
    return value


def ids_of(event, partner_number):
    ids = event.get("partnerIds") or []
    if partner_number == OWN_PARTNER_NUMBER:
        return []
    if isinstance(ids, dict):
        ids = ids.get(str(partner_number)) or []
        ids = ids if isinstance(ids, list) else [ids]
    return [str(one) for one in ids if one not in (None, "")]


def map_event(event):
    """The messages of one event: (subject, properties, body)."""
    if not isinstance(event, dict):
        raise Rejection("expected a JSON object")
    profile = required(event, "profileId", text)
    source = required(event, "sourceId", text)
    call_type = required(event, "callType", text)
    if call_type not in ("NEW", "MODIFIED", "REMOVED"):
        raise Rejection("callType: expected NEW, MODIFIED or REMOVED")
    timestamp = required(event, "timestamp", integer)
    site = required(event, "siteNumber", integer)
    partner = required(event, "partnerNumber", integer)
    source_number = integer(event, "sourceNumber") or None
    source_name = text(event, "sourceName") or ""
    profile_vars = members(event, "profileVars")
    data = members(event, "data")
    origin = "journey" if source_number is None else "audience"
    when = datetime.fromtimestamp(timestamp / 1000, timezone.utc)
    for partner_id in ids_of(event, partner):
        fields = (str(site), source, profile, str(partner), partner_id, call_type, str(timestamp))
        body = {
            "profileId": profile,
            "sourceId": source,
            "partnerNumber": partner,
            "callType": call_type,
            "partnerIds": [partner_id],
            "profileVars": profile_vars,
            "timestamp": timestamp,
            "siteNumber": site,
            "sourceName": source_name,
            "sourceNumber": source_number,
            "data": data,
        }
        properties = {
            "cloudEvents:specversion": "1.0",
            "cloudEvents:id": hashlib.sha256("\x1f".join(fields).encode()).hexdigest(),
            "cloudEvents:type": f"com.supermetrics.dataactivation.{origin}.{call_type.lower()}",
            "cloudEvents:source": f"/audience-change/{site}/{urllib.parse.quote(source, safe='')}",
            "cloudEvents:subject": profile,
            "cloudEvents:time": when.strftime("%Y-%m-%dT%H:%M:%S.") + f"{timestamp % 1000:03d}Z",
        }
        yield profile, properties, compact(body)


def send(messages):
    """One request per partition, one after another."""
    groups = collections.defaultdict(list)
    for subject, properties, body in messages:
        partition = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8]) % PARTITIONS
        groups[partition].append({"Body": body, "UserProperties": properties})
    for partition, elements in groups.items():
        response = SESSION.post(
            f"{HUB_URL}/partitions/{partition}/messages?{QUERY}",
            data=compact(elements).encode(),
            headers={
                "Authorization": token(),
                "Content-Type": "application/vnd.microsoft.servicebus.json",
                "x-ms-retrypolicy": "NoRetry",
            },
            timeout=15,
        )
        if response.status_code != 201:
            raise RuntimeError(f"answered {response.status_code}")


def log(**fields):
    sys.stdout.write(compact({"level": "INFO", **fields}) + "\n")
    sys.stdout.flush()


def answer(status, body):
    return {
        "statusCode": status,
        "headers": {"content-type": "application/json"},
        "body": compact(body),
        "isBase64Encoded": False,
    }


def webhook(event, request_id):
    sent = event["headers"].get("authorization", "").removeprefix("Bearer ").encode()
    if not any([hmac.compare_digest(sent, secret) for secret in SENDERS]):
        return answer(401, {"status": 401})
    body = event.get("body", "")
    if event.get("isBase64Encoded"):
        body = base64.b64decode(body)
    try:
        parsed = json.loads(body)
        messages = [message for one in (parsed if isinstance(parsed, list) else [parsed]) for message in map_event(one)]
    except (ValueError, Rejection) as problem:
        return answer(400, {"status": 400, "detail": str(problem)})
    send(messages)
    log(message="webhook answered", request_id=request_id, status=200, delivered=len(messages))
    return answer(200, {"status": "delivered", "messages": len(messages)})


def queue(event, request_id):
    messages, failed = [], []
    for record in event["Records"]:
        try:
            messages.extend(map_event(json.loads(record["body"])))
        except (ValueError, Rejection):
            failed.append({"itemIdentifier": record["messageId"]})
    send(messages)
    log(message="batch answered", request_id=request_id, delivered=len(messages), failed=len(failed))
    return {"batchItemFailures": failed}


def handle(event, context):
    if "requestContext" in event:
        return webhook(event, context.aws_request_id)
    return queue(event, context.aws_request_id)
