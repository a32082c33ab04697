// A conversation with a server on this page: sends the current branch, takes the answer as it comes.

import { events } from "./sse.js";

const TICK = 100; // ms between two drawings of an answer that grows

export class Session {
  #abort = null;
  #timer = null;

  // changed(): draw; saved(): the conversation is worth keeping
  constructor(conversation, { changed, saved }) {
    Object.assign(this, { conversation, changed, saved, live: null });
  }

  get busy() {
    return this.#abort !== null;
  }

  get elapsed() {
    return this.busy ? (performance.now() - this.started) / 1000 : 0;
  }

  send(content) {
    this.conversation.add("user", content);
    return this.answer();
  }

  // A user's turn in other words is asked anew; an answer in other words just stands beside the old one.
  edit(id, text) {
    const turn = this.conversation.turns.get(id);
    const images = typeof turn.content === "string" ? [] : turn.content.filter((part) => part.image_url);
    this.conversation.edit(id, images.length ? [...images, { type: "text", text }] : text);
    return turn.role === "user" ? this.answer() : this.#keep();
  }

  regenerate(id) {
    this.conversation.rewind(this.conversation.turns.get(id).parent);
    return this.answer();
  }

  change(action, ...values) {
    this.conversation[action](...values);
    this.#keep();
  }

  stop() {
    this.#abort?.abort();
  }

  // Ask for an answer to the current branch and append it.
  async answer() {
    const { conversation } = this;
    const messages = conversation.messages;
    const turn = conversation.add("assistant", "");
    this.#abort = new AbortController();
    this.started = performance.now();
    this.live = { id: turn.id, tokens: 0, rate: null, ttft: null };
    this.#timer = setInterval(this.changed, TICK);
    this.#keep();
    try {
      await this.#stream(turn, { ...conversation.params, messages }, this.#abort.signal);
    } catch (error) {
      if (error.name === "AbortError") turn.finish_reason = "abort";
      else turn.error = error instanceof TypeError ? "The server cannot be reached: is it still running?" : error.message;
    } finally {
      clearInterval(this.#timer);
      this.#abort = null;
      this.live = null;
      this.#keep();
    }
  }

  #keep() {
    this.changed();
    this.saved(this.conversation);
  }

  async #stream(turn, params, signal) {
    const body = { ...params, stream: true, stream_options: { include_usage: true }, return_token_ids: true };
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
    });
    if (!response.ok) throw new Error(await refusal(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      this.#take(turn, event);
    }
    if (turn.finish_reason === null) throw new Error("The answer broke off: the server has ended or was interrupted.");
  }

  #take(turn, { model, choices, usage, timings }) {
    turn.model = model ?? turn.model;
    if (usage) turn.usage = totals(usage);
    if (timings) turn.timings = timings;
    for (const { delta = {}, token_ids, finish_reason } of choices) {
      turn.content += delta.content ?? "";
      turn.reasoning += delta.reasoning_content ?? delta.reasoning ?? "";
      for (const call of delta.tool_calls ?? []) addCall(turn.tool_calls, call);
      turn.finish_reason = finish_reason ?? turn.finish_reason;
      const tokens = token_ids?.length ?? (delta.content || delta.reasoning_content ? 1 : 0);
      if (tokens) this.#count(tokens);
    }
  }

  #count(tokens) {
    const { live } = this;
    const now = performance.now();
    if (live.ttft === null) [live.ttft, this.first] = [(now - this.started) / 1000, now];
    live.tokens += tokens;
    if (live.tokens > 1 && now > this.first) live.rate = ((live.tokens - 1) * 1000) / (now - this.first);
  }
}

// Tool calls come in pieces: the name first, then the arguments.
function addCall(calls, { index, id, function: piece }) {
  calls[index] ??= { id, type: "function", function: { name: "", arguments: "" } };
  calls[index].function.name += piece?.name ?? "";
  calls[index].function.arguments += piece?.arguments ?? "";
}

function totals({ prompt_tokens, completion_tokens, prompt_tokens_details }) {
  return { prompt_tokens, completion_tokens, cached_tokens: prompt_tokens_details?.cached_tokens ?? 0 };
}

// Why a request was refused, in words for people.
async function refusal(response) {
  const details = await response.json().catch(() => null);
  const message = details?.error?.message ?? `HTTP status ${response.status}`;
  if (response.status === 401) return "You are logged out: reload the page.";
  return message[0].toUpperCase() + message.slice(1);
}
