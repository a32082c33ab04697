// A conversation as a tree: each turn knows its parent, so editing and regenerating branch instead of overwriting.
// The same as vllm_nb.client.conversation in Python, down to the form that is saved.

const FORMAT = "vllm_nb.conversation";
const VERSION = 1;
const NAMES = { user: "You", assistant: "Model", system: "System", developer: "Developer", tool: "Tool" };
const FIELDS = {
  reasoning: "", tool_calls: [], tool_call_id: null, finish_reason: null, model: "", usage: null, timings: null,
  error: null,
};

export class Conversation {
  constructor({ system = null, title = "", params = {} } = {}) {
    Object.assign(this, { system, title, params, turns: new Map(), current: null });
  }

  // The current branch, first turn first.
  get branch() {
    const turns = [];
    for (let id = this.current; id !== null; id = this.turns.get(id).parent) turns.unshift(this.turns.get(id));
    return turns;
  }

  // What to send. Reasoning is not sent back: models are trained without that of earlier turns.
  get messages() {
    const system = this.system ? [{ role: "system", content: this.system }] : [];
    return [...system, ...this.branch.map(message)];
  }

  children(id) {
    return [...this.turns.values()].filter((turn) => turn.parent === id);
  }

  // The turn and its alternatives, oldest first.
  siblings(id) {
    return this.children(this.turns.get(id).parent);
  }

  add(role, content, details = {}) {
    const id = Math.max(0, ...this.turns.keys()) + 1;
    const turn = { id, parent: this.current, role, content, ...structuredClone(FIELDS), ...details };
    this.turns.set(id, turn);
    this.current = id;
    return turn;
  }

  // Another version of a turn, beside it: what followed stays on the old branch.
  edit(id, content) {
    const { parent, role } = this.turns.get(id);
    this.current = parent;
    return this.add(role, content);
  }

  // Stand on a turn, so that the next one branches off there; null: before the first.
  rewind(id) {
    this.current = id;
  }

  // Show the branch through a turn, down to its newest end.
  select(id) {
    for (let below; (below = this.children(id)).length; ) id = below.at(-1).id;
    this.current = id;
  }

  // Delete a turn and all that follows it.
  remove(id) {
    const { parent } = this.turns.get(id);
    const gone = new Set([id]);
    for (const turn of this.turns.values()) if (gone.has(turn.parent)) gone.add(turn.id);
    for (const key of gone) this.turns.delete(key);
    if (gone.has(this.current)) this.current = parent;
  }

  reset() {
    this.turns.clear();
    this.current = null;
  }

  toDict() {
    const { title, system, params, current } = this;
    return { format: FORMAT, version: VERSION, title, system, params, current, turns: [...this.turns.values()] };
  }

  // Throws an Error that says what is wrong with the data.
  static fromDict(data) {
    if (data?.format !== FORMAT || data.version !== VERSION || !Array.isArray(data.turns)) {
      throw new Error("this is no conversation that was exported here");
    }
    const { title = "", system = null, params = {} } = data;
    const conversation = new Conversation({ title: String(title ?? ""), system, params: { ...params } });
    let last = 0;
    for (const { id, parent, role, content, ...rest } of structuredClone(data.turns)) {
      const known = Object.fromEntries(Object.entries(rest).filter(([name]) => name in FIELDS));
      const fits = Number.isInteger(id) && id > last && (parent === null || conversation.turns.has(parent));
      if (!fits || !(role in NAMES) || !(typeof content === "string" || Array.isArray(content))) {
        throw new Error(`turn ${id} of this conversation is damaged`);
      }
      conversation.turns.set(id, { id, parent, role, content, ...structuredClone(FIELDS), ...known });
      last = id;
    }
    const current = data.current ?? null;
    if (current !== null && !conversation.turns.has(current)) throw new Error("the conversation's last turn is missing");
    conversation.current = current;
    return conversation;
  }

  toMarkdown() {
    const blocks = this.title ? [`# ${this.title}`] : [];
    if (this.system) blocks.push(`**System**\n\n${this.system}`);
    for (const turn of this.branch) {
      const thought = `\n\n<details><summary>Reasoning</summary>\n\n${turn.reasoning}\n\n</details>`;
      const images = imagesOf(turn).map((url) => `\n\n![image](${url})`).join("");
      blocks.push(`**${NAMES[turn.role]}**${turn.reasoning ? thought : ""}${images}\n\n${textOf(turn)}`);
    }
    return `${blocks.join("\n\n")}\n`;
  }
}

export function nameOf(role) {
  return NAMES[role];
}

export function textOf({ content }) {
  return typeof content === "string" ? content : content.map((part) => part.text ?? "").join("");
}

export function imagesOf({ content }) {
  return typeof content === "string" ? [] : content.filter((part) => part.image_url).map((part) => part.image_url.url);
}

function message({ role, content, tool_calls, tool_call_id }) {
  const sent = { role, content };
  if (tool_calls.length) sent.tool_calls = tool_calls;
  if (tool_call_id !== null) sent.tool_call_id = tool_call_id;
  return sent;
}
