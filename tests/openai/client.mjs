// The official Node client: prints one line of JSON with what it saw.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const model = process.argv[3];
const messages = [{ role: "user", content: "Name three colours." }];
const options = { model, messages, max_tokens: 24, temperature: 0, seed: 1 };

const whole = await client.chat.completions.create(options);
let streamed = "", finish = null, usage = null;
const stream = await client.chat.completions.create({
  ...options, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  finish = chunk.choices[0]?.finish_reason ?? finish;
  usage = chunk.usage ?? usage;
}
const helper = await client.chat.completions.stream(options).finalContent();
let error = null;
try {
  await client.chat.completions.create({ ...options, temperature: 9 });
} catch (e) {
  error = { kind: e.constructor.name, status: e.status, param: e.param };
}
const models = (await client.models.list()).data.map((m) => m.id);
const retrieved = (await client.models.retrieve(model)).id;
console.log(JSON.stringify({ whole: whole.choices[0].message.content, streamed, helper, finish, usage, error, models, retrieved }));
