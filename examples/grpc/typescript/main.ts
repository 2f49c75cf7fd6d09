// Asks a Forebay gateway over gRPC.
import { fileURLToPath } from "node:url";

import * as grpc from "@grpc/grpc-js";
import * as loader from "@grpc/proto-loader";

import type { ChatCompletionChunk__Output } from "./gen/forebay/v1/ChatCompletionChunk";
import type { ChatCompletionRequest } from "./gen/forebay/v1/ChatCompletionRequest";
import type { ChatCompletionResponse__Output } from "./gen/forebay/v1/ChatCompletionResponse";
import type { ProtoGrpcType } from "./gen/inference";

const PROTOS = fileURLToPath(new URL("../../../protos", import.meta.url));
const TARGET = process.env["FOREBAY_TARGET"] ?? "127.0.0.1:50051";
const MODEL = process.env["FOREBAY_MODEL"] ?? "tiny";

// The gateway says in each refusal whether and when to try again, which grpc-js obeys.
const SERVICE_CONFIG = JSON.stringify({
  methodConfig: [
    {
      name: [{ service: "forebay.v1.InferenceService" }],
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: "0.2s",
        maxBackoff: "5s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
      },
    },
  ],
});

const definition = loader.loadSync("forebay/v1/inference.proto", {
  includeDirs: [PROTOS],
  keepCase: true,
  longs: String,
  enums: String,
  defaults: true,
  oneofs: true,
});
const { forebay } = grpc.loadPackageDefinition(definition) as unknown as ProtoGrpcType;
// For TLS: grpc.credentials.createSsl(readFileSync("ca.pem")).
const client = new forebay.v1.InferenceService(TARGET, grpc.credentials.createInsecure(), {
  "grpc.service_config": SERVICE_CONFIG,
});

function request(model: string, text: string): ChatCompletionRequest {
  return {
    model,
    messages: [{ role: "ROLE_USER", content: text }],
    max_completion_tokens: 32,
  };
}

function metadata(): grpc.Metadata {
  const found = new grpc.Metadata();
  found.set("authorization", `Bearer ${process.env["FOREBAY_API_KEY"] ?? ""}`);
  return found;
}

// The deadline is the time that the whole answer may take.
const options = (): grpc.CallOptions => ({ deadline: Date.now() + 60_000 });

/** Gets an answer in one piece. */
function ask(model: string): Promise<ChatCompletionResponse__Output> {
  return new Promise((resolve, reject) => {
    client.ChatCompletion(request(model, "hi"), metadata(), options(), (error, answer) => {
      if (error || !answer) reject(error ?? new Error("no answer"));
      else resolve(answer);
    });
  });
}

/** Gets an answer token by token. `cancel` on the call stops the engine. */
async function stream(model: string): Promise<void> {
  const call = client.StreamChatCompletion(request(model, "count to five"), metadata(), options());
  process.stdout.write("stream: ");
  for await (const chunk of call as AsyncIterable<ChatCompletionChunk__Output>) {
    for (const choice of chunk.choices) process.stdout.write(choice.delta?.content ?? "");
  }
  process.stdout.write("\n");
}

const answer = await ask(MODEL);
console.log("answer:", answer.choices[0]?.message?.content);
console.log("tokens:", answer.usage?.total_tokens);
await stream(MODEL);
try {
  await ask("no-such-model");
} catch (error) {
  const told = error as grpc.ServiceError;
  console.log("error:", grpc.status[told.code], told.details);
  console.log("  request:", told.metadata.get("x-request-id")[0]);
}
client.close();
