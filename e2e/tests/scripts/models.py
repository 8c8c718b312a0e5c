"""The official Python SDKs against the gateway, with no key in the environment but the run's token. Every call has a
foretold cost; prints `ok` if each answer says so."""

import os

import anthropic
import openai

for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
    assert "sk-" not in os.environ[name], name
# Answers are words; so many input tokens as the prompt has words, so many output tokens as it asks for.
prompt = [{"role": "user", "content": "please say 12 words"}]

client = openai.OpenAI(max_retries=0, timeout=60)
answer = client.chat.completions.create(model="tiny", messages=prompt)
assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 12), answer
chunks = list(client.chat.completions.create(model="tiny", messages=prompt, stream=True))
text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
assert text == " ".join(["word"] * 12), text
response = client.responses.create(model="tiny", input="say 5")
assert response.output_text == " ".join(["word"] * 5), response
assert response.store is False, response
with client.responses.stream(model="tiny", input="say 6") as stream:
    for _ in stream:
        pass
    assert stream.get_final_response().usage.output_tokens == 6
embedded = client.embeddings.create(model="tiny", input=["one two", "three"])
assert len(embedded.data) == 2 and embedded.usage.total_tokens == 3, embedded
assert [model.id for model in client.models.list()]

client = anthropic.Anthropic(max_retries=0, timeout=60)
message = client.messages.create(model="small", max_tokens=50, messages=prompt)
assert (message.usage.input_tokens, message.usage.output_tokens) == (4, 12), message
with client.messages.stream(model="small", max_tokens=50, messages=prompt) as stream:
    assert len("".join(stream.text_stream).split()) == 12
    assert stream.get_final_message().usage.output_tokens == 12
assert client.messages.count_tokens(model="small", messages=prompt).input_tokens == 4
# 4+12, 4+12, 2+5, 2+6, 3, 4+12, 4+12
print("ok")
