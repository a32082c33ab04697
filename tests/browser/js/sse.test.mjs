import assert from "node:assert/strict";
import { test } from "node:test";
import { events, SseParser } from "../../../vllm_nb/ui/sse.js";

const encode = (text) => new TextEncoder().encode(text);
const STREAM = 'data: {"a": "ü😀\u2028"}\n\n: comment\r\nevent: x\r\ndata:1\r\ndata: 2\r\n\r\ndata: [DONE]\n\n';
const EXPECTED = ['{"a": "ü😀\u2028"}', "1\n2", "[DONE]"];

test("any cut of the bytes gives the same events", () => {
  const bytes = encode(STREAM);
  for (let size = 1; size <= bytes.length; size += 1) {
    const parser = new SseParser();
    const found = [];
    for (let at = 0; at < bytes.length; at += size) found.push(...parser.push(bytes.slice(at, at + size)));
    assert.deepEqual(found, EXPECTED, `cut into pieces of ${size}`);
  }
});

test("a response's events end with [DONE]", async () => {
  const response = new Response(encode('data: {"n":1}\n\ndata: {"n":2}\n\ndata: [DONE]\n\ndata: {"n":3}\n\n'));
  assert.deepEqual(await collect(response), [{ n: 1 }, { n: 2 }]);
});

async function collect(response) {
  const found = [];
  for await (const event of events(response)) found.push(event);
  return found;
}
