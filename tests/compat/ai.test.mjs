import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, embedMany, generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";
import { base, embedding, key, model } from "./support.mjs";

const schema = z.object({ answer: z.string(), score: z.number() });
const compatible = createOpenAICompatible({
  name: "forebay", baseURL: `${base}/v1`, apiKey: key, supportsStructuredOutputs: true,
  includeUsage: true,
});
const openai = createOpenAI({ baseURL: `${base}/v1`, apiKey: key });
const doors = {
  "openai-compatible": compatible(model),
  "openai, chat": openai.chat(model),
  "openai, responses": openai.responses(model),
};

for (const [name, chosen] of Object.entries(doors)) {
  test(`${name}: text`, async () => {
    const got = await generateText({ model: chosen, prompt: "Say something.", maxRetries: 0 });
    assert.ok(got.text);
    assert.equal(got.finishReason, "stop");
    assert.ok(got.usage.outputTokens > 0);
  });

  test(`${name}: stream`, async () => {
    const whole = await generateText({ model: chosen, prompt: "Say something.", maxRetries: 0 });
    const stream = streamText({ model: chosen, prompt: "Say something.", maxRetries: 0 });
    let text = "";
    for await (const delta of stream.textStream) text += delta;
    assert.equal(text, whole.text);
    assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);
  });

  test(`${name}: tools`, async () => {
    let asked;
    const got = await generateText({
      model: chosen,
      prompt: "/tool",
      maxRetries: 0,
      stopWhen: stepCountIs(3),
      tools: {
        get_weather: tool({
          description: "The weather in a city.",
          inputSchema: z.object({ city: z.string() }),
          execute: async (given) => { asked = given; return "Rain."; },
        }),
      },
    });
    assert.deepEqual(asked, { city: "Paris" });
    assert.ok(got.text);
  });

  test(`${name}: object`, async () => {
    const got = await generateObject({ model: chosen, schema, prompt: "x", maxRetries: 0 });
    assert.equal(typeof got.object.answer, "string");
    const stream = streamObject({ model: chosen, schema, prompt: "x", maxRetries: 0 });
    for await (const _ of stream.partialObjectStream);
    assert.deepEqual(await stream.object, got.object);
  });
}

test("embeddings", async () => {
  const got = await embedMany({
    model: compatible.textEmbeddingModel(embedding), values: ["one", "two"], maxRetries: 0,
  });
  assert.equal(got.embeddings.length, 2);
});

test("errors", async () => {
  const stranger = createOpenAICompatible({
    name: "forebay", baseURL: `${base}/v1`, apiKey: "sk-wrong",
  });
  await assert.rejects(
    generateText({ model: stranger(model), prompt: "x", maxRetries: 0 }),
    (error) => APICallError.isInstance(error) && error.statusCode === 401 && !error.isRetryable,
  );
  await assert.rejects(
    generateText({ model: compatible("nope"), prompt: "x", maxRetries: 0 }),
    (error) => APICallError.isInstance(error) && error.statusCode === 404,
  );
});
