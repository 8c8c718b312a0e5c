// The official Node SDKs against the gateway, with no key in the environment but the run's token. Every call has a
// foretold cost; prints `ok` if each answer says so.
const assert = require('assert');
const { OpenAI } = require('openai');
const { Anthropic } = require('@anthropic-ai/sdk');

async function main() {
  for (const name of ['OPENAI_API_KEY', 'ANTHROPIC_API_KEY']) assert(!process.env[name].includes('sk-'), name);
  const prompt = [{ role: 'user', content: 'please say 12 words' }];
  const words = (count) => Array(count).fill('word').join(' ');

  const openai = new OpenAI({ maxRetries: 0, timeout: 60000 });
  const answer = await openai.chat.completions.create({ model: 'tiny', messages: prompt });
  assert.deepEqual([answer.usage.prompt_tokens, answer.usage.completion_tokens], [4, 12]);
  let text = '';
  for await (const chunk of await openai.chat.completions.create({ model: 'tiny', messages: prompt, stream: true }))
    text += chunk.choices[0]?.delta.content ?? '';
  assert.equal(text, words(12));
  const response = await openai.responses.create({ model: 'tiny', input: 'say 5' });
  assert.equal(response.output_text, words(5));
  let last;
  for await (const event of await openai.responses.create({ model: 'tiny', input: 'say 6', stream: true })) last = event;
  assert.equal(last.response.usage.output_tokens, 6);
  assert.equal((await openai.embeddings.create({ model: 'tiny', input: ['one two', 'three'] })).usage.total_tokens, 3);

  const anthropic = new Anthropic({ maxRetries: 0, timeout: 60000 });
  const message = await anthropic.messages.create({ model: 'small', max_tokens: 50, messages: prompt });
  assert.deepEqual([message.usage.input_tokens, message.usage.output_tokens], [4, 12]);
  const stream = anthropic.messages.stream({ model: 'small', max_tokens: 50, messages: prompt });
  assert.equal((await stream.finalMessage()).usage.output_tokens, 12);
  // 4+12, 4+12, 2+5, 2+6, 3, 4+12, 4+12
  console.log('ok');
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
