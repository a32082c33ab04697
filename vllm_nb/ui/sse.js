// Server-sent events from bytes that are cut anywhere.

export class SseParser {
  #decoder = new TextDecoder();
  #rest = "";
  #data = [];

  // The data of the events that these bytes complete.
  push(bytes) {
    this.#rest += this.#decoder.decode(bytes, { stream: true });
    const lines = this.#rest.split(/\r\n|\n|\r(?!$)/); // a \r at the very end may be the first half of \r\n
    this.#rest = lines.pop();
    return lines.flatMap((line) => this.#take(line));
  }

  #take(line) {
    if (line === "" && this.#data.length) return [this.#data.splice(0).join("\n")];
    if (line.startsWith("data:")) this.#data.push(line.slice(5).replace(/^ /, ""));
    return [];
  }
}

// The JSON of each event of a response, until "[DONE]".
export async function* events(response) {
  const parser = new SseParser();
  const reader = response.body.getReader();
  try {
    for (let part; !(part = await reader.read()).done; ) {
      for (const data of parser.push(part.value)) {
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
    }
  } finally {
    await reader.cancel().catch(() => {}); // it may have failed already
  }
}
