// Runs named checks one after another and prints what became of each, a JSON object a line.
const checks = [];

export function check(name, run) {
  checks.push([name, run]);
}

export function equal(found, expected, what = "value") {
  const [a, b] = [JSON.stringify(found), JSON.stringify(expected)];
  if (a !== b) throw new Error(`${what}: ${a} and not ${b}`);
}

export function ok(condition, what) {
  if (!condition) throw new Error(what);
}

export async function report() {
  for (const [name, run] of checks) {
    let error = null;
    try {
      await run();
    } catch (thrown) {
      error = String(thrown?.stack ?? thrown).slice(0, 2000);
    }
    console.log(JSON.stringify({ name, error }));
  }
}

export const URL = process.env.LLMHOST_URL;

export const WEATHER = {
  name: "get_weather",
  description: "The weather in a city.",
  parameters: {
    type: "object",
    properties: { city: { type: "string" } },
    required: ["city"],
    additionalProperties: false,
  },
};
export const IN_PARIS = '{"city": "Paris", "temp_c": 18, "sky": "cloudy"}';
export const ASKED = "What is the weather in Paris?";
export const ANSWERED = "It is 18 degrees and cloudy in Paris.";
export const WHAT = "What is llmhost?";
export const IT_IS =
  "llmhost is one process that turns a GPU box into a metered, multi-tenant, OpenAI-compatible LLM platform.";
