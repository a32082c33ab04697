import assert from "node:assert/strict";
import { test } from "node:test";
import { Conversation, imagesOf, textOf } from "../../../vllm_nb/ui/tree.js";

test("editing and regenerating branch", () => {
  const talk = new Conversation({ system: "Be brief." });
  const question = talk.add("user", "Name a river.");
  const answer = talk.add("assistant", "The Elbe.", { reasoning: "hm" });
  const edited = talk.edit(question.id, "Name a lake.");
  assert.deepEqual(talk.siblings(edited.id), [question, edited]);
  assert.deepEqual(talk.messages, [{ role: "system", content: "Be brief." }, { role: "user", content: "Name a lake." }]);
  talk.select(question.id);
  assert.equal(talk.current, answer.id);
  talk.remove(question.id);
  assert.equal(talk.current, null);
  assert.deepEqual([...talk.turns.values()], [edited]);
});

test("images and texts of parts", () => {
  const content = [{ type: "image_url", image_url: { url: "data:image/png;base64,AA==" } }, { type: "text", text: "a" }];
  assert.equal(textOf({ content }), "a");
  assert.deepEqual(imagesOf({ content }), ["data:image/png;base64,AA=="]);
  assert.deepEqual(imagesOf({ content: "a" }), []);
});

const turn = (id, parent) => ({ id, parent, role: "user", content: "x" });
const saved = (turns, current = null) => ({ format: "vllm_nb.conversation", version: 1, turns, current });

for (const [name, data] of Object.entries({
  nothing: null, another_format: { ...saved([]), format: "x" }, another_version: { ...saved([]), version: 2 },
  cycle: saved([turn(1, 1)]), falling_ids: saved([turn(2, null), turn(1, null)]), text_id: saved([turn("1", null)]),
  lost_end: saved([turn(1, null)], 2), role: saved([{ ...turn(1, null), role: "king" }]),
})) {
  test(`refused: ${name}`, () => assert.throws(() => Conversation.fromDict(data), Error));
}

test("unknown fields are dropped, missing ones have defaults", () => {
  const talk = Conversation.fromDict(saved([{ ...turn(1, null), evil: 1 }], 1));
  assert.deepEqual(Object.keys(talk.turns.get(1)).sort(), [
    "content", "error", "finish_reason", "id", "model", "parent", "reasoning", "role", "timings", "tool_call_id",
    "tool_calls", "usage",
  ]);
});
