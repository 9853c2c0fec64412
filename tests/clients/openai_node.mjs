// openai-node against a server of builtin:tiny: text, streams, tool round trips, structured objects, and the rest.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { ANSWERED, ASKED, check, equal, IN_PARIS, IT_IS, ok, report, URL, WEATHER, WHAT } from "./checks.mjs";

const client = new OpenAI({ baseURL: `${URL}/v1`, apiKey: process.env.LLMHOST_KEY ?? "none", maxRetries: 0 });
const TINY = { model: "tiny", temperature: 0 };
const messages = [{ role: "user", content: WHAT }];
const tools = [{ type: "function", function: WEATHER }];
const Person = z.object({ name: z.string().max(9), age: z.number().int().min(0).max(150) });

check("models", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  ok(ids.includes("tiny"), `models: ${ids}`);
  equal((await client.models.retrieve("tiny")).id, "tiny");
});

check("chat: text", async () => {
  const { data, response } = await client.chat.completions.create({ ...TINY, messages }).withResponse();
  equal(data.choices[0].message.content, IT_IS);
  equal(data.choices[0].finish_reason, "stop");
  equal(data._request_id, response.headers.get("x-request-id"), "request id");
});

check("chat: stream", async () => {
  const stream = await client.chat.completions.create({
    ...TINY, messages, stream: true, stream_options: { include_usage: true },
  });
  let [text, usage] = ["", null];
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  equal(text, IT_IS);
  ok(usage.completion_tokens > 0, "no usage");
});

check("chat: stream helper", async () => {
  const runner = client.chat.completions.stream({ ...TINY, messages });
  equal((await runner.finalChatCompletion()).choices[0].message.content, IT_IS);
});

check("chat: tool round trip", async () => {
  const first = await client.chat.completions.create({
    ...TINY, messages: [{ role: "user", content: ASKED }], tools,
  });
  const call = first.choices[0].message.tool_calls[0];
  equal(first.choices[0].finish_reason, "tool_calls");
  equal(JSON.parse(call.function.arguments), { city: "Paris" });
  const second = await client.chat.completions.create({
    ...TINY, tools,
    messages: [
      { role: "user", content: ASKED },
      first.choices[0].message,
      { role: "tool", tool_call_id: call.id, content: IN_PARIS },
    ],
  });
  equal(second.choices[0].message.content, ANSWERED);
});

for (const stream of [false, true]) {
  check(`chat: runTools, ${stream ? "streamed" : "whole"}`, async () => {
    const runner = client.chat.completions.runTools({
      ...TINY, stream,
      messages: [{ role: "user", content: ASKED }],
      tools: [{ type: "function", function: { ...WEATHER, parse: JSON.parse, function: () => IN_PARIS } }],
    });
    equal(await runner.finalContent(), ANSWERED);
  });
}

check("chat: structured object", async () => {
  const answer = await client.chat.completions.parse({
    ...TINY, messages: [{ role: "user", content: "Who?" }],
    response_format: zodResponseFormat(Person, "person"),
  });
  Person.parse(answer.choices[0].message.parsed);
});

check("chat: structured object, streamed", async () => {
  const runner = client.chat.completions.stream({
    ...TINY, messages: [{ role: "user", content: "Who?" }],
    response_format: zodResponseFormat(Person, "person"),
  });
  Person.parse((await runner.finalChatCompletion()).choices[0].message.parsed);
});

check("responses: text, kept and gone on with", async () => {
  const first = await client.responses.create({ ...TINY, input: WHAT });
  equal(first.output_text, IT_IS);
  equal((await client.responses.retrieve(first.id)).output_text, IT_IS);
  const second = await client.responses.create({ ...TINY, input: "And?", previous_response_id: first.id });
  equal(second.previous_response_id, first.id);
  await client.responses.delete(first.id);
});

check("responses: stream", async () => {
  let [text, last] = ["", null];
  for await (const event of await client.responses.create({ ...TINY, input: WHAT, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
    last = event;
  }
  equal(text, IT_IS);
  equal(last.type, "response.completed");
  equal(last.response.output[0].content[0].text, IT_IS);
});

check("responses: tool round trip", async () => {
  const tools = [{ type: "function", strict: true, ...WEATHER }];
  const first = await client.responses.create({ ...TINY, input: ASKED, tools });
  const call = first.output.find((item) => item.type === "function_call");
  equal(JSON.parse(call.arguments), { city: "Paris" });
  const second = await client.responses.create({
    ...TINY, tools, previous_response_id: first.id,
    input: [{ type: "function_call_output", call_id: call.call_id, output: IN_PARIS }],
  });
  equal(second.output_text, ANSWERED);
});

check("responses: structured object", async () => {
  const answer = await client.responses.parse({
    ...TINY, input: "Who?", text: { format: zodTextFormat(Person, "person") },
  });
  Person.parse(answer.output_parsed);
});

check("completions: text and stream", async () => {
  const asked = { ...TINY, prompt: "Once upon", max_tokens: 8 };
  const whole = (await client.completions.create(asked)).choices[0].text;
  let text = "";
  for await (const chunk of await client.completions.create({ ...asked, stream: true })) text += chunk.choices[0].text;
  equal(text, whole);
});

check("embeddings: base64 by default, numbers when asked", async () => {
  const asked = { model: "tiny-embed", input: ["one", "two"] };
  const usual = await client.embeddings.create(asked);
  const numbers = await client.embeddings.create({ ...asked, encoding_format: "float" });
  equal(usual.data[0].embedding.length, numbers.data[0].embedding.length, "dimensions");
  ok(Math.abs(usual.data[1].embedding[0] - numbers.data[1].embedding[0]) < 1e-6, "other numbers");
});

check("errors have their classes and codes", async () => {
  try {
    await client.chat.completions.create({ model: "nobody", messages });
  } catch (error) {
    ok(error instanceof OpenAI.NotFoundError, `${error}`);
    equal(error.code, "model_not_found");
    return;
  }
  throw new Error("no error");
});

check("a stream can be left", async () => {
  const stream = await client.chat.completions.create({
    ...TINY, messages, stream: true, ignore_eos: true, max_tokens: 1000,
  });
  for await (const _ of stream) break;
});

await report();
