"""stripe-python against the API: python check.py PORT"""

import json
import sys
import threading
import time
import traceback
import urllib.request

import stripe

PORT = int(sys.argv[1])
URL = f"http://127.0.0.1:{PORT}"


def connect(retries=5, timeout=20):
    return stripe.StripeClient(
        "sk_test_python",
        base_addresses={"api": URL},
        max_network_retries=retries,
        http_client=stripe.RequestsClient(timeout=timeout),
    )


CLIENT = connect()
stripe.enable_telemetry = False


def ask(path):
    with urllib.request.urlopen(URL + path) as response:
        return response.read()


def counts(order):
    found = json.loads(ask("/orders")).get(f"python-{order}", {"delivered": 0, "executed": 0})
    return found["delivered"], found["executed"]


def pay(order, metadata=None, key=None, client=CLIENT):
    metadata = {"order": f"python-{order}", **(metadata or {})}
    params = {"amount": 1200, "currency": "eur", "source": "tok_visa", "metadata": metadata}
    return client.v1.charges.create(params, {"idempotency_key": key} if key else {})


def once(order, charge, delivered):
    assert charge.id == f"ch_python-{order}_1", charge.id
    assert counts(order) == (delivered, 1), counts(order)


def fails(order, call, kind, status, expected, code=None):
    """Expects an error of this class and status, after so many deliveries and executions."""
    try:
        found = call()
    except stripe.StripeError as error:
        assert (type(error), error.http_status) == (kind, status), repr(error)
        assert code is None or error.error.code == code, error.error
    else:
        raise AssertionError(f"no error, but {found}")
    assert counts(order) == expected, counts(order)


def cut(order):
    # stripe-python does not repeat after half a response; the caller does, under the same key.
    try:
        pay(order, {"fault": "cut"}, key="python-cut")
    except stripe.APIConnectionError:
        pass
    once(order, pay(order, {"fault": "cut"}, key="python-cut"), 2)


def time_out(order):
    charge = pay(order, {"ms": 1200}, client=connect(timeout=0.3))
    assert charge.id == f"ch_python-{order}_1"
    delivered, executed = counts(order)
    assert delivered > 1 and executed == 1, (delivered, executed)


def five_at_once(order):
    found = []

    def one():
        found.append(pay(order, {"ms": 800}, key="python-five", client=connect()).id)

    threads = [threading.Thread(target=one) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [f"ch_python-{order}_1"] * 5, found
    assert counts(order)[1] == 1, counts(order)


def in_progress(order):
    found = []

    def first():
        found.append(pay(order, {"do": "hold"}, key="python-held", client=connect()).id)

    thread = threading.Thread(target=first)
    thread.start()
    while counts(order)[1] < 1:
        time.sleep(0.01)

    def repeat(retries):
        return lambda: pay(order, {"do": "hold"}, key="python-held", client=connect(retries))

    # stripe-python chooses the class by the status, and 409 has none of its own.
    fails(order, repeat(0), stripe.APIError, 409, (2, 1), "idempotency_key_in_use")
    fails(order, repeat(2), stripe.APIError, 409, (5, 1), "idempotency_key_in_use")
    ask(f"/release/python-{order}")
    thread.join()
    assert found == [f"ch_python-{order}_1"], found


def error(metadata, kind, status, expected, key=None):
    return lambda order: fails(order, lambda: pay(order, metadata, key), kind, status, expected)


def works(delivered, **metadata):
    return lambda order: once(order, pay(order, metadata), delivered)


SCENARIOS = {
    "plain": works(1),
    "unsent": works(2, fault="unsent"),
    "lost": works(2, fault="lost"),
    "lost-three-times": works(4, fault="lost3"),
    "cut": cut,
    "time-out": time_out,
    "five-at-once": five_at_once,
    "other-body": error({}, stripe.IdempotencyError, 400, (1, 0), key="python-five"),
    "long-key": error({}, stripe.InvalidRequestError, 400, (1, 0), key="x" * 256),
    "in-progress": in_progress,
    "error-500": error({"do": "500"}, stripe.APIError, 500, (1, 1)),
    "error-500-lost": error({"do": "500", "fault": "lost"}, stripe.APIError, 500, (2, 1)),
    "error-409": error({"do": "409"}, stripe.APIError, 409, (1, 1)),
    "declined": error({"do": "402"}, stripe.CardError, 402, (1, 1)),
    "panic": error({"do": "panic"}, stripe.APIError, 500, (1, 1)),
    "panic-lost": error({"do": "panic", "fault": "lost"}, stripe.APIError, 409, (2, 1)),
}

failed = 0
for name, scenario in SCENARIOS.items():
    try:
        scenario(name)
        print(f"python: {name}: ok", flush=True)
    except Exception:
        failed += 1
        print(f"python: {name}: FAILED\n{traceback.format_exc()}", flush=True)
sys.exit(1 if failed else 0)
