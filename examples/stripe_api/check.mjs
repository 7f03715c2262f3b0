// stripe-node against the API: node check.mjs PORT
import assert from 'node:assert/strict';
import { Agent } from 'node:http';
import Stripe from 'stripe';

const port = Number(process.argv[2]);
const connect = (options = {}) =>
    new Stripe('sk_test_node', {
        host: '127.0.0.1',
        port,
        protocol: 'http',
        telemetry: false,
        maxNetworkRetries: 5,
        httpAgent: new Agent({ keepAlive: false }),
        ...options,
    });
const stripe = connect();
const {
    StripeAPIError,
    StripeCardError,
    StripeConnectionError,
    StripeIdempotencyError,
    StripeInvalidRequestError,
    StripePermissionError,
} = Stripe.errors;

const ask = async (path) => {
    const response = await fetch(`http://127.0.0.1:${port}${path}`);
    return response.text();
};
const counts = async (order) => JSON.parse(await ask('/orders'))[`node-${order}`] ?? { delivered: 0, executed: 0 };
const until = async (order, executed) => {
    while ((await counts(order)).executed < executed) await new Promise((next) => setTimeout(next, 10));
};
const pay = (order, metadata = {}, options = {}, client = stripe) =>
    client.charges.create(
        { amount: 1200, currency: 'eur', source: 'tok_visa', metadata: { order: `node-${order}`, ...metadata } },
        options,
    );
const once = async (order, charge, delivered) => {
    assert.equal(charge.id, `ch_node-${order}_1`);
    assert.deepEqual(await counts(order), { delivered, executed: 1 });
};
// Expects an error of this class and status, after so many deliveries and executions.
const fails = async (order, promise, kind, statusCode, expected, code) => {
    await assert.rejects(promise, (error) => {
        assert.equal(error.constructor.name, kind.name, error.message);
        assert.equal(error.statusCode, statusCode);
        if (code) assert.equal(error.code, code);
        return true;
    });
    assert.deepEqual(await counts(order), expected);
};

const scenarios = {
    plain: async (order) => once(order, await pay(order), 1),
    unsent: async (order) => once(order, await pay(order, { fault: 'unsent' }), 2),
    lost: async (order) => once(order, await pay(order, { fault: 'lost' }), 2),
    'lost-three-times': async (order) => once(order, await pay(order, { fault: 'lost3' }), 4),
    // stripe-node does not repeat after half a response; the caller does, under the same key.
    cut: async (order) => {
        const options = { idempotencyKey: 'node-cut' };
        await assert.rejects(pay(order, { fault: 'cut' }, options), StripeConnectionError);
        await once(order, await pay(order, { fault: 'cut' }, options), 2);
    },
    'time-out': async (order) => {
        const charge = await pay(order, { ms: 1200 }, {}, connect({ timeout: 300 }));
        assert.equal(charge.id, `ch_node-${order}_1`);
        const { delivered, executed } = await counts(order);
        assert.ok(delivered > 1 && executed === 1, `${delivered} ${executed}`);
    },
    'five-at-once': async (order) => {
        const five = [1, 2, 3, 4, 5].map(() => pay(order, { ms: 800 }, { idempotencyKey: 'node-five' }));
        for (const charge of await Promise.all(five)) assert.equal(charge.id, `ch_node-${order}_1`);
        assert.equal((await counts(order)).executed, 1);
    },
    'other-body': async (order) =>
        fails(order, pay(order, {}, { idempotencyKey: 'node-five' }), StripeIdempotencyError, 400, {
            delivered: 1,
            executed: 0,
        }),
    'long-key': async (order) =>
        fails(order, pay(order, {}, { idempotencyKey: 'x'.repeat(256) }), StripeInvalidRequestError, 400, {
            delivered: 1,
            executed: 0,
        }),
    // It must throw: without `error` in the body, stripe-node returns the refusal as if it were a charge.
    'in-progress': async (order) => {
        const options = { idempotencyKey: 'node-held' };
        const first = pay(order, { do: 'hold' }, options);
        await until(order, 1);
        // With stripe-node's default of 2 retries, it repeats, and ends as well.
        for (const [maxNetworkRetries, delivered] of [[0, 2], [2, 5]]) {
            const repeat = pay(order, { do: 'hold' }, options, connect({ maxNetworkRetries }));
            // stripe-node chooses the class by the status, and 409 has none of its own.
            const expected = { delivered, executed: 1 };
            await fails(order, repeat, StripeAPIError, 409, expected, 'idempotency_key_in_use');
        }
        await ask(`/release/node-${order}`);
        assert.equal((await first).id, `ch_node-${order}_1`);
    },
    'error-500': async (order) =>
        fails(order, pay(order, { do: '500' }), StripeAPIError, 500, { delivered: 1, executed: 1 }),
    'error-500-lost': async (order) =>
        fails(order, pay(order, { do: '500', fault: 'lost' }), StripeAPIError, 500, { delivered: 2, executed: 1 }),
    'error-409': async (order) =>
        fails(order, pay(order, { do: '409' }), StripeAPIError, 409, { delivered: 1, executed: 1 }),
    declined: async (order) =>
        fails(order, pay(order, { do: '402' }), StripeCardError, 402, { delivered: 1, executed: 1 }),
    panic: async (order) =>
        fails(order, pay(order, { do: 'panic' }), StripeAPIError, 500, { delivered: 1, executed: 1 }),
    'panic-lost': async (order) =>
        fails(order, pay(order, { do: 'panic', fault: 'lost' }), StripeAPIError, 409, { delivered: 2, executed: 1 }),
    stranger: async (order) => {
        const stranger = new Stripe('unknown', { host: '127.0.0.1', port, protocol: 'http' });
        const charge = pay(order, {}, {}, stranger);
        await fails(order, charge, StripePermissionError, 403, { delivered: 1, executed: 0 });
    },
};

let failed = 0;
for (const [name, scenario] of Object.entries(scenarios)) {
    try {
        await scenario(name);
        console.log(`node: ${name}: ok`);
    } catch (error) {
        failed += 1;
        console.log(`node: ${name}: FAILED\n${error.stack}`);
    }
}
process.exit(failed ? 1 : 0);
