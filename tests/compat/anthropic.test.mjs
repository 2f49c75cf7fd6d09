import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";
import { base, key, model, parameters } from "./support.mjs";

const client = new Anthropic({ baseURL: base, apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: "Say something." }];
const tools = [{ name: "get_weather", input_schema: parameters }];
const text = (message) =>
  message.content.filter((block) => block.type === "text").map((block) => block.text).join("");

test("message", async () => {
  const got = await client.messages.create({ model, max_tokens: 50, messages });
  assert.ok(text(got));
  assert.equal(got.stop_reason, "end_turn");
  assert.ok(got.usage.output_tokens > 0);
});

test("stream", async () => {
  const whole = await client.messages.create({ model, max_tokens: 50, messages });
  const stream = client.messages.stream({ model, max_tokens: 50, messages });
  let deltas = "";
  stream.on("text", (delta) => { deltas += delta; });
  const final = await stream.finalMessage();
  assert.equal(deltas, text(whole));
  assert.equal(text(final), deltas);
  assert.deepEqual(final.usage.output_tokens, whole.usage.output_tokens);
});

test("tools", async () => {
  const ask = [{ role: "user", content: "/tool" }];
  const got = await client.messages.create({ model, max_tokens: 90, messages: ask, tools });
  const call = got.content.find((block) => block.type === "tool_use");
  assert.deepEqual(call.input, { city: "Paris" });
  const result = { type: "tool_result", tool_use_id: call.id, content: "Rain." };
  const last = await client.messages.create({
    model,
    max_tokens: 50,
    tools,
    messages: [
      ...ask,
      { role: "assistant", content: got.content },
      { role: "user", content: [result] },
    ],
  });
  assert.ok(text(last));
});

test("tools in a stream", async () => {
  const final = await client.messages
    .stream({ model, max_tokens: 90, messages: [{ role: "user", content: "/tool" }], tools })
    .finalMessage();
  assert.deepEqual(final.content.find((block) => block.type === "tool_use").input, {
    city: "Paris",
  });
});

test("thinking", async () => {
  const got = await client.messages.create({
    model,
    max_tokens: 2000,
    messages: [{ role: "user", content: "/think" }],
    thinking: { type: "enabled", budget_tokens: 1024 },
  });
  assert.deepEqual(got.content.map((block) => block.type), ["thinking", "text"]);
});

test("count tokens", async () => {
  const got = await client.messages.countTokens({ model, messages });
  assert.ok(got.input_tokens > 0);
});

test("errors", async () => {
  const stranger = new Anthropic({ baseURL: base, apiKey: "sk-wrong", maxRetries: 0 });
  await assert.rejects(
    stranger.messages.create({ model, max_tokens: 5, messages }),
    Anthropic.AuthenticationError,
  );
  await assert.rejects(
    client.messages.create({ model: "nope", max_tokens: 5, messages }),
    Anthropic.NotFoundError,
  );
  await assert.rejects(
    client.messages.create({ model, max_tokens: -1, messages }),
    Anthropic.BadRequestError,
  );
});
