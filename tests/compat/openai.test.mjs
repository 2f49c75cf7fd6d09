import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { base, embedding, key, model, parameters } from "./support.mjs";

const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: "Say something." }];
const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
const Reply = z.object({ answer: z.string(), score: z.number() });

test("chat", async () => {
  const got = await client.chat.completions.create({ model, messages });
  assert.ok(got.choices[0].message.content);
  assert.ok(got.usage.completion_tokens > 0);
});

test("stream", async () => {
  const whole = await client.chat.completions.create({ model, messages });
  const stream = await client.chat.completions.create({
    model, messages, stream: true, stream_options: { include_usage: true },
  });
  let text = "";
  let usage;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.deepEqual(usage.completion_tokens, whole.usage.completion_tokens);
});

test("stream helper", async () => {
  const stream = client.chat.completions.stream({ model, messages });
  let deltas = "";
  stream.on("content", (delta) => { deltas += delta; });
  assert.equal(await stream.finalContent(), deltas);
});

test("a stream that is left", async () => {
  const stream = await client.chat.completions.create({
    model, messages: [{ role: "user", content: "/words 5000" }], stream: true,
  });
  for await (const _ of stream) break;
  assert.ok(stream.controller.signal.aborted);
});

test("tools", async () => {
  const ask = [{ role: "user", content: "/tool" }];
  const got = await client.chat.completions.create({ model, messages: ask, tools });
  const { message } = got.choices[0];
  assert.equal(message.tool_calls[0].function.name, "get_weather");
  const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "Rain." };
  const last = await client.chat.completions.create({
    model, messages: [...ask, message, result], tools,
  });
  assert.ok(last.choices[0].message.content);
});

test("tools run by the SDK", async () => {
  let asked;
  const runner = client.chat.completions.runTools({
    model,
    messages: [{ role: "user", content: "/tool" }],
    tools: [{
      type: "function",
      function: {
        name: "get_weather",
        parameters,
        parse: JSON.parse,
        function: (given) => { asked = given; return "Rain."; },
      },
    }],
  });
  assert.ok(await runner.finalContent());
  assert.deepEqual(asked, { city: "Paris" });
});

test("structured output", async () => {
  const got = await client.chat.completions.parse({
    model, messages, response_format: zodResponseFormat(Reply, "reply"),
  });
  assert.equal(typeof got.choices[0].message.parsed.answer, "string");
});

test("embeddings", async () => {
  const got = await client.embeddings.create({ model: embedding, input: ["one", "two"] });
  assert.equal(got.data.length, 2);
  assert.equal(typeof got.data[0].embedding[0], "number");
});

test("completions", async () => {
  const got = await client.completions.create({ model, prompt: "Once upon", max_tokens: 5 });
  assert.ok(got.choices[0].text);
});

test("models", async () => {
  const ids = [];
  for await (const one of client.models.list()) ids.push(one.id);
  assert.ok(ids.includes(model));
});

test("responses", async () => {
  const got = await client.responses.create({ model, input: "Say something." });
  assert.ok(got.output_text);
  const next = await client.responses.create({ model, input: "And?", previous_response_id: got.id });
  assert.equal(next.previous_response_id, got.id);
});

test("responses stream", async () => {
  const stream = await client.responses.create({
    model, input: "Say something.", stream: true, store: false,
  });
  const kinds = [];
  let text = "";
  for await (const event of stream) {
    kinds.push(event.type);
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  assert.equal(kinds[0], "response.created");
  assert.equal(kinds.at(-1), "response.completed");
  assert.ok(text);
});

test("responses, structured output", async () => {
  const got = await client.responses.parse({
    model, input: "x", store: false, text: { format: zodTextFormat(Reply, "reply") },
  });
  assert.equal(typeof got.output_parsed.answer, "string");
});

test("errors", async () => {
  const stranger = new OpenAI({ baseURL: `${base}/v1`, apiKey: "sk-wrong", maxRetries: 0 });
  await assert.rejects(
    stranger.chat.completions.create({ model, messages }),
    (error) => error instanceof OpenAI.AuthenticationError && error.code === "invalid_api_key",
  );
  await assert.rejects(
    client.chat.completions.create({ model: "nope", messages }),
    OpenAI.NotFoundError,
  );
  await assert.rejects(
    client.chat.completions.create({ model, messages, max_tokens: -1 }),
    (error) => error instanceof OpenAI.BadRequestError && error.param === "max_tokens",
  );
});
