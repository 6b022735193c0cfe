// Each scenario drives the official client as an application would and returns what the application saw.
// Judging it is left to tests/test_sdk_js.py.
import { inference } from "@inferencesh/sdk";

const APP = "alibaba/wan-2-7-i2v";
const RUNNING = 7;

/** Everything but the media, at the cheapest settings that are valid. */
const input = (options, more = {}) => ({
  prompt: "hills at dawn, slow pan",
  resolution: "720P",
  duration: 2,
  prompt_extend: false,
  seed: 7,
  first_frame: options.first_frame,
  ...more,
});

const connect = (options, more = {}) => inference({ apiKey: "any", baseUrl: options.base_url, ...more });

/** The error a promise is rejected with, or null. */
const refusal = (promise) =>
  promise.then(
    () => null,
    (error) => ({ name: error.name, message: error.message, status: error.statusCode ?? null }),
  );

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const blob = (options) => new Blob([Buffer.from(options.png_base64, "base64")], { type: "image/png" });

async function until(check, what, tries = 300) {
  for (let n = 0; n < tries; n++) {
    const value = await check();
    if (value) return value;
    await pause(100);
  }
  throw new Error(`waited in vain for ${what}`);
}

async function run(options) {
  const updates = [];
  const partials = [];
  const task = await connect(options).run(
    { app: APP, input: input(options) },
    {
      onUpdate: (update) => updates.push({ status: update.status, progress: update.progress ?? null }),
      onPartialUpdate: (update, fields) =>
        partials.push({ status: update.status, progress: update.progress ?? null, fields }),
    },
  );
  return { task, updates, partials };
}

async function poll(options) {
  const statuses = [];
  const client = connect(options, { stream: false, pollIntervalMs: 100 });
  const task = await client.run(
    { app: APP, input: input(options) },
    { onUpdate: (update) => statuses.push(update.status) },
  );
  return { task, statuses };
}

async function cancelQueued(options) {
  const client = connect(options);
  const later = new Date(Date.now() + 3600e3).toISOString();
  const created = await client.run({ app: APP, input: input(options), run_at: later }, { wait: false });
  const before = (await client.getTask(created.id)).data;
  await client.cancel(created.id);
  const after = await until(async () => {
    const task = (await client.getTask(created.id)).data;
    return task.status >= 10 && task;
  }, "the end of a cancelled task");
  const again = await refusal(client.cancel(created.id));
  return { created, before, after, again };
}

async function cancelRunning(options) {
  const client = connect(options);
  const created = await client.run({ app: APP, input: input(options, { duration: 5 }) }, { wait: false });
  const watch = client.tasks.watch(created, {
    onPartialUpdate: (update) => update.status === RUNNING && client.cancel(created.id).catch(() => {}),
    onUpdate: (update) => update.status === RUNNING && client.cancel(created.id).catch(() => {}),
  });
  const error = await refusal(watch.done);
  return { error, after: (await client.getTask(created.id)).data };
}

async function upload(options) {
  const client = connect(options);
  const fromBlob = await client.uploadFile(blob(options), { filename: "frame.png" });
  const fromUri = await client.uploadFile(`data:image/png;base64,${options.png_base64}`);
  const bytes = async (file) => Buffer.from(await (await fetch(file.uri)).arrayBuffer()).toString("base64");
  const record = (await client.files.get(fromBlob.id)).data;
  return { fromBlob, fromUri, record, blobBytes: await bytes(fromBlob), uriBytes: await bytes(fromUri) };
}

async function uploadInInput(options) {
  const client = connect(options);
  const task = await client.run({ app: APP, input: input(options, { first_frame: blob(options) }) });
  return { task };
}

async function failed(options) {
  const client = connect(options);
  const broken = input(options, { first_frame: options.broken_url });
  return { error: await refusal(client.run({ app: APP, input: broken })) };
}

async function refused(options) {
  const client = connect(options);
  return { error: await refusal(client.run({ app: APP, input: input(options, { duration: 20 }) })) };
}

async function webhook(options) {
  const task = await connect(options).run({ app: APP, input: input(options), webhook: options.webhook });
  return { task };
}

async function eventSource(options) {
  const client = connect(options);
  const created = await client.run({ app: APP, input: input(options) }, { wait: false });
  const source = await client.streamTask(created.id);
  const lines = [];
  const last = await new Promise((resolve, reject) => {
    source.onerror = (event) => reject(new Error(`event stream: ${event.message}`));
    source.onmessage = (event) => {
      const line = JSON.parse(event.data);
      lines.push(Object.keys(line));
      if (line.status >= 10) resolve(line);
    };
  });
  source.close();
  return { created, lines, last };
}

async function getApp(options) {
  return { app: (await connect(options).apps.getByName(APP)).data };
}

async function listTasks(options) {
  const client = connect(options);
  const later = new Date(Date.now() + 3600e3).toISOString();
  const ids = [];
  for (const seed of [1, 2, 3]) {
    const task = await client.run({ app: APP, input: input(options, { seed }), run_at: later }, { wait: false });
    ids.push(task.id);
  }
  const pages = [];
  for (let cursor; pages.length < 50; cursor = pages.at(-1).next_cursor) {
    pages.push((await client.tasks.list({ limit: 2, cursor })).data);
    if (!pages.at(-1).has_next) break;
  }
  for (const id of ids) await client.cancel(id);
  return { ids, pages };
}

export const scenarios = {
  run,
  poll,
  cancelQueued,
  cancelRunning,
  upload,
  uploadInInput,
  failed,
  refused,
  webhook,
  eventSource,
  getApp,
  listTasks,
};
