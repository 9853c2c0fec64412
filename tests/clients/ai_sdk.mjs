// The AI SDK against a server of builtin:tiny, through its three providers of this API.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { ANSWERED, ASKED, check, equal, IN_PARIS, IT_IS, ok, report, URL, WEATHER, WHAT } from "./checks.mjs";

const apiKey = process.env.LLMHOST_KEY ?? "none";
const baseURL = `${URL}/v1`;
const openai = createOpenAI({ baseURL, apiKey });
const compatible = createOpenAICompatible({
  name: "llmhost", baseURL, apiKey, includeUsage: true, supportsStructuredOutputs: true,
});
const providers = {
  compatible: compatible("tiny"),
  chat: openai.chat("tiny"),
  responses: openai.responses("tiny"),
};
const wanted = (process.env.PROVIDERS ?? Object.keys(providers).join()).split(",");
const Person = z.object({ name: z.string().max(9), age: z.number().int().min(0).max(150) });
const get_weather = tool({
  description: WEATHER.description,
  inputSchema: z.object({ city: z.string() }),
  execute: async () => IN_PARIS,
});
const asked = { maxRetries: 0, temperature: 0 };

async function textOf(stream) {
  let text = "";
  for await (const piece of stream.textStream) text += piece;
  return text;
}

for (const [name, model] of Object.entries(providers).filter(([name]) => wanted.includes(name))) {
  check(`${name}: text`, async () => {
    const answer = await generateText({ ...asked, model, prompt: WHAT });
    equal(answer.text, IT_IS);
    equal(answer.finishReason, "stop");
    ok(answer.usage.inputTokens > 0 && answer.usage.outputTokens > 0, "no usage");
  });

  check(`${name}: stream`, async () => {
    const stream = streamText({ ...asked, model, prompt: WHAT, onError: () => {} });
    equal(await textOf(stream), IT_IS);
    equal(await stream.finishReason, "stop");
    ok((await stream.usage).outputTokens > 0, "no usage");
  });

  check(`${name}: tool round trip`, async () => {
    const answer = await generateText({
      ...asked, model, prompt: ASKED, tools: { get_weather }, stopWhen: stepCountIs(3),
    });
    equal(answer.steps[0].toolCalls.map((call) => [call.toolName, call.input]), [["get_weather", { city: "Paris" }]]);
    equal(answer.text, ANSWERED);
  });

  check(`${name}: tool round trip, streamed`, async () => {
    const stream = streamText({
      ...asked, model, prompt: ASKED, tools: { get_weather }, stopWhen: stepCountIs(3), onError: () => {},
    });
    equal(await textOf(stream), ANSWERED);
    equal((await stream.steps).length, 2, "steps");
  });

  check(`${name}: structured object`, async () => {
    const answer = await generateText({
      ...asked, model, prompt: "Who?", output: Output.object({ schema: Person }),
    });
    Person.parse(answer.output);
  });

  check(`${name}: structured object, streamed`, async () => {
    const stream = streamText({
      ...asked, model, prompt: "Who?", output: Output.object({ schema: Person }), onError: () => {},
    });
    let last = null;
    for await (const part of stream.partialOutputStream) last = part;
    Person.parse(last);
  });
}

check("embeddings", async () => {
  for (const model of [compatible.textEmbeddingModel?.("tiny-embed") ?? compatible.embeddingModel("tiny-embed"), openai.embedding("tiny-embed")]) {
    const { embeddings } = await embedMany({ maxRetries: 0, model, values: ["one", "two"] });
    equal(embeddings.length, 2);
    ok(embeddings[0].length > 8, "short vectors");
  }
});

await report();
