// JavaScript clients that call tools, unmodified, against a running server: openai's runTools and Vercel's AI SDK.
//
//     mkdir /tmp/clients && cd /tmp/clients && npm install openai ai @ai-sdk/openai-compatible zod
//     cp .../benchmarks/clients/tools.mjs . && node tools.mjs http://127.0.0.1:8000/v1
//
// Prints a line for each use, and exits with 1 if one fails. What the model chooses does not matter.
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, stepCountIs, streamText, tool } from 'ai';
import OpenAI from 'openai';
import { z } from 'zod';

const url = process.argv[2];
const client = new OpenAI({ baseURL: url, apiKey: 'none', maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: 'user', content: 'Is the sky blue?' }];
const answers = ['yes', 'no', 'maybe'];

function check(condition, message) {
  if (!condition) throw new Error(message);
}

async function runTools(stream) {
  const noted = [];
  const note = {
    type: 'function',
    function: {
      name: 'note',
      description: 'Write a text down.',
      parameters: { type: 'object', properties: { text: { enum: answers } }, required: ['text'] },
      parse: JSON.parse,
      function: ({ text }) => noted.push(text),
    },
  };
  const tool_choice = { type: 'function', function: { name: 'note' } }; // ends after one call
  await client.chat.completions.runTools({ model, messages, tools: [note], tool_choice, stream }).done();
  check(noted.length === 1 && answers.includes(noted[0]), `noted ${JSON.stringify(noted)}`);
  const request = { model, messages, tools: [note], stream, temperature: 0 };
  await client.chat.completions.runTools(request, { maxChatCompletions: 2 }).done();
}

async function vercel() {
  const provider = createOpenAICompatible({ name: 'mpt', baseURL: url });
  const tools = {
    note: tool({
      description: 'Write a text down.',
      inputSchema: z.object({ text: z.enum(answers) }),
      execute: async ({ text }) => `noted: ${text}`,
    }),
  };
  const request = { model: provider(model), prompt: messages[0].content, tools, maxRetries: 0, maxOutputTokens: 200 };
  const one = await generateText({ ...request, toolChoice: 'required' });
  check(one.toolCalls.length >= 1 && one.finishReason === 'tool-calls', `finished by ${one.finishReason}`);
  check(one.toolCalls.every((call) => answers.includes(call.input.text)), JSON.stringify(one.toolCalls));
  check(one.toolResults.length === one.toolCalls.length, 'a call without a result');
  const streamed = streamText({ ...request, toolChoice: { type: 'tool', toolName: 'note' } });
  check((await streamed.toolCalls).length === 1, 'no call in the stream');
  await generateText({ ...request, messages: [...messages, ...one.response.messages], prompt: undefined });
  await generateText({ ...request, stopWhen: stepCountIs(2) });
}

let failed = false;
for (const [name, use] of Object.entries({
  'openai runTools': () => runTools(false),
  'openai runTools, streamed': () => runTools(true),
  'Vercel AI SDK': vercel,
})) {
  try {
    await use();
    console.log(`${name}: ok`);
  } catch (error) {
    failed = true;
    console.log(`${name}: failed\n${error.stack}`);
  }
}
process.exit(failed ? 1 : 0);
